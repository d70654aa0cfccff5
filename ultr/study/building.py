"""Makes the model of a method, with towers that fit a log, and the optimizer that trains it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import nnx

from ultr import baselines, models, towers
from ultr.data import ClickLog, Collection
from ultr.errors import ConfigError
from ultr.study.nuisance import NuisanceEstimates
from ultr.study.registry import method_spec
from ultr.study.specs import Builder, MethodSpec
from ultr.study.tower_factory import ModelConfig, TowerFactory
from ultr.training import adam, fit, lazy_adagrad, lazy_adam
from ultr.training.optimizers import has_large_table

# Options that decide over towers, or over what is put around the model.
_NOT_OF_THE_CLASS = ("satisfaction", "frailty")
# The fit of the logged order, where safe methods start: sessions at most, steps at least, and sessions per step.
ORDERED_SESSIONS, ORDER_STEPS, ORDER_BATCH = 20_000, 1_000, 128


@dataclasses.dataclass(frozen=True)
class _Parts:
    """What a builder makes a model of: the method, its towers, its needs and its options."""

    spec: MethodSpec
    factory: TowerFactory
    nuisance: NuisanceEstimates
    options: Mapping[str, Any]

    def class_options(self) -> dict[str, Any]:
        """Returns the options as the model's class takes them: a clip of 0 is None, no limit."""
        return {
            name: None if name == "clip" and not value else value
            for name, value in self.options.items()
            if name not in _NOT_OF_THE_CLASS
        }

    def towers(self) -> dict[str, Any]:
        """Makes the towers of the method, in the order of its row."""
        return {argument: self.factory.make(kind) for argument, kind in self.spec.towers.items()}

    def check_form(self) -> None:
        """Refuses a listwise loss with weights per document where documents are shown in some sessions only."""
        if self.options.get("form") == "listwise" and self.nuisance.displays.cut:
            raise ConfigError(
                "form 'listwise' with weights per document: this log shows some documents in some sessions of their "
                "query only, and among those shown together a rarely shown one would always win. Choose form "
                "'pointwise'"
            )


def _from_towers(parts: _Parts) -> Any:
    """Hands towers, needs and options to the class by name; affine trust parameters as `alpha` and `beta`."""
    nuisance, given = parts.nuisance, dict[str, Any]()
    if "displays" in parts.spec.needs:
        parts.check_form()
    for need in parts.spec.needs:
        if need == "affine":
            given["alpha"], given["beta"] = nuisance.affine
        elif need == "logging_policy":
            given["policy"] = _logging_policy(parts.factory, nuisance)
        else:
            given[need] = parts.factory.inputs.ranks if need == "ranks" else getattr(nuisance, need)
    return parts.spec.made_class(**parts.towers(), **given, **parts.spec.arguments, **parts.class_options())


def _frozen(parts: _Parts) -> Any:
    """Makes a two-tower model whose examination is held at given propensities."""
    additive = issubclass(parts.spec.made_class, models.AdditivePBM)
    examination = towers.examination_of(parts.nuisance.propensity, additive=additive)
    return parts.spec.made_class(**parts.towers(), examination=examination)


def _with_dropout(parts: _Parts) -> Any:
    """Makes an additive two-tower with dropout of its bias tower."""
    examination = towers.Dropout(parts.factory.rank_from_first(), rngs=parts.factory.rngs, **parts.class_options())
    return models.AdditivePBM(relevance=parts.factory.document(), examination=examination)


def _position_weighted(parts: _Parts) -> Any:
    """Makes an additive two-tower whose impressions are weighted by their displays."""
    model = models.AdditivePBM(**parts.towers())
    return baselines.PositionWeighted(model, displays=parts.nuisance.displays, **parts.class_options())


def _with_regression(parts: _Parts) -> Any:
    """Makes a method that rests on a regression of relevance, under trust bias where its option `trust` says so."""
    options, nuisance = parts.class_options(), parts.nuisance
    alpha, beta = nuisance.affine if options.pop("trust") else (nuisance.propensity, None)
    # Without displays, what the regression adds at a rank the correction takes away: that would be plain IPS.
    if "displays" in parts.spec.needs:
        parts.check_form()
        options |= {"alpha": alpha, "beta": beta, "displays": nuisance.displays}
    regression = _regression(parts.factory, nuisance, alpha, beta)
    return parts.spec.made_class(**parts.towers(), regression=regression, **options)


def _policy_gradient(parts: _Parts) -> Any:
    """Makes a policy gradient that starts at the logged order, with a regression where its objective takes one."""
    options, nuisance = parts.class_options(), parts.nuisance
    options["delta"] = options["delta"] or None
    affine = options.pop("trust", None)
    alpha, beta = nuisance.affine if affine else (nuisance.propensity, None)
    if affine is not None:
        options |= {"beta": beta, "regression": _regression(parts.factory, nuisance, alpha, beta)}
    (argument,) = parts.spec.towers
    return parts.spec.made_class(
        **{argument: _logged_order(parts.factory, nuisance)},
        alpha=alpha,
        sessions=max(nuisance.counts.weight, 1.0),
        seed=parts.factory.config.seed,
        **parts.spec.arguments,
        **options,
    )


def _counted(parts: _Parts) -> Any:
    """Makes room for what a solver counts, by document and rank."""
    inputs = parts.factory.inputs
    return parts.spec.made_class(documents=inputs.documents, ranks=inputs.ranks, **parts.class_options())


_BUILDERS: dict[Builder, Callable[[_Parts], Any]] = {
    "towers": _from_towers,
    "frozen": _frozen,
    "dropout": _with_dropout,
    "position-weighted": _position_weighted,
    "regression": _with_regression,
    "policy-gradient": _policy_gradient,
    "counted": _counted,
}


def _regression(factory: TowerFactory, nuisance: NuisanceEstimates, alpha: Any, beta: Any) -> Any:
    """Fits a relevance tower to the clicks of the log, given P(click at k) = alpha_k relevance + beta_k; once."""
    alpha = np.asarray(alpha, np.float64)
    beta = np.zeros(len(alpha)) if beta is None else np.asarray(beta, np.float64)

    def frozen(p: np.ndarray) -> towers.Frozen:
        return towers.Frozen(towers.RankTable(len(p), initial=towers.logits_of(np.clip(p, 1e-6, 1 - 1e-6))))

    def fitted() -> Any:
        own = factory.again()  # of the seed alone, whoever asks first
        # Examined and relevant: always clicked; then examination, and e- of it, give alpha and beta.
        model = models.TrustPBM(
            relevance=own.document(),
            examination=frozen(alpha + beta),
            trust_relevant=frozen(np.ones(len(alpha))),
            trust_irrelevant=frozen(beta / (alpha + beta)),
        )
        return fit(model, nuisance.counts, epochs=15, seed=factory.config.seed, progress=False).model.relevance

    return nuisance.cached(("regression", repr(factory.config), alpha.tobytes(), beta.tobytes()), fitted)


def _logging_policy(factory: TowerFactory, nuisance: NuisanceEstimates) -> Any:
    """Fits a network to the order in which the log shows documents; once."""
    config, size = factory.config, factory.inputs.features

    def fitted() -> Any:
        policy = baselines.LoggingPolicy(
            size,
            documents=0 if size else factory.inputs.documents,
            scaler=factory.scaler() if size else None,
            rngs=nnx.Rngs(config.seed),
        )
        return fit(policy, nuisance.sessions, epochs=5, seed=config.seed, progress=False).model

    return nuisance.cached(("policy", config.transform, config.seed, bool(size)), fitted)


def _logged_order(factory: TowerFactory, nuisance: NuisanceEstimates) -> Any:
    """Fits a relevance tower to the order in which the log shows documents; once, and a copy for each caller."""
    config = factory.config

    def fitted() -> Any:
        own = TowerFactory(config, factory.data, stored=factory.stored)
        sessions = nuisance.sessions
        if len(sessions) > ORDERED_SESSIONS:
            share = ORDERED_SESSIONS / len(sessions)
            sessions = sessions.split({"some": share, "others": 1 - share}, by="session", seed=config.seed)["some"]
        epochs = -(-ORDER_STEPS * ORDER_BATCH // max(len(sessions), ORDER_BATCH))
        model = baselines.LoggedOrder(relevance=own.document())
        return fit(
            model, sessions, optimizer=adam(0.01), epochs=epochs, batch_size=ORDER_BATCH, seed=config.seed,
            progress=False,
        ).model.relevance  # fmt: skip

    settings = dataclasses.replace(config, model="logged-order", options={})
    return nnx.clone(nuisance.cached(("order", repr(settings)), fitted))


def build_model(
    config: ModelConfig,
    log: ClickLog,
    nuisance: NuisanceEstimates | None = None,
    *,
    stored: np.ndarray | None = None,
    scaler: towers.Scaler | None = None,
) -> Any:
    """Makes the untrained model; feature statistics are measured on the given log, the training split.

    Args:
      nuisance: what weighted methods are given beside the log; None: estimates from the log by the conditional
        likelihood.
      stored: [V + 1, F] features by document id, for networks to look up (`towers.Stored`); None: sessions bring them.
      scaler: feature statistics that were measured before; None: of the given log.

    Raises:
      ConfigError: an unknown name or option, features that the log does not have, or a log that does not identify what
        the method needs.
    """
    specs = [method_spec(name) for name in _components(config.model)]
    for spec in specs:
        if not spec.trained_on_log:
            raise ConfigError(f"'{spec.name}' is not trained on the clicks of a log by gradient steps: it has no model")
    known = specs[0].defaults() if len(specs) == 1 else {}
    for option in config.options:
        if option not in known:
            raise ConfigError(f"'{config.model}' has no option '{option}'; known: {', '.join(known) or 'none'}")
    factory = TowerFactory(config, log, stored=stored, scaler=scaler)
    nuisance = nuisance or NuisanceEstimates(log, seed=config.seed)
    options = {**known, **config.options}
    built = [
        _BUILDERS[spec.builder](_Parts(spec, factory, nuisance, options if len(specs) == 1 else spec.defaults()))
        for spec in specs
    ]
    if len(built) > 1:
        return models.Mixture(components=built)
    return models.Frailty(built[0]) if options.get("frailty") else built[0]


def build_ranker_of_grades(config: ModelConfig, lists: Collection) -> Any:
    """Makes the untrained ranker of a method that learns from the grades of lists.

    Raises:
      ConfigError: a relevance tower that does not go with the lists.
    """
    factory = TowerFactory(config, lists)
    spec = method_spec(config.model)
    return spec.made_class(**{argument: factory.make(kind) for argument, kind in spec.towers.items()})


def _components(model: str) -> list[str]:
    """Splits the name of a mixture into those of its components, all checked."""
    method_spec(model)
    return model.split("+")


_OPTIMIZERS: dict[str, Callable[[float], Any]] = {
    "adam": adam,
    "lazy-adam": lazy_adam,
    "lazy-adagrad": lambda rate: lazy_adagrad(100 * rate, networks=rate),
}


def resolve_optimizer(name: str, model: Any) -> str:
    """Resolves the name of an optimizer for a model: `auto` is what `fit` takes when it is not told."""
    if name != "auto":
        return name
    return "lazy-adam" if has_large_table(model) else "adam"


def build_optimizer(name: str, learning_rate: float) -> Any:
    """Makes an optimizer by its name in `ultr.study.specs.OPTIMIZERS`.

    Args:
      learning_rate: of networks; tables have ten times that, the document tables of lazy-adagrad a hundred times.

    Raises:
      ConfigError: an unknown name, or a learning rate that is not above 0.
    """
    if name not in _OPTIMIZERS:
        raise ConfigError(f"unknown optimizer '{name}'; known: {', '.join(_OPTIMIZERS)}")
    return _OPTIMIZERS[name](learning_rate)
