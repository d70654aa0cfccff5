"""Click metrics on the lists of another policy: what knows users, and not only the logger, predicts those as well."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from ultr.data.dataset import BatchSource as Source
from ultr.errors import ConfigError
from ultr.evaluation.buckets import shared_vocabulary
from ultr.evaluation.estimate import Estimate
from ultr.evaluation.metrics import evaluate
from ultr.sessions import Sessions


@dataclasses.dataclass(frozen=True)
class Shift:
    """One metric of one model on several logs.

    Attributes:
      metric: its name.
      values: log -> value.
      differences: log -> value there - value on the first log; the logs are independent samples of sessions.
    """

    metric: str
    values: dict[str, Estimate]
    differences: dict[str, Estimate]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers for `json.dumps`."""
        return {
            "metric": self.metric,
            "values": {name: value.to_json() for name, value in self.values.items()},
            "differences": {name: value.to_json() for name, value in self.differences.items()},
        }


def across(
    model: Any,
    logs: Mapping[str, Source | Sessions],
    *,
    metrics: Sequence[str] = ("perplexity", "conditional_perplexity", "log_likelihood_per_document"),
    key: jax.Array | None = None,
    cluster: str = "session",
    batch_size: int = 4096,
) -> list[Shift]:
    """A model's metrics on several logs side by side: those of the policy it was trained on, and of others.

    Perplexity on the training policy's lists says how well a model predicts there, whether from users or from where
    the logger puts documents. On lists of another policy, best shuffled ones, only the first helps (Deffayet 2022).

    The logs must have the same ids: simulate them from one collection with different policies, as in
    `simulate.clicks(collection, policy=Policy("random"), ...)`, or prepare the second against the first
    (`prepare --vocabulary FIRST`) and open it by `ClickLog.open(path, vocabulary=first)`.

    Args:
      model: as for `evaluate`.
      logs: name -> log; the first is the one that the others are compared with.
      metrics: names that `evaluate` knows.
      key: for ranking metrics, which order equal scores at random; None: a fixed one.
      cluster: "session" or "query", as for `evaluate`.

    Returns:
      One row per metric (`perplexity/rank` is one per rank that all logs show). Differences have the standard error
      of independent logs, the root of the sum of squares, with an interval by Welch's degrees of freedom; where the
      logs share their queries and queries differ much, it is too large rather than too small.

    Raises:
      ConfigError: fewer than two logs, or as `evaluate`.
      DataError: logs with other ids, or as `evaluate`.
    """
    if len(logs) < 2:
        raise ConfigError(f"expected at least two logs to compare, found {len(logs)}")
    shared_vocabulary(*logs.values())
    key = jax.random.key(0) if key is None else key
    options: dict[str, Any] = {"metrics": metrics, "key": key, "cluster": cluster, "batch_size": batch_size}
    found = {name: evaluate(model, log, **options) for name, log in logs.items()}
    first, *others = found
    rows = []
    for metric, base in found[first].items():
        if all(metric in found[name] for name in others):
            values = {name: found[name][metric] for name in found}
            rows.append(Shift(metric, values, {name: _difference(values[name], base) for name in others}))
    return rows


def _difference(a: Estimate, b: Estimate) -> Estimate:
    squares = a.standard_error**2, b.standard_error**2
    each = sum(s**2 / max(e.count - 1, 1) for s, e in zip(squares, (a, b), strict=True))
    freedom = sum(squares) ** 2 / each if each > 0 else float(min(a.count, b.count) - 1)
    value = a.value - b.value if math.isfinite(a.value) or math.isfinite(b.value) else math.nan
    return Estimate.of(value, math.sqrt(sum(squares)), count=min(a.count, b.count), freedom=freedom)
