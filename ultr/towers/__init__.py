"""Towers map sessions to logits: constants, tables over ranks and documents, networks over features, wrappers."""

from ultr.towers.base import (
    CallableTower,
    Component,
    IndexBound,
    LastClickTower,
    ParameterGroup,
    Tower,
    TowerLike,
    as_tower,
    check_bounds,
    indexed_fields,
    parameter_groups,
    read_feature,
)
from ultr.towers.checks import InputCheck
from ultr.towers.inputs import input_match, matched, record_schema, schema_of, trained_schema
from ultr.towers.lookup import lookup, lookup_small, read_by, row_tables
from ultr.towers.monotone import Increasing
from ultr.towers.networks import DCNV2, MLP, FeatureNetwork, Linear
from ultr.towers.scaling import Scaler, Statistic
from ultr.towers.shown_documents import note_shown_documents, ranks_by_table, shown_documents
from ultr.towers.shown_ranks import ShownRanks, note_shown_ranks, supported_curve, withheld_ranks
from ultr.towers.tables import (
    Constant,
    DocumentTable,
    GradeTable,
    LastClickTable,
    RankDocumentTable,
    RankTable,
    logits_of,
)
from ultr.towers.wrappers import (
    Dropout,
    Frozen,
    GradientReversal,
    Stored,
    Sum,
    TowerWrapper,
    examination_of,
    needs_no_features,
)

__all__ = [
    "DCNV2",
    "MLP",
    "CallableTower",
    "Component",
    "Constant",
    "DocumentTable",
    "Dropout",
    "FeatureNetwork",
    "Frozen",
    "GradeTable",
    "GradientReversal",
    "Increasing",
    "IndexBound",
    "InputCheck",
    "LastClickTable",
    "LastClickTower",
    "Linear",
    "ParameterGroup",
    "RankDocumentTable",
    "RankTable",
    "Scaler",
    "ShownRanks",
    "Statistic",
    "Stored",
    "Sum",
    "Tower",
    "TowerLike",
    "TowerWrapper",
    "as_tower",
    "check_bounds",
    "examination_of",
    "indexed_fields",
    "input_match",
    "logits_of",
    "lookup",
    "lookup_small",
    "matched",
    "needs_no_features",
    "note_shown_documents",
    "note_shown_ranks",
    "parameter_groups",
    "ranks_by_table",
    "read_by",
    "read_feature",
    "record_schema",
    "row_tables",
    "schema_of",
    "shown_documents",
    "supported_curve",
    "trained_schema",
    "withheld_ranks",
]
