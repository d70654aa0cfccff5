"""Diagnoses three real logs, and estimates their propensities by every estimator, with 95 % intervals.

Errors of the two likelihoods are those over queries, robust to clicks that no position-based model explains; the last
row counts the ranks below rank 1 at which the interval of an estimator overlaps that of the conditional likelihood.

On TREC Session 2014 it also ranks the judged documents by shrunk click rates against the logged order, nDCG@10 by
cross-validation over queries: the strength of each fold is chosen by the sessions of the other queries.

    python benchmarks/bench_real_logs.py --figures .
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import finish, folder, parser, table

from ultr import identifiability, plots
from ultr.baselines import ShrunkCTR
from ultr.data import ClickLog, collapse
from ultr.data.dataset import Dataset
from ultr.evaluation import paired_difference, per_query
from ultr.ingest.preparing import prepare
from ultr.propensity import ESTIMATORS, Propensities
from ultr.propensity.arm_counts import as_arm_counts
from ultr.sessions import Sessions

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
        found, text = _shrunk(chosen, Path(work))
        result["shrunk-ctr"] = found
        parts += ["## shrunk-ctr on trec-session-2014\n", text]
    finish(chosen, result, "\n".join(parts))


class _Fixed:
    """Ranks by one given score per document id."""

    def __init__(self, scores: np.ndarray) -> None:
        self.scores = scores

    def score(self, sessions: Sessions) -> np.ndarray:
        return np.asarray(self.scores[np.asarray(sessions.features["document"])])


class _Without(Dataset):
    """The sessions of a log but those of some queries [Q], whose rows are masked."""

    def __init__(self, log: ClickLog, queries: np.ndarray) -> None:
        self.log, self.queries = log, queries

    def batches(self, batch_size: int, *, seed: int | None = None, share_features: bool = False) -> Any:
        for batch in self.log.batches(batch_size, seed=seed, share_features=share_features):
            yield batch.replace(mask=batch.mask & ~self.queries[np.asarray(batch.query)][:, None])


def _shrunk(chosen: Any, work: Path) -> tuple[dict[str, Any], str]:
    """Compares shrunk click rates with the logged order on the grades of TREC."""
    trec = folder(chosen, "trec-session-2014")
    grades: dict[tuple[str, str], list[float]] = {}
    for line in (trec / "human_label_for_GraphCM_per_query_quid.txt").read_text("utf-8").splitlines():
        fields = line.split("\t")
        for document, grade in zip(json.loads(fields[2]), json.loads(fields[-1]), strict=True):
            grades.setdefault((fields[1], str(document)), []).append(grade)
    rows = [f"{q},{d},{max(float(np.median(y)), 0)}" for (q, d), y in grades.items()]  # a few are judged twice
    (work / "grades.csv").write_text("\n".join(["query,document,label", *rows]) + "\n")
    files = [trec / f"{part}_per_query_quid.txt" for part in ("train", "valid", "test")]
    log = prepare(files, work / "graded", format="trec-session", labels=work / "grades.csv")
    assert isinstance(log, ClickLog)
    lists, counts = log.collection(), collapse(log, "rank")
    assert lists is not None
    size, folds = log.documents + 1, 5
    shown = np.bincount(counts.document, counts.impressions, size)
    rank = np.bincount(counts.document, counts.impressions * counts.rank, size) / np.maximum(shown, 1)
    key = jax.random.key(chosen.seed)

    def judge(scores: np.ndarray) -> np.ndarray:
        return per_query(_Fixed(scores), lists, metrics=["ndcg@10"], key=key)["ndcg@10"]

    fold = np.random.default_rng(chosen.seed).integers(0, folds, log.vocabulary.queries)
    room, scores, strengths = ShrunkCTR(documents=log.documents, ranks=log.ranks), np.zeros(size), []
    for i in range(folds):
        strengths.append(float(room.fitted(_Without(log, fold == i)).strength[...]))
        rate = np.asarray(room.fitted(log, strength=min(strengths[-1], 1e6)).rate[...])
        mine = np.append(False, fold[log.vocabulary.document_query[1:]] == i)
        scores[mine] = rate[mine]
    logged, value = judge(-np.where(shown > 0, rank, 1e3)), judge(scores)
    gain = paired_difference(value, logged)
    low, high = gain.interval
    text = (
        f"nDCG@10 over {len(logged):,} judged queries: logged order {np.nanmean(logged):.4f}, shrunk "
        f"{np.nanmean(value):.4f}, difference {gain.value:+.4f} ({low:+.4f} to {high:+.4f}); strengths {strengths}"
    )
    return {"difference": gain.to_json(), "strengths": strengths}, text


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
