"""`fit`: the training loop for everything with `loss(sessions) -> [B]`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from ultr import stopping
from ultr.arguments import check_count, check_number
from ultr.data.dataset import Dataset, DatasetLike
from ultr.data.input_schema import InputSchema
from ultr.errors import ConfigError
from ultr.files import recover
from ultr.locks import locked
from ultr.sessions import Sessions
from ultr.towers import (
    Component,
    InputCheck,
    ShownRanks,
    matched,
    needs_no_features,
    note_shown_ranks,
    record_schema,
    row_tables,
    trained_schema,
)
from ultr.training.checkpoint import describe, facts_of, read_meta, restore_arrays, save, save_arrays
from ultr.training.feed import BLOCK_SESSIONS, BatchBlock, StackedBatches, largest_indices, one_pass, stream_blocks
from ultr.training.inputs import batch_weight, count_rows, session_sums, training_data
from ultr.training.optimizers import adam
from ultr.training.rows import RowSparse, lazy_adam
from ultr.training.steps import Trainer
from ultr.training.weight_report import weight_facts

P = ParamSpec("P")
T = TypeVar("T")
STATE_SECONDS = 10.0
CACHE_BYTES = 1 << 30  # of decoded rows of a log, so that later epochs find them in memory
LARGE_TABLE = 100_000  # entries; a larger table is not swept in every step


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A trained model with the history of its training, as `fit` and `solve` return it.

    Attributes:
      model: the model with the parameters of the best epoch.
      history: one dict per epoch: epoch (from 1), loss, valid_loss (None without validation), sessions,
        impossible (sessions that the model cannot produce, left out of the loss), seconds, and of these those spent
        waiting for data. Of rankers that weigh impressions also, over the impressions that the weights matter for
        (`ultr.rankers.ImpressionWeights`, such as the clicks): effective_sample_size (Kish 1965: the number of equal
        weights that would be as steady, sum^2 / sum of squares), clipped (share of weights that were cut down; None
        without any), affected (share of the sessions with a weight other than 1; None on counts, which do not tell)
        and unsupported (number of impressions left out, since the log has no weight for them).
      best: the epoch whose parameters `model` holds; 0 means the start, before any epoch.
      resumed: how many epochs of the history an earlier call had made, which this one resumed.
    """

    model: Any
    history: list[dict[str, Any]]
    best: int
    resumed: int = 0


def _alone_in_directory(function: Callable[P, T]) -> Callable[P, T]:
    """Has a function work alone in the folder that its argument `directory` names."""

    @wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> T:
        directory = cast(str | Path | None, kwargs.get("directory"))
        with contextlib.nullcontext() if directory is None else locked(directory, inside=True):
            return function(*args, **kwargs)

    return alone


@_alone_in_directory
def fit(
    model: Any,
    train: DatasetLike,
    valid: DatasetLike | None = None,
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
    block_sessions: int = BLOCK_SESSIONS,
) -> Fitted:
    """Trains a model: minimises the mean loss per session by minibatches, and keeps the best epoch.

    Args:
      model: has `loss(sessions) -> [B]`; it is left as it is, the result holds a trained copy.
      train: a `ClickLog`, `Counts`, a `Collection`, another dataset, or sessions in memory. Of a log, up to 1 GiB of
        decoded rows stay in memory between the epochs. The trained model knows the names of its features and their
        order; data that comes to it later is matched by these, and so is `train` where parts of the model were trained
        before.
      valid: data by whose loss the best epoch is chosen; None: the last epoch counts as the best.
      optimizer: an optax transformation, or `ultr.training.lazy_adam` and its kind, whose steps cost what a batch
        touches of the tables; None: `adam()`, .003 for networks and .03 for tables, and `lazy_adam()`, the same row
        by row, where a table has more than 100,000 rows.
      epochs: passes over `train`, at most.
      batch_size: sessions per step, fixed: shorter batches are padded with masked rows.
      seed: decides the order of the sessions; with the same seed and data the result is the same.
      patience: stop after so many epochs without a better validation loss; None: never.
      l2: strength of a Gaussian prior around 0 on every parameter, in the unit of one session's
        log-likelihood: adds l2/2 sum(parameter^2) to the total loss.
      directory: keeps `directory/model` at the end, and on the way, every ten seconds between two epochs and where
        Ctrl-C stops the training, `directory/state`, from which `resume` goes on to the same result.
      resume: continue from `directory/state` where it exists; data, model, seed and `settings` must be the same.
      settings: further JSON-able facts that must not change on resuming, such as the learning rate.
      mesh: devices to split each batch over; one axis (make it with `AxisType.Auto`).
      progress: progress bar on standard error; None: when that is a terminal.
      block_sessions: about how many sessions are handed to the device at a time.

    Returns:
      `Fitted`. Sessions with weight w count as w sessions; sessions that the model cannot produce are left out
      and counted.

    Raises:
      ConfigError: a number that is out of range, not finite or not whole, or settings that differ on resuming; or
        another process trains in `directory`.
      DataError: an id or rank beyond a table, data without sessions, or without a feature that the model knows.
      KeyboardInterrupt: Ctrl-C; threads have ended, and the state is kept.
      UltrError: the loss is not finite.
    """
    epochs, seed = check_count("epochs", epochs, least=0), check_count("seed", seed, least=0)
    batch_size, block_sessions = check_count("batch_size", batch_size), check_count("block_sessions", block_sessions)
    l2 = check_number("l2", l2, least=0)
    patience = None if patience is None else check_count("patience", patience)
    if resume and directory is None:
        raise ConfigError("resume needs directory=, the folder of the interrupted run")
    train = matched(model, training_data(train, model, "training data"), name="training data")
    schema = trained_schema(model, train)
    if valid is not None:
        valid = training_data(valid, model, "validation data")
        valid = matched(model, valid, name="validation data", schema=schema)
    directory = None if directory is None else Path(directory)
    sessions = count_rows(train, "training data")
    trainer = Trainer(model, optimizer or (lazy_adam() if has_large_table(model) else adam()))
    place, put = _placement(mesh, batch_size, trainer.rank_first)
    state = place(trainer.init())
    best = trainer.parameters(state)
    run: dict[str, Any] = {"history": [], "best": 0, "best_loss": None}
    partial_epoch: dict[str, Any] | None = None
    identities = [None if d is None or directory is None else d.content_identity() for d in (train, valid)]
    setting = _setting(model, schema, identities, settings, seed=seed, batch_size=batch_size, l2=l2)
    setting["optimizer"] = trainer.optimizer
    if resume and directory is not None:
        recover(directory / "state")
    if resume and directory is not None and (directory / "state" / "meta.json").exists():
        run, (state, best) = _resume(directory / "state", setting, (state, best), valid)
        partial_epoch = _partial_epoch(directory / "state", run.pop("partial", None), block_sessions)
        state, best = place(state), place(best)
    scratch = place(trainer.scratch(state))
    facts = place(_facts(train, batch_size, l2))
    saved, saved_at = len(run["history"]), time.perf_counter()

    shares = isinstance(model, Component) and model.takes_shared_features
    holds_features = shares and needs_no_features(model)

    def options(data: Dataset, name: str) -> dict[str, Any]:
        return {
            "length": sessions,
            "rank_first": trainer.rank_first,
            "check": InputCheck(model, data, source=name, largest=largest_indices(data)),
            "put": put,
            "block_sessions": block_sessions,
            "share_features": shares,
            "without": ("features",) if holds_features and _same_ids(data, train) else (),
        }

    shown = ShownRanks(model)
    of_train = options(train, "training data")

    def check(batch: Sessions) -> None:
        of_train["check"](batch)
        shown.add(batch.mask, batch.position, batch.weight)

    first = len(run["history"]) + 1
    seeds = (int(np.random.SeedSequence([seed, e]).generate_state(1)[0]) for e in range(first, epochs + 1))
    cached = train.cached(CACHE_BYTES) if epochs > first else train
    feed = stream_blocks(
        cached,
        batch_size,
        seeds=seeds,
        skip=partial_epoch["blocks"] if partial_epoch else 0,
        **of_train | {"check": check},
    )
    epoch, blocks, waited, began, sums = first, 0, 0.0, 0.0, place(jnp.zeros(trainer.sums))

    def chosen() -> Any:
        return trainer.parameters(state) if valid is None else best

    def keep(so_far: dict[str, Any] | None = None) -> None:
        if directory is not None and (so_far or saved < len(run["history"])):
            about = {"format": "ultr-state", "run": run | ({"partial": so_far} if so_far else {})} | setting
            save_arrays(directory / "state", (state, chosen()), about)

    def note_ranks() -> None:
        run["shown_ranks"] = sorted({*run.get("shown_ranks", ()), *shown.ranks})

    def keep_interrupted(stop: KeyboardInterrupt) -> None:
        """Keeps what was trained so far, with the blocks of an epoch that has not ended."""
        if directory is None:
            return
        upto = epoch
        if any(x.is_deleted() for x in jax.tree.leaves((state, sums))):
            upto = saved  # Ctrl-C came in the middle of a step: what was kept last stays
        elif blocks and epoch == len(run["history"]) + 1:
            note_ranks()
            seconds = {"waiting": waited, "seconds": time.perf_counter() - began}
            keep({"blocks": blocks, "block_sessions": block_sessions, "sums": np.asarray(sums).tolist()} | seconds)
        else:
            keep()
        if (directory / "state" / "meta.json").exists():
            how = "Continue with --resume (in Python: resume=True)"
            stop.add_note(f"What was trained up to epoch {upto} is kept in {directory / 'state'}. {how}")

    with _at_interrupt(keep_interrupted), contextlib.closing(feed):
        for epoch in range(first, epochs + 1):
            if _exhausted(run, patience):
                break
            so_far = partial_epoch or {"blocks": 0, "sums": [0.0] * trainer.sums, "seconds": 0.0, "waiting": 0.0}
            partial_epoch = None
            sums = place(jnp.asarray(so_far["sums"], jnp.float32))
            blocks, waited, began = so_far["blocks"], so_far["waiting"], time.perf_counter() - so_far["seconds"]
            with _bar(progress, f"epoch {epoch}/{epochs}", sessions) as bar:
                for block, seconds in _timed(feed):
                    # Between the end of a step and the count of its block nothing can be interrupted.
                    state, scratch, sums = trainer.block(state, scratch, sums, block.batches, block.count, facts)
                    blocks += 1
                    waited += seconds
                    sums.block_until_ready()  # so that what is waited for next is the data, and nothing else
                    _advance(bar, block.sessions, sums)
                    stopping.check()
            total = np.asarray(sums)
            loss, counted, impossible = _mean(total[:3], "training data", epoch, train)
            valid_loss = None
            if valid is not None:
                parameters = trainer.parameters(state)
                losses = place(jnp.zeros(3))
                for block in one_pass(valid, batch_size, seed=None, **options(valid, "validation data")):
                    losses = trainer.evaluate(parameters, losses, block.batches, block.count)
                valid_loss, _, _ = _mean(np.asarray(losses), "validation data", epoch, valid)
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
            blocks = 0
            note_ranks()
            if time.perf_counter() - saved_at > STATE_SECONDS:
                keep()
                saved, saved_at = epoch, time.perf_counter()

    keep()
    fitted = trainer.model(chosen())
    record_schema(fitted, schema)
    if "shown_ranks" in run:
        note_shown_ranks(fitted, run["shown_ranks"])
    if directory is not None:
        save(fitted, directory / "model", extra=facts_of(train))
    return Fitted(fitted, run["history"], run["best"], resumed=first - 1)


@contextlib.contextmanager
def _at_interrupt(keep: Callable[[KeyboardInterrupt], None]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as stop:
        keep(stop)
        raise


def has_large_table(model: nnx.Module) -> bool:
    """Tells whether a table is too large to be swept in every step: then `lazy_adam` is the default optimizer."""
    return any(table[...].size > LARGE_TABLE for table in row_tables(model).values())


def _same_ids(data: Dataset, train: Dataset) -> bool:
    own, other = data.description.vocabulary, train.description.vocabulary
    return own is not None and other is not None and own.identity == other.identity


def _facts(train: Dataset, batch_size: int, l2: float) -> dict[str, jax.Array]:
    """Computes what a step has to know of the whole dataset.

    `weight`: that of an average batch where the rows have weights, since dividing by the weight of each batch itself
    would make light those that hold much; 0 where they have none. `prior`: strength of l2 per session.
    """
    prior = l2 / max(train.description.total_weight, 1.0) if l2 else 0.0
    return {"weight": jnp.float32(batch_weight(train, batch_size)), "prior": jnp.float32(prior)}


def _timed(items: Iterator[BatchBlock | None]) -> Iterator[tuple[BatchBlock, float]]:
    """Yields the blocks up to the next None, with the seconds that each was waited for."""
    began = time.perf_counter()
    while (block := next(items, None)) is not None:
        yield block, time.perf_counter() - began
        began = time.perf_counter()


def _placement(
    mesh: Mesh | None, batch_size: int, rank_first: bool
) -> tuple[Callable[[Any], Any], Callable[[StackedBatches], StackedBatches]]:
    """Returns functions that place the state (on every device) and stacked batches (split over their rows)."""
    if mesh is None:
        return (lambda tree: tree), jax.device_put
    if batch_size % mesh.size:
        raise ConfigError(f"batch_size {batch_size} must be a multiple of the mesh's {mesh.size} devices")
    everywhere = NamedSharding(mesh, PartitionSpec())

    def put(batches: StackedBatches) -> StackedBatches:
        def rows(x: np.ndarray) -> NamedSharding:
            lead = (None, None) if rank_first and x.ndim > 2 else (None,)
            return NamedSharding(mesh, PartitionSpec(*lead, mesh.axis_names[0]))

        placed: StackedBatches = jax.device_put(batches, jax.tree.map(rows, batches))
        return placed

    return (lambda tree: jax.device_put(tree, everywhere)), put


def _mean(sums: np.ndarray, name: str, epoch: int, data: Dataset) -> tuple[float, float, float]:
    """Computes the loss per session, the sessions counted and the impossible sessions."""
    unusable = (
        f"the loss is {{}} in epoch {epoch}. Lower the learning rate, scale the features (towers.Scaler), or check "
        "them for extreme values"
    )
    rows_per_session = data.description.rows_per_session
    total, used, impossible = session_sums(sums, name, rows_per_session, if_not_finite=unusable)
    return total / used, used, impossible


def _weights(sums: np.ndarray, sessions: float, train: Dataset) -> dict[str, Any]:
    whole = train.description.sufficient_statistics == "list"  # rows of counts are single documents
    return weight_facts(sums, sessions, whole_lists=whole) if len(sums) else {}


def _exhausted(run: dict[str, Any], patience: int | None) -> bool:
    return patience is not None and bool(run["history"]) and len(run["history"]) - run["best"] >= max(patience, 1)


def _setting(
    model: nnx.Module,
    schema: InputSchema | None,
    identities: list[Any],
    settings: Mapping[str, Any] | None,
    **numbers: Any,
) -> dict[str, Any]:
    """Collects what must be the same on resuming, as JSON gives it back."""
    data = dict(zip(("train", "valid"), identities, strict=True))
    setting: dict[str, Any] = {"inputs": None if schema is None else schema.to_json()}  # told first where it differs
    setting |= numbers | {"model": _description(model)} | data | {"settings": dict(settings or {})}
    try:
        found: dict[str, Any] = json.loads(json.dumps(setting, default=_plain_value))
    except TypeError as error:
        raise ConfigError(f"settings: expected values that JSON can hold, found another: {error}") from error
    return found


def _plain_value(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} ({value!r})")


def _description(model: Any) -> Any:
    try:
        return describe(model)
    except ConfigError:
        return type(model).__name__


def _resume(directory: Path, setting: dict[str, Any], like: Any, judged: Dataset | None) -> tuple[dict[str, Any], Any]:
    meta = read_meta(directory)
    if meta["format"] != "ultr-state":
        raise ConfigError(f"{directory}: expected the state of an interrupted run, found a {meta['format']}")
    for name, value in setting.items():
        if name == "inputs" and name not in meta:  # a state of an earlier version
            continue
        was = meta.get(name)
        if was is None and name in ("train", "valid", "optimizer"):
            if name != "optimizer" and value is None and not (name == "valid" and judged is None):
                warnings.warn(
                    f"whether the {name} data is that of the interrupted run cannot be checked: it has no identity",
                    stacklevel=3,
                )
            continue  # not known, or kept before it was recorded
        for key, before, now in _differences(name, was, value):
            raise ConfigError(
                f"{directory}: the interrupted run had another {key} ({before!r}, now {now!r}). "
                "Resume with the same settings, or start in another folder"
            )
    return meta["run"], restore_arrays(directory, like)


def _partial_epoch(directory: Path, found: Any, block_sessions: int) -> dict[str, Any] | None:
    """Checks what was kept of an epoch that was interrupted; None where the run was stopped between two epochs."""
    if found is None:
        return None
    if found["block_sessions"] != block_sessions:
        raise ConfigError(
            f"{directory}: the interrupted run had another block_sessions ({found['block_sessions']}, now "
            f"{block_sessions}), which decides what was trained of its last epoch. Resume with the same"
        )
    kept: dict[str, Any] = found
    return kept


def _differences(name: str, was: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """Finds the leaves at which two JSON values differ, with dotted names."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in [*was, *(k for k in now if k not in was)]:
            yield from _differences(f"{name}.{key}", was.get(key), now.get(key))
    elif was != now and not (was != was and now != now):  # NaN is NaN
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
