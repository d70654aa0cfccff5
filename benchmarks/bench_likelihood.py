"""Time from Parquet to a held-out likelihood: ultr against CLAX, and against PyClick on fewer sessions.

Every run is a process of its own, and its time counts from the start of that process: imports, opening, compiling and
training; evaluation is left out for all. Each contestant trains until its own stopping rule ends it: CLAX by its
trainer's early stopping on the validation part, PyClick after `--iterations` passes of EM (one pass where it has a
closed form; DBN and CCM get less data and fewer passes). The likelihood is the mean over held-out documents of
ln P(c_k | c_<k).

The target of a row is the best held-out likelihood that the other contestant reached at any time; both times are those
at which a contestant first came within `--tolerance` of it.

    python benchmarks/bench_likelihood.py --clax /path/to/clax/bin/python --pyclick /path/to/PyClick
"""

from __future__ import annotations

import sys
from typing import Any

from speed import Contestants, PeerError, finish, parser, reached, spanned, summary
from speed_data import Data, Settings, make

SLOW = ("dbn", "ccm")  # some 200 to 300 sessions per second and iteration in PyClick


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--queries", type=int, default=500_000)
    options.add_argument("--sessions", type=int, default=1_000_000)
    options.add_argument("--valid-sessions", type=int, default=20_000)
    options.add_argument("--test-sessions", type=int, default=80_000)
    options.add_argument("--clax-batch", type=int, nargs="+", default=[512, 4096])
    options.add_argument("--clax-rounds", type=int, default=1, help="runs of CLAX, each [%(default)s]")
    options.add_argument("--clax-epochs", type=int, default=50)
    options.add_argument("--workers", type=int, default=0, help="of CLAX's loader [%(default)s]")
    options.add_argument("--epochs", type=int, default=60, help="passes, ours, at most [%(default)s]")
    options.add_argument("--method", default="em", choices=("em", "lbfgs", "fit"), help="ours [%(default)s]")
    options.add_argument("--rate", type=float, default=0.002, help="learning rate of fit, tables ten times that [.002]")
    options.add_argument("--batch", type=int, default=4096, help="of fit [%(default)s]")
    options.add_argument("--pyclick-queries", type=int, default=2_000)
    options.add_argument("--pyclick-sessions", type=int, default=100_000)
    options.add_argument("--pyclick-test-sessions", type=int, default=10_000)
    options.add_argument("--iterations", type=int, default=50, help="of PyClick's EM [%(default)s, its own default]")
    options.add_argument("--slow-share", type=float, default=0.1, help="of that data for PyClick's DBN and CCM [0.1]")
    options.add_argument("--slow-iterations", type=int, default=10, help="of PyClick's DBN and CCM [%(default)s]")
    options.add_argument("--pyclick-rounds", type=int, default=1, help="runs of PyClick, each [%(default)s]")
    options.add_argument("--tolerance", type=float, default=1e-4, help="of the likelihood [%(default)s]")
    options.add_argument("--against", nargs="+", choices=("clax", "pyclick"), default=["clax", "pyclick"])
    chosen = options.parse_args()
    contestants = Contestants(chosen)
    settings = Settings(
        queries=chosen.queries,
        sessions=chosen.sessions,
        valid_sessions=chosen.valid_sessions,
        test_sessions=chosen.test_sessions,
        seed=chosen.seed,
    )
    result: dict[str, Any] = {}
    rows = [["model", "against", "their LL", "their seconds", "our LL", "our seconds", "theirs / ours", "true LL"]]
    for who in chosen.against:
        if not there(contestants, who):
            continue
        result[who] = {}
        for model in chosen.models:
            data = make(chosen.work, settings if who == "clax" else _small(chosen, model))
            clicks = "pbm" if model == "pbm" else "dbn"
            found = _compare(chosen, contestants, data, who, model, clicks)
            result[who][model] = {"data": data.facts} | found
            for other in found["others"]:
                rows.append(_row(model, other, found, data.facts[f"{clicks}/test"]["true_log_likelihood"]))
                print(" | ".join(rows[-1]), flush=True)
    finish(chosen, result, rows, contestants)


def _small(chosen: Any, model: str) -> Settings:
    share = chosen.slow_share if model in SLOW else 1.0
    return Settings(
        queries=max(round(chosen.pyclick_queries * share), 1),
        sessions=max(round(chosen.pyclick_sessions * share), 1),
        valid_sessions=chosen.pyclick_test_sessions,
        test_sessions=chosen.pyclick_test_sessions,
        seed=chosen.seed,
    )


def there(contestants: Contestants, who: str) -> bool:
    peer = contestants.start(who)
    if peer is not None:
        peer.close()
    return peer is not None


def _compare(chosen: Any, contestants: Contestants, data: Data, who: str, model: str, clicks: str) -> dict[str, Any]:
    """Runs of both in turn; the other's settings one after another."""
    kinds = [("clax", batch) for batch in chosen.clax_batch] if who == "clax" else [("pyclick", 0)]
    times = chosen.clax_rounds if who == "clax" else chosen.pyclick_rounds
    others: list[dict[str, Any]] = [{"name": n if not b else f"{n}, batch {b}", "runs": []} for n, b in kinds]
    ours: list[dict[str, Any]] = []
    for number in range(max(chosen.rounds, times)):
        if number < chosen.rounds:
            ours.append(_ours(chosen, contestants, data, model, clicks))
        for other, (_, batch) in zip(others, kinds, strict=True):
            if number < times:
                try:
                    other["runs"].append(_theirs(chosen, contestants, data, who, model, clicks, batch))
                except PeerError as error:
                    print(error, file=sys.stderr)
        print(f"{model} round {number + 1}", file=sys.stderr, flush=True)
    for other in others:
        best = [max(p["log_likelihood"] for p in run["points"]) for run in other["runs"]]
        if not best:
            continue
        other["target"] = max(best)
        near = [reached(r["points"], b - chosen.tolerance) for r, b in zip(other["runs"], best, strict=True)]
        other["seconds"] = summary([s for s in near if s is not None])
        own = [reached(run["points"], other["target"] - chosen.tolerance) for run in ours]
        other["our_seconds"] = None if None in own else summary([s for s in own if s is not None])
    return {"ours": ours, "others": others}


def _ours(chosen: Any, contestants: Contestants, data: Data, model: str, clicks: str) -> dict[str, Any]:
    peer = contestants.start("ultr")
    assert peer is not None
    with peer:
        return peer.ask(
            "train_to_convergence",
            model=model,
            batch_size=chosen.batch,
            rate=chosen.rate,
            train=data.log(clicks),
            test=data.log(clicks, "test"),
            epochs=chosen.epochs,
            method=chosen.method,
        )


def _theirs(
    chosen: Any, contestants: Contestants, data: Data, who: str, model: str, clicks: str, batch: int
) -> dict[str, Any]:
    peer = contestants.start(who)
    assert peer is not None
    settings = data.settings
    with peer:
        if who == "pyclick":
            return peer.ask(
                "train",
                model=model,
                train=data.pyclick(clicks),
                test=data.pyclick(clicks, "test"),
                sessions=settings.sessions,
                test_sessions=settings.test_sessions,
                iterations=chosen.slow_iterations if model in SLOW else chosen.iterations,
            )
        return peer.ask(
            "train_to_convergence",
            model=model,
            documents=settings.documents,
            batch_size=batch,
            train=data.clax(clicks),
            valid=data.clax(clicks, "valid"),
            test=data.clax(clicks, "test"),
            sessions=settings.sessions,
            valid_sessions=settings.valid_sessions,
            test_sessions=settings.test_sessions,
            workers=chosen.workers,
            epochs=chosen.clax_epochs,
        )


def _row(model: str, other: dict[str, Any], found: dict[str, Any], true: float) -> list[str]:
    ours = max(run["log_likelihood"] for run in found["ours"])
    if "target" not in other:
        return [model, other["name"], "failed", "", f"{ours:.5f}", "", "", f"{true:.5f}"]
    own = other["our_seconds"]
    return [
        model,
        other["name"],
        f"{other['target']:.5f}",
        spanned(other["seconds"]),
        f"{ours:.5f}",
        "not reached" if own is None else spanned(own),
        "" if own is None else f"{other['seconds']['median'] / own['median']:.3g}",
        f"{true:.5f}",
    ]


if __name__ == "__main__":
    main()
