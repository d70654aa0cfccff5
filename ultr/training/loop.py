"""`fit`: the training loop for everything with `loss(sessions) -> [B]`."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
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
from ultr.rankers import Ranker
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
from ultr.training.checkpoint import facts_of, save, save_arrays
from ultr.training.feed import BLOCK_SESSIONS, BatchBlock, StackedBatches, largest_indices, one_pass, stream_blocks
from ultr.training.inputs import batch_weight, count_rows, session_sums, training_data
from ultr.training.optimizers import adam
from ultr.training.resuming import interrupted_epoch, restore_run, run_settings
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
      DataError: an id or rank beyond a table, data without sessions or, for models that learn from them, without a
        click, or without a feature that the model knows.
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
    training = _Training(
        model,
        train,
        valid,
        optimizer=optimizer,
        batch_size=batch_size,
        l2=l2,
        mesh=mesh,
        block_sessions=block_sessions,
        directory=None if directory is None else Path(directory),
    )
    identities = [None if d is None or directory is None else d.content_identity() for d in (train, valid)]
    setting = run_settings(model, schema, identities, settings, seed=seed, batch_size=batch_size, l2=l2)
    training.begin(setting, resume=resume)
    training.run(epochs, seed=seed, patience=patience, progress=progress)
    return training.finished(schema)


class _Training:
    """Trains one model: holds what is on the device, the epochs so far, and keeps both in a folder.

    Args:
      model: is left as it is.
      train, valid: data with the features that the model knows.
      optimizer, batch_size, l2, mesh, block_sessions: as for `fit`.
      directory: where model and state are kept; None: nowhere.

    Attributes:
      facts: one dict per epoch as "history", the "best" epoch and its "best_loss", and the ranks that were shown.
    """

    def __init__(
        self,
        model: Any,
        train: Dataset,
        valid: Dataset | None,
        *,
        optimizer: optax.GradientTransformation | RowSparse | None,
        batch_size: int,
        l2: float,
        mesh: Mesh | None,
        block_sessions: int,
        directory: Path | None,
    ) -> None:
        self.model, self.train, self.valid = model, train, valid
        self.batch_size, self.l2, self.block_sessions, self.directory = batch_size, l2, block_sessions, directory
        self.sessions = count_rows(train, "training data")
        self.trainer = Trainer(model, optimizer or (lazy_adam() if has_large_table(model) else adam()))
        self.place, self._put = _placement(mesh, batch_size, self.trainer.rank_first)
        self.state = self.place(self.trainer.init())
        self.best = self.trainer.parameters(self.state)
        self.facts: dict[str, Any] = {"history": [], "best": 0, "best_loss": None}
        self._setting: dict[str, Any] = {}
        self._partial: dict[str, Any] | None = None  # of an epoch that was interrupted, where the run goes on from it
        self._shown = ShownRanks(model)
        self._epoch, self._blocks, self._waited, self._began = 1, 0, 0.0, 0.0
        self._saved, self._saved_at, self._resumed = 0, 0.0, 0

    def begin(self, setting: dict[str, Any], *, resume: bool) -> None:
        """Begins a run, or takes up the one that was interrupted in the folder.

        Args:
          setting: what must be the same on resuming.
          resume: whether to take up what is there.

        Raises:
          ConfigError: a setting differs.
        """
        self._setting = setting | {"optimizer": self.trainer.optimizer}
        if resume and self.directory is not None:
            recover(self.directory / "state")
        if resume and self.directory is not None and (self.directory / "state" / "meta.json").exists():
            folder = self.directory / "state"
            self.facts, (state, best) = restore_run(folder, self._setting, (self.state, self.best), self.valid)
            self._partial = interrupted_epoch(folder, self.facts.pop("partial", None), self.block_sessions)
            self.state, self.best = self.place(state), self.place(best)
        self._scratch = self.place(self.trainer.scratch(self.state))
        self._of_data = self.place(_facts(self.train, self.batch_size, self.l2))
        self._saved, self._saved_at = len(self.facts["history"]), time.perf_counter()
        self._resumed = self._saved

    def run(self, epochs: int, *, seed: int, patience: int | None, progress: bool | None) -> None:
        """Trains epoch after epoch until there are enough, or validation does not improve; arguments as for `fit`."""
        first = len(self.facts["history"]) + 1
        feed = self._feed(first, epochs, seed)
        self._epoch, self._sums = first, self.place(jnp.zeros(self.trainer.sums))
        with _at_interrupt(self._keep_interrupted), contextlib.closing(feed):
            for self._epoch in range(first, epochs + 1):
                if _exhausted(self.facts, patience):
                    break
                with _bar(progress, f"epoch {self._epoch}/{epochs}", self.sessions) as bar:
                    whole = self._train_epoch(feed, bar)
                self._close_epoch(whole=whole)
                if time.perf_counter() - self._saved_at > STATE_SECONDS:
                    self._keep()
                    self._saved, self._saved_at = self._epoch, time.perf_counter()
        self._keep()

    def finished(self, schema: InputSchema | None) -> Fitted:
        """Makes the trained model, which knows the names of its features, and saves it where there is a folder."""
        fitted = self.trainer.model(self._chosen())
        record_schema(fitted, schema)
        if "shown_ranks" in self.facts:
            note_shown_ranks(fitted, self.facts["shown_ranks"], self.facts.get("clicked_ranks"))
        if self.directory is not None:
            save(fitted, self.directory / "model", extra=facts_of(self.train))
        return Fitted(fitted, self.facts["history"], self.facts["best"], resumed=self._resumed)

    def _feed(self, first: int, epochs: int, seed: int) -> Generator[BatchBlock | None, None, None]:
        """Streams the blocks of the epochs from the first on, without those of it that were trained before."""
        options = self._reading(self.train, "training data")
        check_bounds = options["check"]

        def check(batch: Sessions) -> None:
            check_bounds(batch)
            self._shown.add(batch)

        seeds = (int(np.random.SeedSequence([seed, e]).generate_state(1)[0]) for e in range(first, epochs + 1))
        cached = self.train.cached(CACHE_BYTES) if epochs > first else self.train
        skip = self._partial["blocks"] if self._partial else 0
        return stream_blocks(cached, self.batch_size, seeds=seeds, skip=skip, **options | {"check": check})

    def _reading(self, data: Dataset, name: str) -> dict[str, Any]:
        """Collects how data is read: what is checked, left out and shared, and where it is put."""
        shares = isinstance(self.model, Component) and self.model.takes_shared_features
        holds_features = shares and needs_no_features(self.model)
        return {
            "length": self.sessions,
            "rank_first": self.trainer.rank_first,
            "check": InputCheck(self.model, data, source=name, largest=largest_indices(data)),
            "put": self._put,
            "block_sessions": self.block_sessions,
            "share_features": shares,
            "without": ("features",) if holds_features and _same_ids(data, self.train) else (),
        }

    def _train_epoch(self, feed: Iterator[BatchBlock | None], bar: Any) -> bool:
        """Trains on the blocks of one epoch, or on those that are left of one that was interrupted.

        Returns:
          Whether all of its blocks were seen in this process.
        """
        so_far = self._partial or {"blocks": 0, "sums": [0.0] * self.trainer.sums, "seconds": 0.0, "waiting": 0.0}
        self._partial = None
        self._sums = self.place(jnp.asarray(so_far["sums"], jnp.float32))
        self._blocks, self._waited = so_far["blocks"], so_far["waiting"]
        self._began = time.perf_counter() - so_far["seconds"]
        for block, seconds in _timed(feed):
            # Between the end of a step and the count of its block nothing can be interrupted.
            self.state, self._scratch, self._sums = self.trainer.block(
                self.state, self._scratch, self._sums, block.batches, block.count, self._of_data
            )
            self._blocks += 1
            self._waited += seconds
            self._sums.block_until_ready()  # so that what is waited for next is the data, and nothing else
            _advance(bar, block.sessions, self._sums)
            stopping.check()
        return not so_far["blocks"]

    def _close_epoch(self, *, whole: bool) -> None:
        """Judges the epoch that was trained, and adds it to the history.

        Args:
          whole: whether all of its blocks were seen in this process.
        """
        epoch, total = self._epoch, np.asarray(self._sums)
        loss, counted, impossible = _mean(total[:3], "training data", epoch, self.train)
        if whole and isinstance(self.model, Ranker) and self.model.learns_from_clicks:
            self._shown.check_clicks("training data")
        valid_loss, parameters = self._validate()
        best_loss = self.facts["best_loss"]
        if valid_loss is None or best_loss is None or valid_loss < best_loss:
            self.facts["best"], self.facts["best_loss"] = epoch, loss if valid_loss is None else valid_loss
            self.best = self.best if self.valid is None else parameters
        self.facts["history"].append(
            {
                "epoch": epoch,
                "loss": loss,
                "valid_loss": valid_loss,
                "sessions": counted,
                "impossible": impossible,
                "seconds": round(time.perf_counter() - self._began, 3),
                "waiting": round(self._waited, 3),
            }
            | _weights(total[3:], counted + impossible, self.train)
        )
        self._blocks = 0
        self._note_ranks()

    def _validate(self) -> tuple[float | None, Any]:
        """Computes the validation loss, with the parameters that have it; None without validation data."""
        if self.valid is None:
            return None, None
        parameters = self.trainer.parameters(self.state)
        losses = self.place(jnp.zeros(3))
        options = self._reading(self.valid, "validation data")
        for block in one_pass(self.valid, self.batch_size, seed=None, **options):
            losses = self.trainer.evaluate(parameters, losses, block.batches, block.count)
        return _mean(np.asarray(losses), "validation data", self._epoch, self.valid)[0], parameters

    def _chosen(self) -> Any:
        return self.trainer.parameters(self.state) if self.valid is None else self.best

    def _note_ranks(self) -> None:
        self.facts["shown_ranks"] = sorted({*self.facts.get("shown_ranks", ()), *self._shown.ranks})
        if self._shown.clicked is not None:
            self.facts["clicked_ranks"] = sorted({*self.facts.get("clicked_ranks", ()), *self._shown.clicked})

    def _keep(self, so_far: dict[str, Any] | None = None) -> None:
        """Keeps the state in the folder where there is something new."""
        if self.directory is not None and (so_far or self._saved < len(self.facts["history"])):
            run = self.facts | ({"partial": so_far} if so_far else {})
            about = {"format": "ultr-state", "run": run} | self._setting
            save_arrays(self.directory / "state", (self.state, self._chosen()), about)

    def _keep_interrupted(self, stop: KeyboardInterrupt) -> None:
        """Keeps what was trained so far, with the blocks of an epoch that has not ended."""
        if self.directory is None:
            return
        upto = self._epoch
        if any(x.is_deleted() for x in jax.tree.leaves((self.state, self._sums))):
            upto = self._saved  # Ctrl-C came in the middle of a step: what was kept last stays
        elif self._blocks and self._epoch == len(self.facts["history"]) + 1:
            self._note_ranks()
            seconds = {"waiting": self._waited, "seconds": time.perf_counter() - self._began}
            about = {"blocks": self._blocks, "block_sessions": self.block_sessions}
            self._keep(about | {"sums": np.asarray(self._sums).tolist()} | seconds)
        else:
            self._keep()
        if (self.directory / "state" / "meta.json").exists():
            how = "Continue with --resume (in Python: resume=True)"
            stop.add_note(f"What was trained up to epoch {upto} is kept in {self.directory / 'state'}. {how}")


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


def _bar(progress: bool | None, title: str, total: int) -> Any:
    show = sys.stderr.isatty() if progress is None else progress
    return tqdm(total=total, desc=title, unit=" sessions", unit_scale=True, leave=False, disable=not show)


def _advance(bar: Any, rows: int, sums: Any) -> None:
    if bar.disable:
        return
    if bar.update(rows):  # only when the bar is redrawn: reading the loss waits for the device
        total, used = np.asarray(sums)[:2]
        bar.set_postfix(loss=f"{total / max(used, 1):.4f}", refresh=False)
