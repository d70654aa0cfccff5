"""One row per click model: how it is built of towers, and the story that it must tell; `test_models.py` runs all.

A new click model gets a row here, and a story in `reference.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import reference

from ultr.models import (
    CCM,
    DBN,
    DCM,
    DCTR,
    GCTR,
    PBM,
    RCTR,
    RDCTR,
    SDBN,
    UBM,
    AdditivePBM,
    CascadeModel,
    ClickModel,
    Frailty,
    Mixture,
    TrustPBM,
)
from ultr.models.frailty import gaussian_nodes
from ultr.sessions import Sessions
from ultr.towers import Increasing, as_tower

Logits = Mapping[str, Any]  # name -> [K, ..., lists]: rank first, lists last, as in reference.py


@dataclass(frozen=True)
class Contract:
    """One click model: how to build it from towers, and the story that it must tell.

    Attributes:
      build: from one tower per name, by keyword, to the model.
      towers: names of the towers, which are the names of the story's parameters as well.
      story: of `reference.py`.
      third_axis: size of the last axis, by width K, of towers whose logits are not [B, K].
      coins: the story's logits from the towers', where they are not the same.
      relevance: the probability that the model ranks by, from the towers' logits.
      bound: the largest |d log P / d logit|: the number of coins on a path that share the logit.
      impossible: whether some click vectors have probability zero.
    """

    name: str
    build: Callable[..., ClickModel]
    towers: Sequence[str]
    story: reference.Story
    third_axis: Mapping[str, Callable[[int], int]] = field(default_factory=dict)
    coins: Callable[[Logits], Logits] = dict
    relevance: Callable[[Logits], Any] = lambda x: probability(x["relevance"])
    bound: float = 1.0
    impossible: bool = False

    def __str__(self) -> str:
        return self.name


def probability(logit: Any) -> Any:
    return 1 / (1 + np.exp(-logit))


def _ctr(name: str, model: Callable[..., ClickModel]) -> Contract:
    return Contract(
        name,
        lambda click: model(tower=click),
        ["click"],
        reference.independent,
        relevance=lambda x: probability(x["click"]),
    )


def _product(x: Logits) -> Any:
    return probability(x["relevance"]) * probability(x["satisfaction"])


def _sticks(logits: Any) -> list[Any]:
    """Logits of P(component m | none before it) under softmax(logits), for the coins of `reference.mixture`."""
    return [x - np.logaddexp.reduce(logits[m + 1 :], axis=0) for m, x in enumerate(logits[:-1])]


def _softmax(logits: Any) -> Any:
    return np.exp(logits - np.logaddexp.reduce(logits, axis=0))


def _at_first_rank(tower: Callable[[Sessions], Any]) -> Callable[[Sessions], Any]:
    return lambda sessions: tower(sessions)[:, 0]


def _mixture(relevance: Any, examination: Any, prior: Any) -> Mixture:
    components = [PBM(relevance=relevance, examination=examination), CascadeModel(relevance=relevance)]
    return Mixture(components=components, prior_logits=_at_first_rank(prior))


def _mixture_story(flip: reference.Flip, relevance: Any, examination: Any, prior: Any) -> Sequence[bool]:
    scattered = partial(reference.pbm, relevance=relevance, examination=examination)
    return reference.mixture(flip, prior, [scattered, partial(reference.cascade, relevance=relevance)])


def _cascades(first: Any, second: Any, third: Any, prior: Any) -> Mixture:
    """A mixture within a mixture, with equal shares inside; nobody clicks twice."""
    inner = Mixture(components=[CascadeModel(relevance=second), CascadeModel(relevance=third)])
    return Mixture(components=[CascadeModel(relevance=first), inner], prior_logits=_at_first_rank(prior))


def _cascades_story(
    flip: reference.Flip, first: Any, second: Any, third: Any, prior: Any, inner: Any
) -> Sequence[bool]:
    components = [partial(reference.cascade, relevance=second), partial(reference.cascade, relevance=third)]
    either = partial(reference.mixture, choice=inner, components=components)
    return reference.mixture(flip, prior, [partial(reference.cascade, relevance=first), either])


def _cascades_relevance(x: Logits) -> Any:
    outside, inside = _softmax(x["prior"][0])
    return outside * probability(x["first"]) + inside * (probability(x["second"]) + probability(x["third"])) / 2


SLOPE, INTERCEPT = 0.75, -0.5  # of satisfaction, by the logit of relevance
NODES, DEVIATION = 3, 1.25


def _increasing(x: Logits) -> Logits:
    return {**x, "satisfaction": SLOPE * x["relevance"] + INTERCEPT}


def _monotone(model: Callable[..., ClickModel]) -> Callable[..., ClickModel]:
    """A model with one tower for relevance and, increasing with it, satisfaction."""

    def build(relevance: Any, **others: Any) -> ClickModel:
        tower = as_tower(relevance)
        return model(relevance=tower, satisfaction=Increasing(tower, slope=SLOPE, intercept=INTERCEPT), **others)

    return build


def _frail(contract: Contract) -> Contract:
    """The contract of a model with a random effect per list: a mixture of lists whose relevance is moved alike."""
    effects, log_weight = gaussian_nodes(NODES)
    names = [f"relevance {i}" for i in range(NODES)]

    def coins(x: Logits) -> Logits:
        own = contract.coins(x)
        lists = x[contract.towers[0]].shape[-1]
        found = {k: v for k, v in own.items() if k != "relevance"}
        moved = {name: own["relevance"] + DEVIATION * effect for name, effect in zip(names, effects, strict=True)}
        choice = np.repeat(np.array(_sticks(log_weight))[:, None], lists, axis=1)
        return found | moved | {"effect": choice}

    def story(flip: reference.Flip, effect: Any, **parameters: Any) -> Sequence[bool]:
        shared = {k: v for k, v in parameters.items() if k not in names}
        each = [partial(contract.story, **shared, relevance=parameters[name]) for name in names]
        return reference.mixture(flip, effect, each)

    return replace(
        contract,
        name=f"Frailty{contract.name}",
        build=lambda **towers: Frailty(contract.build(**towers), nodes=NODES, deviation=DEVIATION),
        story=story,
        coins=coins,
    )


PLAIN = [
    _ctr("GCTR", GCTR),
    _ctr("RCTR", RCTR),
    _ctr("DCTR", DCTR),
    _ctr("RDCTR", RDCTR),
    Contract("PBM", PBM, ["relevance", "examination"], reference.pbm),
    Contract(
        "TrustPBM",
        TrustPBM,
        ["relevance", "examination", "trust_relevant", "trust_irrelevant"],
        reference.trust_pbm,
    ),
    Contract(
        "AdditivePBM",
        AdditivePBM,
        ["relevance", "examination"],
        reference.independent,
        coins=lambda x: {"click": x["relevance"] + x["examination"]},
    ),
    Contract(
        "UBM",
        UBM,
        ["relevance", "examination"],
        reference.ubm,
        third_axis={"examination": lambda width: width + 1},
    ),
    Contract("CascadeModel", CascadeModel, ["relevance"], reference.cascade, impossible=True),
    Contract("DCM", DCM, ["relevance", "continuation"], reference.dcm),
    Contract("SDBN", SDBN, ["relevance", "satisfaction"], reference.sdbn, relevance=_product),
    Contract("DBN", DBN, ["relevance", "satisfaction", "continuation"], reference.dbn, relevance=_product),
    Contract(
        "CCM",
        CCM,
        ["relevance", "after_skip", "after_irrelevant_click", "after_relevant_click"],
        reference.ccm,
        bound=2.0,
    ),
    Contract(
        "Mixture",
        _mixture,
        ["relevance", "examination", "prior"],
        _mixture_story,
        third_axis={"prior": lambda width: 2},
        coins=lambda x: {**x, "prior": _sticks(x["prior"][0])},
    ),
    Contract(
        "MixtureOfMixtures",
        _cascades,
        ["first", "second", "third", "prior"],
        _cascades_story,
        third_axis={"prior": lambda width: 2},
        coins=lambda x: {**x, "prior": _sticks(x["prior"][0]), "inner": _sticks(np.zeros(2))},
        relevance=_cascades_relevance,
        impossible=True,
    ),
    Contract(
        "SDBNIncreasing", _monotone(SDBN), ["relevance"], reference.sdbn, coins=_increasing, bound=1 + SLOPE,
        relevance=lambda x: _product(_increasing(x)),
    ),
    Contract(
        "DBNIncreasing", _monotone(DBN), ["relevance", "continuation"], reference.dbn, coins=_increasing,
        bound=1 + SLOPE, relevance=lambda x: _product(_increasing(x)),
    ),
]  # fmt: skip
CONTRACTS = PLAIN + [_frail(c) for c in PLAIN if c.name in ("PBM", "UBM", "CascadeModel", "CCM", "DBNIncreasing")]
