"""`solve`: click models on tables, to the maximum of their likelihood, by full passes over the data."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ultr.arguments import check_count, check_number
from ultr.baselines import ShrunkCTR
from ultr.data.dataset import DatasetLike
from ultr.data.document_set import DocumentSet
from ultr.errors import ConfigError
from ultr.models import DCM, DCTR, GCTR, RCTR, RDCTR, SDBN, CascadeModel, LatentVariableModel
from ultr.towers import DocumentTable, RankDocumentTable, RankTable, note_shown_documents, note_shown_ranks
from ultr.training.counted import count_rates
from ultr.training.device_data import DeviceData, SolverMemory
from ultr.training.e_step import ExpectedOutcomes
from ultr.training.fitted import Fitted
from ultr.training.objective import PenalisedLikelihood
from ultr.training.steps import evaluation_sums

SolverMethod = Literal["em", "lbfgs", "counting"]
COUNTED = (GCTR, RCTR, DCTR, RDCTR, CascadeModel, SDBN, DCM)


def solver_methods(model: type) -> tuple[str, ...]:
    """Names the methods by which `solve` can train a class of models on tables; none without latent variables."""
    if issubclass(model, ShrunkCTR):
        return ("counting",)
    if not issubclass(model, LatentVariableModel):
        return ()
    return ("em", "lbfgs", *(["counting"] if issubclass(model, COUNTED) else []))


def solve(
    model: LatentVariableModel | ShrunkCTR,
    train: DatasetLike,
    valid: DatasetLike | None = None,
    *,
    method: SolverMethod = "em",
    prior: float | Literal["fitted"] = "fitted",
    iterations: int = 100,
    tolerance: float = 1e-5,
    memory: SolverMemory | None = None,
) -> Fitted:
    """Maximises the likelihood of a click model whose towers are tables; no learning rate, no batches, no seed.

    Every probability of the tables has a Beta prior, as if some more outcomes had been observed. Entries without data,
    such as documents that are never shown, get the mean of the prior. A log is collapsed first where the model's
    likelihood depends on counts only (`ultr.collapse`); the result is the same.

    Args:
      model: GCTR, RCTR, DCTR, RDCTR, PBM, UBM, CascadeModel, DCM, SDBN, DBN or CCM; every tower a `Constant`,
        `RankTable`, `LastClickTable`, full `DocumentTable` or `RankDocumentTable`. It is left as it is; its tables are
        the start. Or `ultr.baselines.ShrunkCTR`, by counting.
      train: a log, its counts, or sessions in memory.
      valid: data by whose mean loss per session the best iteration is chosen. None: it is chosen by the objective,
        which never falls under EM.
      method: "em" (Dempster 1977; for click models Chuklin, Markov and de Rijke 2015); "lbfgs", quasi-Newton on the
        same objective, scaled by the information of the complete data (Jamshidian and Jennrich 1997); "counting", one
        pass: exact for the CTR models and CascadeModel; for SDBN and DCM the counting estimators, which take the last
        click for the end of examination (Chapelle and Zhang 2009; Guo 2009).
      prior: a number above 0: so many outcomes with the table's average, that of the first pass. "fitted": for what
        the counting estimators observe (the CTR models, relevance of CascadeModel, DCM, SDBN and DBN, continuation of
        DCM, satisfaction of SDBN) each table's own, the Beta distribution under which its counts are most likely; for
        other tables and those of fewer than 100 entries with data, two outcomes with the average. Of `ShrunkCTR` it is
        the strength, chosen by held-out lists.
      iterations: passes over the data, at most.
      tolerance: stop when the objective per session gains less than this in an iteration.
      memory: how the data is cut into pieces; None: `SolverMemory()`.

    Returns:
      `Fitted`; an epoch of its history is a pass. `loss` and `objective` (the mean log-likelihood with the log of the
      prior, per session) are those of the parameters that the pass was made with, `valid_loss` of those it led to:
      one iteration later under EM and counting, the same under L-BFGS.

    Raises:
      ConfigError: a model or tower without a table form; unusable options; data without clicks, without a feature that
        a table reads, or collapsed to counts that are not enough for the model.
      DataError: an id or rank beyond a table, or a source without a click or without sessions that the model can
        produce.
    """
    if not isinstance(model, LatentVariableModel | ShrunkCTR):
        raise ConfigError(
            f"{type(model).__name__} has no latent variables to count outcomes of. Train it with ultr.training.fit"
        )
    if method not in ("em", "lbfgs", "counting"):
        raise ConfigError(f"expected method 'em', 'lbfgs' or 'counting', found {method!r}")
    if prior != "fitted":
        prior = check_number("prior (or 'fitted')", prior, above=0)
    iterations, tolerance = check_count("iterations", iterations), check_number("tolerance", tolerance, least=0)
    if method not in solver_methods(type(model)):
        if isinstance(model, ShrunkCTR):
            raise ConfigError(f"method '{method}' cannot train ShrunkCTR. Choose method='counting'")
        raise ConfigError(f"{type(model).__name__} has no counting estimator. Choose method='em' or 'lbfgs'")
    if isinstance(model, ShrunkCTR):
        return count_rates(model, train, valid, "held-out" if prior == "fitted" else prior)
    memory = memory or SolverMemory()
    objective = PenalisedLikelihood(model, train, prior, last_click_ends=method == "counting", memory=memory)
    valid_loss = None if valid is None else _validation_loss(model, objective, valid, memory)
    search = _Search(objective, valid_loss, iterations, tolerance)
    if method == "lbfgs":
        search.lbfgs()
    else:
        search.em(1 if method == "counting" else iterations)
    objective.shown.check_clicks("training data")
    fitted = objective.fitted(search.best)
    for slot, place in zip(model.slots, objective.tables.places, strict=True):
        if isinstance(table := fitted.tower_in(slot), RankTable):
            note_shown_ranks(table, np.flatnonzero(search.data[place] > 0) + 1, objective.shown.clicked)
        elif isinstance(table, DocumentTable | RankDocumentTable) and "document" in table.reads:
            outcomes = search.data[place].reshape(table.documents + 1, -1).sum(1)
            note_shown_documents(fitted, DocumentSet.of(outcomes > 0))
    return Fitted(fitted, search.history, search.best_epoch)


_evaluation_sums = jax.jit(evaluation_sums, static_argnums=0, donate_argnums=2)


def _validation_loss(
    model: LatentVariableModel, objective: PenalisedLikelihood, valid: DatasetLike, memory: SolverMemory
) -> Callable[[list[jax.Array]], float]:
    """Returns a function from logits to the mean loss per session of the validation data."""
    data = DeviceData(model, objective.tables.features, valid, "validation data", memory, objective.schema)
    graph = nnx.graphdef(objective.fitted(objective.start))

    def mean(logits: list[jax.Array]) -> float:
        state = nnx.state(objective.fitted(logits))
        sums = np.zeros(3)
        for block in data.blocks():
            sums += np.asarray(_evaluation_sums(graph, (state,), jnp.zeros(3), block.batches, block.count), np.float64)
        loss, weight, _ = data.session_sums(sums)
        return loss / weight

    return mean


class _Stop(Exception):
    """Ends a search that has used up its iterations."""


class _Search:
    """Passes over the data until the objective stands still, and remembers the best iteration."""

    def __init__(
        self,
        target: PenalisedLikelihood,
        valid_loss: Callable[[list[jax.Array]], float] | None,
        iterations: int,
        tolerance: float,
    ) -> None:
        self.target, self.valid_loss, self.iterations, self.tolerance = target, valid_loss, iterations, tolerance
        self.history: list[dict[str, Any]] = []
        self.best, self.best_epoch = target.start, 0
        self.data: list[np.ndarray] = []  # outcomes by table entry
        self._score: float | None = None  # of the best: lower is better
        self._began = time.perf_counter()

    def _record(
        self, logits: list[jax.Array], found: ExpectedOutcomes, objective: float, after: list[jax.Array]
    ) -> None:
        """Records a pass that started at `logits` and led to `after`."""
        valid = None if self.valid_loss is None else self.valid_loss(after)
        epoch = len(self.history) + 1
        score = -objective if valid is None and after is logits else valid  # an EM step without validation is better
        if score is None or self._score is None or score < self._score:
            self.best, self.best_epoch, self._score = after, epoch, score
        now = time.perf_counter()
        self.history.append(
            {
                "epoch": epoch,
                "loss": -found.log_likelihood / found.weight,
                "objective": objective,
                "valid_loss": valid,
                "sessions": found.weight,
                "impossible": found.impossible,
                "seconds": round(now - self._began, 3),
            }
        )
        self._began = now
        self.data = [np.asarray(yes + no) for yes, no in zip(found.yes, found.no, strict=True)]

    def em(self, iterations: int) -> list[jax.Array]:
        """Alternates E- and M-steps."""
        logits, before = self.target.start, -math.inf
        for _ in range(iterations):
            found = self.target.expect(logits)
            objective = self.target.value(logits, found)
            after = self.target.maximise(found)
            self._record(logits, found, objective, after)
            if objective - before < self.tolerance:
                break
            logits, before = after, objective
        return after

    def lbfgs(self) -> None:
        """Runs L-BFGS from the end of a few EM passes, in logits scaled by the root of their information."""
        logits = self.em(min(4, self.iterations))
        if len(self.history) == self.iterations:
            return
        found = self.target.expect(logits)
        ready = [found]  # the first point is where EM ended
        sizes = np.cumsum([x.size for x in logits])[:-1]

        def join(parts: list[jax.Array]) -> np.ndarray:
            return np.concatenate([np.asarray(p, np.float64) for p in parts])

        scale = np.sqrt(join(self.target.information(logits, found)))
        # The first step of L-BFGS-B has length 1: twice that of Newton's method on the complete data, about an EM step.
        scale /= 2 * np.linalg.norm(join(self.target.slope(logits, found)) / scale) or 1.0

        def value(x: np.ndarray) -> tuple[float, np.ndarray]:
            if len(self.history) == self.iterations:
                raise _Stop
            point = [jnp.asarray(part) for part in np.split((x / scale).astype(np.float32), sizes)]
            found = ready.pop() if ready else self.target.expect(point)
            objective = self.target.value(point, found)
            self._record(point, found, objective, point)
            return -objective, -join(self.target.slope(point, found)) / scale

        import scipy.optimize  # here, since importing it takes as long as a pass

        ftol = self.tolerance / max(1.0, abs(self.history[-1]["objective"]))  # it is relative where values exceed 1
        ftol = max(ftol, float(np.finfo(np.float32).eps))
        options = {"maxiter": self.iterations, "maxcor": 7, "ftol": ftol, "gtol": 0.0}
        with contextlib.suppress(_Stop):
            scipy.optimize.minimize(value, join(logits) * scale, jac=True, method="L-BFGS-B", options=options)
