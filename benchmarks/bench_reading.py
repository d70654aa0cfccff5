"""How fast a stored click log comes as batches, against what the machine and a peer do with the same sessions.

The log is synthetic: ten documents in a random order, queries after Zipf's law, clicks by a position-based model.
Measured in alternating rounds, each reading warm files whole:

- ours, shuffled and in stored order;
- a limit that makes no batches: pyarrow reads the document and click columns of the same files with all threads;
- a physical limit: numpy copies the same documents and clicks in memory;
- CLAX's loader, where `--clax` or $ULTR_CLAX names a Python interpreter that has it: the same sessions in its own
  format, through its dataset and collator and torch's DataLoader with 0 and 2 workers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import finish, parser, table

from ultr.data import ClickLog, LogWriter

K = 10  # documents of a query, all of them shown
CHUNK = 1 << 16  # sessions written at once

# Reads rounds from stdin, one line each: the number of workers. Answers with sessions and seconds.
PEER = """
import json, sys, time, importlib.metadata
from torch.utils.data import DataLoader
from clax.datasets import YandexDataset
folder, sessions, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
print(json.dumps({n: importlib.metadata.version(n) for n in ("clax-models", "torch", "numpy", "pyarrow")}), flush=True)
for line in sys.stdin:
    data = YandexDataset(dataset_dir=folder, session_range=(0, sessions))
    loader = DataLoader(data, batch_size=size, collate_fn=data.collate_fn, num_workers=int(line))
    began = time.perf_counter()
    seen = sum(len(batch["clicks"]) for batch in loader)
    print(json.dumps([seen, time.perf_counter() - began]), flush=True)
"""


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--sessions", type=int, default=1_000_000)
    options.add_argument("--queries", type=int, default=10_000)
    options.add_argument("--batch-size", type=int, default=4096)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument(
        "--clax", default=os.environ.get("ULTR_CLAX"), help="a Python interpreter with CLAX [$ULTR_CLAX]"
    )
    options.add_argument("--peer-sessions", type=int, default=200_000, help="how many of them CLAX reads per round")
    chosen = options.parse_args()
    peer_sessions = min(chosen.peer_sessions, chosen.sessions)
    with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
        log, ids, clicks = make(Path(work), chosen.sessions, chosen.queries, chosen.seed)
        ways: dict[str, Callable[[int], tuple[int, float]]] = {
            "shuffled": lambda i: stream(log, chosen.batch_size, chosen.seed + i),
            "stored order": lambda i: stream(log, chosen.batch_size, None),
            "pyarrow, documents and clicks": lambda i: columns(log),
            "numpy copy": lambda i: copy(ids, clicks),
        }
        run, peer = clax(stack, chosen.clax, Path(work) / "peer", peer_sessions, chosen.batch_size)
        if peer is None:
            print("CLAX skipped: --clax or ULTR_CLAX names no Python interpreter that has it", file=sys.stderr)
        else:
            ways |= {f"CLAX, {workers} workers": partial(run, workers) for workers in (0, 2)}
        found = measure(ways, chosen.rounds)
    rows = [["reading", "million sessions/s, median", "least to most", "of pyarrow's", "times CLAX"]]
    middle = {name: float(np.median(rates)) for name, rates in found.items()}
    best_peer = max((rate for name, rate in middle.items() if name.startswith("CLAX")), default=None)
    limit = middle["pyarrow, documents and clicks"]
    result: dict[str, Any] = {
        "settings": {n: getattr(chosen, n) for n in ("sessions", "queries", "batch_size", "rounds", "seed")},
        "clax": peer,
        "bytes": sum(record["bytes"] for record in log.metadata["files"]),
        "readings": {},
    }
    for name, rates in found.items():
        times = None if best_peer is None else middle[name] / best_peer
        result["readings"][name] = {
            "sessions_per_second": rates, "median": middle[name], "of_limit": middle[name] / limit, "times_clax": times
        }  # fmt: skip
        rows.append(
            [
                name,
                f"{middle[name] / 1e6:.2f}",
                f"{min(rates) / 1e6:.2f} to {max(rates) / 1e6:.2f}",
                f"{middle[name] / limit:.2f}",
                "" if times is None else f"{times:.1f}",
            ]
        )
    facts = (
        f"{chosen.sessions:,} sessions of {K} documents ({result['bytes'] / 1e6:.1f} MB), batches of "
        f"{chosen.batch_size:,}, {chosen.rounds} rounds, seed {chosen.seed}"
    )
    if peer is not None:
        facts += f"; CLAX read {peer_sessions:,} of them with " + ", ".join(f"{k} {v}" for k, v in peer.items())
    finish(chosen, result, f"{table(rows)}\n\n{facts}")


def make(work: Path, sessions: int, queries: int, seed: int) -> tuple[ClickLog, np.ndarray, np.ndarray]:
    """Writes the log and the same sessions as the peer wants them; returns the log, ids [N, K] and clicks [N, K]."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, queries + 1)
    query = rng.choice(queries, sessions, p=share / share.sum()).astype(np.int32)
    order = rng.random((sessions, K), np.float32).argsort(1)
    ids = (query[:, None] * K + order + 1).astype(np.int32)
    attraction = rng.beta(1, 2.5, queries * K + 1).astype(np.float32)
    examined = (np.arange(1, K + 1) ** -0.7).astype(np.float32)
    clicks = (rng.random((sessions, K), np.float32) < attraction[ids] * examined).astype(np.int8)
    documents = pa.table(
        {
            "query": pa.array(np.repeat(np.arange(queries, dtype=np.int32), K)),
            "document": pa.array(np.arange(1, queries * K + 1).astype(str)),
        }
    )
    names = pa.array(np.arange(queries).astype(str))
    (work / "peer").mkdir()
    with (
        LogWriter(work / "log", queries=names, documents=documents) as writer,
        pq.ParquetWriter(work / "peer" / "part-0.parquet", _peer_table(query[:0], ids[:0], clicks[:0]).schema) as peer,
    ):
        for start in range(0, sessions, CHUNK):
            part = slice(start, min(start + CHUNK, sessions))
            ranks = np.tile(np.arange(1, K + 1, dtype=np.int32), (part.stop - start, 1))
            writer.write(
                pa.table(
                    {
                        "session": pa.array(np.arange(start, part.stop)),
                        "query": pa.array(query[part]),
                        "documents": _lists(ids[part]),
                        "ranks": _lists(ranks),
                        "clicks": _lists(clicks[part]),
                    }
                )
            )
            peer.write_table(_peer_table(query[part], ids[part], clicks[part]), row_group_size=50_000)
    return ClickLog.open(work / "log"), ids, clicks


def _peer_table(query: np.ndarray, ids: np.ndarray, clicks: np.ndarray) -> pa.Table:
    return pa.table({"query_id": pa.array(query), "query_doc_ids": _lists(ids), "clicks": _lists(clicks)})


def _lists(values: np.ndarray) -> pa.ListArray:
    offsets = np.arange(0, values.size + 1, K, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel()))


def stream(log: ClickLog, batch_size: int, seed: int | None) -> tuple[int, float]:
    began = time.perf_counter()
    rows = sum(len(batch) for batch in log.batches(batch_size, seed=seed))
    seconds = time.perf_counter() - began
    if rows != -(-len(log) // batch_size) * batch_size:
        raise AssertionError(f"expected {len(log):,} sessions in full batches, found {rows:,} rows")
    return len(log), seconds


def columns(log: ClickLog) -> tuple[int, float]:
    began = time.perf_counter()
    rows = 0
    for record in log.metadata["files"]:
        with pq.ParquetFile(log.path / record["name"]) as file:
            for group in range(file.num_row_groups):
                rows += len(file.read_row_group(group, columns=["documents", "clicks"], use_threads=True))
    return rows, time.perf_counter() - began


def copy(ids: np.ndarray, clicks: np.ndarray) -> tuple[int, float]:
    into = np.empty_like(ids), np.empty_like(clicks)
    for target in into:
        target.fill(0)  # so that the memory is there before the clock starts
    began = time.perf_counter()
    np.copyto(into[0], ids)
    np.copyto(into[1], clicks)
    return len(ids), time.perf_counter() - began


def clax(stack: ExitStack, python: str | None, folder: Path, sessions: int, batch_size: int) -> tuple[Any, Any]:
    """(a function of the number of workers that reads once, the versions); Nones without a peer."""
    if not python:
        return None, None
    command = [python, "-c", PEER, str(folder), str(sessions), str(batch_size)]
    try:
        process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
    except OSError:
        return None, None
    assert process.stdin is not None
    assert process.stdout is not None
    source, sink = process.stdout, process.stdin
    versions = source.readline()

    def run(workers: int, number: int) -> tuple[int, float]:
        sink.write(f"{workers}\n")
        sink.flush()
        seen, seconds = json.loads(source.readline())
        if seen != sessions:
            raise AssertionError(f"expected {sessions:,} sessions, CLAX read {seen:,}")
        return seen, seconds

    return (run, json.loads(versions)) if versions else (None, None)


def measure(ways: dict[str, Callable[[int], tuple[int, float]]], rounds: int) -> dict[str, list[float]]:
    """Sessions per second of each way in each round, after one that does not count."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, run in ways.items():
            sessions, seconds = run(number)
            if number:
                found[name].append(sessions / seconds)
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    main()
