"""Towers: `Sessions -> logits [B, K]`. Constant, tables over ranks and documents, networks, wrappers."""

from ultr.towers.confounding import Dropout, Frozen, GradientReversal, examination_of
from ultr.towers.lookup import lookup, read_by, row_tables
from ultr.towers.networks import DCNV2, MLP, Linear, Scaler, Statistic, Sum
from ultr.towers.stored import Stored, only_stored
from ultr.towers.tables import (
    Constant,
    DocumentTable,
    GradeTable,
    LastClickTable,
    RankDocumentTable,
    RankTable,
    check,
    logits,
    reads,
    takes_shared,
)

__all__ = [
    "DCNV2",
    "MLP",
    "Constant",
    "DocumentTable",
    "Dropout",
    "Frozen",
    "GradeTable",
    "GradientReversal",
    "LastClickTable",
    "Linear",
    "RankDocumentTable",
    "RankTable",
    "Scaler",
    "Statistic",
    "Stored",
    "Sum",
    "check",
    "examination_of",
    "logits",
    "lookup",
    "only_stored",
    "read_by",
    "reads",
    "row_tables",
    "takes_shared",
]
