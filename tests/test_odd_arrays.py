"""Arrays of every odd kind at the doors of the Python API: a typed error that names the field, or the same numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from ultr import fit, models, solve, towers
from ultr.arguments import check_number, whole_array
from ultr.data import Collection, InMemory
from ultr.errors import ConfigError, DataError, UltrError
from ultr.evaluation import evaluate
from ultr.propensity import conditional_likelihood
from ultr.propensity.arm_counts import ArmCounts
from ultr.sessions import Sessions, SharedFeature

B, K = 4, 3


def replaced(values: np.ndarray, value: Any, kind: Any = float) -> np.ndarray:
    out = np.asarray(values).astype(kind)
    out.flat[1] = value
    return out


ODD: dict[str, Callable[[np.ndarray], Any]] = {
    "nan": lambda x: replaced(x, math.nan),
    "infinite": lambda x: replaced(x, math.inf),
    "fractional": lambda x: replaced(x, 0.5),
    "negative": lambda x: replaced(x, -1, int),
    "huge": lambda x: replaced(x, 2**40, np.int64),
    "unsigned": lambda x: replaced(x, 2**63, np.uint64),
    "whole floats": lambda x: np.asarray(x, float),
    "half floats": lambda x: np.asarray(x, np.float16),
    "objects": lambda x: np.asarray(x, object),
    "none inside": lambda x: replaced(x, None, object),
    "text": lambda x: np.asarray(x).astype(str),
    "bytes": lambda x: np.asarray(x).astype("S8"),
    "complex": lambda x: np.asarray(x, complex),
    "dates": lambda x: np.asarray(x).astype(int).astype("datetime64[s]"),
    "records": lambda x: np.zeros(np.shape(x), [("x", int)]),
    "masked": lambda x: np.ma.masked_array(x, np.arange(np.size(x)).reshape(np.shape(x)) == 1),
    "no axis": lambda x: np.asarray(1),
    "empty": lambda x: np.zeros(0),
    "an axis more": lambda x: np.asarray(x)[..., None],
    "a list": lambda x: np.asarray(x).tolist(),
    "text alone": lambda x: "abc",
    "a mapping": lambda x: {1: 2},
}
FIELDS: dict[str, np.ndarray] = {
    "mask": np.ones((B, K), bool),
    "position": np.tile(np.arange(K, dtype=np.int32), (B, 1)),
    "clicks": np.eye(B, K, dtype=np.int8),
    "labels": np.eye(B, K, dtype=np.float32),
    "last_click": np.zeros((B, K), np.int32),
    "query": np.arange(B, dtype=np.int32),
    "weight": np.ones(B, np.float32),
    "document": np.arange(1, B * K + 1, dtype=np.int32).reshape(B, K),
    "x": np.ones((B, K), np.float32),
}
# What means the same numbers, or others that the field may hold.
VALID: dict[str, set[str]] = {
    "clicks": {"whole floats", "half floats"},
    "labels": {"nan", "fractional", "negative", "whole floats", "half floats"},
    "query": {"whole floats", "half floats"},
    "weight": {"fractional", "huge", "unsigned", "whole floats", "half floats"},
    "document": {
        "whole floats",
        "half floats",
        "an axis more",
    },  # as ids, more axes are refused by the tower
    "x": {"fractional", "negative", "huge", "unsigned", "whole floats", "half floats", "an axis more"},
}


def outcome(attempt: Callable[[], Any]) -> Any:
    """What a call returns, or the message of its `DataError`."""
    try:
        return attempt()
    except DataError as error:
        return str(error)


def sessions(field: str, value: Any) -> Sessions:
    given: dict[str, Any] = {name: x for name, x in FIELDS.items() if name not in ("document", "x")} | {
        "features": {"document": FIELDS["document"], "x": FIELDS["x"]}
    }
    if field in given["features"]:
        given["features"][field] = value
    else:
        given[field] = value
    return Sessions(**given)


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("field", FIELDS)
def test_a_batch_is_checked_field_by_field(field: str, kind: str) -> None:
    batch = sessions(field, ODD[kind](FIELDS[field]))
    if kind in VALID.get(field, ()):
        batch.validate()
        return
    with pytest.raises(DataError, match=field):
        batch.validate()
    with pytest.raises(DataError, match=field):
        InMemory(batch)


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("field", ["positions", "clicks", "labels", "query", "weight", "document"])
def test_lists_give_the_same_numbers_or_an_error(field: str, kind: str) -> None:
    name = field.removesuffix("s") if field == "positions" else field
    value = ODD[kind](FIELDS[name])
    given: dict[str, Any] = {"clicks": FIELDS["clicks"], "features": {"document": FIELDS["document"]}}
    if field == "document":
        given["features"] = {field: value}
    else:
        given[field] = value
    made = outcome(lambda: Sessions.from_lists(**given).validate())
    if isinstance(made, str):
        assert field.removesuffix("s") in made
        assert kind not in ("a list", "whole floats", "half floats", "objects")
        return
    found = made.features["document"] if field == "document" else getattr(made, name)
    np.testing.assert_array_equal(np.asarray(found, float), np.asarray(value, float))


@pytest.mark.parametrize(
    ("given", "shape"),
    [({"clicks": []}, (0, 1)), ({"clicks": [], "features": {"x": []}}, (0, 1)), ({"clicks": [[]]}, (1, 1))],
)
def test_no_sessions_are_an_empty_batch(given: dict[str, Any], shape: tuple[int, int]) -> None:
    made = Sessions.from_lists(**given).validate()
    assert made.shape == shape
    assert not made.mask.any()
    with pytest.raises(DataError, match="expected at least one session"):
        fit(models.RCTR(towers.RankTable(1)), made[:0], epochs=1, seed=0, progress=False)


@pytest.mark.parametrize(
    "given",
    [
        *({"clicks": clicks} for clicks in (3, [1, 0], ["10"], [None, [1]], [[[1]], [[0]]])),
        *({"clicks": [[1]], name: given} for name, given in (("features", [[1]]), ("query", 3), ("weight", [1, 2]))),
    ],
)
def test_what_is_no_list_per_session_is_named(given: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=f"field '{list(given)[-1]}'"):
        Sessions.from_lists(**given)


def test_an_iterator_of_lists_is_read_once() -> None:
    made = Sessions.from_lists(clicks=(row for row in [[1, 0], [1]]))  # type: ignore[arg-type]
    np.testing.assert_array_equal(made.clicks, [[1, 0], [1, 0]])


def test_shared_features_are_checked_where_they_point() -> None:
    for index in (FIELDS["document"], FIELDS["document"] - 2, FIELDS["document"] / 2):
        batch = sessions("x", SharedFeature(np.ones((B * K, 2)), index))
        with pytest.raises(DataError, match=r"features\[x\]"):
            batch.validate()
    sessions("x", SharedFeature(np.ones((B * K, 2)), FIELDS["document"] - 1)).validate()


class Unchecked:
    """A source of batches of someone's own, which nothing has checked."""

    def __init__(self, batch: Sessions) -> None:
        self.batch = batch

    def batches(self, batch_size: int, *, seed: int | None = None) -> Any:
        yield self.batch.pad(rows=batch_size)

    def __len__(self) -> int:
        return len(self.batch)


@pytest.mark.parametrize("kind", ["nan", "fractional", "negative", "huge"])
@pytest.mark.parametrize("field", ["position", "document"])
def test_ids_and_ranks_of_a_source_of_ones_own_are_checked_before_they_are_looked_up(field: str, kind: str) -> None:
    source: Any = Unchecked(sessions(field, ODD[kind](FIELDS[field])))
    model = models.PBM(relevance=towers.DocumentTable(B * K), examination=towers.RankTable(K))
    named = "rank" if field == "position" else "document"
    tries: list[Callable[[], Any]] = [
        lambda: fit(model, source, epochs=1, batch_size=B, seed=0, progress=False),
        lambda: solve(model, source, iterations=1),
        lambda: evaluate(model, source, key=jax.random.key(0), batch_size=B),
    ]
    for attempt in tries:
        with pytest.raises(DataError, match=f"field '{named}'"):
            attempt()


ARMS: dict[str, Any] = {
    "item": np.array([0, 0, 1, 1]), "arm": np.array([0, 1, 0, 1]), "impressions": np.full(4, 10.0),
    "clicks": np.array([5.0, 3, 6, 2]), "query": np.array([0, 1]), "arms": 2,
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("field", [name for name in ARMS if name != "arms"])
def test_counts_by_arm_are_checked(field: str, kind: str) -> None:
    expected = conditional_likelihood(ArmCounts(**ARMS)).value
    if field == "impressions" and kind in ("huge", "unsigned"):  # valid, and beyond what the likelihood is tried at
        return
    counts = ArmCounts(**ARMS | {field: ODD[kind](ARMS[field])})
    found = outcome(lambda: conditional_likelihood(counts).value)
    if isinstance(found, str):
        assert field in found or kind == "empty"  # then the other fields have too many entries
        assert kind not in ("whole floats", "half floats", "objects", "a list")
        return
    if kind in ("whole floats", "half floats", "objects", "a list"):
        np.testing.assert_array_equal(found, expected)
    else:
        assert (field, kind) == ("clicks", "fractional")


def test_arms_are_a_number_and_cells_come_once() -> None:
    for arms in (0, 1.5, "2", math.nan, 10**9):
        with pytest.raises(ConfigError, match="arms"):
            conditional_likelihood(ArmCounts(**ARMS | {"arms": arms}))
    with pytest.raises(DataError, match="sorted by item and arm, each once"):
        conditional_likelihood(ArmCounts(**ARMS | {"arm": np.array([1, 0, 0, 1])}))


GRADED: dict[str, Any] = {
    "query": np.repeat([0, 1], 3), "label": np.arange(6) % 3, "ids": np.arange(1, 7), "features": np.ones((6, 2)),
    "document": np.array(list("abcdef")),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("field", [name for name in GRADED if name != "document"])
def test_collections_of_arrays_are_checked(field: str, kind: str) -> None:
    before = Collection.from_arrays(**GRADED)
    value = ODD[kind](GRADED[field])
    made = outcome(lambda: Collection.from_arrays(**GRADED | {field: value}))
    if isinstance(made, str):
        assert field in made
        assert kind not in ("whole floats", "half floats", "objects", "a list")
        return
    if kind in ("whole floats", "half floats", "objects", "a list"):
        assert made.identity == before.identity
    else:
        allowed = {"fractional", "negative", "huge", "unsigned"}
        assert (field, kind) in {(f, k) for f in ("label", "features") for k in allowed} | {
            ("query", "text"), ("query", "bytes"),  # names
        }  # fmt: skip


@pytest.mark.parametrize("names", [["a", "b", None, "d", "e", "f"], [1.5, *"bcdef"], "abcdef", 3, [math.nan] * 6])
def test_names_of_documents_are_text_or_whole_numbers(names: Any) -> None:
    with pytest.raises(DataError, match="field 'document'"):
        Collection.from_arrays(**GRADED | {"document": names})


@pytest.mark.parametrize("picked", [0.5, [0.5], "a", [7], None, [None], 1, [[0, 1]], [True]])
def test_lists_are_selected_by_a_mask_indices_or_a_slice(picked: Any) -> None:
    with pytest.raises(UltrError, match="expected a mask, indices or a slice of 2 lists"):
        Collection.from_arrays(**GRADED).select(picked)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("most", [10, 2**31 - 2])
def test_whole_numbers_of_any_width_are_compared_exactly(kind: Any, most: int) -> None:
    np.testing.assert_array_equal(whole_array(np.array([0, 1, 10], kind), "ids", most=most), [0, 1, 10])
    if float(np.finfo(kind).max) > most:  # float32 has no number between 2^31 - 128 and 2^31
        with pytest.raises(DataError, match="row 2, field 'ids': expected whole numbers from 0 to"):
            whole_array(np.array([0, most + 2 - most % 2], kind), "ids", most=most)


@pytest.mark.parametrize("field", ["labels", "weight", "x"])
@pytest.mark.parametrize("given", [1e300, np.longdouble(1e300)])
def test_numbers_that_float32_cannot_hold_are_refused(field: str, given: Any) -> None:
    values = replaced(FIELDS[field], given, type(given))
    with pytest.raises(DataError, match=rf"{field}\]?': expected finite"):
        sessions(field, values).validate()
    large = 31.0 if field == "labels" else 1e30  # grades end there
    assert sessions(field, replaced(FIELDS[field], large)).validate()


@pytest.mark.parametrize("initial", [1e300, 10**400, "a", [1e300, 0.0], [math.nan, 0.0], [[0.0, 0.0]]])
def test_starting_logits_are_finite_numbers(initial: Any) -> None:
    with pytest.raises(ConfigError, match="expected initial"):
        towers.RankTable(2, initial=initial)
    with pytest.raises(ConfigError, match="expected initial"):
        towers.Constant(initial)
    for number in (10**400, -(10**400), math.inf):
        with pytest.raises(ConfigError, match="expected l2 as a finite number"):
            check_number("l2", number)


def test_stored_features_are_finite_numbers() -> None:
    tower = towers.Linear(1, rngs=nnx.Rngs(0))
    for values, said in (([[0.0], [1e300]], "finite features"), ([["a"], ["b"]], "expected numbers")):
        with pytest.raises(DataError, match=said):
            towers.Stored(tower, values=np.asarray(values))
