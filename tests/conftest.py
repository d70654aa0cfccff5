"""Shared fixtures: strict JAX settings and the place of the real data."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest
import studies
from jax.experimental.compilation_cache import compilation_cache

from ultr import cli

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 2)

ROOT = Path(__file__).resolve().parent.parent


MOST_MAPPINGS = 20_000  # of memory, of which compiled programs take some each; Linux allows 65,530 to a process


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_let_go_of() -> Iterator[None]:
    """Frees what was compiled for the tests of a module where a process has come to hold much."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_text().count("\n") > MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def data_dir() -> Callable[[str], Path]:
    """`data_dir("yandex-sample")` is the folder of that real collection, or the test is skipped."""

    def find(name: str) -> Path:
        base = Path(os.environ.get("ULTR_DATA", ROOT.parent / "shared" / "data"))
        if not (base / name).is_dir():
            pytest.skip(f"real data {name!r} is absent: set ULTR_DATA to the folder that holds it")
        return base / name

    return find


class CommandResult(NamedTuple):
    """What a command ended with: its exit code, and what it wrote to standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The result that the command printed as JSON."""
        return json.loads(self.out)


Ultr = Callable[..., CommandResult]


def run_command(*arguments: object) -> CommandResult:
    """Runs the command line in this process; the fixture `ultr` is this function."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.raises(SystemExit) as stop, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        cli.main([str(argument) for argument in arguments])
    return CommandResult(int(stop.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture
def ultr() -> Ultr:
    """`ultr("train", log, "--out", out)` runs the command line in this process."""
    return run_command


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the modules that ask for `compiled_once` keep their programs."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def compiled_once(programs: Path) -> Iterator[None]:
    """What is compiled to the same program is compiled once, here as in the command: most of what tests would take."""
    values = {"jax_compilation_cache_dir": str(programs), "jax_persistent_cache_min_compile_time_secs": 0,
              "jax_persistent_cache_min_entry_size_bytes": -1}  # fmt: skip
    before = {name: getattr(jax.config, name) for name in values}
    for settings in (values, before):
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if settings is values:
            yield


@pytest.fixture(scope="module")
def quickly_compiled(compiled_once: None) -> Iterator[None]:
    """Programs that are compiled once and with little effort: for modules that run many of them, each for a moment."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small collection and the small study of it, study.toml."""
    path = tmp_path_factory.mktemp("study")
    studies.write_small_collection(path / "collection")
    (path / "study.toml").write_text(studies.STUDY)
    return path
