"""Documents that a vocabulary knows have the features of the files that are prepared, as they have its grades."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from narrowing import present
from raw_logs import prepare_collection, prepare_log

from ultr.data import ClickLog
from ultr.errors import DataError
from ultr.ingest import prepare

QUERIES, DEPTH, WIDTH = 4, 5, 3


def letor(path: Path, features: np.ndarray, *, named: bool, width: int = WIDTH, order: Sequence[int] = ()) -> Path:
    """Writes [Q, K, F] features as graded lists, whose queries are 1 to Q and whose documents are d1 to dK."""
    lines = []
    for query, documents in enumerate(features, 1):
        for place in order or range(len(documents)):
            values = " ".join(f"{i}:{value:.8g}" for i, value in enumerate(documents[place][:width].tolist(), 1))
            lines.append(f"{place % 3} qid:{query} {values}" + (f" # docid = d{place + 1}" if named else ""))
    path.write_text("\n".join(lines) + "\n")
    return path


def drawn(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(QUERIES, DEPTH, WIDTH)).round(4).astype(np.float32)


def test_named_documents_have_the_features_of_the_files(tmp_path: Path, ultr: Any) -> None:
    first, second = drawn(0), drawn(1)
    second[0] = first[0]  # one query as it was
    train = letor(tmp_path / "train.txt", first, named=True)
    test = letor(tmp_path / "test.txt", second, named=True, order=range(DEPTH - 1))
    parent = prepare_collection(train, tmp_path / "train", format="letor")
    result = ultr("prepare", test, "--format", "letor", "--vocabulary", tmp_path / "train", "--out", tmp_path / "test")
    assert result.code == 0
    known, others = QUERIES * (DEPTH - 1), (QUERIES - 1) * (DEPTH - 1)
    assert f"warning: {others} of the {known} documents that the vocabulary knows have other features" in result.err
    expected = first.copy()
    expected[:, : DEPTH - 1] = second[:, : DEPTH - 1]  # the last document of each query is the vocabulary's alone
    found = prepare_collection(test, tmp_path / "again", format="letor", vocabulary=parent)
    np.testing.assert_array_equal(present(found.vocabulary.features)[1:], expected.reshape(-1, WIDTH))
    np.testing.assert_array_equal(present(parent.vocabulary.features)[1:], first.reshape(-1, WIDTH))
    assert found.metadata["report"]["known_documents_with_other_features"] == others


@pytest.mark.parametrize("named", [True, False])
def test_the_same_files_again_say_nothing(tmp_path: Path, named: bool) -> None:
    train = letor(tmp_path / "train.txt", drawn(0), named=named)
    parent = prepare_collection(train, tmp_path / "train", format="letor")
    again = prepare_collection(train, tmp_path / "again", format="letor", vocabulary=parent)
    assert again.metadata["report"] == parent.metadata["report"]
    np.testing.assert_array_equal(present(again.features), present(parent.features))


def test_documents_without_a_name_are_not_those_of_a_vocabulary(tmp_path: Path, ultr: Any) -> None:
    first, second = drawn(0), drawn(1)
    second[0] = first[0]
    prepare(letor(tmp_path / "train.txt", first, named=False), tmp_path / "train", format="letor")
    test = letor(tmp_path / "test.txt", second, named=False)
    others = (QUERIES - 1) * DEPTH
    with pytest.raises(DataError, match=f"other features for {others} of the {QUERIES * DEPTH} documents") as caught:
        prepare(test, tmp_path / "test", format="letor", vocabulary=tmp_path / "train")
    assert (caught.value.row, caught.value.field) == (DEPTH + 1, "features")
    assert not (tmp_path / "test").exists()
    result = ultr("prepare", test, "--format", "letor", "--vocabulary", tmp_path / "train", "--out", tmp_path / "test")
    assert result.code == 2
    assert "docid = NAME" in result.err
    assert "without --vocabulary" in result.err
    # Names, or queries of other names, make them documents of their own.
    named = letor(tmp_path / "named.txt", second, named=True)
    made = prepare_collection(named, tmp_path / "named", format="letor", vocabulary=tmp_path / "train")
    expected = np.concatenate([first.reshape(-1, WIDTH), second.reshape(-1, WIDTH)])
    np.testing.assert_array_equal(present(made.vocabulary.features)[1:], expected)
    renamed = tmp_path / "renamed.txt"
    renamed.write_text(test.read_text().replace("qid:", "qid:test-"))
    made = prepare_collection(renamed, tmp_path / "renamed", format="letor", vocabulary=tmp_path / "train")
    np.testing.assert_array_equal(present(made.features), second.reshape(-1, WIDTH))


def test_features_that_the_files_leave_out_are_0_for_known_documents_too(tmp_path: Path) -> None:
    first = drawn(0)
    parent = prepare_collection(letor(tmp_path / "a.txt", first, named=True), tmp_path / "a", format="letor")
    narrow = letor(tmp_path / "b.txt", first, named=True, width=WIDTH - 1)
    found = prepare_collection(narrow, tmp_path / "b", format="letor", vocabulary=parent)
    expected = np.concatenate([first[:, :, :-1], np.zeros_like(first[:, :, -1:])], -1)
    np.testing.assert_array_equal(present(found.features), expected.reshape(-1, WIDTH))
    assert found.metadata["report"]["known_documents_with_other_features"] == QUERIES * DEPTH


@pytest.mark.parametrize("named", [True, False])
def test_files_without_features_take_those_of_the_vocabulary(tmp_path: Path, named: bool) -> None:
    first = drawn(0)
    parent = prepare_collection(letor(tmp_path / "a.txt", first, named=named), tmp_path / "a", format="letor")
    bare = letor(tmp_path / "b.txt", first, named=named, width=0)
    lists = prepare_collection(bare, tmp_path / "b", format="letor", vocabulary=parent)
    rows = "".join(f"s,{query},{'d' * named}{place},{place},{place - 1}\n" for query in (1, 2) for place in (1, 2))
    (tmp_path / "log.csv").write_text("session,query,document,rank,click\n" + rows)
    log = prepare_log(tmp_path / "log.csv", tmp_path / "log", vocabulary=parent)
    for found in (lists, ClickLog.open(log.path)):
        np.testing.assert_array_equal(present(found.vocabulary.features), present(parent.vocabulary.features))
        assert not found.metadata["report"]["warnings"]


def test_documents_of_which_the_vocabulary_has_no_features_get_those_of_the_files(tmp_path: Path) -> None:
    first = drawn(0)
    start = prepare_collection(letor(tmp_path / "a.txt", first[:2], named=True), tmp_path / "a", format="letor")
    bare = letor(tmp_path / "b.txt", first, named=True, width=0)
    middle = prepare_collection(bare, tmp_path / "b", format="letor", vocabulary=start)
    assert middle.metadata["report"]["documents_without_features"] == (QUERIES - 2) * DEPTH
    whole = letor(tmp_path / "c.txt", first, named=True)
    found = prepare_collection(whole, tmp_path / "c", format="letor", vocabulary=middle)
    np.testing.assert_array_equal(present(found.features), first.reshape(-1, WIDTH))
    assert not found.metadata["report"]["warnings"]
