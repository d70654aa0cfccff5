"""Makes the towers of a model for a log: tables of its sizes, networks over its features."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from ultr import towers
from ultr.data import ClickLog, Collection
from ultr.errors import ConfigError
from ultr.study.specs import COMPRESSED_TABLES, NETWORK_TOWERS, RELEVANCE_TOWERS, TABLES, import_class
from ultr.text import did_you_mean

STORED_BYTES = 1 << 27  # of a feature table that still lies in every model


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A model by names.

    Attributes:
      model: a method that is trained on a log (`ultr.study.registry.METHODS`), or click models joined by `+` for a
        mixture, such as `pbm+dbn`.
      relevance: what the document towers are: a table over document ids (`table`, or compressed: `hashed`,
        `quotient-remainder`, `robe`), or a network over features (a name in `specs.NETWORK_TOWERS`); `auto`: an MLP
        where the log has features, else a table.
      rows: shared rows of a compressed table; None: a tenth of the documents.
      hidden: widths of the hidden layers of networks that have some.
      transform: scaling of the features, `standardise` or `log1p`.
      seed: decides the starting weights.
      options: options of the method, such as the `clip` of weighted methods; those in its row of the registry.
    """

    model: str = "pbm"
    relevance: str = "auto"
    rows: int | None = None
    hidden: tuple[int, ...] = (64, 64)
    transform: str = "standardise"
    seed: int = 0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class TowerInputs:
    """What the towers of a model are made for.

    Attributes:
      documents: number of documents. ranks: number of ranks. features: number of features; 0: there are none.
      source: the data whose features are measured for scaling.
    """

    documents: int
    ranks: int
    features: int
    source: Any

    @classmethod
    def of(cls, data: ClickLog | Collection) -> TowerInputs:
        """Describes a log or, with one rank, graded lists."""
        if isinstance(data, Collection):
            return cls(data.documents, 1, 0 if data.features is None else data.features.shape[1], data)
        features = len(data.metadata["features"]) + len(data.metadata["impression_features"])
        return cls(data.documents, data.ranks, features, data)


def resolve_relevance(name: str, data: ClickLog | Collection) -> str:
    """Resolves the name of a relevance tower for a log or graded lists: `auto` depends on whether there are features.

    Raises:
      ConfigError: an unknown name, or a network where there are no features.
    """
    if name not in RELEVANCE_TOWERS:
        hint = did_you_mean(name, RELEVANCE_TOWERS)
        raise ConfigError(f"unknown relevance tower '{name}'{hint}; known: {', '.join(RELEVANCE_TOWERS)}")
    features = TowerInputs.of(data).features
    if name == "auto":
        return "mlp" if features else "table"
    if name not in TABLES and not features:
        raise ConfigError(
            f"the relevance tower '{name}' reads features and the log has none. "
            "Choose --relevance table, or prepare the log with features"
        )
    return name


def check_rows(rows: int | None, relevance: str) -> None:
    """Checks that shared rows are asked for of a compressed table alone.

    Raises:
      ConfigError: they are not.
    """
    if rows is not None and relevance not in COMPRESSED_TABLES:
        known = ", ".join(COMPRESSED_TABLES)
        raise ConfigError(f"rows belong to a compressed table ({known}); the relevance is '{relevance}'")


def stored_features(log: ClickLog) -> np.ndarray | None:
    """Returns the features [V + 1, F] of a log by document id, where they are few enough to lie in every model."""
    values: np.ndarray | None = log.vocabulary.features
    if values is None or values.nbytes > STORED_BYTES or log.metadata["impression_features"]:
        return None
    return values


class TowerFactory:
    """Makes the towers of one model; each call makes a new one, in the order of the calls for the same seed.

    Args:
      config: names the relevance tower and its sizes.
      data: the log or the graded lists that the model is trained on.
      stored: [V + 1, F] features by document id, for networks to look up (`towers.Stored`); None: sessions bring them.
      scaler: statistics of the features that were measured before; None: they are measured on the data when needed.

    Raises:
      ConfigError: an unknown relevance tower or transform, or one that does not go with the data.
    """

    def __init__(
        self,
        config: ModelConfig,
        data: ClickLog | Collection,
        *,
        stored: np.ndarray | None = None,
        scaler: towers.Scaler | None = None,
    ) -> None:
        self.config, self.data, self.stored = config, data, stored
        self.inputs = TowerInputs.of(data)
        self.rngs = nnx.Rngs(config.seed)
        self.relevance = resolve_relevance(config.relevance, data)
        self._scaler = scaler
        self._relevance: Any = None  # the document tower made last
        if config.transform not in towers.Scaler.transforms:
            known = ", ".join(towers.Scaler.transforms)
            raise ConfigError(f"unknown transform '{config.transform}'; known: {known}")
        check_rows(config.rows, self.relevance)

    def again(self) -> TowerFactory:
        """Returns a factory that makes the same towers from the first on."""
        return TowerFactory(self.config, self.data, stored=self.stored, scaler=self._scaler)

    def make(self, tower: str) -> Any:
        """Makes a tower by the name that `MethodSpec.towers` gives: the name of a method of this class."""
        return getattr(self, tower)()

    def scaler(self) -> towers.Scaler:
        """Measures the features once and returns a scaler of its own for each tower."""
        if self._scaler is None:
            size = self.inputs.features
            self._scaler = towers.Scaler(size, transform=self.config.transform).fit(self.inputs.source)
        return nnx.clone(self._scaler)

    def document(self) -> Any:
        """Makes a tower over what is known of the document: the table or network that the config names."""
        self._relevance = self._document()
        return self._relevance

    def _document(self) -> Any:
        config, size = self.config, self.inputs.features
        if self.relevance in TABLES:
            kind = "full" if self.relevance == "table" else self.relevance
            rows = config.rows or max(self.inputs.documents // 10, 1)
            return towers.DocumentTable(self.inputs.documents, kind=kind, rows=rows, rngs=self.rngs)
        dotted, settings = NETWORK_TOWERS[self.relevance]
        given = {"hidden": config.hidden} if "hidden" in settings else {}
        scaler = self.scaler()
        tower = import_class(dotted)(size, **given, scaler=scaler, rngs=self.rngs)
        return tower if self.stored is None else towers.Stored(tower, values=self.stored)

    def satisfaction(self) -> Any:
        """Makes the tower of satisfaction beside the relevance tower, the document tower that was made last.

        By the method's option `satisfaction`: one that rises with that of relevance (`towers.Increasing`), or a tower
        over documents of its own; what is left to choose is monotone for networks, and free for tables.
        """
        kind = self.config.options.get("satisfaction", "auto")
        if kind == "free" or (kind == "auto" and self.relevance in TABLES):
            return self.document()
        return towers.Increasing(self.document() if self._relevance is None else self._relevance)

    def rank(self) -> towers.RankTable:
        """Makes a table over ranks that starts at probabilities of 1/2."""
        return towers.RankTable(self.inputs.ranks)

    def rank_from_first(self) -> towers.RankTable:
        """Makes a table over ranks whose logit at rank 1 is held at 0, for additive models."""
        return towers.RankTable(self.inputs.ranks, pin_first=True)

    def rank_at_low_probability(self) -> towers.RankTable:
        """Makes a table over ranks that starts at a low probability, such as that of trust in irrelevant documents.

        Where relevant and irrelevant documents are trusted alike at the start, relevance may as well turn out inverted.
        """
        return towers.RankTable(self.inputs.ranks, initial=[-2.0] * self.inputs.ranks)

    def last_click(self) -> towers.LastClickTable:
        """Makes a table over ranks and the last clicked rank above."""
        return towers.LastClickTable(self.inputs.ranks)

    def rank_document(self) -> towers.RankDocumentTable:
        """Makes a table over pairs of rank and document."""
        return towers.RankDocumentTable(self.inputs.documents, ranks=self.inputs.ranks)

    def constant(self) -> towers.Constant:
        """Makes one logit that starts at 0."""
        return towers.Constant(0.0)

    def constant_high(self) -> towers.Constant:
        """Makes one logit that starts at 1: users mostly go on."""
        return towers.Constant(1.0)
