"""Every kind of debiasing on MQ2008, fold 1: five users, three loggers, six sizes of log, several seeds.

The logs are simulated from the train queries, the methods judged by nDCG@10 on the test queries; all use the same
linear tower, but for the boosted trees. Epochs (and rounds of boosting) are chosen on held-out clicks, full
information by the validation grades. The weak logger is a linear ranker trained on 1 % of the train queries, with
Plackett-Luce randomness; the strong one is trained on all of them and nearly deterministic; the cut one is the strong
one that shows about a tenth of the candidates. Finished runs are kept in --work: the script goes on where it was
stopped.

    python benchmarks/bench_compare.py --work study --jobs 2
    python benchmarks/bench_compare.py --work study --sessions 1000000 --seeds 1

With --lists dead the lists are made: 1,500 queries whose grades are not linear in 16 features, a quarter of them
without any relevant document, which no feature tells. With --lists synthetic none is without, and the methods are the
two-tower with a network and boosted trees. With --lists FOLDER they are the collections FOLDER/train, vali and test.

    python benchmarks/bench_compare.py --work dead --lists dead --sessions 1000 100000
    python benchmarks/bench_compare.py --work trees --lists synthetic --users pbm --sessions 100000 --seeds 3

Below the tables stands how the goals are met (`ranking_goals`).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import mode
from typing import Any

import numpy as np
from common import finish, folder, parser, table
from ranking_goals import goals

from ultr import simulate
from ultr.data import Collection
from ultr.evaluation import paired_difference
from ultr.ingest.preparing import prepare
from ultr.study import collect_results, parse_study, run_study
from ultr.study.runs import Run, StoredRuns

USERS: dict[str, dict[str, Any]] = {
    "pbm": {"user": "pbm"},
    "dbn": {"user": "dbn"},
    "dcm": {"user": "dcm"},
    "trust": {"user": "trust"},
    "noise": {"user": "pbm", "flip": 0.05},
    "sdbn": {"user": "sdbn"},
    "ccm": {"user": "ccm"},
    "ubm": {"user": "ubm"},
}
USUAL_USERS = ("pbm", "dbn", "dcm", "trust", "noise")
LOGGERS: dict[str, dict[str, Any]] = {
    "weak": {"policy": "linear", "share": 0.01, "temperature": 0.3},
    "strong": {"policy": "linear", "share": 1.0, "temperature": 0.02},
    "cut": {"policy": "linear", "share": 1.0, "temperature": 0.02, "ranks": 2},  # of about twenty candidates
}
METHODS: tuple[dict[str, Any], ...] = (
    {"model": "random"},
    {"model": "logger"},
    {"model": "naive"},
    {"model": "naive-listwise"},
    {"model": "pbm"},
    {"model": "pbm-frozen"},
    {"model": "trust"},
    {"model": "dbn"},
    {"model": "sdbn"},
    {"model": "dcm"},
    {"model": "ccm"},
    {"model": "ubm"},
    {"model": "additive"},
    {"model": "additive-listwise"},
    {"model": "pbm-conditional"},
    {"model": "additive-conditional"},
    {"name": "pbm, safe", "model": "pbm", "safe": True},
    {"name": "ips-listwise, safe", "model": "ips-listwise", "safe": True},
    {"model": "exposure-crm"},
    {"model": "safe-doubly-robust"},
    {"model": "prpo"},
    {"model": "auto"},
    {"model": "ips-listwise"},
    {"name": "ips-listwise, true", "model": "ips-listwise", "propensity": "true"},
    {"model": "affine-ips"},
    {"model": "policy-aware"},
    {"model": "doubly-robust"},
    {"model": "dla"},
    {"model": "pairdebias", "regularisation": 0.0},
    {"model": "naive-lambdarank"},
    {"model": "regression-em"},
    {"model": "intervention-aware"},
    {"model": "prs"},
    {"model": "upe"},
    {"model": "lightgbm"},
    {"model": "lightgbm-position"},
    {"model": "full-information"},
)

TREES: tuple[dict[str, Any], ...] = (
    {"model": "logger"},
    {"model": "naive"},
    {"model": "pbm"},
    {"model": "additive"},
    {"model": "ips-listwise"},
    {"model": "lightgbm"},
    {"model": "lightgbm-position"},
    {"model": "xgboost"},
    {"model": "xgboost-unbiased"},
    {"model": "lightgbm-labels"},
    {"model": "full-information"},
)
MADE = ("synthetic", "dead")
PARTS = {"train": 1000, "vali": 200, "test": 300}  # queries of the synthetic lists


def lists(chosen: Any) -> None:
    """Makes the folders train, vali and test where they are not there yet."""
    if all((chosen.work / name).exists() for name in PARTS):
        return
    if chosen.lists in MADE:
        made = simulate.collection(queries=sum(PARTS.values()), noise=chosen.noise, seed=0)
        if chosen.lists == "dead":
            made = without_relevant(made, share=0.25, seed=0)
        ends = np.cumsum(list(PARTS.values()))
        for (name, size), end in zip(PARTS.items(), ends, strict=True):
            made.select(slice(int(end) - size, int(end))).save(chosen.work / name)
        return
    given = Path(chosen.lists)
    for name in PARTS:
        if given.is_dir():
            Collection.open(given / name).save(chosen.work / name)
        else:
            data = folder(chosen, chosen.lists)
            prepare([data / f"{name}.txt"], chosen.work / name, format="letor")


def without_relevant(lists: Collection, *, share: float, seed: int) -> Collection:
    """Sets all grades of a share of the queries, drawn at random, to 0."""
    dead = np.random.default_rng(seed).random(len(lists)) < share
    grades = np.where(np.repeat(dead, np.diff(lists.offsets)), 0.0, lists.labels)
    query = np.repeat(np.arange(len(lists)), np.diff(lists.offsets))
    return Collection.from_arrays(query=query, label=grades, features=lists.features, max_grade=lists.max_grade)


def study(chosen: Any) -> Any:
    """Makes the study as `ultr compare` would read it from TOML."""
    wanted = {*chosen.methods, "naive", "logger", "full-information"}  # what all are held against
    kinds = [m for m in (TREES if chosen.lists == "synthetic" else METHODS) if m.get("name", m["model"]) in wanted]
    cut = {} if chosen.ranks == 10 else {"ranks": chosen.ranks}
    logs = [
        {"name": f"{user} {logger} {n}", "sessions": n} | USERS[user] | cut | LOGGERS[logger]
        for n in chosen.sessions
        for user in chosen.users
        for logger in chosen.loggers
    ]
    relevance = chosen.relevance or ("mlp" if chosen.lists == "synthetic" else "linear")
    return parse_study(
        {
            "seeds": list(range(chosen.seeds)),
            "metrics": ["ndcg@10"],
            "baseline": "naive",
            "reference": "full-information",
            "data": {"train": "train", "vali": "vali", "test": "test"},
            "defaults": {"relevance": relevance, "l2": 10.0},
            "log": logs,
            "method": kinds,
        },
        folder=chosen.work,
    )


def summary(results: dict[str, Any], names: list[str], sessions: int) -> list[list[str]]:
    """Tabulates the mean nDCG@10 over queries and seeds: a row per method, a column per log of the given size.

    A star: different from naive at 5 % by the paired t test, adjusted over the methods of the log (Holm). A method
    with fewer seeds than most says so, and is left out without any.
    """
    logs = [log for log in results["logs"] if log["name"].endswith(f" {sessions}")]
    seeds = mode([len(m["seeds"]) for log in logs for m in log["methods"] if m["seeds"]] or [0])
    rows = [[f"{sessions:,} sessions, {seeds} seed(s)", *(log["name"].removesuffix(f" {sessions}") for log in logs)]]
    for name in names:
        found: list[Any] = [next((m for m in log["methods"] if m["name"] == name), {"seeds": []}) for log in logs]
        made = {len(m["seeds"]) for m in found} - {0}
        if not made:
            continue
        row = [name if made == {seeds} else f"{name} ({min(made)} seed{'s' * (min(made) > 1)})"]
        for method in found:
            value = method.get("metrics", {}).get("ndcg@10", {}).get("value")
            p = method.get("difference", {}).get("ndcg@10", {}).get("holm_t")
            row.append("-" if value is None else f"{value:.3f}" + "*" * (p is not None and p < 0.05))
        rows.append(row)
    return rows


def weak_against_strong(work: Path, plan: Any, names: list[str]) -> list[list[str]]:
    """Tabulates the gain in nDCG@10 from the strong logger's log over the weak one's, paired over queries."""
    rows = [["method", "user", "sessions", "strong - weak (95 %)"]]
    stored, logs = StoredRuns(work / "cells"), {log.name: log for log in plan.logs}
    for name in names:
        method = next(m for m in plan.methods if m.name == name)
        for log in plan.logs:
            user, logger, sessions = log.name.split()
            if logger == "weak" and f"{user} strong {sessions}" in logs:
                pair = (log, logs[f"{user} strong {sessions}"])
                means = []
                for one in pair:
                    found = [stored.read_values(Run(one, method, seed)) for seed in plan.seeds]
                    means.append([v["ndcg@10"] for v in found if v is not None])
                if all(means):
                    weak, strong = (np.mean(m, axis=0) for m in means)
                    e = paired_difference(strong, weak)
                    span = f"{e.value:+.4f} ({e.interval[0]:+.4f} to {e.interval[1]:+.4f})"
                    rows.append([name, user, sessions, span])
    return rows


def diagnosed(work: Path, plan: Any) -> list[list[str]]:
    """Tabulates the errors that the diagnosis predicted for each log beside those of the propensities."""
    rows = [["log", "error at rank 10, predicted", "found, root mean square over seeds", "mean square of z"]]
    stored, source = StoredRuns(work / "cells"), next((m for m in plan.methods if m.name == "ips-listwise"), None)
    if source is None:
        return rows
    for log in plan.logs:
        predicted, off = [], []
        for seed in plan.seeds:
            run, facts = stored.read(Run(log, source, seed)), stored.read_log_facts(log, seed)
            if run is None or not facts:
                continue
            truth, found = (facts.get("truth") or {}).get("examination"), run.get("propensity")
            said = (facts.get("diagnosis") or {}).get("standard_error")
            if said:
                predicted.append(np.array(said, float)[1:])
            if truth and found and said:
                off.append(np.log(np.array(found)[1:]) - np.log(np.array(truth)[1:] / truth[0]))
        if predicted:
            row = [log.name, f"{np.mean(predicted, 0)[-1]:.1%}"]
            if off:
                z = np.array(off) / np.array(predicted)[: len(off)]
                row += [f"{np.sqrt(np.mean(np.array(off)[:, -1] ** 2)):.1%}", f"{np.mean(z**2):.2f}"]
            rows.append(row + [""] * (len(rows[0]) - len(row)))
    return rows


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--work", type=Path, required=True, help="folder of lists and runs, kept between calls")
    options.add_argument(
        "--sessions", type=int, nargs="+", default=[100, 400, 1_000, 10_000, 100_000, 1_000_000], help="[%(default)s]"
    )
    options.add_argument("--seeds", type=int, default=3)
    known = list(dict.fromkeys(m.get("name", m["model"]) for m in (*METHODS, *TREES)))
    options.add_argument("--methods", nargs="+", default=known, choices=known, metavar="METHOD", help="only these")
    options.add_argument("--users", nargs="+", default=USUAL_USERS, choices=USERS)
    options.add_argument("--loggers", nargs="+", default=list(LOGGERS), choices=LOGGERS)
    options.add_argument("--ranks", type=int, default=10, help="documents shown per session, at most [%(default)s]")
    options.add_argument("--jobs", type=int, default=1)
    options.add_argument(
        "--lists", default="mq2008-fold1", help="a folder of --data, a folder of collections, dead or synthetic"
    )
    options.add_argument("--relevance", help="the relevance tower [linear; of synthetic lists mlp]")
    options.add_argument("--noise", type=float, default=0.3, help="of synthetic grades, beside the features [.3]")
    options.add_argument("--report", action="store_true", help="make nothing, print what there is")
    chosen = options.parse_args()
    lists(chosen)
    plan = study(chosen)
    began = time.perf_counter()
    if not chosen.report:
        run_study(
            plan, chosen.work / "cells", jobs=chosen.jobs, say=lambda line: print(line, file=sys.stderr, flush=True)
        )
    results = collect_results(plan, chosen.work / "cells")
    names = [m.name for m in plan.methods]
    click_models = [n for n in names if n in ("pbm", "trust", "additive", "dla", "ips-listwise")]
    text = [table(summary(results, names, n)) + "\n" for n in chosen.sessions]
    text += [table(weak_against_strong(chosen.work, plan, click_models)), "", table(diagnosed(chosen.work, plan))]
    text += ["", *goals(chosen.work / "cells", plan)]
    text += ["", f"this run took {time.perf_counter() - began:.0f} s"]
    finish(chosen, {"results": results}, "\n".join(text))


if __name__ == "__main__":
    main()
