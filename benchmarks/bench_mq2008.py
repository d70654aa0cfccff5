"""Debiasing on MQ2008, fold 1: simulated PBM clicks on the train queries, nDCG@10 on the test queries.

Per seed: 200,000 sessions with examination 1/rank, ranked by a linear ranker trained on 1 % of the queries with
Plackett-Luce randomness. The naive ranker and the PBM two-tower learn from the clicks, early stopping by the click
likelihood on held-out queries of the log; full information learns from the train grades, early stopping on the
validation grades. The test grades choose nothing.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import finish, folder, parser, table
from flax import nnx

from ultr import baselines, models, simulate, towers
from ultr.evaluation import Estimate, evaluate, paired_difference, per_query
from ultr.logs.prepare import prepare
from ultr.training import adam, fit

SIZE = 46
METHODS = ("logger", "naive pointwise", "PBM two-tower", "full information")


class Logger(nnx.Module):
    """The logging policy as a ranker, to see what it achieves by itself."""

    def __init__(self, weights: np.ndarray, mean: np.ndarray) -> None:
        self.weights, self.mean = nnx.Variable(jax.numpy.asarray(weights)), nnx.Variable(jax.numpy.asarray(mean))

    def score(self, sessions: Any) -> jax.Array:
        return (sessions.features["features"] - self.mean[...][None, None, :]) @ self.weights[...]


def mlp(scaler: towers.Scaler, seed: int) -> towers.MLP:
    return towers.MLP(SIZE, hidden=(64, 64), scaler=nnx.clone(scaler), rngs=nnx.Rngs(seed))


def one_seed(lists: dict[str, Any], seed: int, sessions: int, temperature: float, work: Path) -> dict[str, Any]:
    began = time.perf_counter()
    policy = simulate.Policy("linear", temperature=temperature, share=0.01)
    log = simulate.clicks(
        lists["train"],
        policy,
        simulate.user("pbm", grades=2, ranks=10),
        sessions=sessions,
        seed=seed,
        out=work / f"log-{seed}",
    )
    clicks = log.split({"train": 0.9, "valid": 0.1}, by="query", seed=seed)
    scaler = towers.Scaler(SIZE).fit(lists["train"])
    learn: dict[str, Any] = {"optimizer": adam(1e-3), "epochs": 30, "batch_size": 512, "seed": seed}
    naive = fit(baselines.NaivePointwise(relevance=mlp(scaler, seed)), clicks["train"], clicks["valid"], **learn)
    two_tower = fit(
        models.PBM(relevance=mlp(scaler, seed), examination=towers.RankTable(10)),
        clicks["train"],
        clicks["valid"],
        **learn,
    )
    full = fit(
        baselines.FullInformation(relevance=mlp(scaler, seed)),
        lists["train"],
        lists["vali"],
        **(learn | {"epochs": 100, "batch_size": 32, "patience": 10}),
    )
    # The policy's scores are linear in the features: solve for the weights, to rank the test queries with it.
    x, scores = lists["train"].features, policy.scores(lists["train"], seed=seed)
    weights = np.linalg.lstsq(x - x.mean(0), scores, rcond=None)[0]
    logger = Logger(weights.astype(np.float32), x.mean(0).astype(np.float32))
    rankers = dict(zip(METHODS, (logger, naive.model, two_tower.model, full.model), strict=True))
    key = jax.random.key(seed)
    found = {name: per_query(m, lists["test"], metrics=["ndcg@10"], key=key)["ndcg@10"] for name, m in rankers.items()}
    return {
        "ndcg@10": {name: values.tolist() for name, values in found.items()},
        "propensity": two_tower.model.propensity(10).tolist(),
        "best_epochs": [naive.best, two_tower.best, full.best],
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
    chosen = options.parse_args()
    data = folder(chosen, "mq2008-fold1")
    with tempfile.TemporaryDirectory() as work:
        lists = {n: prepare([data / f"{n}.txt"], Path(work) / n, format="letor") for n in ("train", "vali", "test")}
        runs = [one_seed(lists, s, chosen.sessions, chosen.temperature, Path(work)) for s in range(chosen.seeds)]
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
    text.append("best epochs (naive, two-tower, full): " + "; ".join(str(r["best_epochs"]) for r in runs))
    text.append(f"seconds per seed: {np.mean([r['seconds'] for r in runs]):.0f}")
    finish(chosen, {"runs": runs, "gap_closed": float(closed)}, "\n".join(text))


if __name__ == "__main__":
    main()
