"""`Propensities`: the result of every estimator."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from ultr.errors import ConfigError
from ultr.files import json_values
from ultr.text import ranks_text

NORMAL_QUANTILE = 1.959963984540054  # 97.5 %
SMALLEST_LOG_ERROR = 1e-9  # standard errors of log(value) below it are rounding errors
# Upper end of the 95 % interval of a Poisson mean whose count is 0: -log(.025).
ZERO_COUNT_LIMIT = 3.688879454113936
ONE_RANK = "one rank only: there is nothing to compare it with"
NO_CLICK_VARIATION = "no interval: clicks do not vary, as where every impression was clicked"
UPPER_LIMIT_ONLY = "never clicked: an upper limit only"


@dataclasses.dataclass(frozen=True)
class Propensities:
    """Examination by rank relative to that of rank 1, with its uncertainty.

    Attributes:
      method: name of the estimator.
      rank: [K] int64, 1-based.
      value: [K] float64; 1 at rank 1, NaN where the log does not support an estimate.
      standard_error: [K] float64, of the value; 0 at rank 1, NaN where there is none.
      interval: [K, 2] float64, 95 % intervals.
      impressions: [K] float64, the impressions behind each estimate: those of the documents that the estimator
        compares; where the log shows one rank only, all of them.
      unsupported: rank -> why it has no value, or a value without an interval, or an upper limit only.
      warnings: what to know before using the numbers.
      covariance: [K, K] float64, of log(value); NaN where there is none, None where the estimator computes none.
      context: the value of each context column by its name, for a curve of one context.
      shown: [K] float64, impressions of the log, compared or not; None: the same as `impressions`.
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
    context: dict[str, str] = dataclasses.field(default_factory=dict)
    shown: np.ndarray | None = None

    @property
    def log_standard_error(self) -> np.ndarray:
        """[K] standard error of log(value), which is about the relative error of the value."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.value > 0, self.standard_error / self.value, np.nan)

    def logits(self, largest: float = 1 - 1e-6) -> np.ndarray:
        """Computes the logits of the values divided by the largest of them, for a frozen `RankTable`: [K].

        Args:
          largest: the probability that the largest value becomes, below 1.

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
        return np.asarray(np.log(p) - np.log1p(-p))

    def to_json(self) -> dict[str, Any]:
        """Converts to numbers, lists and dictionaries for `json.dumps`; numbers that are not finite become None.

        `impressions` of a rank are those of the log, `compared` those behind the estimate.
        """
        shown = self.impressions if self.shown is None else self.shown
        columns = zip(self.rank, self.value, self.standard_error, self.interval, shown, self.impressions, strict=True)
        out: dict[str, Any] = {
            "method": self.method,
            "ranks": [
                {
                    "rank": rank,
                    "propensity": value,
                    "standard_error": error,
                    "interval": interval,
                    "impressions": impressions,
                    "compared": compared,
                    "unsupported": self.unsupported.get(int(rank)),
                }
                for rank, value, error, interval, impressions, compared in columns
            ],
            "warnings": self.warnings,
        }
        converted: dict[str, Any] = json_values(out | ({"context": self.context} if self.context else {}))
        return converted

    def unsupported_lines(self) -> list[str]:
        """Lists the ranks that are unsupported, by reason: "ranks 3-4: never clicked"."""
        ranks_of: dict[str, list[int]] = {}
        for rank, reason in self.unsupported.items():
            ranks_of.setdefault(reason, []).append(rank)
        return [
            f"{ranks_text(ranks)}: {reason if len(ranks) == 1 else _plural(reason)}"
            for reason, ranks in ranks_of.items()
        ]

    def table_rows(self) -> list[list[str]]:
        """Formats the curve as a table: its head, then one row per rank."""

        def number(x: float) -> str:
            return f"{x:.4f}" if math.isfinite(x) else "-"

        out = [["rank", "propensity", "standard error", "95 % interval", "impressions", "compared", ""]]
        shown = self.impressions if self.shown is None else self.shown
        for i, rank in enumerate(self.rank.tolist()):
            low, high = self.interval[i]
            interval = f"{low:.4f} to {high:.4f}" if math.isfinite(low) and math.isfinite(high) else "-"
            if self.value[i] == 0 and math.isfinite(high):
                interval = f"< {high:.4f}"
            out.append(
                [
                    str(rank),
                    number(self.value[i]),
                    number(self.standard_error[i]),
                    interval,
                    f"{shown[i]:,.0f}",
                    f"{self.impressions[i]:,.0f}",
                    self.unsupported.get(rank, ""),
                ]
            )
        return out


def warn_of_one_rank(found: Propensities, shown: np.ndarray) -> Propensities:
    """Adds the impressions of the log, and a warning where it shows one rank only.

    Args:
      shown: [K] impressions of the log.
    """
    if np.count_nonzero(shown) != 1:
        return dataclasses.replace(found, shown=shown)
    return dataclasses.replace(found, shown=shown, impressions=shown, warnings=(ONE_RANK, *found.warnings))


def log_scale_interval(value: np.ndarray, log_error: np.ndarray) -> np.ndarray:
    """Computes 95 % intervals that are symmetric on the log scale: [K, 2], NaN where the error is not finite.

    Args:
      value: [K], positive.
      log_error: [K] standard error of log(value).
    """
    value, reach = np.asarray(value, np.float64), NORMAL_QUANTILE * np.asarray(log_error, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        both = np.stack([value * np.exp(-reach), value * np.exp(reach)], axis=-1)
    return np.where(np.isfinite(reach)[..., None], both, np.nan)


def _plural(reason: str) -> str:
    """Changes a reason about one rank to one about several."""
    for one, several in (
        ("connects it", "connects them"),
        ("connect it", "connect them"),
        ("behind it", "behind them"),
        ("which it is compared", "which they are compared"),
        ("an upper limit only", "upper limits only"),
        ("its documents", "their documents"),
        ("give it", "give them"),
    ):
        reason = reason.replace(one, several)
    return reason
