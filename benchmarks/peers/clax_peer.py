"""CLAX as a contestant: its own loader, models and trainer, driven by `benchmarks/speed.py`.

Runs in an interpreter that has CLAX and not ultr: Python 3.11, `pip install torch==2.13.0` (CPU build) first, then
`pip install jax==0.7.2 jaxlib==0.7.2 flax==0.11.2 optax rax clax-models pandas pyarrow`.

Everything is as its documentation shows it: AdamW at .003, early stopping without patience at a minimal gain of 1e-5.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import arrays
import jax
import numpy as np
import optax
from clax import (
    ClickChainModel,
    DependentClickModel,
    DynamicBayesianNetwork,
    PositionBasedModel,
    Trainer,
    UserBrowsingModel,
)
from clax.datasets import YandexDataset
from clax.metrics import Average, MultiMetric
from clax.parameters import DeepParameterConfig
from flax import nnx
from flax.training.early_stopping import EarlyStopping
from protocol import peak_bytes, serve, since_start
from torch.utils.data import DataLoader

K = 10
RATE = 0.003
_prepared: dict[tuple[Any, ...], Callable[[float], dict[str, Any]]] = {}
_trainers: dict[tuple[Any, ...], Trainer] = {}  # one for all calls of `end_to_end`: its compiled steps belong to it


def build(model: str, documents: int, seed: int = 42, positions: int = K) -> Any:
    rngs = nnx.Rngs(seed)
    makers: dict[str, Callable[[], Any]] = {
        "pbm": lambda: PositionBasedModel(positions=positions, query_doc_pairs=documents, rngs=rngs),
        "ubm": lambda: UserBrowsingModel(positions=positions, query_doc_pairs=documents, rngs=rngs),
        "dbn": lambda: DynamicBayesianNetwork(query_doc_pairs=documents, rngs=rngs),
        "sdbn": lambda: DynamicBayesianNetwork(query_doc_pairs=documents, fix_continuation=True, rngs=rngs),
        "dcm": lambda: DependentClickModel(positions=positions, query_doc_pairs=documents, rngs=rngs),
        "ccm": lambda: ClickChainModel(query_doc_pairs=documents, rngs=rngs),
    }
    return makers[model]()


def deep(features: int, hidden: int = 256, layers: int = 2, seed: int = 42) -> Any:
    tower = DeepParameterConfig(use_feature="features", features=features, layers=layers, hidden_units=hidden)
    return PositionBasedModel(positions=K, attraction=tower, rngs=nnx.Rngs(seed))


def reader(folder: str, sessions: int, batch_size: int, workers: int) -> DataLoader:
    dataset = YandexDataset(dataset_dir=folder, session_range=(0, sessions))
    more = {"persistent_workers": True} if workers else {}
    return DataLoader(dataset, batch_size=batch_size, collate_fn=dataset.collate_fn, num_workers=workers, **more)


class Gathered:
    """Batches from memory, as the loader would yield them; with a feature matrix [documents + 1, F], gathered by id."""

    def __init__(
        self,
        ids: np.ndarray,
        clicks: np.ndarray,
        batch_size: int,
        features: np.ndarray | None = None,
        seed: int | None = None,
    ) -> None:
        self.ids, self.clicks, self.batch_size, self.features = ids, clicks, batch_size, features
        self.rng = None if seed is None else np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.ids) // self.batch_size  # a shorter last batch would be compiled anew

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        order = None if self.rng is None else self.rng.permutation(len(self.ids))
        for i in range(len(self)):
            rows: Any = slice(i * self.batch_size, (i + 1) * self.batch_size)
            yield self.batch(rows if order is None else order[rows])

    def batch(self, rows: Any) -> dict[str, np.ndarray]:
        ids = self.ids[rows]
        batch = {
            "query_id": np.zeros(len(ids), np.int32),
            "n": np.full(len(ids), K, np.int16),
            "query_doc_ids": ids,
            "positions": np.broadcast_to(np.arange(1, K + 1, dtype=np.int16), ids.shape).copy(),
            "mask": np.ones(ids.shape, bool),
            "clicks": self.clicks[rows].astype(np.float16),
        }
        if self.features is not None:
            batch["features"] = self.features[ids]
        return batch


def _trainer(epochs: int = 1) -> Trainer:
    return Trainer(optax.adamw(RATE), epochs=epochs, early_stopping=EarlyStopping(patience=0, min_delta=1e-5))


def loader(folder: str, sessions: int, batch_size: int, workers: int) -> dict[str, Any]:
    """Reading alone, from the first request of a batch on."""
    began = time.perf_counter()
    read = sum(len(batch["clicks"]) for batch in reader(folder, sessions, batch_size, workers))
    seconds = time.perf_counter() - began
    return {"sessions": read, "seconds": seconds, "rate": read / seconds}


def step(
    model: str, documents: int, batch_size: int, folder: str, seconds: float = 1.0, features: str | None = None
) -> dict[str, Any]:
    """Training steps on batches in memory for about so many seconds; compiled at the first call with these sizes.

    With `features`, the path of a matrix, the model is a PBM whose attraction is an MLP with two layers of 256 units.
    """
    key = (model, documents, batch_size, folder, features)
    compiled = {}
    if key not in _prepared:
        began = time.perf_counter()
        _prepared[key] = _steps(model, documents, batch_size, folder, features)
        compiled = {"compile_seconds": time.perf_counter() - began}
    return _prepared[key](seconds) | compiled


def _steps(
    name: str, documents: int, batch_size: int, folder: str, features: str | None
) -> Callable[[float], dict[str, Any]]:
    matrix = None if features is None else np.load(features, mmap_mode="r")
    _, ids, clicks = arrays.read(folder, 12 * batch_size)
    ids = ids if matrix is not None else arrays.spread(ids, documents)
    batches = list(Gathered(ids, clicks, batch_size, matrix))
    if not batches:
        raise ValueError(f"expected at least {batch_size} sessions, found {len(ids)}")
    model = build(name, documents) if matrix is None else deep(matrix.shape[1])
    trainer = _trainer()
    optimizer = nnx.ModelAndOptimizer(model, trainer.optimizer)
    metrics = MultiMetric({"loss": Average("loss")})
    model.train()
    endless = itertools.cycle(batches)

    def run(steps: int) -> float:
        began = time.perf_counter()
        for batch in itertools.islice(endless, steps):
            trainer._train_step(model, optimizer, metrics, batch)
        jax.block_until_ready(nnx.state(model))
        return time.perf_counter() - began

    run(2)
    once = run(1)

    def window(seconds: float) -> dict[str, Any]:
        steps = max(1, round(seconds / once))
        took = run(steps)
        return {"sessions": steps * batch_size, "seconds": took, "rate": steps * batch_size / took}

    return window


def forget() -> dict[str, Any]:
    """Frees what `step` keeps between calls."""
    _prepared.clear()
    _trainers.clear()
    jax.clear_caches()
    return {}


class _Clock:
    """The train batches and the validation batches of a trainer, with the time that training took.

    Counts from the first request of a train batch to the end of the last step of the epoch; validation is left out,
    and so is what `judge` does, which is called with the model after each epoch's validation.
    """

    def __init__(self, model: Any, train: Any, valid: Any, judge: Callable[[], float] | None = None) -> None:
        self.model, self.judge = model, judge
        self.train, self.valid = _Hooked(train, self._starts), _Hooked(valid, self._ends, self._late)
        self.spent = self.since = 0.0
        self.points: list[dict[str, float]] = []

    def _starts(self) -> None:
        self.since = time.perf_counter()

    def _ends(self) -> None:
        jax.block_until_ready(nnx.state(self.model))
        self.spent += time.perf_counter() - self.since

    def _late(self) -> None:
        if self.judge is not None:
            self.points.append({"seconds": self.spent, "log_likelihood": self.judge()})


class _Hooked:
    def __init__(self, batches: Any, before: Callable[[], None], after: Callable[[], None] | None = None) -> None:
        self.batches, self.before, self.after = batches, before, after

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        self.before()
        yield from self.batches
        if self.after is not None:
            self.after()


def _train(trainer: Trainer, model: Any, clock: _Clock) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        return trainer.train(model, clock.train, clock.valid)


def end_to_end(
    model: str, documents: int, batch_size: int, folder: str, valid: str, sessions: int, workers: int
) -> dict[str, Any]:
    """One epoch of its trainer from Parquet, without the validation; compiled beforehand, at the first call."""
    key = (model, documents, batch_size)
    first = key not in _trainers
    trainer = _trainers.setdefault(key, _trainer())
    sessions = max(sessions // batch_size, 1) * batch_size

    def epoch(count: int) -> float:
        built = build(model, documents)
        clock = _Clock(built, reader(folder, count, batch_size, workers), reader(valid, 512, 512, 0))
        _train(trainer, built, clock)
        return clock.spent

    compiled = {"compile_seconds": epoch(batch_size)} if first else {}
    seconds = epoch(sessions)
    return {"sessions": sessions, "seconds": seconds, "rate": sessions / seconds} | compiled


def likelihood(model: Any, test: Any) -> float:
    """Mean over test documents of ln P(c_k | c_<k)."""
    predict = nnx.jit(lambda model, batch: model.predict_conditional_clicks(batch))
    model.eval()
    total, count = 0.0, 0
    for batch in test:
        log_p = np.minimum(np.asarray(predict(model, batch), np.float64), 0.0)
        clicked, mask = batch["clicks"] > 0, batch["mask"]
        with np.errstate(divide="ignore"):
            log_not = np.where(log_p > -0.6931, np.log(-np.expm1(log_p)), np.log1p(-np.exp(log_p)))
        total += np.where(clicked, log_p, log_not)[mask].sum()
        count += mask.sum()
    return float(total / count)


def compiling(model: str, width: int, sessions: int = 64) -> dict[str, Any]:
    """Seconds that the first call of a compiled gradient of the loss, and of the marginals, takes beyond the second."""
    documents = 1000
    rng = np.random.default_rng(0)
    shape = (sessions, width)
    batch = {
        "query_doc_ids": rng.integers(1, documents + 1, shape).astype(np.int32),
        "positions": np.tile(np.arange(1, width + 1, dtype=np.int16), (sessions, 1)),
        "mask": np.ones(shape, bool),
        "clicks": rng.integers(0, 2, shape).astype(np.float16),
    }
    graph, state = nnx.split(build(model, documents, positions=width))

    def loss(state: Any, batch: dict[str, Any]) -> Any:
        return jax.numpy.mean(nnx.merge(graph, state).compute_loss(batch))

    def marginals(state: Any, batch: dict[str, Any]) -> Any:
        return nnx.merge(graph, state).predict_clicks(batch)

    found = {"gradient": arrays.beyond(jax.jit(jax.grad(loss, allow_int=True)), state, batch)}
    found["marginals"] = arrays.beyond(jax.jit(marginals), state, batch)
    return found | {"peak_bytes": peak_bytes()}


def train_to_convergence(
    model: str,
    documents: int,
    batch_size: int,
    train: str,
    valid: str,
    test: str,
    sessions: int,
    valid_sessions: int,
    test_sessions: int,
    workers: int,
    epochs: int = 50,
    features: str | None = None,
    seed: int = 42,
) -> dict[str, Any]:
    """Its trainer from Parquet with early stopping; held-out log-likelihood and seconds after each epoch.

    Seconds of a point: process start to the end of that epoch's last step, without evaluation. With `features` the
    batches are gathered from memory (its own loader would read a copy of the features with every session).
    """
    before = time.perf_counter()
    if features is None:
        built = build(model, documents, seed)
        sources = [
            reader(train, sessions, batch_size, workers),
            reader(valid, valid_sessions, 4096, 0),
            reader(test, test_sessions, 4096, 0),
        ]
    else:
        matrix = np.load(features)
        built = deep(matrix.shape[1], seed=seed)
        sources = []
        for folder, count, size in (
            (train, sessions, batch_size),
            (valid, valid_sessions, min(4096, valid_sessions)),
            (test, test_sessions, min(4096, test_sessions)),
        ):
            _, ids, clicks = arrays.read(folder, count)
            sources.append(Gathered(ids, clicks, size, matrix, seed if folder == train else None))
    clock = _Clock(built, sources[0], sources[1], lambda: likelihood(built, sources[2]))
    ready = since_start()
    trainer = _trainer(epochs)
    _train(trainer, built, clock)
    points = [{**point, "seconds": ready + point["seconds"]} for point in clock.points]
    return {
        "points": points,
        "log_likelihood": likelihood(built, sources[2]),
        "epochs": len(points),
        "seconds_until_training": ready,
        "wall_seconds": time.perf_counter() - before,
        "peak_bytes": peak_bytes(),
    }


if __name__ == "__main__":
    names = ("clax-models", "jax", "jaxlib", "flax", "optax", "torch", "numpy", "pyarrow")
    serve(
        {
            "loader": loader,
            "step": step,
            "forget": forget,
            "end_to_end": end_to_end,
            "compiling": compiling,
            "train_to_convergence": train_to_convergence,
        },
        contestant="CLAX",
        versions={name: importlib.metadata.version(name) for name in names},
    )
