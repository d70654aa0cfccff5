"""Which methods `ultr train` trains, with which solvers, and what they are given of a log."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ultr.errors import ConfigError
from ultr.study.registry import AUTO, METHODS, method_spec
from ultr.study.specs import MethodSpec
from ultr.text import did_you_mean

if TYPE_CHECKING:
    from ultr.data import ClickLog
    from ultr.study.nuisance import NuisanceEstimates

TRAINED = {name: spec for name, spec in METHODS.items() if spec.trained_on_log}


def trained_method(model: str) -> MethodSpec:
    """Finds a method that this command trains."""
    if model == AUTO.name:
        return AUTO
    for name in [model] if model in METHODS else model.split("+"):
        if name not in METHODS:
            hint = did_you_mean(name, TRAINED)
            raise ConfigError(f"unknown model '{name}'{hint}; known: {', '.join(TRAINED)}")
    spec = method_spec(model)
    if not spec.trained_on_log:
        raise ConfigError(f"--model {model} is a method of `ultr compare` alone; known: {', '.join(TRAINED)}")
    return spec


def check_solver(spec: MethodSpec, solver: str) -> None:
    """Refuses a solver that cannot train the method, before any work."""
    known = [*(["gradient"] if spec.by_gradient else []), *spec.solvers]
    if solver not in known:
        by_gradient = solver == "gradient"
        solved = ", ".join(
            name for name, other in TRAINED.items() if (other.by_gradient if by_gradient else solver in other.solvers)
        )
        *others, last = known
        raise ConfigError(
            f"--solver {solver} cannot train --model {spec.name}, only {solved}. Choose --solver "
            + (f"{', '.join(others)} or {last}" if others else last)
        )


def check_propensity(spec: MethodSpec, source: str) -> None:
    from ultr.propensity import ESTIMATORS
    from ultr.study.nuisance import TRUE, check_propensity_source

    unused = f"--propensity has no effect with --model {spec.name}"
    if not spec.takes_propensities and "displays" not in spec.needs:
        weighted = ", ".join(name for name, other in TRAINED.items() if other.takes_propensities)
        raise ConfigError(f"{unused}, only with {weighted}")
    try:
        check_propensity_source(source)
    except ConfigError as error:
        raise ConfigError(f"--propensity: {error}") from error
    if not spec.takes_propensities:
        raise ConfigError(f"{unused}, which weighs by how often documents are shown at which rank. Leave it out")
    if "affine" in spec.needs and source in ESTIMATORS:
        raise ConfigError(
            f"--propensity {source} has no effect with --model {spec.name}, which needs trust parameters as well: "
            f"expected {TRUE} or a .json file. Leave it out, and a trust model is fitted to the training sessions"
        )
    if source.endswith(".json") and not Path(source).is_file():
        raise ConfigError(f"--propensity {source}: no such file. Write it with `ultr propensity LOG --json`")


def nuisance_estimates(
    log: Path, train: ClickLog, spec: MethodSpec, propensity: str | None, seed: int
) -> NuisanceEstimates:
    """Prepares what weighted methods are given beside the training sessions."""
    from ultr.data import ClickLog
    from ultr.study.nuisance import DEFAULT_ESTIMATOR, NuisanceEstimates

    if spec.takes_propensities and propensity is None:
        how = "a trust model" if "affine" in spec.needs else "the conditional likelihood"
        click.echo(f"note: without --propensity, examination is estimated on the training sessions by {how}", err=True)
    whole = ClickLog.open(log)  # with the sessions held out, whose queries have displays of their own
    source, truth = propensity or DEFAULT_ESTIMATOR, whole.metadata.get("truth")
    return NuisanceEstimates(train, source=source, truth=truth, shown=whole, seed=seed)
