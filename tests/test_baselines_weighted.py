"""Weighted baselines against what their papers promise: expectations over all click vectors, and formulas."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stored import make_rows, plain, write_log
from worlds import compiled_loss

import ultr
from ultr import baselines, towers
from ultr.baselines import Displays
from ultr.data import ClickLog, InMemory, collapse
from ultr.errors import ConfigError, DataError
from ultr.sessions import Sessions
from ultr.training import adam
from ultr.training.steps import Trainer

pytestmark = pytest.mark.usefixtures("quickly_compiled")
RELEVANCE = np.array([np.nan, 0.9, 0.5, 0.2, 0.7, 0.4])  # of documents 1 to 5
LOGITS = np.array([0.0, 1.9, 0.9, -1.2, 0.4, -0.5])  # of the ranker
GUESS = np.array([0.5, 0.3, 0.6, 0.8, 0.1, 0.9])  # of a regression that is wrong
THETA = np.array([0.9, 0.5, 0.3])  # examination
YES, NO = np.array([0.95, 0.9, 0.8]), np.array([0.3, 0.2, 0.1])  # trust
ALPHA, BETA = THETA * (YES - NO), THETA * NO


def table(values: np.ndarray) -> Any:
    """A tower that looks the logits of documents up."""
    return lambda sessions: jnp.asarray(values, jnp.float32)[jnp.asarray(sessions.features["document"])]


def logit(p: np.ndarray) -> np.ndarray:
    return np.log(p) - np.log1p(-p)


RANKER, TRUE, WRONG = table(LOGITS), table(logit(np.append(0.5, RELEVANCE[1:]))), table(logit(GUESS))


def user(policy: Mapping[Any, float], alpha: np.ndarray, beta: np.ndarray) -> Sessions:
    """Every list of a policy with every click vector that a user may make of it, weighing its probability."""
    documents, clicks, weight = [], [], []
    for shown, chance in policy.items():
        p = alpha[: len(shown)] * RELEVANCE[list(shown)] + beta[: len(shown)]
        for c in itertools.product((0, 1), repeat=len(shown)):
            documents.append(list(shown))
            clicks.append(list(c))
            weight.append(chance * np.prod(np.where(c, p, 1 - p)))
    return Sessions.from_lists(features={"document": documents}, clicks=clicks, query=[0] * len(weight), weight=weight)


def expected(model: Any, sessions: Sessions) -> float:
    return float(np.asarray(compiled_loss(model, sessions), np.float64) @ np.asarray(sessions.weight, np.float64))


def cross_entropy(documents: Sequence[int], target: np.ndarray = RELEVANCE) -> float:
    """Full information, pointwise."""
    r = 1 / (1 + np.exp(-LOGITS[list(documents)]))
    t = target[list(documents)]
    return float(-(t * np.log(r) + (1 - t) * np.log(1 - r)).sum())


def softmax_loss(documents: Sequence[int], target: np.ndarray = RELEVANCE) -> float:
    """Full information, listwise."""
    s = LOGITS[list(documents)]
    return float(-(target[list(documents)] * (s - np.log(np.exp(s).sum()))).sum())


def dcg_loss(documents: Sequence[int]) -> float:
    """Full information, by the bound on the rank."""
    s = LOGITS[list(documents)]
    bound = np.array([1 + sum(np.log2(1 + np.exp(b - a)) for j, b in enumerate(s) if j != i) for i, a in enumerate(s)])
    return float((RELEVANCE[list(documents)] * (1 - 1 / np.log2(1 + bound))).sum())


ONE = {(1, 2, 3): 1.0}
SHUFFLED = {(1, 2, 3): 0.5, (3, 1, 2): 0.3, (2, 3, 1): 0.2}
CUT = {(1, 2): 0.4, (4, 1): 0.3, (2, 3): 0.2, (3, 4): 0.1}  # document 5 is never shown
PBM = (THETA, np.zeros(3))
TRUST = (ALPHA, BETA)
DOCUMENTS = (1, 2, 3)


# Expectations ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [ONE, SHUFFLED])
def test_the_expected_ips_loss_is_that_of_full_information(policy: Any) -> None:
    sessions = user(policy, *PBM)
    for form, truth in {"pointwise": cross_entropy, "listwise": softmax_loss, "pairwise": dcg_loss}.items():
        model = baselines.IPS(relevance=RANKER, propensity=THETA, form=form)
        assert expected(model, sessions) == pytest.approx(truth(DOCUMENTS), rel=1e-5), form
        # The naive loss, which is what equal propensities give, is biased.
        naive = baselines.IPS(relevance=RANKER, propensity=np.ones(3), form=form)
        assert abs(expected(naive, sessions) - truth(DOCUMENTS)) > 0.05, form
    # The same full-information loss as of the class that reads grades, whose gain is 2^y - 1.
    graded = Sessions.from_lists(features={"document": [[1, 2, 3]]}, labels=[np.log2(1 + RELEVANCE[1:4]).tolist()])
    full = float(baselines.FullInformation(relevance=RANKER).loss(graded)[0])
    assert full == pytest.approx(softmax_loss(DOCUMENTS), rel=1e-6)


def test_perfect_affine_correction_is_unbiased_under_trust_bias_and_ips_is_not() -> None:
    sessions = user(SHUFFLED, *TRUST)
    for form, truth in (("listwise", softmax_loss), ("pointwise", cross_entropy)):
        affine = baselines.AffineIPS(relevance=RANKER, alpha=ALPHA, beta=BETA, form=form)
        assert expected(affine, sessions) == pytest.approx(truth(DOCUMENTS), rel=1e-5)
        plain_ips = baselines.AffineIPS(relevance=RANKER, alpha=THETA, beta=np.zeros(3), form=form)
        assert abs(expected(plain_ips, sessions) - truth(DOCUMENTS)) > 0.1
    assert float(affine.targets(sessions).min()) < 0
    alpha, beta = baselines.trust_tables(THETA, YES, NO)
    np.testing.assert_allclose(alpha, ALPHA)
    np.testing.assert_allclose(beta, BETA)


def test_affine_without_trust_bias_is_ips() -> None:
    sessions = user(SHUFFLED, *PBM)
    for form in ("listwise", "pointwise"):
        affine = baselines.AffineIPS(relevance=RANKER, alpha=THETA, beta=np.zeros(3), form=form, clip=2.5)
        ips = baselines.IPS(relevance=RANKER, propensity=THETA, form=form, clip=2.5)
        np.testing.assert_allclose(compiled_loss(affine, sessions), compiled_loss(ips, sessions), rtol=1e-6)
        np.testing.assert_array_equal(
            affine.impression_weights(sessions).clipped, ips.impression_weights(sessions).clipped
        )


def test_policy_aware_is_unbiased_under_a_cut_and_ips_is_not() -> None:
    sessions = user(CUT, *PBM)
    displays = Displays.of(sessions)
    np.testing.assert_allclose(displays.exposure(np.ones(2)), [0, 0.7, 0.6, 0.3, 0.4], rtol=1e-6)
    np.testing.assert_allclose(displays.exposure(THETA)[1], 0.4 * THETA[0] + 0.3 * THETA[1], rtol=1e-6)
    aware = baselines.PolicyAware(relevance=RANKER, displays=displays, propensity=THETA, form="pointwise")
    truth = cross_entropy((1, 2, 3, 4))
    assert expected(aware, sessions) == pytest.approx(truth, rel=1e-5)
    ips = baselines.IPS(form="pointwise", relevance=RANKER, propensity=THETA)  # as if what is not shown did not exist
    assert abs(expected(ips, sessions) - truth) > 0.1
    # The targets of a document are its relevance on average, whatever form they enter.
    np.testing.assert_allclose(_mean_targets(aware, sessions), RELEVANCE[1:5], rtol=1e-5)


def test_policy_and_intervention_aware_are_unbiased_where_all_is_shown() -> None:
    displays = Displays.of(user(SHUFFLED, *TRUST))
    aware = baselines.PolicyAware(relevance=RANKER, displays=displays, propensity=THETA)
    assert expected(aware, user(SHUFFLED, *PBM)) == pytest.approx(softmax_loss(DOCUMENTS), rel=1e-5)
    corrected = baselines.InterventionAware(relevance=RANKER, displays=displays, alpha=ALPHA, beta=BETA)
    assert expected(corrected, user(SHUFFLED, *TRUST)) == pytest.approx(softmax_loss(DOCUMENTS), rel=1e-5)


def test_intervention_aware_is_unbiased_under_a_cut_with_trust_bias() -> None:
    sessions = user(CUT, *TRUST)
    model = baselines.InterventionAware(
        relevance=RANKER, displays=Displays.of(sessions), alpha=ALPHA, beta=BETA, form="pointwise"
    )
    assert expected(model, sessions) == pytest.approx(cross_entropy((1, 2, 3, 4)), rel=1e-5)
    np.testing.assert_allclose(_mean_targets(model, sessions), RELEVANCE[1:5], rtol=1e-5)
    # (clicks - sessions E[beta]) / (sessions E[alpha]), document by document.
    clicks = np.zeros(5)
    np.add.at(clicks, sessions.features["document"], sessions.clicks * np.asarray(sessions.weight)[:, None])
    shown = {d: [(s.index(d), p) for s, p in CUT.items() if d in s] for d in (1, 2, 3, 4)}
    by_hand = [
        (clicks[d] - sum(p * BETA[k] for k, p in shown[d])) / sum(p * ALPHA[k] for k, p in shown[d]) for d in shown
    ]
    np.testing.assert_allclose(_mean_targets(model, sessions), by_hand, rtol=1e-5)


def _mean_targets(model: Any, sessions: Sessions) -> np.ndarray:
    """[4] average target of documents 1 to 4 over all sessions."""
    each = np.asarray(model.targets(sessions)) * np.asarray(sessions.weight)[:, None]
    return np.bincount(sessions.features["document"].ravel(), each.ravel(), minlength=5)[1:]


def test_the_direct_method_is_full_information_on_its_estimates() -> None:
    sessions = user(SHUFFLED, *TRUST)
    for form, truth in (("listwise", softmax_loss), ("pointwise", cross_entropy)):
        right = baselines.DirectMethod(relevance=RANKER, regression=TRUE, form=form)
        assert expected(right, sessions) == pytest.approx(truth(DOCUMENTS), rel=1e-5)
        wrong = baselines.DirectMethod(relevance=RANKER, regression=WRONG, form=form)
        assert expected(wrong, sessions) == pytest.approx(truth(DOCUMENTS, GUESS), rel=1e-5)
    np.testing.assert_array_equal(compiled_loss(right, sessions), compiled_loss(right, sessions.replace(clicks=None)))


@pytest.mark.parametrize(("policy", "documents"), [(SHUFFLED, (1, 2, 3)), (CUT, (1, 2, 3, 4))])
def test_doubly_robust_needs_only_one_of_both_right(policy: Any, documents: Any) -> None:
    sessions, truth = user(policy, *TRUST), cross_entropy(documents)
    right = Displays.of(sessions)
    lists = list(policy)
    other = Displays.of(user({lists[0]: 0.1, lists[1]: 0.1, lists[2]: 0.1, lists[-1]: 0.7}, *TRUST))
    options: Any = {"relevance": RANKER, "alpha": ALPHA, "beta": BETA, "form": "pointwise"}
    model = baselines.DoublyRobust(**options, regression=WRONG, displays=right)
    assert expected(model, sessions) == pytest.approx(truth, rel=1e-5)
    # A wrong chance: of another policy (of which the shares of what is shown at all are kept), or clipped.
    for chance in ({"displays": other}, {"displays": right, "clip": 1.7}):
        model = baselines.DoublyRobust(**options, regression=TRUE, **chance)
        model.shown = baselines.DoublyRobust(**options, regression=TRUE, displays=right).shown
        if "clip" not in chance:
            assert expected(model, sessions) == pytest.approx(truth, rel=1e-5)
        # The correction is 0 on average, document by document.
        np.testing.assert_allclose(_mean_targets(model, sessions), 0.0, atol=1e-6)
        model.regression = WRONG
        assert (
            np.abs(_mean_targets(model, sessions)[: len(documents)] - (RELEVANCE - GUESS)[list(documents)]).max() > 0.05
        )


def test_doubly_robust_by_rank_is_affine_until_weights_are_clipped() -> None:
    sessions = user(SHUFFLED, *TRUST)
    options: Any = {"relevance": RANKER, "alpha": ALPHA, "beta": BETA}
    for form in ("listwise", "pointwise"):
        robust = baselines.DoublyRobust(**options, regression=WRONG, form=form)
        affine = baselines.AffineIPS(**options, form=form)
        np.testing.assert_allclose(
            compiled_loss(robust, sessions), compiled_loss(affine, sessions), rtol=1e-4, atol=1e-5
        )
        clipped = baselines.DoublyRobust(**options, regression=TRUE, form=form, clip=2.0)
        truth = {"listwise": softmax_loss, "pointwise": cross_entropy}[form](DOCUMENTS)
        assert expected(clipped, sessions) == pytest.approx(truth, rel=1e-5)
        biased = baselines.AffineIPS(**options, form=form, clip=2.0)
        assert abs(expected(biased, sessions) - truth) > 0.05
    no_trust = baselines.DoublyRobust(relevance=RANKER, alpha=THETA, regression=WRONG)
    assert expected(no_trust, user(SHUFFLED, *PBM)) == pytest.approx(softmax_loss(DOCUMENTS), rel=1e-5)


def test_the_regression_is_held_while_the_ranker_trains() -> None:
    regression = towers.DocumentTable(5)
    regression.table[...] = jnp.asarray(logit(GUESS), jnp.float32)
    model = baselines.DirectMethod(relevance=towers.DocumentTable(5), regression=regression, form="pointwise")
    fitted = ultr.fit(model, user(ONE, *PBM), seed=0, epochs=40, l2=0.001, optimizer=adam(0.02))
    np.testing.assert_array_equal(fitted.model.regression.tower.table[...], regression.table[...])
    learnt = 1 / (1 + np.exp(-np.asarray(fitted.model.score(user(ONE, *PBM))[0])))
    np.testing.assert_allclose(learnt, GUESS[1:4], atol=0.02)


# Weights --------------------------------------------------------------------------------------------------------------


def slopes(model: Any, sessions: Sessions) -> np.ndarray:
    """[B, K] derivatives of the losses by the scores, which stand in the feature `score`."""

    def total(score: Any) -> jax.Array:
        return model.loss(sessions.replace(features={**sessions.features, "score": score})).sum()

    return np.asarray(jax.jit(jax.grad(total))(jnp.asarray(sessions.features["score"], jnp.float32)))


def by_score(sessions: Sessions) -> jax.Array:
    return jnp.asarray(sessions.features["score"])


def test_listwise_ips_changes_the_slope_of_a_list_with_one_click() -> None:
    sessions = Sessions.from_lists(features={"score": [[0.1, 0.7, -0.4]]}, clicks=[[0, 0, 1]])
    naive = slopes(baselines.NaiveListwise(relevance=by_score), sessions)
    weighted = slopes(baselines.IPS(relevance=by_score, propensity=THETA), sessions)
    np.testing.assert_allclose(weighted, naive / THETA[2], rtol=1e-5)


def test_clipping_and_what_is_counted() -> None:
    sessions = Sessions.from_lists(features={"score": [[0.0] * 3, [0.0] * 2]}, clicks=[[1, 1, 1], [0, 1]])
    found = baselines.IPS(relevance=by_score, propensity=THETA, clip=3.0).impression_weights(sessions)
    np.testing.assert_allclose(found.weight, [[1 / 0.9, 2, 3], [1 / 0.9, 2, 0]], rtol=1e-6)
    np.testing.assert_array_equal(found.clipped, [[False, False, True], [False, False, False]])
    np.testing.assert_array_equal(found.counted, [[True, True, True], [False, True, False]])
    affine = baselines.AffineIPS(relevance=by_score, alpha=ALPHA, beta=BETA).impression_weights(sessions)
    np.testing.assert_array_equal(affine.counted, sessions.mask)  # a skip says something too


def test_self_normalised_weights_have_mean_one_over_the_clicks_of_the_batch() -> None:
    clicks = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]])
    sessions = Sessions.from_lists(
        features={"score": [[0.2, 0.1, 0.5]] * 3}, clicks=clicks.tolist(), weight=[2.0, 1.0, 5.0]
    )
    model = baselines.IPS(relevance=by_score, propensity=THETA, self_normalised=True)
    mean = (2 / THETA[0] + 2 / THETA[2] + 1 / THETA[1]) / 5
    for batch in (sessions, sessions.pad(rows=6, width=5)):
        np.testing.assert_allclose(
            model.impression_weights(batch).weight[:3, :3], np.tile(1 / THETA / mean, (3, 1)), rtol=1e-6
        )
    nothing = sessions.replace(clicks=np.zeros((3, 3), np.int8))
    np.testing.assert_array_equal(compiled_loss(model, nothing), np.zeros(3))
    # One counted click: it weighs 1, as documented.
    np.testing.assert_allclose(model.impression_weights(sessions[1]).weight[0, 1], 1.0, rtol=1e-6)


def test_tables_that_mean_nothing_are_refused() -> None:
    kind = baselines.IPS
    for bad, where in (([1.0, 0.0, 0.5], "found 0 at rank 2"), ([1.0, np.nan, -1.0], "found nan at ranks 2-3"),
                       ([], "found none"), ([np.inf], "found inf at rank 1")):  # fmt: skip
        with pytest.raises(ConfigError, match=where):
            kind(relevance=by_score, propensity=bad)
    with pytest.raises(ConfigError, match="one number per rank"):
        kind(relevance=by_score, propensity=[[1.0]])
    with pytest.raises(ConfigError, match="clip, the largest weight, above 0, found 0"):
        kind(relevance=by_score, propensity=[1.0], clip=0.0)
    estimate: Any = SimpleNamespace(rank=np.array([1, 2]), value=np.array([1.0, np.nan]))
    with pytest.raises(ConfigError, match="found nan at rank 2"):
        kind(relevance=by_score, propensity=estimate)
    estimate.value[1] = 0.5
    assert kind(relevance=by_score, propensity=estimate).propensity == (1.0, 0.5)
    refused = (
        ([0.5], [0.1, 0.1], "same ranks, found 1 and 2"),
        ([0.5], [-0.1], r"found 0.5 \+ -0.1"),
        ([0.8], [0.3], r"found 0.8 \+ 0.3 at rank 1"),
        ([0.0], [0.3], "found 0 at rank 1"),
    )
    for alpha, beta, what in refused:
        with pytest.raises(ConfigError, match=what):
            baselines.AffineIPS(relevance=by_score, alpha=alpha, beta=beta)
    with pytest.raises(ConfigError, match="unknown form of the loss 'pairwise'"):
        baselines.AffineIPS(relevance=by_score, alpha=[0.5], beta=[0.1], form="pairwise")
    with pytest.raises(ConfigError, match="unknown metric 'ndcg'"):
        baselines.IPS(form="pairwise", relevance=by_score, propensity=[1.0], metric="ndcg")


def test_the_pairwise_bound_is_above_the_rank() -> None:
    scores = np.random.default_rng(3).normal(scale=2, size=(50, 6)).astype(np.float32)
    sessions = Sessions.from_lists(features={"score": scores.tolist()}, clicks=np.eye(6, dtype=int)[[2] * 50].tolist())
    rank = 1 + (scores > scores[:, 2:3]).sum(1)
    by_rank = baselines.IPS(form="pairwise", relevance=by_score, propensity=np.ones(6), metric="rank")
    by_rank = compiled_loss(by_rank, sessions)
    lost = compiled_loss(baselines.IPS(form="pairwise", relevance=by_score, propensity=np.ones(6)), sessions)
    assert (np.asarray(by_rank) >= rank).all()
    assert (np.asarray(lost) >= 1 - 1 / np.log2(1 + rank)).all()
    assert np.corrcoef(by_rank, rank)[0, 1] > 0.8


# LambdaRank -----------------------------------------------------------------------------------------------------------


def test_lambdarank_is_its_formula() -> None:
    s, c = np.array([0.3, -0.2, 1.4, 0.9]), np.array([0, 1, 0, 1])
    sessions = Sessions.from_lists(features={"score": [s.tolist(), [0.5, 0.1]]}, clicks=[c.tolist(), [1, 1]])
    rank = 1 + (s[None] > s[:, None]).sum(1)
    discount, ideal = 1 / np.log2(1 + rank), 1 + 1 / np.log2(3)
    loss = sum(
        np.log(1 + np.exp(s[j] - s[i])) * abs(discount[i] - discount[j]) / ideal
        for i in range(4)
        for j in range(4)
        if c[i] > c[j]
    )
    model = baselines.NaiveLambdaRank(relevance=by_score)
    np.testing.assert_allclose(compiled_loss(model, sessions), [loss, 0.0], rtol=1e-5)


def test_lambdarank_ranks_equal_scores_by_chance() -> None:
    lists, width = 3000, 4
    clicks = np.zeros((lists, width), np.int8)
    clicks[:, 0] = 1  # always the first document
    shown = np.ones((lists, width), bool)
    position = np.tile(np.arange(width, dtype=np.int32), (lists, 1))
    sessions = Sessions(mask=shown, position=position, clicks=clicks)

    @jax.jit
    def run(sessions: Sessions, score: Any) -> Any:
        def total(score: Any) -> Any:
            scored = sessions.replace(features={"score": score})
            loss = baselines.NaiveLambdaRank(relevance=by_score).loss(scored)
            return loss.sum(), loss

        (_, loss), slope = jax.value_and_grad(total, has_aux=True)(score)
        return loss, slope

    # Of all pairs of ranks of two documents each is as likely as the others.
    discount = 1 / np.log2(1 + np.arange(1, width + 1))
    each = np.abs(discount[:, None] - discount)[~np.eye(width, dtype=bool)].mean()
    for zeros in (np.zeros_like(position, np.float32), np.where(position % 2, np.float32(0.0), np.float32(-0.0))):
        loss, slope = run(sessions, zeros)
        assert float(loss.mean()) == pytest.approx(np.log(2) * (width - 1) * each, rel=0.02)
        steep = np.asarray(slope).mean(0)[1:]  # nothing but chance among those not clicked
        np.testing.assert_allclose(steep, steep.mean(), rtol=0.05)
    again, _ = run(sessions, zeros)
    np.testing.assert_array_equal(again, loss)
    other, _ = run(sessions.replace(clicks=clicks[:, ::-1]), zeros)
    assert (np.asarray(other) != np.asarray(loss)).mean() > 0.5
    wide, _ = run(sessions.pad(rows=lists + 3, width=width + 2), np.pad(zeros, ((0, 3), (0, 2))))
    np.testing.assert_allclose(wide[:lists], loss, rtol=1e-5)


# Displays -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> ClickLog:
    return write_log(tmp_path_factory.mktemp("log") / "log", plain(make_rows(90, seed=2, length=8)))


def _counted(log: ClickLog) -> tuple[np.ndarray, np.ndarray]:
    """([V + 1, R] shares, [Q] sessions) of a log, session by session."""
    shown = np.zeros((log.documents + 1, log.ranks))
    sessions = np.zeros(log.queries)
    for batch in log.columns(["query", "documents", "ranks", "weight"]):
        for row in batch.to_pylist():
            sessions[row["query"]] += row["weight"]
            np.add.at(shown, (row["documents"], np.array(row["ranks"]) - 1), row["weight"])
    query = log.vocabulary.document_query
    return shown / np.where(query >= 0, np.maximum(sessions[query], 1e-9), 1.0)[:, None], sessions


def test_displays_are_counted_from_a_log(log: ClickLog) -> None:
    displays, (truth, _) = Displays.of(log), _counted(log)
    ids = np.arange(log.documents + 1)
    np.testing.assert_allclose(displays.shares(ids), truth, rtol=1e-6)
    assert displays.cells == (truth > 0).sum()
    np.testing.assert_allclose(displays.shares(ids.reshape(3, -1))[1, 2], truth[len(ids) // 3 + 2], rtol=1e-6)
    values = 1 / np.arange(1, log.ranks + 1)
    np.testing.assert_allclose(displays.exposure(values), truth @ values, rtol=1e-6)
    place = np.random.default_rng(0).integers(0, log.ranks, len(ids))
    np.testing.assert_allclose(jax.jit(displays.at)(ids, place), truth[ids, place], rtol=1e-6)
    # Counts do not say how many sessions a query had: the most that one of its ranks was shown in.
    rough = Displays.of(collapse(log, "last-click"))
    known = displays.exposure(np.ones(log.ranks)) > 0
    more = rough.exposure(values)[known] / displays.exposure(values)[known]
    assert (more >= 1 - 1e-6).all()
    assert more.max() < 3
    with pytest.raises(ConfigError, match=f"each of the {log.ranks} ranks that the log shows, found 2"):
        displays.exposure(np.ones(2))


def test_displays_of_counts_are_those_of_the_log_where_every_list_has_a_first_rank(tmp_path: Any) -> None:
    rng = np.random.default_rng(5)
    rows = []
    for i in range(60):
        query, k = i % 3, int(rng.integers(1, 5))
        documents = (rng.permutation(6)[:k] + 1 + 20 * query).tolist()
        rows.append({"session": f"{i}", "query": query, "documents": documents, "ranks": list(range(1, k + 1)),
                     "clicks": rng.integers(0, 2, k).tolist()})  # fmt: skip
    log = write_log(tmp_path / "log", rows)
    ids = np.arange(log.documents + 1)
    np.testing.assert_allclose(Displays.of(log).shares(ids), Displays.of(collapse(log, "rank")).shares(ids), rtol=1e-6)
    sessions = Sessions.from_lists(
        features={"document": [row["documents"] for row in rows]}, query=[row["query"] for row in rows]
    )
    whole = Displays.of(InMemory(sessions))
    known = ids[: whole.documents + 1]  # up to the largest one shown
    np.testing.assert_allclose(whole.shares(known), Displays.of(log).shares(known), rtol=1e-6)


def test_displays_that_cannot_be_counted() -> None:
    sessions = user(ONE, *PBM)
    with pytest.raises(ConfigError, match="need query and 'document'"):
        Displays.of(sessions.replace(query=None))
    with pytest.raises(DataError, match="expected a log that shows documents, found none"):
        Displays.of(sessions.replace(mask=np.zeros_like(sessions.mask)))
    with pytest.raises(DataError, match="each document id under one query, found 1 under several"):
        Displays.of(sessions.replace(query=np.arange(len(sessions))))
    with pytest.raises(ConfigError, match="the 3 ranks that the log shows, found 2"):
        baselines.PolicyAware(relevance=RANKER, displays=Displays.of(sessions), propensity=THETA[:2])
    with pytest.raises(ConfigError, match=r"expected Displays.of\(log\), found ndarray"):
        baselines.PolicyAware(relevance=RANKER, displays=THETA, propensity=THETA)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["listwise", "pointwise"])
def test_a_document_that_was_never_shown_has_no_weight(form: str) -> None:
    displays = Displays.of(user(CUT | {(5, 1): 0.0}, *PBM))  # a weight of 0 is as good as never
    sessions = Sessions.from_lists(
        features={"document": [[1, 5, 2], [5, 0]], "score": [[0.3, 0.1, -0.2], [0.5, 0.2]]},
        clicks=[[1, 1, 0], [1, 1]],
    )
    assert displays.documents == 5
    model = baselines.PolicyAware(relevance=by_score, displays=displays, propensity=THETA, form=form)
    found = model.impression_weights(sessions)
    np.testing.assert_array_equal(found.unsupported, [[False, True, False], [True, True, False]])
    np.testing.assert_array_equal(found.counted, [[True, False, False], [False, False, False]])
    loss, steep = np.asarray(compiled_loss(model, sessions)), slopes(model, sessions)
    assert np.isfinite(loss).all()
    assert np.isfinite(steep).all()
    assert loss[1] == 0.0
    if form == "pointwise":
        assert steep[0, 1] == 0.0
    history = ultr.fit(baselines.PolicyAware(relevance=towers.DocumentTable(5), displays=displays, propensity=THETA,
                                             form=form), sessions, seed=0, epochs=1).history[0]  # fmt: skip
    assert history["unsupported"] == 3.0
    assert history["effective_sample_size"] == pytest.approx(1.0)


# History --------------------------------------------------------------------------------------------------------------

CLICKS = [[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 1]]
WEIGHT = [1.0, 2.0, 3.0, 1.0, 4.0]
RELATIVE = np.array([1.0, 0.5, 0.25])


def _logged() -> Sessions:
    documents = [[1, 2, 3], [2, 3, 1], [3, 1, 2], [1, 3, 2], [2, 1, 3]]
    return Sessions.from_lists(features={"document": documents}, clicks=CLICKS, weight=WEIGHT, query=[0] * 5)


def test_the_history_says_what_the_weights_do() -> None:
    model = baselines.IPS(relevance=towers.DocumentTable(3), propensity=RELATIVE, clip=3.0)
    history = ultr.fit(model, _logged(), _logged(), seed=0, epochs=2, batch_size=2).history
    rows, clicks = np.array(WEIGHT)[:, None], np.array(CLICKS)
    weight = np.minimum(1 / RELATIVE, 3.0)
    first, second = (rows * clicks * weight).sum(), (rows * clicks * weight**2).sum()
    for row in history:
        assert row["valid_loss"] is not None
        assert row["effective_sample_size"] == pytest.approx(first**2 / second, rel=1e-5)
        assert row["clipped"] == pytest.approx((rows * clicks)[:, 2].sum() / (rows * clicks).sum(), rel=1e-6)
        # The list without a click is not affected, nor that with a click at rank 1 only.
        assert row["affected"] == pytest.approx((1 + 2 + 4) / np.sum(WEIGHT), rel=1e-6)
        assert row["unsupported"] == 0.0
    flat = baselines.IPS(relevance=towers.DocumentTable(3), propensity=np.ones(3))
    (row,) = ultr.fit(flat, _logged(), seed=0, epochs=1, batch_size=2).history
    assert row["affected"] == 0.0
    assert row["clipped"] == 0.0
    assert row["effective_sample_size"] == pytest.approx((rows * clicks).sum())
    silent = _logged().replace(clicks=np.zeros((5, 3), np.int8))
    with pytest.raises(DataError, match="expected clicks to learn from"):
        ultr.fit(flat, silent, seed=0, epochs=1, batch_size=5)


def test_the_history_on_counts_is_that_of_the_log_but_for_sessions(log: ClickLog) -> None:
    propensity = 1 / np.arange(1, log.ranks + 1)

    def history(source: Any) -> dict[str, Any]:
        model = baselines.IPS(
            form="pointwise", relevance=towers.DocumentTable(log.documents), propensity=propensity, clip=5.0
        )
        return ultr.fit(model, source, seed=0, epochs=1, collapse=False).history[0]

    whole, counts = history(log), history(collapse(log, "rank"))
    for name in ("effective_sample_size", "clipped", "sessions"):
        assert counts[name] == pytest.approx(whole[name], rel=1e-4)
    assert counts["affected"] is None
    lower = [
        (row["weight"], any(c and r > 1 for c, r in zip(row["clicks"], row["ranks"], strict=True)))
        for batch in log.columns(["clicks", "ranks", "weight"])
        for row in batch.to_pylist()
    ]
    assert whole["affected"] == pytest.approx(sum(w for w, hit in lower if hit) / sum(w for w, _ in lower), rel=1e-5)


def test_models_without_weights_train_as_before() -> None:
    model = baselines.NaiveListwise(relevance=towers.DocumentTable(3))
    assert Trainer(model, adam()).sums == 3
    (row,) = ultr.fit(model, _logged(), seed=0, epochs=1).history
    assert set(row) == {"epoch", "steps", "loss", "valid_loss", "sessions", "impossible", "seconds", "waiting"}
