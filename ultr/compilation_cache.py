"""Compiled programs, kept from one command or process to the next."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

ENTRIES = 4096  # of some 10 kB each
# A small model is many small programs, which JAX alone would not think worth keeping. And on some processors XLA
# compiles every program anew and says so, once per program, as an error.
KEEP = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def turn_on() -> None:
    """Has JAX keep what it compiles; sets the variables that it reads when it is imported.

    `JAX_COMPILATION_CACHE_DIR` says where, else it is the user's cache folder; without one that can be written there
    is no cache. `ULTR_CACHE=off` turns it off. Where JAX is imported already, its settings are somebody else's.
    """
    if "jax" in sys.modules:
        return
    if os.environ.get("ULTR_CACHE", "").lower() in ("off", "0", "no", "false"):
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        return
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = _folder()
        if folder is None:
            return
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    for name, value in KEEP.items():
        os.environ.setdefault(name, value)
    # On a full disk, say, nothing is kept, and JAX says so for each of the programs.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")


def _folder() -> Path | None:
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "ultr" / "xla"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            return None
        prune(folder)
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None
    return folder


def prune(folder: Path, *, entries: int = ENTRIES) -> None:
    """Removes the older half of the programs in a folder that holds more than so many."""
    with os.scandir(folder) as found:
        files = [entry.path for entry in found if entry.is_file()]
    if len(files) > entries:
        for file in sorted(files, key=os.path.getmtime)[: len(files) // 2]:
            Path(file).unlink(missing_ok=True)
