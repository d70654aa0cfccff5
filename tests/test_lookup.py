"""Small tables: values and gradients are those of plain indexing."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from solvable import (
    RANKS,
    data,
)

from ultr import towers
from ultr.sessions import Sessions
from ultr.towers.lookup import lookup_small

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.mark.parametrize("shape", [(), (40,), (3, 37), (2, 3, 19), (4, 0)], ids=str)
def test_small_tables_are_read_as_by_indexing(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(shape))
    index = rng.integers(0, 7, shape).astype(np.int32)
    weight = rng.normal(size=shape)
    values = rng.normal(size=7)

    def total(t: Any, index: Any, weight: Any) -> Any:
        found = lookup_small(t, index)
        return jnp.sum(found * weight), found

    with jax.enable_x64(True):
        slope, found = jax.jit(jax.grad(total, has_aux=True))(values, index, weight)
    assert found.shape == shape
    np.testing.assert_array_equal(found, values[index])
    wanted = np.zeros(7)
    np.add.at(wanted, index, weight)
    np.testing.assert_allclose(slope, wanted, rtol=1e-12, atol=1e-14)


def test_gradients_of_tables_per_rank() -> None:
    sessions = data(50)
    inside = np.asarray(sessions.mask)
    weight = np.random.default_rng(0).normal(size=inside.shape) * inside
    position = np.asarray(sessions.position)
    sums = np.bincount(position.ravel(), weight.ravel(), RANKS)
    last = np.random.default_rng(1).integers(0, RANKS + 1, inside.shape).astype(np.int32)
    pairs = np.zeros((RANKS, RANKS + 1))
    np.add.at(pairs, (position, last), weight)

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def slopes(towers: Any, lists: Sessions, w: Any, last: Any) -> Any:
        plain, pinned, after = towers
        logits = plain(lists)
        return jnp.sum((logits + pinned(lists) + after.logits_after(lists, last)) * w), logits

    tables = (
        towers.RankTable(RANKS, initial=np.arange(RANKS)),
        towers.RankTable(RANKS, pin_first=True),
        towers.LastClickTable(RANKS),
    )
    for lists, w, above in ((sessions, weight, last), (sessions.rank_first(), weight.T, last.T)):
        (plain, pinned, after), logits = slopes(tables, lists, w, above)
        np.testing.assert_array_equal(np.asarray(logits)[lists.mask], lists.position[lists.mask])
        np.testing.assert_allclose(plain.table[...], sums, atol=1e-5)
        np.testing.assert_allclose(pinned.table[...], sums - np.eye(RANKS)[0] * sums.sum(), atol=1e-5)
        np.testing.assert_allclose(after.table[...], pairs, atol=1e-5)
