"""What all figures share: how they look, which files they can be, and that they stand complete or not at all."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ultr.errors import ConfigError
from ultr.files import write_bytes

KINDS = (".png", ".svg", ".pdf")
# That colour-blind people tell apart (Okabe and Ito 2008), grey in place of yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#888888")
MARKS = "osD^vPXp"
GRID = {"color": "#dddddd", "lw": 0.6, "zorder": 0}
NOTE = {"fontsize": 9, "color": "#555555"}
STYLE = {"font.size": 10, "svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False}


def matplotlib() -> Any:
    """The module.

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
    """Before any work: can a file of this kind be written there?

    Args:
      option: that named the file, for the message.
      path: the file; None: none is asked for.
      kinds: endings that say what to write.
      made: a folder that the command makes.

    Raises:
      ConfigError: another ending, no such folder, or a folder of that name.
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
    """`check_file` of `--figure`, and that there is something to draw it with."""
    check_file("--figure", path, KINDS, made=made)
    if path is not None:
        matplotlib()


@contextmanager
def sheet(path: Path, width: float, height: float) -> Iterator[Any]:
    """Gives an empty figure, in inches, and writes it to the file when the block ends without an exception."""
    style = matplotlib().rc_context(STYLE)
    from matplotlib.figure import Figure

    with style:
        figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
        yield figure
        content = io.BytesIO()
        figure.savefig(content, format=path.suffix[1:])
    write_bytes(path, content.getvalue())
