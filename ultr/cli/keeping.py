"""Says what an interrupted training leaves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def says_what_is_kept(out: Path) -> Iterator[None]:
    """Adds to an interruption what is kept in the folder of a run, where nothing said so yet."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if not getattr(stop, "__notes__", ()):
            stop.add_note(_kept(out))
        raise


def _kept(out: Path) -> str:
    state = (out / "state" / "meta.json").exists()
    if (out / "model" / "meta.json").exists():
        more = "; --resume writes them" if state else ""
        return f"The trained model is kept in {out / 'model'}, what `train` reports beside it may be missing{more}"
    if state:
        return f"What was trained before is kept in {out / 'state'}. Continue with --resume"
    return "Nothing of this training was kept"
