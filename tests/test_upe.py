"""UPE: the logging policy learnt first, and the propensities that are adjusted for it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from worlds import (
    ORDERS,
    RELEVANCE,
    K,
    compiled_loss,
    documents,
    fitted,
    policy,
    ranks,
    world,
)

from ultr import baselines
from ultr.errors import ConfigError
from ultr.sessions import Sessions

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def encoder_of(network: baselines.LoggingPolicy) -> Any:
    """Returns the encoder of a policy, which reads documents."""
    return network.encoder


def test_the_logging_policy_gives_every_order_a_probability_and_learns_the_right_one() -> None:
    orders = Sessions.from_lists(features={"document": (ORDERS + 1).tolist()})
    network = policy()
    np.testing.assert_allclose(np.exp(-np.asarray(compiled_loss(network, orders))).sum(), 1.0, rtol=1e-5)
    shown = Sessions.from_lists(features={"document": [[3, 1, 2], [5, 4, 6], [5, 4]]})
    scores = np.asarray(fitted(network, shown, 60).score(shown))
    assert (scores[0, :-1] > scores[0, 1:]).all()
    assert (scores[1, :-1] > scores[1, 1:]).all()


def test_the_logging_policy_is_fitted_to_scores_where_there_are_some() -> None:
    logged = np.array([[0.3, -1.0, 2.0], [1.0, 0.0, 0.0]])
    lists = Sessions.from_lists(features={"document": [[1, 2, 3], [4, 5]], "score": [logged[0], logged[1][:2]]})
    network = policy(scores="score")
    s = np.asarray(network.score(lists))[0]
    target = np.exp(logged[0]) / np.exp(logged[0]).sum()
    np.testing.assert_allclose(compiled_loss(network, lists)[0], -target @ (s - np.log(np.exp(s).sum())), rtol=1e-5)
    with pytest.raises(ConfigError, match="features or documents"):
        baselines.LoggingPolicy(0, rngs=nnx.Rngs(0))


def test_with_a_policy_that_ignores_documents_the_examination_loss_of_upe_is_that_of_dla() -> None:
    network = policy()
    encoder_of(network).table.embedding[...] = jnp.zeros_like(encoder_of(network).table.embedding[...])
    model = baselines.UPE(relevance=documents(RELEVANCE), policy=network, ranks=K, momentum=1.0)
    model.rank[...] = jax.random.normal(jax.random.key(0), model.rank[...].shape)
    by_rank = np.asarray(model.policy.logits(model.rank[...]))
    lists = world(1.0, 1.0)
    loss = compiled_loss(model, lists)
    np.testing.assert_allclose(model.propensity(K), np.exp(by_rank - by_rank[0]), rtol=1e-4)
    same = baselines.DLA(relevance=documents(RELEVANCE), examination=ranks(by_rank))
    np.testing.assert_allclose(loss, compiled_loss(same, lists), rtol=1e-4)


@pytest.mark.slow
def test_the_adjusted_propensity_is_the_mean_over_documents_moved_among_the_ranks() -> None:
    model = baselines.UPE(relevance=documents(), policy=policy(), ranks=K, momentum=1.0)
    model.rank[...] = jax.random.normal(jax.random.key(0), model.rank[...].shape)
    lists = Sessions.from_lists(features={"document": [[3, 1, 2], [5, 4]]}, clicks=[[1, 0, 0], [0, 1]], weight=[2, 6])
    total, first = np.zeros(K), np.zeros(K)
    for ids, weight in zip(([3, 1, 2], [5, 4]), (2, 6), strict=True):
        summary, n = np.asarray(encoder_of(model.policy).table.embedding[...]), len(ids)
        turns = [ids[t:] + ids[:t] for t in range(n)]
        logits = [np.asarray(model.policy.logits(summary[np.array(t)] + model.rank[...][:n])) for t in turns]
        share = np.mean([np.exp(x) / np.exp(x).sum() for x in logits], axis=0)
        total[:n] += weight * share
        first[:n] += weight * share[0]
    compiled_loss(model, lists)
    np.testing.assert_allclose(model.propensity(K), total / first, rtol=1e-4)
    turned = lists.replace(features={"document": np.array([[1, 2, 3], [4, 5, 0]], np.int32)})
    compiled_loss(model, turned)  # which document was shown where does not matter
    np.testing.assert_allclose(model.propensity(K), total / first, rtol=1e-4)


def test_upe_trains_the_ranker_and_the_ranks_but_not_the_policy() -> None:
    network = policy()
    model = baselines.UPE(relevance=documents(), policy=network, ranks=K)
    trained = fitted(model, world(0.0, 1000.0), 20)
    np.testing.assert_array_equal(
        encoder_of(trained.policy).table.embedding[...], encoder_of(network).table.embedding[...]
    )
    assert float(jnp.abs(trained.rank[...]).max()) > 0.1
    assert set(nnx.state(model, nnx.Param)) == {"relevance", "rank"}
