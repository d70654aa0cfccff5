"""What `solve` maximises: the log-likelihood of a model's tables with the log of their prior, per session."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ultr.models import DBN, DCM, DCTR, GCTR, RCTR, RDCTR, SDBN, CascadeModel, CoinModel
from ultr.sessions import Sessions, Source
from ultr.training.cells import Layout
from ultr.training.kept import Kept
from ultr.training.outcomes import Expected, expect

USUAL = 2.0  # outcomes that a prior is worth where it is not fitted
FITTED_CELLS, SAMPLED_CELLS = 100, 20_000
# Slots of which counting sees whole outcomes; the prior of their tables can be fitted.
SEEN: dict[type, tuple[str, ...]] = {
    **dict.fromkeys((GCTR, RCTR, DCTR, RDCTR), ("tower",)),
    CascadeModel: ("relevance",),
    DCM: ("relevance", "continuation"),
    SDBN: ("relevance", "satisfaction"),
    DBN: ("relevance",),
}


class Objective:
    """The objective of one model on some data, with the steps that follow from a pass.

    Logits are those of every table, [size] each; a pass finds the `Expected` that the other methods take.

    Args:
      model: its tables are the start.
      train: what is maximised on.
      prior: as of `solve`.
      stopping: take the last click for the end of examination.

    Attributes:
      layout: the tables.
      start: their logits.
    """

    def __init__(
        self, model: CoinModel, train: Source | Sessions, prior: float | Literal["fitted"], *, stopping: bool
    ) -> None:
        self._model, self._stopping = model, stopping
        self._strength = USUAL if prior == "fitted" else float(prior)
        self.layout = Layout.of(model)
        self.start = self.layout.read(model)
        self._data = Kept(model, self.layout.features, train, "training data")
        cells = self.layout.cells
        self._prior: list[tuple[float, float]] = []  # of each table, as outcomes of both kinds; from the first pass on
        seen = SEEN.get(type(model), ()) if prior == "fitted" else ()
        hidden = {place for slot, place in zip(model.slots, self.layout.places, strict=True) if slot not in seen}
        self._fitting = set(range(len(cells))) - hidden  # the tables whose prior is fitted
        self._fitted: list[tuple[float, float] | None] = [None] * len(cells)
        large = any(cells[n].size > FITTED_CELLS for n in self._fitting)
        if large and not stopping and model.statistics == "list":
            # To what counting sees: what EM expects of choices out of sight depends on the prior, and a prior fitted to
            # that grows without end.
            self._fit_prior(expect(self.layout, self._data, self.start, stopping=True))

    def _fit_prior(self, found: Expected) -> None:
        for n in self._fitting:
            self._fitted[n] = _beta(np.asarray(found.yes[n]), np.asarray(found.no[n]))

    def expect(self, logits: list[jax.Array]) -> Expected:
        """One pass: the E-step of EM, from which the gradient follows too. The first one decides on the prior."""
        found = expect(self.layout, self._data, logits, stopping=self._stopping)
        if not self._prior:
            if self._stopping or self._model.statistics == "rank":
                self._fit_prior(found)
            shares = [_share(float(jnp.sum(y)), float(jnp.sum(n))) for y, n in zip(found.yes, found.no, strict=True)]
            usual = [(self._strength * share, self._strength * (1 - share)) for share in shares]
            self._prior = [own or before for own, before in zip(self._fitted, usual, strict=True)]
        return found

    def value(self, logits: list[jax.Array], found: Expected) -> float:
        """The objective."""
        log_prior = 0.0
        for x, (a, b) in zip(logits, self._prior, strict=True):
            each = a * jax.nn.log_sigmoid(x) + b * jax.nn.log_sigmoid(-x)
            log_prior += float(np.sum(np.asarray(each), dtype=np.float64))
        return (found.log_likelihood + log_prior) / found.weight

    def maximise(self, found: Expected) -> list[jax.Array]:
        """The M-step: the logits of the expected shares."""
        pairs = zip(found.yes, found.no, self._prior, strict=True)
        return [jnp.log((yes + a) / (no + b)) for yes, no, (a, b) in pairs]

    def slope(self, logits: list[jax.Array], found: Expected) -> list[jax.Array]:
        """Derivative of the objective by the logits, by Fisher's identity."""
        return [
            ((yes + a) - (yes + no + (a + b)) * jax.nn.sigmoid(x)) / found.weight
            for x, yes, no, (a, b) in zip(logits, found.yes, found.no, self._prior, strict=True)
        ]

    def information(self, logits: list[jax.Array], found: Expected) -> list[jax.Array]:
        """Minus the second derivative by each logit of what the M-step maximises: that of the complete data."""
        return [
            (yes + no + (a + b)) * jax.nn.sigmoid(x) * jax.nn.sigmoid(-x) / found.weight
            for x, yes, no, (a, b) in zip(logits, found.yes, found.no, self._prior, strict=True)
        ]

    def fitted(self, logits: list[jax.Array]) -> Any:
        """A copy of the model with the given logits in its tables."""
        return self.layout.written(self._model, logits)


def _share(yes: float, no: float) -> float:
    share = yes / (yes + no) if yes + no > 0 else 0.5
    return min(max(share, 1e-4), 1 - 1e-4)


def _beta(yes: np.ndarray, no: np.ndarray) -> tuple[float, float] | None:
    """The Beta distribution under which the outcomes of the cells are most likely; None where few have data."""
    from scipy.optimize import minimize  # here, since importing them takes as long as a pass
    from scipy.special import betaln, digamma

    seen = np.flatnonzero(yes + no > 1e-3)
    if len(seen) < FITTED_CELLS:
        return None
    seen = seen[:: max(len(seen) // SAMPLED_CELLS, 1)]  # a sample tells two numbers well enough
    yes, no = yes[seen].astype(np.float64), no[seen].astype(np.float64)

    def loss(logs: np.ndarray) -> tuple[float, np.ndarray]:
        a, b = np.exp(logs)
        both = digamma(yes + no + a + b) - digamma(a + b)
        slope = a * np.mean(digamma(yes + a) - digamma(a) - both), b * np.mean(digamma(no + b) - digamma(b) - both)
        return float(betaln(a, b) - np.mean(betaln(yes + a, no + b))), -np.array(slope)

    # Bounded, since cells that all agree would have the prior grow without end.
    found = minimize(loss, np.log((0.6, 1.4)), jac=True, method="L-BFGS-B", bounds=[np.log((0.01, 1000.0))] * 2)
    return float(np.exp(found.x[0])), float(np.exp(found.x[1]))
