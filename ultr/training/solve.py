"""`solve`: click models on tables, to the maximum of their likelihood, by full passes over what the log says."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ultr.clicks import CascadeClicks, last_click
from ultr.errors import ConfigError, DataError, UltrError
from ultr.logs import ClickLog, Counts, collapse
from ultr.models import DBN, DCM, DCTR, GCTR, RCTR, RDCTR, SDBN, CascadeModel, Coin, CoinModel
from ultr.sessions import InMemory, Sessions, Source
from ultr.towers import check
from ultr.towers.lookup import LANES, spread
from ultr.towers.tables import read
from ultr.training.cells import Cells, table_cells
from ultr.training.feed import Batches, Block, blocks, bounds
from ultr.training.loop import Fitted
from ultr.training.rows import settled
from ultr.training.steps import losses

ROWS = 1 << 13  # per batch: what a CPU's cache holds
KEPT_BYTES = 1 << 31  # a source that needs more than this is read again in every pass
FITTED_CELLS, SAMPLED_CELLS = 100, 20_000
SMALL = 1 << 12  # tables of up to so many cells are summed in float64

Method = Literal["em", "lbfgs", "counting"]
# Slots of which counting sees whole outcomes; the prior of their tables can be fitted.
SEEN: dict[type, tuple[str, ...]] = {
    **dict.fromkeys((GCTR, RCTR, DCTR, RDCTR), ("tower",)),
    CascadeModel: ("relevance",),
    DCM: ("relevance", "continuation"),
    SDBN: ("relevance", "satisfaction"),
    DBN: ("relevance",),
}
COUNTED = (GCTR, RCTR, DCTR, RDCTR, CascadeModel, SDBN, DCM)


def solve(
    model: CoinModel,
    train: Source | Sessions,
    valid: Source | Sessions | None = None,
    *,
    method: Method = "em",
    prior: float | Literal["fitted"] = "fitted",
    iterations: int = 100,
    tolerance: float = 1e-5,
) -> Fitted:
    """Maximises the likelihood of a click model whose towers are tables; no learning rate, no batches, no seed.

    Every probability of the tables has a Beta prior, as if some more outcomes had been seen of it. What nothing was
    seen of, such as documents that are not in the data, gets the mean of the prior. A log is collapsed first where the
    model's likelihood depends on counts only (`ultr.logs.collapse`); the result is the same.

    Args:
      model: GCTR, RCTR, DCTR, RDCTR, PBM, UBM, CascadeModel, DCM, SDBN, DBN or CCM; every tower a `Constant`,
        `RankTable`, `LastClickTable`, full `DocumentTable` or `RankDocumentTable`. It is left as it is; its tables are
        the start.
      train: a log, its counts, or sessions in memory.
      valid: judges every iteration by the mean loss per session; the best is kept. None: the objective judges, which
        never falls under EM.
      method: "em" (Dempster 1977; for click models Chuklin, Markov and de Rijke 2015); "lbfgs", quasi-Newton on the
        same objective, scaled by the information of the complete data (Jamshidian and Jennrich 1997); "counting", one
        pass: exact for the CTR models and CascadeModel; for SDBN and DCM the counting estimators, which take the last
        click for the end of examination (Chapelle and Zhang 2009; Guo 2009).
      prior: a number above 0: so many outcomes with the table's average, that of the first pass. "fitted": for what
        counting sees (the CTR models, relevance of CascadeModel, DCM, SDBN and DBN, continuation of DCM, satisfaction
        of SDBN) each table's own, the Beta distribution under which its counts are most likely; for other tables and
        those of fewer than 100 cells with data, two outcomes with the average.
      iterations: passes over the data, at most.
      tolerance: stop when the objective per session gains less than this in an iteration.

    Returns:
      `Fitted`; an epoch of its history is a pass. `loss` and `objective` (the mean log-likelihood with the log of the
      prior, per session) are those of the parameters that the pass was made with, `valid_loss` of those it led to:
      one iteration later under EM and counting, the same under L-BFGS.

    Raises:
      ConfigError: a model or tower without a table form; unusable options; data without clicks, without a feature that
        a table reads, or collapsed to counts that are not enough for the model.
      DataError: an id or rank beyond a table, or a source without sessions that the model can produce.
    """
    if not isinstance(model, CoinModel):
        raise ConfigError(
            f"{type(model).__name__} has no hidden yes-or-no choices to count. Train it with ultr.training.fit"
        )
    if method not in ("em", "lbfgs", "counting"):
        raise ConfigError(f"expected method 'em', 'lbfgs' or 'counting', found {method!r}")
    strength = 2.0 if prior == "fitted" else prior
    if isinstance(strength, str) or not (0 < strength < math.inf and iterations >= 1 and tolerance >= 0):
        raise ConfigError(
            "expected prior > 0 (or 'fitted'), iterations >= 1 and tolerance >= 0, "
            f"found {prior}, {iterations} and {tolerance}"
        )
    if method == "counting" and not isinstance(model, COUNTED):
        raise ConfigError(f"{type(model).__name__} has no counting estimator. Choose method='em' or 'lbfgs'")
    problem = _Problem(model, train, strength, fitted=prior == "fitted", stopping=method == "counting")
    search = _Search(problem, None if valid is None else _judge(problem, valid), iterations, tolerance)
    if method == "lbfgs":
        search.lbfgs()
    else:
        search.em(1 if method == "counting" else iterations)
    return Fitted(problem.fitted(search.best), search.history, search.best_epoch)


# --- Passes over the data ---------------------------------------------------------------------------------


@dataclasses.dataclass
class Expected:
    """What a pass finds: expected outcomes of every cell, and the log-likelihood of the logits that it used.

    `weight` and `impossible` count sessions.
    """

    yes: list[jax.Array]
    no: list[jax.Array]
    log_likelihood: float
    weight: float
    impossible: float


@dataclasses.dataclass(frozen=True)
class _Layout:
    """What a pass is compiled for.

    Attributes:
      model: its class.
      cells: its tables, each once.
      places: which of them each slot reads.
      stopping: examination ends at the last click.
      small: tables of up to so many cells are summed in float64.
    """

    model: type[CoinModel]
    cells: tuple[Cells, ...]
    places: tuple[int, ...]
    stopping: bool
    small: int


def _block(layout: _Layout, coins: Any, large: Any, batches: Batches, count: Any) -> Any:
    """The outcomes in one block: added to `large`, and of the small tables, whose cells stand LANES times."""
    small = [(jnp.zeros(c.size * LANES),) * 2 for c in layout.cells if c.size <= layout.small]

    def body(i: jax.Array, carry: Any) -> Any:
        large, small, sums = carry
        batch = batches.at(i)
        clicks = jnp.asarray(batch.clicks)
        last = batch.last_click
        if last is None:
            clicked = (clicks != 0) & batch.mask
            last = last_click(clicked, jnp.asarray(batch.position) + 1, batch.rank_axis)
        index = [cells.index(batch, jnp.asarray(last)) for cells in layout.cells]
        read = [[jnp.take(x, at, mode="clip") for x in pair] for pair, at in zip(coins, index, strict=True)]
        outcomes, (total, new) = jax.grad(partial(_log_likelihood, layout, batch), has_aux=True)(read)
        outcomes = settled(outcomes, i)

        def add(sums: Any, at: jax.Array, pair: Any) -> Any:
            return tuple(s.at[at].add(jnp.where(batch.mask, x, 0.0)) for s, x in zip(sums, pair, strict=True))

        many, few = iter(large), iter(small)
        found: tuple[list[Any], list[Any]] = ([], [])
        for cells, at, pair in zip(layout.cells, index, outcomes, strict=True):
            if cells.size > layout.small:
                found[0].append(add(next(many), at, pair))
            else:
                found[1].append(add(next(few), spread(at), pair))
        return *found, sums + jnp.stack([total, *new])

    return jax.lax.fori_loop(0, count, body, (large, small, jnp.zeros(3)))


_pass = jax.jit(_block, static_argnums=0, donate_argnums=2)


def _log_likelihood(layout: _Layout, batch: Sessions, read: Any) -> Any:
    coins = [Coin(*read[place]) for place in layout.places]
    clicks = layout.model.from_coins(batch, *coins)
    if layout.stopping and isinstance(clicks, CascadeClicks):
        log_prob = clicks.log_prob_stopping(jnp.asarray(batch.clicks))
    else:
        log_prob = clicks.log_prob(jnp.asarray(batch.clicks))
    weight = jnp.any(batch.mask, axis=batch.rank_axis).astype(jnp.float32)
    weight = weight if batch.weight is None else weight * batch.weight
    possible = log_prob != -jnp.inf
    used = jnp.where(possible, weight, 0.0)
    total = jnp.sum(jnp.where(used > 0, log_prob, 0.0) * used)
    return total, (total, (jnp.sum(used), jnp.sum(weight - used)))


class _Problem:
    """A model's tables as cells, its data, and the objective."""

    def __init__(
        self, model: CoinModel, train: Source | Sessions, strength: float, *, fitted: bool, stopping: bool
    ) -> None:
        self.model, self.strength = model, strength
        towers = {id(tower): tower for tower in (getattr(model, slot) for slot in model.slots)}
        found = {id(getattr(model, slot)): table_cells(model, slot) for slot in model.slots}
        self.cells = tuple(found.values())
        places = tuple(list(found).index(id(getattr(model, slot))) for slot in model.slots)
        self.layout = _Layout(type(model), self.cells, places, stopping, SMALL)
        self.start = [cells.read(towers[key]) for key, cells in found.items()]
        self.data = _Data(model, self.cells, train, "training data")
        self.prior: list[tuple[float, float]] = []  # of each table, as outcomes of both kinds; from the first pass on
        seen = SEEN.get(type(model), ()) if fitted else ()
        hidden = {place for slot, place in zip(model.slots, places, strict=True) if slot not in seen}
        self.fitting = set(range(len(self.cells))) - hidden  # the tables whose prior is fitted
        self._fitted: list[tuple[float, float] | None] = [None] * len(self.cells)
        large = any(self.cells[n].size > FITTED_CELLS for n in self.fitting)
        if large and not stopping and model.statistics == "list":
            # To what counting sees: what EM expects of choices out of sight depends on the prior, and a prior fitted to
            # that grows without end.
            self._fit_prior(self._expect(dataclasses.replace(self.layout, stopping=True), self.start))

    def _fit_prior(self, found: Expected) -> None:
        for n in self.fitting:
            self._fitted[n] = _beta(np.asarray(found.yes[n]), np.asarray(found.no[n]))

    def expect(self, logits: list[jax.Array]) -> Expected:
        """One pass: the E-step of EM, from which the gradient follows too."""
        found = self._expect(self.layout, logits)
        if not self.prior:
            if self.layout.stopping or self.model.statistics == "rank":
                self._fit_prior(found)
            shares = [_share(float(jnp.sum(y)), float(jnp.sum(n))) for y, n in zip(found.yes, found.no, strict=True)]
            usual = [(self.strength * share, self.strength * (1 - share)) for share in shares]
            self.prior = [own or before for own, before in zip(self._fitted, usual, strict=True)]
        return found

    def _expect(self, layout: _Layout, logits: list[jax.Array]) -> Expected:
        coins = [(jax.nn.log_sigmoid(x), jax.nn.log_sigmoid(-x)) for x in logits]
        large = [(jnp.zeros(c.size), jnp.zeros(c.size)) for c in self.cells if c.size > self.layout.small]
        small = [np.zeros((2, c.size)) for c in self.cells if c.size <= self.layout.small]
        sums = np.zeros(3)
        for block in self.data:
            large, found, new = _pass(layout, coins, large, block.batches, block.count)
            sums += np.asarray(new, np.float64)
            for total, part in zip(small, found, strict=True):
                total += np.asarray(part, np.float64).reshape(*total.shape, LANES).sum(2)
        many, few = iter(large), iter(small)
        outcomes = [
            next(many) if c.size > self.layout.small else jnp.asarray(next(few), jnp.float32) for c in self.cells
        ]
        yes, no = ([x[side] for x in outcomes] for side in (0, 1))
        log_likelihood, weight, impossible = self.data.per_session(sums)
        return Expected(yes, no, log_likelihood, weight, impossible)

    def objective(self, logits: list[jax.Array], found: Expected) -> float:
        """The log-likelihood with the log of the prior, per session."""
        log_prior = 0.0
        for x, (a, b) in zip(logits, self.prior, strict=True):
            each = a * jax.nn.log_sigmoid(x) + b * jax.nn.log_sigmoid(-x)
            log_prior += float(np.sum(np.asarray(each), dtype=np.float64))
        return (found.log_likelihood + log_prior) / found.weight

    def maximise(self, found: Expected) -> list[jax.Array]:
        """The M-step: the logits of the expected shares."""
        pairs = zip(found.yes, found.no, self.prior, strict=True)
        return [jnp.log((yes + a) / (no + b)) for yes, no, (a, b) in pairs]

    def slope(self, logits: list[jax.Array], found: Expected) -> list[jax.Array]:
        """Derivative of the objective by the logits, by Fisher's identity."""
        return [
            ((yes + a) - (yes + no + (a + b)) * jax.nn.sigmoid(x)) / found.weight
            for x, yes, no, (a, b) in zip(logits, found.yes, found.no, self.prior, strict=True)
        ]

    def fitted(self, logits: list[jax.Array]) -> Any:
        """A copy of the model with the given logits in its tables."""
        model = nnx.clone(self.model)
        towers = {id(t): t for t in (getattr(model, slot) for slot in model.slots)}
        for tower, cells, x in zip(towers.values(), self.cells, logits, strict=True):
            cells.write(tower, x)
        return model


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


class _Data:
    """The blocks of a source, with what tables read alone, kept on the device where they fit."""

    def __init__(self, model: CoinModel, cells: tuple[Cells, ...], given: Source | Sessions, name: str) -> None:
        self.model, self.name = model, name
        self.features = {each.feature for each in cells if each.feature is not None}
        self.source = self._collapsed(InMemory(given) if isinstance(given, Sessions) else given)
        self.rows = self._rows()
        self.rows_per_session = float(getattr(self.source, "rows_per_session", 1.0))
        self._kept: list[Block] | None = None

    def _collapsed(self, source: Source) -> Source:
        by, name = self.model.statistics, type(self.model).__name__
        if isinstance(source, Counts):
            if by not in ("rank", source.by):
                fix = "by='last-click'" if by == "last-click" else "by='list'"
                raise ConfigError(
                    f"{self.name}: {name} needs more than counts by {source.by}. Collapse the log {fix}, or use it as "
                    "it is"
                )
        elif isinstance(source, ClickLog) and by in ("rank", "last-click") and self.features <= {"document"}:
            if not source.metadata["impression_features"]:  # which counts cannot have, and no table reads
                return collapse(source, "rank" if by == "rank" else "last-click")
        return source

    def _rows(self) -> int:
        try:
            rows = len(self.source)  # type: ignore[arg-type]
        except TypeError:
            rows = sum(int(np.asarray(b.mask).any(1).sum()) for b in self.source.batches(ROWS))
        if not rows:
            raise DataError("expected at least one session, found none", file=self.name)
        return rows

    def batches(self, batch_size: int, *, seed: int | None = None) -> Iterator[Sessions]:
        """The source's, without what no table reads."""
        shared = "shared" in inspect.signature(self.source.batches).parameters
        options: dict[str, Any] = {"shared": True} if shared else {}  # spares gathering features to drop them
        for batch in self.source.batches(batch_size, seed=seed, **options):
            if batch.clicks is None:
                raise ConfigError(f"{self.name}: a click likelihood needs clicks; these sessions have none")
            if batch.last_click is not None and self.model.statistics == "list":
                raise ConfigError(
                    f"{self.name}: {type(self.model).__name__} needs whole lists; these rows are single documents. "
                    "Collapse the log by='list', or use it as it is"
                )
            for name in self.features - batch.features.keys():
                read(batch, name, "DocumentTable")  # which raises
            features = {name: batch.features[name] for name in self.features}
            yield batch.replace(features=features, labels=None, query=None)  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[Block]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Block] = []
        size = 0
        look = partial(check, self.model, source=self.name, largest=bounds(self.source))
        for block in blocks(self, ROWS, seed=None, length=self.rows, rank_first=True, look=look, put=jax.device_put):
            size += sum(x.nbytes for x in jax.tree.leaves(block.batches))
            if size <= KEPT_BYTES:
                kept.append(block)
            else:
                kept.clear()
            yield block
        if size <= KEPT_BYTES:
            self._kept = kept

    def per_session(self, sums: np.ndarray) -> tuple[float, float, float]:
        """Sums over rows of (log-likelihood or loss, weight, weight of what is impossible) -> with sessions' weights.

        Raises:
          DataError, UltrError: they are of no use.
        """
        total, used, impossible = (float(x) for x in sums)
        if not used and not impossible:
            raise DataError("expected sessions with documents and a weight above 0, found none", file=self.name)
        if not used:
            raise DataError(
                f"none of the {impossible:.0f} sessions is possible under the model",
                fix="Choose a model that allows several clicks, such as DCM or DBN",
                file=self.name,
            )
        if not math.isfinite(total):
            raise UltrError(f"{self.name}: the log-likelihood is {total}. Start from a model with finite logits")
        return total, used / self.rows_per_session, impossible / self.rows_per_session


@partial(jax.jit, static_argnums=0)
def _losses(graph: Any, state: Any, batches: Batches, count: Any) -> jax.Array:
    model = nnx.merge(graph, state)
    return jax.lax.fori_loop(0, count, lambda i, s: s + losses(model, batches.at(i))[1], jnp.zeros(3))


def _judge(problem: _Problem, valid: Source | Sessions) -> Callable[[list[jax.Array]], float]:
    """Logits -> mean loss per session of the validation data."""
    data = _Data(problem.model, problem.cells, valid, "validation data")
    graph = nnx.graphdef(problem.model)

    def mean(logits: list[jax.Array]) -> float:
        state = nnx.state(problem.fitted(logits))
        sums = np.zeros(3)
        for block in data:
            sums += np.asarray(_losses(graph, state, block.batches, block.count), np.float64)
        total, weight, _ = data.per_session(sums)
        return total / weight

    return mean


# --- Searches ---------------------------------------------------------------------------------------------


class _Stop(Exception):
    pass


class _Search:
    """Passes until the objective stands still; remembers the best."""

    def __init__(
        self, problem: _Problem, judge: Callable[[list[jax.Array]], float] | None, iterations: int, tolerance: float
    ) -> None:
        self.problem, self.judge, self.iterations, self.tolerance = problem, judge, iterations, tolerance
        self.history: list[dict[str, Any]] = []
        self.best, self.best_epoch = problem.start, 0
        self._score: float | None = None  # of the best: lower is better
        self._began = time.perf_counter()

    def _record(self, logits: list[jax.Array], found: Expected, objective: float, after: list[jax.Array]) -> None:
        """A pass that started at `logits` and led to `after`."""
        valid = None if self.judge is None else self.judge(after)
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

    def em(self, iterations: int) -> list[jax.Array]:
        """E- and M-steps."""
        logits, before = self.problem.start, -math.inf
        for _ in range(iterations):
            found = self.problem.expect(logits)
            objective = self.problem.objective(logits, found)
            after = self.problem.maximise(found)
            self._record(logits, found, objective, after)
            if objective - before < self.tolerance:
                break
            logits, before = after, objective
        return after

    def lbfgs(self) -> None:
        """L-BFGS from the end of a few EM passes, in logits scaled by the root of their complete-data information."""
        logits = self.em(min(4, self.iterations))
        if len(self.history) == self.iterations:
            return
        found = self.problem.expect(logits)
        ready = [found]  # the first point is where EM ended
        sizes = np.cumsum([x.size for x in logits])[:-1]

        def join(parts: list[jax.Array]) -> np.ndarray:
            return np.concatenate([np.asarray(p, np.float64) for p in parts])

        information = [
            (yes + no + (a + b)) * jax.nn.sigmoid(x) * jax.nn.sigmoid(-x) / found.weight
            for x, yes, no, (a, b) in zip(logits, found.yes, found.no, self.problem.prior, strict=True)
        ]
        scale = np.sqrt(join(information))
        # The first step of L-BFGS-B has length 1: twice that of Newton's method on the complete data, about an EM step.
        scale /= 2 * np.linalg.norm(join(self.problem.slope(logits, found)) / scale) or 1.0

        def value(x: np.ndarray) -> tuple[float, np.ndarray]:
            if len(self.history) == self.iterations:
                raise _Stop
            point = [jnp.asarray(part) for part in np.split((x / scale).astype(np.float32), sizes)]
            found = ready.pop() if ready else self.problem.expect(point)
            objective = self.problem.objective(point, found)
            self._record(point, found, objective, point)
            return -objective, -join(self.problem.slope(point, found)) / scale

        import scipy.optimize  # here, since importing it takes as long as a pass

        ftol = self.tolerance / max(1.0, abs(self.history[-1]["objective"]))  # it is relative where values exceed 1
        ftol = max(ftol, float(np.finfo(np.float32).eps))
        options = {"maxiter": self.iterations, "maxcor": 7, "ftol": ftol, "gtol": 0.0}
        with contextlib.suppress(_Stop):
            scipy.optimize.minimize(value, join(logits) * scale, jac=True, method="L-BFGS-B", options=options)
