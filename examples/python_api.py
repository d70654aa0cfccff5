"""From a click log in a CSV file to a ranker and its numbers, in Python.

A shop logs what it showed and what was clicked. `prepare` turns the table into a click log; a PBM whose relevance tower
is a network over two features of the shown products learns from it; the result ranks products that nobody clicked yet.
"""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

import jax
import numpy as np
from flax import nnx

import ultr
from ultr import models, towers


def write_raw_log(path: Path, *, sessions: int, seed: int) -> None:
    """Stands in for your own log: quality decides clicks, the shop ranks by price, rank k is seen with 1/k."""
    rng = np.random.default_rng(seed)
    price, rating = rng.random(500), rng.random(500)
    quality = 1 / (1 + np.exp(4 - 8 * rating))
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["session", "query", "product", "rank", "click", "price", "rating"])
        for session in range(sessions):
            query = int(rng.integers(50))
            products = query * 10 + np.argsort(-price[query * 10 : query * 10 + 10] - rng.gumbel(size=10) * 0.3)
            for rank, product in enumerate(products[:5], start=1):
                click = int(rng.random() < quality[product] / rank)
                rows.writerow([session, query, product, rank, click, f"{price[product]:.4f}", f"{rating[product]:.4f}"])


def main(sessions: int = 5000) -> dict[str, ultr.Estimate]:
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "clicks.csv"
        write_raw_log(raw, sessions=sessions, seed=0)
        log = ultr.prepare(
            [raw], Path(folder) / "log", columns={"document": "product"}, features=["price", "rating"], seed=0
        )
        assert isinstance(log, ultr.ClickLog)
        parts = log.split({"train": 0.8, "valid": 0.1, "test": 0.1}, by="query", seed=0)

        scaler = towers.Scaler(2).fit(parts["train"])
        model = models.PBM(
            relevance=towers.MLP(2, hidden=(16,), scaler=scaler, rngs=nnx.Rngs(0)),
            examination=towers.RankTable(log.ranks),
        )
        fitted = ultr.fit(model, parts["train"], parts["valid"], epochs=30, batch_size=128, seed=0)
        print("examination relative to rank 1:", np.round(fitted.model.propensity(log.ranks), 2))

        found = ultr.evaluate(
            fitted.model, parts["test"], metrics=["log_likelihood", "perplexity"], key=jax.random.key(0)
        )
        for name, estimate in found.items():
            print(f"{name}: {estimate}")

        ultr.save(fitted.model, Path(folder) / "model")
        ranker = ultr.load(Path(folder) / "model")
        new = ultr.Sessions.from_lists(features={"features": [[[0.9, 0.1], [0.2, 0.95], [0.5, 0.5]]]})
        print("scores of three new products:", np.round(np.asarray(ranker.score(new))[0], 2))
        return found


if __name__ == "__main__":
    main()
