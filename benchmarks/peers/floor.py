"""The C kernel as a contestant: touched-rows-only Adam for a PBM on one thread, and a memory copy.

Compiled with gcc (or $CC) when it starts, into a folder of its own.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import arrays
import numpy as np
from protocol import serve

FLAGS = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC"]
_kept: dict[tuple[Any, ...], Any] = {}


def build(folder: str) -> ctypes.CDLL:
    library = Path(folder) / "floor.so"
    source = Path(__file__).with_name("floor.c")
    subprocess.run([os.environ.get("CC", "gcc"), *FLAGS, str(source), "-o", str(library), "-lm"], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.pbm_epoch.restype = ctypes.c_double
    return loaded


def _at(array: np.ndarray) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)


def step(documents: int, batch_size: int, folder: str, sessions: int = 200_000) -> dict[str, Any]:
    """One pass over sessions in memory."""
    key = (documents, batch_size, folder, sessions)
    if key not in _kept:
        _, read, clicked = arrays.read(folder, sessions)
        rows = np.zeros((documents + 1, 4), np.float32)
        rows[:] = 0  # so that the pages are there
        by_rank = np.zeros((64, 4), np.float32)
        ready = arrays.spread(read, documents), np.ascontiguousarray(clicked), rows, by_rank, ctypes.c_int64(0)
        _kept[key] = ready
    ids, clicks, table, ranks, steps = _kept[key]
    n, k = ids.shape
    n -= n % batch_size
    began = time.perf_counter()
    loss = LIBRARY.pbm_epoch(
        _at(table),
        _at(ranks),
        _at(ids),
        _at(clicks),
        ctypes.c_int64(n),
        ctypes.c_int(k),
        ctypes.c_int64(batch_size),
        ctypes.c_float(0.003),
        ctypes.byref(steps),
    )
    seconds = time.perf_counter() - began
    return {"sessions": n, "seconds": seconds, "rate": n / seconds, "log_likelihood": -loss}


def copy(megabytes: int = 200) -> dict[str, Any]:
    """Bytes read plus bytes written per second by memcpy."""
    if ("copy", megabytes) not in _kept:
        _kept["copy", megabytes] = np.ones((2, megabytes * 1_000_000), np.uint8)
    to, source = _kept["copy", megabytes]
    began = time.perf_counter()
    LIBRARY.copy(_at(to), _at(source), ctypes.c_int64(source.nbytes))
    return {"rate": 2 * source.nbytes / (time.perf_counter() - began)}


def forget() -> dict[str, Any]:
    """Frees what the other commands keep between calls."""
    _kept.clear()
    return {}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        LIBRARY = build(work)
        compiler = subprocess.run([os.environ.get("CC", "gcc"), "--version"], capture_output=True, text=True)
        version = compiler.stdout.partition("\n")[0]
        serve({"step": step, "copy": copy, "forget": forget}, contestant="C", versions={"cc": version})
    sys.exit()
