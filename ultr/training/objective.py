"""What `solve` maximises: the log-likelihood of a model's tables with the log of their prior, per session."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ultr.data.dataset import DatasetLike
from ultr.models import DBN, DCM, DCTR, GCTR, RCTR, RDCTR, SDBN, CascadeModel, LatentVariableModel
from ultr.towers import record_schema, trained_schema
from ultr.training.device_data import DeviceData, SolverMemory
from ultr.training.e_step import ExpectedOutcomes, expected_outcomes
from ultr.training.model_tables import ModelTables

PRIOR_OUTCOMES = 2.0  # outcomes that a prior is worth where it is not fitted
FITTED_ENTRIES, SAMPLED_ENTRIES = 100, 20_000
# Slots whose latent variables the counting estimators observe; the prior of their tables can be fitted.
OBSERVED_SLOTS: dict[type, tuple[str, ...]] = {
    **dict.fromkeys((GCTR, RCTR, DCTR, RDCTR), ("tower",)),
    CascadeModel: ("relevance",),
    DCM: ("relevance", "continuation"),
    SDBN: ("relevance", "satisfaction"),
    DBN: ("relevance",),
}


class PenalisedLikelihood:
    """The log-likelihood of a model's tables on some data with the log of their prior, and the steps that raise it.

    Logits are given for every table, [size] each; `expect` passes over the data for the `ExpectedOutcomes` that the
    other methods take.

    Args:
      model: its tables are the start.
      train: the data whose likelihood is maximised.
      prior: as in `solve`.
      last_click_ends: take the last click for the end of examination.
      memory: how the data is cut into pieces.

    Attributes:
      tables: the tables of the model.
      start: their logits at the start.
      schema: names of the features that the tables read; None: not known.
      shown: which ranks the data showed, and which had a click; from the first pass on.
    """

    def __init__(
        self,
        model: LatentVariableModel,
        train: DatasetLike,
        prior: float | Literal["fitted"],
        *,
        last_click_ends: bool,
        memory: SolverMemory,
    ) -> None:
        self._model, self._last_click_ends = model, last_click_ends
        self._strength = PRIOR_OUTCOMES if prior == "fitted" else float(prior)
        self.tables = ModelTables.of(model)
        self.start = self.tables.read(model)
        self._data = DeviceData(model, self.tables.features, train, "training data", memory)
        self.shown = self._data.shown
        self.schema = trained_schema(model, self._data)
        specs = self.tables.specs
        self._prior: list[tuple[float, float]] = []  # of each table, as outcomes of both kinds; from the first pass on
        seen = OBSERVED_SLOTS.get(type(model), ()) if prior == "fitted" else ()
        hidden = {place for slot, place in zip(model.slots, self.tables.places, strict=True) if slot not in seen}
        self._fitting = set(range(len(specs))) - hidden  # the tables whose prior is fitted
        self._fitted: list[tuple[float, float] | None] = [None] * len(specs)
        large = any(specs[n].size > FITTED_ENTRIES for n in self._fitting)
        if large and not last_click_ends and model.sufficient_statistics == "list":
            # Fitted to what counting observes: what EM expects of latent variables depends on the prior, and a prior
            # fitted to that grows without end.
            self._fit_prior(expected_outcomes(self.tables, self._data, self.start, last_click_ends=True))

    def _fit_prior(self, found: ExpectedOutcomes) -> None:
        for n in self._fitting:
            self._fitted[n] = fit_beta(np.asarray(found.yes[n]), np.asarray(found.no[n]))

    def expect(self, logits: list[jax.Array]) -> ExpectedOutcomes:
        """Makes the E-step: one pass over the data. The first one decides on the prior."""
        found = expected_outcomes(self.tables, self._data, logits, last_click_ends=self._last_click_ends)
        if not self._prior:
            if self._last_click_ends or self._model.sufficient_statistics == "rank":
                self._fit_prior(found)
            shares = [_share(float(jnp.sum(y)), float(jnp.sum(n))) for y, n in zip(found.yes, found.no, strict=True)]
            usual = [(self._strength * share, self._strength * (1 - share)) for share in shares]
            self._prior = [own or before for own, before in zip(self._fitted, usual, strict=True)]
        return found

    def value(self, logits: list[jax.Array], found: ExpectedOutcomes) -> float:
        """Computes the penalised log-likelihood per session."""
        log_prior = 0.0
        for x, (a, b) in zip(logits, self._prior, strict=True):
            each = a * jax.nn.log_sigmoid(x) + b * jax.nn.log_sigmoid(-x)
            log_prior += float(np.sum(np.asarray(each), dtype=np.float64))
        return (found.log_likelihood + log_prior) / found.weight

    def maximise(self, found: ExpectedOutcomes) -> list[jax.Array]:
        """Makes the M-step: the logits of the expected shares."""
        pairs = zip(found.yes, found.no, self._prior, strict=True)
        return [jnp.log((yes + a) / (no + b)) for yes, no, (a, b) in pairs]

    def slope(self, logits: list[jax.Array], found: ExpectedOutcomes) -> list[jax.Array]:
        """Computes the derivative of the objective by the logits, by Fisher's identity."""
        return [
            ((yes + a) - (yes + no + (a + b)) * jax.nn.sigmoid(x)) / found.weight
            for x, yes, no, (a, b) in zip(logits, found.yes, found.no, self._prior, strict=True)
        ]

    def information(self, logits: list[jax.Array], found: ExpectedOutcomes) -> list[jax.Array]:
        """Computes the information of the complete data on each logit: the curvature of what the M-step maximises."""
        return [
            (yes + no + (a + b)) * jax.nn.sigmoid(x) * jax.nn.sigmoid(-x) / found.weight
            for x, yes, no, (a, b) in zip(logits, found.yes, found.no, self._prior, strict=True)
        ]

    def fitted(self, logits: list[jax.Array]) -> Any:
        """Copies the model and writes the given logits into its tables, and the names of its features."""
        model = self.tables.with_logits(self._model, logits)
        record_schema(model, self.schema)
        return model


def _share(yes: float, no: float) -> float:
    share = yes / (yes + no) if yes + no > 0 else 0.5
    return min(max(share, 1e-4), 1 - 1e-4)


def fit_beta(yes: np.ndarray, no: np.ndarray) -> tuple[float, float] | None:
    """Fits the Beta distribution under which the outcomes of the entries are most likely; None where few have data."""
    from scipy.optimize import minimize  # here, since importing them takes as long as a pass
    from scipy.special import betaln, digamma

    seen = np.flatnonzero(yes + no > 1e-3)
    if len(seen) < FITTED_ENTRIES:
        return None
    seen = seen[:: max(len(seen) // SAMPLED_ENTRIES, 1)]  # a sample tells two numbers well enough
    yes, no = yes[seen].astype(np.float64), no[seen].astype(np.float64)

    def loss(logs: np.ndarray) -> tuple[float, np.ndarray]:
        a, b = np.exp(logs)
        both = digamma(yes + no + a + b) - digamma(a + b)
        slope = a * np.mean(digamma(yes + a) - digamma(a) - both), b * np.mean(digamma(no + b) - digamma(b) - both)
        return float(betaln(a, b) - np.mean(betaln(yes + a, no + b))), -np.array(slope)

    # Bounded, since entries that all agree would have the prior grow without end.
    found = minimize(loss, np.log((0.6, 1.4)), jac=True, method="L-BFGS-B", bounds=[np.log((0.01, 1000.0))] * 2)
    return float(np.exp(found.x[0])), float(np.exp(found.x[1]))
