"""Every numerical trick of the toolkit: probabilities as logits and logarithms.

All functions are elementwise or reduce one axis, accept -inf where a probability is zero,
and have gradients without NaN. Nothing here clips.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ultr.sessions import Array

log_sigmoid = jax.nn.log_sigmoid


def logit_and(a: Array, b: Array) -> jax.Array:
    """Computes the logit of the product of two probabilities: logit(sigmoid(a) sigmoid(b)).

    Equals -logsumexp(-a, -b, -a-b); both partial derivatives lie in [0, 1].
    """
    c = -a - b
    peak = jax.lax.stop_gradient(jnp.maximum(jnp.maximum(-a, -b), c))
    return -(peak + jnp.log(jnp.exp(-a - peak) + jnp.exp(-b - peak) + jnp.exp(c - peak)))


def log1mexp(x: Array) -> jax.Array:
    """Computes log(1 - exp(x)) for x <= 0: the logarithm of the complement of exp(x)."""
    small = x > -0.6931472
    near = jnp.where(small, x, -1.0)
    far = jnp.where(small, -1.0, x)
    zero = near == 0
    close = jnp.log(-jnp.expm1(jnp.where(zero, -1.0, near)))
    return jnp.where(small, jnp.where(zero, -jnp.inf, close), jnp.log1p(-jnp.exp(far)))


def logsumexp(x: Array, axis: int = -1, where: Array | None = None) -> jax.Array:
    """Computes log(sum(exp(x))) over one axis; -inf where no term is left, with gradient zero there."""
    valid = x > -jnp.inf if where is None else where & (x > -jnp.inf)
    inside = jnp.where(valid, x, 0.0)
    peak = jax.lax.stop_gradient(jnp.max(jnp.where(valid, x, -jnp.inf), axis=axis, keepdims=True, initial=-jnp.inf))
    peak = jnp.where(jnp.isfinite(peak), peak, 0.0)
    total = jnp.sum(jnp.where(valid, jnp.exp(inside - peak), 0.0), axis=axis)
    some = total > 0
    return jnp.where(some, jnp.log(jnp.where(some, total, 1.0)) + jnp.squeeze(peak, axis), -jnp.inf)


def logaddexp(a: Array, b: Array) -> jax.Array:
    """Computes log(exp(a) + exp(b)), like jnp.logaddexp, but without NaN gradients where both are -inf."""
    high, low = jnp.maximum(a, b), jnp.minimum(a, b)
    both = low > -jnp.inf
    gap = jnp.where(both, low, 0.0) - jnp.where(both, high, 0.0)
    return jnp.where(both, high + jnp.log1p(jnp.exp(gap)), high)


def exclusive_cumsum(x: Array, axis: int = -1) -> jax.Array:
    """Sums all earlier elements along an axis; no subtraction, so nothing cancels."""
    axis = axis % x.ndim
    shifted = jax.lax.slice_in_dim(jnp.cumsum(x, axis=axis), 0, max(x.shape[axis] - 1, 0), axis=axis)
    pads = [(0, 0)] * x.ndim
    pads[axis] = (min(x.shape[axis], 1), 0)
    return jnp.pad(shifted, pads)
