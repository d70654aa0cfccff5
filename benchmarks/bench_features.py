"""A position-based model whose attraction is an MLP (256, 256) over document features: ultr against CLAX.

Relevance is a known smooth function of the features. Steps are on batches in memory, for both; CLAX's time to a
likelihood too leaves its loader out: its batches are gathered from a feature matrix in memory, where its own loader
would read a copy of the features with every session. Targets and times as in `bench_likelihood.py`.

    python benchmarks/bench_features.py --clax /path/to/clax/bin/python
"""

from __future__ import annotations

from typing import Any

from bench_likelihood import there
from speed import Contestants, alternate, finish, parser, rate, ratio, reached, spanned, summary
from speed_data import Data, Settings, make


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--features", type=int, nargs="+", default=[46, 136])
    options.add_argument("--queries", type=int, default=20_000)
    options.add_argument("--sessions", type=int, default=1_000_000)
    options.add_argument("--valid-sessions", type=int, default=20_000)
    options.add_argument("--test-sessions", type=int, default=80_000)
    options.add_argument("--batch", type=int, nargs="+", default=[512, 4096])
    options.add_argument("--seconds", type=float, default=2.0, help="length of a window [%(default)s]")
    options.add_argument("--clax-epochs", type=int, default=50)
    options.add_argument("--clax-rounds", type=int, default=1, help="runs of CLAX to convergence [%(default)s]")
    options.add_argument("--clax-batch", type=int, default=512, help="of those runs [%(default)s, its own default]")
    options.add_argument("--epochs", type=int, default=20, help="ours, at most [%(default)s]")
    options.add_argument("--our-batch", type=int, default=2048, help="rows of counts per step [%(default)s]")
    options.add_argument("--tolerance", type=float, default=1e-4)
    options.add_argument("--parts", nargs="+", choices=("step", "likelihood"), default=["step", "likelihood"])
    chosen = options.parse_args()
    contestants = Contestants(chosen)
    result: dict[str, Any] = {}
    rows = [["measurement", "ultr", "CLAX", "times faster"]]
    for size in chosen.features:
        settings = Settings(
            queries=chosen.queries,
            sessions=chosen.sessions,
            valid_sessions=chosen.valid_sessions,
            test_sessions=chosen.test_sessions,
            features=size,
            seed=chosen.seed,
        )
        data = make(chosen.work, settings)
        result[str(size)] = {"data": data.facts}
        if "step" in chosen.parts:
            result[str(size)]["step"] = _steps(chosen, contestants, data, rows)
        if "likelihood" in chosen.parts:
            result[str(size)]["likelihood"] = _likelihood(chosen, contestants, data, rows)
    finish(chosen, result, rows, contestants)


def _say(rows: list[list[str]], *cells: str) -> None:
    rows.append(list(cells))
    print(" | ".join(cells), flush=True)


def _steps(chosen: Any, contestants: Contestants, data: Data, rows: list[list[str]]) -> dict[str, Any]:
    result = {}
    peers = {name: peer for name in ("ultr", "clax") if (peer := contestants.start(name)) is not None}
    for batch in chosen.batch:
        request = {
            "model": "pbm",
            "documents": data.settings.documents,
            "batch_size": batch,
            "folder": data.clax("pbm"),
            "seconds": chosen.seconds,
            "features": data.features,
        }
        taken = alternate({name: rate(peer, "step", **request) for name, peer in peers.items()}, chosen.rounds)
        found = {name: summary(values) for name, values in taken.items()}
        cells = [spanned(found[name]) if name in found else "" for name in ("ultr", "clax")]
        both = len(taken) == 2
        share = f"{ratio(taken['ultr'], taken['clax']):.2f}" if both else ""
        _say(rows, f"step, {data.settings.features} features, batch {batch}, sessions/s", *cells, share)
        result[str(batch)] = found
        for peer in peers.values():
            peer.ask("forget")
    for peer in peers.values():
        peer.close()
    return result


def _likelihood(chosen: Any, contestants: Contestants, data: Data, rows: list[list[str]]) -> dict[str, Any]:
    settings = data.settings
    theirs, ours = [], []
    with_clax = there(contestants, "clax")
    for number in range(max(chosen.rounds, chosen.clax_rounds)):
        if number < chosen.rounds:
            ours.append(
                _train(
                    contestants,
                    "ultr",
                    batch_size=chosen.our_batch,
                    train=data.log("pbm"),
                    test=data.log("pbm", "test"),
                    epochs=chosen.epochs,
                    features=True,
                )
            )
        if with_clax and number < chosen.clax_rounds:
            theirs.append(
                _train(
                    contestants,
                    "clax",
                    documents=settings.documents,
                    batch_size=chosen.clax_batch,
                    train=data.clax("pbm"),
                    valid=data.clax("pbm", "valid"),
                    test=data.clax("pbm", "test"),
                    sessions=settings.sessions,
                    valid_sessions=settings.valid_sessions,
                    test_sessions=settings.test_sessions,
                    workers=0,
                    epochs=chosen.clax_epochs,
                    features=data.features,
                )
            )
    result: dict[str, Any] = {"ours": ours, "clax": theirs}
    best = max(run["log_likelihood"] for run in ours)
    own_cells, clax_cells = [f"LL {best:.5f}"], [""]
    share = ""
    if theirs:
        tops = [max(p["log_likelihood"] for p in run["points"]) for run in theirs]
        target = max(tops)
        near = [reached(r["points"], t - chosen.tolerance) for r, t in zip(theirs, tops, strict=True)]
        seconds = summary([s for s in near if s is not None])
        own = [reached(run["points"], target - chosen.tolerance) for run in ours]
        result |= {"target": target, "clax_seconds": seconds}
        clax_cells = [f"LL {target:.5f}, {spanned(seconds)} s"]
        own_cells.append("not reached")
        if None not in own:
            result["our_seconds"] = summary([s for s in own if s is not None])
            own_cells[1] = f"{spanned(result['our_seconds'])} s"
            share = f"{seconds['median'] / result['our_seconds']['median']:.3g}"
    true = data.facts["pbm/test"]["true_log_likelihood"]
    name = f"to CLAX's likelihood, {settings.features} features (true {true:.5f})"
    _say(rows, name, ", ".join(own_cells), ", ".join(clax_cells), share)
    return result


def _train(contestants: Contestants, name: str, **request: Any) -> dict[str, Any]:
    """A run to convergence, in a process of its own."""
    peer = contestants.start(name)
    assert peer is not None
    with peer:
        return peer.ask("train_to_convergence", model="pbm", **request)


if __name__ == "__main__":
    main()
