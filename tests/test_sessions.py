from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from ultr.data import InMemory
from ultr.errors import DataError
from ultr.sessions import Sessions, SharedFeature, concatenate


def lists() -> Sessions:
    return Sessions.from_lists(
        features={"document": [[1, 2, 3], [4], [5, 6]]},
        clicks=[[0, 1, 0], [1], [0, 0]],
        labels=[[0, 2, float("nan")], [1], [0, 1]],
        query=[7, 8, 9],
        weight=[1.0, 2.0, 3.0],
    )


def test_ragged_lists_are_padded_at_the_end() -> None:
    s = lists()
    assert s.shape == (3, 3)
    np.testing.assert_array_equal(s.mask, [[1, 1, 1], [1, 0, 0], [1, 1, 0]])
    np.testing.assert_array_equal(s.features["document"], [[1, 2, 3], [4, 0, 0], [5, 6, 0]])
    np.testing.assert_array_equal(s.position[0], [0, 1, 2])
    assert s.validate() is s


def test_rows_keep_the_batch_axis() -> None:
    s = lists()
    assert s[1].shape == s[-1].shape == (1, 3)
    for number in (len(s), -len(s) - 1):
        with pytest.raises(IndexError, match=f"expected the number of a list from .* found {number}"):
            s[number]
    assert len(s[len(s) :]) == 0
    np.testing.assert_array_equal(s[np.array([2, 0])].query, [9, 7])
    np.testing.assert_array_equal(s[1:].weight, [2.0, 3.0])
    assert len(s[:0]) == 0


def test_padding_adds_only_masked_cells() -> None:
    s = lists().pad(rows=5, width=4)
    assert s.shape == (5, 4)
    assert s.mask.sum() == lists().mask.sum()
    np.testing.assert_array_equal(s.weight, [1, 2, 3, 0, 0])
    assert lists().pad(rows=1, width=1).shape == (3, 3)


def test_concatenation_pads_to_the_widest() -> None:
    both = concatenate([lists(), lists().pad(width=5)])
    assert both.shape == (6, 5)
    np.testing.assert_array_equal(both.query, [7, 8, 9, 7, 8, 9])
    with pytest.raises(DataError, match="same fields"):
        concatenate([lists(), lists().replace(clicks=None)])
    with pytest.raises(DataError, match="at least one batch"):
        concatenate([])


def test_a_ranker_sees_neither_clicks_nor_positions() -> None:
    s = lists().unbiased()
    assert s.clicks is None
    assert not s.position.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clicks": [[0, 2, 0], [1], [0, 0]]}, r"row 1, field 'clicks': expected clicks of 0 or 1"),
        ({"labels": [[0, 1, 2], [float("inf")], [0, 0]]}, r"row 2, field 'labels': expected finite"),
        ({"positions": [[0, 1, 2], [0], [0, -1]]}, r"row 3, field 'position': expected positions of at least 0"),
        ({"weight": [1.0, -1.0, 1.0]}, r"row 2, field 'weight'"),
        ({"features": {"price": [[1.0, 2.0, 3.0], [1.0], [float("nan"), 0.0]]}}, r"row 3, field 'features\[price\]'"),
    ],
)
def test_bad_values_are_named_by_field_and_row(change: dict, message: str) -> None:
    given = {"clicks": [[0, 1, 0], [1], [0, 0]]} | change
    with pytest.raises(DataError, match=message):
        Sessions.from_lists(**given).validate()


def test_bad_shapes_are_named() -> None:
    with pytest.raises(DataError, match=r"row 2, field 'clicks': expected 1 values as in 'document', found 2"):
        Sessions.from_lists(features={"document": [[1], [2]]}, clicks=[[0], [1, 0]])
    with pytest.raises(DataError, match="expected 1 sessions"):
        Sessions.from_lists(features={"document": [[1]]}, clicks=[[0], [1]])
    with pytest.raises(DataError, match="at least one of"):
        Sessions.from_lists()
    s = lists()
    with pytest.raises(DataError, match="padding after"):
        s.replace(mask=np.array([[1, 0, 1], [1, 0, 0], [1, 1, 0]], bool)).validate()
    with pytest.raises(DataError, match=r"field 'query': expected \[B\]"):
        s.replace(query=np.zeros(2, np.int32)).validate()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"clicks": [[0, 0.5]]}, r"row 1, field 'clicks': expected whole numbers that fit int8"),
        ({"clicks": [[0, 1], [0, 257]]}, r"row 2, field 'clicks': expected whole numbers"),
        ({"features": {"document": [[1, 2**40]]}}, r"field 'document': expected whole numbers that fit int32"),
        (
            {"features": {"document": [["a", "b"]]}},
            r"row 1, field 'document': expected numbers, found text such as 'a'",
        ),
        ({"features": {"x": [[[1, 2]], [[1]]]}}, r"row 2, field 'x': expected numbers of shape \[k, 2\]"),
    ],
)
def test_lists_are_never_changed_to_fit(given: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Sessions.from_lists(**given)


def test_rows_of_whole_and_broken_numbers_share_a_type() -> None:
    mixed = Sessions.from_lists(features={"price": [[1, 2], [0.5, 0.7]]})
    np.testing.assert_array_equal(mixed.features["price"], np.array([[1, 2], [0.5, 0.7]], np.float32))


def test_in_memory_batches_hold_each_session_once() -> None:
    source = InMemory(lists())
    for seed in (None, 3):
        batches = list(source.batches(2, seed=seed))
        assert [b.shape for b in batches] == [(2, 3), (2, 3)]
        together = concatenate(batches)
        shown = together.mask.any(1)
        assert sorted(np.asarray(together.query)[shown].tolist()) == [7, 8, 9]
    first, again = (np.concatenate([b.query for b in source.batches(2, seed=5)]) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def full() -> Sessions:
    """Every field, with a vector per impression and a feature that documents share."""
    sessions = lists()
    rng = np.random.default_rng(0)
    features = {
        "document": sessions.features["document"],
        "vector": rng.normal(size=(3, 3, 2)).astype(np.float32),
        "shared": SharedFeature(rng.normal(size=(7, 2)).astype(np.float32), np.asarray(sessions.features["document"])),
    }
    return sessions.replace(features=features, last_click=np.zeros((3, 3), np.int32))


LAYOUT_CHANGES: dict[str, Callable[[Sessions], Sessions]] = {
    "one list": lambda s: s[1],
    "the last list": lambda s: s[-1],
    "one list by a NumPy integer": lambda s: s[np.int64(1)],
    "a slice": lambda s: s[1:],
    "an index": lambda s: s[np.array([2, 0])],
    "a mask": lambda s: s[np.array([True, False, True])],
    "padding of lists": lambda s: s.pad(rows=5),
    "padding of ranks": lambda s: s.pad(width=4),
    "padding of both": lambda s: s.pad(rows=4, width=6),
    "no padding": lambda s: s.pad(rows=1, width=1),
    "unbiased": lambda s: s.unbiased(),
    "validated": lambda s: s.validate(),
    "concatenated": lambda s: concatenate([s, s.pad(width=5)]),
    "a padded slice": lambda s: s[:2].pad(rows=3, width=5),
}


@pytest.mark.parametrize("name", LAYOUT_CHANGES)
def test_every_method_works_in_both_layouts(name: str) -> None:
    change, sessions = LAYOUT_CHANGES[name], full()
    turned = change(sessions.rank_first())
    assert turned.rank_axis == 0
    expected = change(sessions)
    found = turned.list_first()
    assert len(turned) == len(found) == len(expected)
    structure: Any = jax.tree.structure
    assert structure(found) == structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(turned.shown(), expected.shown())
    np.testing.assert_array_equal(turned.row_weights(), expected.row_weights())


def test_layouts_are_not_mixed() -> None:
    with pytest.raises(DataError, match="of one layout"):
        concatenate([full(), full().rank_first()])
    broken = full().replace(clicks=np.full((3, 3), 2, np.int8))
    with pytest.raises(DataError, match="row 1, field 'clicks': expected clicks of 0 or 1"):
        broken.rank_first().validate()
    np.testing.assert_array_equal(InMemory(full().rank_first()).sessions.mask, full().mask)


def test_shared_features_are_picked_padded_and_joined_by_their_index() -> None:
    sessions = full()
    plain = sessions.replace(features={"shared": sessions.features["shared"].whole()})

    def whole(x: Sessions) -> Any:
        feature = x.features["shared"]
        return np.asarray(feature.whole() if isinstance(feature, SharedFeature) else feature)

    np.testing.assert_array_equal(whole(sessions[1:]), whole(plain[1:]))
    shown = np.asarray(sessions.mask)
    np.testing.assert_array_equal(whole(sessions.pad(rows=4, width=5))[:3, :3][shown], whole(plain)[shown])
    joined = concatenate([sessions, sessions[:1]])
    np.testing.assert_array_equal(whole(joined), np.concatenate([whole(plain), whole(plain)[:1]]))


def test_row_weights_are_one_without_weights() -> None:
    np.testing.assert_array_equal(lists().row_weights(), [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(lists().replace(weight=None).row_weights(), np.ones(3))
    weights = lists().replace(weight=np.array([2, 0, 0.5], np.float32)).row_weights()
    assert weights.tolist() == [2, 0, 0.5]
    assert weights.dtype == np.float64
    np.testing.assert_array_equal(lists().pad(rows=5).shown(), [True, True, True, False, False])
