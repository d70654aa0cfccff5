"""Evaluation: how good a model is, how sure that is, and whether it is what it seems.

Ranking metrics over queries and click metrics over sessions, paired tests, calibration, the value of new rankers from
logged clicks, likeness to the logger, results by query frequency, and files for trec_eval.
"""

from ultr.evaluation.buckets import Bucket, by_frequency, query_frequency, shared_vocabulary
from ultr.evaluation.calibration import Calibration, Cells, calibration
from ultr.evaluation.cloning import Cloning, Information, cloning, cmip
from ultr.evaluation.counterfactual import Counterfactual, Support, counterfactual
from ultr.evaluation.estimate import Estimate, paired_difference
from ultr.evaluation.metrics import evaluate, per_query
from ultr.evaluation.shift import Shift, across
from ultr.evaluation.significance import Comparison, PairedTest, compare, holm, paired_t, randomisation
from ultr.evaluation.trec import write_qrels, write_run

__all__ = [
    "Bucket",
    "Calibration",
    "Cells",
    "Cloning",
    "Comparison",
    "Counterfactual",
    "Estimate",
    "Information",
    "PairedTest",
    "Shift",
    "Support",
    "across",
    "by_frequency",
    "calibration",
    "cloning",
    "cmip",
    "compare",
    "counterfactual",
    "evaluate",
    "holm",
    "paired_difference",
    "paired_t",
    "per_query",
    "query_frequency",
    "randomisation",
    "shared_vocabulary",
    "write_qrels",
    "write_run",
]
