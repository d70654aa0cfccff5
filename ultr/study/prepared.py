"""One log of one seed, simulated or opened once and shared by every method that learns from it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ultr import simulate
from ultr.data import ClickLog, Collection, Counts, collapse, open_data
from ultr.errors import ConfigError, DataError
from ultr.study.nuisance import Harvest
from ultr.study.spec import Data, Log, policy_of, user_of

By = Literal["session", "query"]
PARTS = ("train", "valid", "test")
FEWEST_STEPS = 100  # of an epoch, where the log allows
BATCHES = (64, 2048)
STORED_BYTES = 1 << 27


class Lists:
    """The graded lists of a study, each opened when first asked for."""

    def __init__(self, data: Data) -> None:
        self._data, self._open = data, dict[str, Collection]()

    def __getitem__(self, role: str) -> Collection:
        """ "train", "vali" or "test".

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


class Prepared:
    """A log, its parts, their sufficient statistics and what is harvested from the training part.

    Args:
      settings: of the log.
      seed: of the cell: it draws the sessions of a simulated log, and the parts of any.
      lists: the graded lists of the study.
      shares: (valid, test) shares that are held out.
      work: an empty folder for what is made on the way.
    """

    def __init__(self, settings: Log, *, seed: int, lists: Lists, shares: tuple[float, float], work: Path) -> None:
        self.settings, self.seed, self.lists, self.shares, self.work = settings, seed, lists, shares, work
        self._parts: dict[str, dict[str, ClickLog]] = {}
        self._made: dict[tuple[str, ...], Any] = {}
        self.notes: list[str] = []

    @cached_property
    def log(self) -> ClickLog:
        """The whole log."""
        if self.settings.path is not None:
            return ClickLog.open(self.settings.path, split=self.settings.split)
        train = self.lists["train"]
        rest = {"sessions": 100_000} | _rest(self.settings.options)
        user, policy = user_of(self.settings, grades=_highest(train)), policy_of(self.settings)
        return simulate.clicks(train, policy, user, seed=self.seed, out=self.work / "log", **rest)

    @cached_property
    def query_names(self) -> pa.ChunkedArray:
        """Of the queries that the log shows."""
        there = np.zeros(self.log.vocabulary.queries, bool)
        for rows in self.log.columns(["query"]):
            there[rows["query"].to_numpy()] = True
        return self.log.vocabulary.query_names.filter(pa.array(there))

    @cached_property
    def logger(self) -> Any:
        """The ranker of the simulated policy, for any lists."""
        return policy_of(self.settings).fitted(self.lists["train"], seed=self.seed)

    @property
    def truth(self) -> dict[str, Any] | None:
        """What is known of a simulated log."""
        return self.log.metadata.get("truth")

    def part(self, name: str, by: By) -> ClickLog:
        """The sessions to learn from ("train"), to choose by ("valid") or to judge click models on ("test")."""
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

    def counts(self, name: str, by: By, how: str = "rank") -> Counts:
        """The part's counts."""
        return self._keep(("counts", name, by, how), lambda: collapse(self.part(name, by), how))  # type: ignore[call-overload]

    def distinct(self, name: str, by: By) -> ClickLog:
        """The part's different sessions, with weights."""
        folder = self.work / f"lists-{name}-{by}"
        return self._keep(("lists", name, by), lambda: collapse(self.part(name, by), "list", directory=folder))

    def harvest(self, source: str, by: By) -> Harvest:
        """Of the training part."""

        def make() -> Harvest:
            return Harvest(
                self.part("train", by),
                source=source,
                truth=self.truth,
                counts=self.counts("train", by),
                shown=self.log,
                lists=lambda: self.distinct("train", by),
                seed=self.seed,
            )

        return self._keep(("harvest", source, by), make)

    @property
    def stored(self) -> np.ndarray | None:
        """[V + 1, F] features by document id, where they are few enough to lie in every model."""
        values = self.log.vocabulary.features
        if values is None or values.nbytes > STORED_BYTES or self.log.metadata["impression_features"]:
            return None
        return values

    def source(self, name: str, by: By, statistics: str) -> Any:
        """What a model with these sufficient statistics learns from or is judged on."""
        plain = not self.log.metadata["impression_features"]
        if statistics in ("rank", "last-click") and plain:
            return self.counts(name, by, statistics)
        return self.distinct(name, by)

    def _keep(self, key: tuple[str, ...], make: Any) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def shared_queries(one: Any, other: Any) -> int:
    """How many names of queries are in both."""
    return len(set(one.to_pylist()) & set(other.to_pylist()))


def _highest(lists: Collection) -> int:
    grades = float(np.nanmax(lists.labels))
    if grades < 1:
        raise ConfigError(f"expected grades of at least 1 for some documents, found at most {grades:g}")
    return math.ceil(grades)


def _rest(options: Mapping[str, Any]) -> dict[str, Any]:
    names = inspect.signature(simulate.clicks).parameters
    return {name: options[name] for name in names if name in options}


def batch_size_for(rows: int) -> int:
    """A power of two that gives an epoch a hundred steps or more, from 64 to 2,048 rows."""
    least, most = BATCHES
    return min(max(1 << (max(rows // FEWEST_STEPS, 1).bit_length() - 1), least), most)
