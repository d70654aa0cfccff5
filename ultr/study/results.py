"""Collects the results of a study: every number with its interval, every difference with its tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ultr.errors import UltrError
from ultr.evaluation import Estimate
from ultr.evaluation.metrics import parse_metric
from ultr.evaluation.significance import compare
from ultr.holm import holm
from ultr.study.runs import Run, StoredRuns, damaged_results, run_digest, study_runs
from ultr.study.settings import LogSpec, Study

REPLICATES = 2000
AVERAGED = ("seconds", "all_seconds", "best", "epochs")

BySeed = Mapping[int, Mapping[str, np.ndarray]]  # seed -> metric -> [Q] values


def collect_results(study: Study, folder: str | Path, *, any_settings: bool = False) -> dict[str, Any]:
    """Collects the results of the runs that are there and have the study's settings, as JSON values.

    Per log and method: each metric's mean over queries, after averaging a query over the seeds, with standard error
    and 95 % interval over queries, and the standard deviation of the seeds' means; `difference` from the chosen
    baseline on the same queries and the `seeds` that both have, with a paired t test and a randomisation test, both
    adjusted by Holm over the log's methods; `gap_closed`, the share of the way from the logger to the reference, with a
    paired bootstrap interval over queries; what it learnt of examination, likelihoods, weights, seconds, of which a
    mean is None where a seed's value is not finite (`notes` say so); and what failed.

    Args:
      folder: the one that was given to `run_study`.
      any_settings: whether results with other settings are taken too.

    Raises:
      DataError: results that no run wrote, such as a damaged file.
    """
    stored, kept = StoredRuns(folder), dict[str, dict[str, Any]]()
    for run in study_runs(study):
        found = stored.read(run)
        if found is not None and (any_settings or found.get("fingerprint") == run_digest(study, run)):
            kept[run.title] = found
    return {
        "metrics": list(study.metrics),
        "baseline": study.baseline,
        "reference": study.reference,
        "seeds": list(study.seeds),
        "logs": [_log_or_error(study, stored, log, kept) for log in study.logs],
        "failed": [{"cell": name, "error": f["error"]} for name, f in kept.items() if f.get("error")],
        "missing": [run.title for run in study_runs(study) if run.title not in kept],
    }


def _log_or_error(study: Study, stored: StoredRuns, log: LogSpec, kept: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    try:
        return _log(study, stored, log, kept)
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError) as error:
        raise damaged_results(stored.folder, error) from error
    except ValueError as error:
        if isinstance(error, UltrError):
            raise
        raise damaged_results(stored.folder, error) from error


def _log(study: Study, stored: StoredRuns, log: LogSpec, kept: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    rows, values = [], dict[str, BySeed]()
    for method in study.methods:
        by_seed = {}
        for seed in study.seeds:
            run = Run(None if method.spec.learns_from == "grades" else log, method, seed)
            if run.title in kept:
                by_seed[seed] = (run, kept[run.title])
        row, whole = _method(study, stored, method.name, by_seed)
        rows.append(row)
        if whole:
            values[method.name] = whole
    _tests(study, rows, values)
    _gaps(study, rows, values)
    return {"name": log.name, "about": _log_facts(study, stored, log), "methods": rows}


def _method(
    study: Study, stored: StoredRuns, name: str, by_seed: Mapping[int, tuple[Run, dict[str, Any]]]
) -> tuple[dict[str, Any], BySeed]:
    """Makes a row of the table, and returns it with the values per query of its seeds."""
    good = {seed: (run, facts) for seed, (run, facts) in by_seed.items() if not facts.get("error")}
    row: dict[str, Any] = {"name": name, "seeds": sorted(good)}
    errors = list(dict.fromkeys(facts["error"] for _, facts in by_seed.values() if facts.get("error")))
    if errors:
        row["errors"] = errors
    notes = list(dict.fromkeys(note for _, facts in good.values() for note in facts.get("notes", ())))
    notes += _absent(study, good, by_seed)
    if notes:
        row["notes"] = notes
    facts = [f for _, f in good.values()]
    for key in AVERAGED:
        numbers = [f[key] for f in facts if f.get(key) is not None]
        if numbers:
            row[key] = float(np.mean(numbers))
    for key in ("clicks", "propensity_error", "weighting"):
        found = {seed: f.get(key) or {} for seed, (_, f) in good.items()}
        if names := next((list(f) for f in found.values() if f), None):
            row[key] = {n: _mean([f.get(n) for f in found.values()]) for n in names}
            for n in row[key]:
                if odd := [seed for seed, f in found.items() if not _is_finite(f.get(n))]:
                    text = f"{key}, {n}: infinite or not known with {_seeds(odd)}, so that it has no mean"
                    row.setdefault("notes", []).append(text.replace("_", " "))
    if curves := [f["propensity"] for f in facts if f.get("propensity")]:
        row["propensity"] = _over_seeds(_padded(curves)).tolist()
    if learnt := [{"seed": seed, **f["examination"]} for seed, (_, f) in good.items() if f.get("examination")]:
        row["examination"] = learnt  # with intervals: each seed has a log of its own
    chosen = [{"seed": seed, **f["chosen"]} for seed, (_, f) in good.items() if f.get("chosen")]
    if chosen:
        row["chosen"] = chosen
    tables = {seed: stored.read_values(run) for seed, (run, f) in good.items() if f.get("queries")}
    whole = {seed: t for seed, t in tables.items() if t is not None}
    if not whole:
        return row, {}
    row["metrics"] = {}
    for metric in study.metrics:
        each = np.stack([t[metric] for t in whole.values()])
        seed_means = np.nanmean(each, axis=1)
        estimate = Estimate.mean(_over_seeds(each), bounds=parse_metric(metric).metric.bounds).to_json()
        spread = float(seed_means.std(ddof=1)) if len(seed_means) > 1 else None
        row["metrics"][metric] = estimate | {
            "seed_deviation": spread,
            "by_seed": dict(zip(map(str, whole), seed_means.tolist(), strict=True)),
        }
    return row, whole


def _absent(study: Study, good: Mapping[int, Any], by_seed: Mapping[int, Any]) -> list[str]:
    """Says which seeds a row goes without."""
    if not good or len(good) == len(study.seeds):
        return []
    failed = [seed for seed in by_seed if seed not in good]
    missing = [seed for seed in study.seeds if seed not in by_seed]
    said = [f"{_seeds(which)} {how}" for which, how in ((failed, "failed"), (missing, "not made yet")) if which]
    return [f"{', '.join(said)}: its numbers are of {_seeds(sorted(good))} alone"]


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _padded(curves: Sequence[Sequence[Any]]) -> np.ndarray:
    """Stacks curves that may differ in length as [S, R]; NaN where one has no value."""
    out = np.full((len(curves), max(map(len, curves))), np.nan)
    for row, curve in zip(out, curves, strict=True):
        row[: len(curve)] = np.array(curve, np.float64)
    return out


def _over_seeds(each: np.ndarray) -> np.ndarray:
    """Averages values [S, Q] over seeds; NaN where no seed has a value."""
    there = ~np.isnan(each)
    count = there.sum(0)
    return np.where(count > 0, np.where(there, each, 0.0).sum(0) / np.maximum(count, 1), np.nan)


def _mean(numbers: Sequence[Any]) -> float | None:
    """Averages numbers; None where one is not finite: a mean of the others would look like one of all."""
    return float(np.mean(numbers)) if numbers and all(map(_is_finite, numbers)) else None


def _is_finite(x: Any) -> bool:
    return x is not None and math.isfinite(x)


def _shared(metric: str, *methods: BySeed) -> tuple[list[int], list[np.ndarray]]:
    """Finds the seeds that all of the methods have, and averages each method over them, [Q]."""
    seeds = sorted(set.intersection(*(set(m) for m in methods)))
    return seeds, [_over_seeds(np.stack([m[seed][metric] for seed in seeds])) for m in methods] if seeds else []


def _tests(study: Study, rows: list[dict[str, Any]], values: Mapping[str, BySeed]) -> None:
    """Adds `difference` to the rows: metric -> difference from the baseline, with the p-values of its tests."""
    baseline = str(study.baseline)
    if study.baseline not in values or len(values) < 2:
        return
    for metric in study.metrics:
        found = dict[str, dict[str, Any]]()
        for row in rows:
            name = row["name"]
            if name not in values or name == baseline:
                continue
            seeds, means = _shared(metric, values[name], values[baseline])
            if not seeds:
                row.setdefault("notes", []).append(f"no tests of {metric}: no seed in common with {baseline}")
                continue
            try:
                (test,) = compare({name: means[0], baseline: means[1]}, baseline=baseline)
            except UltrError as error:
                row.setdefault("notes", []).append(f"no tests of {metric}: {error}")
                continue
            found[name] = {k: v for k, v in test.to_json().items() if k != "name"} | {"seeds": seeds}
            row.setdefault("difference", {})[metric] = found[name]
        for which in ("t", "randomisation"):  # adjusted over all of them
            p = [math.nan if f[f"p_{which}"] is None else f[f"p_{which}"] for f in found.values()]
            for f, adjusted in zip(found.values(), holm(p).tolist(), strict=True):
                f[f"holm_{which}"] = None if math.isnan(adjusted) else adjusted


def _gaps(study: Study, rows: list[dict[str, Any]], values: Mapping[str, BySeed]) -> None:
    """Adds `gap_closed` to the rows, for the first metric."""
    logger = next((m.name for m in study.methods if m.model == "logger"), None)
    if logger not in values or study.reference not in values:
        return
    metric = study.metrics[0]
    low, high = values[str(logger)], values[str(study.reference)]
    for row in rows:
        if row["name"] in values and row["name"] not in (logger, study.reference):
            seeds, means = _shared(metric, values[row["name"]], low, high)
            nothing = {"value": None, "interval": [None, None], "reason": "no seed in common with logger and reference"}
            row["gap_closed"] = gap_closed(*means) if seeds else nothing


def gap_closed(method: np.ndarray, logger: np.ndarray, reference: np.ndarray, *, seed: int = 0) -> dict[str, Any]:
    """Computes the share of the way from the logger to the reference, (method - logger) / (reference - logger).

    Args:
      method, logger, reference: [Q] values of one metric on the same queries; NaN: no value.
      seed: decides the resampling.

    Returns:
      `value` and `interval`, 95 % by the percentiles of a paired bootstrap over queries. Where the reference is not
      better than the logger, or in 1 % or more of the resamples, there is no interval (and no value in the first case):
      `reason` says so.
    """
    there = ~(np.isnan(method) | np.isnan(logger) | np.isnan(reference))
    gain, gap = (method - logger)[there], (reference - logger)[there]
    n = len(gain)
    if n == 0 or not gap.mean() > 0:
        return {"value": None, "interval": [None, None], "reason": "the reference is not better than the logger"}
    value = float(gain.mean() / gap.mean())
    if n < 2:
        return {"value": value, "interval": [None, None], "reason": "one query"}
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), REPLICATES).astype(np.float64)
    gains, gaps = times @ gain, times @ gap
    if (gaps <= 0).mean() >= 0.01:
        reason = "the reference is better than the logger on too few queries for an interval"
        return {"value": value, "interval": [None, None], "reason": reason}
    shares = (gains / np.where(gaps > 0, gaps, np.nan))[gaps > 0]
    return {"value": value, "interval": np.percentile(shares, [2.5, 97.5]).tolist(), "reason": None}


def _log_facts(study: Study, stored: StoredRuns, log: LogSpec) -> dict[str, Any]:
    """Summarises what is known of a log over its seeds."""
    found = [facts for seed in study.seeds if (facts := stored.read_log_facts(log, seed))]
    if not found:
        return {}
    out: dict[str, Any] = {}
    for name in ("sessions", "clicks", "queries", "ranks"):
        out[name] = _mean([f[name] for f in found if name in f])
    truths = [f.get("truth") or {} for f in found]
    lowest = [t["lowest"] for t in truths if t.get("lowest")]
    if lowest:
        names = [n for n in ("perplexity", "conditional_perplexity") if n in lowest[0]]
        out["lowest"] = {n: _mean([_value(x.get(n)) for x in lowest]) for n in names}
    if truths and truths[0].get("examination"):
        out["examination"] = truths[0]["examination"]
    said = [f["diagnosis"] for f in found if f.get("diagnosis")]
    if said:
        known = [d for d in said if "error" not in d]
        worst = [d["worst"]["standard_error"] for d in known]
        out["diagnosis"] = {
            "identified": [bool(d["identified"]) for d in known],
            "worst_standard_error": None if not worst or None in worst else float(np.mean(worst)),
            "components": known[0]["components"] if known else None,
            "misfit": [d["goodness_of_fit"]["failed"] for d in known if "goodness_of_fit" in d],
            "models": sorted({m for d in known for m in d.get("goodness_of_fit", {}).get("models", ())}),
            "errors": [d["error"] for d in said if "error" in d],
        }
    return out


def _value(value: Any) -> float | None:
    """Returns a finite number, or the value of an estimate; None for anything else."""
    value = value.get("value") if isinstance(value, Mapping) else value
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
