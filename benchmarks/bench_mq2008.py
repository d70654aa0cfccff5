"""Debiasing on MQ2008, fold 1: simulated PBM clicks on the train queries, nDCG@10 on the test queries.

Per seed: 200,000 sessions with examination 1/rank, ranked by a linear ranker trained on a share of the queries with
Plackett-Luce randomness. The naive ranker and the PBM two-tower learn from the clicks; their own loss on held-out
queries of the log chooses the epoch (and, with --tower choose, the tower). Full information learns from the train
grades, and its loss on the validation grades chooses. The test grades choose nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import finish, folder, parser, table
from flax import nnx

from ultr import baselines, models, simulate, towers
from ultr.evaluation import Estimate, evaluate, paired_difference, per_query
from ultr.ingest.preparing import prepare
from ultr.training import adam, fit

SIZE = 46
METHODS = ("logger", "naive pointwise", "PBM two-tower", "full information")


def candidates(scaler: towers.Scaler, seed: int) -> dict[str, Callable[[], Any]]:
    """Relevance towers to choose from, each method by its own validation loss."""
    return {
        "linear": lambda: towers.Linear(SIZE, scaler=nnx.clone(scaler), rngs=nnx.Rngs(seed)),
        "mlp 32": lambda: towers.MLP(SIZE, hidden=(32,), scaler=nnx.clone(scaler), rngs=nnx.Rngs(seed)),
    }


def best(
    build: Callable[[Any], Any], towers_: dict[str, Callable[[], Any]], train: Any, valid: Any, **learn: Any
) -> Any:
    """(name, fitted) of the tower with the lowest validation loss of the method."""
    runs = {name: fit(build(tower()), train, valid, **learn) for name, tower in towers_.items()}
    name = min(runs, key=lambda n: runs[n].history[runs[n].best - 1]["valid_loss"])
    return name, runs[name]


def one_seed(lists: dict[str, Any], seed: int, chosen: argparse.Namespace, work: Path) -> dict[str, Any]:
    began = time.perf_counter()
    policy = simulate.Policy("linear", temperature=chosen.temperature, share=chosen.share)
    user = simulate.user("pbm", grades=2, ranks=10)
    log = simulate.clicks(lists["train"], policy, user, sessions=chosen.sessions, seed=seed, out=work / f"log-{seed}")
    clicks = log.split({"train": 0.85, "valid": 0.15}, by="query", seed=seed)
    from_clicks = {"optimizer": adam(1e-3, tables=30), "epochs": 40, "batch_size": 1024, "seed": seed, "l2": 100.0}
    from_labels = {"optimizer": adam(1e-3), "epochs": 100, "batch_size": 32, "seed": seed, "patience": 10}
    tower = candidates(towers.Scaler(SIZE).fit(lists["train"]), seed)
    tower = tower if chosen.tower == "choose" else {chosen.tower: tower[chosen.tower]}
    picks = {
        "naive pointwise": best(
            lambda t: baselines.NaivePointwise(relevance=t), tower, clicks["train"], clicks["valid"], **from_clicks
        ),
        "PBM two-tower": best(
            lambda t: models.PBM(relevance=t, examination=towers.RankTable(10)),
            tower,
            clicks["train"],
            clicks["valid"],
            **from_clicks,
        ),
        "full information": best(
            lambda t: baselines.FullInformation(relevance=t), tower, lists["train"], lists["vali"], **from_labels
        ),
    }
    two_tower = picks["PBM two-tower"][1]
    logger: Any = policy.fitted(lists["train"], seed=seed)
    rankers = {"logger": logger} | {name: fitted.model for name, (_, fitted) in picks.items()}
    key = jax.random.key(seed)
    found = {name: per_query(m, lists["test"], metrics=["ndcg@10"], key=key)["ndcg@10"] for name, m in rankers.items()}
    return {
        "ndcg@10": {name: values.tolist() for name, values in found.items()},
        "propensity": two_tower.model.propensity(10).tolist(),
        "picked": {name: f"{tower}, epoch {fitted.best}" for name, (tower, fitted) in picks.items()},
        "clicks": log.metadata["clicks"],
        "shown_of_candidates": len({int(d) for b in log.batches(8192) for d in np.unique(b.features["document"])} - {0})
        / len(lists["train"].document),
        "log_likelihood": {
            "truth": log.metadata["truth"]["log_likelihood"],
            "two-tower": evaluate(two_tower.model, clicks["valid"], metrics=["log_likelihood"], key=key)[
                "log_likelihood"
            ].value,
        },
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--sessions", type=int, default=200_000)
    options.add_argument("--temperature", type=float, default=0.3)
    options.add_argument("--tower", choices=["linear", "mlp 32", "choose"], default="linear", help="of all methods")
    options.add_argument("--share", type=float, default=0.01, help="share of the queries that the logger is trained on")
    chosen = options.parse_args()
    data = folder(chosen, "mq2008-fold1")
    with tempfile.TemporaryDirectory() as work:
        lists = {n: prepare([data / f"{n}.txt"], Path(work) / n, format="letor") for n in ("train", "vali", "test")}
        runs = [one_seed(lists, s, chosen, Path(work)) for s in range(chosen.seeds)]
    # A query's value is its mean over seeds: the interval is over queries, the seeds stand beside it.
    mean = {n: np.mean([r["ndcg@10"][n] for r in runs], axis=0) for n in METHODS}
    rows = [["ranker", "nDCG@10 (95 % over queries)", *(f"seed {s}" for s in range(len(runs)))]]
    for name in METHODS:
        e = Estimate.mean(mean[name])
        each = [f"{np.nanmean(r['ndcg@10'][name]):.4f}" for r in runs]
        rows.append([name, f"{e.value:.4f} ({e.interval[0]:.4f} to {e.interval[1]:.4f})", *each])
    value = {n: np.nanmean(mean[n]) for n in METHODS}
    gap = value["full information"] - value["naive pointwise"]
    closed = (value["PBM two-tower"] - value["naive pointwise"]) / gap
    text = [table(rows), ""]
    for better, worse in (("PBM two-tower", "naive pointwise"), ("full information", "PBM two-tower")):
        d = paired_difference(mean[better], mean[worse])
        text.append(f"{better} - {worse}: {d.value:+.4f} ({d.interval[0]:+.4f} to {d.interval[1]:+.4f}), paired")
    text.append(f"share of the gap naive to full information that the two-tower closes: {closed:.0%}")
    curve = np.array([r["propensity"] for r in runs])
    text.append("learned examination, rank 2 to 10: " + " ".join(f"{x:.3f}" for x in curve.mean(0)[1:]))
    text.append("truth:                             " + " ".join(f"{1 / k:.3f}" for k in range(2, 11)))
    text += [f"{name}: " + "; ".join(r["picked"][name] for r in runs) for name in METHODS[1:]]
    shown = np.mean([r["shown_of_candidates"] for r in runs])
    text.append(f"share of the train documents that the log shows at all: {shown:.0%}")
    text.append(f"seconds per seed: {np.mean([r['seconds'] for r in runs]):.0f}")
    finish(chosen, {"runs": runs, "gap_closed": float(closed)}, "\n".join(text))


if __name__ == "__main__":
    main()
