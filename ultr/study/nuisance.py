"""What a weighted method is given beside the log it learns from: propensities, trust and how often what was shown."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from ultr import models, towers
from ultr.data import ClickLog, Counts, collapse
from ultr.errors import ConfigError, DataError
from ultr.propensity import ESTIMATORS, Propensities
from ultr.training import fit

TRUE = "true"
DEFAULT = "conditional-likelihood"
TRUST_STEPS = 3000  # that bring its tables to where they hardly move, whatever the size of the log


class Harvest:
    """Estimates from one training log, each made when it is first asked for, and then kept.

    Args:
      log: the training log.
      source: where propensities come from: "true" (needs `truth`), an estimator's name in `ultr.propensity.ESTIMATORS`,
        or a .json file that `ultr propensity --json` wrote.
      truth: what is known of a simulated log, as in its metadata.
      counts: the log's counts by rank, where they were made already.
      shown: the log that `displays` counts, where that is more than the training log: what held-out queries were shown
        says how to weigh them, and nothing of what to learn.
      lists: what a logging policy is fitted to, where that is not the log itself: its distinct sessions.
      seed: decides the resampling of some estimators and the fit of `affine`.
    """

    def __init__(
        self,
        log: ClickLog,
        *,
        source: str = DEFAULT,
        truth: Mapping[str, Any] | None = None,
        counts: Counts | None = None,
        shown: ClickLog | None = None,
        lists: Callable[[], Any] | None = None,
        seed: int = 0,
    ) -> None:
        if source != TRUE and source not in ESTIMATORS and not source.endswith(".json"):
            raise ConfigError(
                f"unknown propensity '{source}'; known: {TRUE}, {', '.join(ESTIMATORS)}, or a file that ends in .json"
            )
        self.log, self.source, self.truth, self.seed = log, source, truth, seed
        self._counts, self._shown, self._lists = counts, shown, lists
        self._kept: dict[Any, Any] = {}

    @cached_property
    def counts(self) -> Counts:
        """The log's counts by rank."""
        return collapse(self.log, "rank") if self._counts is None else self._counts

    @cached_property
    def propensity(self) -> np.ndarray:
        """[R] examination by rank of the log, relative to rank 1 unless it is the truth; all finite and above 0.

        The truth is examination alone: what trust and noise add to clicks is in `affine`.

        Raises:
          ConfigError: the log does not identify it, the truth is not known, or a file has no propensities.
          DataError: fewer ranks than the log shows.
        """
        if self.source == TRUE:
            values = self._true()
        elif self.source.endswith(".json"):
            values = read_propensities(self.source)
        else:
            values = self.estimate.value
            check_identified(self.estimate)
        return self._of_ranks(values)

    @cached_property
    def estimate(self) -> Propensities:
        """What the estimator says of the log."""
        estimator = ESTIMATORS[self.source if self.source in ESTIMATORS else DEFAULT].estimate
        seeded = self.source not in ("conditional-likelihood", "maximum-likelihood")
        return estimator(self.counts, **({"seed": self.seed} if seeded and self.source in ESTIMATORS else {}))

    @cached_property
    def affine(self) -> tuple[np.ndarray, np.ndarray]:
        """([R] alpha, [R] beta): P(click at k) = alpha_k relevance + beta_k (Vardasbi 2020).

        "true": of the simulated user and of the noise that was put on the clicks. Else those of a `TrustPBM` with one
        relevance per document, fitted to the log's counts, since trust needs a model: estimators of examination take
        what it adds for relevance. Where the propensities come from a file, there is no trust in them: alpha is the
        propensity and beta 0.
        """
        if self.source == TRUE:
            truth, given = self.truth or {}, true_alpha(self.truth)
            examined = self._true() if given is None else given
            trust, noise = truth.get("trust", {}), truth.get("noise", {})
            flip, extra = noise.get("flip", 0.0), noise.get("random_clicks", 0.0)
            kept = (1 - 2 * flip) * (1 - extra)  # of the difference that a click of the user makes
            alpha = kept * examined
            beta = kept * np.asarray(trust.get("beta", np.zeros(len(examined))), np.float64)
            return self._of_ranks(alpha), beta[: self.log.ranks] + extra * (1 - flip) + (1 - extra) * flip
        if self.source.endswith(".json"):
            return self.propensity, np.zeros(len(self.propensity))
        return fit_trust(self.counts, seed=self.seed)

    @cached_property
    def displays(self) -> Any:
        """How often each document was shown at each rank (`ultr.baselines.Displays`)."""
        from ultr.baselines import Displays

        return Displays.of(self.log if self._shown is None else self._shown)

    @property
    def lists(self) -> Any:
        """The sessions of the log."""
        return self.log if self._lists is None else self._lists()

    def keep(self, key: Any, make: Callable[[], Any]) -> Any:
        """What was made under a key, made once."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def _true(self) -> np.ndarray:
        examined = true_examination(self.truth)
        if examined is None:
            trusting = "" if true_alpha(self.truth) is None else "a method that takes both, such as affine-ips, or "
            raise ConfigError(
                "propensity 'true' needs a simulated log whose user has one known examination by rank; "
                f"{_why(self.truth)}. Choose {trusting}an estimator: {', '.join(ESTIMATORS)}"
            )
        return examined

    def _of_ranks(self, values: np.ndarray) -> np.ndarray:
        """Those of the ranks of the log, checked."""
        if _without(values):
            raise ConfigError(
                f"expected propensities above 0, found none at ranks {_list(_without(values))} of {self.source}"
            )
        if len(values) < self.log.ranks:
            raise DataError(
                f"expected propensities of {self.log.ranks} ranks, which the log shows, found {len(values)}",
                fix="Cut the lists, or give propensities of all ranks",
                field="rank",
            )
        return values[: self.log.ranks]


def true_examination(truth: Mapping[str, Any] | None) -> np.ndarray | None:
    """[R] examination by rank of a simulated user, as the metadata of its log has it; None where no one curve is true.

    So it is of users without such a curve, of mixtures, of readers from the last rank upwards, and where the curve
    changes with a context or in the course of the log. Noise leaves it as it is.
    """
    return None if _why(truth) else np.asarray((truth or {})["examination"], np.float64)


def true_alpha(truth: Mapping[str, Any] | None) -> np.ndarray | None:
    """[R] alpha by rank of a simulated user with trust bias, without noise; None without it or where no one is true."""
    trust = (truth or {}).get("trust")
    return None if trust is None or _unsteady(truth) else np.asarray(trust["alpha"], np.float64)


def _why(truth: Mapping[str, Any] | None) -> str:
    """Why there is no one true examination by rank; empty where there is one."""
    truth = truth or {}
    if (why := _unsteady(truth)) or truth.get("examination") is not None:
        return why
    return "this one has trust (alpha and beta) and none apart from it" if "trust" in truth else "this one has none"


def _unsteady(truth: Mapping[str, Any] | None) -> str:
    """Why the curve of the user is not that of all its sessions; empty where it is, or where it has none."""
    truth = truth or {}
    if "components" in truth:
        return "this one is a mixture of users"
    if truth.get("examination") is None and "trust" not in truth:
        return ""
    if truth.get("bottom_up"):
        return "this one reads from the last rank upwards, which is another in lists of another length"
    for name, curves in {"drift": truth.get("drift", {}), **truth.get("contexts", {})}.items():
        if any(curve.get("examination") != truth.get("examination") for curve in curves.values()):
            return "that of this one drifts" if name == "drift" else f"that of this one depends on the context '{name}'"
    return ""


def check_identified(found: Propensities) -> None:
    """Refuses estimates that lack a rank.

    Raises:
      ConfigError: a rank without a propensity above 0, with the reasons.
    """
    lacking = _without(found.value)
    if lacking:
        reasons = "; ".join(found.unsupported_lines()) or "no value"
        raise ConfigError(
            f"unidentified: the {found.method} of this log gives ranks {_list(lacking)} no propensity above 0 "
            f"({reasons}). Cut the lists above them, give propensities from elsewhere, or log with more "
            "variation (see `ultr diagnose`)"
        )


def fit_trust(counts: Counts, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """([R] alpha, [R] beta) of a TrustPBM with a table of relevance, alpha_1 + beta_1 at its fitted scale.

    Raises:
      ConfigError: the log does not tell how much ranks are examined, so that the fit would be its prior; or the fit
        says that clicks do not depend on relevance at some rank.
      DataError: no clicks.
    """
    check_identified(ESTIMATORS[DEFAULT].estimate(counts))
    tables = {name: towers.RankTable(counts.ranks) for name in ("examination", "trust_relevant", "trust_irrelevant")}
    tables["trust_irrelevant"] = towers.RankTable(counts.ranks, initial=np.full(counts.ranks, -2.0))
    model = models.TrustPBM(relevance=towers.DocumentTable(counts.documents, rngs=nnx.Rngs(seed)), **tables)
    size = min(max(1 << (max(len(counts) // 20, 1).bit_length() - 1), 64), 2048)
    epochs = -(-TRUST_STEPS * size // max(len(counts), size))
    fitted = fit(model, counts, epochs=epochs, batch_size=size, seed=seed, l2=1.0, progress=False).model

    def chance(name: str) -> np.ndarray:
        logit = np.asarray(getattr(fitted, name).table[...], np.float64)
        return 1 / (1 + np.exp(-logit))

    examined, relevant, irrelevant = (chance(name) for name in tables)
    alpha, beta = examined * (relevant - irrelevant), examined * irrelevant
    bad = np.flatnonzero(~(alpha > 1e-3)) + 1
    if len(bad):
        raise ConfigError(
            f"unidentified: at ranks {_list(bad)} the trust model fitted to this log sees no effect of relevance on "
            "clicks (alpha is 0). Cut the lists above them, or give propensities without trust"
        )
    return alpha, beta


def read_propensities(path: str | Path) -> np.ndarray:
    """[R] examination by rank of a file with one curve that `ultr propensity --json` or `--out` wrote.

    Raises:
      ConfigError: no such file, or something else or several curves in it.
      DataError: ranks that are not 1, 2 and so on, each once, or a propensity that is no number.
    """
    how = "Write it with `ultr propensity LOG --json`"
    try:
        found = json.loads(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. {how}") from error
    except ValueError as error:
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
        found = ", ".join(map(str, ranks)) or "none"
        raise DataError(
            f"expected the ranks 1, 2 and so on, each once, found {found}", fix=how, file=path, field="rank"
        )
    for rank, value in rows[0]:
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise DataError(
                f"expected a number at rank {rank}, found {value!r}", fix=how, file=path, field="propensity"
            )
    return np.array([math.nan if x is None else float(x) for x in values])[np.argsort(ranks)]


def _without(values: np.ndarray) -> list[int]:
    """The 1-based ranks that have no value above 0."""
    return (np.flatnonzero(~((values > 0) & np.isfinite(values))) + 1).tolist()


def _list(ranks: Sequence[int] | Mapping[int, Any] | np.ndarray) -> str:
    return ", ".join(str(int(rank)) for rank in ranks)
