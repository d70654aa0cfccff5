"""Makes the cells of a study: each log once per seed, all methods on it one after another."""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import platform
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ultr import compilation_cache
from ultr.errors import ConfigError, DataError, UltrError
from ultr.evaluation import evaluate, per_query
from ultr.evaluation.trec import write_qrels, write_run
from ultr.files import write_text
from ultr.models import ClickModel
from ultr.study import boosting, cells
from ultr.study.cells import Cell
from ultr.study.learning import Learnt, learn, propensity_error
from ultr.study.nuisance import true_alpha, true_examination
from ultr.study.prepared import Lists, Prepared, shared_queries
from ultr.study.spec import Log, Study, plain
from ultr.towers import row_tables

CLICKS = ("log_likelihood", "perplexity", "conditional_perplexity")
WEIGHTS = ("effective_sample_size", "clipped", "affected", "unsupported")

Say = Callable[[str], None]


def run(
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
    """Makes the cells that are not there yet, or not with these settings.

    Args:
      folder: where they are kept, with the facts of the logs and the TREC files.
      only: names of logs and methods; () makes all. A cell is made where its log or its method is named, where both
        kinds are named, where both are.
      seeds: of those of the study; () takes all.
      jobs: processes; each takes a log and a seed at a time.
      retry: make those again that failed.
      keep_logs: keep the simulated logs in `folder/logs`.
      say: gets a line per cell; None: nothing is said.

    Returns:
      How many cells were "made", "kept" (they were there) and "failed".

    Raises:
      ConfigError: an unknown name or seed, or less than one job.
      DataError: the graded lists cannot be read, or those to judge on share queries with those learnt from.
    """
    folder = Path(folder)
    chosen = _chosen(study, only, seeds)
    if jobs < 1:
        raise ConfigError(f"expected at least one job, found {jobs}")
    marks = {cell.title: cells.fingerprint(study, cell) for cell in chosen}
    pending = [c for c in chosen if not cells.finished(folder, c, marks[c.title], retry=retry)]
    if pending:
        _check_apart(study)
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    groups = [
        (group[0].log, group[0].seed, group)
        for _, found in itertools.groupby(pending, key=lambda c: (c.seed, c.log.name if c.log else None))
        if (group := list(found))
    ]
    groups += _undiagnosed(study, chosen, folder, {(log.name if log else "", seed) for log, seed, _ in groups})
    counts = {"made": 0, "kept": len(chosen) - len(pending), "failed": 0}
    if pending and study.data.test is not None:
        (folder / "trec").mkdir(exist_ok=True)
        write_qrels(folder / "trec" / "qrels", Lists(study.data)["test"])
    tasks = [(study, log, seed, group, [marks[c.title] for c in group], folder, keep_logs)
             for log, seed, group in groups]  # fmt: skip
    if jobs == 1 or len(tasks) < 2:
        for task in tasks:
            _count(counts, _group(*task, say))
        return counts
    context, kept = multiprocessing.get_context("spawn"), _work(folder)
    others = set(multiprocessing.active_children())
    pool = concurrent.futures.ProcessPoolExecutor(
        min(jobs, len(tasks)), mp_context=context, initializer=_end_with_parent
    )
    with _alone(kept), pool:
        try:
            waiting = [pool.submit(_group, *task, _loud if say else None) for task in tasks]
            for done in concurrent.futures.as_completed(waiting):
                _count(counts, done.result())
        except BaseException:
            workers = set(multiprocessing.active_children()) - others
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.kill()
            for worker in workers:
                worker.join()
            sweep(folder)
            raise
        finally:
            shutil.rmtree(kept, ignore_errors=True)
    return counts


def _end_with_parent() -> None:
    """Ends this worker as soon as the process that started it is gone, however it ended."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _work(folder: Path) -> Path:
    """A new folder for what is made on the way, named by machine and process."""
    machine = re.sub(r"[^\w.]", "_", platform.node())
    return Path(tempfile.mkdtemp(prefix=f".work-{machine}-{os.getpid()}-", dir=folder))


def sweep(folder: Path) -> None:
    """Removes what processes of this machine that are dead left behind."""
    machine = re.sub(r"[^\w.]", "_", platform.node())
    for left in folder.glob(f".work-{machine}-*-*"):
        process = left.name.removeprefix(f".work-{machine}-").split("-")[0]
        if process.isdigit() and not _alive(int(process)):
            shutil.rmtree(left, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _undiagnosed(
    study: Study, chosen: list[Cell], folder: Path, made: set[tuple[str, int]]
) -> list[tuple[Log | None, int, list[Cell]]]:
    """Logs whose cells are all there, and whose diagnosis is not."""
    found: list[tuple[Log | None, int, list[Cell]]] = []
    for cell in chosen if study.diagnose else ():
        if cell.log is None or (cell.log.name, cell.seed) in made:
            continue
        made.add((cell.log.name, cell.seed))
        try:
            facts = json.loads(_about_place(folder, cell.log, cell.seed).read_text())
        except (OSError, ValueError):
            facts = {}
        if not {"diagnosis", "error"} & set(facts):
            found.append((cell.log, cell.seed, []))
    return found


def _chosen(study: Study, only: tuple[str, ...], seeds: tuple[int, ...]) -> list[Cell]:
    logs, methods = {log.name for log in study.logs}, {method.name for method in study.methods}
    for name in only:
        if name not in logs | methods:
            raise ConfigError(f"no log or method is called '{name}'; there are {', '.join(sorted(logs | methods))}")
    for seed in seeds:
        if seed not in study.seeds:
            raise ConfigError(f"seed {seed} is none of the study's: {', '.join(map(str, study.seeds))}")
    some_logs, some_methods = (logs & set(only)) or logs, (methods & set(only)) or methods
    return [
        c
        for c in cells.cells(study)
        if (c.log is None or c.log.name in some_logs)
        and c.method.name in some_methods
        and (not seeds or c.seed in seeds)
    ]


def _check_apart(study: Study) -> None:
    """Lists in folders of their own: what is judged on must not be what methods learn from or are chosen by."""
    data, lists = study.data, Lists(study.data)
    graded = any(m.kind.learns == "labels" for m in study.methods)
    simulated = any(log.path is None for log in study.logs)
    for role, used in (("train", graded or simulated), ("vali", graded)):
        other = getattr(data, role)
        if data.collection is not None or not used or other is None or data.test is None:
            continue
        if Path(other).resolve() == Path(data.test).resolve():
            continue
        if shared := shared_queries(lists[role].query_names, lists["test"].query_names):
            of = f"{shared:,} of {len(lists['test']):,}"
            raise DataError(
                f"expected 'test' lists of other queries than '{role}', found {of} in both",
                fix="Prepare each from queries of its own, or as splits of one collection.",
                file=data.test,
            )


def _count(counts: dict[str, int], failed: list[bool]) -> None:
    counts["failed"] += sum(failed)
    counts["made"] += len(failed) - sum(failed)


def _loud(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class _alone:
    """The environment of processes of their own, put back after them.

    Each has one thread. What one of them compiles serves all, since most of a cell's time is compilation: in a folder
    for this run, unless the programs are kept anyway.
    """

    def __init__(self, folder: Path) -> None:
        flags = os.environ.get("XLA_FLAGS", "")
        self._set = {"OMP_NUM_THREADS": "1", "XLA_FLAGS": f"{flags} --xla_cpu_multi_thread_eigen=false".strip()}
        if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
            self._set["JAX_COMPILATION_CACHE_DIR"] = str(folder)
            self._set |= {name: os.environ.get(name, value) for name, value in compilation_cache.KEEP.items()}

    def __enter__(self) -> None:
        self._before = {name: os.environ.get(name) for name in self._set}
        os.environ.update(self._set)

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _group(
    study: Study,
    settings: Log | None,
    seed: int,
    group: list[Cell],
    marks: list[str],
    folder: Path,
    keep_logs: bool,
    say: Say | None,
) -> list[bool]:
    """Makes cells of one log and seed; whether each failed."""
    lists = Lists(study.data)
    work = _work(folder)
    failed = []
    try:
        log = None
        if settings is not None:
            shares = (study.valid_share, study.test_share)
            log = Prepared(settings, seed=seed, lists=lists, shares=shares, work=work)
        about = _about(study, settings, seed, log, folder) if log is not None and settings is not None else None
        for cell, mark in zip(group, marks, strict=True):
            began = time.perf_counter()
            facts, values = _cell(study, cell, log, lists, folder)
            _warn(facts, about)
            error = facts.get("error")
            seconds = time.perf_counter() - began
            base = {"fingerprint": mark, "log": cell.log.name if cell.log else None, "method": cell.method.name,
                    "seed": cell.seed, "settings": plain(cell.method), "cell_seconds": round(seconds, 3)}  # fmt: skip
            cells.write(folder, cell, base | facts, values)
            failed.append(error is not None)
            if say is not None:
                first_metric = facts.get("metrics", {}).get(study.metrics[0])
                said = f"failed: {error}" if error else ""
                said = said or (f"{study.metrics[0]} {first_metric:.4f}" if first_metric is not None else "done")
                say(f"{cell.title}: {said} ({seconds:.1f} s)")
        if keep_logs and log is not None and (work / "log").exists():
            assert settings is not None
            kept = folder / "logs" / cells.slug(settings.name) / f"seed-{seed}"
            shutil.rmtree(kept, ignore_errors=True)
            kept.parent.mkdir(parents=True, exist_ok=True)
            (work / "log").rename(kept)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return failed


def _about(study: Study, settings: Log, seed: int, log: Prepared, folder: Path) -> dict[str, Any]:
    """The facts of a log, with what the diagnosis says before anything is trained; kept beside the cells."""
    from ultr.identifiability import report

    began = time.perf_counter()
    facts: dict[str, Any] = {"name": settings.name, "seed": seed, "settings": plain(settings)}
    try:
        names = ("sessions", "queries", "documents", "ranks", "impressions", "clicks")
        facts |= {name: log.log.metadata[name] for name in names} | {"truth": log.truth, "identity": log.log.identity}
        facts["seconds"] = round(time.perf_counter() - began, 3)
        if study.diagnose:
            found = report(log.counts("train", "query")).to_json()
            known = ("identified", "components", "unsupported", "standard_error", "worst", "warnings")
            facts["diagnosis"] = {name: found[name] for name in known if name in found}
    except UltrError as error:
        facts["diagnosis" if "truth" in facts else "error"] = (
            {"error": _line(error)} if "truth" in facts else _line(error)
        )
    place = _about_place(folder, settings, seed)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_text(place, cells.dumps(facts))
    return facts


def _about_place(folder: Path, log: Log, seed: int) -> Path:
    return folder / "about" / cells.slug(log.name) / f"seed-{seed}.json"


def _warn(facts: dict[str, Any], about: dict[str, Any] | None) -> None:
    """Says beside the numbers of a cell where they rest on less than they seem to."""
    notes = facts.setdefault("notes", [])
    diagnosis = (about or {}).get("diagnosis", {})
    if facts.get("propensity") is not None and diagnosis.get("identified") is False:
        notes.append(
            "the diagnosis said that this log does not identify examination by rank: the curve, and what it corrects, "
            "come from assumptions of the method"
        )
    if left_out := facts.get("weighting", {}).get("unsupported"):
        notes.append(f"{left_out:,.0f} impressions were left out: the displays give their documents no weight")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _cell(
    study: Study, cell: Cell, log: Prepared | None, lists: Lists, folder: Path
) -> tuple[dict[str, Any], dict[str, np.ndarray] | None]:
    """What is known of a cell, and its values per query."""
    try:
        if log is not None and cell.method.kind.learns == "clicks" and not log.log.metadata["clicks"]:
            raise DataError(f"expected clicks to learn from, found none in {len(log.log):,} sessions")
        learnt = _learnt(study, cell, log, lists)
        return _judged(study, cell, log, lists, learnt, folder)
    except UltrError as error:
        return {"error": _line(error)}, None
    except Exception as error:  # one cell must not end the others; it is tried again next time
        return {"error": f"{type(error).__name__}: {_line(error)}", "unexpected": True}, None


def _learnt(study: Study, cell: Cell, log: Prepared | None, lists: Lists) -> Learnt:
    model = cell.method.model
    if cell.method.kind.how == "boost":
        return boosting.boost(cell.method, log, lists, seed=cell.seed, metric=study.metrics[0])
    if cell.method.kind.how == "fit":
        return learn(cell.method, log, lists, seed=cell.seed, metric=study.metrics[0])
    return Learnt(_Nothing() if model == "random" else _logger(log))


class _Nothing:
    """Scores that are all the same: the order is that of the key."""

    def score(self, sessions: Any) -> np.ndarray:
        return np.zeros(sessions.shape, np.float32)


def _logger(log: Prepared | None) -> Any:
    assert log is not None
    if log.settings.path is not None:
        raise ConfigError("the ranker of the policy that made a real log is not known: leave the method 'logger' out")
    return log.logger


def _judged(
    study: Study, cell: Cell, log: Prepared | None, lists: Lists, learnt: Learnt, folder: Path
) -> tuple[dict[str, Any], dict[str, np.ndarray] | None]:
    facts: dict[str, Any] = {"chosen": learnt.chosen, "notes": learnt.notes + (log.notes if log else [])}
    facts |= {"seconds": round(learnt.seconds, 3), "all_seconds": round(learnt.all_seconds, 3), "queries": 0}
    if learnt.best:
        epoch = learnt.history[learnt.best - 1]
        facts |= {"best": learnt.best, "epochs": len(learnt.history)}
        facts["weighting"] = {name: epoch[name] for name in WEIGHTS if epoch.get(name) is not None}
    if learnt.propensity is not None:
        facts["propensity"] = learnt.propensity
        facts["propensity_error"] = propensity_error(learnt.propensity, _true_curve(learnt.model, log))
    if log is not None and isinstance(learnt.model, ClickModel) and study.test_share:
        assert learnt.by is not None
        facts["clicks"] = _clicks(learnt.model, log, learnt.by, cell.seed)
    if study.data.test is None:
        return facts, None
    test = lists["test"]
    _check_known(learnt.model, log, test)
    key = jax.random.key(cell.seed)
    found = per_query(learnt.ranker, test, metrics=study.metrics, key=key)
    facts["queries"] = len(found["query"])
    if log is not None and log.settings.path is not None and cell.method.kind.learns == "clicks":
        if shared := shared_queries(log.query_names, test.query_names):
            facts["notes"].append(
                f"{shared:,} of {len(test):,} test queries are in the log that it learnt from as well"
            )
    facts["metrics"] = {name: float(np.nanmean(found[name])) for name in study.metrics}
    place = cell.place(folder, "trec", ".run")
    place.parent.mkdir(parents=True, exist_ok=True)
    write_run(place, learnt.ranker, test, name=cells.slug(cell.method.name), key=key)
    return facts, found


def _true_curve(model: Any, log: Prepared | None) -> Any:
    """What the curve of a model should be: alpha, where it is that of an affine method and the user has trust bias."""
    truth = (log.truth or {}) if log else {}
    alpha = true_alpha(truth) if model is not None and model.corrects_trust_bias else None
    return true_examination(truth) if alpha is None else alpha  # None where there is no single one


def _clicks(model: Any, log: Prepared, by: Any, seed: int) -> dict[str, float]:
    """Click metrics on the sessions that nothing was learnt from or chosen by."""
    found = evaluate(model, log.distinct("test", by), metrics=CLICKS, key=jax.random.key(seed))
    return {name: estimate.value for name, estimate in found.items()}


def _check_known(model: Any, log: Prepared | None, test: Any) -> None:
    """A table of documents cannot rank those of another vocabulary, whose ids mean something else."""
    if log is None or model is None or not any("relevance" in path for path in row_tables(model)):
        return
    if log.log.vocabulary.fingerprint != test.vocabulary.fingerprint:
        raise ConfigError(
            "a table of documents knows only those of its log, and the test lists are others: choose a network as "
            "relevance (linear, mlp, dcn), or test lists of the same collection"
        )
