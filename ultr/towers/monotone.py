"""`Increasing`: a tower whose logit rises with that of another tower."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ultr.arguments import check_number
from ultr.towers.base import ParameterGroup, TowerLike
from ultr.towers.wrappers import TowerWrapper


class Increasing(TowerWrapper):
    """Computes softplus(k) times the logit of another tower, plus b; k and b are learnt.

    In the slot of satisfaction around the relevance tower itself, the same object, it has a click satisfy the more the
    more a document attracts. The click models then run the relevance tower once for both slots. Free towers for both
    explain by satisfaction what the features do not tell about a query: users who leave a query without clicks look
    satisfied, so that satisfaction falls where attraction rises.

    Args:
      tower: the other tower, whose logits may have any shape.
      slope: softplus(k) at the start, above 0.
      intercept: b at the start.

    Raises:
      ConfigError: a slope that is not above 0, or a number that is not finite.
    """

    parameter_group: ClassVar[ParameterGroup] = "table"  # two logits that have to travel on their own

    def __init__(self, tower: TowerLike, *, slope: float = 1.0, intercept: float = 0.0) -> None:
        super().__init__(tower)
        self.slope, self.intercept = check_number("slope", slope, above=0), check_number("intercept", intercept)
        self.k = nnx.Param(jnp.asarray(self.slope + np.log(-np.expm1(-self.slope)), jnp.float32))
        self.b = nnx.Param(jnp.asarray(self.intercept, jnp.float32))

    def change(self, logits: jax.Array) -> jax.Array:
        return jax.nn.softplus(self.k[...]) * logits + self.b[...]
