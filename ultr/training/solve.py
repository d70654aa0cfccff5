"""`solve`: click models on tables, to the maximum of their likelihood, by full passes over what the log says."""

from __future__ import annotations

import dataclasses
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
from ultr.models import DCM, DCTR, GCTR, RCTR, RDCTR, SDBN, UBM, CascadeModel, Coin, CoinModel
from ultr.sessions import InMemory, Sessions, Source
from ultr.towers import Constant, DocumentTable, LastClickTable, RankDocumentTable, RankTable, check
from ultr.towers.lookup import LANES, spread
from ultr.towers.tables import read
from ultr.training.feed import Batches, Block, blocks, bounds
from ultr.training.loop import Fitted
from ultr.training.rows import settled
from ultr.training.steps import losses

ROWS = 1 << 13  # per batch: what a CPU's cache holds
KEPT_BYTES = 1 << 31  # a source that needs more than this is read again in every pass
SMALL = 1 << 12  # tables of up to so many cells are summed in float64

Method = Literal["em", "lbfgs", "counting"]
COUNTED = (GCTR, RCTR, DCTR, RDCTR, CascadeModel, SDBN, DCM)


def solve(
    model: CoinModel,
    train: Source | Sessions,
    valid: Source | Sessions | None = None,
    *,
    method: Method = "em",
    prior: float = 2.0,
    iterations: int = 100,
    tolerance: float = 1e-5,
) -> Fitted:
    """Maximises the likelihood of a click model whose towers are tables; no learning rate, no batches, no seed.

    Every probability p of the tables has a Beta prior, as if `prior` more outcomes with the table's average had been
    seen; the average is that of the first pass. A log is collapsed first where the model's likelihood depends on counts
    only (`ultr.logs.collapse`); the result is the same.

    Args:
      model: GCTR, RCTR, DCTR, RDCTR, PBM, UBM, CascadeModel, DCM, SDBN, DBN or CCM; every tower a `Constant`,
        `RankTable`, `LastClickTable`, full `DocumentTable` or `RankDocumentTable`. It is left as it is; its tables are
        the start.
      train: a log, its counts, or sessions in memory.
      valid: judges every iteration by the mean loss per session; the best is kept. None: the last is.
      method: "em" (Dempster 1977; for click models Chuklin, Markov and de Rijke 2015); "lbfgs", quasi-Newton on the
        same objective, scaled by the information of the complete data (Jamshidian and Jennrich 1997); "counting", one
        pass: exact for the CTR models and CascadeModel; for SDBN and DCM the counting estimators, which take the last
        click for the end of examination (Chapelle and Zhang 2009; Guo 2009).
      prior: strength of the prior, in outcomes; above 0.
      iterations: passes over the data, at most.
      tolerance: stop when the objective per session gains less than this between two passes.

    Returns:
      `Fitted`; an epoch of its history is a pass, with the loss before it and the penalised objective per session.

    Raises:
      ConfigError: a model or tower without a table form; unusable options.
      DataError: an id or rank beyond a table, or a source without sessions.
    """
    if not isinstance(model, CoinModel):
        raise ConfigError(
            f"{type(model).__name__} has no hidden yes-or-no choices to count. Train it with ultr.training.fit"
        )
    if method not in ("em", "lbfgs", "counting"):
        raise ConfigError(f"expected method 'em', 'lbfgs' or 'counting', found {method!r}")
    if not (0 < prior < math.inf and iterations >= 1 and tolerance >= 0):
        raise ConfigError(
            f"expected prior > 0, iterations >= 1 and tolerance >= 0, found {prior}, {iterations} and {tolerance}"
        )
    if method == "counting" and not isinstance(model, COUNTED):
        raise ConfigError(f"{type(model).__name__} has no counting estimator. Choose method='em' or 'lbfgs'")
    problem = _Problem(model, train, prior, stopping=method == "counting")
    search = _Search(problem, None if valid is None else _judge(problem, valid), iterations, tolerance)
    if method == "lbfgs":
        search.lbfgs()
    else:
        search.em(1 if method == "counting" else iterations)
    return Fitted(problem.fitted(search.best), search.history, search.best_epoch)


# --- Tables as cells --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Cells:
    """A table tower as a flat array of logits.

    Attributes:
      size: number of cells.
      index: (sessions, last click) -> the cell of each impression.
      read: tower -> logits [size]; write: (tower, logits [size]).
    """

    size: int
    index: Callable[[Sessions, jax.Array], jax.Array]
    read: Callable[[Any], jax.Array]
    write: Callable[[Any, jax.Array], None]


def _set(variable: nnx.Param, value: jax.Array) -> None:
    variable[...] = jnp.asarray(value, jnp.float32).reshape(variable[...].shape)


def _position(sessions: Sessions) -> jax.Array:
    return jnp.asarray(sessions.position, jnp.int32)


def _cells(tower: Any, slot: str) -> _Cells:
    if type(tower) is Constant:
        return _Cells(
            1,
            lambda s, _: jnp.zeros(s.shape, jnp.int32),
            lambda t: t.value[...].reshape(1),
            lambda t, x: _set(t.value, x),
        )
    if type(tower) is RankTable and not tower.pin_first:
        return _Cells(
            tower.ranks,
            lambda s, _: _position(s),
            lambda t: t.table[...],
            lambda t, x: _set(t.table, x),
        )
    if type(tower) is LastClickTable:
        width = tower.ranks + 1
        return _Cells(
            tower.ranks * width,
            lambda s, last: _position(s) * width + last,
            lambda t: t.table[...].reshape(-1),
            lambda t, x: _set(t.table, x),
        )
    if type(tower) is DocumentTable and tower.kind == "full":
        name = tower.feature

        def write(t: Any, x: jax.Array) -> None:
            _set(t.common, x[0])
            _set(t.table, x - x[0])

        return _Cells(
            tower.documents + 1,
            lambda s, _: read(s, name, "DocumentTable").astype(jnp.int32),
            lambda t: (t.common[...] + t.table[...]).at[0].set(t.common[...]),
            write,
        )
    if type(tower) is RankDocumentTable:
        ranks = tower.ranks

        def write_both(t: Any, x: jax.Array) -> None:
            _set(t.common, x[:ranks])
            _set(t.table, x.reshape(-1, ranks) - x[None, :ranks])

        return _Cells(
            (tower.documents + 1) * ranks,
            lambda s, _: read(s, "document", "RankDocumentTable").astype(jnp.int32) * ranks + _position(s),
            lambda t: (t.common[...][None, :] + t.table[...]).at[0].set(t.common[...]).reshape(-1),
            write_both,
        )
    raise ConfigError(
        f"tower '{slot}' ({type(tower).__name__}) is not a plain table. solve() takes Constant, RankTable, "
        "LastClickTable, DocumentTable(kind='full') and RankDocumentTable; train others with ultr.training.fit"
    )


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


class _Problem:
    """A model's tables as cells, its data, and the objective."""

    def __init__(self, model: CoinModel, train: Source | Sessions, prior: float, *, stopping: bool) -> None:
        self.model, self.prior, self.stopping = model, prior, stopping
        towers = [getattr(model, slot) for slot in model.slots]
        unique = {id(tower): tower for tower in towers}
        self.places = [list(unique).index(id(tower)) for tower in towers]  # which cells each slot reads
        names = {id(tower): slot for slot, tower in zip(model.slots, towers, strict=True)}
        self.cells = [_cells(tower, names[key]) for key, tower in unique.items()]
        self.start = [cells.read(tower) for cells, tower in zip(self.cells, unique.values(), strict=True)]
        source = self._source(train)
        self.rows_per_session = float(getattr(source, "rows_per_session", 1.0))
        self.data = _Data(source, partial(check, model, source="training data", largest=bounds(source)))
        self.average: list[float] | None = None
        self._pass = jax.jit(self._block, donate_argnums=(1,))

    def _source(self, train: Source | Sessions) -> Source:
        if isinstance(train, ClickLog) and self.model.statistics in ("rank", "last-click"):
            return collapse(train, "rank" if self.model.statistics == "rank" else "last-click")
        return InMemory(train) if isinstance(train, Sessions) else train

    def expect(self, logits: list[jax.Array]) -> Expected:
        """One pass: the E-step of EM, from which the gradient follows too."""
        coins = [(jax.nn.log_sigmoid(x), jax.nn.log_sigmoid(-x)) for x in logits]
        large = [(jnp.zeros(c.size), jnp.zeros(c.size)) for c in self.cells if c.size > SMALL]
        small = [np.zeros((2, c.size)) for c in self.cells if c.size <= SMALL]
        sums = np.zeros(3)
        for block in self.data:
            large, found, new = self._pass(coins, large, block.batches, block.count)
            sums += np.asarray(new, np.float64)
            for total, part in zip(small, found, strict=True):
                total += np.asarray(part, np.float64).reshape(*total.shape, LANES).sum(2)
        many, few = iter(large), iter(small)
        outcomes = [next(many) if c.size > SMALL else jnp.asarray(next(few), jnp.float32) for c in self.cells]
        yes, no = ([x[side] for x in outcomes] for side in (0, 1))
        if not sums[1]:
            raise DataError(f"none of the {sums[2]:.0f} sessions is possible under the model")
        if not math.isfinite(sums[0]):
            raise UltrError(f"the log-likelihood is {sums[0]}: start from a model with finite logits")
        if self.average is None:
            self.average = [
                min(max(float(jnp.sum(y) / jnp.maximum(jnp.sum(y) + jnp.sum(n), 1e-30)), 1e-4), 1 - 1e-4)
                for y, n in zip(yes, no, strict=True)
            ]
        return Expected(yes, no, float(sums[0]), *(float(x) / self.rows_per_session for x in sums[1:]))

    def _block(self, coins: Any, large: Any, batches: Batches, count: Any) -> Any:
        """The outcomes in one block: added to `large`, and of the small tables, whose cells stand LANES times."""
        small = [(jnp.zeros(c.size * LANES),) * 2 for c in self.cells if c.size <= SMALL]

        def body(i: jax.Array, carry: Any) -> Any:
            large, small, sums = carry
            batch = batches.at(i)
            clicks = jnp.asarray(batch.clicks)
            last = batch.last_click
            if last is None:
                clicked = (clicks != 0) & batch.mask
                last = last_click(clicked, jnp.asarray(batch.position) + 1, batch.rank_axis)
            index = [cells.index(batch, jnp.asarray(last)) for cells in self.cells]
            read = [[jnp.take(x, at, mode="clip") for x in pair] for pair, at in zip(coins, index, strict=True)]
            outcomes, (total, new) = jax.grad(partial(self._log_likelihood, batch), has_aux=True)(read)
            outcomes = settled(outcomes, i)

            def add(sums: Any, at: jax.Array, pair: Any) -> Any:
                return tuple(s.at[at].add(jnp.where(batch.mask, x, 0.0)) for s, x in zip(sums, pair, strict=True))

            many, few = iter(large), iter(small)
            found: tuple[list[Any], list[Any]] = ([], [])
            for cells, at, pair in zip(self.cells, index, outcomes, strict=True):
                if cells.size > SMALL:
                    found[0].append(add(next(many), at, pair))
                else:
                    found[1].append(add(next(few), spread(at), pair))
            return *found, sums + jnp.stack([total, *new])

        return jax.lax.fori_loop(0, count, body, (large, small, jnp.zeros(3)))

    def _log_likelihood(self, batch: Sessions, read: Any) -> Any:
        coins = [Coin(*read[place]) for place in self.places]
        clicks = self.model.from_coins(batch, *coins)
        if self.stopping and isinstance(clicks, CascadeClicks):
            log_prob = clicks.log_prob_stopping(jnp.asarray(batch.clicks))
        else:
            log_prob = clicks.log_prob(jnp.asarray(batch.clicks))
        weight = jnp.any(batch.mask, axis=batch.rank_axis).astype(jnp.float32)
        weight = weight if batch.weight is None else weight * batch.weight
        possible = log_prob != -jnp.inf
        used = jnp.where(possible, weight, 0.0)
        total = jnp.sum(jnp.where(used > 0, log_prob, 0.0) * used)
        return total, (total, (jnp.sum(used), jnp.sum(weight - used)))

    def objective(self, logits: list[jax.Array], found: Expected) -> float:
        """The log-likelihood with the log of the prior, per session."""
        assert self.average is not None
        log_prior = 0.0
        for x, mean in zip(logits, self.average, strict=True):
            each = mean * jax.nn.log_sigmoid(x) + (1 - mean) * jax.nn.log_sigmoid(-x)
            log_prior += self.prior * float(np.sum(np.asarray(each), dtype=np.float64))
        return (found.log_likelihood + log_prior) / found.weight

    def maximise(self, found: Expected) -> list[jax.Array]:
        """The M-step: the logits of the expected shares."""
        assert self.average is not None
        return [
            jnp.log(yes + self.prior * mean) - jnp.log(no + self.prior * (1 - mean))
            for yes, no, mean in zip(found.yes, found.no, self.average, strict=True)
        ]

    def slope(self, logits: list[jax.Array], found: Expected) -> list[jax.Array]:
        """Derivative of the objective by the logits, by Fisher's identity."""
        assert self.average is not None
        return [
            ((yes + self.prior * mean) - (yes + no + self.prior) * jax.nn.sigmoid(x)) / found.weight
            for x, yes, no, mean in zip(logits, found.yes, found.no, self.average, strict=True)
        ]

    def fitted(self, logits: list[jax.Array]) -> Any:
        """A copy of the model with the given logits in its tables."""
        model = nnx.clone(self.model)
        towers = {id(t): t for t in (getattr(model, slot) for slot in model.slots)}
        averages = self.average or [0.5] * len(self.cells)
        for tower, cells, x, mean in zip(towers.values(), self.cells, logits, averages, strict=True):
            cells.write(tower, x, math.log(mean / (1 - mean)))
        return model


class _Data:
    """The blocks of a source, kept on the device where they fit."""

    def __init__(self, source: Source, look: Callable[[Sessions], None]) -> None:
        self.source, self.look = source, look
        self.rows = _rows(source)
        self._kept: list[Block] | None = None

    def __iter__(self) -> Iterator[Block]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Block] = []
        size = 0
        for block in blocks(
            self.source, ROWS, seed=None, length=self.rows, rank_first=True, look=self.look, put=jax.device_put
        ):
            size += sum(x.nbytes for x in jax.tree.leaves(block.batches))
            if size <= KEPT_BYTES:
                kept.append(block)
            yield block
        if size <= KEPT_BYTES:
            self._kept = kept


def _rows(source: Source) -> int:
    try:
        rows = len(source)  # type: ignore[arg-type]
    except TypeError:
        rows = sum(len(b) for b in source.batches(ROWS))
    if not rows:
        raise DataError("expected training data with at least one session, found none")
    return rows


def _held_out(problem: _Problem, valid: Source | Sessions) -> Callable[[list[jax.Array]], float]:
    """Logits -> mean loss per session of the validation data."""
    source = InMemory(valid) if isinstance(valid, Sessions) else valid
    data = _Data(source, partial(check, problem.model, source="validation data", largest=bounds(source)))

    @jax.jit
    def add(state: Any, sums: jax.Array, batches: Batches, count: Any) -> jax.Array:
        model = nnx.merge(graph, state)
        return jax.lax.fori_loop(0, count, lambda i, s: s + losses(model, batches.at(i))[1], sums)

    graph = nnx.graphdef(problem.model)

    def mean(logits: list[jax.Array]) -> float:
        state = nnx.state(problem.fitted(logits))
        sums = np.zeros(3)
        for block in data:
            sums += np.asarray(add(state, jnp.zeros(3), block.batches, block.count), np.float64)
        return float(sums[0] / max(sums[1], 1.0))

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
        self.best, self.best_epoch, self._best_loss = problem.start, 0, math.inf
        self._began = time.perf_counter()

    def _record(self, logits: list[jax.Array], found: Expected, objective: float, after: list[jax.Array]) -> None:
        """A pass that started at `logits` and led to `after`."""
        valid = None if self.judge is None else self.judge(after)
        epoch = len(self.history) + 1
        if valid is None or valid < self._best_loss:
            self.best, self.best_epoch, self._best_loss = after, epoch, valid if valid is not None else -objective
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
        logits = self.em(min(3, self.iterations))
        left = self.iterations - len(self.history)
        if left < 1:
            return
        found = self.problem.expect(logits)
        scale = [
            jnp.sqrt((yes + no + self.problem.prior) * jax.nn.sigmoid(x) * jax.nn.sigmoid(-x) / found.weight)
            for x, yes, no in zip(logits, found.yes, found.no, strict=True)
        ]
        sizes = np.cumsum([x.size for x in logits])[:-1]

        def split(x: np.ndarray) -> list[jax.Array]:
            parts = np.split(x.astype(np.float32), sizes)
            return [jnp.asarray(p) / s for p, s in zip(parts, scale, strict=True)]

        def join(parts: list[jax.Array]) -> np.ndarray:
            return np.concatenate([np.asarray(p, np.float64) for p in parts])

        def value(x: np.ndarray) -> tuple[float, np.ndarray]:
            if len(self.history) >= self.iterations:
                raise _Stop
            point = split(x)
            found = self.problem.expect(point)
            objective = self.problem.objective(point, found)
            self._record(point, found, objective, point)
            slope = [g / s for g, s in zip(self.problem.slope(point, found), scale, strict=True)]
            return -objective, -join(slope)

        import scipy.optimize  # here, since importing it takes as long as a pass

        start = join([x * s for x, s in zip(logits, scale, strict=True)])
        options = {"maxiter": left, "maxcor": 7, "ftol": self.tolerance, "gtol": 0.0}
        try:
            end = scipy.optimize.minimize(value, start, jac=True, method="L-BFGS-B", options=options)
            if self.judge is None:
                self.best = split(end.x)
        except _Stop:
            pass
