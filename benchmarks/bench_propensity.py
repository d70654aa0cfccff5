"""Compares estimators of propensities with the smallest variance that is possible, on four logging policies.

Position-based clicks with examination 1/rank and relevances between .05 and .85; 10 ranks, 60 queries of 10 documents,
whose fixed order is that of relevance with some noise (standard deviation .2).

  uniform           every session shows its documents in random order
  epsilon-greedy    one fixed order per query; one session in ten shows a random order
  epsilon, Zipf     the same, with queries of frequency 1/number
  adjacent swaps    a fixed order per query in which one pair of neighbours, drawn at random, is exchanged in every
                    other session

Efficiency is the Cramer-Rao variance of log propensity over the mean squared error, averaged over ranks 2 to 10;
coverage is that of the 95 % intervals; then come the mean standard error over the spread of the estimates, and the bias
of log propensity. The first three come with the Monte-Carlo standard error over replications (of efficiency and
ratio by a bootstrap over them). CTR and randomised are biased where lists are not shuffled.

    python benchmarks/bench_propensity.py
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import table, versions

from ultr.propensity import ESTIMATORS
from ultr.propensity.arm_counts import ArmCounts
from ultr.propensity.information import information_laplacian, relative_covariance

K, QUERIES = 10, 60
DESIGNS = ("uniform", "epsilon-greedy", "epsilon, Zipf", "adjacent swaps")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sessions", type=int, nargs="+", default=[12_000, 120_000])
    options.add_argument("--replications", type=int, default=200)
    options.add_argument("--designs", nargs="+", choices=DESIGNS, default=list(DESIGNS))
    options.add_argument("--methods", nargs="+", choices=list(ESTIMATORS), default=list(ESTIMATORS))
    options.add_argument("--replicates", type=int, default=100, help="of the bootstrap behind standard errors [100]")
    options.add_argument("--queries", type=int, default=QUERIES, help="[%(default)s]")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--json", type=Path, help="also write the result to this file")
    chosen = options.parse_args()
    rows = [
        [
            "design",
            "sessions",
            "method",
            "efficiency",
            "lowest, any rank",
            "coverage, %",
            "error / spread",
            "bias",
            "ms",
        ]
    ]
    result: dict[str, Any] = {}
    rng = np.random.default_rng(chosen.seed)
    relevance = rng.uniform(0.05, 0.85, (chosen.queries, K))
    order = np.argsort(-relevance - rng.normal(0, 0.2, relevance.shape), axis=1)
    relevance = np.take_along_axis(relevance, order, axis=1)
    for design in chosen.designs:
        for sessions in chosen.sessions:
            found = _replicate(chosen, design, sessions, relevance)
            result.setdefault(design, {})[str(sessions)] = found
            for method, x in found.items():
                cells = [
                    f"{x['efficiency']:.3f} ± {x['efficiency_error']:.3f}",
                    f"{x['lowest']:.3f}",
                    f"{100 * x['coverage']:.1f} ± {100 * x['coverage_error']:.1f}",
                    f"{x['ratio']:.3f} ± {x['ratio_error']:.3f}",
                    f"{x['bias']:+.4f}",
                    f"{1000 * x['seconds']:.0f}",
                ]
                if not np.isfinite(x["efficiency"]):  # a rank without a value
                    cells[:-1] = ["-"] * 5
                rows.append([design, f"{sessions:,}", method, *cells])
                print(" | ".join(rows[-1]), flush=True)
    print(table(rows))
    print(", ".join(f"{name} {value}" for name, value in versions().items()))
    if chosen.json:
        facts = {"options": {k: str(v) for k, v in vars(chosen).items()}, "versions": versions()}
        chosen.json.write_text(json.dumps(facts | {"designs": result}, indent=1) + "\n")


def _replicate(chosen: Any, design: str, sessions: int, relevance: np.ndarray) -> dict[str, Any]:
    """Estimates propensities from many logs of one design, by every method."""
    theta = 1 / np.arange(1, K + 1)
    taken: dict[str, dict[str, list[Any]]] = {
        method: {"log": [], "error": [], "covered": [], "seconds": []} for method in chosen.methods
    }
    bound = []
    for number in range(chosen.replications):
        counts = simulate(design, sessions, relevance, theta, np.random.default_rng([chosen.seed, sessions, number]))
        information = information_laplacian(counts, np.log(theta), np.log(relevance.ravel()))
        bound.append(np.diag(relative_covariance(information))[1:])
        for method, lists in taken.items():
            began = time.perf_counter()
            spec = ESTIMATORS[method]
            options = {"replicates": chosen.replicates, "seed": number} if spec.resampled else {}
            curve = spec.estimate(counts, **options)
            lists["seconds"].append(time.perf_counter() - began)
            low, high = curve.interval.T
            lists["covered"].append(((low <= theta) & (theta <= high))[1:])
            lists["log"].append(np.log(curve.value[1:] / theta[1:]))
            lists["error"].append(curve.log_standard_error[1:])
    variance = np.mean(bound, axis=0)
    return {method: _summarise(lists, variance, chosen.seed) for method, lists in taken.items()}


def _summarise(lists: dict[str, list[Any]], variance: np.ndarray, seed: int) -> dict[str, float]:
    """Computes efficiency, coverage, bias and time over replications."""
    off, error, covered = (np.array(lists[name], np.float64) for name in ("log", "error", "covered"))
    times = np.random.default_rng(seed).multinomial(len(off), np.full(len(off), 1 / len(off)), 200) / len(off)
    efficiency = variance / np.mean(off**2, axis=0)
    spread = np.std(off, axis=0, ddof=1)
    resampled = variance / (times @ off**2)
    spreads = np.sqrt(np.maximum(times @ off**2 - (times @ off) ** 2, 1e-300))
    each = covered.mean(1)
    return {
        "efficiency": float(efficiency.mean()),
        "efficiency_error": float(resampled.mean(1).std(ddof=1)),
        "lowest": float(efficiency.min()),
        "coverage": float(covered.mean()),
        "coverage_error": float(each.std(ddof=1) / np.sqrt(len(each))),
        "ratio": float(np.mean(error.mean(0) / spread)),
        "ratio_error": float((times @ error / spreads).mean(1).std(ddof=1)),
        "bias": float(off.mean()),
        "seconds": float(np.median(lists["seconds"])),
    }


def simulate(
    design: str, sessions: int, relevance: np.ndarray, theta: np.ndarray, rng: np.random.Generator
) -> ArmCounts:
    """Draws clicks and impressions of one log."""
    queries, k = relevance.shape
    frequency = 1 / np.arange(1, queries + 1) if design == "epsilon, Zipf" else np.ones(queries)
    query = rng.choice(queries, sessions, p=frequency / frequency.sum())
    shown = np.tile(np.arange(k), (sessions, 1))
    if design == "adjacent swaps":
        rows = np.flatnonzero(rng.random(sessions) < 0.5)
        upper = rng.integers(0, k - 1, len(rows))
        shown[rows, upper], shown[rows, upper + 1] = upper + 1, upper
    else:
        rows = np.flatnonzero(rng.random(sessions) < (1.0 if design == "uniform" else 0.1))
        shown[rows] = rng.permuted(shown[rows], axis=1)
    clicked = rng.random(shown.shape) < relevance[query[:, None], shown] * theta
    cell = ((query[:, None] * k + shown) * k + np.arange(k)).ravel()
    impressions = np.bincount(cell, minlength=queries * k * k)
    clicks = np.bincount(cell, clicked.ravel(), minlength=queries * k * k)
    some = np.flatnonzero(impressions)
    item_query = np.repeat(np.arange(queries), k)
    return ArmCounts(some // k, some % k, impressions[some].astype(float), clicks[some], item_query, k)


if __name__ == "__main__":
    main()
