"""Rankers to compare with: naive, weighted and jointly learnt ones, and the full-information skyline.

Each wraps a relevance tower and has the two methods of everything that can be trained:
`loss(sessions) -> [B]` and `score(sessions) -> [B, K]`.
"""

from ultr.baselines.additive import AdditiveListwise, AdversarialTwoTower, PositionWeighted
from ultr.baselines.base import Baseline
from ultr.baselines.conditional import ConditionalAdditive, ConditionalPBM
from ultr.baselines.displays import Displays
from ultr.baselines.dual import DLA
from ultr.baselines.em import RegressionEM
from ultr.baselines.guarded import EstimatedOrder, GuardedRanker, fit_logged_order
from ultr.baselines.logged_order import LoggedOrder
from ultr.baselines.naive import FullInformation, NaiveLambdaRank, NaiveListwise, NaivePointwise
from ultr.baselines.pairwise import PRS, PairDebias
from ultr.baselines.policy_gradient import PolicyGradient
from ultr.baselines.regression import DirectMethod, DoublyRobust
from ultr.baselines.shrunk import ShrunkCTR
from ultr.baselines.tables import affine_tables, propensity_table, trust_tables
from ultr.baselines.upe import UPE, LoggingPolicy
from ultr.baselines.weighted import IPS, AffineIPS, InterventionAware, PolicyAware

__all__ = [
    "DLA",
    "IPS",
    "PRS",
    "UPE",
    "AdditiveListwise",
    "AdversarialTwoTower",
    "AffineIPS",
    "Baseline",
    "ConditionalAdditive",
    "ConditionalPBM",
    "DirectMethod",
    "Displays",
    "DoublyRobust",
    "EstimatedOrder",
    "FullInformation",
    "GuardedRanker",
    "InterventionAware",
    "LoggedOrder",
    "LoggingPolicy",
    "NaiveLambdaRank",
    "NaiveListwise",
    "NaivePointwise",
    "PairDebias",
    "PolicyAware",
    "PolicyGradient",
    "PositionWeighted",
    "RegressionEM",
    "ShrunkCTR",
    "affine_tables",
    "fit_logged_order",
    "propensity_table",
    "trust_tables",
]
