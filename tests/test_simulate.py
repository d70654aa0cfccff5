"""The simulator against the probabilities that it states."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from narrowing import present

from ultr import models, propensity, simulate, towers
from ultr.data import ClickLog, Collection
from ultr.errors import ConfigError, DataError
from ultr.evaluation import evaluate
from ultr.sessions import Sessions
from ultr.simulate import entropy
from ultr.training import solve

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture(scope="module")
def lists() -> Collection:
    return simulate.collection(queries=40, documents=12, features=6, seed=0)


def shown(log: ClickLog) -> Sessions:
    (batch,) = log.batches(len(log))
    return batch


def simulated(
    lists: Collection, path: Path, policy: simulate.Policy, user: str = "pbm", n: int = 20_000, **options: Any
) -> ClickLog:
    model = simulate.user(user, grades=4, ranks=5)
    return simulate.clicks(lists, policy, model, sessions=n, seed=1, out=path, ranks=5, **options)


def test_a_synthetic_collection_has_the_stated_grades(lists: Collection) -> None:
    shares = np.bincount(lists.labels.astype(int), minlength=5) / len(lists.labels)
    np.testing.assert_allclose(shares, [0.5, 0.2, 0.15, 0.1, 0.05], atol=0.003)
    again = simulate.collection(queries=40, documents=12, features=6, seed=0)
    np.testing.assert_array_equal(lists.features, again.features)


def test_clicks_follow_examination_times_relevance(lists: Collection, tmp_path: Path) -> None:
    batch = shown(simulated(lists, tmp_path / "log", simulate.Policy("random")))
    clicks, labels = np.asarray(batch.clicks), np.asarray(batch.labels)
    for grade, gain in enumerate([0, 1, 3, 7, 15]):
        for rank in range(5):
            here = labels[:, rank] == grade
            p = (0.1 + 0.9 * gain / 15) / (rank + 1)
            deviation = np.sqrt(p * (1 - p) / here.sum()) + 1e-9
            assert abs(clicks[here, rank].mean() - p) < 4.5 * deviation, (grade, rank)


def test_the_log_keeps_the_truth(lists: Collection, tmp_path: Path) -> None:
    log = simulated(lists, tmp_path / "log", simulate.Policy("noisy", temperature=0.5))
    truth = log.metadata["truth"]
    np.testing.assert_allclose(truth["examination"], 1 / np.arange(1, 6), rtol=1e-6)
    batch = shown(log)
    expected = float(np.asarray(simulate.user("pbm", grades=4, ranks=5).log_prob(batch)).mean())
    assert truth["log_likelihood"] == pytest.approx(expected, rel=1e-5)
    assert truth["policy"] == dataclasses.asdict(simulate.Policy("noisy", temperature=0.5))
    assert truth["user"] == "PBM"
    np.testing.assert_array_equal(log.vocabulary.labels[1:], lists.labels)  # type: ignore[index]


def test_policies_rank_as_they_are_named(lists: Collection, tmp_path: Path) -> None:
    rankings = {}
    for policy in simulate.RANKERS:
        if policy == "boosted":
            pytest.importorskip("lightgbm", reason="the policy 'boosted' needs LightGBM")
        options: dict[str, float] = {"strength": -1.0} if policy == "strength" else OF_RANKER.get(policy, {})
        batch = shown(simulated(lists, tmp_path / policy, simulate.Policy(policy, **options), n=3000))
        rankings[policy] = batch
        first_query = np.asarray(batch.features["document"])[np.asarray(batch.query) == present(batch.query)[0]]
        assert (len(np.unique(first_query, axis=0)) > 1) == (policy == "random")
    labels = {name: np.asarray(b.labels) for name, b in rankings.items()}
    assert (np.diff(labels["oracle"], axis=1) <= 0).all()
    assert (np.diff(labels["strength"], axis=1) >= 0).all()  # of strength -1: the oracle upside down
    assert labels["boosted"][:, 0].mean() > labels["linear"].mean() > labels["random"].mean()
    assert labels["oracle"][:, 0].mean() > labels["noisy"][:, 0].mean() > labels["random"][:, 0].mean()
    expected = lists.labels.mean()
    assert abs(labels["random"].mean() - expected) < 4 * lists.labels.std() / np.sqrt(labels["random"].size)


def test_plackett_luce_has_the_stated_probabilities(tmp_path: Path) -> None:
    three = Collection.from_arrays(query=[0, 0, 0], label=[0.0, 1.0, 2.0])
    policy = simulate.Policy("oracle", temperature=0.7)
    log = simulate.clicks(three, policy, simulate.user("pbm", grades=2, ranks=2), sessions=30_000, seed=3,
                          out=tmp_path / "log", ranks=2)  # fmt: skip
    weight = np.exp(policy.scores(three, seed=3) / 0.7)
    documents = np.asarray(shown(log).features["document"])
    for first, second in permutations(range(3), 2):
        p = weight[first] / weight.sum() * weight[second] / (weight.sum() - weight[first])
        share = ((documents[:, 0] == first + 1) & (documents[:, 1] == second + 1)).mean()
        assert abs(share - p) < 4.5 * np.sqrt(p * (1 - p) / 30_000)


def test_equal_scores_are_not_ordered_by_the_file(tmp_path: Path) -> None:
    # 300 queries of two documents with the same grade: each comes first about half of the time.
    pairs = Collection.from_arrays(query=np.repeat(np.arange(300), 2), label=np.ones(600))
    log = simulate.clicks(pairs, simulate.Policy("oracle"), simulate.user("pbm", grades=1), sessions=3000, seed=0,
                          out=tmp_path / "log")  # fmt: skip
    batch = shown(log)
    first = {
        int(q): int(d) % 2
        for q, d in zip(present(batch.query), np.asarray(batch.features["document"])[:, 0], strict=True)
    }
    assert abs(np.mean(list(first.values())) - 0.5) < 4 * 0.5 / np.sqrt(len(first))


def test_zipf_queries_and_short_lists(tmp_path: Path) -> None:
    sizes = [1, 3, 8]
    query = np.repeat(np.arange(3), sizes)
    ragged = Collection.from_arrays(query=query, label=np.arange(12) % 3)
    log = simulate.clicks(ragged, simulate.Policy("random"), simulate.user("pbm", grades=2, ranks=5), sessions=9000,
                          seed=0, out=tmp_path / "log", ranks=5, zipf=1.0)  # fmt: skip
    lengths = log.metadata["lengths"]
    assert set(lengths) == {"1", "3", "5"}
    for size, share in zip(("1", "3", "5"), np.array([6, 3, 2]) / 11, strict=True):
        assert abs(lengths[size] / 9000 - share) < 4.5 * np.sqrt(share * (1 - share) / 9000)


def test_the_same_seed_gives_the_same_bytes(lists: Collection, tmp_path: Path) -> None:
    policy = simulate.Policy("noisy", temperature=0.5, epsilon=0.2, swaps=0.3)
    device = simulate.Context("device", ("desk", "phone"), (1.0, 2.0))
    user = simulate.user("pbm", grades=4, ranks=5, contexts=[device], drift=2.0, flip=0.1)

    def content(seed: int, name: str) -> dict[str, bytes]:
        log = simulate.clicks(lists, policy, user, sessions=500, seed=seed, out=tmp_path / name, ranks=5)
        return {file.name: file.read_bytes() for file in sorted(log.path.iterdir())}

    first = content(1, "a")
    assert first == content(1, "b")
    assert first["sessions-00000.parquet"] != content(2, "c")["sessions-00000.parquet"]


def test_a_policy_without_chance_is_the_same_in_all_blocks(lists: Collection, tmp_path: Path) -> None:
    blocks_of_300: Any = {"candidates_at_once": 12 * 300}
    batch = shown(simulated(lists, tmp_path / "log", simulate.Policy("oracle"), n=1000, **blocks_of_300))
    rankings = np.column_stack([present(batch.query), np.asarray(batch.features["document"])])
    assert len(np.unique(rankings, axis=0)) == len(np.unique(present(batch.query))) == 40


# What policies show, against the probabilities of every ranking of three documents


THREE = Collection.from_arrays(query=[0, 0, 0], label=[2.0, 1.0, 0.0])  # the oracle shows documents 1, 2, 3
ORDERS = list(permutations(range(3)))


def displayed(policy: simulate.Policy, path: Path, ranks: int = 3, n: int = 20_000) -> dict[tuple[int, ...], float]:
    """How often each list of documents (0-based) was shown."""
    user = simulate.user("pbm", grades=2, ranks=ranks)
    log = simulate.clicks(THREE, policy, user, sessions=n, seed=5, out=path, ranks=ranks)
    found, counts = np.unique(np.asarray(shown(log).features["document"]) - 1, axis=0, return_counts=True)
    return {tuple(int(d) for d in row): c / n for row, c in zip(found, counts, strict=True)}


def agree(found: dict[tuple[int, ...], float], expected: Mapping[Any, float], n: int = 20_000) -> None:
    assert sum(expected.values()) == pytest.approx(1)
    assert set(found) <= {row for row, p in expected.items() if p > 0}
    for row, p in expected.items():
        assert abs(found.get(row, 0.0) - p) < 4.5 * np.sqrt(p * (1 - p) / n) + 1e-9, row


def greedy(base: dict[tuple[int, ...], float], epsilon: float, ranks: int) -> dict[tuple[int, ...], float]:
    """Each rank shows the first of the base ranking's documents that are left, or with epsilon any of them."""
    out: dict[tuple[int, ...], float] = {}
    for order, weight in base.items():
        for row in permutations(range(3), ranks):
            p, left = weight, list(order)
            for document in row:
                p *= epsilon / len(left) + (1 - epsilon) * (left[0] == document)
                left.remove(document)
            out[row] = out.get(row, 0.0) + p
    return out


@pytest.mark.parametrize("ranks", [2, 3])
def test_epsilon_greedy_explores_at_every_rank(ranks: int, tmp_path: Path) -> None:
    found = displayed(simulate.Policy("oracle", epsilon=0.3), tmp_path / "log", ranks)
    agree(found, greedy({(0, 1, 2): 1.0}, 0.3, ranks))


def test_epsilon_composes_with_a_temperature(tmp_path: Path) -> None:
    policy = simulate.Policy("oracle", temperature=1.0, epsilon=0.4)
    weight = np.exp(policy.scores(THREE, seed=5))
    base = {o: weight[o[0]] / weight.sum() * weight[o[1]] / (weight[o[1]] + weight[o[2]]) for o in ORDERS}
    agree(displayed(policy, tmp_path / "log"), greedy(base, 0.4, 3))


def test_swaps_exchange_neighbours(tmp_path: Path) -> None:
    p = 0.6  # the pair is 1-2 or 2-3, either with one half
    expected = {(0, 1, 2): 1 - p, (1, 0, 2): p / 2, (0, 2, 1): p / 2}
    agree(displayed(simulate.Policy("oracle", swaps=p), tmp_path / "three"), expected)
    # Of two ranks shown there is one pair; a pair with what is not shown does not exist.
    agree(displayed(simulate.Policy("oracle", swaps=p), tmp_path / "two", 2), {(0, 1): 1 - p / 2, (1, 0): p / 2})


@pytest.mark.parametrize("strength", [-0.4, 0.0, 0.7])
def test_strength_mixes_grades_with_noise(strength: float) -> None:
    many = simulate.collection(queries=400, documents=20, features=2, seed=1)
    scores = simulate.Policy("strength", strength=strength).scores(many, seed=0)
    # a z + (1 - |a|) e, of independent z and e with variance 1
    expected = strength / np.hypot(strength, 1 - abs(strength))
    assert np.corrcoef(scores, many.labels)[0, 1] == pytest.approx(expected, abs=4 / np.sqrt(len(scores)))


# The options that some rankers alone have.
OF_RANKER: dict[str, dict[str, float]] = {
    "strength": {"strength": 0.5}, "linear": {"share": 0.2}, "boosted": {"share": 0.2},
}  # fmt: skip


def test_the_logger_ranks_other_lists(lists: Collection) -> None:
    key = jax.random.key(0)
    test = simulate.collection(queries=30, documents=12, features=6, seed=0).select(slice(5, 30))
    batch = next(iter(lists.batches(64)))
    row = np.asarray(batch.features["document"]) - 1
    rankers = [r for r in simulate.RANKERS if r != "boosted" or pytest.importorskip("lightgbm")]
    for ranker in rankers:
        policy = simulate.Policy(ranker, **OF_RANKER.get(ranker, {}))
        logger = policy.fitted(lists, seed=3)
        own = np.where(batch.mask, policy.scores(lists, seed=3)[row], 0.0)
        np.testing.assert_allclose(logger.score(batch), own, rtol=1e-4, atol=1e-4)
        found = evaluate(logger, test, metrics=["ndcg@5"], key=key)["ndcg@5"].value
        assert 0 < found < 1 + 1e-6
        assert (found == pytest.approx(1)) == (ranker == "oracle")
    assert (simulate.Policy("random").fitted(lists, seed=0).score(batch) == 0).all()
    with pytest.raises(ConfigError, match="ranks by document features"):
        simulate.Policy("linear").fitted(lists, seed=0).score(batch.replace(features={}))
    with pytest.raises(ConfigError, match="ranks by grades"):
        simulate.Policy("oracle").fitted(lists, seed=0).score(batch.replace(labels=None))


# Every user, with and without noise, against the enumeration of all click vectors


def two_lists(n: int) -> Sessions:
    """n lists of three documents and n of two."""
    return Sessions(
        mask=np.tile([[True, True, True], [True, True, False]], (n, 1)),
        position=np.tile(np.arange(3, dtype=np.int32), (2 * n, 1)),
        features={"document": np.tile(np.arange(3, dtype=np.int32) + 1, (2 * n, 1))},
        labels=np.tile(np.array([[1, 0, 2], [2, 1, 0]], np.float32), (n, 1)),
    )


VECTORS = reference.click_vectors(3)


@cache
def plain(name: str) -> tuple[np.ndarray, np.ndarray]:
    """[2**k] probabilities of the clicks of a user without noise, for each of the two lists."""
    base, upwards = name.removesuffix("-bottom-up"), name.endswith("-bottom-up")
    labels, clicks = [], []
    for grades in ([1.0, 0.0, 2.0], [2.0, 1.0]):
        vectors = reference.click_vectors(len(grades)).tolist()
        labels += [grades[::-1] if upwards else grades] * len(vectors)
        clicks += vectors
    lists = Sessions.from_lists(labels=labels, clicks=clicks, features={"document": [[1] * len(row) for row in clicks]})
    user = simulate.user(base, grades=2, ranks=3)
    p = np.exp(np.asarray(jax.jit(lambda sessions: user.log_prob(sessions))(lists), np.float64))
    three, two = p[:8], p[8:]
    if upwards:  # rank r of the list is step k + 1 - r of reading
        three, two = three.reshape(2, 2, 2).transpose().reshape(-1), two.reshape(2, 2).transpose().reshape(-1)
    return three, two


def enumerated(name: str, extra: float, missed: float) -> list[np.ndarray]:
    """[2**k] probabilities of what is recorded, for each of the two lists, from those of the plain user."""
    record = np.array([[1 - extra, extra], [missed, 1 - missed]])  # [done, recorded]
    twice = np.kron(record, record)
    return [p @ (np.kron(twice, record) if len(p) == 8 else twice) for p in plain(name)]


# Those whose clicks at different ranks have nothing to do with each other share the code of `pbm`.
USERS = [(name, False) for name in simulate.USERS if name not in ("gctr", "dctr", "rdctr", "trust-affine", "mixture")]
USERS += [(name, True) for name in ("pbm", "ubm", "dbn")]
USERS += [(f"{name}-bottom-up", noise) for name in ("pbm", "ubm", "dbn") for noise in (False, True)]


@pytest.mark.parametrize(("name", "noise"), USERS)
def test_every_probability_of_a_user_is_that_of_the_enumeration(name: str, noise: bool) -> None:
    flip, random_clicks = (0.1, 0.05) if noise else (0.0, 0.0)
    user = simulate.user(name, grades=2, ranks=3, flip=flip, random_clicks=random_clicks)
    n = 2000
    batch = two_lists(n)

    @jax.jit
    def everything(batch: Sessions, key: jax.Array) -> Any:
        distribution = user(batch)
        clicks = distribution.sample(key)
        each = jax.lax.map(
            lambda c: (distribution.log_prob(c), distribution.conditional(c)),
            jnp.broadcast_to(jnp.asarray(VECTORS)[:, None, :], (8, *batch.shape)),
        )
        return each, distribution.marginal(), clicks, entropy.entropies(distribution, clicks, batch.mask)

    (joint, given), marginal, clicks, found = jax.device_get(everything(batch, jax.random.key(0)))
    extra = random_clicks * (1 - flip) + (1 - random_clicks) * flip
    for row, p in enumerate(enumerated(name, extra, flip)):
        k = 3 - row
        # Clicks on padding are ignored: the vectors of a list of two come twice, with and without a third click.
        rows = slice(None, None, 1 if k == 3 else 2)
        with np.errstate(divide="ignore"):
            log_p = np.log(p)
        np.testing.assert_allclose(np.exp(joint[rows, row]), p, atol=2e-6)
        click_at = np.exp(reference.log_marginal(log_p))
        np.testing.assert_allclose(np.exp(marginal[row, :k]), click_at, atol=2e-6)
        with np.errstate(invalid="ignore"):
            conditional = np.exp(reference.log_conditional(log_p))
        possible = p > 1e-12
        np.testing.assert_allclose(np.exp(given[rows, row])[possible, :k], conditional[possible], atol=5e-6)
        share = clicks[row::2, :k].mean(0)
        assert (np.abs(share - click_at) < 4.5 * np.sqrt(click_at * (1 - click_at) / n) + 1e-6).all()
        assert (clicks[row::2, k:] == 0).all()

        def binary(q: np.ndarray) -> np.ndarray:
            q = np.clip(q, 1e-300, 1 - 1e-16)
            return -q * np.log(q) - (1 - q) * np.log1p(-q)

        assert found.session[row] == pytest.approx(-(p[p > 0] * np.log(p[p > 0])).sum(), abs=1e-5)
        np.testing.assert_allclose(found.marginal[row, :k], binary(click_at), atol=1e-5)
        expected = (p[possible, None] * binary(conditional[possible])).sum(0)
        np.testing.assert_allclose(found.conditional[row, :k], expected, atol=1e-5)
        assert (found.conditional[:, k:][row::2] == 0).all()


def test_long_lists_have_unbiased_entropies() -> None:
    user, batch = simulate.user("mixture", grades=2, ranks=3, flip=0.05), two_lists(10_000)

    @jax.jit
    def sampled(batch: Sessions, key: jax.Array) -> jax.Array:
        distribution = user(batch)
        return entropy.entropies(distribution, distribution.sample(key), batch.mask, enumerated_ranks=2).session

    found = np.asarray(sampled(batch, jax.random.key(1)))
    tables = {"dbn": 0.7, "dbn-bottom-up": 0.3}
    mixed = [sum(w * enumerated(name, 0.05, 0.05)[row] for name, w in tables.items()) for row in range(2)]
    for row, p in enumerate(mixed):
        values = found[row::2]
        error = values.std() / np.sqrt(len(values))
        assert error > 0
        assert abs(values.mean() + (p * np.log(p)).sum()) < 4.5 * error


# The truth in the log


@pytest.mark.slow
@pytest.mark.parametrize(("name", "noise"), [("pbm", 0.0), ("ubm", 0.0), ("mixture", 0.03)])
def test_no_model_beats_the_lowest_perplexity(name: str, noise: float, lists: Collection, tmp_path: Path) -> None:
    few = lists.select(slice(0, 8))
    user = simulate.user(name, grades=4, ranks=4, flip=noise)
    policy = simulate.Policy("linear", temperature=0.5)
    log = simulate.clicks(few, policy, user, sessions=12_000, seed=2, out=tmp_path / "log", ranks=4)
    lowest = log.metadata["truth"]["lowest"]
    assert lowest["entropy_standard_error"] == lowest["conditional_perplexity_standard_error"] == 0
    metrics = ["log_likelihood", "perplexity", "conditional_perplexity"]
    true = evaluate(user, log, metrics=metrics, key=jax.random.key(0), batch_size=4000)
    expected = dict(zip(metrics, (-lowest["entropy"], *(lowest[m] for m in metrics[1:])), strict=True))
    for metric, value in expected.items():
        assert abs(true[metric].value - value) < 4.5 * true[metric].standard_error, metric
    assert lowest["conditional_perplexity"] <= lowest["perplexity"] + 1e-9
    parts = log.split({"train": 0.5, "test": 0.5}, seed=0)
    fitted = solve(models.RDCTR(towers.RankDocumentTable(log.documents, ranks=4)), parts["train"], method="counting")
    judged = evaluate(fitted.model, parts["test"], metrics=metrics, key=jax.random.key(0), batch_size=4000)
    for metric in metrics[1:]:
        assert judged[metric].value > expected[metric] - 4.5 * judged[metric].standard_error, metric


def test_contexts_bend_the_examination(lists: Collection, tmp_path: Path) -> None:
    device = simulate.Context("device", ("desk", "phone"), (1.0, 2.0), (0.7, 0.3))
    user = simulate.user("pbm", grades=4, ranks=4, eta=0.5, contexts=[device])
    log = simulate.clicks(
        lists, simulate.Policy("random"), user, sessions=20_000, seed=1, out=tmp_path / "log", ranks=4
    )
    assert log.metadata["context"] == {"device": {"kind": "category", "values": ["desk", "phone"]}}
    truth = log.metadata["truth"]["contexts"]["device"]
    batch = shown(log)
    value = np.asarray(batch.features["device"])[:, 0]
    relevance = 0.1 + 0.9 * (2 ** np.asarray(batch.labels) - 1) / 15
    for number, (name, factor, share) in enumerate([("desk", 1.0, 0.7), ("phone", 2.0, 0.3)], start=1):
        curve = np.arange(1, 5) ** (-0.5 * factor)
        np.testing.assert_allclose(truth[name]["examination"], curve, rtol=1e-5)
        assert (truth[name]["factor"], truth[name]["share"]) == (factor, pytest.approx(share))
        here = value == number
        assert abs(here.mean() - share) < 4.5 * np.sqrt(share * (1 - share) / len(log))
        p = (curve * relevance[here]).mean(0)
        rate = np.asarray(batch.clicks)[here].mean(0)
        assert (np.abs(rate - p) < 4.5 * np.sqrt(p * (1 - p) / here.sum())).all()
    found = propensity.contextual(log, "device")
    for name, table in found.items():
        curve = np.asarray(truth[name.removeprefix("device=")]["examination"])
        assert (np.abs(table.value - curve / curve[0]) <= 4.5 * table.standard_error + 1e-9).all(), name


def test_behaviour_drifts_from_the_start_to_the_end(lists: Collection, tmp_path: Path) -> None:
    user = simulate.user("pbm", grades=4, ranks=4, eta=0.5, drift=2.5)
    n = 20_000
    log = simulate.clicks(lists, simulate.Policy("random"), user, sessions=n, seed=1, out=tmp_path / "log", ranks=4)
    truth = log.metadata["truth"]["drift"]
    assert (truth["start"]["eta"], truth["end"]["eta"]) == (0.5, 2.5)
    for name, eta in (("start", 0.5), ("end", 2.5)):
        np.testing.assert_allclose(truth[name]["examination"], np.arange(1, 5.0) ** -eta, rtol=1e-5)
    parts = log.split({"first": 0.25, "middle": 0.5, "last": 0.25}, by="time")
    time = np.arange(n) / (n - 1)
    for name, part in (("first", time[: n // 4]), ("last", time[-n // 4 :])):
        (batch,) = parts[name].batches(len(parts[name]))
        assert abs(len(parts[name]) - n // 4) <= 1
        curve = np.mean(np.arange(1, 5) ** -(0.5 + 2 * part[:, None]), axis=0)
        p = curve * (0.1 + 0.9 * (2 ** np.asarray(batch.labels) - 1) / 15).mean(0)
        rate = np.asarray(batch.clicks).mean(0)
        assert (np.abs(rate - p) < 4.5 * np.sqrt(p * (1 - p) / len(part))).all(), name


@pytest.mark.parametrize("name", ["rctr", "trust", "additive", "ubm", "dcm", "dbn", "ccm"])
def test_contexts_and_drift_give_every_user_its_exponent(name: str) -> None:
    # At the exponent that the context and the time come to, the user is that of a constant eta.
    device = simulate.Context("device", ("desk", "phone"), (1.0, 3.0))
    moving = simulate.user(name, grades=2, ranks=3, eta=0.5, drift=1.5, contexts=[device])
    still = simulate.user(name, grades=2, ranks=3, eta=3 * (0.5 + 0.25 * 1.0))
    batch = two_lists(1)
    features = dict(batch.features) | {
        "device": np.full(batch.shape, 2, np.int32),
        "time": np.full(batch.shape, 0.25, np.float32),
    }
    seen = batch.replace(features=features)
    rates = jax.jit(lambda first, second: (moving(first).marginal(), still(second).marginal()))(seen, batch)
    np.testing.assert_allclose(rates[0], rates[1], rtol=2e-5, atol=1e-6)


def test_published_constants() -> None:
    def rates(name: str, grade: float, ranks: int = 5, **options: Any) -> np.ndarray:
        batch = Sessions.from_lists(labels=[[grade] * ranks])
        user = simulate.user(name, grades=4, ranks=ranks, **options)
        return np.exp(np.asarray(jax.jit(lambda sessions: user(sessions).marginal())(batch)))[0]

    table = np.array([0.68, 0.61, 0.48, 0.34, 0.28, 0.20, 0.11, 0.10, 0.08, 0.06])
    np.testing.assert_allclose(rates("pbm", 4, 10, examination="joachims", eta=2.0), table**2, rtol=1e-5)
    alpha, beta = np.array([0.35, 0.53, 0.55, 0.54, 0.52]), np.array([0.65, 0.26, 0.15, 0.11, 0.08])
    np.testing.assert_allclose(rates("trust-affine", 3), alpha * 7 / 15 + beta, rtol=1e-5)
    k = np.arange(1, 6)
    gain = 3 / 15
    np.testing.assert_allclose(rates("trust", 2), (gain * (1 - (k + 1) / 100) + (1 - gain) * 0.65 / k) / k, rtol=1e-5)
    np.testing.assert_allclose(rates("additive", 3), 1 / (1 + np.exp(np.log(k) - 1)), rtol=1e-5)
    # DBN of grade 2: attracted with 1/2, satisfied with 1/4, goes on with .8.
    np.testing.assert_allclose(rates("dbn", 2), 0.5 * (0.8 * (1 - 0.5 * 0.25)) ** (k - 1), rtol=1e-5)
    np.testing.assert_allclose(rates("dbn-bottom-up", 2), rates("dbn", 2)[::-1], rtol=1e-5)
    both = 0.7 * rates("dbn", 2) + 0.3 * rates("dbn", 2)[::-1]
    np.testing.assert_allclose(rates("mixture", 2), both, rtol=1e-5)
    np.testing.assert_allclose(rates("rctr", 0), 0.5 / k, rtol=1e-5)


def test_the_metadata_say_what_the_user_is(lists: Collection, tmp_path: Path) -> None:
    def truth(name: str, **options: Any) -> dict[str, Any]:
        user = simulate.user(name, grades=4, ranks=3, **options)
        policy = simulate.Policy("random")
        log = simulate.clicks(lists, policy, user, sessions=20, seed=0, out=tmp_path / name, ranks=3)
        return dict(log.metadata["truth"])

    trust = truth("trust", flip=0.1)
    assert trust["noise"] == {"flip": 0.1, "random_clicks": 0.0}
    assert trust["user"] == "TrustPBM"
    k = np.arange(1, 4)
    np.testing.assert_allclose(trust["trust"]["alpha"], (1 - (k + 1) / 100 - 0.65 / k) / k, rtol=1e-5)
    np.testing.assert_allclose(trust["trust"]["beta"], 0.65 / k / k, rtol=1e-5)
    affine = truth("trust-affine")
    assert "examination" not in affine  # the published constants say nothing of it apart from trust
    np.testing.assert_allclose(affine["trust"]["alpha"], [0.35, 0.53, 0.55], rtol=1e-5)
    np.testing.assert_allclose(affine["trust"]["beta"], [0.65, 0.26, 0.15], rtol=1e-5)
    mixture = truth("pbm+pbm-bottom-up", shares=[0.7, 0.3])["components"]
    assert [part["share"] for part in mixture] == pytest.approx([0.7, 0.3])
    assert [part.get("bottom_up", False) for part in mixture] == [False, True]
    np.testing.assert_allclose([part["examination"] for part in mixture], [1 / k] * 2, rtol=1e-5)


def test_bad_use_is_explained(lists: Collection, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="unknown policy 'best'; known: random, oracle, noisy, linear, boosted, strength"
    ):
        simulate.Policy("best")
    with pytest.raises(ConfigError, match="share in"):
        simulate.Policy("linear", share=0.0)
    with pytest.raises(ConfigError, match="unknown user model 'eye'"):
        simulate.user("eye", grades=4)
    bare = Collection.from_arrays(query=[0, 0], label=[0, 1])
    out = tmp_path / "log"
    with pytest.raises(ConfigError, match="'linear' needs document features"):
        simulate.clicks(bare, simulate.Policy("linear"), simulate.user("pbm", grades=1), sessions=5, seed=0, out=out)
    with pytest.raises(DataError, match="field 'labels': expected grades up to 1 in GradeTable, found"):
        simulate.clicks(lists, simulate.Policy("random"), simulate.user("pbm", grades=1), sessions=99, seed=0, out=out)
    user = models.PBM(relevance=towers.Constant(), examination=towers.RankTable(2))
    with pytest.raises(DataError, match="field 'rank': expected ranks up to 2"):
        simulate.clicks(lists, simulate.Policy("random"), user, sessions=5, seed=0, out=out)
    with pytest.raises(ConfigError, match="sessions as a whole number of at least 1"):
        simulate.clicks(lists, simulate.Policy("random"), simulate.user("pbm", grades=4), sessions=0, seed=0, out=out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 1.5}, "epsilon and swaps in"),
        ({"swaps": -0.1}, "epsilon and swaps in"),
        ({"strength": 2.0}, r"strength in \[-1, 1\]"),
    ],
)
def test_a_policy_out_of_range_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate.Policy("oracle", **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pbm+eye", {}, "unknown user model 'eye'; known: gctr"),
        ("mixture-bottom-up", {}, "unknown user model"),
        ("pbm+dbn", {"shares": [1.0]}, "one share above 0 for each of 2"),
        ("pbm", {"examination": "eyes"}, "unknown examination 'eyes'; known: inverse, joachims"),
        ("pbm", {"examination": "joachims", "ranks": 11}, "has 10 ranks, found 11"),
        ("trust-affine", {}, "first 5 ranks, found 10: cut the lists there"),
        ("pbm", {"flip": 1.2}, "probability flip from 0 to 1"),
        ("pbm", {"drift": -1.0}, "finite drift of at least 0"),
        ("cascade", {"drift": 2.0}, "does not depend on eta"),
    ],
)
def test_a_user_that_cannot_be_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate.user(name, grades=2, **options)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("device", ("a", "b"), (1.0,)), "a factor"),
        (("device", ("a", "a"), (1.0, 2.0)), "different values"),
        (("device", ("a",), (-1.0,)), "factors of at least 0"),
        (("device", ("a", "b"), (1.0, 1.0), (0.0, 1.0)), "shares above 0"),
        (("time", ("a",), (1.0,)), "'time' cannot be the name"),
    ],
)
def test_a_context_that_cannot_be_is_refused(parts: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate.Context(*parts)


@pytest.mark.slow
def test_the_command_takes_every_option(ultr: Any, lists: Collection, tmp_path: Path) -> None:
    lists.save(tmp_path / "collection")

    def run(*options: str) -> Any:
        return ultr("simulate", tmp_path / "collection", "--out", tmp_path / "log", "--sessions", "200", *options)

    result = run("--model", "pbm+dctr", "--shares", ".7,.3", "--context", "device=desk:1:.6,phone:2:.4", "--json",
                 "--drift", "2", "--flip", ".02", "--policy", "strength", "--strength", "-.5", "--epsilon", ".1",
                 "--swaps", ".5", "--ranks", "3", "--zipf", "1", "--random-clicks", ".01")  # fmt: skip
    assert result.code == 0
    truth = result.json["truth"]
    assert truth["policy"]["strength"] == -0.5
    assert [part["user"] for part in truth["components"]] == ["PBM", "DCTR"]
    assert truth["contexts"]["device"]["phone"]["share"] == pytest.approx(0.4)
    assert truth["lowest"]["perplexity"] > 1
    for options, message in (
        (("--context", "device:1"), "expected NAME=VALUE:FACTOR"),
        (("--shares", "a,b"), "expected numbers such as .7,.3"),
        (("--policy", "oracle", "--epsilon", "2", "--overwrite"), "epsilon and swaps in"),
    ):
        code, _, err = run(*options)
        assert code == 2
        assert message in err
    code, out, _ = run("--help")
    for part in ("Examples:", "The user:", "The logger:", "The log:", "--random-clicks"):
        assert part in out
