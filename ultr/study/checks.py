"""Checks of a study beyond the types of its values: names, roles, shares, and what goes together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ultr import simulate
from ultr.errors import ConfigError
from ultr.evaluation.metrics import RANKING_METRICS, RankingMetric, parse_metric, suggested_metric
from ultr.files import folder_name
from ultr.propensity import ESTIMATORS
from ultr.study.nuisance import check_propensity_source
from ultr.study.settings import LogSpec, Study, StudyMethod
from ultr.text import did_you_mean

NAME = re.compile(r"[\w+@=.,-][\w+@=., -]*")
RESERVED_NAMES = (".", "..", "-")  # they mean something else in a path
ROLES = {"train": "simulated logs are drawn from", "test": "methods are judged on"}


def check_study(study: Study, where: str) -> None:
    """Checks that the parts of a study go together.

    Args:
      where: the study's file, for errors.

    Raises:
      ConfigError: says what was expected and found.
    """
    _check_names("log", [log.name for log in study.logs], where)
    _check_names("method", [method.name for method in study.methods], where)
    if not study.seeds or len(set(study.seeds)) < len(study.seeds) or min(study.seeds) < 0:
        raise ConfigError(f"{where}: expected different seeds of at least 0, found {list(study.seeds)}")
    _check_metrics(study.metrics, where)
    graded = [method.name for method in study.methods if method.spec.learns_from == "grades"]
    _check_roles(study, graded, where)
    if not (0 < study.valid_share < 1 and 0 <= study.test_share < 1 and study.valid_share + study.test_share < 1):
        raise ConfigError(
            f"{where}: expected valid_share above 0, test_share of at least 0 and less than 1 together, found "
            f"{study.valid_share} and {study.test_share}"
        )
    missing = [role for role in ROLES if getattr(study.data, role) is None]
    if missing and any(log.path is None for log in study.logs):
        raise ConfigError(f"{where}, [data]: expected '{missing[0]}', the lists that {ROLES[missing[0]]}; found none")
    if study.data.test is None and study.reference is not None:
        raise ConfigError(f"{where}, [data]: a reference needs 'test', the lists to judge on; found none")
    if graded and (study.data.train is None or study.data.vali is None):
        raise ConfigError(f"{where}, [data]: '{graded[0]}' learns from grades: expected 'train' and 'vali'")


def _check_names(what: str, names: Sequence[str], where: str) -> None:
    for name in names:
        if not NAME.fullmatch(name):
            raise ConfigError(f"{where}: the {what} name '{name}' has signs other than letters, digits and + @ = . , -")
        if name in RESERVED_NAMES:
            raise ConfigError(f"{where}: the {what} name '{name}' cannot name a folder: give it letters")
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ConfigError(f"{where}: two {what}s are called '{twice[0]}': give each a name of its own")
    folders = dict[str, str]()
    for name in names:
        other = folders.setdefault(folder_name(name).casefold(), name)
        if other != name:
            raise ConfigError(
                f"{where}: the {what}s '{other}' and '{name}' would be kept in the same folder: give names that "
                f"differ in more than case, spaces and _"
            )


def _check_metrics(metrics: Sequence[str], where: str) -> None:
    if not metrics:
        raise ConfigError(f"{where}: expected at least one metric, such as ndcg@10, found none")
    for name in metrics:
        try:
            metric = parse_metric(name).metric
        except ConfigError:
            metric = None
        if not isinstance(metric, RankingMetric):
            known = [f"{m}@k" for m in RANKING_METRICS]
            hint = suggested_metric(name, RANKING_METRICS) if metric is None else ""
            raise ConfigError(f"{where}: expected ranking metrics ({', '.join(known)}), found '{name}'{hint}")
        if metrics.count(name) > 1:
            raise ConfigError(f"{where}: the metric '{name}' is given twice: leave one out")


def _check_roles(study: Study, graded: Sequence[str], where: str) -> None:
    methods = [method.name for method in study.methods]
    for role, name in (("baseline", study.baseline), ("reference", study.reference)):
        if name is not None and name not in methods:
            hint = did_you_mean(name, methods)
            raise ConfigError(f"{where}: {role} '{name}' is no method{hint}; methods: {', '.join(methods)}")
    if study.reference is not None and study.reference not in graded:
        known = f"one of {', '.join(graded)}" if graded else "such as a method of the model full-information"
        raise ConfigError(f"{where}: expected a reference that learns from grades ({known}), found '{study.reference}'")


def check_simulated_log(log: LogSpec, where: str) -> None:
    """Checks a simulated log: what `simulate` would refuse is said before anything is made.

    Raises:
      ConfigError: an unknown user or policy, or options that they do not take.
    """
    users = [part.removesuffix("-bottom-up") for part in log.user.split("+")]
    for what, given, known in (("user", users, simulate.USERS), ("policy", [log.policy], simulate.RANKERS)):
        for name in given:
            if name not in known:
                hint = did_you_mean(name, known)
                raise ConfigError(f"{where}: unknown {what} '{name}'{hint}; known: {', '.join(known)}")
    try:
        log.logging_policy()
        log.simulated_user(grades=4)  # of the lists; no check depends on it
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def check_propensity(source: str, where: str) -> None:
    """Checks the name of a source of propensities.

    Raises:
      ConfigError: names the table, the source and the known ones.
    """
    try:
        check_propensity_source(source)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def check_trust(method: StudyMethod, sources: Iterable[str | None], where: str) -> None:
    """Refuses estimators of examination for a method that takes trust parameters, whatever is chosen of its grid.

    They know no trust, so that the method would fit its own and the estimator would have no effect.

    Raises:
      ConfigError: names the table and the source.
    """
    trusting = method.grid.get("trust", (method.options.get("trust", False),))
    if not (all(trusting) or "affine" in method.spec.needs):
        return
    for source in sources:
        if source in ESTIMATORS:
            raise ConfigError(
                f"{where}: 'propensity' as '{source}' has no effect with '{method.model}', which needs trust "
                "parameters as well: expected true or a .json file. Leave it out, and a trust model is fitted to the "
                "training sessions"
            )
