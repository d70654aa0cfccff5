"""Evaluation: how good a model is, how certain that is, and whether it learned what it seems to have learned.

    metrics.py                  the registry of metrics: a function and a row each
    evaluating.py               `evaluate` and `per_query`
    satisfaction.py             whether learnt satisfaction can be believed
    significance.py             paired tests, Holm's correction
    click_calibration.py        `calibration`: predicted against observed clicks
    counterfactual_values.py    `counterfactual`: the value of new rankers from logged clicks
    logger_cloning.py           `cloning`: how close a model's order is to the logger's
    conditional_information.py  `cmip`: information shared with the logger's order given the grades
    policy_shift.py             `across_policies`: click metrics on logs of several logging policies
    frequency_buckets.py        `by_frequency`: results by how often a query is searched
    trec.py                     run and qrels files for trec_eval
    contracts.py                what is asked of rankers and click models

The names below load their modules when first used: the registry of metrics can be read without JAX.
"""

from typing import TYPE_CHECKING

from ultr.lazy import lazy_exports

if TYPE_CHECKING:
    from ultr.evaluation.click_calibration import Calibration as Calibration
    from ultr.evaluation.click_calibration import CalibrationBins as CalibrationBins
    from ultr.evaluation.click_calibration import calibration as calibration
    from ultr.evaluation.conditional_information import ConditionalInformation as ConditionalInformation
    from ultr.evaluation.conditional_information import cmip as cmip
    from ultr.evaluation.contracts import ClickPredictor as ClickPredictor
    from ultr.evaluation.contracts import PredictedClicks as PredictedClicks
    from ultr.evaluation.contracts import Scorer as Scorer
    from ultr.evaluation.counterfactual_values import CounterfactualValues as CounterfactualValues
    from ultr.evaluation.counterfactual_values import LogSupport as LogSupport
    from ultr.evaluation.counterfactual_values import counterfactual as counterfactual
    from ultr.evaluation.estimate import Estimate as Estimate
    from ultr.evaluation.estimate import paired_difference as paired_difference
    from ultr.evaluation.evaluating import Estimates as Estimates
    from ultr.evaluation.evaluating import evaluate as evaluate
    from ultr.evaluation.evaluating import per_query as per_query
    from ultr.evaluation.frequency_buckets import FrequencyBucket as FrequencyBucket
    from ultr.evaluation.frequency_buckets import by_frequency as by_frequency
    from ultr.evaluation.frequency_buckets import check_shared_vocabulary as check_shared_vocabulary
    from ultr.evaluation.frequency_buckets import query_frequency as query_frequency
    from ultr.evaluation.logger_cloning import Cloning as Cloning
    from ultr.evaluation.logger_cloning import cloning as cloning
    from ultr.evaluation.logger_cloning import logged_order as logged_order
    from ultr.evaluation.metrics import METRICS as METRICS
    from ultr.evaluation.metrics import ClickMetric as ClickMetric
    from ultr.evaluation.metrics import RankingMetric as RankingMetric
    from ultr.evaluation.policy_shift import PolicyShift as PolicyShift
    from ultr.evaluation.policy_shift import across_policies as across_policies
    from ultr.evaluation.satisfaction import SatisfactionCheck as SatisfactionCheck
    from ultr.evaluation.satisfaction import check_satisfaction as check_satisfaction
    from ultr.evaluation.satisfaction import has_satisfaction as has_satisfaction
    from ultr.evaluation.significance import BaselineComparison as BaselineComparison
    from ultr.evaluation.significance import PairedTest as PairedTest
    from ultr.evaluation.significance import compare as compare
    from ultr.evaluation.significance import paired_t as paired_t
    from ultr.evaluation.significance import randomisation as randomisation
    from ultr.evaluation.trec import write_qrels as write_qrels
    from ultr.evaluation.trec import write_run as write_run
    from ultr.holm import holm as holm

_EXPORTS = {
    "click_calibration": ("Calibration", "CalibrationBins", "calibration"),
    "conditional_information": ("ConditionalInformation", "cmip"),
    "contracts": ("ClickPredictor", "PredictedClicks", "Scorer"),
    "counterfactual_values": ("CounterfactualValues", "LogSupport", "counterfactual"),
    "estimate": ("Estimate", "paired_difference"),
    "evaluating": ("Estimates", "evaluate", "per_query"),
    "frequency_buckets": ("FrequencyBucket", "by_frequency", "check_shared_vocabulary", "query_frequency"),
    "logger_cloning": ("Cloning", "cloning", "logged_order"),
    "metrics": ("METRICS", "ClickMetric", "RankingMetric"),
    "policy_shift": ("PolicyShift", "across_policies"),
    "satisfaction": ("SatisfactionCheck", "check_satisfaction", "has_satisfaction"),
    "significance": ("BaselineComparison", "PairedTest", "compare", "holm", "paired_t", "randomisation"),
    "trec": ("write_qrels", "write_run"),
}
__all__ = [name for names in _EXPORTS.values() for name in names]
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
