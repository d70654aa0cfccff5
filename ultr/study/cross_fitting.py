"""Folds of a log for cross-fitting: what to learn from, and what the clicks of the others say of the documents there.

Nothing judges what it had a part in: relevance of a fold's documents rests on propensities, on an estimate of the
logged order and on a regression that were fitted to the other folds.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from ultr.baselines import EstimatedOrder, fit_logged_order
from ultr.data import ClickLog, Counts, Dataset, collapse, query_folds
from ultr.data.remembered import counts_of
from ultr.errors import ConfigError, UltrError
from ultr.evaluation.ranking_gains import DocumentClicks
from ultr.propensity.goodness_of_fit import CLICK_ABOVE, LAST_CLICK, goodness_of_fit
from ultr.study.held_out import examination, relevance_by_place, standardised, totals
from ultr.study.nuisance import NuisanceEstimates
from ultr.study.tower_factory import stored_features
from ultr.towers import Scaler

FOLDS = 5

Unit = Literal["query", "session"]

T = TypeVar("T")


class HeldOut(NamedTuple):
    """The documents of one fold, and what its clicks say of them.

    Attributes:
      document: [D] ids.
      clicks: of the same documents.
      logged: [D] scores of the logged order as the other folds tell it.
    """

    document: np.ndarray
    clicks: DocumentClicks
    logged: np.ndarray


class CrossFitting:
    """A log dealt out to folds, with what each needs; every part is made once, when it is first asked for.

    Args:
      log: all that may be learnt from.
      by: "query" deals out queries, which counts can be split by without another pass over the log; "session" draws a
        share of the sessions anew for each fold, for tables of documents, which know nothing of other queries.
      seed: decides the folds.
      work: a folder for lists in which every distinct session stands once.
      score: name of a feature with the logger's own score; None: the logged order is estimated.
      folds: how many.
      stores: whether models hold the features of the log's documents, as those that are not saved may.

    Attributes:
      folds: how many there are: fewer than asked for where the log shows fewer queries.
      notes: what a reader should know of the propensities.

    Raises:
      ConfigError: features of impressions, or less than two queries.
    """

    def __init__(
        self,
        log: ClickLog,
        *,
        by: Unit,
        seed: int,
        work: Path,
        score: str | None = None,
        folds: int = FOLDS,
        stores: bool = False,
    ) -> None:
        if log.metadata["impression_features"]:
            raise ConfigError(
                "unbiased ranking gains on held-out queries, by which --model auto, --safe and grids choose, need "
                "features of documents: this log has features of impressions, which may differ each time a document is "
                "shown, so that a document has no one score. Prepare it with features that come with the documents "
                "(LETOR files, or --vocabulary COLLECTION), or choose one model without --safe"
            )
        self.log, self.by, self.seed, self.work, self.score, self.stores = log, by, seed, work, score, stores
        self.notes: list[str] = []
        self._cache: dict[Any, Any] = {}
        queries = int((self.counts("rank").query_weights > 0).sum())
        if by == "query" and queries < 2:
            raise ConfigError("expected sessions of at least two queries to hold some out, found one")
        self.folds = min(folds, queries) if by == "query" else folds

    @property
    def stored(self) -> np.ndarray | None:
        """Returns the features [V + 1, F] by document id that every model holds; None: none does."""
        return stored_features(self.log) if self.stores else None

    def scaler(self, transform: str) -> Scaler | None:
        """Measures the features of the documents shown, once for all candidates; None without features."""
        if self.log.vocabulary.features is None:
            return None
        size = len(self.log.metadata["features"])
        return self._once(("scaler", transform), lambda: Scaler(size, transform=transform).fit(self.counts("rank")))

    def nuisance(self, source: str, fold: int | None = None) -> NuisanceEstimates:
        """Returns what debiasing methods are given beside the sessions that they learn from."""

        def make() -> NuisanceEstimates:
            return NuisanceEstimates(
                self.sessions(fold),
                source=source,
                truth=self.log.metadata.get("truth"),
                counts=self.counts("rank", fold),
                shown=self.counts("rank"),
                sessions=lambda: self.sufficient("list", fold),
                seed=self.seed,
            )

        return self._once(("nuisance", source, fold), make)

    @cached_property
    def fold_of_query(self) -> np.ndarray:
        """The fold of each query of the vocabulary, [Q]; -1: not shown."""
        return query_folds(self.counts("rank").query_weights > 0, self.folds, self.seed)

    def counts(self, how: Literal["rank", "last-click"], fold: int | None = None, *, held_out: bool = False) -> Counts:
        """Returns counts of the whole log, of all but one fold, or of that fold alone."""
        if fold is None:
            return self._once(("counts", how), lambda: counts_of(self.log, how))
        if self.by == "query":
            chosen = (self.fold_of_query == fold) if held_out else (self.fold_of_query != fold)
            shown = self.fold_of_query >= 0
            return self._once(("counts", how, fold, held_out), lambda: self.counts(how).select_queries(chosen & shown))
        return self._once(
            ("counts", how, fold, held_out), lambda: collapse(self.sessions(fold, held_out=held_out), how)
        )

    def sessions(self, fold: int | None = None, *, held_out: bool = False) -> ClickLog:
        """Returns the sessions of the whole log, of all but one fold, or of that fold alone."""
        if fold is None:
            return self.log
        if self.by == "query":
            chosen = self.fold_of_query == fold if held_out else self.fold_of_query != fold
            return self._once(
                ("log", fold, held_out), lambda: self.log.select_queries(chosen & (self.fold_of_query >= 0))
            )
        seed = int(np.random.SeedSequence([self.seed, fold]).generate_state(1)[0])
        shares = {"train": 1 - 1 / self.folds, "valid": 1 / self.folds}
        parts = self._once(("log", fold), lambda: self.log.split(shares, by="session", seed=seed))
        return parts["valid" if held_out else "train"]

    def sufficient(self, statistics: str, fold: int | None = None, *, held_out: bool = False) -> Dataset:
        """Returns a part as a model with these sufficient statistics learns from it or is judged on it."""
        if statistics == "rank":
            return self.counts("rank", fold, held_out=held_out)
        if statistics == "last-click":
            return self.counts("last-click", fold, held_out=held_out)
        if statistics == "query":
            part = self.sessions(fold, held_out=held_out)
            return self._once(("queries", fold, held_out), lambda: collapse(part, "query"))
        name = "lists" if fold is None else f"lists-{'valid' if held_out else 'train'}-{fold}"
        if fold is not None and self.by == "query":
            chosen = self.fold_of_query == fold if held_out else self.fold_of_query != fold
            return self._distinct("lists", self.log).select_queries(chosen & (self.fold_of_query >= 0))
        return self._distinct(name, self.sessions(fold, held_out=held_out))

    def _distinct(self, name: str, part: ClickLog) -> ClickLog:
        return self._once((name,), lambda: collapse(part, "list", directory=self.work / name))

    def logged(self, fold: int | None = None) -> EstimatedOrder:
        """Estimates the logged order from all sessions, or from those outside a fold."""

        def estimate() -> EstimatedOrder:
            return fit_logged_order(self.counts("rank", fold), score=self.score, seed=self.seed)

        return self._once(("logged", fold), estimate)

    def trained_on(self, fold: int | None) -> np.ndarray:
        """Tells which documents of the vocabulary are shown outside a fold, or at all: [V + 1] bool."""
        found = np.zeros(self.log.vocabulary.documents + 1, bool)
        found[self.counts("rank", fold).document] = True
        found[0] = False
        return found

    @cached_property
    def depends_on_clicks(self) -> bool:
        """Whether examination depends on clicks above, by the goodness of fit: then each last click has a curve."""
        try:
            found = goodness_of_fit(self.counts("last-click"))
        except UltrError as error:
            self._note(f"not checked whether clicks depend on clicks above ({error})")
            return False
        depends = bool({LAST_CLICK, CLICK_ABOVE} & set(found.failed))
        if depends:
            self._note("examination depends on clicks above: relevance was judged by a curve for each last click")
        return depends

    def held_out(self, fold: int) -> HeldOut:
        """Computes what the clicks of a fold say of all candidates of its queries."""
        return self._once(("held out", fold), lambda: self._held_out(fold))

    def _held_out(self, fold: int) -> HeldOut:
        how: Literal["rank", "last-click"] = "last-click" if self.depends_on_clicks else "rank"
        train, valid = self.counts(how, fold), self.counts(how, fold, held_out=True)
        found = examination(train)
        self._note(*found.notes)
        weight, owner = valid.query_weights, valid.vocabulary.document_query
        candidates = np.flatnonzero((owner >= 0) & (weight[np.maximum(owner, 0)] > 0))
        candidates = candidates[candidates <= self.log.documents]
        queries, query = np.unique(owner[candidates], return_inverse=True)
        clicks, exposure = totals(valid, found.table)
        logged = self.logged(fold)
        scores = logged.scores[candidates]
        learnt = totals(train, found.table)
        seen = np.flatnonzero(learnt[1][: self.log.documents + 1] > 0)
        seen = seen[seen > 0]
        others = logged.scores[seen]
        regression = relevance_by_place(
            standardised(others, np.unique(owner[seen], return_inverse=True)[1]),
            learnt[0][seen],
            learnt[1][seen],
            standardised(scores, query),
        )
        told = DocumentClicks(query, clicks[candidates], exposure[candidates], weight[queries], regression)
        return HeldOut(candidates, told, scores)

    def _note(self, *notes: str) -> None:
        self.notes += [note for note in notes if note not in self.notes]

    def _once(self, key: Hashable, make: Callable[[], T]) -> T:
        if key not in self._cache:
            self._cache[key] = make()
        found: T = self._cache[key]
        return found
