"""Every trick against float64 arithmetic on probabilities, and its gradient at the edges."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ultr import logspace

EDGES = np.array([-1e4, -90.0, -20.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 20.0, 90.0, 1e4], np.float32)


def test_logit_and_is_the_logit_of_the_product() -> None:
    a, b = np.meshgrid(np.linspace(-6, 6, 13), np.linspace(-6, 6, 13))
    p = 1 / (1 + np.exp(-a)) / (1 + np.exp(-b))
    with jax.enable_x64(True):
        np.testing.assert_allclose(logspace.logit_and(a, b), np.log(p / (1 - p)), rtol=1e-12, atol=1e-12)


def test_logit_and_keeps_a_certain_partner() -> None:
    np.testing.assert_allclose(logspace.logit_and(EDGES, np.full_like(EDGES, 3e4)), EDGES, rtol=1e-6, atol=1e-6)


def test_logit_and_has_gradients_from_0_to_1_everywhere() -> None:
    a, b = (x.ravel() for x in np.meshgrid(EDGES, EDGES))
    for argument in (0, 1):
        slope = jax.vmap(jax.grad(logspace.logit_and, argument))(a, b)
        assert np.isfinite(slope).all()
        assert ((slope >= 0) & (slope <= 1 + 1e-6)).all()


def test_log1mexp_is_the_log_of_the_complement() -> None:
    p = np.array([1e-300, 1e-12, 0.1, 0.4999, 0.5, 0.5001, 0.9, 1 - 1e-12])
    with jax.enable_x64(True):
        np.testing.assert_allclose(logspace.log1mexp(np.log(p)), np.log1p(-p), rtol=1e-3, atol=1e-15)
        np.testing.assert_allclose(logspace.log1mexp(np.log(p[2:7])), np.log1p(-p[2:7]), rtol=1e-12)


@pytest.mark.parametrize(("x", "expected"), [(-np.inf, 0.0), (0.0, -np.inf)])
def test_log1mexp_at_certainty(x: float, expected: float) -> None:
    assert logspace.log1mexp(jnp.asarray(x)) == expected


def test_log1mexp_has_finite_gradients_where_it_is_finite() -> None:
    x = np.array([-1e4, -100, -17, -1, -1e-3, -1e-7], np.float32)
    assert np.isfinite(jax.vmap(jax.grad(logspace.log1mexp))(x)).all()


def test_sums_of_exponentials_agree_with_probabilities() -> None:
    p = np.random.default_rng(0).random((4, 7))
    where = np.arange(7) < np.array([[7], [3], [1], [5]])
    with jax.enable_x64(True):
        np.testing.assert_allclose(logspace.logsumexp(np.log(p), where=where), np.log((p * where).sum(1)), rtol=1e-12)
        pairs = logspace.logaddexp(np.log(p[0]), np.log(p[1]))
        np.testing.assert_allclose(pairs, np.log(p[0] + p[1]), rtol=1e-12)


def test_sums_of_nothing_are_minus_infinity_with_gradient_zero() -> None:
    nothing = jnp.full((2, 3), -jnp.inf)
    assert (logspace.logsumexp(nothing) == -jnp.inf).all()
    assert logspace.logaddexp(jnp.array(-jnp.inf), jnp.array(-jnp.inf)) == -jnp.inf
    assert (jax.grad(lambda x: jnp.where(jnp.isinf(logspace.logsumexp(x)), 0.0, 1.0).sum())(nothing) == 0).all()
    some = jnp.array([0.3, -jnp.inf])
    np.testing.assert_allclose(jax.grad(lambda x: logspace.logsumexp(x))(some), [1.0, 0.0])
    assert jax.grad(lambda x: logspace.logaddexp(x, jnp.array(-jnp.inf)))(0.3) == 1.0


def test_exclusive_cumsum_sums_what_stands_before() -> None:
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    expected = np.stack([x[:, :k].sum(1) for k in range(5)], axis=1)
    np.testing.assert_allclose(logspace.exclusive_cumsum(x), expected, rtol=1e-5, atol=1e-6)
    assert logspace.exclusive_cumsum(jnp.zeros((3, 0))).shape == (3, 0)
