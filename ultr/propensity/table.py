"""`Propensities`: what every estimator returns."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ultr.errors import ConfigError

NORMAL = 1.959963984540054  # 97.5 % quantile
LEAST_ERROR = 1e-9  # of log(value): below it are only the errors of arithmetic
ONE_RANK = "one rank only: there is nothing to compare it with"
NO_VARIATION = "no interval: no variation to tell an error from, as where every impression was clicked"


@dataclasses.dataclass(frozen=True)
class Propensities:
    """Examination by rank relative to that of rank 1, with its uncertainty.

    Attributes:
      method: name of the estimator.
      rank: [K] int64, 1-based.
      value: [K] float64; 1 at rank 1, NaN where the log does not support an estimate.
      standard_error: [K] float64 of the value; 0 at rank 1, NaN where there is none.
      interval: [K, 2] float64, 95 %.
      impressions: [K] float64, those behind each estimate: of the documents that the estimator compares; where one rank
        is shown alone, all of it.
      unsupported: rank -> why it has no value, or a value without an interval, or an upper limit only.
      warnings: what to know before using the numbers.
      covariance: [K, K] float64 of log(value); NaN where there is none, None where the estimator gives no values
        of it.
      context: rank tables of one context each have its value here, by the name of the context.
    """

    method: str
    rank: np.ndarray
    value: np.ndarray
    standard_error: np.ndarray
    interval: np.ndarray
    impressions: np.ndarray
    unsupported: dict[int, str] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    covariance: np.ndarray | None = None
    context: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def log_standard_error(self) -> np.ndarray:
        """[K] standard error of log(value): about the relative error of the value."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.value > 0, self.standard_error / self.value, np.nan)

    def logits(self, largest: float = 1 - 1e-6) -> np.ndarray:
        """[K] logits of the values divided by the largest of them, for a frozen `RankTable`.

        Args:
          largest: the probability that the largest value stands for, below 1.

        Raises:
          ConfigError: a rank has no value, or none above 0.
        """
        bad = ~(self.value > 0)
        if bad.any():
            raise ConfigError(
                f"ranks {self.rank[bad].tolist()} have no propensity above 0: cut the lists above them, or use an "
                "estimator that supports them"
            )
        p = self.value / self.value.max() * largest
        return np.log(p) - np.log1p(-p)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers for `json.dumps`; what is not finite becomes None."""

        def plain(x: float) -> float | None:
            return float(x) if math.isfinite(x) else None

        rows = zip(self.rank, self.value, self.standard_error, self.interval, self.impressions, strict=True)
        out: dict[str, Any] = {
            "method": self.method,
            "ranks": [
                {
                    "rank": int(rank),
                    "propensity": plain(value),
                    "standard_error": plain(error),
                    "interval": [plain(low), plain(high)],
                    "impressions": float(impressions),
                    "unsupported": self.unsupported.get(int(rank)),
                }
                for rank, value, error, (low, high), impressions in rows
            ],
            "warnings": list(self.warnings),
        }
        return out | ({"context": self.context} if self.context else {})

    def by_reason(self) -> list[str]:
        """What is unsupported, in words: "ranks 3-4: never clicked"."""
        by_reason: dict[str, list[int]] = {}
        for rank, reason in self.unsupported.items():
            by_reason.setdefault(reason, []).append(rank)
        return [f"{ranks_text(ranks)}: {_of_several(why, len(ranks))}" for why, ranks in by_reason.items()]

    def rows(self) -> list[list[str]]:
        """The table for people: a head, then one row per rank."""

        def number(x: float) -> str:
            return f"{x:.4f}" if math.isfinite(x) else "-"

        out = [["rank", "propensity", "standard error", "95 % interval", "impressions", ""]]
        for i, rank in enumerate(self.rank.tolist()):
            low, high = self.interval[i]
            span = f"{low:.4f} to {high:.4f}" if math.isfinite(low) and math.isfinite(high) else "-"
            if self.value[i] == 0 and math.isfinite(high):
                span = f"< {high:.4f}"
            out.append(
                [
                    str(rank),
                    number(self.value[i]),
                    number(self.standard_error[i]),
                    span,
                    f"{self.impressions[i]:,.0f}",
                    self.unsupported.get(rank, ""),
                ]
            )
        return out


def alone(found: Propensities, shown: np.ndarray) -> Propensities:
    """A table as it is, or with what there is to say where one rank alone is shown.

    Args:
      shown: [K] impressions of the log.
    """
    if np.count_nonzero(shown) != 1:
        return found
    return dataclasses.replace(found, impressions=shown, warnings=(ONE_RANK, *found.warnings))


def ranks_text(ranks: np.ndarray | Sequence[int]) -> str:
    """Such as "rank 3", "ranks 3-7", "ranks 3, 5-7, 9", of ranks in increasing order; "no rank"."""
    ranks = np.asarray(ranks, np.int64)
    runs = np.split(ranks, np.flatnonzero(np.diff(ranks) != 1) + 1) if len(ranks) else []
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(parts)}" if parts else "no rank"


def _of_several(reason: str, ranks: int) -> str:
    """A reason that speaks of one rank, said of so many."""
    if ranks > 1:
        for one, several in (("connects it", "connects them"), ("connect it", "connect them"), ("tell it", "tell them"),
                             ("behind it", "behind them"), ("which it is compared", "which they are compared"),
                             ("an upper limit only", "upper limits only"),
                             ("what it was compared", "what they were compared")):  # fmt: skip
            reason = reason.replace(one, several)
    return reason


def log_interval(value: np.ndarray, log_error: np.ndarray) -> np.ndarray:
    """[K, 2] 95 % intervals of positive values, symmetric on the log scale; NaN where the error is not finite."""
    value, reach = np.asarray(value, np.float64), NORMAL * np.asarray(log_error, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        both = np.stack([value * np.exp(-reach), value * np.exp(reach)], axis=-1)
    return np.where(np.isfinite(reach)[..., None], both, np.nan)
