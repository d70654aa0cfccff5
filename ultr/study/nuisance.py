"""What a debiasing method is given beside the log it learns from: propensities, trust parameters, displays."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ultr.baselines import Displays
from ultr.data import ClickLog, Counts
from ultr.data.remembered import counts_of
from ultr.errors import ConfigError, DataError
from ultr.propensity import ESTIMATORS, Propensities
from ultr.propensity.affine import fit_affine
from ultr.propensity.arm_counts import as_arm_counts
from ultr.study.truth import true_affine, true_alpha, true_examination, why_no_examination
from ultr.text import did_you_mean, ranks_text

TRUE = "true"
DEFAULT_ESTIMATOR = "conditional-likelihood"
MOST_UNSURE = 1.0  # standard error of log(alpha), the median over ranks, beyond which trust is not corrected for

T = TypeVar("T")


def check_propensity_source(source: str) -> None:
    """Checks the name of a source of propensities: "true", an estimator, or a file that ends in .json.

    Raises:
      ConfigError: names the source and the known ones.
    """
    known = (TRUE, *ESTIMATORS)
    if source not in known and not source.endswith(".json"):
        hint = did_you_mean(source, known)
        raise ConfigError(
            f"unknown propensity '{source}'{hint}; known: {', '.join(known)}, or a file that ends in .json"
        )


class NuisanceEstimates:
    """Estimates of what a debiasing method needs beside the log, each made once, when it is first asked for.

    Args:
      log: the training log.
      source: where propensities come from: "true" (needs `truth`), an estimator's name in `ultr.propensity.ESTIMATORS`,
        or a .json file that `ultr propensity --json` wrote.
      truth: the true user of a simulated log, as in its metadata.
      counts: the log's counts by rank, where they were made already.
      shown: the log, or its counts, whose displays are counted, where that is more than the training log: what
        held-out queries were shown tells their weights, and nothing about relevance.
      sessions: gives what a logging policy is fitted to, where that is not the log itself: its distinct sessions.
      seed: decides the resampling of some estimators and the fit of `affine`.

    Raises:
      ConfigError: an unknown source.
    """

    def __init__(
        self,
        log: ClickLog,
        *,
        source: str = DEFAULT_ESTIMATOR,
        truth: Mapping[str, Any] | None = None,
        counts: Counts | None = None,
        shown: ClickLog | Counts | None = None,
        sessions: Callable[[], Any] | None = None,
        seed: int = 0,
    ) -> None:
        check_propensity_source(source)
        self.log, self.source, self.truth, self.seed = log, source, truth, seed
        self._counts, self._shown, self._sessions = counts, shown, sessions
        self._cache: dict[Hashable, Any] = {}

    @cached_property
    def counts(self) -> Counts:
        """Counts the log by rank."""
        return counts_of(self.log, "rank") if self._counts is None else self._counts

    @cached_property
    def propensity(self) -> np.ndarray:
        """Returns the [R] examination by rank, relative to rank 1 unless it is the truth; all finite and above 0.

        The truth is examination alone: what trust and noise add to clicks is in `affine`.

        Raises:
          ConfigError: the log does not identify it, the truth is not known, or a file has no propensities.
          DataError: fewer ranks than the log shows.
        """
        if self.source == TRUE:
            values = self._true_examination()
        elif self.source.endswith(".json"):
            values = read_propensities(self.source)
        else:
            values = self.estimate.value
            check_identified(self.estimate)
        return self._checked(values)

    @cached_property
    def estimate(self) -> Propensities:
        """Runs the estimator on the log."""
        estimator = ESTIMATORS[self.source if self.source in ESTIMATORS else DEFAULT_ESTIMATOR]
        return estimator.estimate(self.counts, **({"seed": self.seed} if estimator.resampled else {}))

    @cached_property
    def affine(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns ([R] alpha, [R] beta): P(click at k) = alpha_k relevance + beta_k (Vardasbi 2020).

        "true": of the simulated user and of the noise that was put on the clicks. Else `fit_trust` of the log's
        counts, since estimators of examination take what trust adds for relevance. Where the propensities come from a
        file, there is no trust in them: alpha is the propensity and beta 0.
        """
        if self.source == TRUE:
            alpha = true_alpha(self.truth)
            alpha, beta = true_affine(self.truth, self._true_examination() if alpha is None else alpha)
            return self._checked(alpha), beta[: self.log.ranks]
        if self.source.endswith(".json"):
            return self.propensity, np.zeros(len(self.propensity))
        return fit_trust(self.counts, seed=self.seed)

    @cached_property
    def displays(self) -> Displays:
        """Counts how often each document was shown at each rank."""
        return Displays.of(self.log if self._shown is None else self._shown)

    @property
    def sessions(self) -> Any:
        """Returns the sessions of the log, or its distinct ones with weights."""
        return self.log if self._sessions is None else self._sessions()

    def cached(self, key: Hashable, make: Callable[[], T]) -> T:
        """Returns what was made under a key, making it the first time."""
        if key not in self._cache:
            self._cache[key] = make()
        found: T = self._cache[key]
        return found

    def _true_examination(self) -> np.ndarray:
        examined = true_examination(self.truth)
        if examined is None:
            trusting = "" if true_alpha(self.truth) is None else "a method that takes both, such as affine-ips, or "
            raise ConfigError(
                "propensity 'true' needs a simulated log whose user has one known examination by rank; "
                f"{why_no_examination(self.truth)}. Choose {trusting}an estimator: {', '.join(ESTIMATORS)}"
            )
        return examined

    def _checked(self, values: np.ndarray) -> np.ndarray:
        """Cuts values by rank to the ranks of the log, which all need one above 0."""
        if lacking := _ranks_without(values):
            raise ConfigError(f"expected propensities above 0, found none at {ranks_text(lacking)} of {self.source}")
        if len(values) < self.log.ranks:
            raise DataError(
                f"expected propensities of {self.log.ranks} ranks, which the log shows, found {len(values)}",
                fix="Cut the lists, or give propensities of all ranks",
                field="rank",
            )
        return values[: self.log.ranks]


def check_identified(found: Propensities) -> None:
    """Refuses estimates that lack a rank.

    Raises:
      ConfigError: a rank without a propensity above 0, with the reasons.
    """
    if (reasons := unidentified(found)) is not None:
        raise ConfigError(
            f"{reasons}. Cut the lists above them, give propensities from elsewhere, or log with more variation (see "
            "`ultr diagnose`)"
        )


def unidentified(found: Propensities) -> str | None:
    """Says which ranks have no estimate above 0, and why; None where all have one."""
    if not (lacking := _ranks_without(found.value)):
        return None
    reasons = "; ".join(found.unsupported_lines()) or "no value"
    return f"unidentified: the {found.method} of this log gives {ranks_text(lacking)} no propensity above 0 ({reasons})"


def fit_trust(counts: Counts, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Estimates ([R] alpha, [R] beta) of trust bias from counts by rank (`ultr.propensity.affine`).

    Where the log has too few clicks to tell false clicks from relevance, alpha is the examination of the position-based
    model and beta 0.

    Raises:
      ConfigError: the log does not identify examination by rank.
      DataError: no clicks.
    """
    estimate = ESTIMATORS[DEFAULT_ESTIMATOR].estimate(counts)
    check_identified(estimate)
    found = fit_affine(as_arm_counts(counts), seed=seed)
    if found is None or not np.isfinite(found.log_error).all() or np.median(found.log_error[1:]) > MOST_UNSURE:
        largest = estimate.value.max()
        return estimate.value / largest, np.zeros(len(estimate.value))
    return found.scaled()


def read_propensities(path: str | Path) -> np.ndarray:
    """Reads the [R] examination by rank from a file with one curve that `ultr propensity --json` or `--out` wrote.

    Raises:
      ConfigError: no such file, or something else or several curves in it.
      DataError: ranks that are not 1, 2 and so on, each once, or a propensity that is no number.
    """
    how = "Write it with `ultr propensity LOG --json`"
    try:
        found = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. {how}") from error
    except (ValueError, RecursionError) as error:  # also text that is not UTF-8, and brackets in brackets
        raise ConfigError(f"{path}: not JSON: {error}. {how}") from error
    try:
        curves = found.get("propensities", [found])
        rows = [[(row["rank"], row["propensity"]) for row in curve["ranks"]] for curve in curves]
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: expected what `ultr propensity --json` writes, found something else. {how}"
        ) from error
    if len(rows) != 1:
        raise ConfigError(
            f"{path}: expected one curve, found {len(rows)}. Write one, with one --method and without --context"
        )
    ranks, values = [rank for rank, _ in rows[0]], [value for _, value in rows[0]]
    if not ranks or any(type(rank) is not int for rank in ranks) or sorted(ranks) != list(range(1, len(ranks) + 1)):
        given = ", ".join(map(str, ranks)) or "none"
        raise DataError(
            f"expected the ranks 1, 2 and so on, each once, found {given}", fix=how, file=path, field="rank"
        )
    for rank, value in rows[0]:
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise DataError(
                f"expected a number at rank {rank}, found {value!r}", fix=how, file=path, field="propensity"
            )
    try:
        return np.array([math.nan if x is None else float(x) for x in values])[np.argsort(ranks)]
    except OverflowError as error:
        raise DataError(
            "expected numbers, found one beyond all of them", fix=how, file=path, field="propensity"
        ) from error


def _ranks_without(values: np.ndarray) -> list[int]:
    """Lists the 1-based ranks that have no value above 0."""
    return [int(rank) for rank in np.flatnonzero(~((values > 0) & np.isfinite(values))) + 1]
