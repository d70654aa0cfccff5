"""Chooses the relevance tower of a model and the strength of its prior, by folds of the queries and without grades."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ultr.data import ClickLog
from ultr.errors import UltrError
from ultr.files import json_values
from ultr.rankers import Ranker
from ultr.study.candidates import CRITERION, Candidate, choose, judge
from ultr.study.cross_fitting import CrossFitting
from ultr.study.settings import StudyMethod
from ultr.study.specs import MethodSpec

COUNTED = "pbm"  # stands in for models that need lists: towers of one log are told apart by its counts alone


class TowerSetting(NamedTuple):
    """A relevance tower, and the strength of the prior on its weights in the unit of an average query's sessions."""

    relevance: str
    l2: float

    def of(self, method: StudyMethod) -> StudyMethod:
        """Returns a method with this setting."""
        return dataclasses.replace(method, relevance=self.relevance, l2=self.l2, l2_unit="query", grid={})


# Strong priors: a log of any size holds no more than its queries' worth of features. A linear tower hardly depends on
# its prior; of other networks three strengths span what some hundred queries and some ten thousand want.
STRENGTHS = (3.0, 10.0, 30.0)
USUAL = 10.0


def tower_settings(relevance: str, found: str, l2: float | None) -> tuple[TowerSetting, ...]:
    """Lists the settings to choose from.

    Args:
      relevance: the tower that was asked for; "auto" leaves it open.
      found: what that means for the log.
      l2: the strength that was asked for; None leaves it open.
    """
    networks = ["linear", found] if relevance == "auto" else [found]
    strengths = {name: (USUAL,) if name == "linear" else STRENGTHS for name in networks}
    if l2 is not None:
        strengths = dict.fromkeys(networks, (l2,))
    return tuple(TowerSetting(name, strength) for name in networks for strength in strengths[name])


def learns_from_counts(spec: MethodSpec, options: Mapping[str, Any]) -> bool:
    """Tells whether a method learns from counts of the log, and from nothing that is estimated of it beside."""
    if not spec.makes or spec.builder != "towers" or set(spec.needs) - {"ranks"} or options.get("frailty"):
        return False
    statistics: Any = spec.made_class.sufficient_statistics if issubclass(spec.made_class, Ranker) else "list"
    return statistics in ("rank", "last-click")  # a property, of those that depend on more than the class, is neither


class TowerChoice(NamedTuple):
    """The setting that held-out clicks chose.

    Attributes:
      setting: the tower and its prior.
      facts: what was chosen by what, with the values of every setting, as JSON.
      notes: what a reader should know.
    """

    setting: TowerSetting
    facts: dict[str, Any]
    notes: list[str]


def choose_tower(method: StudyMethod, settings: Sequence[TowerSetting], log: ClickLog, *, seed: int) -> TowerChoice:
    """Trains every setting once, judged by folds of the queries, and chooses the largest gain over the logged order.

    The position-based model stands in for methods that do not learn from counts.

    Args:
      method: with all other settings.
      settings: to choose from.
      log: all sessions to learn from; it has features of documents.
      seed: decides the folds and the starting weights.

    Raises:
      UltrError: the log cannot be judged by; says why.
    """
    by_counts = learns_from_counts(method.spec, method.options)
    judged = method if by_counts else dataclasses.replace(method, model=COUNTED, options={})
    with tempfile.TemporaryDirectory(prefix="ultr-") as work:
        data = CrossFitting(log, by="query", seed=seed, work=Path(work), stores=True)
        tried = [Candidate(setting.of(judged), setting._asdict()) for setting in settings]
        judge(tried, data, seed)
        best = choose(tried)
    facts: dict[str, Any] = {"settings": best.candidate.settings, "folds": data.folds, "by": CRITERION}
    facts |= {"reason": best.reason, "judged_with": judged.model}
    facts |= {"values": [candidate.to_json() for candidate in tried]}
    return TowerChoice(settings[tried.index(best.candidate)], json_values(facts), list(data.notes))


def choose_tower_or_usual(
    method: StudyMethod, settings: Sequence[TowerSetting], log: ClickLog, *, seed: int
) -> TowerChoice:
    """Chooses as `choose_tower`, or takes the usual setting, with its reason, where the log cannot be judged by."""
    try:
        return choose_tower(method, settings, log, seed=seed)
    except UltrError as error:
        own = [setting for setting in settings if setting.relevance == method.relevance]
        usual = next((setting for setting in own if setting.l2 == USUAL), own[0])
        reason = f"taken as it is, since held-out clicks cannot choose: {' '.join(str(error).split())}"
        return TowerChoice(usual, json_values({"settings": usual._asdict(), "reason": reason}), [])
