"""From the names of the command line to a model with towers that fit a log, and to what trains it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import nnx

from ultr import baselines, models, towers
from ultr.data import ClickLog
from ultr.errors import ConfigError
from ultr.study.nuisance import Harvest
from ultr.training import adam, fit, lazy_adagrad, lazy_adam
from ultr.training import solver_methods as methods
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
      options: of the model's own, such as the `clip` of weighted methods; those in its row of `MODELS`.
    """

    model: str = "pbm"
    relevance: str = "auto"
    rows: int | None = None
    hidden: tuple[int, ...] = (64, 64)
    transform: str = "standardise"
    seed: int = 0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


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


class Slots:
    """Makes the towers of one model, each call a new one; `harvest` and `options` are for methods that weigh.

    With `stored`, [V + 1, F] features by document, networks look them up there.
    """

    def __init__(
        self,
        config: ModelConfig,
        log: ClickLog,
        harvest: Harvest,
        options: Mapping[str, Any],
        stored: np.ndarray | None = None,
    ) -> None:
        self.config, self.log, self.harvest, self.options, self.stored = config, log, harvest, options, stored
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
        tower: Any
        if self.kind == "linear":
            tower = towers.Linear(self.size, scaler=scaler, rngs=self.rngs)
        else:
            network = towers.MLP if self.kind == "mlp" else towers.DCNV2
            tower = network(self.size, hidden=config.hidden, scaler=scaler, rngs=self.rngs)
        return tower if self.stored is None else towers.Stored(tower, values=self.stored)

    def rank(self, pin_first: bool = False) -> towers.RankTable:
        return towers.RankTable(self.log.ranks, pin_first=pin_first)

    def mistrust(self) -> towers.RankTable:
        """Starts low: where relevant and irrelevant are trusted alike, relevance may as well turn out upside down."""
        return towers.RankTable(self.log.ranks, initial=[-2.0] * self.log.ranks)

    def last_click(self) -> towers.LastClickTable:
        return towers.LastClickTable(self.log.ranks)

    def ranks(self) -> int:
        return self.log.ranks

    def own(self) -> dict[str, Any]:
        """The model's options as its constructor takes them."""
        return {name: None if name == "clip" and not value else value for name, value in self.options.items()}

    def regression(self, alpha: Any, beta: Any) -> Any:
        """A relevance tower fitted to the clicks of the log, given P(click at k) = alpha_k relevance + beta_k."""
        alpha = np.asarray(alpha, np.float64)
        beta = np.zeros(len(alpha)) if beta is None else np.asarray(beta, np.float64)
        key = ("regression", repr(self.config), alpha.tobytes(), beta.tobytes())
        return self.harvest.keep(key, lambda: self._regression(alpha, beta))

    def _regression(self, alpha: np.ndarray, beta: np.ndarray) -> Any:
        def frozen(p: np.ndarray) -> Any:
            return towers.Frozen(towers.RankTable(len(p), initial=towers.logits_of(np.clip(p, 1e-6, 1 - 1e-6))))

        own = Slots(self.config, self.log, self.harvest, {}, self.stored)  # so that it is the same whoever asks first
        # Examined and relevant: always clicked; then examination, and e- of it, give alpha and beta.
        model = models.TrustPBM(
            relevance=own.document(),
            examination=frozen(alpha + beta),
            trust_relevant=frozen(np.ones(len(alpha))),
            trust_irrelevant=frozen(beta / (alpha + beta)),
        )
        return fit(model, self.harvest.counts, epochs=15, seed=self.config.seed, progress=False).model.relevance

    def policy(self) -> Any:
        """A network that was fitted to the order in which the log shows documents."""
        key = ("policy", self.config.transform, self.config.seed, bool(self.size))
        return self.harvest.keep(key, self._policy)

    def _policy(self) -> Any:
        scaler = None
        if self.size:
            scaler = towers.Scaler(self.size, transform=self.config.transform).fit(self.log)
        documents = 0 if self.size else self.log.documents
        policy = baselines.LoggingPolicy(self.size, documents=documents, scaler=scaler, rngs=nnx.Rngs(self.config.seed))
        return fit(policy, self.harvest.lists, epochs=5, seed=self.config.seed, progress=False).model

    def rank_document(self) -> towers.RankDocumentTable:
        return towers.RankDocumentTable(self.log.documents, ranks=self.log.ranks)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model or ranker is made of towers.

    Attributes:
      makes: the class of what is built.
      build: from the slots of one model.
      needs: what it takes beside the log, attributes of `ultr.study.nuisance.Harvest`; the log gives an estimate of it.
      options: keyword options of its own, with their defaults.
    """

    makes: type
    build: Callable[[Slots], Any]
    needs: tuple[str, ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def mixes(self) -> bool:
        """Whether a mixture may be made of it."""
        return issubclass(self.makes, models.ClickModel)

    @property
    def solvers(self) -> tuple[str, ...]:
        """What `ultr.training.solve` may solve it by, on tables."""
        return methods(self.makes)


CLIP = {"clip": 0.0}  # 0: none
WEIGHTS = CLIP | {"self_normalised": False}
FORM = WEIGHTS | {"form": "listwise"}
CUT = {"form": "pointwise"}  # only that is right where lists are cut and a document is shown only sometimes


def _check_form(options: Mapping[str, Any], harvest: Harvest) -> None:
    if options.get("form") == "listwise" and harvest.displays.cut:
        raise ConfigError(
            "form 'listwise' with weights per document: this log shows some documents in some sessions of their query "
            "only, and among those shown together a rarely shown one would always win. Choose form 'pointwise'"
        )


def _ranker(
    name: str, *needs: str, options: Mapping[str, Any] | None = None, form: str | None = None, **towers_: str
) -> Recipe:
    """A baseline whose constructor takes what it needs by the names of the harvest; `affine` is its alpha and beta.

    Args:
      towers_: its other arguments -> the method of `Slots` that makes them.
    """

    def build(s: Slots) -> Any:
        given: dict[str, Any] = {argument: getattr(s, slot)() for argument, slot in towers_.items()}
        if form is not None:
            given["form"] = form
        if "displays" in needs:
            _check_form(s.options, s.harvest)
        for need in needs:
            if need == "affine":
                given["alpha"], given["beta"] = s.harvest.affine
            else:
                given[need] = getattr(s.harvest, need)
        return getattr(baselines, name)(relevance=s.document(), **given, **s.own())

    return Recipe(getattr(baselines, name), build, needs, options or {})


def _regressed(name: str, options: Mapping[str, Any]) -> Recipe:
    """A method with a regression of its own, by the trust model where `trust` says so."""

    def build(s: Slots) -> Any:
        own = s.own()
        alpha, beta = s.harvest.affine if own.pop("trust") else (s.harvest.propensity, None)
        # Without displays, what the regression adds at a rank the correction takes away: that would be plain IPS.
        if name == "DoublyRobust":
            _check_form(s.options, s.harvest)
        corrected = {"alpha": alpha, "beta": beta, "displays": s.harvest.displays}
        given = {} if name == "DirectMethod" else corrected
        regression = s.regression(alpha, beta)
        return getattr(baselines, name)(relevance=s.document(), regression=regression, **given, **own)

    needs = ("propensity",) if name == "DirectMethod" else ("propensity", "displays")
    return Recipe(getattr(baselines, name), build, needs, {**options, "trust": False})


def _additive(s: Slots, examination: Any) -> Any:
    return models.AdditivePBM(relevance=s.document(), examination=examination)


# One row per name: `ultr train` and `ultr compare` know what stands here.
MODELS: dict[str, Recipe] = {
    "gctr": Recipe(models.GCTR, lambda s: models.GCTR(towers.Constant())),
    "rctr": Recipe(models.RCTR, lambda s: models.RCTR(s.rank())),
    "dctr": Recipe(models.DCTR, lambda s: models.DCTR(s.document())),
    "rdctr": Recipe(models.RDCTR, lambda s: models.RDCTR(s.rank_document())),
    "pbm": Recipe(models.PBM, lambda s: models.PBM(relevance=s.document(), examination=s.rank())),
    "trust": Recipe(
        models.TrustPBM,
        lambda s: models.TrustPBM(
            relevance=s.document(), examination=s.rank(), trust_relevant=s.rank(), trust_irrelevant=s.mistrust()
        ),
    ),
    "additive": Recipe(models.AdditivePBM, lambda s: _additive(s, s.rank(pin_first=True))),
    "ubm": Recipe(models.UBM, lambda s: models.UBM(relevance=s.document(), examination=s.last_click())),
    "cascade": Recipe(models.CascadeModel, lambda s: models.CascadeModel(relevance=s.document())),
    "dcm": Recipe(models.DCM, lambda s: models.DCM(relevance=s.document(), continuation=s.rank())),
    "sdbn": Recipe(models.SDBN, lambda s: models.SDBN(relevance=s.document(), satisfaction=s.document())),
    "dbn": Recipe(
        models.DBN,
        lambda s: models.DBN(relevance=s.document(), satisfaction=s.document(), continuation=towers.Constant(1.0)),
    ),
    "ccm": Recipe(
        models.CCM,
        lambda s: models.CCM(
            relevance=s.document(),
            after_skip=towers.Constant(1.0),
            after_irrelevant_click=towers.Constant(0.0),
            after_relevant_click=towers.Constant(0.0),
        ),
    ),
    "naive": _ranker("NaivePointwise"),
    "naive-listwise": _ranker("NaiveListwise"),
    "naive-lambdarank": _ranker("NaiveLambdaRank"),
    "ips-pointwise": _ranker("IPS", "propensity", options=WEIGHTS, form="pointwise"),
    "ips-listwise": _ranker("IPS", "propensity", options=WEIGHTS, form="listwise"),
    "ips-pairwise": _ranker("IPS", "propensity", options=WEIGHTS, form="pairwise"),
    "affine-ips": _ranker("AffineIPS", "affine", options=FORM),
    "policy-aware": _ranker("PolicyAware", "displays", "propensity", options=FORM | CUT),
    "intervention-aware": _ranker("InterventionAware", "displays", "affine", options=FORM | CUT),
    "direct-method": _regressed("DirectMethod", {"form": "listwise"}),
    # Without a clip the regression cancels: over a log, a document's corrections sum to minus what it adds.
    "doubly-robust": _regressed("DoublyRobust", FORM | CUT | {"clip": 10.0}),
    "dla": _ranker("DLA", examination="rank", options={"clip": 100.0}),
    "regression-em": _ranker("RegressionEM", examination="rank", options={"every": 100}),
    "pairdebias": _ranker("PairDebias", ranks="ranks", options={"regularisation": 1.0, "momentum": 0.05}),
    "prs": _ranker("PRS", "propensity", options=CLIP | {"metric": "dcg"}),
    "upe": _ranker("UPE", policy="policy", ranks="ranks", options={"clip": 100.0, "momentum": 0.1}),
    "additive-listwise": _ranker("AdditiveListwise", examination="rank"),
    "additive-dropout": Recipe(
        models.AdditivePBM,
        lambda s: _additive(s, towers.Dropout(s.rank(pin_first=True), rngs=s.rngs, **s.own())),
        options={"rate": 0.5},
    ),
    "additive-reversal": _ranker("AdversarialTwoTower", examination="rank", options={"strength": 1.0}),
    "additive-weighted": Recipe(
        baselines.PositionWeighted,
        lambda s: baselines.PositionWeighted(
            _additive(s, s.rank(pin_first=True)), displays=s.harvest.displays, **s.own()
        ),
        ("displays",),
        CLIP,
    ),
    "additive-frozen": Recipe(
        models.AdditivePBM,
        lambda s: _additive(s, towers.examination_of(s.harvest.propensity, additive=True)),
        ("propensity",),
    ),
    "pbm-frozen": Recipe(
        models.PBM,
        lambda s: models.PBM(relevance=s.document(), examination=towers.examination_of(s.harvest.propensity)),
        ("propensity",),
    ),
}


def build_model(
    config: ModelConfig, log: ClickLog, harvest: Harvest | None = None, *, stored: np.ndarray | None = None
) -> Any:
    """The untrained model; feature statistics are measured on the given log, the training split.

    Args:
      harvest: what weighted methods are given beside the log; None: estimates from the log by the conditional
        likelihood.
      stored: [V + 1, F] features by document id, for networks to look up (`towers.Stored`); None: sessions bring them.

    Raises:
      ConfigError: an unknown name or option, features that the log does not have, or a log that does not identify what
        the method needs.
    """
    names = config.model.split("+")
    for name in names:
        if name not in MODELS:
            raise ConfigError(f"unknown model '{name}'; known: {', '.join(MODELS)}")
    known = MODELS[names[0]].options if len(names) == 1 else {}
    for option in config.options:
        if option not in known:
            raise ConfigError(f"'{config.model}' has no option '{option}'; known: {', '.join(known) or 'none'}")
    slots = Slots(config, log, harvest or Harvest(log, seed=config.seed), {**known, **config.options}, stored)
    built = [MODELS[name].build(slots) for name in names]
    if len(built) == 1:
        return built[0]
    if not all(isinstance(m, models.ClickModel) for m in built):
        raise ConfigError(f"a mixture is made of click models; '{config.model}' has a ranker in it that is none")
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
