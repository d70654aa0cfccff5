"""Training steps, growth with the table, the loader, and one epoch from Parquet: ultr, CLAX, and what a C kernel does.

  step        batches in memory to updated tables: sessions per second, by model and batch size
  growth      the same for the position-based model by the number of document ids
  loader      reading alone
  end to end  from Parquet to updated tables, one epoch, compiled beforehand

The C kernel is Adam on a position-based model that touches the rows of the batch alone, on one thread; it and a memory
copy run in the same rounds as the rest, so that the figures can be put against what the machine gave at that time.

    python benchmarks/bench_step.py --clax /path/to/clax/bin/python
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from speed import Contestants, Peer, alternate, available_bytes, finish, parser, rate, ratio, short, spanned, summary
from speed_data import Data, Settings, make

PARTS = ("step", "growth", "loader", "end-to-end")
_BYTES_PER_ID = 64  # of all contestants together while one table is trained, generously


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options.add_argument("--queries", type=int, default=500_000, help="a tenth of the ids [%(default)s]")
    options.add_argument("--sessions", type=int, default=1_000_000)
    options.add_argument("--batch", type=int, nargs="+", default=[512, 4096, 32768])
    options.add_argument("--growth-batch", type=int, default=4096)
    options.add_argument(
        "--tables", type=int, nargs="+", default=[100_000, 1_000_000, 5_000_000, 20_000_000, 100_000_000]
    )
    options.add_argument("--seconds", type=float, default=1.0, help="length of a window [%(default)s]")
    options.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="of CLAX's loader [0 2]")
    chosen = options.parse_args()
    data = make(chosen.work, Settings(queries=chosen.queries, sessions=chosen.sessions, seed=chosen.seed))
    contestants = Contestants(chosen)
    peers = {name: peer for name in ("ultr", "clax", "floor") if (peer := contestants.start(name)) is not None}
    result: dict[str, Any] = {"data": data.facts}
    rows = [["measurement", "ultr, sessions/s", "CLAX, sessions/s", "ultr / CLAX", "C kernel, sessions/s", "copy, B/s"]]
    measure = {"step": _step, "growth": _growth, "loader": _loader, "end-to-end": _end_to_end}
    for part in chosen.parts:
        result[part] = {}
        measure[part](chosen, data, peers, functools.partial(_keep, result[part], rows))
    for peer in peers.values():
        peer.close()
    finish(chosen, result, rows, contestants)


def _keep(result: dict[str, Any], rows: list[list[str]], name: str, taken: dict[str, list[float]]) -> None:
    """Adds a row; among several settings of CLAX the fastest one is compared with."""
    found = {who: summary(values) for who, values in taken.items()}
    clax = max((who for who in found if who.startswith("clax")), key=lambda who: found[who]["median"], default=None)
    cells = [name, spanned(found["ultr"])]
    if clax is None:
        cells += ["", ""]
    else:
        found["ratio"] = {"ultr/clax": ratio(taken["ultr"], taken[clax]), "of": clax}
        cells += [spanned(found[clax]), f"{found['ratio']['ultr/clax']:.1f}"]
    cells += [spanned(found[who]) if who in found else "" for who in ("floor", "copy")]
    result[name] = found
    rows.append(cells)
    print(" | ".join(cells), flush=True)


def _forget(peers: dict[str, Peer]) -> None:
    for peer in peers.values():
        peer.ask("forget")


def _step(chosen: Any, data: Data, peers: dict[str, Peer], keep: Callable[..., None]) -> None:
    for model in chosen.models:
        clicks = "pbm" if model == "pbm" else "dbn"
        for batch in chosen.batch:
            if batch > chosen.sessions:
                continue
            one = {"documents": data.settings.documents, "batch_size": batch, "folder": data.clax(clicks)}
            window = one | {"model": model, "seconds": chosen.seconds}
            measurements: dict[str, Callable[[], float]] = {}
            for name in ("ultr", "clax"):
                if name in peers:
                    measurements[name] = rate(peers[name], "step", **window)
            if "floor" in peers:
                if model == "pbm":
                    measurements["floor"] = rate(peers["floor"], "step", **one, sessions=200_000)
                measurements["copy"] = rate(peers["floor"], "copy")
            keep(
                f"step {model}, {short(data.settings.documents)} ids, batch {batch}",
                alternate(measurements, chosen.rounds),
            )
            _forget(peers)


def _growth(chosen: Any, data: Data, peers: dict[str, Peer], keep: Callable[..., None]) -> None:
    """All sizes in the same rounds, so that they can be compared with one another."""
    tables, room = [], available_bytes() * 0.8
    for documents in sorted(chosen.tables):
        room -= documents * _BYTES_PER_ID
        if room < 0 < available_bytes():
            print(f"skipped: {documents:,} ids need more memory than there is", flush=True)
            break
        tables.append(documents)
    measurements: dict[str, Callable[[], float]] = {}
    for documents in tables:
        one = {"documents": documents, "batch_size": chosen.growth_batch, "folder": data.clax("pbm")}
        for name in ("ultr", "clax"):
            if name in peers:
                window = one | {"model": "pbm", "seconds": chosen.seconds}
                measurements[f"{name} {documents}"] = rate(peers[name], "step", **window)
        if "floor" in peers:
            measurements[f"floor {documents}"] = rate(peers["floor"], "step", **one, sessions=200_000)
    taken = alternate(measurements, chosen.rounds)
    for documents in tables:
        own = {name: taken[f"{name} {documents}"] for name in peers}
        keep(f"growth pbm, {short(documents)} ids, batch {chosen.growth_batch}", own)
    _forget(peers)


def _loader(chosen: Any, data: Data, peers: dict[str, Peer], keep: Callable[..., None]) -> None:
    for batch in chosen.batch:
        one = {"sessions": chosen.sessions, "batch_size": batch}
        measurements = {"ultr": rate(peers["ultr"], "loader", **one, log=data.log("pbm"))}
        for workers in chosen.workers if "clax" in peers else ():
            measurements[f"clax, {workers} workers"] = rate(
                peers["clax"], "loader", **one, folder=data.clax("pbm"), workers=workers
            )
        keep(f"loader, batch {batch}", alternate(measurements, chosen.rounds))


def _end_to_end(chosen: Any, data: Data, peers: dict[str, Peer], keep: Callable[..., None]) -> None:
    for model in chosen.models:
        clicks = "pbm" if model == "pbm" else "dbn"
        one = {"model": model, "batch_size": chosen.growth_batch}
        measurements = {"ultr": rate(peers["ultr"], "end_to_end", **one, log=data.log(clicks))}
        for workers in chosen.workers if "clax" in peers else ():
            measurements[f"clax, {workers} workers"] = rate(
                peers["clax"],
                "end_to_end",
                **one,
                documents=data.settings.documents,
                folder=data.clax(clicks),
                valid=data.clax(clicks, "valid"),
                sessions=chosen.sessions,
                workers=workers,
            )
        keep(
            f"end to end {model}, {short(data.settings.documents)} ids, batch {chosen.growth_batch}",
            alternate(measurements, chosen.rounds),
        )


if __name__ == "__main__":
    main()
