"""Click metrics on the lists of several logging policies: a model of users predicts clicks on all of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from ultr.data.dataset import DatasetLike
from ultr.errors import ConfigError
from ultr.evaluation.contracts import ClickPredictor, Scorer
from ultr.evaluation.estimate import Estimate
from ultr.evaluation.evaluating import evaluate
from ultr.evaluation.frequency_buckets import check_shared_vocabulary
from ultr.files import JsonResult


@dataclasses.dataclass(frozen=True)
class PolicyShift(JsonResult):
    """One metric of one model on logs of several policies.

    Attributes:
      metric: name of the metric.
      values: log -> value.
      differences: log -> its value minus that of the first log; the logs are independent samples of sessions.
    """

    metric: str
    values: dict[str, Estimate]
    differences: dict[str, Estimate]


def across_policies(
    model: Scorer | ClickPredictor,
    logs: Mapping[str, DatasetLike],
    *,
    metrics: Sequence[str] = ("perplexity", "conditional_perplexity", "log_likelihood_per_document"),
    key: jax.Array | None = None,
    cluster: str = "session",
    batch_size: int = 4096,
) -> list[PolicyShift]:
    """Computes a model's metrics on the log of the policy it was trained on and on logs of other policies.

    Perplexity on lists of the training policy says how well a model predicts there, be it from how users behave or from
    where the logger puts documents. On lists of another policy, best shuffled ones, only the former helps (Deffayet
    2022).

    The logs must have the same ids: simulate them from one collection with different policies, as in
    `simulate.clicks(collection, policy=Policy("random"), ...)`, or prepare the second against the first
    (`prepare --vocabulary FIRST`) and open it by `ClickLog.open(path, vocabulary=first)`.

    Args:
      model: as for `evaluate`.
      logs: name -> log; the others are compared with the first.
      metrics: names that `evaluate` knows.
      key: orders equal scores at random, for ranking metrics; None: a fixed one.
      cluster: "session", "query" or "list", as for `evaluate`.

    Returns:
      One row per metric (`perplexity/rank` gives one per rank that all logs show). The standard error of a difference
      is that of independent logs, the root of the sum of squares, and its interval has Welch's degrees of freedom;
      where the logs share their queries and queries differ much, both are too large rather than too small.

    Raises:
      ConfigError: fewer than two logs, or as `evaluate`.
      DataError: logs whose ids mean different documents, or as `evaluate`.
    """
    if len(logs) < 2:
        raise ConfigError(f"expected at least two logs to compare, found {len(logs)}")
    check_shared_vocabulary(*logs.values())
    key = jax.random.key(0) if key is None else key
    options: dict[str, Any] = {"metrics": metrics, "key": key, "cluster": cluster, "batch_size": batch_size}
    found = {name: evaluate(model, log, **options) for name, log in logs.items()}
    first, *others = found
    rows = []
    for metric, base in found[first].items():
        if all(metric in found[name] for name in others):
            values = {name: found[name][metric] for name in found}
            rows.append(PolicyShift(metric, values, {name: _difference(values[name], base) for name in others}))
    return rows


def _difference(a: Estimate, b: Estimate) -> Estimate:
    squares = a.standard_error**2, b.standard_error**2
    each = sum(s**2 / max(e.count - 1, 1) for s, e in zip(squares, (a, b), strict=True))
    freedom = sum(squares) ** 2 / each if each > 0 else float(min(a.count, b.count) - 1)
    value = a.value - b.value if math.isfinite(a.value) or math.isfinite(b.value) else math.nan
    return Estimate.of(value, math.sqrt(sum(squares)), count=min(a.count, b.count), degrees_of_freedom=freedom)
