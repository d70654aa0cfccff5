"""Row-sparse optimizers: a step costs what the batch touches, not what the table holds.

Lazy semantics: a row that no impression of the batch reads stays exactly as it is, its moments included; a row that is
read gets one update with the sum of its gradients, as the dense optimizer would give it. Bias corrections count all
steps (as LazyAdam in TensorFlow Addons). A table and its optimizer state lie in one array, a row side by side, so that
a row costs one access to memory. The last column of a row is the step at which it was last read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from ultr.errors import ConfigError
from ultr.training.optimizers import adam

Rate = float | Callable[[jax.Array], jax.Array]


class RowRule(Protocol):
    """Says how a row [value, state ..., step of the last update] is updated."""

    def init(self, values: jax.Array) -> jax.Array:
        """Packs values of any shape into rows [V, width]; column 0 holds the flattened values."""
        ...

    def update(self, rows: jax.Array, gradient: jax.Array, count: jax.Array) -> tuple[jax.Array, ...]:
        """Computes all columns but the last of rows [N, width] from their gradients [N], at step `count` (from 1)."""
        ...


def _packed(values: jax.Array, *state: float) -> jax.Array:
    values = values.reshape(-1)
    return jnp.stack([values, *(jnp.full_like(values, s) for s in state), jnp.zeros_like(values)], axis=1)


def _rate(rate: Rate, count: jax.Array) -> jax.Array | float:
    return rate(count - 1) if callable(rate) else rate  # schedules of optax count from 0


@dataclasses.dataclass(frozen=True)
class RowAdam:
    """Adam on the rows that a batch reads (Kingma and Ba 2015).

    Args:
      learning_rate: a number, or an optax schedule.
      b1, b2, eps: as in `optax.adam`.
    """

    learning_rate: Rate = 0.03
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def init(self, values: jax.Array) -> jax.Array:
        return _packed(values, 0.0, 0.0)

    def update(self, rows: jax.Array, gradient: jax.Array, count: jax.Array) -> tuple[jax.Array, ...]:
        first = self.b1 * rows[:, 1] + (1 - self.b1) * gradient
        second = self.b2 * rows[:, 2] + (1 - self.b2) * gradient**2
        steps = count.astype(rows.dtype)
        mean, square = first / (1 - self.b1**steps), second / (1 - self.b2**steps)
        value = rows[:, 0] - _rate(self.learning_rate, count) * mean / (jnp.sqrt(square) + self.eps)
        return value, first, second


@dataclasses.dataclass(frozen=True)
class RowAdagrad:
    """Adagrad on the rows that a batch reads (Duchi 2011).

    Args:
      learning_rate: a number, or an optax schedule.
      initial: accumulator at the start.
      eps: as in `optax.adagrad`.
    """

    learning_rate: Rate = 0.3
    initial: float = 0.1
    eps: float = 1e-7

    def init(self, values: jax.Array) -> jax.Array:
        return _packed(values, self.initial)

    def update(self, rows: jax.Array, gradient: jax.Array, count: jax.Array) -> tuple[jax.Array, ...]:
        squares = rows[:, 1] + gradient**2
        value = rows[:, 0] - _rate(self.learning_rate, count) * gradient * jax.lax.rsqrt(squares + self.eps)
        return value, squares


@dataclasses.dataclass(frozen=True)
class RowSparse:
    """An optimizer for `fit`: one rule for the tables that towers read by `lookup`, optax for everything else.

    Args:
      tables: updates document tables, row by row.
      rest: any optax transformation.
    """

    tables: RowRule
    rest: optax.GradientTransformation


def lazy_adam(learning_rate: float = 0.003, *, tables: float = 10.0) -> RowSparse:
    """Builds `adam` with the tables of documents updated row by row.

    Args:
      learning_rate: of the weights of networks.
      tables: how many times higher the rate of every table and constant is.
    """
    dense = adam(learning_rate, tables=tables)
    return RowSparse(RowAdam(learning_rate * tables), dense)


def lazy_adagrad(learning_rate: float = 0.3, *, networks: float = 0.003) -> RowSparse:
    """Builds Adagrad for the tables of documents, row by row, and Adam for everything else.

    Args:
      learning_rate: of the tables of documents.
      networks: Adam's learning rate of networks; ten times that for constants and rank tables.
    """
    if not 0 < learning_rate < math.inf:
        raise ConfigError(f"expected a learning rate above 0, found {learning_rate:g}")
    return RowSparse(RowAdagrad(learning_rate), adam(networks))


def representatives(owner: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Picks, for each read of a row, one read that represents all reads of that row.

    Args:
      owner: [V or more] int32 working memory; what it holds does not matter.
      index: [N] int32 rows read, V or more for none.

    Returns:
      The working memory, changed, and the number of the representing read [N] int32.
    """
    # All reads of a row write their number there, and one stays.
    owner = owner.at[index].set(jnp.arange(index.size, dtype=owner.dtype))
    return owner, owner[index]


def update_rows(
    rule: RowRule,
    table: jax.Array,
    representative: jax.Array,
    reads: tuple[jax.Array, jax.Array, jax.Array],
    count: jax.Array,
    prior: jax.Array,
) -> jax.Array:
    """Updates the rows that a batch has read, each once.

    Args:
      rule: how a row is updated.
      table: [V, width] rows.
      representative: [N] of each read, from `representatives`.
      reads: index [N] of the rows read, one entry per impression, V for none; their content [N, width]; gradients [N].
      count: this step's number, from 1.
      prior: strength of a Gaussian prior per step; what the steps owe since the last read is made up for.

    Returns:
      The new table.
    """
    index, rows, gradient = reads
    # All reads of a row hold the same sum and write the same new row, so the order of writing does not matter.
    total = jnp.zeros_like(gradient).at[representative].add(gradient)[representative]
    steps = count.astype(rows.dtype)
    total = total + prior * (steps - rows[:, -1]) * rows[:, 0]
    columns = materialised(rule.update(rows, total, count), count)
    new = jnp.stack([*columns, jnp.broadcast_to(steps, total.shape)], axis=1)
    return table.at[index].set(new)


def materialised(x: Any, number: Any) -> Any:
    """Has XLA compute and store `x` before anything that reads it.

    XLA would merge the computation of what a scatter writes into one that goes through it number by number, three
    times as slow on a CPU, and it drops optimization barriers before it merges. What goes through a branch it stores.

    Args:
      x: arrays.
      number: any traced integer of at least 0.
    """
    return jax.lax.cond(number >= 0, lambda x: x, lambda x: jax.tree.map(jnp.zeros_like, x), x)
