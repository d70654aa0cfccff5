"""`fit`: the training loop for everything with `loss(sessions) -> [B]`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from ultr import stopping
from ultr.arguments import check_count, check_number
from ultr.data.dataset import Coverage, Dataset, DatasetLike
from ultr.data.input_schema import InputSchema
from ultr.errors import ConfigError
from ultr.files import recover
from ultr.rankers import Ranker
from ultr.sessions import Sessions
from ultr.towers import (
    Component,
    InputCheck,
    ShownRanks,
    matched,
    needs_no_features,
    note_shown_documents,
    note_shown_ranks,
    record_schema,
    trained_schema,
)
from ultr.training.checkpoint import facts_of, save, save_arrays
from ultr.training.feed import BLOCK_SESSIONS, BatchBlock, largest_indices, one_pass, stream_blocks
from ultr.training.fitted import Fitted, TrainedOn
from ultr.training.folded import FoldedRanker, QueryFolds, check_foldable, folded
from ultr.training.inputs import count_rows, training_data
from ultr.training.loop_parts import (
    alone_in_directory,
    at_interrupt,
    data_facts,
    epoch_weights,
    have_same_ids,
    is_exhausted,
    mean_loss,
    timed_blocks,
)
from ultr.training.optimizers import adam, has_large_table
from ultr.training.placement import placement
from ultr.training.progress import advance, progress_bar
from ultr.training.resuming import interrupted_epoch, restore_run, run_settings
from ultr.training.rows import RowSparse, lazy_adam
from ultr.training.schedule import FIRST_JUDGEMENT, batch_size_for, is_judgement_due, passes_per_epoch
from ultr.training.steps import Trainer
from ultr.training.sufficient import sufficient

STATE_SECONDS = 10.0
JUDGING_BYTES = 1 << 28  # of validation data that stays on the device
CACHE_BYTES = 1 << 30  # of decoded rows of a log, so that later epochs find them in memory


@alone_in_directory
def fit(
    model: Any,
    train: DatasetLike,
    valid: DatasetLike | None = None,
    *,
    optimizer: optax.GradientTransformation | RowSparse | None = None,
    epochs: int = 20,
    batch_size: int | None = 512,
    seed: int,
    patience: int | None = 3,
    l2: float = 0.0,
    l2_unit: Literal["session", "query"] = "session",
    collapse: Literal["auto", False] = "auto",
    directory: str | Path | None = None,
    resume: bool = False,
    settings: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
    progress: bool | None = None,
    block_sessions: int = BLOCK_SESSIONS,
    folds: int | QueryFolds | None = None,
) -> Fitted:
    """Trains a model: minimises the mean loss per session by minibatches, and keeps the best step that was judged.

    Args:
      model: has `loss(sessions) -> [B]`; it is left as it is, the result holds a trained copy.
      train: a `ClickLog`, `Counts`, a `Collection`, another dataset, or sessions in memory. Of a log, up to 1 GiB of
        decoded rows stay in memory between the epochs. The trained model knows the names of its features and their
        order; data that comes to it later is matched by these, and so is `train` where parts of the model were trained
        before.
      valid: data by whose loss the best step is chosen; None: the last epoch counts as the best. It judges the start,
        at the end of every epoch, and within an epoch of many steps whenever half as many again were made as at the
        last judgement (`ultr.training.schedule.is_judgement_due`; at least 128).
      optimizer: an optax transformation, or `ultr.training.lazy_adam` and its kind, whose steps cost what a batch
        touches of the tables; None: `adam()`, .003 for networks and .03 for tables, and `lazy_adam()`, the same row
        by row, where a table has more than 100,000 rows.
      epochs: passes over `train`, at most; of a log that was collapsed, an epoch is as many passes over its statistics
        as make a hundred steps.
      batch_size: sessions (or rows of counts) per step, fixed: shorter batches are padded with masked rows; None: a
        power of two from 64 to 2,048 that gives a pass a hundred steps or more.
      seed: decides the order of the sessions; with the same seed and data the result is the same.
      patience: stop after so many judgements without a better validation loss; None: never.
      l2: strength of a Gaussian prior around 0 on every parameter: adds l2/2 sum(parameter^2) to the total loss.
      l2_unit: what the total loss is of. "session": of all sessions, so that the prior fades as sessions come in.
        "query": the mean loss per session times the number of distinct queries of `train`: all that a network can
        learn of features is in so many queries, however often each is shown. The prior is then on networks alone:
        tables and constants, such as examination by rank, learn from every session.
      collapse: "auto": train and judge on the least of a click log that the model's loss depends on, where a pass over
        that reads fewer documents than one over the sessions (`ultr.training.sufficient.sufficient`): the same loss in
        less time. False: train on the data as it is.
      directory: keeps `directory/model` at the end, and on the way, every ten seconds between two epochs and where
        Ctrl-C stops the training, `directory/state`, from which `resume` goes on to the same result.
      resume: continue from `directory/state` where it exists; data, model, seed and `settings` must be the same.
      settings: further JSON-able facts that must not change on resuming, such as the learning rate.
      mesh: devices to split each batch over; one axis (make it with `AxisType.Auto`).
      progress: progress bar on standard error; None: when that is a terminal.
      block_sessions: about how many sessions are handed to the device at a time.
      folds: in place of `valid`: deal the queries out to so many folds (by `seed`; or as given) and judge by
        cross-validation. For
        each fold a copy of the model is trained by the same steps on the other folds' sessions, and judged by the
        fold's; the best step is that at which they are best, on all of the data, and the result learns from all of it.
        For models whose loss is a function of the list alone (`Ranker.has_pure_loss`), with no table over documents.

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
    batch_size = None if batch_size is None else check_count("batch_size", batch_size)
    block_sessions = check_count("block_sessions", block_sessions)
    l2 = check_number("l2", l2, least=0)
    patience = None if patience is None else check_count("patience", patience)
    if isinstance(folds, int):
        folds = check_count("folds", folds, least=2)
    if folds is not None and valid is not None:
        raise ConfigError("valid and folds both judge the steps: give one of the two")
    if folds is not None:
        check_foldable(model)
    if resume and directory is None:
        raise ConfigError("resume needs directory=, the folder of the interrupted run")
    given = training_data(train, model, "training data")
    judging = None if valid is None else training_data(valid, model, "validation data")
    count_rows(given, "training data")
    with contextlib.ExitStack() as stack:
        used, judged = (
            data if data is None or not collapse else stack.enter_context(sufficient(model, data))
            for data in (given, judging)
        )
        assert used is not None
        collapsed = used is not given
        # The log itself says where its names are: what it was collapsed to may lie in a temporary folder.
        schema = trained_schema(model, matched(model, given, name="training data"))
        used = matched(model, used, name="training data")
        judged = None if judged is None else matched(model, judged, name="validation data", schema=schema)
        coverage, size = used.coverage(), batch_size or batch_size_for(len(used))
        about = TrainedOn.of(used, coverage, collapsed=collapsed)
        judges = None
        if folds is not None:
            shown = None if coverage is None else coverage.queries_shown
            judges, judged = folded(model, used, shown, folds, seed), used
        training = _Training(
            model,
            used,
            judged,
            logs=(given, judging),
            judges=judges,
            optimizer=optimizer,
            batch_size=size,
            passes=passes_per_epoch(len(used), size) if collapsed else 1,
            l2=l2 * about.sessions_per(l2_unit),
            l2_of_tables=l2_unit == "session",
            mesh=mesh,
            block_sessions=block_sessions,
            directory=None if directory is None else Path(directory),
        )
        compared = (given, judging if judges is None else given)
        identities = [None if d is None or directory is None else d.content_identity() for d in compared]
        numbers = {
            "seed": seed,
            "folds": None if judges is None else judges.folds,
            "batch_size": size,
            "l2": l2 if l2_unit == "session" else {l2_unit: l2},
        }
        kind = about.statistics if collapsed else None
        setting = run_settings(model, schema, identities, settings, **numbers, statistics=kind)
        training.begin(setting, resume=resume)
        training.run(epochs, seed=seed, patience=patience, progress=progress)
        return training.finished(schema, given, about, coverage)


class _Training:
    """Trains one model: holds what is on the device, the epochs so far, and keeps both in a folder.

    Args:
      model: is left as it is.
      train, valid: data with the features that the model knows.
      logs: what the two were collapsed from, in whose rows errors say where a value is wrong.
      judges: the model with its copies, where these judge; `valid` is then `train`.
      passes: over `train`, that make an epoch.
      l2: in the unit of a session.
      l2_of_tables: whether it holds for tables and constants too.
      optimizer, batch_size, mesh, block_sessions: as for `fit`.
      directory: where model and state are kept; None: nowhere.

    Attributes:
      facts: one dict per judgement as "history", the "best" of them and its "best_loss", how many "epochs" were trained
        whole, and the ranks that were shown.
    """

    def __init__(
        self,
        model: Any,
        train: Dataset,
        valid: Dataset | None,
        *,
        logs: tuple[Dataset, Dataset | None],
        judges: FoldedRanker | None,
        optimizer: optax.GradientTransformation | RowSparse | None,
        batch_size: int,
        passes: int,
        l2: float,
        l2_of_tables: bool,
        mesh: Mesh | None,
        block_sessions: int,
        directory: Path | None,
    ) -> None:
        self.model, self.train, self.valid, self._logs = model, train, valid, logs
        self.batch_size, self.block_sessions, self.directory = batch_size, block_sessions, directory
        self._priors = (l2, l2 if l2_of_tables else 0.0)
        self.passes, self.sessions = passes, count_rows(train, "training data")
        self.trainer = Trainer(judges or model, optimizer or (lazy_adam() if has_large_table(model) else adam()))
        self.place, self._put = placement(mesh, batch_size, self.trainer.rank_first)
        self.state = self.place(self.trainer.init())
        self.best = self.trainer.parameters(self.state)
        self.facts: dict[str, Any] = {"history": [], "best": 0, "best_loss": None, "epochs": 0}
        self._setting: dict[str, Any] = {}
        self._shown = ShownRanks(model)
        self._judges: list[BatchBlock] | None = None  # the validation data on the device
        self._epoch, self._steps, self._judged = 1, 0, 0
        # Of the epoch: the blocks so far, and the weight of their rows up to the last judgement.
        self._blocks, self._before = 0, 0.0
        # Since the last judgement: sums, and seconds waited for data.
        self._sums, self._waited, self._began = self._no_sums(), 0.0, 0.0
        self._saved, self._saved_epoch, self._saved_at, self._resumed = (0, 0), 0, 0.0, 0

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
            partial = interrupted_epoch(folder, self.facts.pop("partial", None), self.block_sessions)
            self.facts.setdefault("epochs", len(self.facts["history"]))  # a state of an earlier version
            self.state, self.best = self.place(state), self.place(best)
            self._take_up(partial)
        self._scratch = self.place(self.trainer.scratch(self.state))
        self._of_data = self.place(data_facts(self.train, self.batch_size, *self._priors))
        self._saved, self._saved_at = self._position, time.perf_counter()
        self._saved_epoch, self._resumed = self.facts["epochs"], len(self.facts["history"])

    def _take_up(self, partial: dict[str, Any] | None) -> None:
        """Goes on from where a run was stopped: within an epoch, where `partial` says how far it came."""
        history = self.facts["history"]
        self._steps = int(self.state["count"])
        self._judged = history[-1].get("steps", self._steps) if history else 0
        self._began = time.perf_counter()
        if partial is not None:
            self._sums = self.place(jnp.asarray(partial["sums"], jnp.float32))
            self._blocks, self._before = partial["blocks"], partial.get("before", 0.0)
            self._waited, self._began = partial["waiting"], self._began - partial["seconds"]

    @property
    def _position(self) -> tuple[int, int]:
        """How far the run has come: judgements, and blocks of the epoch."""
        return len(self.facts["history"]), self._blocks

    def _no_sums(self) -> Any:
        return self.place(jnp.zeros(self.trainer.sums))

    def run(self, epochs: int, *, seed: int, patience: int | None, progress: bool | None) -> None:
        """Trains epoch after epoch until there are enough, or validation does not improve; arguments as for `fit`."""
        first = self.facts["epochs"] + 1
        feed = self._feed(first, epochs, seed)
        self._epoch, going = first, True
        with at_interrupt(self._keep_interrupted), contextlib.closing(feed):
            if self.facts["best_loss"] is None and first <= epochs:
                self.facts["best_loss"] = self._validate()[0]  # of the start, which a ranker may have been given
            while going and self._epoch <= epochs and not is_exhausted(self.facts, patience):
                with progress_bar(progress, f"epoch {self._epoch}/{epochs}", self.sessions * self.passes) as bar:
                    going = self._train_epoch(feed, bar, patience)
                self._keep(every=STATE_SECONDS)
                self._epoch = self.facts["epochs"] + 1
        self._keep()

    def finished(self, schema: InputSchema | None, given: Dataset, about: TrainedOn, seen: Coverage | None) -> Fitted:
        """Makes the trained model, which knows the names of its features, and saves it where there is a folder.

        Args:
          schema: the names.
          given: the training data as it was given.
          about, seen: what it was trained on, and which documents.
        """
        found = self.trainer.model(self._chosen())
        fitted, held_out = found, tuple[Any, ...]()
        if isinstance(found, FoldedRanker):
            fitted, held_out = found.whole(), tuple(found.member(fold) for fold in range(found.folds))
        for model in (fitted, *held_out):
            record_schema(model, schema)
            note_shown_documents(model, None if seen is None else seen.shown)
            if "shown_ranks" in self.facts:
                note_shown_ranks(model, self.facts["shown_ranks"], self.facts.get("clicked_ranks"))
        if self.directory is not None:
            save(fitted, self.directory / "model", extra=facts_of(given))
        return Fitted(
            fitted,
            self.facts["history"],
            self.facts["best"],
            resumed=self._resumed,
            trained_on=about,
            held_out=held_out,
        )

    def _feed(self, first: int, epochs: int, seed: int) -> Generator[BatchBlock | None, None, None]:
        """Streams the blocks of the epochs from the first on, without those of it that were trained before."""
        options = self._reading(self.train, "training data")
        check_bounds = options["check"]

        def check(batch: Sessions) -> None:
            check_bounds(batch)
            self._shown.add(batch)

        passes = range((first - 1) * self.passes + 1, epochs * self.passes + 1)
        seeds = (int(np.random.SeedSequence([seed, e]).generate_state(1)[0]) for e in passes)
        cached = self.train.cached(CACHE_BYTES) if len(passes) > 1 else self.train
        if self.valid is not None:  # judges between two blocks
            options["block_sessions"] = min(self.block_sessions, FIRST_JUDGEMENT * self.batch_size)
        return stream_blocks(cached, self.batch_size, seeds=seeds, skip=self._blocks, **options | {"check": check})

    def _reading(self, data: Dataset, name: str) -> dict[str, Any]:
        """Collects how data is read: what is checked, left out and shared, and where it is put."""
        log = self._logs[0] if data is self.train else self._logs[1] or data
        shares = isinstance(self.model, Component) and self.model.takes_shared_features
        holds_features = shares and needs_no_features(self.model)
        return {
            "length": self.sessions,
            "rank_first": self.trainer.rank_first,
            "check": InputCheck(self.model, log, source=name, largest=largest_indices(data)),
            "put": self._put,
            "block_sessions": self.block_sessions,
            "share_features": shares,
            "without": ("features",) if holds_features and have_same_ids(data, self.train) else (),
        }

    def _train_epoch(self, feed: Iterator[BatchBlock | None], bar: Any, patience: int | None) -> bool:
        """Trains on the blocks of one epoch, or on those that are left of one that was interrupted, and judges.

        Returns:
          Whether it was trained to its end: validation may have ceased to improve.
        """
        whole = not self._blocks
        if whole:
            self._began = time.perf_counter()
        for _ in range(self.passes):
            for block, seconds in timed_blocks(feed):
                if self.valid is not None and is_judgement_due(self._steps, self._judged):
                    self._judge(ended=False)
                    self._keep(every=STATE_SECONDS)
                    if is_exhausted(self.facts, patience):
                        return False
                # Between the end of a step and the count of its block nothing can be interrupted.
                self.state, self._scratch, self._sums = self.trainer.block(
                    self.state, self._scratch, self._sums, block.batches, block.count, self._of_data
                )
                self._blocks += 1
                self._steps += block.count
                self._waited += seconds
                self._sums.block_until_ready()  # so that what is waited for next is the data, and nothing else
                advance(bar, block.sessions, self._sums)
                stopping.check()
        self._judge(ended=True, whole=whole)
        return True

    def _judge(self, *, ended: bool, whole: bool = False) -> None:
        """Judges what was trained so far, and adds what was trained since the last judgement to the history.

        Args:
          ended: whether the epoch has.
          whole: whether all blocks of an epoch were seen in this process, so that there should be clicks.
        """
        total = np.asarray(self._sums) / self.passes  # as of one pass, whose sums are those of the data
        loss, counted, impossible = mean_loss(total[:3], "training data", self._epoch, self.train)
        if whole and isinstance(self.model, Ranker) and self.model.learns_from_clicks:
            self._shown.check_clicks("training data")
        seen = self._before + float(total[1]) + float(total[2])
        share = seen / self.train.description.total_weight
        epoch = self._epoch if ended else round(self._epoch - 1 + min(share, 1.0), 4)
        valid_loss, parameters = self._validate()
        entry = {
            "epoch": epoch,
            "steps": self._steps,
            "loss": loss,
            "valid_loss": valid_loss,
            "sessions": counted,
            "impossible": impossible,
            "seconds": round(time.perf_counter() - self._began, 3),
            "waiting": round(self._waited, 3),
        } | epoch_weights(total[3:], counted + impossible, self.train)
        facts = self.facts | self._ranks() | {"history": [*self.facts["history"], entry]}
        best, best_loss = self.best, facts["best_loss"]
        if valid_loss is None or best_loss is None or valid_loss < best_loss:
            facts |= {"best": len(facts["history"]), "best_loss": loss if valid_loss is None else valid_loss}
            best = best if self.valid is None else parameters
        if ended:
            facts["epochs"] = self._epoch
        began, sums = time.perf_counter(), self._no_sums()
        # What follows calls nothing, so that nothing can interrupt it.
        self.facts, self.best, self._judged = facts, best, self._steps
        self._sums, self._waited, self._began = sums, 0.0, began
        self._blocks, self._before = (0, 0.0) if ended else (self._blocks, seen)

    def _validate(self) -> tuple[float | None, Any]:
        """Computes the validation loss, with the parameters that have it; None without validation data."""
        if self.valid is None:
            return None, None
        parameters = self.trainer.parameters(self.state)
        losses = self.place(jnp.zeros(3))
        for block in self._judging_blocks(self.valid):
            losses = self.trainer.evaluate(parameters, losses, block.batches, block.count)
        return mean_loss(np.asarray(losses), "validation data", self._epoch, self.valid)[0], parameters

    def _judging_blocks(self, valid: Dataset) -> Iterator[BatchBlock]:
        """Passes over the validation data; what is small stays on the device for the judgements to come."""
        if self._judges is not None:
            yield from self._judges
            return
        held: list[BatchBlock] = []
        size = 0
        for block in one_pass(valid, self.batch_size, seed=None, **self._reading(valid, "validation data")):
            size += sum(x.nbytes for x in jax.tree.leaves(block.batches))
            held = [*held, block] if size <= JUDGING_BYTES else []
            yield block
        self._judges = held if size <= JUDGING_BYTES else None

    def _chosen(self) -> Any:
        return self.trainer.parameters(self.state) if self.valid is None else self.best

    def _ranks(self) -> dict[str, list[int]]:
        """Collects the ranks that were shown so far, and those with a click."""
        found = {"shown_ranks": sorted({*self.facts.get("shown_ranks", ()), *self._shown.ranks})}
        if self._shown.clicked is not None:
            found["clicked_ranks"] = sorted({*self.facts.get("clicked_ranks", ()), *self._shown.clicked})
        return found

    def _keep(self, *, every: float = 0.0) -> None:
        """Keeps the state in the folder where there is something new, and the last time is so many seconds ago."""
        now = time.perf_counter()
        if self.directory is None or self._saved == self._position or now - self._saved_at < every:
            return
        run = self.facts
        if self._blocks:
            seconds = {"waiting": self._waited, "seconds": now - self._began}
            partial = {"blocks": self._blocks, "block_sessions": self.block_sessions, "before": self._before}
            run = run | self._ranks() | {"partial": partial | {"sums": np.asarray(self._sums).tolist()} | seconds}
        about = {"format": "ultr-state", "run": run} | self._setting
        save_arrays(self.directory / "state", (self.state, self._chosen()), about)
        self._saved, self._saved_epoch, self._saved_at = self._position, self._epoch, time.perf_counter()

    def _keep_interrupted(self, stop: KeyboardInterrupt) -> None:
        """Keeps what was trained so far, with the blocks of an epoch that has not ended."""
        if self.directory is None:
            return
        if not any(x.is_deleted() for x in jax.tree.leaves((self.state, self._sums))):
            self._keep()  # else Ctrl-C came in the middle of a step: what was kept last stays
        if (self.directory / "state" / "meta.json").exists():
            upto, how = self._saved_epoch, "Continue with --resume (in Python: resume=True)"
            stop.add_note(f"What was trained up to epoch {upto} is kept in {self.directory / 'state'}. {how}")
