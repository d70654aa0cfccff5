"""ultr as a contestant, with the commands of the others, so that it too can be measured in a process of its own.

What each measurement calls stands in one function: `optimizer`, `step`, `end_to_end` and `train_to_convergence`.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, Literal

import arrays
import jax
import numpy as np
import optax
from flax import nnx
from protocol import peak_bytes, serve, since_start

from ultr import training
from ultr.data import ClickLog, Dataset, collapse
from ultr.sessions import Sessions
from ultr.study import ModelConfig, build_model
from ultr.training.feed import one_pass
from ultr.training.rows import lazy_adam
from ultr.training.solver import solve
from ultr.training.steps import Trainer

RATE = 0.003
_prepared: dict[tuple[Any, ...], _Windows] = {}


def optimizer(rate: float = RATE) -> Any:
    """Row-sparse Adam for the tables, at ten times the rate of the networks."""
    return lazy_adam(rate)


def build(model: str, log: Any, features: bool = False, seed: int = 42) -> Any:
    if features:
        return build_model(ModelConfig(model=model, relevance="mlp", hidden=(256, 256), seed=seed), log)
    return build_model(ModelConfig(model=model, relevance="table", seed=seed), log)


def loader(log: str, sessions: int, batch_size: int) -> dict[str, Any]:
    """Reading alone, shuffled; at least so many sessions, or all there are."""
    source = ClickLog.open(log)
    began, read = time.perf_counter(), 0
    for batch in source.batches(batch_size, seed=0):
        read += int(np.count_nonzero(np.asarray(batch.mask)[:, 0]))
        if read >= sessions:
            break
    seconds = time.perf_counter() - began
    return {"sessions": read, "seconds": seconds, "rate": read / seconds}


class _Windows:
    """The compiled steps of `fit` on batches that lie in memory, in windows of about so many seconds."""

    def __init__(self, model: Any, batches: list[Sessions]) -> None:
        size = len(batches[0])
        trainer = Trainer(model, optimizer())
        self._trainer, self._state = trainer, trainer.init()
        self._scratch, self._sums = trainer.scratch(self._state), jax.numpy.zeros(3)
        self._facts = {name: jax.numpy.float32(0) for name in ("weight", "prior", "prior_of_tables")}
        self._blocks = list(
            one_pass(
                _Listed(batches),
                size,
                seed=None,
                length=size * len(batches),
                rank_first=trainer.rank_first,
                check=lambda batch: None,
                put=jax.device_put,
            )
        )
        self.run(1)
        self.run(1)  # the first pass may compile anew for the state that the last one gave
        self._once = self.run(1)[1]

    def run(self, passes: int) -> tuple[int, float]:
        """(sessions, seconds)."""
        began, done = time.perf_counter(), 0
        for _ in range(passes):
            for block in self._blocks:
                self._state, self._scratch, self._sums = self._trainer.block(
                    self._state, self._scratch, self._sums, block.batches, block.count, self._facts
                )
                done += block.sessions
        jax.block_until_ready((self._state, self._sums))
        return done, time.perf_counter() - began

    def window(self, seconds: float) -> dict[str, Any]:
        sessions, took = self.run(max(1, round(seconds / self._once)))
        return {"sessions": sessions, "seconds": took, "rate": sessions / took}


class _Listed(Dataset):
    def __init__(self, batches: list[Sessions]) -> None:
        self._batches = batches

    def batches(self, batch_size: int, *, seed: int | None = None, share_features: bool = False) -> Iterator[Sessions]:
        return iter(self._batches)


def step(
    model: str, documents: int, batch_size: int, folder: str, seconds: float = 1.0, features: str | None = None
) -> dict[str, Any]:
    """Training steps on batches in memory for about so many seconds; compiled at the first call with these sizes.

    With `features`, the path of a matrix [documents + 1, F], the model is a PBM with an MLP with two layers of 256.
    """
    key = (model, documents, batch_size, folder, features)
    compiled = {}
    if key not in _prepared:
        began = time.perf_counter()
        matrix = None if features is None else np.load(features, mmap_mode="r")
        _, ids, clicks = arrays.read(folder, 12 * batch_size)
        ids = ids if matrix is not None else arrays.spread(ids, documents)
        batches = _batches(ids, clicks, batch_size, matrix)
        built = build(model, _log(documents, ids.shape[1], matrix, batches), matrix is not None)
        _prepared[key] = _Windows(built, batches)
        compiled = {"compile_seconds": time.perf_counter() - began}
    return _prepared[key].window(seconds) | compiled


def _batches(ids: np.ndarray, clicks: np.ndarray, batch_size: int, matrix: np.ndarray | None) -> list[Sessions]:
    made = []
    for start in range(0, len(ids) - batch_size + 1, batch_size):
        rows = slice(start, start + batch_size)
        features = {"document": ids[rows]}
        if matrix is not None:
            features["features"] = matrix[ids[rows]]
        made.append(
            Sessions(
                mask=np.ones(ids[rows].shape, bool),
                position=np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids[rows].shape),
                features=features,
                clicks=clicks[rows],
            )
        )
    if not made:
        raise ValueError(f"expected at least {batch_size} sessions, found {len(ids)}")
    return made


def _log(documents: int, ranks: int, matrix: np.ndarray | None, batches: list[Sessions]) -> Any:
    """What `build_model` asks a log for."""
    features = [] if matrix is None else [f"f{i}" for i in range(matrix.shape[1])]
    return SimpleNamespace(
        documents=documents,
        ranks=ranks,
        metadata={"features": features, "impression_features": []},
        batches=lambda batch_size, seed=None: iter(batches),
    )


def forget() -> dict[str, Any]:
    """Frees what `step` keeps between calls."""
    _prepared.clear()
    jax.clear_caches()
    return {}


def end_to_end(model: str, log: str, batch_size: int, epochs: int = 5) -> dict[str, Any]:
    """Epochs of `fit` from the prepared log but for the first, in which it compiles: from Parquet to updated tables."""
    source = ClickLog.open(log)
    fitted = training.fit(
        build(model, source),
        source,
        optimizer=optimizer(),
        epochs=epochs,
        batch_size=batch_size,
        seed=0,
        patience=None,
        progress=False,
    )
    first, *later = fitted.history
    seconds = sum(epoch["seconds"] for epoch in later)
    return {
        "sessions": len(source) * len(later),
        "seconds": seconds,
        "rate": len(source) * len(later) / seconds,
        "waiting": sum(epoch["waiting"] for epoch in later) / seconds,
        "first_seconds": first["seconds"],
    }


def compiling(model: str, width: int, sessions: int = 64) -> dict[str, Any]:
    """Seconds that the first call of a compiled gradient of the loss, and of the marginals, takes beyond the second."""
    documents = 1000
    rng = np.random.default_rng(0)
    shape = (sessions, width)
    made = _batches(rng.integers(1, documents + 1, shape).astype(np.int32), rng.integers(0, 2, shape, np.int8),
                    sessions, None)  # fmt: skip
    batch = jax.tree.map(jax.numpy.asarray, made[0])
    graph, state = nnx.split(build(model, _log(documents, width, None, made)))

    def loss(state: Any, batch: Sessions) -> jax.Array:
        return jax.numpy.mean(nnx.merge(graph, state).loss(batch))

    def marginals(state: Any, batch: Sessions) -> jax.Array:
        return nnx.merge(graph, state)(batch).marginal()

    found = {"gradient": arrays.beyond(jax.jit(jax.grad(loss)), state, batch)}
    found["marginals"] = arrays.beyond(jax.jit(marginals), state, batch)
    return found | {"peak_bytes": peak_bytes()}


def train_to_convergence(
    model: str,
    batch_size: int,
    train: str,
    test: str,
    epochs: int = 60,
    rate: float = 0.002,
    features: bool = False,
    method: Literal["em", "lbfgs", "fit"] = "em",
    prior: float | Literal["fitted"] = "fitted",
    seed: int = 42,
) -> dict[str, Any]:
    """From the prepared log; held-out log-likelihood per document and seconds after each pass.

    Tables are solved, or trained by minibatches of the log (`method="fit"`); networks over features are trained on the
    counts of the log. Seconds of a point: process start to
    the end of that pass. The likelihoods come from a second, identical run that judges after each pass, so that
    judging takes no time of the first.
    """

    def run(judged: bool) -> Any:
        log = ClickLog.open(train)
        held_out = ClickLog.open(test, vocabulary=log) if judged else None
        untrained = build(model, log, features, seed)
        if features:
            counts = collapse(log, "rank")
            schedule = optax.cosine_decay_schedule(rate, epochs * _steps(counts, batch_size))
            return training.fit(
                untrained, counts, held_out, optimizer=optax.adam(schedule), epochs=epochs, batch_size=batch_size,
                seed=seed, patience=None, progress=False,
            )  # fmt: skip
        if method == "fit":
            return training.fit(
                untrained, log, held_out, optimizer=optimizer(rate), epochs=epochs, batch_size=batch_size, seed=seed,
                patience=None, progress=False,
            )  # fmt: skip
        return solve(untrained, log, held_out, method=method, prior=prior, iterations=epochs, tolerance=1e-6)

    ready = since_start()
    began = time.perf_counter()
    timed = run(judged=False)
    setup = time.perf_counter() - began - sum(epoch["seconds"] for epoch in timed.history)
    peak = peak_bytes()
    held_out = ClickLog.open(test, vocabulary=ClickLog.open(train))
    per_session = held_out.metadata["impressions"] / held_out.metadata["sessions"]
    points, seconds = [], ready + setup
    for epoch, judged in zip(timed.history, run(judged=True).history, strict=True):
        seconds += epoch["seconds"]
        points.append({"seconds": seconds, "log_likelihood": -judged["valid_loss"] / per_session})
    return {
        "points": points,
        "log_likelihood": max(point["log_likelihood"] for point in points),
        "epochs": len(points),
        "seconds_until_training": ready,
        "peak_bytes": peak,
    }


def _steps(counts: Any, batch_size: int) -> int:
    return sum(1 for _ in counts.batches(batch_size, seed=0, share_features=True))


COMMANDS: dict[str, Callable[..., Any]] = {
    "loader": loader,
    "step": step,
    "forget": forget,
    "end_to_end": end_to_end,
    "compiling": compiling,
    "train_to_convergence": train_to_convergence,
}

if __name__ == "__main__":
    names = ("jax", "jaxlib", "flax", "optax", "numpy", "pyarrow")
    serve(COMMANDS, contestant="ultr", versions={name: importlib.metadata.version(name) for name in names})
