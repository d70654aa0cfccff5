"""`fit`: the training loop for everything with `loss(sessions) -> [B]`."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from ultr.errors import ConfigError, DataError, UltrError
from ultr.sessions import InMemory, Sessions, Source
from ultr.towers import check
from ultr.training.checkpoint import describe, read_meta, restore_arrays, save, save_arrays
from ultr.training.optimizers import adam

STATE_SECONDS = 10.0


class Trainable(Protocol):
    """A click model or a baseline."""

    def loss(self, sessions: Sessions) -> jax.Array: ...

    def score(self, sessions: Sessions) -> jax.Array: ...


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What `fit` returns.

    Attributes:
      model: the model with the parameters of the best epoch.
      history: one dict per epoch: epoch (from 1), loss, valid_loss (None without validation), sessions,
        impossible (sessions that the model cannot produce, left out of the loss), seconds.
      best: the epoch whose parameters `model` holds; 0 means the start, before any epoch.
    """

    model: Any
    history: list[dict[str, Any]]
    best: int


def fit(
    model: Any,
    train: Source | Sessions,
    valid: Source | Sessions | None = None,
    *,
    optimizer: optax.GradientTransformation | None = None,
    epochs: int = 20,
    batch_size: int = 512,
    seed: int,
    patience: int | None = 3,
    l2: float = 0.0,
    directory: str | Path | None = None,
    resume: bool = False,
    settings: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
    progress: bool | None = None,
) -> Fitted:
    """Minimises the mean loss per session by minibatches and keeps the best epoch.

    Args:
      model: has `loss(sessions) -> [B]`; it is left as it is, the result holds a trained copy.
      train: streams batches: a `ClickLog`, a `Collection`, or sessions in memory.
      valid: judges the epochs by the same loss; None: the last epoch counts as the best.
      optimizer: an optax transformation; None: `ultr.training.adam()`, .003 for networks and .03 for tables.
      epochs: passes over `train`, at most.
      batch_size: sessions per step, fixed: shorter batches are padded with masked rows.
      seed: decides the order of the sessions; with the same seed and data the result is the same.
      patience: stop after so many epochs without a better validation loss; None: never.
      l2: strength of a Gaussian prior around 0 on every parameter, in the unit of one session's
        log-likelihood: adds l2/2 sum(parameter^2) to the total loss.
      directory: keeps `directory/model` at the end, and on the way, every ten seconds between two epochs,
        `directory/state`, from which `resume` goes on.
      resume: continue from `directory/state` where it exists; data, model, seed and `settings` must be the same.
      settings: further JSON-able facts that must not change on resuming, such as the learning rate.
      mesh: devices to split each batch over; one axis (make it with `AxisType.Auto`).
      progress: progress bar on standard error; None: when that is a terminal.

    Returns:
      `Fitted`. Sessions with weight w count as w sessions; sessions that the model cannot produce are left out
      and counted.

    Raises:
      DataError: an id or rank beyond a table, or a source without sessions.
      UltrError: the loss is not finite.
    """
    if epochs < 0 or batch_size < 1:
        raise ConfigError(f"expected epochs >= 0 and batch_size >= 1, found {epochs} and {batch_size}")
    if seed < 0 or not 0 <= l2 < math.inf or (patience is not None and patience < 1):
        raise ConfigError(f"expected seed >= 0, a finite l2 >= 0 and patience >= 1, found {seed}, {l2} and {patience}")
    train = InMemory(train) if isinstance(train, Sessions) else train
    valid = InMemory(valid) if isinstance(valid, Sessions) else valid
    if resume and directory is None:
        raise ConfigError("resume needs directory=, the folder of the interrupted run")
    directory = None if directory is None else Path(directory)
    optimizer = optimizer or adam()
    graphdef, params, rest = _split(model)
    params, rest = jax.tree.map(jnp.copy, (params, rest))
    place, put = _placement(mesh, batch_size)
    state = place((params, rest, optimizer.init(params)))
    best_state = jax.tree.map(jnp.copy, state[:2])
    run: dict[str, Any] = {"history": [], "best": 0, "best_loss": None}
    setting: dict[str, Any] = {
        "seed": seed,
        "batch_size": batch_size,
        "l2": l2,
        "model": _description(model),
        "train": getattr(train, "identity", None),
        "valid": getattr(valid, "identity", None),
        "settings": dict(settings or {}),
    }
    setting = json.loads(json.dumps(setting))
    if resume and directory is not None and (directory / "state" / "meta.json").exists():
        run, (state, best_state) = _resume(directory / "state", setting, (state, best_state))
        state, best_state = place(state), place(best_state)

    step = jax.jit(partial(_step, graphdef, optimizer), donate_argnums=(0, 1))
    judge = jax.jit(partial(_judge, graphdef), donate_argnums=(2,))
    seen = partial(_checked, model, put)
    total_sessions = _length(train)
    prior = jnp.asarray(l2 / _weight(train) if l2 else 0.0, jnp.float32)
    saved, saved_at = len(run["history"]), time.perf_counter()

    def keep() -> None:
        if directory is not None and saved < len(run["history"]):
            save_arrays(directory / "state", (state, best_state), {"format": "ultr-state", "run": run} | setting)

    for epoch in range(len(run["history"]) + 1, epochs + 1):
        if _exhausted(run, patience):
            break
        began = time.perf_counter()
        sums = place(jnp.zeros(3))
        order = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
        bar = _bar(progress, f"epoch {epoch}/{epochs}", total_sessions)
        with bar:
            for batch, rows in seen(train.batches(batch_size, seed=order), "training data"):
                state, sums = step(state, sums, batch, prior)
                _advance(bar, rows, sums)
        loss, sessions, impossible = _mean(sums, "training data", epoch)
        valid_loss = None
        if valid is not None:
            sums = place(jnp.zeros(3))
            for batch, _ in seen(valid.batches(batch_size), "validation data"):
                sums = judge(state[0], state[1], sums, batch)
            valid_loss, _, _ = _mean(sums, "validation data", epoch)
        judged = loss if valid_loss is None else valid_loss
        if valid_loss is None or run["best_loss"] is None or judged < run["best_loss"]:
            run["best"], run["best_loss"] = epoch, judged
            best_state = jax.tree.map(jnp.copy, state[:2])
        run["history"].append(
            {
                "epoch": epoch,
                "loss": loss,
                "valid_loss": valid_loss,
                "sessions": sessions,
                "impossible": impossible,
                "seconds": round(time.perf_counter() - began, 3),
            }
        )
        if time.perf_counter() - saved_at > STATE_SECONDS:
            keep()
            saved, saved_at = epoch, time.perf_counter()

    keep()
    fitted = nnx.merge(graphdef, *jax.tree.map(jnp.copy, best_state))
    if directory is not None:
        vocabulary = getattr(train, "vocabulary", None)
        known = {"vocabulary": None if vocabulary is None else vocabulary.identity}
        save(fitted, directory / "model", extra=known | {"train": setting["train"]})
    return Fitted(fitted, run["history"], run["best"])


def _split(model: Any) -> tuple[Any, Any, Any]:
    """(structure, trained parameters, everything else) of a model."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    return graphdef, params, rest


def _losses(model: Any, batch: Sessions) -> tuple[jax.Array, jax.Array]:
    """Weighted loss sum, and [loss sum, weight counted, weight of impossible sessions]."""
    loss = model.loss(batch)
    possible = loss != jnp.inf  # a NaN shall be seen, not left out
    weight = jnp.any(jnp.asarray(batch.mask), axis=batch.rank_axis).astype(jnp.float32)
    if batch.weight is not None:
        weight = weight * batch.weight
    used = jnp.where(possible, weight, 0.0)
    total = jnp.sum(jnp.where(used > 0, loss, 0.0) * used)
    return total, jnp.stack([total, jnp.sum(used), jnp.sum(weight - used)])


def _step(graphdef: Any, optimizer: Any, state: Any, sums: Any, batch: Sessions, prior: Any) -> Any:
    params, rest, optimizer_state = state

    def objective(params: Any) -> Any:
        model = nnx.merge(graphdef, params, rest, copy=True)  # so that dropout and batch statistics may change
        total, sums = _losses(model, batch)
        return total / jnp.maximum(sums[1], 1.0), (sums, _split(model)[2])

    gradients, (new, rest) = jax.grad(objective, has_aux=True)(params)
    gradients = jax.tree.map(lambda g, p: g + prior * p, gradients, params)
    updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
    return (optax.apply_updates(params, updates), rest, optimizer_state), sums + new


def _judge(graphdef: Any, params: Any, rest: Any, sums: Any, batch: Sessions) -> Any:
    model = nnx.merge(graphdef, params, rest, copy=True)
    model.eval()  # no dropout, and batch statistics as they are
    return sums + _losses(model, batch)[1]


def _placement(mesh: Mesh | None, batch_size: int) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """How to place the state (on every device) and a batch (split over its rows)."""
    if mesh is None:
        return (lambda tree: tree), (lambda batch: batch)
    if batch_size % mesh.size:
        raise ConfigError(f"batch_size {batch_size} must be a multiple of the mesh's {mesh.size} devices")
    everywhere = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    return (lambda tree: jax.device_put(tree, everywhere)), (lambda batch: jax.device_put(batch, rows))


def _checked(model: Any, put: Callable[[Any], Any], batches: Iterator[Sessions], source: str) -> Any:
    for batch in batches:
        check(model, batch, source=source)
        yield put(batch), int(batch.mask.any(1).sum())


def _length(train: Source) -> int:
    try:
        sessions = len(train)  # type: ignore[arg-type]
    except TypeError:
        sessions = sum(int(b.mask.any(1).sum()) for b in train.batches(8192))
    if not sessions:
        raise DataError("expected training data with at least one session, found none")
    return sessions


def _weight(train: Source) -> float:
    """How many sessions there are, each counted by its weight."""
    total = 0.0
    for batch in train.batches(8192):
        shown = np.asarray(batch.mask).any(1)
        total += float(shown.sum() if batch.weight is None else np.asarray(batch.weight, np.float64)[shown].sum())
    return max(total, 1.0)


def _mean(sums: Any, source: str, epoch: int) -> tuple[float, float, float]:
    total, used, impossible = (float(x) for x in sums)
    if not used and not impossible:
        raise DataError(f"{source}: expected sessions with documents and a weight above 0, found none")
    if not used:
        raise DataError(
            f"{source}: none of the {impossible:.0f} sessions is possible under the model",
            fix="Choose a model that allows several clicks, such as DCM or DBN",
        )
    if not math.isfinite(total):
        raise UltrError(
            f"{source}: the loss is {total} in epoch {epoch}. Lower the learning rate, scale the features "
            "(towers.Scaler), or check them for extreme values"
        )
    return total / used, used, impossible


def _exhausted(run: dict[str, Any], patience: int | None) -> bool:
    return patience is not None and bool(run["history"]) and len(run["history"]) - run["best"] >= max(patience, 1)


def _description(model: Any) -> Any:
    try:
        return describe(model)
    except ConfigError:
        return type(model).__name__


def _resume(directory: Path, setting: dict[str, Any], like: Any) -> tuple[dict[str, Any], Any]:
    meta = read_meta(directory)
    for name, value in setting.items():
        for key, was, now in _differences(name, meta.get(name), value):
            raise ConfigError(
                f"{directory}: the interrupted run had another {key} ({was!r}, now {now!r}). "
                "Resume with the same settings, or start in another folder"
            )
    return meta["run"], restore_arrays(directory, like)


def _differences(name: str, was: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """The leaves at which two JSON values differ, with dotted names."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in [*was, *(k for k in now if k not in was)]:
            yield from _differences(f"{name}.{key}", was.get(key), now.get(key))
    elif was != now:
        yield name, was, now


def _bar(progress: bool | None, title: str, total: int) -> Any:
    show = sys.stderr.isatty() if progress is None else progress
    return tqdm(total=total, desc=title, unit=" sessions", unit_scale=True, leave=False, disable=not show)


def _advance(bar: Any, rows: int, sums: Any) -> None:
    if bar.disable:
        return
    if bar.update(rows):  # only when the bar is redrawn: reading the loss waits for the device
        total, used, _ = np.asarray(sums)
        bar.set_postfix(loss=f"{total / max(used, 1):.4f}", refresh=False)
