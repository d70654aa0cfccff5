"""Judged documents with features of their own, for logs whose features are per impression."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Ultr
from named_logs import DOCUMENTS, GRADES, PER_QUERY, VALUES, named_collection, named_log

from ultr import models, towers
from ultr.data import ClickLog
from ultr.errors import DataError
from ultr.evaluation import evaluate, per_query
from ultr.ingest.candidates import read_candidates
from ultr.training import fit, load, save

pytestmark = pytest.mark.usefixtures("quickly_compiled")
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> ClickLog:
    return named_log(tmp_path_factory.mktemp("log") / "log", (), impressions=("price", "stock"))


@pytest.fixture(scope="module")
def model(log: ClickLog) -> Any:
    from flax import nnx

    relevance = towers.Linear(2, rngs=nnx.Rngs(0))
    untrained = models.PBM(relevance=relevance, examination=towers.RankTable(4))
    return fit(untrained, log, epochs=2, batch_size=32, seed=0).model


def table(
    path: Path, *, grades: bool, order: tuple[str, ...] = ("stock", "price"), rows: Any = range(DOCUMENTS)
) -> Path:
    """The documents of the world as CSV."""
    head = ["query", "url", *order, *(["label"] if grades else [])]
    lines = [",".join(head)]
    for i in rows:
        values = [f"q{i // PER_QUERY}", f"d{i}", *(repr(float(VALUES[name][i])) for name in order)]
        lines.append(",".join([*values, *([str(GRADES[i])] if grades else [])]))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_every_metric_that_can_be_computed_is(model: Any, log: ClickLog) -> None:
    found = evaluate(model, log, key=KEY)
    assert {"log_likelihood", "perplexity"} <= set(found)
    assert not any(name.startswith("ndcg") for name in found)
    assert "price, stock of the log are of impressions" in found.not_computed["ranking"]
    assert "--candidates" in found.not_computed["ranking"]
    with pytest.raises(DataError, match="'ndcg@10' cannot be computed: the features price, stock"):
        evaluate(model, log, metrics=["ndcg@10", "perplexity"], key=KEY)


def test_a_model_without_names_says_so_too(model: Any, log: ClickLog, tmp_path: Path) -> None:
    save(model, tmp_path / "model")
    file = tmp_path / "model" / "meta.json"
    meta = json.loads(file.read_text())
    del meta["inputs"]
    file.write_text(json.dumps(meta))
    with pytest.warns(UserWarning, match="without the names"):
        old = load(tmp_path / "model")
    assert "ranking" in evaluate(old, log, key=KEY).not_computed


def test_a_table_needs_no_features_of_candidates(log: ClickLog) -> None:
    by_document = models.PBM(relevance=towers.DocumentTable(log.documents), examination=towers.RankTable(4))
    found = evaluate(by_document, log, key=KEY)
    assert "ndcg@10" in found
    assert not found.not_computed


@pytest.mark.parametrize("grades", [True, False])
def test_candidates_are_ranked_by_their_own_features(model: Any, log: ClickLog, tmp_path: Path, grades: bool) -> None:
    expected = evaluate(model, named_collection(("price", "stock")), metrics=["ndcg@3", "mrr"], key=KEY)
    file = table(tmp_path / "candidates.csv", grades=grades)
    candidates = read_candidates(file, ("price", "stock"), graded_by=log.vocabulary)
    found = evaluate(model, log, key=KEY, candidates=candidates)
    assert not found.not_computed
    assert found["ndcg@3"].value == expected["ndcg@3"].value
    assert found["perplexity"].value == evaluate(model, log, metrics=["perplexity"], key=KEY)["perplexity"].value
    each = per_query(model, log, metrics=["ndcg@3", "log_likelihood"], key=KEY, candidates=candidates)
    assert each["query"].tolist() == list(range(6))
    assert not np.isnan(each["log_likelihood"]).any()


def test_candidates_have_the_query_ids_of_the_log(model: Any, log: ClickLog, tmp_path: Path) -> None:
    backwards = [i for query in reversed(range(6)) for i in range(query * PER_QUERY, (query + 1) * PER_QUERY)]
    straight = read_candidates(table(tmp_path / "a.csv", grades=True), ("price", "stock"))
    turned = read_candidates(table(tmp_path / "b.csv", grades=True, rows=backwards), ("price", "stock"))
    a, b = (per_query(model, log, metrics=["ndcg@3"], key=KEY, candidates=c) for c in (straight, turned))
    np.testing.assert_array_equal(a["query"], b["query"])
    np.testing.assert_array_equal(a["ndcg@3"], b["ndcg@3"])
    some = read_candidates(table(tmp_path / "c.csv", grades=True, rows=range(2 * PER_QUERY)), ("price", "stock"))
    assert evaluate(model, log, metrics=["ndcg@3"], key=KEY, candidates=some)["ndcg@3"].count <= 2


def test_candidates_may_be_parquet(model: Any, log: ClickLog, tmp_path: Path) -> None:
    columns = {
        "query": [f"q{i // PER_QUERY}" for i in range(DOCUMENTS)],
        "document": [f"d{i}" for i in range(DOCUMENTS)],
    }
    pq.write_table(pa.table(columns | {n: VALUES[n] for n in ("stock", "price")}), tmp_path / "c.parquet")
    found = read_candidates(tmp_path / "c.parquet", ("price", "stock"), graded_by=log.vocabulary)
    np.testing.assert_array_equal(found.labels, GRADES)
    np.testing.assert_array_equal(found.features, np.stack([VALUES["price"], VALUES["stock"]], 1))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("query,document,price\nq0,d0,1\n", r"features that the model reads, \['price', 'stock'\], found the columns"),
        ("query,price,stock\nq0,1,1\n", "expected a column for the document"),
        ("query,document,price,stock\nq0,d0,1,1\nq0,d1,nan,1\n", "row 3, field 'price': expected a finite number"),
        ("query,document,price,stock\nq0,d0,1,inf\n", "row 2, field 'stock': expected a finite number"),
        ("query,document,price,stock\nq0,d0,1,1\nq0,d0,1,2\n", "row 3, field 'document': expected each candidate"),
        ("query,document,price,stock\nq0,,1,1\n", "row 2, field 'document': expected the name of a document"),
        ("query,document,price,stock\nq0,nothing,1,1\n", "expected candidates with a grade, found none"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(text: str, error: str, log: ClickLog, tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(DataError, match=error):
        read_candidates(tmp_path / "c.csv", ("price", "stock"), graded_by=log.vocabulary)


def test_candidates_of_other_queries_are_refused(model: Any, log: ClickLog, tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("query,document,price,stock,label\nz,d0,1,1,1\n")
    other = read_candidates(tmp_path / "c.csv", ("price", "stock"))
    with pytest.raises(
        DataError, match=r"expected lists of queries of .*log, such as 'q0', 'q1', 'q2', found none: those here"
    ):
        evaluate(model, log, key=KEY, candidates=other)


def test_the_command_takes_a_table_or_a_collection(ultr: Ultr, log: ClickLog, tmp_path: Path) -> None:
    options = ("--relevance", "linear", "--epochs", "1", "--batch-size", "32")
    assert ultr("train", log.path, "--out", tmp_path / "run", *options).code == 0
    alone = ultr("evaluate", tmp_path / "run", log.path, "--json")
    assert alone.code == 0, alone.err
    assert "note: no ranking metrics: the features price, stock" in alone.err
    assert "ranking" in alone.json["not_computed"]
    assert "perplexity" in alone.json
    asked = ultr("evaluate", tmp_path / "run", log.path, "--metrics", "ndcg@3")
    assert asked.code == 2
    assert "--candidates FILE" in asked.err
    file = table(tmp_path / "candidates.csv", grades=False)
    by_file = ultr("evaluate", tmp_path / "run", log.path, "--candidates", file, "--json").json
    named_collection(("weight", "stock", "price")).save(tmp_path / "collection")
    # The queries of that collection have numbers for names.
    assert ultr("evaluate", tmp_path / "run", log.path, "--candidates", tmp_path / "collection").code == 2
    assert by_file["perplexity"] == alone.json["perplexity"]
    assert by_file["ndcg@3"]["count"] == 6
    assert "not_computed" not in by_file


@pytest.mark.parametrize("own", [False, True])
def test_err_of_candidates_is_on_the_scale_that_is_said(ultr: Ultr, tmp_path: Path, own: bool) -> None:
    """The table may hold a part of the grades only, and the log may have none of its own."""
    whole = named_log(tmp_path / "log", (), impressions=("price", "stock"))
    run, options = tmp_path / "run", ("--relevance", "linear", "--epochs", "1", "--batch-size", "32")
    assert ultr("train", whole.path, "--out", run, *options).code == 0
    file = table(tmp_path / "candidates.csv", grades=own)

    def err(*more: str) -> tuple[float, float, str]:
        made = ultr("evaluate", run, whole.path, "--candidates", file, "--metrics", "err", "--json", *more)
        assert made.code == 0, made.err
        return made.json["err"]["value"], made.json["max_grade"], made.err

    highest = float(GRADES.max())
    value, scale, said = err()
    assert scale == highest
    assert "note: the candidates tell no scale" not in said  # graded on that of the log
    wider, scale, _ = err("--max-grade", str(highest + 3))
    assert scale == highest + 3
    assert wider < value
    low = ultr("evaluate", run, whole.path, "--candidates", file, "--metrics", "err", "--max-grade", "0.5")
    assert low.code == 2
    assert "expected grades of at most 0.5, the highest of the scale" in low.err
    bare = named_log(tmp_path / "bare", (), impressions=("price", "stock"), grades=False)
    made = ultr("evaluate", run, bare.path, "--candidates", file, "--metrics", "err", "--json")
    if own:  # the documented use: grades in the table alone
        assert made.code == 0, made.err
        assert "note: the candidates tell no scale" in made.err
        assert made.json["err"]["value"] == pytest.approx(value)
    else:
        assert made.code == 2
        assert "expected candidates with a grade, found none" in made.err


def test_candidates_keep_the_scale_of_the_log(log: ClickLog, tmp_path: Path) -> None:
    some = [i for i in range(DOCUMENTS) if GRADES[i] < GRADES.max()]
    file = table(tmp_path / "candidates.csv", grades=True, rows=some)
    lists = read_candidates(file, ("price", "stock"), graded_by=log.vocabulary)
    assert np.nanmax(lists.labels) < lists.max_grade == log.vocabulary.max_grade == GRADES.max()
    assert read_candidates(file, ("price", "stock")).max_grade == np.nanmax(lists.labels)


def test_candidates_of_other_queries_are_named_with_both_files(ultr: Ultr, log: ClickLog, tmp_path: Path) -> None:
    by_document = models.PBM(relevance=towers.DocumentTable(log.documents), examination=towers.RankTable(4))
    save(by_document, tmp_path / "run")
    file = tmp_path / "other.csv"
    file.write_text("query,document,label\nx0,d0,1\nx1,d1,0\n")
    found = ultr("evaluate", tmp_path / "run", log.path, "--metrics", "mrr", "--candidates", file)
    assert found.code == 2
    assert f"{file}, field 'query': expected lists of queries of {log.path}, such as 'q0', 'q1', 'q2'" in found.err
    assert "those here are such as 'x0', 'x1'. Name the queries in both files alike" in found.err
