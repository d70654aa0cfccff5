"""What all figures share: how they look, and how they are written to files."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ultr.errors import ConfigError
from ultr.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = (".png", ".svg", ".pdf")
# Colours that colour-blind readers can distinguish (Okabe and Ito 2008), with grey in place of yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#888888")
MARKS = "osD^vPXp"
GRID: dict[str, Any] = {"color": "#dddddd", "lw": 0.6, "zorder": 0}
NOTE: dict[str, Any] = {"fontsize": 9, "color": "#555555"}
STYLE = {"font.size": 10, "svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False}


def matplotlib() -> Any:
    """Imports matplotlib.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        import matplotlib as module
    except ImportError as error:
        raise ConfigError(
            "figures need matplotlib, which is not installed: pip install matplotlib, or ultr with its extra 'figures'"
        ) from error
    return module


def check_file(option: str, path: Path | None, kinds: Sequence[str], *, made: Path | None = None) -> None:
    """Checks, before any work, that a file of this kind can be written.

    Args:
      option: the option that named the file, for the message.
      path: the file; None: none is asked for.
      kinds: the endings that it may have.
      made: a folder that the command will make.

    Raises:
      ConfigError: another ending, no such folder, or a folder at the path.
    """
    if path is None:
        return
    if path.suffix not in kinds:
        raise ConfigError(f"expected a file {option} that ends in {', '.join(kinds)}, found '{path}'")
    if path.is_dir():
        raise ConfigError(f"expected a file {option}, found the folder {path}")
    if not path.parent.is_dir() and (made is None or path.parent.absolute() != made.absolute()):
        raise ConfigError(f"{path.parent} is no folder: make it before writing {path.name} there")


def check_figure(path: Path | None, *, made: Path | None = None) -> None:
    """Checks, before any work, that the file of `--figure` can be written and that matplotlib is installed.

    Args:
      path: the file; None: none is asked for.
      made: a folder that the command will make.

    Raises:
      ConfigError: the file cannot be written, or matplotlib is not installed.
    """
    check_file("--figure", path, KINDS, made=made)
    if path is not None:
        matplotlib()


@contextmanager
def styled_figure(width: float, height: float) -> Iterator[Figure]:
    """Gives an empty figure, in inches, to draw on in the common style."""
    style = matplotlib().rc_context(STYLE)
    from matplotlib.figure import Figure

    with style:
        yield Figure(figsize=(width, height), dpi=160, layout="constrained")


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure to a file, whole or not at all; the ending says what kind: .png, .svg or .pdf."""
    content = io.BytesIO()
    with matplotlib().rc_context(STYLE):
        figure.savefig(content, format=Path(path).suffix[1:])
    write_bytes(path, content.getvalue())
