"""One log of one seed, simulated or opened once and shared by every method that learns from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa

from ultr import simulate
from ultr.data import ClickLog, Collection, Counts, QueryLists, collapse, open_data
from ultr.errors import ConfigError, DataError
from ultr.study.cross_fitting import CrossFitting
from ultr.study.nuisance import NuisanceEstimates
from ultr.study.settings import JudgedData, LogSpec
from ultr.study.tower_factory import stored_features
from ultr.training.sufficient import statistics_for

SplitUnit = Literal["session", "query"]

T = TypeVar("T")


class JudgedLists:
    """The graded lists of a study, each opened when first asked for."""

    def __init__(self, data: JudgedData) -> None:
        self._data, self._open = data, dict[str, Collection]()

    def __getitem__(self, role: str) -> Collection:
        """Returns the lists of a role, "train", "vali" or "test".

        Raises:
          ConfigError: the study names none.
          DataError: no collection, or no such split.
        """
        if role not in self._open:
            name = getattr(self._data, role)
            if name is None:
                raise ConfigError(f"the study's [data] has no '{role}' lists")
            if self._data.collection is not None:
                self._open[role] = Collection.open(self._data.collection, split=name)
            else:
                found = open_data(name)
                judged = found if isinstance(found, Collection) else found.collection()
                if judged is None:
                    raise DataError("expected graded lists, found a log without grades", file=name)
                self._open[role] = judged
        return self._open[role]


class PreparedLog:
    """A log with its parts, their sufficient statistics and the nuisance estimates of the training part.

    Args:
      settings: what the study says of the log.
      seed: of the run: it draws the sessions of a simulated log, and the parts of any.
      lists: the graded lists of the study.
      shares: (valid, test) shares that are held out.
      work: an empty folder for intermediate files.
    """

    def __init__(
        self, settings: LogSpec, *, seed: int, lists: JudgedLists, shares: tuple[float, float], work: Path
    ) -> None:
        self.settings, self.seed, self.lists, self.shares, self.work = settings, seed, lists, shares, work
        self._parts: dict[SplitUnit, dict[str, ClickLog]] = {}
        self._cache: dict[tuple[str, ...], Any] = {}
        self.notes: list[str] = []

    @cached_property
    def log(self) -> ClickLog:
        """Opens or simulates the whole log."""
        if self.settings.path is not None:
            return ClickLog.open(self.settings.path, split=self.settings.split)
        train = self.lists["train"]
        user, policy = self.settings.simulated_user(grades=_grade_scale(train)), self.settings.logging_policy()
        options = {"sessions": 100_000} | self.settings.session_options()
        return simulate.clicks(train, policy, user, seed=self.seed, out=self.work / "log", **options)

    @cached_property
    def query_names(self) -> pa.ChunkedArray:
        """Lists the names of the queries that the log shows."""
        shown = np.zeros(self.log.vocabulary.queries, bool)
        for rows in self.log.columns(["query"]):
            shown[rows["query"].to_numpy()] = True
        return self.log.vocabulary.query_names.filter(pa.array(shown))

    @cached_property
    def logger(self) -> Any:
        """Fits the ranker of the simulated policy, for any lists."""
        return self.settings.logging_policy().fitted(self.lists["train"], seed=self.seed)

    @property
    def truth(self) -> dict[str, Any] | None:
        """Returns the true user of a simulated log, of its metadata."""
        return self.log.metadata.get("truth")

    def part(self, name: str, by: SplitUnit) -> ClickLog:
        """Returns the sessions to learn from ("train"), to choose by ("valid") or to judge click models on ("test").

        Raises:
          DataError: too few sessions for these parts.
        """
        if by not in self._parts:
            valid, test = self.shares
            shares = {"train": 1 - valid - test, "valid": valid} | ({"test": test} if test else {})
            parts = self.log.split(shares, by=by, seed=self.seed)
            if not all(len(part) for part in parts.values()):
                if by == "query":
                    self.notes.append("too few queries to hold some out: sessions were held out instead")
                    parts = {n: self.part(n, "session") for n in shares}
                else:
                    raise DataError(
                        f"{len(self.log):,} sessions are too few to hold {valid:g} and {test:g} of them out",
                        fix="Use more sessions or larger shares.",
                    )
            self._parts[by] = parts
        return self._parts[by][name]

    def cross_fitting(self, by: SplitUnit, score: str = "") -> CrossFitting:
        """Deals all sessions but those that click models are judged on out to folds."""

        def make() -> CrossFitting:
            log, test = self.log, self.shares[1]
            if test:
                log = log.split({"learn": 1 - test, "test": test}, by=by, seed=self.seed)["learn"]
            folder = self.work / f"folds-{by}-{score}"
            folder.mkdir(exist_ok=True)
            return CrossFitting(log, by=by, seed=self.seed, work=folder, score=score or None, stores=True)

        return self._cached(("folds", by, score), make)

    def counts(self, name: str, by: SplitUnit, how: Literal["rank", "last-click"] = "rank") -> Counts:
        """Returns the counts of a part by rank, or by rank and last click."""
        return self._cached(("counts", name, by, how), lambda: collapse(self.part(name, by), how))

    def distinct(self, name: str, by: SplitUnit) -> ClickLog:
        """Returns the distinct sessions of a part, with weights."""
        folder = self.work / f"lists-{name}-{by}"
        return self._cached(("lists", name, by), lambda: collapse(self.part(name, by), "list", directory=folder))

    def nuisance(self, source: str, by: SplitUnit) -> NuisanceEstimates:
        """Returns what debiasing methods are given beside the training part, with propensities from this source."""

        def make() -> NuisanceEstimates:
            return NuisanceEstimates(
                self.part("train", by),
                source=source,
                truth=self.truth,
                counts=self.counts("train", by),
                shown=self.log,
                sessions=lambda: self.distinct("train", by),
                seed=self.seed,
            )

        return self._cached(("nuisance", source, by), make)

    @property
    def stored(self) -> np.ndarray | None:
        """Returns the features [V + 1, F] by document id, where they are few enough to lie in every model."""
        return stored_features(self.log)

    def queries(self, name: str, by: SplitUnit) -> QueryLists:
        """Returns the queries of a part with what it showed of their documents."""
        return self._cached(("queries", name, by), lambda: collapse(self.part(name, by), "query"))

    def sufficient(self, name: str, by: SplitUnit, model: Any) -> ClickLog | Counts | QueryLists:
        """Returns a part as a model learns from it: counts, queries, or distinct sessions with weights."""
        statistics = statistics_for(model, self.log)
        if statistics == "query":
            return self.queries(name, by)
        return self.distinct(name, by) if statistics == "list" else self.counts(name, by, statistics)

    def _cached(self, key: tuple[str, ...], make: Callable[[], T]) -> T:
        if key not in self._cache:
            self._cache[key] = make()
        found: T = self._cache[key]
        return found


def count_shared(one: pa.ChunkedArray, other: pa.ChunkedArray) -> int:
    """Counts the query names that are in both."""
    return len(set(one.to_pylist()) & set(other.to_pylist()))


def _grade_scale(lists: Collection) -> int:
    if not (lists.labels >= 1).any():
        raise ConfigError("expected grades of at least 1 for some documents, found none")
    return math.ceil(lists.max_grade)
