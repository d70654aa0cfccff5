"""Rankers to compare with: naive, weighted and jointly learnt ones, and the full-information skyline.

Each wraps a relevance tower and has the two methods of everything that can be trained:
`loss(sessions) -> [B]` and `score(sessions) -> [B, K]`.
"""

from ultr.baselines.additive import AdditiveListwise, AdversarialTwoTower, PositionWeighted
from ultr.baselines.affine import AffineIPS
from ultr.baselines.base import Baseline
from ultr.baselines.displays import Displays
from ultr.baselines.dual import DLA
from ultr.baselines.em import RegressionEM
from ultr.baselines.ips import IPSListwise, IPSPairwise, IPSPointwise
from ultr.baselines.naive import FullInformation, NaiveLambdaRank, NaiveListwise, NaivePointwise
from ultr.baselines.pairwise import PRS, PairDebias
from ultr.baselines.policy import InterventionAware, PolicyAware
from ultr.baselines.robust import DirectMethod, DoublyRobust
from ultr.baselines.upe import UPE, LoggingPolicy
from ultr.baselines.weights import Weighting, propensity_table, trust_tables

__all__ = [
    "DLA",
    "PRS",
    "UPE",
    "AdditiveListwise",
    "AdversarialTwoTower",
    "AffineIPS",
    "Baseline",
    "DirectMethod",
    "Displays",
    "DoublyRobust",
    "FullInformation",
    "IPSListwise",
    "IPSPairwise",
    "IPSPointwise",
    "InterventionAware",
    "LoggingPolicy",
    "NaiveLambdaRank",
    "NaiveListwise",
    "NaivePointwise",
    "PairDebias",
    "PolicyAware",
    "PositionWeighted",
    "RegressionEM",
    "Weighting",
    "propensity_table",
    "trust_tables",
]
