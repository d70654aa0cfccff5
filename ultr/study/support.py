"""Whether a log supports the examination by rank that a method learns from it: refused, warned of, or fine."""

from __future__ import annotations

import numpy as np

from ultr.data import ClickLog, Counts
from ultr.data.counting import merge_extra
from ultr.errors import ConfigError
from ultr.identifiability.assumed_model import assume_model
from ultr.identifiability.diagnosis import item_documents
from ultr.identifiability.linear_tower import linear_tower_limits
from ultr.propensity import Propensities
from ultr.propensity.arm_counts import arm_counts_of_cells, count_clicks_above
from ultr.study.nuisance import unidentified
from ultr.study.specs import MethodSpec
from ultr.text import ranks_text

NOISE = 1.0  # standard error of the logarithm of an examination from which it is noise: a factor of e either way
VAGUE = 0.5  # from which it is warned of: 95 % intervals of a factor of 2.7 either way


def check_support(spec: MethodSpec, found: Propensities, source: ClickLog | Counts, *, by_features: bool) -> str | None:
    """Checks whether a log supports the examination by rank that a method learns.

    Args:
      spec: the method; by its `examination`, nothing is checked ("none", and "given", which `NuisanceEstimates`
        checks), what rests on noise is refused ("learnt") or everything is only warned of ("modelled").
      found: the conditional likelihood's estimate of the log.
      source: the same log, or its counts by rank, with its features.
      by_features: whether relevance is a network over features, by which ranks are compared where no document is shown
        at both: an assumption, since documents with the same features are taken to be equally relevant.

    Returns:
      A warning, or None.

    Raises:
      ConfigError: a method that learns examination in order to rank by what is left of the clicks, and a log that does
        not tell it: ranks without a propensity, and no features or such that leave them open too.
    """
    if spec.examination not in ("learnt", "modelled"):
        return None
    reasons = unidentified(found)
    if reasons is None:
        vague = (np.flatnonzero(found.log_standard_error > VAGUE) + 1).tolist()
        if not vague:
            return None
        worst = float(np.nanmax(found.log_standard_error))
        return (
            f"too few clicks: examination at {ranks_text(vague)} is known within a factor of up to "
            f"{np.exp(1.96 * worst):.1f} either way, and so is what '{spec.name}' corrects there (see `ultr diagnose`)"
        )
    if spec.examination == "modelled":
        return (
            f"{reasons}: the examination that '{spec.name}' finds there, and its relevance, come from its assumptions, "
            "starting values and prior. Its click probabilities are not affected"
        )
    if by_features and not source.vocabulary.feature_names:  # features of impressions: what they tell is not known
        return f"{reasons}: '{spec.name}' compares them by the features of the impressions alone, if these tell"
    error = features_error(source) if by_features else np.inf
    if not error <= NOISE:
        also = ", nor do the features of the documents compare them" if by_features else ""
        raise ConfigError(
            f"{reasons}{also}: what '{spec.name}' learns there would be noise. Cut the lists above them, give "
            "propensities from elsewhere to a weighted method such as ips-listwise, or log with more variation (see "
            "`ultr diagnose`)"
        )
    return (
        f"{reasons}: '{spec.name}' compares them by the features of the documents alone, and is right as far as "
        f"relevance is a function of these (error of at least {error:.0%} at the worst rank)"
    )


def features_error(source: ClickLog | Counts) -> float:
    """Computes the smallest standard error of the examination of the worst rank that a linear tower could reach.

    inf where there are no features, or they separate the ranks.
    """
    names = source.vocabulary
    if not names.feature_names:
        return np.inf
    cells = merge_extra(count_clicks_above(source))
    arms = arm_counts_of_cells(source, cells)
    limits = linear_tower_limits(
        arms, assume_model(arms).click_probability, item_documents(cells, source.documents), names.feature_blocks()
    )
    shown = arms.sum_by_arm(arms.impressions) > 0
    clicked = arms.sum_by_arm(arms.clicks) > 0
    return float(limits.standard_error[shown].max()) if clicked[shown].all() else np.inf
