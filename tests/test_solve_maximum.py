"""`solve`: expectations against the enumeration, optima against an independent slope, and recovery of the truth."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from solvable import (
    MODELS,
    NOISE,
    WIDTH,
    column,
    data,
    every_hidden,
    every_model,
    given_last,
    latent_logits,
    logits_of,
    penalised,
    story_of,
)

from ultr import models, towers
from ultr.models import LatentVariable
from ultr.sessions import Sessions
from ultr.training import solve

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@every_model
def test_slopes_are_the_expected_outcomes(name: str) -> None:
    """On lists of 1 to 4 documents with all click vectors, ranks first, as `solve` looks at them."""
    story, latents = story_of(name)
    lists = 3
    parts: dict[str, list[np.ndarray]] = defaultdict(list)

    def add(field: str, x: np.ndarray) -> None:  # [rows, K, lists] -> [lists * rows, 4]
        flat = np.moveaxis(x, -1, 0).reshape(-1, x.shape[1])
        parts[field].append(np.pad(flat, ((0, 0), (0, WIDTH - flat.shape[1])), constant_values=-7.0))

    for width in range(1, WIDTH + 1):
        logits, vectors = latent_logits(name, width, lists), reference.click_vectors(width)
        expected = reference.expected_flips(story, **logits)
        size = (len(vectors), width, lists)
        add("clicks", np.broadcast_to(vectors[:, :, None], size))
        add("size", np.full(size, float(width)))
        log_table = reference.log_table(story, **logits)
        add("log_prob", np.broadcast_to(log_table[:, None, :], size))
        for c in latents:
            x, outcomes = np.broadcast_to(logits[c], (len(vectors), *logits[c].shape)), expected[c]
            if x.ndim == 4:
                assert np.nansum(outcomes) == pytest.approx(np.nansum(given_last(outcomes, vectors)))
                x, outcomes = given_last(x, vectors), given_last(outcomes, vectors)
            add(c, x)
            add(f"{c} yes", outcomes[0])
            add(f"{c} no", outcomes[1])
    batch = {field: np.concatenate(x) for field, x in parts.items()}
    rows = len(batch["size"])
    sessions = Sessions(
        mask=np.arange(WIDTH) < batch["size"][:, :1],
        position=np.tile(np.arange(WIDTH, dtype=np.int32), (rows, 1)),
        clicks=(batch["clicks"] == 1).astype(np.int8),
        features={c: batch[c] for c in latents},
    )
    model = MODELS[name]()

    @jax.jit
    def slopes(sessions: Sessions) -> Any:
        lists = sessions.rank_first()

        def total(given: list[LatentVariable]) -> Any:
            log_prob = type(model).from_latents(lists, given).log_prob(lists.clicks)  # type: ignore[arg-type]
            return jnp.sum(jnp.where(log_prob > -jnp.inf, log_prob, 0.0)), log_prob

        features = (lists.features[c] for c in latents)
        given = [LatentVariable(jax.nn.log_sigmoid(x), jax.nn.log_sigmoid(-x)) for x in features]
        outcomes, log_prob = jax.grad(total, has_aux=True)(given)
        feature = {slot: partial(lambda s, c: s.features[c], c=c) for slot, c in zip(model.slots, latents, strict=True)}
        return jax.tree.map(jnp.transpose, outcomes), log_prob, type(model)(**feature).log_prob(sessions)

    with jax.enable_x64(True):
        outcomes, log_prob, direct = jax.tree.map(np.asarray, slopes(sessions))
    assert log_prob.dtype == np.float64
    np.testing.assert_allclose(log_prob, batch["log_prob"][:, 0], rtol=1e-12)
    np.testing.assert_allclose(direct, log_prob, rtol=1e-12)
    possible = np.isfinite(log_prob)
    assert possible.all() == (name != "CascadeModel")
    inside = np.asarray(sessions.mask)
    for c, found in zip(latents, outcomes, strict=True):
        for side, x in zip(("yes", "no"), found, strict=True):
            wanted = np.where(inside & possible[:, None], batch[f"{c} {side}"], 0.0)
            np.testing.assert_allclose(x, wanted, rtol=1e-11, atol=1e-12, err_msg=f"{c} {side}")


@every_hidden
def test_em_and_lbfgs_end_at_the_maximum(name: str) -> None:
    sessions = data()
    em = solve(MODELS[name](), sessions, iterations=200, tolerance=0.0)
    quasi = solve(MODELS[name](), sessions, method="lbfgs", iterations=100, tolerance=0.0)
    rises = np.diff(column(em.history, "objective"))
    assert rises.min() > -NOISE
    assert rises[0] > 0.01
    value, start = penalised(name, MODELS[name]())
    for found in (em, quasi):
        assert found.history[0]["objective"] == pytest.approx(value, abs=NOISE)
    best, slope = penalised(name, quasi.model)
    assert np.linalg.norm(slope) < 2e-3 * np.linalg.norm(start)
    objective = column(quasi.history, "objective")
    assert quasi.best == 4 + int(objective[3:].argmax())
    assert best == pytest.approx(objective.max(), abs=NOISE)
    reached, slope = penalised(name, em.model)
    assert np.linalg.norm(slope) < 0.01 * np.linalg.norm(start)
    assert abs(reached - best) < 1e-5
    passes = [int(np.argmax(column(x.history, "objective") > best - 1e-5)) for x in (quasi, em)]
    assert 0 < passes[0] <= passes[1]


def test_lbfgs_keeps_the_highest_point() -> None:
    for iterations in (5, 7):
        fitted = solve(MODELS["UBM"](), data(), method="lbfgs", iterations=iterations, tolerance=0.0)
        objective = column(fitted.history, "objective")
        assert len(objective) == iterations
        assert fitted.best == 4 + int(objective[3:].argmax())
        assert penalised("UBM", fitted.model)[0] == pytest.approx(objective.max(), abs=NOISE)


def shuffled(count: int, documents: int, ranks: int, seed: int) -> tuple[np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(seed)
    return rng.permuted(np.tile(np.arange(1, documents + 1), (count, 1)), axis=1)[:, :ranks].astype(np.int32), rng


def whole_lists(document: np.ndarray, clicks: np.ndarray) -> Sessions:
    return Sessions(
        mask=np.ones(document.shape, bool),
        position=np.tile(np.arange(document.shape[1], dtype=np.int32), (len(document), 1)),
        features={"document": document},
        clicks=clicks.astype(np.int8),
    )


def distinct(sessions: Sessions) -> Sessions:
    """Keeps each list with its clicks once, weighted by how often it occurs."""
    keys = np.concatenate([sessions.features["document"], np.asarray(sessions.clicks)], axis=1)
    _, first, weight = np.unique(keys, axis=0, return_index=True, return_counts=True)
    return sessions[first].replace(weight=weight.astype(np.float32))


def test_pbm_recovers_the_propensities() -> None:
    """Within the efficiency limit: Var log(theta_k / theta_1) is the effective resistance between the ranks.

    Clicks of probability p = theta_k gamma_d, seen n times, carry the information w = n p / (1 - p) about
    log theta_k + log gamma_d. Without the documents, S = diag(sum_d w_dk) - sum_d w_dk w_dj / sum_i w_di.
    """
    theta, gamma = np.array([0.9, 0.6, 0.4, 0.2]), np.linspace(0.1, 0.8, 12)
    document, rng = shuffled(20_000, 12, 4, seed=1)
    p = theta * gamma[document - 1]
    sessions = distinct(whole_lists(document, rng.random(p.shape) < p))
    model = models.PBM(relevance=towers.DocumentTable(12), examination=towers.RankTable(4))
    fitted = solve(model, sessions, method="lbfgs", prior=0.01, tolerance=0.0).model
    found = np.log(fitted.propensity(4))
    p = np.outer(gamma, theta)
    w = len(document) / 12 * p / (1 - p)
    s = np.diag(w.sum(0)) - np.einsum("dk,dj->kj", w, w / w.sum(1, keepdims=True))
    inverse = np.linalg.pinv(s)
    error = np.sqrt([inverse[0, 0] + inverse[k, k] - 2 * inverse[0, k] for k in range(1, 4)])
    assert error.max() < 0.03  # so that the next line says something
    assert (np.abs(found[1:] - np.log(theta[1:] / theta[0])) < 4 * error).all()


def test_dbn_recovers_its_parameters() -> None:
    """Within standard errors from the inverse of the observed information, the curvature of the model's own loss."""
    attract, satisfy, go_on = np.linspace(0.2, 0.7, 5), np.linspace(0.8, 0.3, 5), 0.85
    document, rng = shuffled(30_000, 5, 4, seed=2)
    clicks, examining = np.zeros(document.shape, bool), np.ones(len(document), bool)
    for k, d in enumerate(document.T - 1):
        clicks[:, k] = examining & (rng.random(len(d)) < attract[d])
        satisfied = clicks[:, k] & (rng.random(len(d)) < satisfy[d])
        examining &= ~satisfied & (rng.random(len(d)) < go_on)
    sessions = distinct(whole_lists(document, clicks))
    weight = np.asarray(sessions.weight, np.float64)
    model = models.DBN(
        relevance=towers.DocumentTable(5), satisfaction=towers.DocumentTable(5), continuation=towers.Constant()
    )
    fitted = solve(model, sessions, method="lbfgs", prior=0.01, tolerance=0.0).model
    logits = logits_of(fitted)
    found = np.concatenate([logits["relevance"][1:], logits["satisfaction"][1:], [logits["continuation"]]])
    truth = towers.logits_of(np.concatenate([attract, satisfy, [go_on]]))

    def loss(x: Any) -> Any:
        towers = {"relevance": x[:5], "satisfaction": x[5:10]}
        each = {n: partial(lambda s, v: v[s.features["document"] - 1], v=v) for n, v in towers.items()}
        user = models.DBN(**each, continuation=lambda s: jnp.broadcast_to(x[10], s.shape))
        return jnp.sum(user.loss(sessions) * weight)

    with jax.enable_x64(True):
        information = np.asarray(jax.jit(jax.hessian(loss))(jnp.asarray(found)))
    error = np.sqrt(np.diag(np.linalg.inv(information)))
    assert error.max() < 0.15
    assert (np.abs(found - truth) < 4 * error).all()
