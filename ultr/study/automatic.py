"""Chooses among methods and settings by cross-fitted ranking gains, refits the best on the whole log, and guards it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ultr.baselines import GuardedRanker, NaiveListwise
from ultr.data import ClickLog
from ultr.errors import UltrError
from ultr.files import json_values
from ultr.study.candidates import CRITERION, Candidate, choose, judge, refit
from ultr.study.cross_fitting import CrossFitting, Unit
from ultr.study.guarding import guard
from ultr.study.registry import AUTO, AUTO_MODELS
from ultr.study.settings import StudyMethod
from ultr.study.specs import TABLES
from ultr.study.tower_choice import USUAL, TowerSetting, tower_settings
from ultr.study.tower_factory import resolve_relevance
from ultr.towers import record_schema, trained_schema
from ultr.training.fitted import Fitted

Folds = Callable[[Unit], CrossFitting]


class Chosen(NamedTuple):
    """The method that held-out clicks chose, trained on the whole log.

    Attributes:
      ranker: the trained model, or its `GuardedRanker`.
      fitted: of the training on the whole log.
      method: with the settings that were chosen.
      by: what was dealt out to folds, queries or sessions.
      facts: what was chosen by what, with the values of every candidate, as JSON.
      seconds: of the training of the chosen candidate on the folds. all_seconds: of all candidates.
      notes: what a reader should know.
    """

    ranker: Any
    fitted: Fitted
    method: StudyMethod
    by: Unit
    facts: dict[str, Any]
    seconds: float
    all_seconds: float
    notes: list[str]


def unit_of(method: StudyMethod, log: ClickLog) -> Unit:
    """Tells what is held out for a method: sessions for tables, which know nothing of queries not trained on."""
    return "session" if resolve_relevance(method.relevance, log) in TABLES else "query"


def choose_by_folds(
    variants: Sequence[tuple[dict[str, Any], StudyMethod]], log: ClickLog, folds: Folds, *, seed: int, safe: bool
) -> Chosen:
    """Judges variants of methods on folds, refits the best one on the whole log, and guards it if that is asked for.

    Args:
      variants: settings in which they differ, and the method with them.
      log: all that may be learnt from.
      folds: makes or finds the folds of its queries or sessions.
      safe: whether to return a correction of the logged order that held-out clicks vouch for.

    Raises:
      UltrError: none can be trained, or the log cannot be judged by; says why.
    """
    tried: list[Candidate] = []
    try:
        best = _choose(list(variants), log, folds, tried, seed)
    except UltrError as error:
        if not safe:
            raise
        return _logged_alone(variants[0][1], tried, log, folds, str(error))
    return _finished(best, tried, log, folds, seed=seed, safe=safe)


def choose_automatically(method: StudyMethod, log: ClickLog, folds: Folds, *, seed: int, safe: bool) -> Chosen:
    """Chooses click model or ranker, then its tower and the strength of its prior, by folds; arguments as above.

    Args:
      method: its settings hold for all candidates; model "auto" stands for those of `registry.AUTO_MODELS`, relevance
        "auto" for a linear tower and an MLP where the log has features, and an l2 of 0 for the strengths of
        `tower_settings`.
    """
    tried: list[Candidate] = []
    models = AUTO_MODELS if method.model == AUTO.name else (method.model,)
    found = resolve_relevance(method.relevance, log)
    settings: tuple[TowerSetting, ...] = ()
    if found not in TABLES:
        settings = tower_settings(method.relevance, found, method.l2 or None)
    first = next((s for s in settings if s.l2 == USUAL), settings[0]) if settings else None
    start = []
    for model in models:
        own = _with(method, model=model)
        values = {"model": model} | ({"relevance": found, "l2": method.l2} if first is None else first._asdict())
        start.append((values, own if first is None else first.of(own)))
    try:
        best = _choose(start, log, folds, tried, seed)
    except UltrError as error:
        if not safe:
            raise
        return _logged_alone(start[0][1], tried, log, folds, str(error))
    others = [
        Candidate(setting.of(best.method), best.settings | setting._asdict())
        for setting in settings
        if setting != first
    ]
    if others:
        tried += others
        judge(others, folds("query"), seed)
        best = choose([best, *others]).candidate
    return _finished(best, tried, log, folds, seed=seed, safe=safe)


def _with(method: StudyMethod, **changes: Any) -> StudyMethod:
    return dataclasses.replace(method, **changes, grid={})


def _choose(
    variants: Sequence[tuple[dict[str, Any], StudyMethod]],
    log: ClickLog,
    folds: Folds,
    tried: list[Candidate],
    seed: int,
) -> Candidate:
    found = [Candidate(method, settings) for settings, method in variants]
    tried += found
    chosen: list[Candidate] = []
    problems: list[str] = []
    for unit in dict.fromkeys(unit_of(candidate.method, log) for candidate in found):
        group = [candidate for candidate in found if unit_of(candidate.method, log) == unit]
        judge(group, folds(unit), seed)
        try:
            chosen.append(choose(group).candidate)
        except UltrError as error:
            problems.append(str(error))
    if not chosen:
        raise UltrError("; ".join(problems))
    return max(chosen, key=lambda candidate: candidate.gain.value)


def _logged_alone(method: StudyMethod, tried: list[Candidate], log: ClickLog, folds: Folds, problem: str) -> Chosen:
    """Falls back to the logged order alone, where the log cannot support what was to correct it."""
    by = unit_of(method, log)
    data = folds(by)
    logged = data.logged()
    own = NaiveListwise(relevance=logged.tower)
    ranker = GuardedRanker(ranker=own, logger=logged.tower, correction=0.0)
    record_schema(ranker, trained_schema(ranker, data.counts("rank")))
    reason = f"nothing could be trained, so that the logged order is kept: {problem}"
    facts = {"epoch": 0, "settings": {}, "folds": data.folds, "by": CRITERION, "reason": reason}
    facts |= {"values": [candidate.to_json() for candidate in tried]}
    facts["guard"] = json_values(
        {"correction": 0.0, "reason": reason, "values": [], "agreement_with_logged_order": logged.agreement}
    )
    seconds = sum(candidate.seconds for candidate in tried)
    return Chosen(ranker, Fitted(own, [], 0), method, by, facts, 0.0, seconds, [*data.notes, reason])


def _finished(best: Candidate, tried: list[Candidate], log: ClickLog, folds: Folds, *, seed: int, safe: bool) -> Chosen:
    by = unit_of(best.method, log)
    data = folds(by)
    fitted = refit(best, data, seed)
    values = [candidate.to_json() for candidate in tried]
    facts: dict[str, Any] = {"epoch": fitted.best, "settings": json_values(best.settings), "folds": data.folds}
    facts |= {"by": CRITERION, "values": values}
    if len(tried) > 1:
        facts["reason"] = choose([c for c in tried if unit_of(c.method, log) == by]).reason
    ranker: Any = fitted.model
    if safe:
        found = guard(fitted.model, best, data)
        ranker, facts["guard"] = found.ranker, found.to_json()
    return Chosen(
        ranker=ranker,
        fitted=fitted,
        method=best.method,
        by=by,
        facts=facts,
        seconds=best.seconds,
        all_seconds=sum(candidate.seconds for candidate in tried),
        notes=list(data.notes),
    )
