"""Diagnoses three real logs, and estimates their propensities by every estimator, with 95 % intervals.

Errors of the two likelihoods are those over queries, robust to clicks that no position-based model explains; the last
row counts the ranks below rank 1 at which the interval of an estimator overlaps that of the conditional likelihood.

    python benchmarks/bench_real_logs.py --figures .
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import finish, folder, parser, table

from ultr import identifiability, plots
from ultr.data import ClickLog, collapse
from ultr.ingest.preparing import prepare
from ultr.propensity import ESTIMATORS, Propensities
from ultr.propensity.arm_counts import as_arm_counts

SHOWN = ("conditional-likelihood", "maximum-likelihood", "variance-weighted", "ctr")  # in the figures


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--figures", type=Path, help="folder for one figure per log")
    options.add_argument("--replicates", type=int, default=1000)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    result: dict[str, Any] = {}
    parts: list[str] = []
    with tempfile.TemporaryDirectory() as work:
        for name, log in _logs(chosen, Path(work)).items():
            counts = collapse(log, "rank")
            arm_counts = as_arm_counts(counts)
            report = identifiability.report(counts)
            found: dict[str, Propensities] = {}
            for method, spec in ESTIMATORS.items():
                resampling = {"replicates": chosen.replicates, "seed": chosen.seed}
                found[method] = spec.estimate(arm_counts, **(resampling if spec.resampled else {"errors": "query"}))
            result[name] = {"diagnosis": report.to_json()} | {m: p.to_json() for m, p in found.items()}
            parts += [f"## {name}\n", report.text(), "", table(_rows(found)), ""]
            parts += [f"{m}: {w}" for m, p in found.items() for w in p.warnings] + [""]
            if chosen.figures:
                plots.save_figure(plots.propensities({m: found[m] for m in SHOWN}), chosen.figures / f"{name}.png")
    finish(chosen, result, "\n".join(parts))


def _logs(chosen: Any, work: Path) -> dict[str, ClickLog]:
    yandex, clara, trec = (folder(chosen, name) for name in ("yandex-sample", "clara2", "trec-session-2014"))
    sources = {
        "yandex": ([yandex / "train.txt"], "yandex-sample"),
        "clara2": ([clara / "search_log.tsv"], "yandex"),
        "trec-session-2014": (
            [trec / f"{part}_per_query_quid.txt" for part in ("train", "valid", "test")],
            "trec-session",
        ),
    }
    logs = {}
    for name, (files, kind) in sources.items():
        log = prepare(files, work / name, format=kind)
        assert isinstance(log, ClickLog)
        logs[name] = log
    return logs


def _rows(found: dict[str, Propensities]) -> list[list[str]]:
    base = found["conditional-likelihood"]
    rows = [["rank", *found]]
    for i, rank in enumerate(base.rank.tolist()):
        rows.append([str(rank), *(_cell(curve, i) for curve in found.values())])
    agreeing = ["agree"]
    for curve in found.values():
        both = np.isfinite(curve.interval[1:]).all(1) & np.isfinite(base.interval[1:]).all(1)
        overlap = (curve.interval[1:, 0] <= base.interval[1:, 1]) & (base.interval[1:, 0] <= curve.interval[1:, 1])
        agreeing.append(f"{int((overlap & both).sum())} of {int(both.sum())}")
    return [*rows, agreeing]


def _cell(curve: Propensities, i: int) -> str:
    low, high = curve.interval[i]
    if not np.isfinite(curve.value[i]):
        return "-"
    if not np.isfinite(low + high):
        return f"{curve.value[i]:.2f}"
    return f"{curve.value[i]:.2f} ({low:.2f}-{high:.2f})"


if __name__ == "__main__":
    main()
