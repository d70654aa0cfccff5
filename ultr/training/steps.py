"""What `fit` compiles: many optimizer steps in one call, and the loss over many batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ultr.errors import ConfigError
from ultr.rankers import Ranker
from ultr.sessions import Sessions
from ultr.towers import Component, read_by, row_tables
from ultr.training.feed import StackedBatches
from ultr.training.optimizers import mark_groups, with_prior
from ultr.training.rows import RowRule, RowSparse, materialised, representatives, update_rows
from ultr.training.weight_report import WEIGHT_SUMS, weight_sums

State = dict[str, Any]
PROGRAMS = 12  # that stay compiled for trainings of equal structure


class Trainer:
    """The compiled training of one model by one optimizer.

    Its state is a dict of arrays: `tables` (with their optimizer state, where that is row-sparse), `params`, `rest`
    (what is not trained), `optimizer` and `count`, the number of steps. Models of equal structure by the same optimizer
    object share what was compiled.

    Attributes:
      optimizer: what the optimizer keeps between two steps, by the names of its parts.
      sums: how many sums a pass adds up: those of `weighted_sums`, and `weight_sums` where impressions are weighed.
    """

    def __init__(self, model: nnx.Module, optimizer: optax.GradientTransformation | RowSparse) -> None:
        self.rank_first = isinstance(model, Component) and model.pointwise
        weighs = isinstance(model, Ranker) and model.weighs_impressions
        self.sums = 3 + WEIGHT_SUMS if weighs else 3
        self._rule = optimizer.tables if isinstance(optimizer, RowSparse) else None
        self._optax = optimizer.rest if isinstance(optimizer, RowSparse) else optimizer
        paths = frozenset(tuple(path) for path in row_tables(model)) if self._rule else frozenset()
        self._unmarked = nnx.split(model)
        model = nnx.clone(model)
        mark_groups(model)
        self._graph, *parts = nnx.split(model, *_filters(paths))
        # Copies without weak types, which would make the second block be compiled anew.
        self._parts = jax.tree.map(lambda x: jnp.array(x, x.dtype), tuple(parts))
        self._shapes = [x.shape for x in jax.tree.leaves(self._parts[0])]
        decides = (self._graph, paths, _names(self._parts[0]), self._rule, self._optax, weighs)
        try:
            steps = _Steps(*decides)
            hash(steps)
        except TypeError:  # a module has an attribute that cannot be compared
            steps = _OwnSteps(*decides)
        self._block, self._evaluate = _programs(steps)

    def block(
        self, state: State, scratch: jax.Array, sums: jax.Array, batches: StackedBatches, count: Any, facts: Any
    ) -> Any:
        """Makes one step on each of the first `count` of the stacked batches; uses up what it is given before them."""
        return self._block(state, scratch, sums, batches, count, facts)

    def evaluate(self, parameters: Any, sums: jax.Array, batches: StackedBatches, count: Any) -> jax.Array:
        """Adds the losses of the first `count` batches to sums [3], which are used up (`evaluation_sums`)."""
        found: jax.Array = self._evaluate(parameters, sums, batches, count)
        return found

    def init(self) -> State:
        """Makes the state before the first step; once, since the first block uses its arrays up."""
        tables, params, rest = self._parts
        rule = self._rule
        return {
            "tables": jax.tree.map(rule.init, tables) if rule else tables,
            "params": params,
            "rest": rest,
            "optimizer": self._optax.init(params),
            "count": jnp.zeros((), jnp.int32),
        }

    @property
    def optimizer(self) -> str:
        """Names the rule of the rows and the states of the other parameters, which tell optimizers apart."""
        names = [type(self._rule).__name__] if self._rule else []
        return ", ".join(dict.fromkeys(names + _state_names(self._optax.init(self._parts[1]))))

    def scratch(self, state: State) -> jax.Array:
        """Makes the working memory of the row-sparse update, which is not part of the state."""
        return jnp.zeros(max((len(x) for x in jax.tree.leaves(state["tables"])), default=0), jnp.int32)

    def model(self, parameters: Any) -> Any:
        """Builds the model with the given parameters, as `parameters(state)` returns them."""
        graph, state = self._unmarked
        trained = nnx.merge(self._graph, *parameters)
        leaves = jax.tree.leaves(nnx.split(trained)[1])
        return nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(state), leaves))

    def parameters(self, state: State) -> Any:
        """Copies (tables, other parameters, everything else) of the model, since a step uses its state up."""
        leaves, structure = jax.tree.flatten(state["tables"])
        values = [_first_column(x).reshape(shape) for x, shape in zip(leaves, self._shapes, strict=True)]
        return jax.tree.unflatten(structure, values), *jax.tree.map(jnp.copy, (state["params"], state["rest"]))


@dataclasses.dataclass(frozen=True)
class _Steps:
    """What decides the compiled steps beside the shapes of arrays: equal ones are compiled once.

    Attributes:
      graph: the structure of the model.
      paths: of the tables that are updated row by row. names: the same, dotted, in the order of the leaves.
      rule: how rows are updated; None: there are no such tables.
      rest: the optimizer of all other parameters.
      weighs: whether the loss weighs impressions.
    """

    graph: Any
    paths: frozenset[tuple[Any, ...]]
    names: tuple[str, ...]
    rule: RowRule | None
    rest: optax.GradientTransformation
    weighs: bool

    def block(
        self, state: State, scratch: jax.Array, sums: jax.Array, batches: StackedBatches, count: Any, facts: Any
    ) -> Any:
        """Makes one step on each of the first `count` of the stacked batches."""

        def body(i: jax.Array, carry: Any) -> Any:
            state, scratch, sums = carry
            state, scratch, new = self._step(state, scratch, batches.at(i), facts)
            return state, scratch, sums + new

        return jax.lax.fori_loop(0, count, body, (state, scratch, sums))

    def _step(self, state: State, scratch: jax.Array, batch: Sessions, facts: dict[str, Any]) -> Any:
        tables, structure = jax.tree.flatten(state["tables"])
        lookups: list[tuple[int, int]] = []  # which table each look-up of the model reads, and by which index

        def objective(params: Any, moves: list[jax.Array] | None) -> Any:
            """Computes the mean loss, with an addend to each looked-up number: its gradient is that of the number."""
            absent = jax.tree.unflatten(structure, [_Absent() for _ in tables])
            model = nnx.merge(self.graph, absent, params, state["rest"], copy=True)
            numbers = self._numbers(model)
            lookups.clear()
            reads: list[tuple[jax.Array, jax.Array]] = []
            flats: list[tuple[jax.Array, int, jax.Array]] = []  # indices given, for tables of how many rows; as used

            def used(index: jax.Array, rows: int) -> int:
                """Finds an index in `flats`, or adds it; padding reads no row: the update drops what lies beyond."""
                for i, (given, length, _) in enumerate(flats):
                    if given is index and length == rows:
                        return i
                flat = index
                if index.shape[:2] == batch.mask.shape:
                    shown = batch.mask.reshape(*batch.mask.shape, *(1,) * (index.ndim - 2))
                    flat = jnp.where(shown, index, rows)
                flats.append((index, rows, flat.reshape(-1)))
                return len(flats) - 1

            def reader(table: nnx.Param[jax.Array], index: jax.Array) -> jax.Array | None:
                number = numbers.get(id(table))
                if number is None:
                    return None
                place = used(index, len(tables[number]))
                flat = flats[place][2]
                rows = jnp.take(tables[number], flat, axis=0, mode="clip")  # `towers.check_bounds` looks at the bounds
                lookups.append((number, place))
                reads.append((flat, rows))
                values = rows[:, 0].reshape(index.shape)
                return values if moves is None else values + moves[len(reads) - 1].reshape(index.shape)

            with read_by(reader):
                weights = [weight_sums(model, batch)] if isinstance(model, Ranker) and self.weighs else []
                total, sums = losses(model, batch)
            scale = jnp.where(facts["weight"] > 0, facts["weight"], jnp.maximum(sums[1], 1.0))
            parts: Any = nnx.split(model, *_filters(self.paths))
            rest = parts[-1]
            return total / scale, (jnp.concatenate([sums, *weights]) if weights else sums, rest, reads)

        if self.rule is None:
            gradient, (sums, rest, _) = jax.grad(objective, has_aux=True)(state["params"], [])
            moved: list[jax.Array] = []
            reads: list[tuple[jax.Array, jax.Array]] = []
        else:
            _, (_, _, shapes) = jax.eval_shape(partial(objective, moves=None), state["params"])
            moves = [jnp.zeros(index.shape) for index, _ in shapes]
            (gradient, moved), (sums, rest, reads) = jax.grad(objective, argnums=(0, 1), has_aux=True)(
                state["params"], moves
            )
        count = state["count"] + 1
        moved = materialised(moved, count)
        strengths = {"network": facts["prior"], "table": facts["prior_of_tables"]}
        gradient = with_prior(gradient, state["params"], strengths)
        updates, optimizer = self.rest.update(gradient, state["optimizer"], state["params"])
        represented: dict[tuple[int, ...], jax.Array] = {}  # by the indices, which tables of a model often share
        for number, rule in ((n, self.rule) for n in sorted({n for n, _ in lookups}) if self.rule):
            own = [(*reads[i], moved[i]) for i, (n, _) in enumerate(lookups) if n == number]
            index, rows, slopes = (jnp.concatenate(parts) for parts in zip(*own, strict=True))
            by = tuple(place for n, place in lookups if n == number)
            if by not in represented:
                scratch, represented[by] = representatives(scratch, index)
            tables[number] = update_rows(
                rule, tables[number], represented[by], (index, rows, slopes), count, facts["prior_of_tables"]
            )
        state = {
            "tables": jax.tree.unflatten(structure, tables),
            "params": optax.apply_updates(state["params"], updates),
            "rest": rest,
            "optimizer": optimizer,
            "count": count,
        }
        return state, scratch, sums

    def _numbers(self, model: Any) -> dict[int, int]:
        """Finds which leaf of `tables` each table of a merged model is."""
        places = {".".join(map(str, path)): id(table) for path, table in row_tables(model).items()}
        return {places[name]: number for number, name in enumerate(self.names)}


class _OwnSteps(_Steps):
    """Steps that are equal to themselves alone."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__


@lru_cache(maxsize=PROGRAMS)
def _programs(steps: _Steps) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Compiles steps and evaluation; those of the last trainings are found again, older ones are let go of."""
    return (
        jax.jit(steps.block, donate_argnums=(0, 1, 2)),
        jax.jit(partial(evaluation_sums, steps.graph), donate_argnums=(1,)),
    )


@jax.jit
def _first_column(rows: jax.Array) -> jax.Array:
    return rows[:, 0]


def _filters(paths: frozenset[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Returns what parts a model into tables that are updated row by row, other parameters, and everything else."""
    return (lambda path, _: tuple(path) in paths), nnx.Param, ...


def evaluation_sums(graph: Any, parameters: Any, sums: jax.Array, batches: StackedBatches, count: Any) -> jax.Array:
    """Adds the losses of the first `count` batches, in evaluation mode: without dropout, nothing learnt.

    Args:
      graph, parameters: the model, as `nnx.split` gives it.
      sums: [3].
      batches: stacked.
      count: how many of them.
    """

    def body(i: jax.Array, sums: jax.Array) -> jax.Array:
        model = nnx.merge(graph, *parameters, copy=True)
        model.eval()
        batch = batches.at(i)
        loss = model.held_out_loss(batch) if isinstance(model, Ranker) else model.loss(batch)
        return sums + weighted_sums(loss, batch)[1]

    total: jax.Array = jax.lax.fori_loop(0, count, body, sums)
    return total


def losses(model: Any, batch: Sessions) -> tuple[jax.Array, jax.Array]:
    """Computes the losses of a batch and adds them up (`weighted_sums`)."""
    return weighted_sums(model.loss(batch), batch)


def weighted_sums(loss: jax.Array, batch: Sessions) -> tuple[jax.Array, jax.Array]:
    """Adds up losses [B] by the weights of the lists; impossible sessions, of infinite loss, are left out.

    Returns:
      The weighted sum, and [3]: that sum, the weight counted, the weight of impossible sessions.
    """
    possible = loss != jnp.inf  # a NaN shall be seen, not left out
    weight = jnp.any(jnp.asarray(batch.mask), axis=batch.rank_axis).astype(jnp.float32)
    if batch.weight is not None:
        weight = weight * batch.weight
    used = jnp.where(possible, weight, 0.0)
    total = jnp.sum(jnp.where(used > 0, loss, 0.0) * used)
    return total, jnp.stack([total, jnp.sum(used), jnp.sum(weight - used)])


def _state_names(state: Any) -> list[str]:
    """Names the classes of optax states that hold something, outermost first."""
    if isinstance(state, dict):
        return [name for part in state.values() for name in _state_names(part)]
    if not isinstance(state, tuple | list):
        return []
    own = [type(state).__name__] if isinstance(state, tuple) and type(state) is not tuple and len(state) else []
    return own + [name for part in state for name in _state_names(part)]


class _Absent:
    """Takes the place of a table that is trained row by row: read in another way, it would get no gradient."""

    def __getitem__(self, _: Any) -> Any:
        raise ConfigError(
            "a table that is trained row by row was read without `towers.lookup`. Read it through that function, "
            "leave it out of the tower's `row_tables`, or train with a dense optimizer, such as optimizer=adam()"
        )


def _names(tables: Any) -> tuple[str, ...]:
    """Names the leaves by dotted paths, without what nnx appends for a variable's value."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tables)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in flat]
    return tuple(name.removesuffix(".value") for name in names)
