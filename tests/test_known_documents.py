"""Documents of data with ids of its own are found by name among those that a model was trained with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pytest
from conftest import Ultr
from evaluated import OwnDocumentTable
from narrowing import present
from raw_logs import prepare_log, write

from ultr import baselines, models, towers
from ultr.data import ClickLog, Collection
from ultr.data.known_documents import open_vocabulary
from ultr.data.vocabulary import Vocabulary
from ultr.errors import ConfigError, DataError
from ultr.evaluation import evaluate
from ultr.towers import schema_of
from ultr.training import fit, load, save, solve

pytestmark = pytest.mark.usefixtures("quickly_compiled")
KEY = jax.random.key(0)
CLICKED = {("shoes", "a"), ("hats", "x")}


def rows(lists: list[tuple[str, str]], *, times: int = 20) -> str:
    """Lists of a query with documents, one letter each, that are clicked as `CLICKED` says."""
    out = []
    for session in range(times):
        for number, (query, documents) in enumerate(lists):
            for rank, name in enumerate(documents, 1):
                click = int((query, name) in CLICKED and (session + rank) % 3 > 0)
                out.append(f"s{session}-{number},{query},{name},{rank},{click}\n")
    return "".join(out)


@pytest.fixture
def train(tmp_path: Path) -> ClickLog:
    return prepare_log(write(tmp_path / "train.csv", rows([("shoes", "abce"), ("hats", "xya")])), tmp_path / "train")


@pytest.fixture
def other(tmp_path: Path) -> ClickLog:
    """A log with the documents of `train` in another order, and some more."""
    lists = [("caps", "xa"), ("hats", "zyxa"), ("shoes", "dcab")]
    return prepare_log(write(tmp_path / "other.csv", rows(lists)), tmp_path / "other")


def pbm(log: ClickLog) -> models.PBM:
    return models.PBM(relevance=towers.DocumentTable(log.documents), examination=towers.RankTable(4))


def by_name(model: Any, log: ClickLog) -> dict[tuple[str, str], float]:
    """The score that a model gives to each document that a log shows."""
    queries, names = log.vocabulary.query_names.to_pylist(), log.vocabulary.document_names.to_pylist()
    found: dict[tuple[str, str], float] = {}
    for own, batch in zip(log.batches(16), towers.matched(model, log, name="log").batches(16), strict=True):
        scores = np.asarray(model.score(batch))
        for ids, row, shown in zip(own.features["document"], scores, np.asarray(own.mask), strict=True):
            for i, score in zip(ids[shown].tolist(), row[shown].tolist(), strict=True):
                found[queries[log.vocabulary.document_query[i]], names[i - 1]] = score
    return found


@pytest.mark.parametrize("how", ["solve", "fit", "own table"])
def test_a_document_has_the_score_of_its_name(how: str, train: ClickLog, other: ClickLog) -> None:
    if how == "solve":
        model = solve(pbm(train), train).model
    elif how == "fit":
        model = fit(pbm(train), train, epochs=3, batch_size=16, seed=0).model
    else:
        own = models.PBM(relevance=OwnDocumentTable(train.documents), examination=towers.RankTable(4))
        model = fit(own, train, epochs=3, batch_size=16, seed=0).model
    before, after = by_name(model, train), by_name(model, other)
    shared = before.keys() & after.keys()
    assert len(shared) == 6
    assert {pair: after[pair] for pair in shared} == {pair: before[pair] for pair in shared}
    assert len({after[pair] for pair in after.keys() - shared}) == 1  # the unknown ones share a score
    assert len({before[pair] for pair in shared}) > 1


def test_ids_by_name_are_those_of_a_dictionary() -> None:
    rng = np.random.default_rng(0)

    def vocabulary(pairs: list[tuple[str, str]]) -> Vocabulary:
        queries = sorted({query for query, _ in pairs}, key=lambda q: rng.random())
        documents = {
            "query": pa.array([queries.index(query) for query, _ in pairs], pa.int32()),
            "document": [document for _, document in pairs],
        }
        return Vocabulary.from_tables(pa.table({"query": queries}), pa.table(documents))

    every = [(f"q{i}", f"d{j}") for i in range(12) for j in range(15)]
    for sizes in ((100, 80), (1, 100), (100, 1), (180, 180)):
        one, two = ([every[i] for i in rng.permutation(len(every))[:size]] for size in sizes)
        expected = [0, *(two.index(pair) + 1 if pair in two else 0 for pair in one)]
        assert vocabulary(one).ids_in(vocabulary(two)).tolist() == expected


def test_the_names_are_found_where_the_log_was(train: ClickLog, other: ClickLog, tmp_path: Path) -> None:
    model = solve(pbm(train), train).model
    expected = {name: e.value for name, e in evaluate(model, other, key=KEY).items()}
    save(model, tmp_path / "model")
    kept = json.loads((tmp_path / "model" / "meta.json").read_text())["inputs"]["documents"]
    assert kept == {"identity": train.vocabulary.identity, "path": str(train.path)}  # and no names
    again = load(tmp_path / "model")
    assert {name: e.value for name, e in evaluate(again, other, key=KEY).items()} == expected
    shutil.move(train.path, tmp_path / "moved")
    with pytest.raises(DataError, match=r"other document ids .*names of the training data are not in .*train any more"):
        evaluate(load(tmp_path / "model"), other, key=KEY)
    for place in (tmp_path / "moved", ClickLog.open(tmp_path / "moved")):
        again = load(tmp_path / "model", vocabulary=place)
        assert {name: e.value for name, e in evaluate(again, other, key=KEY).items()} == expected
    with pytest.raises(DataError, match="expected the documents that the model was trained with"):
        load(tmp_path / "model", vocabulary=other)
    with pytest.raises(DataError, match="expected"):
        load(tmp_path / "model", vocabulary=tmp_path / "nowhere")


def test_a_model_that_knows_its_documents_by_fingerprint_alone_needs_the_log(
    ultr: Ultr, train: ClickLog, other: ClickLog, tmp_path: Path
) -> None:
    # As earlier versions saved it.
    save(pbm(train), tmp_path / "model", extra={"vocabulary": train.vocabulary.identity})
    found = ultr("evaluate", tmp_path / "model", other.path)
    assert found.code == 2
    assert "other document ids" in found.err
    assert "does not know where the training data is: say where (--vocabulary LOG" in found.err
    assert ultr("evaluate", tmp_path / "model", train.path).code == 0
    assert ultr("evaluate", tmp_path / "model", other.path, "--vocabulary", train.path).code == 0


def test_nothing_in_common_is_refused(train: ClickLog, tmp_path: Path) -> None:
    model = solve(pbm(train), train).model
    strange = prepare_log(write(tmp_path / "s.csv", rows([("socks", "abc")])), tmp_path / "strange")
    with pytest.raises(DataError, match=r"other document ids .*No query and document of it has a name"):
        evaluate(model, strange, key=KEY)


def test_an_extended_vocabulary_keeps_the_ids(train: ClickLog, tmp_path: Path) -> None:
    model = solve(pbm(train), train).model
    more = write(tmp_path / "more.csv", rows([("hats", "zyxa"), ("shoes", "cab")]))
    log = prepare_log(more, tmp_path / "more", vocabulary=train)
    assert towers.input_match(model, log, name="log") is None
    with pytest.raises(DataError, match=r"expected ids up to 7 in DocumentTable, found 8.*vocabulary="):
        evaluate(model, log, key=KEY)
    evaluate(model, ClickLog.open(log.path, vocabulary=train), key=KEY)


def test_training_goes_on_with_the_documents_of_the_first_log(train: ClickLog, other: ClickLog) -> None:
    first = fit(pbm(train), train, epochs=1, batch_size=16, seed=0).model
    second = fit(first, other, epochs=1, batch_size=16, seed=0).model
    assert present(present(schema_of(second)).documents).shared(present(train.input_schema.documents)) is not None
    assert by_name(second, train).keys() == by_name(first, train).keys()


def test_displays_are_those_of_the_documents_of_their_log(train: ClickLog, other: ClickLog) -> None:
    displays = baselines.Displays.of(train)
    ranker = baselines.PolicyAware(
        relevance=towers.DocumentTable(train.documents), propensity=[1, 0.5, 0.4, 0.3], displays=displays
    )
    data = towers.matched(ranker, other, name="log")
    for own, batch in zip(other.batches(16), data.batches(16), strict=True):
        ids = other.vocabulary.ids_in(train.vocabulary)
        np.testing.assert_array_equal(batch.features["document"], ids[own.features["document"]])
    assert towers.matched(ranker, train, name="log") is train


def test_parts_with_unrelated_documents_do_not_join(train: ClickLog, other: ClickLog) -> None:
    first, second = solve(pbm(train), train).model, solve(pbm(other), other).model
    mixed = models.PBM(relevance=towers.Sum([first.relevance, second.relevance]), examination=first.examination)
    with pytest.raises(ConfigError, match="unrelated document ids"):
        evaluate(mixed, train, key=KEY)


def test_commands_say_how_many_were_found(ultr: Ultr, train: ClickLog, other: ClickLog, tmp_path: Path) -> None:
    options = ("--model", "pbm", "--relevance", "table", "--solver", "em", "--epochs", "5", "--valid-fraction", "0")
    assert ultr("train", train.path, "--out", tmp_path / "run", *options).code == 0
    found = ultr("evaluate", tmp_path / "run", other.path, "--json")
    assert found.code == 0, found.err
    assert found.json["documents"] == {"found_by_name": 6, "unknown": 4}
    assert "6 documents found by name in the vocabulary of the training data" in found.err
    assert "documents" not in ultr("evaluate", tmp_path / "run", train.path, "--json").json
    shutil.move(train.path, tmp_path / "moved")
    gone = ultr("evaluate", tmp_path / "run", other.path)
    assert gone.code == 2
    assert "other document ids" in gone.err
    assert "--vocabulary" in gone.err
    again = ultr("evaluate", tmp_path / "run", other.path, "--vocabulary", tmp_path / "moved", "--json")
    assert again.json == found.json


def test_a_log_that_judges_epochs_may_have_ids_of_its_own(
    ultr: Ultr, train: ClickLog, other: ClickLog, tmp_path: Path
) -> None:
    options = ("--model", "pbm", "--relevance", "table", "--solver", "em", "--epochs", "2", "--json")
    made = ultr("train", train.path, "--out", tmp_path / "run", "--valid", other.path, *options)
    assert made.code == 0, made.err
    assert made.json["validation_sessions"] == len(other)
    assert "validation data: the data has document ids of its own: 6 documents found by name" in made.err
    collection = Collection.from_arrays(query=[0], label=[1.0])
    collection.save(tmp_path / "collection")
    wrong = ultr("train", train.path, "--out", tmp_path / "run2", "--valid", tmp_path / "collection", *options)
    assert wrong.code == 2
    assert "expected a click log, found a collection" in wrong.err


@pytest.mark.slow
def test_a_comparison_finds_documents_by_name(ultr: Ultr, tmp_path: Path) -> None:
    many = prepare_log(write(tmp_path / "many.csv", rows([("shoes", "abce"), ("hats", "xya")] * 20)), tmp_path / "many")
    pairs = [("hats", "z", 0), ("hats", "x", 2), ("shoes", "b", 0), ("shoes", "a", 2), ("shoes", "c", 1)]
    query, document, label = zip(*pairs, strict=True)
    Collection.from_arrays(query=list(query), document=document, label=label).save(tmp_path / "test")
    Collection.from_arrays(query=["socks"] * 2, document=["a", "b"], label=[0, 1]).save(tmp_path / "strange")
    for name in ("test", "strange"):
        (tmp_path / f"{name}.toml").write_text(f"""
            seeds = [0]
            metrics = ["ndcg@3"]
            data = {{test = "{name}"}}
            defaults = {{epochs = 2, relevance = "table"}}
            log = [{{name = "log", path = "{many.path}"}}]
            method = [{{model = "pbm"}}]
        """)
        assert ultr("compare", tmp_path / f"{name}.toml", "--out", tmp_path / f"out-{name}").code == 0
    (found,), (strange,) = (
        [json.loads(path.read_text()) for path in (tmp_path / f"out-{name}" / "cells").rglob("*.json")]
        for name in ("test", "strange")
    )
    assert found["metrics"]["ndcg@3"] == 1.0  # the clicked documents are those with grade 2
    by_name = "4 documents of the test lists are in the vocabulary of its log by name; the other 1 have one score"
    assert by_name in found["notes"]
    assert "a table of documents knows only those of its log" in strange["error"]


def test_a_vocabulary_is_opened_wherever_it_is(train: ClickLog) -> None:
    assert open_vocabulary(train.path).identity == train.vocabulary.identity


@pytest.mark.parametrize("test_size", [3, 4])
def test_documents_without_names_are_not_found_by_their_places(ultr: Ultr, tmp_path: Path, test_size: int) -> None:
    """Queries 1 to 4 of two files are of other documents, which LETOR numbers within their query alike."""
    rng = np.random.default_rng(0)
    folders = {}
    for name, size in (("train", 3), ("test", test_size)):
        lines = [f"{rng.integers(3)} qid:{q} 1:{rng.normal():.4f}" for q in range(1, 5) for _ in range(size)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
        folders[name] = tmp_path / name
        made = ultr("prepare", tmp_path / f"{name}.txt", "--format", "letor", "--out", folders[name], "--json")
        assert made.json["report"]["documents_named_by_place"] == 4 * size
    log = tmp_path / "log"
    assert ultr("simulate", folders["train"], "--out", log, "--sessions", "200", "--model", "pbm").code == 0
    options = ("--relevance", "table", "--epochs", "1")
    assert ultr("train", log, "--out", tmp_path / "run", *options).code == 0
    said = ultr("evaluate", tmp_path / "run", folders["test"], "--metrics", "ndcg@3")
    assert said.code == 2
    assert "others than those of the training data stand at their places" in said.err
    again = ultr("prepare", tmp_path / "train.txt", "--format", "letor", "--out", tmp_path / "again")
    assert again.code == 0
    same = ultr("evaluate", tmp_path / "run", tmp_path / "again", "--metrics", "ndcg@3")  # the same documents
    assert same.code == 0, same.err
    trained = ClickLog.open(log).vocabulary
    assert trained.fingerprint == Collection.open(folders["train"]).vocabulary.fingerprint
    assert trained.named_by_place
