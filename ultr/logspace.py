"""Every numerical trick of the toolkit: probabilities as logits and logarithms.

All functions are elementwise or reduce one axis, accept -inf where a probability is zero,
and have gradients without NaN. Nothing here clips.
"""

from __future__ import annotations

from functools import partial

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


def log_elementary_symmetric(x: Array, count: Array) -> jax.Array:
    """Computes log e_n(exp(x)) of each row, [B]: the sum over all sets of n entries of the product of exp(x) in them.

    The sum over sets of j among the first k entries is that among the first k - 1, plus exp(x_k) times that over sets
    of j - 1: K n additions (Gail, Lubin and Rubinstein 1981) of positive numbers in log space, so that nothing cancels
    or overflows. The slopes are the probabilities that an entry is in the set.

    Args:
      x: [B, K]; -inf for entries that are in no set.
      count: [B] whole numbers n from 0 to the number of entries.
    """
    x, count = jnp.asarray(x), jnp.asarray(count)
    lists, width = x.shape
    if not x.size:
        return jnp.zeros(lists, x.dtype)

    def up_to(most: int, x: jax.Array) -> jax.Array:
        def add_entry(sums: jax.Array, entry: jax.Array) -> tuple[jax.Array, None]:
            larger = jnp.pad(sums[:-1] + entry[None, :], ((1, 0), (0, 0)), constant_values=-jnp.inf)
            return logaddexp(sums, larger), None

        start = jnp.full((most + 1, lists), -jnp.inf, x.dtype).at[0].set(0.0)
        sums, _ = jax.lax.scan(add_entry, start, x.T)
        return jnp.sum(jnp.where(jnp.arange(most + 1)[:, None] == count[None, :], sums, 0.0), axis=0)

    # Only as many sums as the largest set of the batch needs, up to the next power of 4: a program for each.
    sizes = [*(4**i for i in range(width) if 4**i < width), width]
    needed = jnp.searchsorted(jnp.asarray(sizes), jnp.max(count))
    found: jax.Array = jax.lax.switch(needed, [partial(up_to, most) for most in sizes], x)
    return found


def log_prob_given_count(logits: Array, chosen: Array, mask: Array) -> jax.Array:
    """Computes log P(which events occurred | how many did) of independent events with these logits, [B].

    The conditional Poisson distribution: a set has the product of the odds of its events as its weight. A constant that
    is added to the logits of a row changes nothing.

    Args:
      logits: [B, K].
      chosen: [B, K] bool, the events that occurred.
      mask: [B, K] bool, the events that there are.
    """
    chosen, mask = jnp.asarray(chosen) & mask, jnp.asarray(mask)
    size, count = jnp.sum(mask, axis=1), jnp.sum(chosen, axis=1)
    # Of the events that occurred and those that did not, the fewer: their odds are the inverse ones.
    turn = 2 * count > size
    x = jnp.where(mask, jnp.where(turn[:, None], -logits, logits), 0.0)
    x = x - jax.lax.stop_gradient(jnp.sum(x, axis=1) / jnp.maximum(size, 1))[:, None]
    few = jnp.where(turn[:, None], mask & ~chosen, chosen)
    weight = jnp.sum(jnp.where(few, x, 0.0), axis=1)
    return weight - log_elementary_symmetric(jnp.where(mask, x, -jnp.inf), jnp.where(turn, size - count, count))
