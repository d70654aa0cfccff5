"""Tables by rank that weighted baselines are given: propensities, and alpha and beta of trust bias."""

from __future__ import annotations

from typing import Any

import numpy as np

from ultr.errors import ConfigError
from ultr.text import ranks_text
from ultr.towers.wrappers import HasPropensities

LARGEST = 1e-3  # by which a click probability of estimated tables may exceed 1


def propensity_table(given: Any, name: str = "propensity") -> np.ndarray:
    """Reads the examination of each rank, [R] float64, the first one that of rank 1.

    Args:
      given: numbers above 0, relative to any rank (so they may exceed 1), or `ultr.propensity.Propensities`.
      name: of the argument, for errors.

    Raises:
      ConfigError: none, or one that is not a finite number above 0; names the ranks.
    """
    if isinstance(given, HasPropensities):
        rank = np.asarray(given.rank)
        table = np.full(int(rank.max(initial=0)), np.nan)
        table[rank - 1] = given.value
    else:
        table = _table(given, name)
    bad = ~(np.isfinite(table) & (table > 0))
    if bad.any() or not len(table):
        found = "none" if not len(table) else f"{table[bad][0]:g} at {_ranks(bad)}"
        raise ConfigError(
            f"{name}: expected a finite number above 0 for every rank, found {found}. A click there would weigh "
            "without limit: cut the lists above it, or estimate it in a way that supports it"
        )
    return table


def affine_tables(alpha: Any, beta: Any) -> tuple[np.ndarray, np.ndarray]:
    """Reads alpha and beta, [R] float64 by rank, where P(click) = alpha relevance + beta (Vardasbi 2020).

    Raises:
      ConfigError: different lengths; alpha not above 0; beta below 0; a click probability above 1.
    """
    high, low = propensity_table(alpha, "alpha"), _table(beta, "beta")
    if len(high) != len(low):
        raise ConfigError(f"expected alpha and beta for the same ranks, found {len(high)} and {len(low)}")
    bad = ~(low >= 0) | ~(low + high <= 1 + LARGEST)
    if bad.any():
        raise ConfigError(
            f"expected beta of at least 0 and alpha + beta, the click probability of a relevant document, of at most "
            f"1, found {high[bad][0]:g} + {low[bad][0]:g} at {_ranks(bad)}"
        )
    return high, low


def trust_tables(examination: Any, relevant: Any, irrelevant: Any) -> tuple[np.ndarray, np.ndarray]:
    """Computes (alpha, beta), [R] each, of a user with trust bias (Agarwal 2019).

    Args:
      examination: [R] probability that a rank is examined.
      relevant, irrelevant: [R] or one number: probability that an examined document is clicked, if relevant and if
        not.

    Returns:
      alpha = examination (relevant - irrelevant), beta = examination irrelevant.

    Raises:
      ConfigError: what `affine_tables` raises.
    """
    theta = propensity_table(examination, "examination")
    yes, no = (np.broadcast_to(np.asarray(x, np.float64), theta.shape) for x in (relevant, irrelevant))
    return affine_tables(theta * (yes - no), theta * no)


def _table(given: Any, name: str) -> np.ndarray:
    table = np.asarray(given, np.float64)
    if table.ndim != 1:
        raise ConfigError(f"{name}: expected one number per rank, found an array of shape {table.shape}")
    return table


def _ranks(bad: np.ndarray) -> str:
    return ranks_text(np.flatnonzero(bad) + 1)
