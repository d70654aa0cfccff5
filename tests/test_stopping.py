"""Ctrl-C and SIGTERM end every command soon: exit code, one line, nothing half-written, a state to resume from."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx
from studies import study_text, write_small_collection

from ultr import background, models, simulate, stopping, towers
from ultr.data.dataset import InMemory
from ultr.sessions import Sessions
from ultr.training import fit, load
from ultr.training.checkpoint import named_arrays, read_meta

ROOT = Path(__file__).parents[1]
# Ctrl-C is ignored by what a script has started in the background: here it is not.
START = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from ultr.cli import main; main()"


def raise_signal(number: int) -> None:
    """Sends this process a signal and waits until it is noted."""
    os.kill(os.getpid(), number)
    time.sleep(0.3)


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_signal_is_noted_and_raised_where_it_is_asked_for(number: int) -> None:
    outside = [signal.getsignal(n) for n in stopping.SIGNALS]
    for n in stopping.SIGNALS:  # whatever the tests themselves were told to ignore
        signal.signal(n, signal.default_int_handler)
    before = [signal.getsignal(n) for n in stopping.SIGNALS]
    seen = []
    with stopping.on_signals():
        raise_signal(number)
        seen.append("not interrupted")
        with pytest.raises(stopping.Stopped) as stop:
            stopping.check()
    after = [signal.getsignal(n) for n in stopping.SIGNALS]
    for n, handler in zip(stopping.SIGNALS, outside, strict=True):
        signal.signal(n, handler)
    assert seen == ["not interrupted"]
    assert stop.value.exit_code == 128 + number
    stopping.check()  # what was asked of one command is not asked of the next
    assert after == before


def test_nothing_is_taken_over_outside_the_command_line() -> None:
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) as stop:
            raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not isinstance(stop.value, stopping.Stopped)
    stopping.check()


def test_what_runs_outside_python_is_interrupted_from_a_thread() -> None:
    done = threading.Event()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with stopping.on_signals(), stopping.interruptible(done.set):
            timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            assert done.wait(10)
            timer.join()
    finally:
        signal.signal(signal.SIGINT, before)


def test_threads_that_read_ahead_have_ended_when_the_work_is_stopped() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threads = threading.active_count()

    def numbers() -> Iterator[int]:
        yield from background.run_ahead((partial(int, i) for i in range(10**6)), depth=4, workers=2)

    try:
        with stopping.on_signals(), pytest.raises(stopping.Stopped):  # noqa: PT012
            for i in background.iterate_ahead(numbers(), depth=2):
                if i == 20:
                    raise_signal(signal.SIGINT)
        assert threading.active_count() == threads
    finally:
        signal.signal(signal.SIGINT, before)


K, DOCUMENTS, ROWS = 4, 30, 600


def sessions() -> Sessions:
    rng = np.random.default_rng(0)
    document = rng.integers(1, DOCUMENTS + 1, (ROWS, K))
    clicks = rng.integers(0, 2, (ROWS, K))
    return Sessions.from_lists(features={"document": document.tolist()}, clicks=clicks.tolist())


def model() -> models.PBM:
    return models.PBM(relevance=towers.DocumentTable(DOCUMENTS), examination=towers.RankTable(K))


class Signalling(InMemory):
    """Sessions in memory that send this process a signal when a batch of a pass is asked for."""

    def __init__(self, given: Sessions, *, at: tuple[int, int] | None, number: int = signal.SIGINT) -> None:
        super().__init__(given)
        self.at, self.number, self.passes = at, number, 0

    def batches(self, batch_size: int, *, seed: int | None = None, share_features: bool = False) -> Iterator[Sessions]:
        self.passes += 1
        for i, batch in enumerate(super().batches(batch_size, seed=seed)):
            if self.at == (self.passes, i):
                os.kill(os.getpid(), self.number)
                time.sleep(0.2)
            yield batch


def arrays(trained: Any) -> dict[str, bytes]:
    return {name: np.asarray(x).tobytes() for name, x in named_arrays(nnx.state(trained)).items()}


def losses(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in epoch.items() if k not in ("seconds", "waiting")} for epoch in history]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "handled", "validated"),
    [
        ((1, 3), True, False),
        ((1, 17), False, False),
        ((2, 5), True, True),
        ((3, 11), True, False),
        ((3, 11), False, True),
        ((3, 18), True, True),
    ],
)
def test_fit_resumes_within_an_epoch_to_the_same_bits(
    tmp_path: Path, at: tuple[int, int], handled: bool, validated: bool
) -> None:
    valid = sessions()[np.arange(100)] if validated else None
    options: dict[str, Any] = {"batch_size": 32, "seed": 3, "epochs": 4, "block_sessions": 64}
    whole = fit(model(), Signalling(sessions(), at=None), valid, **options)
    options["directory"] = tmp_path / "run"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threads = threading.active_count()
    try:
        with stopping.on_signals() if handled else nullcontext(), pytest.raises(KeyboardInterrupt) as stop:
            fit(model(), Signalling(sessions(), at=at), valid, **options)
    finally:
        signal.signal(signal.SIGINT, before)
    assert isinstance(stop.value, stopping.Stopped) == handled
    del stop
    assert threading.active_count() == threads
    assert sorted(p.name for p in (tmp_path / "run").glob("*")) in ([], ["state"])
    rest = fit(model(), Signalling(sessions(), at=None), valid, resume=True, **options)
    assert losses(rest.history) == losses(whole.history)
    assert arrays(rest.model) == arrays(whole.model)
    assert arrays(load(tmp_path / "run" / "model")) == arrays(whole.model)


def test_what_is_kept_of_an_epoch_says_how_far_it_came(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    options: dict[str, Any] = {"batch_size": 32, "seed": 3, "epochs": 2, "directory": tmp_path, "block_sessions": 32}
    try:
        with stopping.on_signals(), pytest.raises(stopping.Stopped) as stop:
            fit(model(), Signalling(sessions(), at=(1, 12)), **options)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "Continue with --resume" in stop.value.__notes__[0]
    partial = read_meta(tmp_path / "state")["run"]["partial"]
    assert 0 < partial["blocks"] <= 12
    assert partial["sums"][1] == 32 * partial["blocks"]
    with pytest.raises(ValueError, match=r"another block_sessions \(32, now 64\)"):
        fit(model(), sessions(), resume=True, **(options | {"block_sessions": 64}))


# The commands


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_small_collection(folder / "collection")
    lists = simulate.collection(queries=200, documents=8, features=5, seed=0)
    user = simulate.user("pbm", grades=4, ranks=8)
    policy = simulate.Policy("random")
    log = simulate.clicks(lists, policy, user, sessions=40_000, seed=0, out=folder / "log")
    (folder / "study.toml").write_text(study_text())
    rng = np.random.default_rng(0)
    click = rng.random((60_000, 4)) < [0.5, 0.25, 0.17, 0.12]
    rows = (f"{i},q{i % 997},d{k},{k + 1},{int(click[i, k])}" for i in range(len(click)) for k in range(4))
    (folder / "raw.csv").write_text("\n".join(["session,query,document,rank,click", *rows, ""]))
    ranker = models.PBM(relevance=towers.Linear(5, rngs=nnx.Rngs(0)), examination=towers.RankTable(8))
    fit(ranker, log, epochs=1, seed=0, directory=folder / "run")
    return folder


COMMANDS = {
    "prepare": ("prepare", "raw.csv", "--out", "OUT", "--split", "a=.5,b=.5"),
    "simulate": ("simulate", "collection", "--out", "OUT", "--sessions", "2000000"),
    "train": ("train", "log", "--out", "OUT", "--relevance", "mlp", "--epochs", "300", "--patience", "300"),
    "train em": ("train", "log", "--out", "OUT", "--relevance", "table", "--solver", "em", "--epochs", "9999"),
    "evaluate": ("evaluate", "run", "log", "--calibration"),
    "propensity": ("propensity", "log", "--method", "all-pairs", "--replicates", "200000", "--out", "OUT"),
    "diagnose": ("diagnose", "log", "--target", "0.002"),
    "compare": ("compare", "study.toml", "--out", "OUT"),
    "compare in processes": ("compare", "study.toml", "--out", "OUT", "--jobs", "2"),
    "demo": ("demo", "--out", "OUT", "--sessions", "300000"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_ends_soon_and_leaves_nothing_half(
    tmp_path: Path, inputs: Path, name: str, kind: signal.Signals
) -> None:
    out = tmp_path / ("out.csv" if name == "propensity" else "out")
    (tmp_path / "tmp").mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp"), "JAX_PLATFORMS": "cpu"}
    arguments = [part.replace("OUT", str(out)) for part in COMMANDS[name]]
    with subprocess.Popen(
        [sys.executable, "-c", START, *arguments],
        cwd=inputs,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            process.wait(random.Random(f"{name} {kind}").uniform(1.0, 8.0))
        except subprocess.TimeoutExpired:
            (os.killpg if kind == signal.SIGINT else os.kill)(process.pid, kind)
        _, errors = process.communicate(timeout=120)
    lines = [line for line in errors.splitlines() if "error" in line]
    assert process.returncode in (0, 128 + kind), errors
    assert "Traceback" not in errors
    if process.returncode:
        assert len(lines) == 1
        assert lines[0].startswith("ultr: error: interrupted")
        if name not in ("train", "compare", "compare in processes"):
            assert not out.exists()
    hidden = [p for p in tmp_path.rglob(".*") if p.name != ".gitignore"]
    assert hidden == []
    assert list((tmp_path / "tmp").iterdir()) == []
    if (out / "state").exists():
        assert read_meta(out / "state")["run"].keys() >= {"history", "best"}
    for file in out.rglob("*.json") if out.is_dir() else ():
        json.loads(file.read_text())
