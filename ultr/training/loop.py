"""`fit`: the training loop for everything with `loss(sessions) -> [B]`."""

from __future__ import annotations

import contextlib
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
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from ultr.errors import ConfigError
from ultr.sessions import Sessions, Source, Stream
from ultr.towers import check, only_stored, row_tables, takes_shared
from ultr.training.checkpoint import describe, read_meta, restore_arrays, save, save_arrays
from ultr.training.feed import Batches, Block, blocks, bounds, passes
from ultr.training.optimizers import adam
from ultr.training.rows import RowSparse, lazy_adam
from ultr.training.sources import as_source, count_rows, per_session, weigh
from ultr.training.steps import Trainer
from ultr.training.weighting import weight_facts

STATE_SECONDS = 10.0
KEPT_BYTES = 1 << 30  # of a log, decoded, so that later epochs find it in memory
LARGE_ROWS = 100_000  # a larger table is not swept in every step


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
        impossible (sessions that the model cannot produce, left out of the loss), seconds, and of these those spent
        waiting for data. Of models that weigh impressions (those with `weighting`) also, over what the weights matter
        for (`ultr.baselines.Weighting`: the clicks, say): effective_sample_size (Kish 1965: the number of equal
        weights that would be as steady, sum^2 / sum of squares), clipped (share of weights that were cut down; None
        without any), affected (share of the sessions with a weight other than 1; None on counts, which do not tell)
        and unsupported (number of impressions left out, since the log has no weight for them).
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
    optimizer: optax.GradientTransformation | RowSparse | None = None,
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
      train: streams batches: a `ClickLog`, a `Collection`, or sessions in memory. Of a log, up to 1 GiB of decoded
        rows stay in memory between the epochs.
      valid: judges the epochs by the same loss; None: the last epoch counts as the best.
      optimizer: an optax transformation, or `ultr.training.lazy_adam` and its kind, whose steps cost what a batch
        touches of the tables; None: `adam()`, .003 for networks and .03 for tables, and `lazy_adam()`, the same row
        by row, where a table has more than 100,000 rows.
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
    if resume and directory is None:
        raise ConfigError("resume needs directory=, the folder of the interrupted run")
    train = as_source(train, model, "training data")
    valid = None if valid is None else as_source(valid, model, "validation data")
    directory = None if directory is None else Path(directory)
    sessions = count_rows(train, "training data")
    trainer = Trainer(model, optimizer or (lazy_adam() if has_large_table(model) else adam()))
    place, put = _placement(mesh, batch_size, trainer.rank_first)
    state = place(trainer.init())
    best = trainer.parameters(state)
    run: dict[str, Any] = {"history": [], "best": 0, "best_loss": None}
    setting = _setting(model, train, valid, settings, seed=seed, batch_size=batch_size, l2=l2)
    if resume and directory is not None and (directory / "state" / "meta.json").exists():
        run, (state, best) = _resume(directory / "state", setting, (state, best))
        state, best = place(state), place(best)
    scratch = place(trainer.scratch(state))
    facts = place(_facts(train, batch_size, l2))
    saved, saved_at = len(run["history"]), time.perf_counter()

    holds = only_stored(model) and takes_shared(model)

    def options(source: Stream, name: str) -> dict[str, Any]:
        look = partial(check, model, source=name, largest=bounds(source))
        return {
            "length": sessions,
            "rank_first": trainer.rank_first,
            "look": look,
            "put": put,
            "shared": takes_shared(model),
            "without": ("features",) if holds and _same_ids(source, train) else (),
        }

    first = len(run["history"]) + 1
    seeds = (int(np.random.SeedSequence([seed, e]).generate_state(1)[0]) for e in range(first, epochs + 1))
    source = train.keeping(KEPT_BYTES) if epochs > first else train
    feed = passes(source, batch_size, seeds=seeds, **options(train, "training data"))

    def chosen() -> Any:
        return trainer.parameters(state) if valid is None else best

    def keep() -> None:
        if directory is not None and saved < len(run["history"]):
            save_arrays(directory / "state", (state, chosen()), {"format": "ultr-state", "run": run} | setting)

    with contextlib.closing(feed):
        for epoch in range(first, epochs + 1):
            if _exhausted(run, patience):
                break
            began, waited = time.perf_counter(), 0.0
            sums = place(jnp.zeros(trainer.sums))
            with _bar(progress, f"epoch {epoch}/{epochs}", sessions) as bar:
                for block, seconds in _timed(feed):
                    state, scratch, sums = trainer.block(state, scratch, sums, block.batches, block.count, facts)
                    waited += seconds
                    sums.block_until_ready()  # so that what is waited for next is the data, and nothing else
                    _advance(bar, block.sessions, sums)
            total = np.asarray(sums)
            loss, counted, impossible = _mean(total[:3], "training data", epoch, train.rows_per_session)
            valid_loss = None
            if valid is not None:
                parameters = trainer.parameters(state)
                sums = place(jnp.zeros(3))
                for block in blocks(valid, batch_size, seed=None, **options(valid, "validation data")):
                    sums = trainer.judge(parameters, sums, block.batches, block.count)
                valid_loss, _, _ = _mean(sums, "validation data", epoch, valid.rows_per_session)
            if valid_loss is None or run["best_loss"] is None or valid_loss < run["best_loss"]:
                run["best"], run["best_loss"] = epoch, loss if valid_loss is None else valid_loss
                best = best if valid is None else parameters
            run["history"].append(
                {
                    "epoch": epoch,
                    "loss": loss,
                    "valid_loss": valid_loss,
                    "sessions": counted,
                    "impossible": impossible,
                    "seconds": round(time.perf_counter() - began, 3),
                    "waiting": round(waited, 3),
                }
                | _weights(total[3:], counted + impossible, train)
            )
            if time.perf_counter() - saved_at > STATE_SECONDS:
                keep()
                saved, saved_at = epoch, time.perf_counter()

    keep()
    fitted = trainer.model(chosen())
    if directory is not None:
        known = {"vocabulary": None if train.vocabulary is None else train.vocabulary.identity}
        save(fitted, directory / "model", extra=known | {"train": setting["train"]})
    return Fitted(fitted, run["history"], run["best"])


def has_large_table(model: Any) -> bool:
    """Whether a table is too large to be swept in every step, so that `lazy_adam` trains it unless told otherwise."""
    return any(table[...].size > LARGE_ROWS for table in row_tables(model).values())


def _same_ids(source: Stream, train: Stream) -> bool:
    known = source.vocabulary, train.vocabulary
    return None not in known and known[0].identity == known[1].identity


def _facts(train: Stream, batch_size: int, l2: float) -> dict[str, jax.Array]:
    """What a step has to know of the whole source.

    `weight`: of an average batch where the rows have weights, since dividing by the weight of each batch itself would
    make light those that hold much; 0 where they have none. `prior`: strength of l2 per session.
    """
    total, batch = weigh(train, batch_size, always=l2 > 0)
    return {"weight": jnp.float32(batch), "prior": jnp.float32(l2 / total if l2 else 0.0)}


def _timed(items: Iterator[Block | None]) -> Iterator[tuple[Block, float]]:
    """The blocks up to the next None, with the seconds that each was waited for."""
    began = time.perf_counter()
    while (block := next(items, None)) is not None:
        yield block, time.perf_counter() - began
        began = time.perf_counter()


def _placement(
    mesh: Mesh | None, batch_size: int, rank_first: bool
) -> tuple[Callable[[Any], Any], Callable[[Batches], Batches]]:
    """How to place the state (on every device) and stacked batches (split over their rows)."""
    if mesh is None:
        return (lambda tree: tree), jax.device_put
    if batch_size % mesh.size:
        raise ConfigError(f"batch_size {batch_size} must be a multiple of the mesh's {mesh.size} devices")
    everywhere = NamedSharding(mesh, PartitionSpec())

    def put(batches: Batches) -> Batches:
        def rows(x: np.ndarray) -> NamedSharding:
            lead = (None, None) if rank_first and x.ndim > 2 else (None,)
            return NamedSharding(mesh, PartitionSpec(*lead, mesh.axis_names[0]))

        return jax.device_put(batches, jax.tree.map(rows, batches))

    return (lambda tree: jax.device_put(tree, everywhere)), put


def _mean(sums: Any, source: str, epoch: int, rows_per_session: float = 1.0) -> tuple[float, float, float]:
    """Loss per session, sessions counted, impossible sessions."""
    unusable = (
        f"the loss is {{}} in epoch {epoch}. Lower the learning rate, scale the features (towers.Scaler), or check "
        "them for extreme values"
    )
    total, used, impossible = per_session(sums, source, rows_per_session, if_not_finite=unusable)
    return total / used, used, impossible


def _weights(sums: Any, sessions: float, train: Stream) -> dict[str, Any]:
    whole = train.by is None  # rows of counts are single documents
    return weight_facts(sums, sessions, whole=whole) if len(sums) else {}


def _exhausted(run: dict[str, Any], patience: int | None) -> bool:
    return patience is not None and bool(run["history"]) and len(run["history"]) - run["best"] >= max(patience, 1)


def _setting(
    model: Any, train: Stream, valid: Stream | None, settings: Mapping[str, Any] | None, **numbers: Any
) -> dict[str, Any]:
    """What must be the same on resuming, as JSON gives it back."""
    identities = {"train": train.identity, "valid": None if valid is None else valid.identity}
    setting = numbers | {"model": _description(model)} | identities | {"settings": dict(settings or {})}
    return json.loads(json.dumps(setting))


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
        total, used = np.asarray(sums)[:2]
        bar.set_postfix(loss=f"{total / max(used, 1):.4f}", refresh=False)
