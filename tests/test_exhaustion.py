"""A full disk and memory that runs out are one line that says what to do."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from conftest import Ultr
from studies import write_small_collection

from ultr import cli
from ultr.exhaustion import address_space, disk_problem, memory_problem
from ultr.ingest.engine import EngineError, engine_errors

MEMORY: list[BaseException] = [
    MemoryError(),
    MemoryError("std::bad_alloc"),
    np._core._exceptions._ArrayMemoryError((1 << 40,), np.dtype(float)),  # type: ignore[attr-defined]
    RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 4000000000 bytes."),
    RuntimeError("can't start new thread"),
    pa.ArrowMemoryError("malloc of size 64 failed"),
    OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    duckdb.OutOfMemoryException("Out of Memory Error: could not allocate block"),
    ImportError("libx.so: failed to map segment from shared object"),
]
OTHERS: list[BaseException] = [
    ValueError("expected memory_limit"),
    RuntimeError("RESOURCE_EXHAUSTED: No space left on device"),
    OSError(errno.EIO, "i/o error"),
]


@pytest.mark.parametrize("error", MEMORY, ids=lambda e: type(e).__name__)
def test_memory_that_ran_out_is_recognised_however_it_is_worded(error: BaseException) -> None:
    assert memory_problem(error)
    assert disk_problem(error) is None
    outer = ValueError("something")
    outer.__cause__ = error
    assert memory_problem(outer) == memory_problem(error)


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_are_not(error: BaseException) -> None:
    assert memory_problem(error) is None


def test_the_engine_says_what_to_do() -> None:
    with pytest.raises(EngineError, match="with a lower --memory-limit"), engine_errors():
        raise duckdb.OutOfMemoryException("Out of Memory Error: could not allocate block")
    with pytest.raises(EngineError, match="Make room on the disk of the output"), engine_errors():
        raise duckdb.IOException("IO Error: Could not write file: No space left on device")


def test_every_command_says_what_takes_less_memory() -> None:
    assert set(cli.LOWER) == set(cli.COMMANDS)


def test_address_space_that_is_not_there_is_known() -> None:
    assert address_space(1)
    assert not address_space(1 << 28)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_command_that_cannot_start_says_so_in_one_line(tmp_path: Path, name: str) -> None:
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)); "
        f"sys.argv = ['ultr', {name!r}, 'x', '--out', {str(tmp_path / 'out')!r}]; from ultr.cli import main; main()"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert found.returncode == 2
    lines = found.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("ultr: error: memory ran out (")
    assert cli.LOWER[name] in lines[0]
    assert list(tmp_path.iterdir()) == []


def too_little(*_: Any, **__: Any) -> None:
    raise MemoryError("std::bad_alloc")


def test_memory_that_runs_out_on_the_way_is_one_line(
    ultr: Ultr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ultr.data.open_counted", too_little)
    found = ultr("propensity", tmp_path)
    assert found.code == 2
    assert found.err.startswith("ultr: error: memory ran out (std::bad_alloc). Lower --ranks or --bins")
    assert found.err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("simulate", "collection", "--out", "OUT", "--sessions", "20000"),
        ("prepare", "raw.csv", "--out", "OUT"),
        ("train", "log", "--out", "OUT", "--relevance", "mlp", "--hidden", "256,256", "--epochs", "1"),
        ("demo", "--out", "OUT", "--sessions", "2000", "--queries", "90"),
    ],
    ids=lambda a: a[0],
)
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, arguments: tuple[str, ...], ultr: Ultr) -> None:
    write_small_collection(tmp_path / "collection")
    assert ultr("simulate", tmp_path / "collection", "--out", tmp_path / "log", "--sessions", 2000).code == 0
    rows = (f"{i},q{i % 7},d{k},{k + 1},{(i + k) % 2}" for i in range(5000) for k in range(3))
    (tmp_path / "raw.csv").write_text("\n".join(["session,query,document,rank,click", *rows, ""]))
    before = sorted(tmp_path.iterdir())
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); "
        f"sys.argv = ['ultr', *{[a.replace('OUT', 'out') for a in arguments]!r}]; from ultr.cli import main; main()"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "ULTR_CACHE": "off"}
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert found.returncode == 2, found.stderr
    errors = [line for line in found.stderr.splitlines() if not line.startswith("note: ")]
    assert len(errors) == 1, found.stderr
    assert "out" in errors[0]
    assert "file too large" in errors[0].lower()
    assert sorted(tmp_path.iterdir()) == before
