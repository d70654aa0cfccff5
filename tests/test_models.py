"""The contract that every click model keeps, checked against the enumeration of its hidden variables.

A new click model is one row of `CONTRACTS` and one story in `reference.py`; all tests below then run for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx

from ultr.errors import ConfigError
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
    Mixture,
    TrustPBM,
)
from ultr.sessions import Sessions

Logits = Mapping[str, Any]  # name -> [K, ..., lists]: rank first, lists last, as in reference.py

LISTS = 8  # random lists per test; every one comes with all 2**K click vectors
WIDTHS = (1, 2, 3, 4, 5)
PADDED = 8  # width of the padded batch: at least three ranks of padding
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}  # of log-probabilities, absolute and relative
EXTREME = 1e4


# --- The table -----------------------------------------------------------------------------------------------


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


def _mixture(relevance: Any, examination: Any, satisfaction: Any, continuation: Any, prior: Any) -> Mixture:
    return Mixture(
        components=[
            PBM(relevance=relevance, examination=examination),
            CascadeModel(relevance=relevance),
            DBN(relevance=relevance, satisfaction=satisfaction, continuation=continuation),
        ],
        prior_logits=_at_first_rank(prior),
    )


def _mixture_story(
    flip: reference.Flip, relevance: Any, examination: Any, satisfaction: Any, continuation: Any, prior: Any
) -> Sequence[bool]:
    components = [
        partial(reference.pbm, relevance=relevance, examination=examination),
        partial(reference.cascade, relevance=relevance),
        partial(reference.dbn, relevance=relevance, satisfaction=satisfaction, continuation=continuation),
    ]
    return reference.mixture(flip, prior, components)


def _mixture_relevance(x: Logits) -> Any:
    one, two, three = _softmax(x["prior"][0])
    return (one + two) * probability(x["relevance"]) + three * _product(x)


def _cascades(first: Any, second: Any, third: Any, prior: Any) -> Mixture:
    """A mixture within a mixture, with equal shares inside; nobody clicks twice."""
    inner = Mixture(components=[CascadeModel(relevance=second), CascadeModel(relevance=third)])
    return Mixture(components=[CascadeModel(relevance=first), inner], prior_logits=_at_first_rank(prior))


def _cascades_story(flip: reference.Flip, first: Any, second: Any, third: Any, prior: Any) -> Sequence[bool]:
    inner = [partial(reference.cascade, relevance=second), partial(reference.cascade, relevance=third)]
    either = partial(reference.mixture, choice=_sticks(np.zeros(2)), components=inner)
    return reference.mixture(flip, prior, [partial(reference.cascade, relevance=first), either])


def _cascades_relevance(x: Logits) -> Any:
    outside, inside = _softmax(x["prior"][0])
    return outside * probability(x["first"]) + inside * (probability(x["second"]) + probability(x["third"])) / 2


CONTRACTS = [
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
        ["relevance", "examination", "satisfaction", "continuation", "prior"],
        _mixture_story,
        third_axis={"prior": lambda width: 3},
        coins=lambda x: {**x, "prior": _sticks(x["prior"][0])},
        relevance=_mixture_relevance,
    ),
    Contract(
        "MixtureOfMixtures",
        _cascades,
        ["first", "second", "third", "prior"],
        _cascades_story,
        third_axis={"prior": lambda width: 2},
        coins=lambda x: {**x, "prior": _sticks(x["prior"][0])},
        relevance=_cascades_relevance,
        impossible=True,
    ),
]

every_model = pytest.mark.parametrize("index", range(len(CONTRACTS)), ids=[c.name for c in CONTRACTS])
both_precisions = pytest.mark.parametrize("dtype", ["float64", "float32"])


# --- Random lists, as batches and as tables of the enumeration ---------------------------------------------------


def random_logits(contract: Contract, width: int, *, scale: float = 5.0, lists: int = LISTS) -> dict[str, Any]:
    """Logits uniform in +-scale, exact in float32 so that both precisions see the same numbers."""
    rng = np.random.default_rng([CONTRACTS.index(contract), width])
    logits = {}
    for name in contract.towers:
        extra = [contract.third_axis[name](width)] if name in contract.third_axis else []
        logits[name] = rng.uniform(-scale, scale, (width, *extra, lists)).astype(np.float32).astype(np.float64)
    return logits


def extreme_logits(contract: Contract, width: int) -> dict[str, Any]:
    """Logits of +-10,000: one list of pluses, one of minuses, random signs, and two lists of all sizes."""
    signs = {name: np.sign(x) for name, x in random_logits(contract, width).items()}
    sizes = random_logits(contract, width, scale=EXTREME)
    for name in signs:
        signs[name][..., 0], signs[name][..., 1] = 1, -1
        signs[name][..., -2:] = sizes[name][..., -2:] / EXTREME
    return {name: EXTREME * x for name, x in signs.items()}


def batch(logits: Logits, dtype: str) -> Sessions:
    """Every list with every click vector: lists * 2**K rows, the click vector changes fastest."""
    width, lists = (next(iter(logits.values())).shape[i] for i in (0, -1))
    vectors = reference.click_vectors(width)
    features = {n: np.repeat(np.moveaxis(x, -1, 0), len(vectors), axis=0).astype(dtype) for n, x in logits.items()}
    rows = lists * len(vectors)
    return Sessions(
        mask=np.ones((rows, width), bool),
        position=np.tile(np.arange(width, dtype=np.int32), (rows, 1)),
        features=features,
        clicks=np.tile(vectors, (lists, 1)),
    )


def by_row(table: np.ndarray) -> np.ndarray:
    """A table of the enumeration, [2**K, ..., lists], in the order of the batch: [lists * 2**K, ...]."""
    return np.concatenate(np.moveaxis(table, -1, 0))


def log_table(contract: Contract, logits: Logits) -> np.ndarray:
    """[2**K, lists] log-probability of every click vector, from the enumeration."""
    return reference.log_table(contract.story, **contract.coins(logits))


def expected(contract: Contract, logits: Logits) -> dict[str, np.ndarray]:
    table = log_table(contract, logits)
    marginal = reference.log_marginal(table)
    return {
        "log_prob": by_row(table),
        "conditional": by_row(reference.log_conditional(table)),
        "marginal": np.repeat(marginal.T, len(table), axis=0),
    }


def padded(sessions: Sessions, contract: Contract) -> Sessions:
    """The batch in a width of `PADDED`, and as many rows of padding alone: garbage and clicks fill all of it."""
    (rows, width), rng = sessions.shape, np.random.default_rng(1)

    def grow(x: np.ndarray, tail: tuple[int, ...]) -> np.ndarray:
        out = rng.uniform(-EXTREME, EXTREME, (rows + LISTS, PADDED, *tail)).astype(x.dtype)
        out[tuple(slice(n) for n in x.shape)] = x
        return out

    tails = {name: (size(PADDED),) for name, size in contract.third_axis.items()}
    clicks = np.ones((rows + LISTS, PADDED), np.int8)
    clicks[:rows, :width] = sessions.clicks
    mask = np.zeros((rows + LISTS, PADDED), bool)
    mask[:rows, :width] = sessions.mask
    features = {name: grow(np.asarray(x), tails.get(name, ())) for name, x in sessions.features.items()}
    return Sessions(mask=mask, position=np.abs(grow(np.asarray(sessions.position), ())), features=features, clicks=clicks)


# --- What a model says -------------------------------------------------------------------------------------------


def model_of(contract: Contract) -> ClickModel:
    return contract.build(**{name: lambda s, name=name: s.features[name] for name in contract.towers})


def answers(contract: Contract, sessions: Sessions) -> dict[str, Any]:
    assert sessions.clicks is not None
    distribution = model_of(contract)(sessions)
    return {
        "log_prob": distribution.log_prob(sessions.clicks),
        "conditional": distribution.conditional(sessions.clicks),
        "marginal": distribution.marginal(),
    }


def verdicts(contract: Contract, sessions: Sessions) -> dict[str, Any]:
    model = model_of(contract)
    return {"loss": model.loss(sessions), "possible": model.possible(sessions), "score": model.score(sessions)}


def gradient(contract: Contract, sessions: Sessions) -> dict[str, Any]:
    """The loss and its derivative by every logit: sessions share none, so one sum gives all of them."""

    def total(features: Mapping[str, Any]) -> tuple[Any, Any]:
        loss = model_of(contract).loss(sessions.replace(features=features))  # type: ignore[attr-defined]
        return loss.sum(), loss

    slopes, loss = jax.grad(total, has_aux=True)(sessions.features)
    return {"loss": loss, "gradient": slopes}


def sample(contract: Contract, sessions: Sessions, key: Any) -> Any:
    return model_of(contract)(sessions).sample(key)


# Most programs here run once, for microseconds: compiling them without optimisation saves half of the test time.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


@cache
def compiled(function: Callable[..., Any], index: int, quick: bool = True) -> Callable[..., Any]:
    return jax.jit(partial(function, CONTRACTS[index]), compiler_options=QUICK if quick else None)


def run(function: Callable[..., Any], index: int, sessions: Sessions, *more: Any, quick: bool = True) -> Any:
    """The function of (contract, sessions, ...), compiled, in the precision of the sessions."""
    with jax.enable_x64(next(iter(sessions.features.values())).dtype == np.float64):
        return jax.tree.map(np.asarray, compiled(function, index, quick)(sessions, *more))


def assert_agrees(found: Mapping[str, Any], wanted: Mapping[str, Any], tolerance: float) -> None:
    """Equal, -inf included; a conditional after clicks that cannot happen (NaN in the table) may be anything."""
    for name, want in wanted.items():
        have = np.where(np.isnan(want), np.nan, found[name])
        np.testing.assert_allclose(have, want, rtol=tolerance, atol=tolerance, err_msg=name)


# --- The contract ------------------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("width", WIDTHS)
def test_equals_the_enumeration(index: int, width: int) -> None:
    contract = CONTRACTS[index]
    logits = random_logits(contract, width)
    sessions = batch(logits, "float64")
    found = run(answers, index, sessions)
    assert_agrees(found, expected(contract, logits), TOLERANCE["float64"])

    total = np.exp(found["log_prob"]).reshape(LISTS, -1).sum(1)
    np.testing.assert_allclose(total, 1, rtol=1e-12)
    click = np.exp(found["conditional"])
    chain = np.where(sessions.clicks, click, 1 - click).prod(1)
    np.testing.assert_allclose(chain, np.exp(found["log_prob"]), atol=1e-12)
