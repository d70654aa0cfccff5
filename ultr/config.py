"""From the names of the command line to a model with towers that fit a log, and to what trains it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from flax import nnx

from ultr import baselines, models, towers
from ultr.errors import ConfigError
from ultr.logs import ClickLog
from ultr.training import adam, lazy_adagrad, lazy_adam
from ultr.training.loop import has_large_table

RELEVANCE = ("auto", "table", "hashed", "quotient-remainder", "robe", "linear", "mlp", "dcn")
TABLES = ("table", "hashed", "quotient-remainder", "robe")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A model by names.

    Attributes:
      model: a name in `MODELS`, or several joined by `+` for a mixture, such as `pbm+dbn`.
      relevance: what the document towers are: a table over document ids (`table`, or compressed: `hashed`,
        `quotient-remainder`, `robe`), or a network over features (`linear`, `mlp`, `dcn`); `auto`: an MLP where the
        log has features, else a table.
      rows: shared rows of a compressed table; None: a tenth of the documents.
      hidden: widths of the hidden layers of `mlp` and `dcn`.
      transform: scaling of the features, `standardise` or `log1p`.
      seed: decides the starting weights.
    """

    model: str = "pbm"
    relevance: str = "auto"
    rows: int | None = None
    hidden: tuple[int, ...] = (64, 64)
    transform: str = "standardise"
    seed: int = 0


def _features(log: ClickLog) -> int:
    return len(log.metadata["features"]) + len(log.metadata["impression_features"])


def relevance_kind(name: str, log: ClickLog) -> str:
    """The relevance tower that a name means for a log: `auto` is decided by whether the log has features.

    Raises:
      ConfigError: an unknown name, or a network where there are no features.
    """
    if name not in RELEVANCE:
        raise ConfigError(f"unknown relevance tower '{name}'; known: {', '.join(RELEVANCE)}")
    if name == "auto":
        return "mlp" if _features(log) else "table"
    if name not in TABLES and not _features(log):
        raise ConfigError(
            f"the relevance tower '{name}' reads features and the log has none. "
            "Choose --relevance table, or prepare the log with features"
        )
    return name


def _check(config: ModelConfig, kind: str) -> None:
    if config.transform not in towers.Scaler.transforms:
        known = ", ".join(towers.Scaler.transforms)
        raise ConfigError(f"unknown transform '{config.transform}'; known: {known}")
    if config.rows is not None and kind not in TABLES[1:]:
        raise ConfigError(f"rows belong to a compressed table ({', '.join(TABLES[1:])}); the relevance is '{kind}'")


class _Slots:
    """Makes the towers of one model; each call a new one."""

    def __init__(self, config: ModelConfig, log: ClickLog) -> None:
        self.config, self.log = config, log
        self.rngs = nnx.Rngs(config.seed)
        self.size = _features(log)
        self.kind = relevance_kind(config.relevance, log)
        _check(config, self.kind)
        self._scaler: towers.Scaler | None = None

    def document(self) -> Any:
        """A tower over what is known of the document."""
        config = self.config
        if self.kind in TABLES:
            kind = "full" if self.kind == "table" else self.kind
            rows = config.rows or max(self.log.documents // 10, 1)
            return towers.DocumentTable(self.log.documents, kind=kind, rows=rows, rngs=self.rngs)
        if self._scaler is None:
            self._scaler = towers.Scaler(self.size, transform=config.transform).fit(self.log)
        scaler = nnx.clone(self._scaler)
        if self.kind == "linear":
            return towers.Linear(self.size, scaler=scaler, rngs=self.rngs)
        network = towers.MLP if self.kind == "mlp" else towers.DCNV2
        return network(self.size, hidden=config.hidden, scaler=scaler, rngs=self.rngs)

    def rank(self, pin_first: bool = False) -> towers.RankTable:
        return towers.RankTable(self.log.ranks, pin_first=pin_first)

    def last_click(self) -> towers.LastClickTable:
        return towers.LastClickTable(self.log.ranks)

    def rank_document(self) -> towers.RankDocumentTable:
        return towers.RankDocumentTable(self.log.documents, ranks=self.log.ranks)


MODELS: dict[str, Callable[[_Slots], Any]] = {
    "gctr": lambda s: models.GCTR(towers.Constant()),
    "rctr": lambda s: models.RCTR(s.rank()),
    "dctr": lambda s: models.DCTR(s.document()),
    "rdctr": lambda s: models.RDCTR(s.rank_document()),
    "pbm": lambda s: models.PBM(relevance=s.document(), examination=s.rank()),
    "trust": lambda s: models.TrustPBM(
        relevance=s.document(), examination=s.rank(), trust_relevant=s.rank(), trust_irrelevant=s.rank()
    ),
    "additive": lambda s: models.AdditivePBM(relevance=s.document(), examination=s.rank(pin_first=True)),
    "ubm": lambda s: models.UBM(relevance=s.document(), examination=s.last_click()),
    "cascade": lambda s: models.CascadeModel(relevance=s.document()),
    "dcm": lambda s: models.DCM(relevance=s.document(), continuation=s.rank()),
    "sdbn": lambda s: models.SDBN(relevance=s.document(), satisfaction=s.document()),
    "dbn": lambda s: models.DBN(relevance=s.document(), satisfaction=s.document(), continuation=towers.Constant(1.0)),
    "ccm": lambda s: models.CCM(
        relevance=s.document(),
        after_skip=towers.Constant(1.0),
        after_irrelevant_click=towers.Constant(0.0),
        after_relevant_click=towers.Constant(0.0),
    ),
    "naive": lambda s: baselines.NaivePointwise(relevance=s.document()),
    "naive-listwise": lambda s: baselines.NaiveListwise(relevance=s.document()),
}


def build_model(config: ModelConfig, log: ClickLog) -> Any:
    """The untrained model; feature statistics are measured on the given log, the training split.

    Raises:
      ConfigError: an unknown name, or features that the log does not have.
    """
    names = config.model.split("+")
    for name in names:
        if name not in MODELS:
            raise ConfigError(f"unknown model '{name}'; known: {', '.join(MODELS)}")
    slots = _Slots(config, log)
    built = [MODELS[name](slots) for name in names]
    if len(built) == 1:
        return built[0]
    if not all(isinstance(m, models.ClickModel) for m in built):
        raise ConfigError(f"a mixture is made of click models; '{config.model}' has a naive ranker in it")
    return models.Mixture(components=built)


OPTIMIZERS: dict[str, Callable[[float], Any]] = {
    "adam": adam,
    "lazy-adam": lazy_adam,
    "lazy-adagrad": lambda rate: lazy_adagrad(100 * rate, networks=rate),
}


def optimizer_kind(name: str, model: Any) -> str:
    """The optimizer that a name means for a model: `auto` is what `fit` takes when it is not told."""
    if name != "auto":
        return name
    return "lazy-adam" if has_large_table(model) else "adam"


def build_optimizer(name: str, learning_rate: float) -> Any:
    """The optimizer of a name in `OPTIMIZERS`.

    Args:
      learning_rate: of networks; tables have ten times that, the document tables of lazy-adagrad a hundred times.

    Raises:
      ConfigError: an unknown name, or a learning rate that is not above 0.
    """
    if name not in OPTIMIZERS:
        raise ConfigError(f"unknown optimizer '{name}'; known: {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name](learning_rate)
