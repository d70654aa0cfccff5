"""The contract that every click model keeps, checked against the enumeration of its hidden variables.

A new click model is one row of `models_contract.py` and one story in `reference.py`; all tests below then run for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from models_contract import CONTRACTS, PLAIN, Contract, Logits, probability
from scipy import integrate

from ultr.errors import ConfigError
from ultr.models import DCTR, PBM, UBM, ClickModel, Frailty, Mixture, SlotModel
from ultr.models.frailty import gaussian_nodes
from ultr.sessions import Sessions

LISTS = 8  # random lists per test; every one comes with all 2**K click vectors
WIDTHS = (1, 2, 3, 4, 5)
PADDED = 8  # width of the padded batch: at least three ranks of padding
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}  # of log-probabilities, absolute and relative
EXTREME = 1e4

every_model = pytest.mark.parametrize("index", range(len(CONTRACTS)), ids=[c.name for c in CONTRACTS])
both_precisions = pytest.mark.parametrize("dtype", ["float64", "float32"])


# --- Random lists, as batches and as tables of the enumeration --------------------------------------------


def random_logits(contract: Contract, width: int, *, scale: float = 5.0, lists: int = LISTS) -> dict[str, Any]:
    """Logits uniform in +-scale, exact in float32 so that both precisions see the same numbers."""
    rng = np.random.default_rng([CONTRACTS.index(contract), width])
    logits = {}
    for name in contract.towers:
        extra = [contract.third_axis[name](width)] if name in contract.third_axis else []
        logits[name] = rng.uniform(-scale, scale, (width, *extra, lists)).astype(np.float32).astype(np.float64)
    return logits


def wide_logits(contract: Contract, width: int) -> dict[str, Any]:
    """Logits uniform in +-20: their probabilities round to 1 in float32, their log-probabilities must not."""
    return random_logits(contract, width, scale=20.0)


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


@cache
def case(index: int, draw: Callable[..., Logits], width: int) -> tuple[Logits, dict[str, np.ndarray]]:
    """Logits of the lists, and what the enumeration says about every row of their batch."""
    logits = draw(CONTRACTS[index], width)
    table = log_table(CONTRACTS[index], logits)
    return logits, {
        "log_prob": by_row(table),
        "conditional": by_row(reference.log_conditional(table)),
        "marginal": np.repeat(reference.log_marginal(table).T, len(table), axis=0),
    }


@cache
def padded_case(index: int, draw: Callable[..., Logits], dtype: str) -> tuple[Sessions, dict[str, np.ndarray]]:
    """Lists of every length in `WIDTHS` and rows of padding alone, with garbage and clicks in all the padding."""
    cases = [case(index, draw, width) for width in WIDTHS]
    lists = [batch(logits, dtype) for logits, _ in cases]
    rng = np.random.default_rng(1)

    def grow(x: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
        out = rng.uniform(-EXTREME, EXTREME, size).astype(x.dtype)
        out[tuple(slice(n) for n in x.shape)] = x
        return out

    def grown(part: Sessions) -> Sessions:
        size = (len(part) + LISTS, PADDED)
        tails = {name: (third(PADDED),) for name, third in CONTRACTS[index].third_axis.items()}
        inside = np.index_exp[: len(part), : part.shape[1]]
        mask, clicks = np.zeros(size, bool), np.ones(size, np.int8)
        mask[inside], clicks[inside] = True, np.asarray(part.clicks)
        features = {n: grow(np.asarray(x), size + tails.get(n, ())) for n, x in part.features.items()}
        position = np.abs(grow(np.asarray(part.position), size))
        return Sessions(mask=mask, position=position, features=features, clicks=clicks)

    def padding(name: str, x: np.ndarray) -> np.ndarray:
        if name == "log_prob":
            return np.pad(x, (0, LISTS))
        return np.pad(x, ((0, LISTS), (0, PADDED - x.shape[1])), constant_values=-np.inf)

    wanted = [{name: padding(name, x) for name, x in answer.items()} for _, answer in cases]
    together = partial(jax.tree.map, lambda *x: np.concatenate(x))
    return together(*map(grown, lists)), together(*wanted)


# --- What a model says ------------------------------------------------------------------------------------


class Pointwise:
    """A tower that reads its logits from a feature and says that each belongs to its own impression."""

    pointwise = True

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, sessions: Sessions) -> Any:
        return sessions.features[self.name]

    def given(self, sessions: Sessions, last: Any) -> Any:
        return jnp.take_along_axis(sessions.features[self.name], last[:, :, None], axis=2)[:, :, 0]


def model_of(contract: Contract, tower: Callable[[str], Any] | None = None) -> ClickModel:
    tower = tower or (lambda name: lambda s: s.features[name])
    return contract.build(**{name: tower(name) for name in contract.towers})


def answers(contract: Contract, sessions: Sessions) -> dict[str, Any]:
    assert sessions.clicks is not None
    distribution = model_of(contract)(sessions)
    return {
        "log_prob": distribution.log_prob(sessions.clicks),
        "conditional": distribution.conditional(sessions.clicks),
        "marginal": distribution.marginal(),
    }


def gradient(contract: Contract, sessions: Sessions, tower: Callable[[str], Any] | None = None) -> dict[str, Any]:
    """The loss and its derivative by every logit: sessions share none, so one sum gives all of them."""

    def total(features: Mapping[str, Any]) -> tuple[Any, Any]:
        loss = model_of(contract, tower).loss(sessions.replace(features=features))
        return jnp.where(jnp.isinf(loss), 0.0, loss).sum(), loss

    slopes, loss = jax.grad(total, has_aux=True)(sessions.features)
    return {"loss": loss, "gradient": slopes}


def everything(contract: Contract, sessions: Sessions) -> dict[str, Any]:
    return answers(contract, sessions) | gradient(contract, sessions)


def ranks_first(contract: Contract, sessions: Sessions) -> dict[str, Any]:
    """What `everything` says, computed with the ranks as the first axis wherever the model can."""
    found, model = gradient(contract, sessions, Pointwise), model_of(contract, Pointwise)
    if not model.pointwise or contract.name == "UBM":
        return found | answers(contract, sessions)
    lists = sessions.rank_first()
    assert lists.clicks is not None
    distribution = model(lists)
    return found | {
        "log_prob": distribution.log_prob(lists.clicks),
        "conditional": distribution.conditional(lists.clicks).T,
        "marginal": distribution.marginal().T,
    }


def sample(contract: Contract, sessions: Sessions, key: Any) -> Any:
    return model_of(contract)(sessions).sample(key)


@cache
def compiler_options() -> dict[str, Any]:
    """Most programs here run once, for microseconds: not optimising them saves half of the time of all tests."""
    quick = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda x: x, compiler_options=quick)(0.0)
    except jax.errors.JaxRuntimeError:  # an XLA that has renamed its options
        return {}
    return quick


@cache
def compiled(function: Callable[..., Any], index: int) -> Callable[..., Any]:
    return jax.jit(partial(function, CONTRACTS[index]), compiler_options=compiler_options())


def run(function: Callable[..., Any], index: int, sessions: Sessions, *more: Any) -> Any:
    """The function of (contract, sessions, ...), compiled, in the precision of the sessions."""
    with jax.enable_x64(next(iter(sessions.features.values())).dtype == np.float64):
        return jax.tree.map(np.asarray, compiled(function, index)(sessions, *more))


def assert_agrees(found: Mapping[str, Any], wanted: Mapping[str, Any], tolerance: float, scale: float = 1.0) -> None:
    """Equal, -inf included; a conditional after clicks that cannot happen (NaN in the table) may be anything."""
    for name, want in wanted.items():
        have = np.where(np.isnan(want), np.nan, found[name])
        np.testing.assert_allclose(have, want, rtol=tolerance, atol=tolerance * scale, err_msg=name)


# --- The contract -----------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("width", WIDTHS[::2])
def test_equals_the_enumeration(index: int, width: int) -> None:
    logits, wanted = case(index, random_logits, width)
    sessions = batch(logits, "float64")
    found = run(answers, index, sessions)
    assert_agrees(found, wanted, TOLERANCE["float64"])

    total = np.exp(found["log_prob"]).reshape(LISTS, -1).sum(1)
    np.testing.assert_allclose(total, 1, rtol=1e-12)
    click = np.exp(found["conditional"])
    chain = np.prod(np.where(np.asarray(sessions.clicks) == 1, click, 1 - click), axis=1)
    np.testing.assert_allclose(chain, np.exp(found["log_prob"]), atol=1e-12)


@every_model
@both_precisions
@pytest.mark.parametrize("draw", [random_logits, wide_logits])
def test_padding_changes_nothing(index: int, dtype: str, draw: Callable[..., Logits]) -> None:
    sessions, wanted = padded_case(index, draw, dtype)
    assert_agrees(run(everything, index, sessions), wanted, TOLERANCE[dtype])


@every_model
@both_precisions
@pytest.mark.parametrize("draw", [random_logits, wide_logits])
def test_ranks_may_come_first(index: int, dtype: str, draw: Callable[..., Logits]) -> None:
    sessions, wanted = padded_case(index, draw, dtype)
    found, direct = run(ranks_first, index, sessions), run(everything, index, sessions)
    slopes, expected = found.pop("gradient"), direct.pop("gradient")
    assert_agrees(found, {"loss": -np.asarray(wanted["log_prob"]), **wanted}, TOLERANCE[dtype])
    for name in expected:
        np.testing.assert_allclose(slopes[name], expected[name], rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@every_model
@both_precisions
def test_gradient_is_the_slope_of_the_enumeration(index: int, dtype: str) -> None:
    sessions, wanted = padded_case(index, random_logits, dtype)
    found = run(everything, index, sessions)
    assert_sane_gradient(index, sessions, found["gradient"])
    possible = np.isfinite(wanted["log_prob"])
    assert possible.all() != CONTRACTS[index].impossible
    loss = -np.asarray(wanted["log_prob"])
    np.testing.assert_allclose(found["loss"], loss, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    start = 0
    for width in WIDTHS:
        logits, wanted = case(index, random_logits, width)
        stop = start + LISTS * 2**width
        for name, slope in central_differences(CONTRACTS[index], logits).items() if width <= 3 else ():
            have = found["gradient"][name][start:stop]
            have = have[tuple(slice(n) for n in slope.shape)]
            np.testing.assert_allclose(have, -slope, atol=1e-8 if dtype == "float64" else 1e-5, err_msg=name)
        start = stop + LISTS


def assert_sane_gradient(index: int, sessions: Sessions, slopes: Mapping[str, Any]) -> None:
    """Every derivative is finite and within the bound, and padding has none."""
    for name, slope in slopes.items():
        assert np.isfinite(slope).all(), name
        assert np.abs(slope).max(initial=0) <= CONTRACTS[index].bound + 1e-4, name
        np.testing.assert_allclose(slope[~np.asarray(sessions.mask)], 0, atol=1e-6, err_msg=name)


def central_differences(contract: Contract, logits: Logits, step: float = 1e-4) -> dict[str, np.ndarray]:
    """[lists * 2**K, ...] slopes of log P by every logit, 0 for impossible clicks, from moved enumerations."""
    places = [(name, place) for name, x in logits.items() for place in np.ndindex(x.shape[:-1])]

    def moved(by: float) -> np.ndarray:  # [2**K, places, lists]
        copies = {name: np.repeat(x[..., None, :], len(places), axis=-2) for name, x in logits.items()}
        for i, (name, place) in enumerate(places):
            copies[name][place][i] += by
        table = log_table(contract, {name: x.reshape(*x.shape[:-2], -1) for name, x in copies.items()})
        return np.where(np.isneginf(table), 0, table).reshape(-1, len(places), LISTS)

    slopes = by_row((moved(step) - moved(-step)) / (2 * step))
    ends = np.cumsum([x[..., 0].size for x in logits.values()])
    each = np.split(slopes, ends[:-1], axis=1)
    return {n: part.reshape(-1, *x.shape[:-1]) for (n, x), part in zip(logits.items(), each, strict=True)}


@every_model
def test_extreme_logits(index: int) -> None:
    sessions, wanted = padded_case(index, extreme_logits, "float32")
    found = run(everything, index, sessions)
    assert_sane_gradient(index, sessions, found["gradient"])
    assert_agrees(found, {"loss": -np.asarray(wanted["log_prob"]), **wanted}, 2e-6, scale=EXTREME)
    assert (found["marginal"] <= 0).all()
    assert (found["conditional"] <= 0).all()


@every_model
def test_eager_equals_compiled(index: int) -> None:
    """Also: clicks may be bool, unlikely clicks are told from impossible ones, scores are what the story says."""
    logits, wanted = case(index, random_logits, 3)
    sessions = batch(logits, "float64")
    compiled = run(answers, index, sessions)
    bools = sessions.replace(clicks=sessions.clicks == 1)
    with jax.enable_x64(True):
        assert_agrees(compiled, answers(CONTRACTS[index], bools), 16 * np.finfo(np.float64).eps)
        model = model_of(CONTRACTS[index])
        loss, score = model.loss(bools), model.score(bools)
    np.testing.assert_allclose(loss, -np.asarray(wanted["log_prob"]), rtol=1e-12, atol=1e-12)
    relevance = np.repeat(CONTRACTS[index].relevance(logits).T, 8, axis=0)
    np.testing.assert_allclose(probability(np.asarray(score)), relevance, rtol=1e-12)


@every_model
def test_samples_follow_the_table(index: int) -> None:
    """Chi-square over all click vectors of a list of three, in a batch with shorter and empty lists."""
    contract, draws = CONTRACTS[index], 20_000
    logits = random_logits(contract, 3, scale=1.5, lists=1)
    sessions = batch(logits, "float32")[np.zeros(draws + 2, int)]
    mask = np.ones((draws + 2, 3), bool)
    mask[-2:] = [[True, False, False], [False, False, False]]
    clicks = run(sample, index, sessions.replace(mask=mask), jax.random.key(7))
    assert set(np.unique(clicks)) == {0, 1}
    assert not clicks[~mask].any()

    clicks, table = clicks[:-2], np.exp(log_table(contract, logits)[:, 0])
    counts = np.bincount(clicks @ [4, 2, 1], minlength=8)
    assert not counts[table == 0].any()
    counts, wanted = counts[table > 0], draws * table[table > 0]
    assert ((counts - wanted) ** 2 / wanted).sum() < 45  # chi-square, 7 degrees of freedom: P(> 45) = 1e-7
    marginal = np.exp(reference.log_marginal(log_table(contract, logits))[:, 0])
    assert (np.abs(clicks.mean(0) - marginal) < 5 * np.sqrt(marginal * (1 - marginal) / draws)).all()


@every_model
def test_smallest_batches(index: int) -> None:
    """One list of one document, shown or not, clicked or not; and no list at all."""
    contract = CONTRACTS[index]
    logits, wanted = case(index, random_logits, 1)
    sessions = batch(logits, "float32")
    for row in range(4):
        one = sessions[row]
        found = run(everything, index, one)
        assert_agrees(found, {name: x[row : row + 1] for name, x in wanted.items()}, 1e-5)
        assert_sane_gradient(index, one, found["gradient"])
        hidden = one.replace(mask=np.zeros((1, 1), bool))
        found = run(everything, index, hidden)
        assert_agrees(found, {"loss": np.zeros(1), "log_prob": np.zeros(1)}, 1e-6)
        assert np.isneginf(found["conditional"]).all()
        assert np.isneginf(found["marginal"]).all()
        assert_sane_gradient(index, hidden, found["gradient"])
    none = batch(random_logits(contract, 3), "float32")[:0]
    found = run(answers, index, none)
    assert found["log_prob"].shape == (0,)
    assert found["conditional"].shape == found["marginal"].shape == (0, 3)
    assert run(sample, index, none, jax.random.key(0)).shape == (0, 3)


@every_model
def test_score_sees_neither_positions_nor_clicks(index: int) -> None:
    contract = CONTRACTS[index]

    def tower(name: str) -> Callable[[Sessions], Any]:
        def logits(sessions: Sessions) -> Any:
            x = jnp.asarray(sessions.features[name])
            position = jnp.asarray(sessions.position, x.dtype)
            return x + position.reshape(*position.shape, *[1] * (x.ndim - 2))

        return logits

    model = contract.build(**{name: tower(name) for name in contract.towers})
    sessions = batch(random_logits(contract, 3), "float64")
    moved = sessions.replace(position=sessions.position[:, ::-1] + 3, clicks=1 - sessions.clicks)  # type: ignore
    unclicked = sessions.replace(clicks=None)
    with jax.enable_x64(True):
        assert not np.allclose(model(sessions).marginal(), model(moved).marginal())
        np.testing.assert_array_equal(model.score(sessions), model.score(moved))
        np.testing.assert_array_equal(model.score(sessions), model.score(unclicked))
        with pytest.raises(ConfigError, match="clicks"):
            model.loss(unclicked)


@every_model
def test_a_tower_of_the_wrong_shape_is_named(index: int) -> None:
    contract = CONTRACTS[index]
    sessions = batch(random_logits(contract, 2), "float32")
    for name in set(contract.towers) & {"relevance", "examination", "satisfaction", "continuation", "click"}:
        towers = {n: lambda s, n=n: s.features[n] for n in contract.towers}
        towers[name] = lambda s, n=name: s.features[n][:, :1]
        slot = "tower" if name == "click" else name
        with pytest.raises(ConfigError, match=rf"'{slot}'.*expected.*found"):
            contract.build(**towers)(sessions)


# --- What single models promise ---------------------------------------------------------------------------


def relevance(sessions: Sessions) -> Any:
    return sessions.features["relevance"]


def examination(sessions: Sessions) -> Any:
    return sessions.features["examination"]


def test_examination_without_last_click_makes_ubm_a_pbm() -> None:
    sessions = batch(random_logits(CONTRACTS[4], 3), "float64")
    with jax.enable_x64(True):
        ubm = UBM(relevance=relevance, examination=examination)(sessions)
        pbm = PBM(relevance=relevance, examination=examination)(sessions)
        clicks = np.asarray(sessions.clicks)
        np.testing.assert_allclose(ubm.log_prob(clicks), pbm.log_prob(clicks), rtol=1e-12)
        np.testing.assert_allclose(ubm.marginal(), pbm.marginal(), rtol=1e-12)


def test_mixture_prior_may_be_an_array_or_learned() -> None:
    sessions = batch(random_logits(CONTRACTS[4], 3), "float64")
    with jax.enable_x64(True):
        components = [PBM(relevance=relevance, examination=examination), DCTR(relevance)]
        each = np.exp(np.stack([m.log_prob(sessions) for m in components]))

        given = Mixture(components=components, prior_logits=np.log([0.8, 0.2]))
        np.testing.assert_allclose(given.log_prob(sessions), np.log([0.8, 0.2] @ each), rtol=1e-10)
        assert not jax.tree.leaves(nnx.state(given, nnx.Param))

        learned = Mixture(components=components)
        np.testing.assert_allclose(learned.log_prob(sessions), np.log(each.mean(0)), rtol=1e-10)
        (slope,) = jax.tree.leaves(nnx.grad(lambda model: model.loss(sessions).sum())(learned))
        posterior = each / each.sum(0)
        np.testing.assert_allclose(slope, (0.5 - posterior).sum(1), rtol=1e-10)


def test_mixture_says_what_does_not_fit() -> None:
    sessions = batch(random_logits(CONTRACTS[4], 3), "float32")
    component = DCTR(relevance)
    for wrong in (np.zeros(3, np.float32), lambda s: jnp.zeros((len(s), 1))):
        with pytest.raises(ConfigError, match="prior"):
            Mixture(components=[component, component], prior_logits=wrong)(sessions)
    with pytest.raises(ConfigError, match="component"):
        Mixture(components=[])


@pytest.mark.slow
def test_an_effect_per_list_is_a_mixture_of_lists_moved_alike() -> None:
    """Every model of towers: 7 nodes are a mixture of 7 models."""
    effects, log_weight = gaussian_nodes(7)
    for contract in PLAIN:
        model = model_of(contract)
        if not isinstance(model, SlotModel):
            with pytest.raises(ConfigError, match=r"found Mixture\. Give the components of a mixture an effect each"):
                Frailty(model)
            continue
        sessions = batch(random_logits(contract, 3, scale=2.0), "float64")
        moved = "click" if "click" in contract.towers else "relevance"
        with jax.enable_x64(True):
            found = Frailty(model, deviation=0.5).log_prob(sessions)
            if contract.name.endswith("Increasing"):
                continue  # whose satisfaction goes by the features alone: a row of its own
            each = [
                model.log_prob(sessions.replace(features={**sessions.features, moved: x}))
                for x in (np.asarray(sessions.features[moved]) + 0.5 * effect for effect in effects)
            ]
        wanted = np.logaddexp.reduce([w + np.asarray(x) for w, x in zip(log_weight, each, strict=True)])
        np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-10, err_msg=contract.name)


@pytest.mark.slow
@pytest.mark.parametrize(("nodes", "tolerance", "of_slope"), [(7, 0.01, 0.03), (64, 1e-9, 1e-6)])
def test_an_effect_per_list_is_integrated_out(nodes: int, tolerance: float, of_slope: float) -> None:
    """The likelihood, its slopes and what clicks above say, against integrals by an adaptive rule."""
    sessions = batch(random_logits(CONTRACTS[4], 4, scale=2.0, lists=1), "float64")
    clicks = np.asarray(sessions.clicks)
    r, t = (np.asarray(sessions.features[name])[0] for name in ("relevance", "examination"))

    def chance(row: Any, deviation: float, count: int = 4) -> float:
        def at(u: float) -> float:
            p = probability(r + deviation * u) * probability(t)
            density = np.exp(-u * u / 2) / np.sqrt(2 * np.pi)
            return float(np.prod(np.where(row, p, 1 - p)[:count]) * density)

        return integrate.quad(at, -12, 12, epsabs=1e-13, epsrel=1e-13)[0]

    with jax.enable_x64(True):
        model = Frailty(PBM(relevance=relevance, examination=examination), nodes=nodes, deviation=1.5)
        distribution = model(sessions)
        found, given = np.exp(distribution.log_prob(clicks)), np.exp(distribution.conditional(clicks))
        slopes = nnx.grad(lambda m: m.log_prob(sessions[5:6]).sum())(model)
    wanted = [chance(row, 1.5) for row in clicks]
    np.testing.assert_allclose(found, wanted, rtol=tolerance)
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-12)
    above = chance(np.array([1, 0, 1, 0]), 1.5, 2)
    np.testing.assert_allclose(given[10, 2], chance(np.array([1, 0, 1, 0]), 1.5, 3) / above, rtol=tolerance)
    slope = (np.log(chance(clicks[5], 1.5 + 1e-4)) - np.log(chance(clicks[5], 1.5 - 1e-4))) / 2e-4
    np.testing.assert_allclose(slopes["scale"][...], slope, rtol=5 * tolerance, atol=of_slope)
    assert model.standard_deviation == 1.5


# --- The enumeration itself -------------------------------------------------------------------------------


def by_hand() -> dict[str, tuple[np.ndarray, float]]:
    """P(click, click) of two ranks as a formula, beside the table."""
    g, t, s, go, a, b = ([0.3, 0.6], [0.9, 0.4], [0.7, 0.2], [0.8, 0.5], [0.35, 0.15], [0.45, 0.25])
    table = reference.table
    return {
        "PBM": (table(reference.pbm, relevance=g, examination=t), 0.3 * 0.9 * 0.6 * 0.4),
        "TrustPBM": (
            table(reference.trust_pbm, relevance=g, examination=t, trust_relevant=s, trust_irrelevant=a),
            0.9 * (0.3 * 0.7 + 0.7 * 0.35) * 0.4 * (0.6 * 0.2 + 0.4 * 0.15),
        ),
        "UBM": (
            table(reference.ubm, relevance=g, examination=[[0.9, 0.1, 0.1], [0.2, 0.55, 0.1]]),
            0.3 * 0.9 * 0.6 * 0.55,
        ),
        "CascadeModel": (table(reference.cascade, relevance=g), 0.0),
        "DCM": (table(reference.dcm, relevance=g, continuation=go), 0.3 * 0.8 * 0.6),
        "SDBN": (table(reference.sdbn, relevance=g, satisfaction=s), 0.3 * 0.3 * 0.6),
        "DBN": (table(reference.dbn, relevance=g, satisfaction=s, continuation=go), 0.3 * 0.3 * 0.8 * 0.6),
        "CCM": (
            table(reference.ccm, relevance=g, after_skip=go, after_irrelevant_click=a, after_relevant_click=b),
            0.3 * (0.7 * 0.35 + 0.3 * 0.45) * 0.6,
        ),
    }


@pytest.mark.parametrize("name", by_hand())
def test_enumeration_by_hand(name: str) -> None:
    table, both_clicked = by_hand()[name]
    np.testing.assert_allclose(table.sum(), 1)
    np.testing.assert_allclose(table[-1], both_clicked)


@every_model
def test_enumeration_in_log_space_is_the_enumeration(index: int) -> None:
    contract = CONTRACTS[index]
    coins = contract.coins(random_logits(contract, 4))
    chances = {name: jax.tree.map(probability, x) for name, x in coins.items()}
    plain = reference.table(contract.story, **chances)
    np.testing.assert_allclose(np.exp(reference.log_table(contract.story, **coins)), plain, rtol=1e-10)
    np.testing.assert_allclose(plain.sum(0), 1, rtol=1e-12)
