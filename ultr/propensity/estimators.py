"""The registry of propensity estimators: the command line, studies and weighted methods find them here by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType

from ultr.propensity.click_rates import ctr, randomised
from ultr.propensity.conditional import conditional_likelihood
from ultr.propensity.harvesting import adjacent_chain, all_pairs, pivot_one, variance_weighted
from ultr.propensity.joint import maximum_likelihood
from ultr.propensity.propensities import Propensities


@dataclasses.dataclass(frozen=True)
class EstimatorSpec:
    """An estimator of propensities.

    Attributes:
      name: on the command line and in studies.
      estimate: from a log, its counts or `ArmCounts`, and keyword options, to `Propensities`.
      summary: one line of description.
      resampled: whether its errors come from resampling queries (options `replicates` and `seed`); else it is a
        likelihood (option `errors`).
    """

    name: str
    estimate: Callable[..., Propensities]
    summary: str
    resampled: bool = True


_SPECS = (
    EstimatorSpec(
        "maximum-likelihood",
        maximum_likelihood,
        "joint likelihood with relevances; precise, but biased where documents have few impressions",
        resampled=False,
    ),
    EstimatorSpec(
        "conditional-likelihood",
        conditional_likelihood,
        "likelihood of where each document's clicks fell, whatever its relevance; without that bias",
        resampled=False,
    ),
    EstimatorSpec("all-pairs", all_pairs, "intervention harvesting over all pairs of ranks"),
    EstimatorSpec("variance-weighted", variance_weighted, "all pairs, documents weighted by how much they tell"),
    EstimatorSpec("adjacent-chain", adjacent_chain, "each rank against the one above it, ratios multiplied"),
    EstimatorSpec("pivot-one", pivot_one, "each rank against rank 1, by the documents shown at both"),
    EstimatorSpec("randomised", randomised, "click rates of shuffled lists, with a test that they are shuffled"),
    EstimatorSpec("ctr", ctr, "click rates of any lists, for comparison: biased unless they were shuffled"),
)
ESTIMATORS: Mapping[str, EstimatorSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})
