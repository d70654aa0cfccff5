"""A position-based model over a large document table on one device: sessions per second, and the memory traffic.

Sessions are simulated on the device, block by block, and kept in the host's memory, from where training streams them:
what is timed is `fit` from host memory to the updated table. The last epoch gives the rate; those before it compile.

Traffic per session: for each of K documents its row (logit and two moments, read and written), its id and its click.
Its share of the bandwidth is against a copy on the same device, bytes read plus bytes written.

    python benchmarks/bench_gpu.py
    python benchmarks/bench_gpu.py --sessions 20000 --documents 1000 --batch 512
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import table, versions

from ultr import models, towers
from ultr.sessions import Sessions
from ultr.training import fit, lazy_adam

K = 10
_BYTES = K * (3 * 4 * 2 + 4 + 1)
_BLOCK = 1 << 20


class Simulated:
    """Sessions in host memory: documents of Zipf queries in the order of noisy relevance, PBM clicks."""

    def __init__(self, sessions: int, documents: int, seed: int) -> None:
        queries = documents // K
        if queries < 1:
            raise SystemExit(f"expected at least {K} documents, found {documents}")
        key = jax.random.key(seed)
        logit = jax.random.normal(jax.random.fold_in(key, 0), (queries, K)) * 1.3 - 1.2
        block = min(_BLOCK, sessions)

        def one(logit: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            of_query, of_order, of_click = jax.random.split(key, 3)
            # The inverse of the continuous analogue of Zipf's law, ln(q + 1) uniform: no table of Q sums is needed.
            uniform = jax.random.uniform(of_query, (block,))
            query = jnp.minimum(jnp.floor(jnp.exp(uniform * jnp.log(queries + 1.0))) - 1, queries - 1)
            query = jnp.maximum(query, 0).astype(jnp.int32)
            own = logit[query]
            order = jnp.argsort(-(own + jax.random.gumbel(of_order, own.shape)), axis=1).astype(jnp.int32)
            attraction = jax.nn.sigmoid(jnp.take_along_axis(own, order, 1))
            examination = jnp.arange(1, K + 1.0) ** -0.7
            clicked = jax.random.uniform(of_click, own.shape) < attraction * examination
            return query[:, None] * K + order + 1, clicked.astype(jnp.int8)

        simulate = jax.jit(one)
        self.ids = np.empty((sessions, K), np.int32)
        self.clicks = np.empty((sessions, K), np.int8)
        for number, start in enumerate(range(0, sessions, block)):
            n = min(block, sessions - start)
            ids, clicks = simulate(logit, jax.random.fold_in(key, number + 1))
            self.ids[start : start + n], self.clicks[start : start + n] = ids[:n], clicks[:n]

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, batch_size: int, *, seed: int | None = None) -> Iterator[Sessions]:
        """Whole batches; a seed shuffles their order (the sessions were drawn independently)."""
        starts = np.arange(0, len(self) - batch_size + 1, batch_size)
        if seed is not None:
            np.random.default_rng(seed).shuffle(starts)
        mask = np.ones((batch_size, K), bool)
        position = np.broadcast_to(np.arange(K, dtype=np.int32), mask.shape)
        for start in starts:
            rows = slice(start, start + batch_size)
            yield Sessions(
                mask=mask, position=position, features={"document": self.ids[rows]}, clicks=self.clicks[rows]
            )


def copy_bandwidth(megabytes: int) -> float:
    """Bytes read plus bytes written per second by a copy on the device, the best of ten."""
    copy = jax.jit(lambda x: x + 1)
    x = jnp.ones(megabytes * 250_000, jnp.float32)
    copy(x).block_until_ready()
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        copy(x).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return 2 * x.nbytes / best


def train(source: Any, documents: int, batch_size: int, epochs: int, seed: int) -> list[float]:
    """Seconds of each epoch."""
    model = models.PBM(relevance=towers.DocumentTable(documents), examination=towers.RankTable(K))
    fitted = fit(
        model, source, optimizer=lazy_adam(0.003), epochs=epochs, batch_size=batch_size, seed=seed, patience=None
    )
    return [epoch["seconds"] for epoch in fitted.history]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sessions", type=int, default=100_000_000)
    options.add_argument("--documents", type=int, default=5_000_000)
    options.add_argument("--batch", type=int, default=4096)
    options.add_argument("--epochs", type=int, default=3, help="the last one counts [%(default)s]")
    options.add_argument("--copy", type=int, default=1000, help="megabytes of the copy [%(default)s]")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--json", type=Path, help="also write the result to this file")
    chosen = options.parse_args()
    if chosen.batch > chosen.sessions:
        options.error("the batch is larger than the number of sessions")
    began = time.perf_counter()
    source = Simulated(chosen.sessions, chosen.documents, chosen.seed)
    simulated = time.perf_counter() - began
    bandwidth = copy_bandwidth(chosen.copy)
    seconds = train(source, chosen.documents, chosen.batch, chosen.epochs, chosen.seed)
    used = chosen.sessions // chosen.batch * chosen.batch
    rate = used / seconds[-1]
    device = jax.devices()[0]
    result: dict[str, Any] = {
        "device": device.device_kind,
        "host": platform.machine(),
        "sessions": used,
        "documents": chosen.documents,
        "batch": chosen.batch,
        "seed": chosen.seed,
        "simulation_seconds": simulated,
        "epoch_seconds": seconds,
        "sessions_per_second": rate,
        "bytes_per_session": _BYTES,
        "copy_bytes_per_second": bandwidth,
        "share_of_bandwidth": rate * _BYTES / bandwidth,
        "hours_for_a_billion_sessions": 1e9 / rate / 3600,
        "memory": getattr(device, "memory_stats", lambda: None)(),
        "versions": versions(),
    }
    rows = [
        ["device", "sessions", "ids", "batch", "sessions/s", "copy, GB/s", "share of it", "10^9 sessions"],
        [
            result["device"],
            f"{used:,}",
            f"{chosen.documents:,}",
            str(chosen.batch),
            f"{rate:,.0f}",
            f"{bandwidth / 1e9:,.0f}",
            f"{result['share_of_bandwidth']:.2%}",
            f"{1e9 / rate / 60:.1f} min",
        ],
    ]
    print(table(rows))
    print("\n" + ", ".join(f"{k} {v}" for k, v in result["versions"].items()))
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
