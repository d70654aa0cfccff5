"""Graded collections: from arrays, from a log, saved and read again, streamed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from narrowing import present
from stored import PER_QUERY, QUERIES, make_rows, write_log

from ultr.data import Collection, open_data, write_collection
from ultr.errors import ConfigError, DataError
from ultr.ingest.preparing import prepare


def small_collection() -> Collection:
    return Collection.from_arrays(
        query=["b", "a", "b", "c", "b"],
        label=[2, 0, 1, 4, 3],
        features=np.arange(10.0).reshape(5, 2),
        document=["b1", "a1", "b2", "c1", "b3"],
        feature_names=["left", "right"],
    )


def test_a_collection_groups_documents_by_query() -> None:
    found = small_collection()
    assert found.query_names.to_pylist() == ["b", "a", "c"]  # as they come
    assert found.query.tolist() == [0, 1, 2]
    assert found.offsets.tolist() == [0, 3, 4, 5]
    assert found.document_names.to_pylist() == ["b1", "b2", "b3", "a1", "c1"]
    assert found.document.tolist() == [1, 3, 5, 2, 4]
    assert found.labels.tolist() == [2, 1, 3, 0, 4]
    assert found.features is not None
    assert found.features.tolist() == [[0, 1], [4, 5], [8, 9], [2, 3], [6, 7]]
    assert (len(found), found.queries, found.documents) == (3, 3, 5)


def test_integer_queries_and_document_ids_are_kept() -> None:
    found = Collection.from_arrays(query=np.array([4, 2, 4]), label=[1.0, 2.0, 3.0], ids=[3, 2, 1])
    assert found.query.tolist() == [2, 4]
    assert found.document.tolist() == [2, 1, 3]
    assert found.labels.tolist() == [2.0, 3.0, 1.0]
    assert found.features is None
    assert found.queries == 5


@pytest.mark.parametrize("seed", [None, 0])
def test_a_collection_streams_every_list_once(seed: int | None) -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 12, 60)
    query = np.repeat(np.arange(60), sizes)
    total = len(query)
    source = Collection.from_arrays(query=query, label=np.arange(total) / 16, features=np.arange(1, total + 1)[:, None])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    seen = []
    for batch in source.batches(8, seed=seed):
        batch.validate()
        assert len(batch) == 8
        assert batch.clicks is None
        for b in np.flatnonzero(batch.mask[:, 0]):
            q = int(present(batch.query)[b])
            k = int(batch.mask[b].sum())
            own = np.arange(starts[q], starts[q + 1])
            seen.append(q)
            assert present(batch.labels)[b, :k].tolist() == (own / 16).tolist()
            assert batch.features["document"][b, :k].tolist() == (own + 1).tolist()
            assert batch.features["features"][b, :k, 0].tolist() == (own + 1).tolist()
            assert batch.position[b, :k].tolist() == list(range(k))
            assert (present(batch.labels)[b, k:] == 0).all()
            assert (batch.features["features"][b, k:] == 0).all()
            assert (batch.features["document"][b, k:] == 0).all()
    assert sorted(seen) == list(range(60))
    assert {batch.shape[1] for batch in source.batches(8)} == {1, 2, 4, 8, 11}


def test_the_seed_decides_the_order_of_a_collection() -> None:
    source = Collection.from_arrays(query=np.arange(40), label=np.zeros(40))
    first, again, other, stored = (
        np.concatenate([b.query for b in source.batches(10, seed=seed)]).tolist() for seed in (1, 1, 2, None)
    )
    assert first == again != other
    assert stored == list(range(40)) != first


def test_a_saved_collection_comes_back(tmp_path: Path) -> None:
    made = small_collection()
    made.save(tmp_path / "collection")
    again = open_data(tmp_path / "collection")
    assert isinstance(again, Collection)
    for name in ("offsets", "query", "document", "labels", "features"):
        np.testing.assert_array_equal(getattr(again, name), getattr(made, name))
    assert again.document_names == made.document_names
    assert again.vocabulary.feature_names == ("left", "right")
    assert again.vocabulary.fingerprint == made.vocabulary.fingerprint
    assert again.metadata["labels"] == [0.0, 4.0]
    with pytest.raises(DataError, match="already stands here"):
        made.save(tmp_path / "collection")
    made.save(tmp_path / "collection", overwrite=True)


def test_a_selection_keeps_ids(tmp_path: Path) -> None:
    whole = small_collection()
    for queries in ([2, 0], np.array([True, False, True]), slice(0, None, 2)):
        part = whole.select(queries)
        expected = {0: [2.0, 1.0, 3.0], 2: [4.0]}
        assert {
            int(q): part.labels[a:b].tolist()
            for q, a, b in zip(part.query, part.offsets[:-1], part.offsets[1:], strict=True)
        } == expected
        assert sorted(part.document.tolist()) == [1, 3, 4, 5]
    part.save(tmp_path / "part")
    again = Collection.open(tmp_path / "part", vocabulary=whole)
    assert again.document.tolist() == part.document.tolist()
    assert again.query_names.to_pylist() == ["b", "c"]
    empty = whole.select([])
    assert len(empty) == 0
    assert list(empty.batches(4)) == []


def test_a_collection_is_split_by_query() -> None:
    source = Collection.from_arrays(query=np.repeat(np.arange(50), 2), label=np.arange(100) % 5)
    parts = source.split({"train": 0.6, "test": 0.4}, seed=0)
    assert sorted(parts["train"].query.tolist() + parts["test"].query.tolist()) == list(range(50))
    assert all(len(part) > 0 for part in parts.values())
    with pytest.raises(ConfigError, match="split by='query', found 'time'"):
        source.split({"a": 1.0}, by="time", seed=0)


def test_a_log_gives_the_documents_with_grades(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", make_rows(5))
    found = log.collection()
    assert found is not None
    ids = np.array([i for i in range(1, len(QUERIES) * PER_QUERY + 1) if i % 3])
    assert found.document.tolist() == ids.tolist()
    assert found.labels.tolist() == (ids % 5).tolist()
    assert found.features is not None
    assert found.features.tolist() == np.stack([ids, -ids], 1).tolist()
    assert found.query.tolist() == list(range(len(QUERIES)))


def test_collections_have_named_splits(tmp_path: Path) -> None:
    made = small_collection()
    queries, documents = made.vocabulary.tables()
    write_collection(
        tmp_path / "c",
        queries=queries,
        documents=documents,
        features=["left", "right"],
        splits=pa.array(["train", "test", None]),
        report={"rows": 5},
    )
    train = Collection.open(tmp_path / "c", split="train")
    assert train.query_names.to_pylist() == ["b"]
    assert train.metadata["splits"] == {"train": 1, "test": 1}
    assert train.metadata["report"] == {"rows": 5}
    assert len(Collection.open(tmp_path / "c")) == 3
    with pytest.raises(DataError, match=r"expected one of the splits \['test', 'train'\], found 'valid'"):
        Collection.open(tmp_path / "c", split="valid")
    with pytest.raises(DataError, match="expected graded documents, found none"):
        write_collection(tmp_path / "d", queries=queries, documents=documents.drop_columns(["label", "features"]))
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": []}, r"field 'query': expected \[D\] query ids or names"),
        ({"query": [0, -1, 0]}, r"row 2, field 'query': expected whole numbers from 0"),
        ({"label": [0, 1]}, r"field 'label': expected shape \(3,\), found \(2,\)"),
        ({"label": [0, 1, math.nan]}, r"row 3, field 'label': expected finite grades"),
        ({"label": [0, 1, "high"]}, r"field 'label': expected numbers"),
        ({"features": np.zeros(3)}, r"field 'features': expected shape"),
        ({"features": [[0.0], [math.inf], [0.0]]}, r"row 2, field 'features\[0\]': expected finite numbers, found inf"),
        ({"ids": [1, 2, 4]}, r"field 'ids': expected every id of 1 to 3 once"),
        ({"document": ["a"]}, r"field 'document': expected 3 names, found 1"),
        ({"feature_names": ["a"]}, r"field 'feature_names': expected 0 names, found 1"),
    ],
)
def test_arrays_that_do_not_fit_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Collection.from_arrays(**({"query": [0, 0, 1], "label": [0, 1, 2]} | change))


def test_the_identity_tells_collections_and_parts_apart(tmp_path: Path) -> None:
    def made(last: float = 2.0, weight: float = 1.0) -> Collection:
        features = [[0.0], [1.0], [2.0], [weight]]
        return Collection.from_arrays(query=["a", "a", "b", "c"], label=[0.0, 1.0, 1.0, last], features=features)

    whole = made()
    assert made().identity == whole.identity
    whole.save(tmp_path / "whole")
    made().save(tmp_path / "same")
    made(last=3.0).save(tmp_path / "other")
    opened = Collection.open(tmp_path / "whole")
    assert Collection.open(tmp_path / "same").identity == opened.identity
    parts = [opened.select([0, 1]), opened.select([1, 0]), opened.select([2]), whole.select([0, 1])]
    distinct = [whole, made(last=3.0), made(weight=5.0), opened, Collection.open(tmp_path / "other"), *parts]
    assert len({json.dumps(x.identity) for x in distinct}) == len(distinct)
    assert opened.select(slice(None)).identity == opened.identity
    assert opened.select(np.array([True, True, False])).identity == parts[0].identity


def test_a_split_of_a_collection_is_its_identity(tmp_path: Path) -> None:
    (tmp_path / "grades").write_text("".join(f"q{i} 0 d {i % 3}\n" for i in range(30)))
    whole = prepare(tmp_path / "grades", tmp_path / "c", format="qrels", split={"train": 0.5, "test": 0.5})
    train = Collection.open(tmp_path / "c", split="train")
    assert train.identity == whole.identity | {"split": "train"}
    assert len(train) == whole.metadata["splits"]["train"]
    assert Collection.open(tmp_path / "c", split="test").identity != train.identity


def test_a_collection_without_splits_says_so(tmp_path: Path) -> None:
    Collection.from_arrays(query=[0], label=[1.0]).save(tmp_path / "c")
    with pytest.raises(DataError, match="prepared without splits, so that there is no 'test'"):
        Collection.open(tmp_path / "c", split="test")
