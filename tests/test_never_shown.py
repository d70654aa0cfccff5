"""Ranking metrics of what training never showed, and of judged documents that tell nothing of a ranker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pytest
from conftest import Ultr
from flax import nnx

from ultr import baselines, models, towers
from ultr.data import ClickLog, Collection, LogWriter
from ultr.data.document_set import DocumentSet
from ultr.errors import CheckpointError, DataError
from ultr.evaluation import Estimates, evaluate
from ultr.towers import shown_documents
from ultr.training import fit, load, save, solve

pytestmark = pytest.mark.usefixtures("quickly_compiled")
KEY = jax.random.key(0)
QUERIES, PER_QUERY = 6, 4
TABLE = ("--relevance", "table", "--model", "pbm", "--epochs", "2")


def write_log(path: Path, *, by: str) -> ClickLog:
    """Sessions that show the first three of the four documents of each query; split by query, or by session."""
    rows = []
    for session in range(60):
        query = session % QUERIES
        test = query >= 4 if by == "query" else session // QUERIES % 3 == 0
        ids = [query * PER_QUERY + 1 + (session // QUERIES + k) % 3 for k in range(3)]
        clicks = [int((i - 1) % PER_QUERY == 0 and session % 4 > 0) for i in ids]
        rows.append({"session": f"s{session}", "query": query, "documents": ids, "ranks": [1, 2, 3], "clicks": clicks})
        rows[-1]["split"] = "test" if test else "train"
    documents = pa.table(
        {
            "query": pa.array(np.repeat(np.arange(QUERIES), PER_QUERY), pa.int32()),
            "document": [f"d{i}" for i in range(QUERIES * PER_QUERY)],
            "label": pa.array([2.0, 1.0, 0.0, 0.0] * QUERIES, pa.float32()),
        }
    )
    with LogWriter(path, queries=pa.array([f"q{i}" for i in range(QUERIES)]), documents=documents) as out:
        out.write(pa.Table.from_pylist(rows))
    return ClickLog.open(path)


def pbm(log: ClickLog) -> models.PBM:
    return models.PBM(relevance=towers.DocumentTable(log.documents), examination=towers.RankTable(3))


def train(how: str, log: ClickLog) -> Any:
    if how == "solve":
        return solve(pbm(log), log, iterations=3).model
    if how == "rank and document":
        relevance = towers.RankDocumentTable(log.documents, ranks=3)
        return solve(models.RDCTR(tower=relevance), log, iterations=3).model
    if how == "shrunk":
        return solve(baselines.ShrunkCTR(documents=log.documents, ranks=3), log, method="counting", prior=1.0).model
    return fit(pbm(log), log, epochs=2, batch_size=8, seed=0, collapse=how == "fit counts" and "auto").model


@pytest.mark.parametrize("how", ["solve", "rank and document", "shrunk", "fit", "fit counts"])
def test_metrics_of_documents_that_training_never_showed_are_withheld(how: str, tmp_path: Path) -> None:
    path = write_log(tmp_path / "log", by="query").path
    model = train(how, ClickLog.open(path, split="train"))
    save(model, tmp_path / "model")
    for known in (model, load(tmp_path / "model")):
        shown = shown_documents(known)
        assert shown is not None
        assert np.flatnonzero(shown.inside()).tolist() == [i for i in range(1, 17) if i % 4]
        with pytest.raises(DataError, match="'mrr' cannot be computed: training showed none of the 8 judged documents"):
            evaluate(known, ClickLog.open(path, split="test"), metrics=["mrr"], key=KEY)
        found = evaluate(known, ClickLog.open(path), metrics=["mrr"], key=KEY)
        assert found.judged is not None
        assert (found.judged.documents, found.judged.never_shown) == (24, 12)
        (note,) = found.notes
        assert "training never showed 12 of the 24 judged documents (50.0%)" in note
        assert "--split-by session or time, or train a network over features" in note


def test_click_metrics_are_computed_all_the_same(tmp_path: Path) -> None:
    path = write_log(tmp_path / "log", by="query").path
    model = train("solve", ClickLog.open(path, split="train"))
    found = evaluate(model, ClickLog.open(path, split="test"), key=KEY)
    assert "perplexity" in found
    assert "mrr" not in found
    assert "training showed none of the 8" in found.not_computed["ranking"]


def test_a_model_that_reads_features_as_well_has_an_opinion() -> None:
    lists = Collection.from_arrays(query=[0, 0], label=[0.0, 1.0], features=[[0.0], [1.0]])
    both = towers.Sum([towers.DocumentTable(2), towers.Linear(1, rngs=nnx.Rngs(0))])
    found = evaluate(baselines.NaivePointwise(relevance=both), lists, metrics=["mrr"], key=KEY)
    assert found.notes == []


def test_an_old_model_says_that_it_does_not_know(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", by="session")
    save(train("solve", log), tmp_path / "model")
    file = tmp_path / "model" / "meta.json"
    meta = json.loads(file.read_text())
    assert meta.pop("shown_documents")
    file.write_text(json.dumps(meta))
    found = evaluate(load(tmp_path / "model"), log, metrics=["mrr"], key=KEY)
    assert "does not say which documents its training showed" in found.notes[0]
    assert "0 of the 24 judged documents (0.0%) are not in its vocabulary" in found.notes[0]
    file.write_text(json.dumps(meta | {"shown_documents": "24:AAAA"}))
    with pytest.raises(CheckpointError, match="expected a set of documents"):
        load(tmp_path / "model")


def test_training_goes_on_beside_what_was_shown_before(tmp_path: Path) -> None:
    path = write_log(tmp_path / "log", by="query").path
    first = train("fit", ClickLog.open(path, split="train"))
    again = fit(first, ClickLog.open(path, split="test"), epochs=1, batch_size=8, seed=0).model
    shown = shown_documents(again)
    assert shown is not None
    assert np.flatnonzero(shown.inside()).tolist() == [i for i in range(1, 25) if i % 4]


def test_commands_say_what_training_never_showed(ultr: Ultr, tmp_path: Path) -> None:
    for by in ("query", "session"):
        log, run = write_log(tmp_path / f"log-{by}", by=by).path, tmp_path / f"run-{by}"
        made = ultr("train", log, "--out", run, *TABLE, "--valid-fraction", "0")
        assert made.code == 0, made.err
        assert ("the split test has no query that is trained on" in made.err) == (by == "query")
        found = ultr("evaluate", run, log, "--split", "test", "--json")
        assert found.code == 0, found.err
        if by == "query":
            assert "ndcg@10" not in found.json
            assert any("training showed none of the 8 judged documents" in note for note in found.json["notes"])
        else:
            assert found.json["judged"] == {"documents": 24, "never_shown": 6}
            assert "training never showed 6 of the 24 judged documents (25.0%)" in found.json["notes"][0]
        assert f"note: {found.json['notes'][0]}" in found.err
    only = ultr("evaluate", tmp_path / "run-query", tmp_path / "log-query", "--split", "test", "--metrics", "ndcg@10")
    assert only.code == 2
    assert "training showed none of the 8 judged documents" in only.err


def judged_by(labels: list[list[float]]) -> Estimates:
    query = np.repeat(np.arange(len(labels)), [len(grades) for grades in labels])
    lists = Collection.from_arrays(query=query, label=np.concatenate(labels), features=np.ones((len(query), 1)))
    ranker = baselines.NaivePointwise(relevance=towers.Linear(1, rngs=nnx.Rngs(0)))
    return evaluate(ranker, lists, metrics=["ndcg@5"], key=KEY)


def test_one_grade_in_most_lists_is_told() -> None:
    (note,) = judged_by([[1, 1, 1], [2, 2], [1, 0], [0, 0]]).notes
    assert "in 2 of the 3 lists with a relevant document, all judged documents have one grade" in note
    assert "write 0" in note
    assert judged_by([[1, 1, 1], [2, 0], [1, 0], [0, 0]]).notes == []


def test_candidates_that_leave_queries_out_or_grade_otherwise_are_told(ultr: Ultr, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", by="session")
    assert ultr("train", log.path, "--out", tmp_path / "run", *TABLE, "--valid-fraction", "0").code == 0
    file = tmp_path / "candidates.csv"
    file.write_text("query,document,label\nq0,d0,2\nq0,d1,0\nq0,d2,-1\nq3,d12,1\n")
    found = ultr("evaluate", tmp_path / "run", log.path, "--metrics", "mrr", "--candidates", file, "--json")
    assert found.code == 0, found.err
    assert found.json["candidates"] == {"queries": 6, "without_candidates": 4, "contradictions": 2}
    assert "note: 4 of the 6 judged queries" in found.err
    assert "the first of them 'q1'" in found.err
    assert "note: 2 candidates have another grade" in found.err
    assert "document 'd1' of query 'q0' (0, there 1): the grades of the candidates are used" in found.err
    file.write_text("query,document,label\n" + "".join(f"q{i // 4},d{i},{[2, 1, 0, 0][i % 4]}\n" for i in range(24)))
    whole = ultr("evaluate", tmp_path / "run", log.path, "--metrics", "mrr", "--candidates", file, "--json")
    assert whole.json["candidates"] == {"queries": 6, "without_candidates": 0, "contradictions": 0}


def test_a_set_of_documents_is_read_back() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 7, 8, 9, 1000):
        inside = rng.random(size) < 0.3
        found = DocumentSet.from_text(DocumentSet.of(inside).to_text())
        inside[0] = False
        assert found.inside().tolist() == inside.tolist()
        assert found.holds(np.array([0, size - 1, size + 5])).tolist() == [False, inside[-1], False]
