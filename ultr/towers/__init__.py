"""Towers: `Sessions -> logits [B, K]`. Constant, tables over ranks and documents, networks over features."""

from ultr.towers.lookup import lookup, read_by, row_tables
from ultr.towers.networks import DCNV2, MLP, Linear, Scaler, Sum
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
    "GradeTable",
    "LastClickTable",
    "Linear",
    "RankDocumentTable",
    "RankTable",
    "Scaler",
    "Sum",
    "check",
    "logits",
    "lookup",
    "read_by",
    "reads",
    "row_tables",
    "takes_shared",
]
