"""What rankers should reach, held against the runs of `bench_compare.py`: each goal with the logs that miss it.

Differences are paired over test queries, their values averaged over seeds first. A goal is judged by the estimate; its
95 % interval stands beside it, and a goal that the interval leaves open says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import table

from ultr.evaluation import Estimate, paired_difference
from ultr.study.runs import Run, StoredRuns

METRIC = "ndcg@10"
TWO_TOWERS = (
    "pbm", "trust", "dbn", "sdbn", "dcm", "ccm", "ubm",
    "additive", "additive-listwise", "pbm-conditional", "additive-conditional",
)  # fmt: skip
OWN_USERS = {"dbn": "dbn", "sdbn": "sdbn", "dcm": "dcm", "ccm": "ccm", "ubm": "ubm"}  # user -> its click model
SAFE = ", safe"  # the end of the name of a guarded method


class Values:
    """The metric per test query of every method on every log, averaged over the seeds."""

    def __init__(self, work: Path, plan: Any) -> None:
        self._stored, self._plan = StoredRuns(work), plan
        self.logs = [log.name for log in plan.logs]
        self.methods = [method.name for method in plan.methods]

    def of(self, log: str, method: str) -> np.ndarray | None:
        """Returns the values [Q]; None where no seed has been run."""
        spec = next(m for m in self._plan.methods if m.name == method)
        where = next(x for x in self._plan.logs if x.name == log) if spec.spec.learns_from != "grades" else None
        found = [self._stored.read_values(Run(where, spec, seed)) for seed in self._plan.seeds]
        values = [v[METRIC] for v in found if v is not None]
        return np.mean(values, axis=0) if values else None

    def difference(self, log: str, one: str, other: str) -> Estimate | None:
        """Compares two methods over the queries of the test lists."""
        if one not in self.methods or other not in self.methods:
            return None
        a, b = self.of(log, one), self.of(log, other)
        return None if a is None or b is None else paired_difference(a, b)

    def mean(self, log: str, method: str) -> float:
        values = None if method not in self.methods else self.of(log, method)
        return float("nan") if values is None else float(np.nanmean(values))

    def best(self, log: str, methods: Iterable[str]) -> str | None:
        """Names the method of the highest mean."""
        there = [m for m in methods if self.mean(log, m) == self.mean(log, m)]
        return max(there, key=lambda m: self.mean(log, m)) if there else None


class Found(NamedTuple):
    """A goal on a log: what is compared, the estimate, the least that it should be."""

    log: str
    what: str
    value: Estimate
    least: float


def own_users(values: Values) -> list[Found]:
    """1: every cascade-family two-tower is at least the PBM - .005 on its own users."""
    out = []
    for log in values.logs:
        model = OWN_USERS.get(log.split()[0])
        if model and (d := values.difference(log, model, "pbm")) is not None:
            out.append(Found(log, f"{model} - pbm", d, -0.005))
    return out


def against_ips(values: Values) -> list[Found]:
    """2: the best two-tower is at least IPS listwise - .002 on weak logs."""
    out = []
    for log in values.logs:
        best = values.best(log, TWO_TOWERS)
        if log.split()[1] == "weak" and best and (d := values.difference(log, best, "ips-listwise")) is not None:
            out.append(Found(log, f"{best} - ips-listwise", d, -0.002))
    return out


def never_below_the_logger(values: Values) -> list[Found]:
    """3: a guarded method is never more than .002 below the logger."""
    out = []
    for log in values.logs:
        for method in (m for m in values.methods if m.endswith(SAFE)):
            if (d := values.difference(log, method, "logger")) is not None:
                out.append(Found(log, f"{method} - logger", d, -0.002))
    return out


def guard_costs_little(values: Values) -> list[Found]:
    """3: a guarded method is at most .005 behind the unguarded one where that is above the logger."""
    out = []
    for log in values.logs:
        for method in (m for m in values.methods if m.endswith(SAFE)):
            free = method.removesuffix(SAFE)
            won = values.difference(log, free, "logger")
            if won is not None and won.value > 0 and (d := values.difference(log, method, free)) is not None:
                out.append(Found(log, f"{method} - {free}", d, -0.005))
    return out


def automatic_choice(values: Values) -> list[Found]:
    """4: `auto` is at most .01 behind the best single method by the test grades."""
    singles = [m for m in values.methods if m not in ("auto", "full-information", "logger", "random")]
    out = []
    for log in values.logs:
        best = values.best(log, [m for m in singles if "true" not in m])
        if best and (d := values.difference(log, "auto", best)) is not None:
            out.append(Found(log, f"auto - {best}", d, -0.01))
    return out


GOALS: tuple[Callable[[Values], list[Found]], ...] = (
    own_users, against_ips, never_below_the_logger, guard_costs_little, automatic_choice
)  # fmt: skip


def gap_closed(values: Values) -> list[list[str]]:
    """2: tabulates the share of the way from the logger to full information that the best two-tower closes."""
    rows = [["log", "best two-tower", "logger", "two-tower", "full information", "gap closed", "goal"]]
    for log in values.logs:
        user, logger, sessions = log.split()
        best = values.best(log, TWO_TOWERS)
        if logger != "weak" or user not in ("pbm", "dbn") or int(sessions) < 100_000 or best is None:
            continue
        start, reached, end = (values.mean(log, m) for m in ("logger", best, "full-information"))
        goal = 0.95 if int(sessions) >= 1_000_000 else 0.8
        share = (reached - start) / (end - start)
        rows.append(
            [log, best, f"{start:.3f}", f"{reached:.3f}", f"{end:.3f}", f"{share:.0%}",
             f"{goal:.0%} {'met' if share >= goal else 'MISSED'}"]
        )  # fmt: skip
    return rows


def goals(work: Path, plan: Any) -> list[str]:
    """Writes each goal with the number of logs that meet it and the rows that do not."""
    values, text = Values(work, plan), list[str]()
    for goal in GOALS:
        found = goal(values)
        missed = [f for f in found if f.value.value < f.least]
        text.append(f"{(goal.__doc__ or '').strip()} Met on {len(found) - len(missed)} of {len(found)} logs.")
        if missed:
            rows = [["log", "difference", "at least", "found (95 %)", ""]]
            for f in missed:
                low, high = f.value.interval
                chance = "within chance" if high >= f.least else "MISSED"
                rows.append(
                    [f.log, f.what, f"{f.least:+.3f}", f"{f.value.value:+.4f} ({low:+.4f} to {high:+.4f})", chance]
                )
            text += ["", table(rows)]
        text.append("")
    if len(shares := gap_closed(values)) > 1:
        text += [table(shares), ""]
    return text
