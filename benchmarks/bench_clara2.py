"""Relevance learned from the CLARA2 click log against its relevance grades, by query frequency.

ShrunkCTR (click rates shrunk towards those of the ranks) counts the whole log. DCTR, PBM and DBN with one table entry
per (query, document) are trained on the log (a tenth of its sessions decides
when to stop and how strong the prior is) and rank the graded documents of each query. Beside them: the order in which
the log showed the documents (mean rank), and a random order (mean over ten keys).

Grade and rank are confounded in this log: grade 5 stands almost only at rank 1. A ranker that copies the logged order
does well here whatever it has learned about relevance.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import finish, fit_tables, folder, parser, table

from ultr.baselines import ShrunkCTR
from ultr.data import ClickLog
from ultr.evaluation import Estimate, paired_difference, per_query
from ultr.ingest.preparing import prepare
from ultr.sessions import Sessions
from ultr.training import solve

MODELS = ("dctr", "pbm", "dbn")
BUCKETS = ((1, 1), (2, 4), (5, 9), (10, 19), (20, 10**9))
METRIC = "ndcg@10"


class Fixed:
    """Ranks by one given score per document id."""

    def __init__(self, scores: np.ndarray) -> None:
        self.scores = scores

    def score(self, sessions: Sessions) -> np.ndarray:
        return self.scores[np.asarray(sessions.features["document"])]


def facts(log: Any) -> dict[str, np.ndarray]:
    """Sessions per query; impressions, mean rank per document."""
    queries, shown, ranks = np.zeros(log.queries), np.zeros(log.documents + 1), np.zeros(log.documents + 1)
    for batch in log.batches(8192):
        real = batch.mask.any(1)
        queries += np.bincount(batch.query[real], minlength=log.queries)
        ids = batch.features["document"][batch.mask]
        shown += np.bincount(ids, minlength=len(shown))
        ranks += np.bincount(ids, batch.position[batch.mask] + 1.0, minlength=len(shown))
    return {"queries": queries, "rank": ranks / np.maximum(shown, 1), "shown": shown}


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--l2", type=float, nargs="+", default=[0.1, 0.3, 1.0])
    chosen = options.parse_args()
    data = folder(chosen, "clara2")
    with tempfile.TemporaryDirectory() as work:
        log = prepare([data / "search_log.tsv"], Path(work) / "log", format="yandex", labels=data / "relevance.tsv")
        assert isinstance(log, ClickLog)
        graded, known = log.collection(), facts(log)
        assert graded is not None
        parts = log.split({"train": 0.9, "valid": 0.1}, by="session", seed=chosen.seed)
        key = jax.random.key(chosen.seed)
        values: dict[str, np.ndarray] = {}
        settings: dict[str, Any] = {}

        def judge(ranker: Any, key: Any = key) -> np.ndarray:
            found = per_query(ranker, graded, metrics=[METRIC], key=key)
            assert (found["query"] == graded.query).all()
            return found[METRIC]

        randoms = [judge(Fixed(np.zeros(log.documents + 1)), jax.random.fold_in(key, i)) for i in range(10)]
        values["random order"] = np.mean(randoms, axis=0)
        values["logged order"] = judge(Fixed(-known["rank"]))
        shrunk = solve(ShrunkCTR(documents=log.documents, ranks=log.ranks), log, method="counting")
        values["shrunk-ctr"] = judge(shrunk.model)
        settings["shrunk-ctr"] = {"strength": shrunk.history[0]["strength"]}
        for name in MODELS:
            l2, fitted = fit_tables(name, parts["train"], parts["valid"], strengths=chosen.l2, seed=chosen.seed)
            values[name] = judge(fitted.model)
            settings[name] = {"l2": l2, "epochs": fitted.best}
            order = np.argsort(known["rank"][1:])
            entry = np.asarray(fitted.model.score(_all(log.documents)))[0]
            settings[name]["correlation_with_rank"] = float(
                np.corrcoef(np.argsort(np.argsort(entry)), np.argsort(order))[0, 1]
            )
        frequency = known["queries"][graded.query]
        rows = [["ranker", "all", *(f"{a}-{b} sessions" if b < 10**9 else f"{a}+ sessions" for a, b in BUCKETS)]]
        buckets = [np.ones(len(frequency), bool)] + [(frequency >= a) & (frequency <= b) for a, b in BUCKETS]
        result: dict[str, Any] = {"settings": settings, METRIC: {}}
        for name, value in values.items():
            estimates = [Estimate.mean(value[b]) for b in buckets]
            result[METRIC][name] = [e.to_json() for e in estimates]
            rows.append([name, *(f"{e.value:.4f} ± {1.96 * e.standard_error:.4f}" for e in estimates)])
        counts = [Estimate.mean(values["random order"][b]).count for b in buckets]
        rows.append(["queries", *(f"{int(c):,}" for c in counts)])
        text = [table(rows), ""]
        for name in ("shrunk-ctr", *MODELS):
            d = paired_difference(values[name], values["logged order"])
            text.append(f"{name} - logged order: {d.value:+.4f} ({d.interval[0]:+.4f} to {d.interval[1]:+.4f}), paired")
        text += [f"{name}: {found}" for name, found in settings.items()]
        text += _confounding(log, graded, known)
    finish(chosen, result, "\n".join(text))


def _all(documents: int) -> Sessions:
    ids = np.arange(1, documents + 1, dtype=np.int32)[None, :]
    return Sessions(mask=np.ones(ids.shape, bool), position=np.zeros(ids.shape, np.int32), features={"document": ids})


def _confounding(log: Any, graded: Any, known: dict[str, np.ndarray]) -> list[str]:
    """Where the grades stand, and how many documents are ever shown at two ranks."""
    at = known["rank"][graded.document]
    lines = [f"graded documents: {len(at):,} of {log.documents:,}"]
    for grade in np.unique(graded.labels):
        here = graded.labels == grade
        lines.append(
            f"grade {grade:.0f}: {here.sum():,} documents, mean rank {at[here].mean():.2f}, "
            f"at rank 1 always {np.mean(at[here] == 1):.1%}"
        )
    low, high = np.full(log.documents + 1, 10**6), np.zeros(log.documents + 1)
    for batch in log.batches(8192):
        ids, rank = batch.features["document"][batch.mask], batch.position[batch.mask] + 1
        np.minimum.at(low, ids, rank)
        np.maximum.at(high, ids, rank)
    moved = (high > low)[1:]
    share = known["shown"][1:][moved].sum() / known["shown"].sum()
    return [*lines, f"documents shown at more than one rank: {moved.mean():.1%}, with {share:.1%} of the impressions"]


if __name__ == "__main__":
    main()
