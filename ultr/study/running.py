"""Makes the runs of a study: each log once per seed, all methods on it one after another."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ultr.errors import ConfigError, DataError, UltrError
from ultr.evaluation.metrics import parse_metric
from ultr.evaluation.trec import write_qrels
from ultr.files import folder_name, json_values
from ultr.identifiability import report
from ultr.locks import Scratch, locked, sweep
from ultr.study.judging import add_cautions, make_run, one_line
from ultr.study.prepared import JudgedLists, PreparedLog, count_shared
from ultr.study.runs import Run, StoredRuns, run_digest, study_runs
from ultr.study.settings import LogSpec, Study
from ultr.study.workers import call_in_processes
from ultr.text import did_you_mean

LOG_FACTS = ("sessions", "queries", "documents", "ranks", "impressions", "clicks")
DIAGNOSIS_FACTS = (
    "identified", "components", "unsupported", "standard_error", "worst", "goodness_of_fit", "warnings"
)  # fmt: skip

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class _Batch:
    """The runs of one log and seed to be made, with their digests; none where only the diagnosis is missing."""

    log: LogSpec | None
    seed: int
    runs: list[tuple[Run, str]]


def run_study(
    study: Study,
    folder: str | Path,
    *,
    only: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (),
    jobs: int = 1,
    retry: bool = False,
    keep_logs: bool = False,
    say: Say | None = None,
) -> dict[str, int]:
    """Makes the runs whose results are not there yet, or not with these settings.

    Args:
      folder: where results are kept, with the facts of the logs and the TREC files.
      only: names of logs and methods; () makes all. A run is made where its log or its method is named; where both
        kinds are named, where both are.
      seeds: of those of the study; () takes all.
      jobs: processes; each takes a log and a seed at a time.
      retry: make those again that failed.
      keep_logs: keep the simulated logs in `folder/logs`.
      say: gets a line per run; None: nothing is said.

    Returns:
      How many runs were "made", "kept" (their results were there) and "failed".

    Raises:
      ConfigError: an unknown name or seed, less than one job, or another process makes runs in the folder.
      DataError: the graded lists cannot be read, or those to judge on share queries with those learnt from.
    """
    stored = StoredRuns(folder)
    chosen = [(run, run_digest(study, run)) for run in _chosen(study, only, seeds)]
    if jobs < 1:
        raise ConfigError(f"expected at least one job, found {jobs}")
    pending = [(run, digest) for run, digest in chosen if not stored.is_finished(run, digest, retry=retry)]
    if pending:
        _check_apart(study)
        _check_scales(study)
    with locked(stored.folder, inside=True):
        sweep(stored.folder)
        batches = _batches(study, pending) + _undiagnosed(study, chosen, pending, stored)
        counts = {"made": 0, "kept": len(chosen) - len(pending), "failed": 0}
        if pending and study.data.test is not None:
            (stored.folder / "trec").mkdir(exist_ok=True)
            write_qrels(stored.folder / "trec" / "qrels", JudgedLists(study.data)["test"])
        if jobs == 1 or len(batches) < 2:
            for batch in batches:
                _count(counts, _make_batch(study, batch, stored.folder, keep_logs, say))
            return counts
        tasks = [(study, batch, stored.folder, keep_logs, _say_aloud if say else None) for batch in batches]
        with contextlib.closing(call_in_processes(_make_batch, tasks, jobs=jobs, folder=stored.folder)) as results:
            for failed in results:
                _count(counts, failed)
    return counts


def _chosen(study: Study, only: tuple[str, ...], seeds: tuple[int, ...]) -> list[Run]:
    logs, methods = {log.name for log in study.logs}, {method.name for method in study.methods}
    for name in only:
        if name not in logs | methods:
            hint = did_you_mean(name, logs | methods)
            raise ConfigError(
                f"no log or method is called '{name}'{hint}; there are {', '.join(sorted(logs | methods))}"
            )
    for seed in seeds:
        if seed not in study.seeds:
            raise ConfigError(f"seed {seed} is none of the study's: {', '.join(map(str, study.seeds))}")
    some_logs, some_methods = (logs & set(only)) or logs, (methods & set(only)) or methods
    return [
        run
        for run in study_runs(study)
        if (run.log is None or run.log.name in some_logs)
        and run.method.name in some_methods
        and (not seeds or run.seed in seeds)
    ]


def _batches(study: Study, pending: Sequence[tuple[Run, str]]) -> list[_Batch]:
    """Groups runs by seed and log, in their order."""
    out = []
    for _, found in itertools.groupby(pending, key=lambda p: (p[0].seed, p[0].log.name if p[0].log else None)):
        runs = list(found)
        out.append(_Batch(runs[0][0].log, runs[0][0].seed, runs))
    return out


def _undiagnosed(
    study: Study, chosen: Sequence[tuple[Run, str]], pending: Sequence[tuple[Run, str]], stored: StoredRuns
) -> list[_Batch]:
    """Finds the logs whose runs are all there, and whose diagnosis is not."""
    seen = {(run.log.name if run.log else "", run.seed) for run, _ in pending}
    found: list[_Batch] = []
    for run, _ in chosen if study.diagnose else ():
        if run.log is None or (run.log.name, run.seed) in seen:
            continue
        seen.add((run.log.name, run.seed))
        if not {"diagnosis", "error"} & set(stored.read_log_facts(run.log, run.seed)):
            found.append(_Batch(run.log, run.seed, []))
    return found


def _check_apart(study: Study) -> None:
    """Refuses lists to judge on, in folders of their own, that share queries with those to learn from or choose by."""
    data, lists = study.data, JudgedLists(study.data)
    graded = any(method.spec.learns_from == "grades" for method in study.methods)
    simulated = any(log.path is None for log in study.logs)
    for role, used in (("train", graded or simulated), ("vali", graded)):
        other = getattr(data, role)
        if data.collection is not None or not used or other is None or data.test is None:
            continue
        if Path(other).resolve() == Path(data.test).resolve():
            continue
        if shared := count_shared(lists[role].query_names, lists["test"].query_names):
            of = f"{shared:,} of {len(lists['test']):,}"
            raise DataError(
                f"expected 'test' lists of other queries than '{role}', found {of} in both",
                fix="Prepare each from queries of its own, or as splits of one collection.",
                file=data.test,
            )


def _check_scales(study: Study) -> None:
    """Refuses lists to judge on, in a folder of their own, whose grades are on another scale than those of `train`."""
    data, lists = study.data, JudgedLists(study.data)
    scaled = [name for name in study.metrics if parse_metric(name).metric.needs_max_grade]
    if not scaled or data.collection is not None or data.train is None or data.test is None:
        return
    train, test = lists["train"].vocabulary.max_grade, lists["test"].vocabulary.max_grade
    if train is not None and test is not None and train != test:
        raise DataError(
            f"'{scaled[0]}' refers to the highest grade of the scale: expected {train:g}, that of the 'train' lists, "
            f"found {test:g}",
            fix="Prepare both with the same --max-grade, or these with --vocabulary TRAIN.",
            file=data.test,
        )


def _count(counts: dict[str, int], failed: list[bool]) -> None:
    counts["failed"] += sum(failed)
    counts["made"] += len(failed) - sum(failed)


def _say_aloud(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _make_batch(study: Study, batch: _Batch, folder: Path, keep_logs: bool, say: Say | None) -> list[bool]:
    """Makes the runs of one log and seed; returns whether each failed."""
    stored, lists, work = StoredRuns(folder), JudgedLists(study.data), Scratch(folder)
    failed = []
    try:
        log, log_facts = None, dict[str, Any]()
        if batch.log is not None:
            shares = (study.valid_share, study.test_share)
            log = PreparedLog(batch.log, seed=batch.seed, lists=lists, shares=shares, work=work.path)
            log_facts = _write_log_facts(study, log, stored)
        for run, digest in batch.runs:
            began = time.perf_counter()
            facts, values = make_run(study, run, log, lists, stored)
            add_cautions(facts, log_facts)
            seconds = time.perf_counter() - began
            identity = {
                "fingerprint": digest,
                "log": run.log.name if run.log else None,
                "method": run.method.name,
                "seed": run.seed,
                "settings": json_values(run.method),
                "cell_seconds": round(seconds, 3),
            }
            stored.write(run, identity | facts, values)
            failed.append(facts.get("error") is not None)
            if say is not None:
                say(f"{run.title}: {_summary(study, facts)} ({seconds:.1f} s)")
        if keep_logs and batch.log is not None and (work.path / "log").exists():
            kept = folder / "logs" / folder_name(batch.log.name) / f"seed-{batch.seed}"
            shutil.rmtree(kept, ignore_errors=True)
            kept.parent.mkdir(parents=True, exist_ok=True)
            (work.path / "log").rename(kept)
    finally:
        work.remove()
    return failed


def _summary(study: Study, facts: dict[str, Any]) -> str:
    if error := facts.get("error"):
        return f"failed: {error}"
    value = facts.get("metrics", {}).get(study.metrics[0])
    return "done" if value is None else f"{study.metrics[0]} {value:.4f}"


def _write_log_facts(study: Study, log: PreparedLog, stored: StoredRuns) -> dict[str, Any]:
    """Writes the facts of a log, with its diagnosis before anything is trained, and returns them."""
    began = time.perf_counter()
    facts: dict[str, Any] = {"name": log.settings.name, "seed": log.seed, "settings": json_values(log.settings)}
    try:
        facts |= {name: log.log.metadata[name] for name in LOG_FACTS}
        facts |= {"truth": log.truth, "identity": log.log.identity}
        facts["seconds"] = round(time.perf_counter() - began, 3)
        if study.diagnose:
            found = report(log.counts("train", "query", "last-click")).to_json()
            facts["diagnosis"] = {name: found[name] for name in DIAGNOSIS_FACTS if name in found}
    except UltrError as error:
        if "truth" in facts:
            facts["diagnosis"] = {"error": one_line(error)}
        else:
            facts["error"] = one_line(error)
    stored.write_log_facts(log.settings, log.seed, facts)
    return facts
