"""Draws clicks of known users on the lists of the Yandex sample: is a misfit noticed, and do intervals hold the truth?

Every log has the 35,064 lists of `train.txt` as they are, and clicks of one user; every log draws its own documents'
relevance, examination curve and strength of the misfit, from these ranges:

  relevance   in turn: estimated from the sample's own clicks; five grades (.02, .2, .4, .7, .9) that go with the rank
              of a document; drawn from a beta distribution (.6, 2) whatever the rank
  curve       in turn: 1/k^eta with eta from .5 to 1.5; eye tracking of Joachims 2005
  pbm         clicks are relevance times examination
  ubm         examination by the distance to the last click above (Dupret 2008)
  dbn         satisfied by relevance times .3 to .9, else going on with .7 to .95 (Chapelle and Zhang 2009)
  trust       false clicks on what is examined and not relevant: .3 to .65 / k (Agarwal 2019 has .65 / k)
  noise       5 % of clicks and non-clicks are recorded as their opposites

The truth is examination by rank relative to rank 1; of ubm and dbn, its average over the lists of the log. The second
table has weaker misfits, all at 1/k: shares of the logarithm of examination that come from the last click in place of
the rank; satisfaction; false clicks; flipped clicks.

    python benchmarks/bench_misfit.py --processes 2
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import finish, folder, parser, table

from ultr.data import ClickLog
from ultr.data.counting import CellCounts, count_cells, last_click_key, merge_extra
from ultr.ingest.preparing import prepare
from ultr.propensity import conditional_likelihood
from ultr.propensity.arm_counts import arm_counts_of_cells
from ultr.propensity.goodness_of_fit import goodness_of_fit_of_cells

JOACHIMS = np.array([0.68, 0.61, 0.48, 0.34, 0.28, 0.20, 0.11, 0.10, 0.08, 0.06])
GRADES = np.array([0.02, 0.2, 0.4, 0.7, 0.9])
KINDS = ("pbm", "ubm", "dbn", "trust", "noise")
NAMED = {"ubm": "ubm", "dbn": "dbn", "trust": "trust", "noise": "trust"}  # the model that the check should name
WEAKER = {
    "ubm": (0.02, 0.05, 0.1, 0.2),
    "dbn": (0.02, 0.05, 0.1, 0.2),
    "trust": (0.02, 0.05, 0.1, 0.2),
    "noise": (0.0025, 0.005, 0.01, 0.02),
}


Task = tuple[str, float | None, tuple[int, int, int]]  # kind, weaker strength, seed


class Lists(NamedTuple):
    """The lists of the sample: [S, K] documents, their estimated relevance [V + 1] and average rank [V + 1]."""

    log: ClickLog
    shown: np.ndarray
    estimated: np.ndarray
    average_rank: np.ndarray


class User(NamedTuple):
    """Who clicks: [V + 1] relevance, [K] examination, and the strength of the misfit."""

    kind: str
    relevance: np.ndarray
    base: np.ndarray
    strength: float
    going_on: float = 1.0


def main() -> None:
    options = parser(__doc__ or "")
    options.formatter_class = argparse.RawDescriptionHelpFormatter
    options.add_argument("--logs", type=int, default=100, help="of each kind [%(default)s]")
    options.add_argument("--weak-logs", type=int, default=40, help="of each weaker strength [%(default)s]")
    options.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    options.add_argument("--seed", type=int, default=20260)
    options.add_argument("--processes", type=int, default=1)
    chosen = options.parse_args()
    tasks: list[Task] = [
        (kind, None, (chosen.seed, KINDS.index(kind), i)) for kind in chosen.kinds for i in range(chosen.logs)
    ]
    for kind in chosen.kinds:
        for j, strength in enumerate(WEAKER.get(kind, ())):
            numbers = [10_000 * (j + 1) + i for i in range(chosen.weak_logs)]
            tasks += [(kind, strength, (chosen.seed, KINDS.index(kind), number)) for number in numbers]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        prepare([folder(chosen, "yandex-sample") / "train.txt"], Path(work) / "log", format="yandex-sample")
        if chosen.processes > 1:
            context = multiprocessing.get_context("spawn")
            with context.Pool(chosen.processes, _open, (str(Path(work) / "log"),)) as pool:
                found = pool.map(_study_one, tasks, chunksize=8)
        else:
            _open(str(Path(work) / "log"))
            found = [_study_one(task) for task in tasks]
    seconds = time.perf_counter() - began
    result = {"logs": found, "seconds": seconds, "options": {k: str(v) for k, v in vars(chosen).items()}}
    strong = _table(found, chosen.kinds, weak=False)
    weak = _table(found, chosen.kinds, weak=True)
    mean = float(np.mean([x["seconds"] for x in found]))
    text = f"{strong}\n\n{weak}\n\n{len(found)} logs in {seconds:.0f} s; a check and its curves take {mean:.2f} s"
    finish(chosen, result, text)


_LISTS: list[Lists] = []  # of this process


def _open(path: str) -> None:
    """Reads the lists once per process."""
    log = ClickLog.open(path)
    shown = np.concatenate([batch["documents"].flatten().to_numpy() for batch in log.columns(["documents"])])
    shown = shown.reshape(log.sessions, log.ranks)
    counts = arm_counts_of_cells(log, merge_extra(count_cells(log, last_click_key(log))))
    curve = conditional_likelihood(counts).value
    examined = counts.sum_by_item(counts.impressions * curve[counts.arm])
    document = np.unique(shown)
    estimated, rank = np.zeros(log.documents + 1), np.zeros(log.documents + 1)
    estimated[document] = np.minimum((counts.sum_by_item(counts.clicks) + 0.1) / (examined + 1), 0.95)
    n = np.bincount(shown.ravel(), minlength=log.documents + 1)
    places = np.broadcast_to(np.arange(log.ranks), shown.shape)
    rank = np.bincount(shown.ravel(), places.ravel(), log.documents + 1) / np.maximum(n, 1)
    _LISTS.append(Lists(log, shown, estimated, rank))


def _study_one(task: Task) -> dict[str, Any]:
    """Draws one log, checks it, and compares its curve with the truth."""
    kind, strength, seed = task
    lists, rng = _LISTS[0], np.random.default_rng(seed)
    user = _draw_user(kind, strength, seed[-1], lists, rng)
    clicks, truth = _draw_clicks(user, lists.shown, rng)
    counted = _count(clicks, lists)
    plain = conditional_likelihood(arm_counts_of_cells(lists.log, merge_extra(counted)))
    began = time.perf_counter()
    fit = goodness_of_fit_of_cells(lists.log, counted)
    seconds = time.perf_counter() - began
    wide = fit.widened(plain)
    given = np.isfinite(wide.interval).all(1)[1:]
    covered = [((p.interval[:, 0] <= truth) & (truth <= p.interval[:, 1]))[1:] for p in (plain, wide)]
    width = np.log(wide.interval[1:, 1] / wide.interval[1:, 0]) / np.log(plain.interval[1:, 1] / plain.interval[1:, 0])
    return {
        "kind": kind,
        "weak": strength,
        "strength": user.strength,
        "failed": list(fit.failed),
        "models": list(fit.models),
        "p": {check.name: check.adjusted for check in fit.checks},
        "before": float(covered[0].mean()),
        "after": float(covered[1][given].mean()) if given.any() else None,
        "withheld": float(1 - given.mean()),
        "width": float(np.median(width[given])) if given.any() else None,
        "off": float(np.max(np.abs(plain.value / truth - 1))),
        "seconds": seconds,
    }


def _draw_user(kind: str, weak: float | None, number: int, lists: Lists, rng: np.random.Generator) -> User:
    world, curve = number % 3, number // 3 % 2
    k = np.arange(1.0, lists.log.ranks + 1)
    base = k ** -(1.0 if weak is not None else rng.uniform(0.5, 1.5))
    if weak is None and curve == 1:
        base = JOACHIMS[: lists.log.ranks] / JOACHIMS[0]
    if world == 0:
        relevance = lists.estimated
    elif world == 1:
        place = -lists.average_rank / lists.log.ranks + rng.normal(0, 0.35, len(lists.average_rank))
        relevance = GRADES[np.digitize(place, np.quantile(place, [0.45, 0.7, 0.85, 0.95]))]
    else:
        relevance = rng.beta(0.6, 2.0, len(lists.average_rank))
    strength = {"pbm": 0.0, "ubm": 1.0, "dbn": rng.uniform(0.3, 0.9), "trust": rng.uniform(0.3, 0.65), "noise": 0.05}
    going_on = rng.uniform(0.7, 0.95)
    return User(kind, relevance, base, strength[kind] if weak is None else weak, going_on)


def _draw_clicks(user: User, shown: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws [S, K] clicks; returns them with the [K] true examination relative to rank 1."""
    sessions, ranks = shown.shape
    relevance, k = user.relevance[shown], np.arange(1, ranks + 1)
    if user.kind in ("pbm", "noise"):
        clicks = rng.random(shown.shape) < user.base * relevance
        flipped = rng.random(shown.shape) < (user.strength if user.kind == "noise" else 0.0)
        return clicks ^ flipped, user.base / user.base[0]
    if user.kind == "trust":
        rate = user.base * ((1 - (k + 1) / 100) * relevance + user.strength / k * (1 - relevance))
        return rng.random(shown.shape) < rate, user.base / user.base[0]
    clicks, examined = np.zeros(shown.shape, bool), np.zeros(ranks)
    if user.kind == "ubm":
        last = np.zeros(sessions, np.int64)
        for j in range(ranks):
            seen = user.base[j] ** (1 - user.strength) * user.base[j - last] ** user.strength
            examined[j] = seen.mean()
            clicks[:, j] = rng.random(sessions) < seen * relevance[:, j]
            last = np.where(clicks[:, j], j + 1, last)
        return clicks, examined / examined[0]
    reading, seen = np.ones(sessions, bool), np.ones(sessions)
    for j in range(ranks):
        examined[j] = seen.mean()
        clicks[:, j] = reading & (rng.random(sessions) < relevance[:, j])
        satisfied = clicks[:, j] & (rng.random(sessions) < user.strength * relevance[:, j])
        reading = reading & ~satisfied & (rng.random(sessions) < user.going_on)
        seen = seen * user.going_on * (1 - user.strength * relevance[:, j] ** 2)
    return clicks, examined / examined[0]


def _count(clicks: np.ndarray, lists: Lists) -> CellCounts:
    """Counts what `count_cells` with `last_click_key` counts of a log on disk."""
    ranks = clicks.shape[1]
    last = np.zeros(clicks.shape, np.int64)
    for j in range(1, ranks):
        last[:, j] = np.where(clicks[:, j - 1], j, last[:, j - 1])
    key = ((lists.shown * ranks + np.arange(ranks)) * (ranks + 1) + last).ravel()
    size = (len(lists.estimated)) * ranks * (ranks + 1)
    impressions, clicked = np.bincount(key, minlength=size), np.bincount(key[clicks.ravel()], minlength=size)
    there = np.flatnonzero(impressions)
    cell, above = np.divmod(there, ranks + 1)
    document, rank = np.divmod(cell, ranks)
    return CellCounts(
        document.astype(np.int32),
        rank.astype(np.int32) + 1,
        above.astype(np.int32),
        impressions[there],
        clicked[there],
        float(len(clicks)),
    )


def _table(found: list[dict[str, Any]], kinds: list[str], *, weak: bool) -> str:
    head = ["clicks", *(["strength"] if weak else []), "logs", "warned", "names the model", "curve off by, median"]
    rows = [[*head, "coverage before", "coverage after", "width, times", "withheld"]]
    for kind in kinds:
        for strength in WEAKER.get(kind, ()) if weak else (None,):
            of = [x for x in found if x["kind"] == kind and x["weak"] == strength]
            if not of:
                continue
            named = [NAMED.get(kind) in x["models"] for x in of]
            after, width = ([x[key] for x in of if x[key] is not None] for key in ("after", "width"))
            rows.append(
                [
                    kind,
                    *([f"{strength:g}"] if weak else []),
                    str(len(of)),
                    f"{np.mean([bool(x['failed']) for x in of]):.0%}",
                    f"{np.mean(named):.0%}" if kind != "pbm" else "-",
                    f"{np.median([x['off'] for x in of]):.0%}",
                    f"{np.mean([x['before'] for x in of]):.1%}",
                    f"{np.mean(after):.1%}" if after else "-",
                    f"{np.median(width):.1f}" if width else "-",
                    f"{np.mean([x['withheld'] for x in of]):.0%}",
                ]
            )
    return table(rows) if len(rows) > 1 else ""


if __name__ == "__main__":
    main()
