"""Models, sessions and comparisons for the tests of evaluation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ultr.evaluation import Estimate, evaluate
from ultr.sessions import Sessions

KEY = jax.random.key(7)
PERPLEXITIES = ["perplexity", "conditional_perplexity"]
CLICKS = ["log_likelihood", "log_likelihood_per_document", *PERPLEXITIES]
JOINT = [name for name in CLICKS if name != "perplexity"]  # what leaves out impossible sessions
EVERY_RANK = [*CLICKS, *(f"{name}/rank" for name in PERPLEXITIES)]


class ByFeature:
    """Ranks by the feature `x`, a plain NumPy object as a wrapped foreign ranker would be."""

    def score(self, sessions: Sessions) -> Any:
        return np.asarray(sessions.features["x"])


class IndependentClicks:
    """Independent clicks with log-probabilities [B, K]; with `one_click`, two clicks cannot happen."""

    def __init__(self, log_click, mask, one_click: bool = False) -> None:
        self.log_click, self.mask, self.one_click = log_click, mask, one_click

    def marginal(self):
        return np.where(self.mask, self.log_click, -np.inf)

    def conditional(self, clicks):
        return self.marginal()

    def observed(self, clicks):
        return np.where(self.mask, np.where(clicks != 0, self.log_click, np.log(-np.expm1(self.log_click))), 0.0)

    def log_prob(self, clicks):
        possible = (clicks * self.mask).sum(1) <= (1 if self.one_click else np.inf)
        return np.where(possible, self.observed(clicks).sum(1), -np.inf)


class Coin:
    def __init__(self, probability: float, *, one_click: bool = False) -> None:
        self.probability, self.one_click = probability, one_click

    def __call__(self, sessions: Sessions) -> IndependentClicks:
        return IndependentClicks(np.full(sessions.shape, np.log(self.probability)), sessions.mask, self.one_click)


class Tabled:
    """Independent clicks with rates by position."""

    rates = np.array([0.5, 0.3, 0.25, 0.2, 0.4])

    def __call__(self, sessions: Sessions) -> IndependentClicks:
        return IndependentClicks(np.log(self.rates[np.minimum(sessions.position, 4)]), sessions.mask)


class RankTable(nnx.Module):
    """Logit by position; with dropout, which an evaluation must switch off."""

    def __init__(self, logits, rngs: nnx.Rngs | None = None) -> None:
        self.logits = nnx.Param(jnp.asarray(logits, jnp.float32))
        self.dropout = nnx.Dropout(0.5, rngs=rngs or nnx.Rngs(0))

    def __call__(self, sessions: Sessions):
        return self.dropout(self.logits[...][sessions.position])


class OwnDocumentTable(nnx.Module):
    """A table over documents that declares nothing."""

    def __init__(self, documents: int) -> None:
        self.logits = nnx.Param(jnp.zeros(documents + 1))

    def __call__(self, sessions: Sessions):
        return self.logits[...][sessions.features["document"]]


class DocumentTable(nnx.Module):
    def __init__(self, logits) -> None:
        self.logits = nnx.Param(jnp.asarray(logits, jnp.float32))

    def __call__(self, sessions: Sessions):
        return self.logits[...][sessions.features["document"]]


def ranked(labels, scores=None, **fields) -> Sessions:
    """Lists whose best-scored document stands first, unless scores say otherwise."""
    scores = [list(range(len(row), 0, -1)) for row in labels] if scores is None else scores
    return Sessions.from_lists(labels=labels, features={"x": scores}, **fields).pad(rows=8, width=8)


def values(data, metrics, model=None, **options) -> dict[str, float]:
    found = evaluate(model or ByFeature(), data, metrics=metrics, **{"key": KEY} | options)
    return {name: e.value for name, e in found.items()}


def ragged(n: int = 300, *, seed: int = 0, queries: int = 40) -> Sessions:
    """Lists of 1 to 5 documents whose click rate depends on the query."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 6, n)
    query = rng.integers(0, queries, n)
    rate = rng.beta(2, 4, queries)[query]
    clicks = [(rng.random(k) < p).astype(int) for k, p in zip(lengths, rate, strict=True)]
    return Sessions.from_lists(clicks=clicks, query=query)


def same(a: dict[str, Estimate], b: dict[str, Estimate]) -> bool:
    def numbers(e: Estimate) -> tuple:
        return e.value, e.standard_error, *e.interval, e.count, e.excluded

    return list(a) == list(b) and all(
        numbers(a[name]) == pytest.approx(numbers(b[name]), rel=1e-6, abs=1e-7, nan_ok=True) for name in a
    )


def gain(y):
    return 2**y - 1
