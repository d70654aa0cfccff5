"""Run and qrels files give the numbers of `evaluate`: to ir_measures where it is installed, and to a reader here."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from pathlib import Path

import jax
import numpy as np
import pytest
from stored import documents_table, make_rows, plain, write_log

from ultr.data import Collection
from ultr.errors import ConfigError, DataError
from ultr.evaluation import evaluate, per_query, write_qrels, write_run
from ultr.sessions import Sessions

KEY = jax.random.key(3)


class ByFeature:
    def score(self, sessions: Sessions):
        return np.asarray(sessions.features["features"])[:, :, 0]


def collection(scores, *, queries: int = 30, seed: int = 0, **options) -> Collection:
    """Lists of 1 to 15 documents with grades of 0 to 4; `scores(rng, n)` gives the one feature."""
    rng = np.random.default_rng(seed)
    query = np.repeat(np.arange(queries), rng.integers(1, 16, queries))
    label = rng.integers(0, 5, len(query)) * rng.integers(0, 2, len(query))
    feature = scores(rng, len(query)).astype(np.float32)[:, None]
    shuffled = rng.permutation(len(query))
    columns = {"query": query, "label": label, "features": feature}
    columns = {name: x[shuffled] for name, x in columns.items()}
    columns["query"] = np.array([f"q{q}" for q in columns["query"]])
    return Collection.from_arrays(**columns | options)


SCORES = {
    "distinct": lambda rng, n: rng.permutation(n) / 7,
    "with ties": lambda rng, n: rng.integers(0, 3, n),
    "all equal": lambda rng, n: np.zeros(n),
    "next to each other": lambda rng, n: np.float32(1e9) + 64 * rng.permutation(n),
}


def read_run(path: Path) -> dict[str, list[str]]:
    """Query -> documents as trec_eval has them: by score as float32, equal ones by descending name."""
    found = defaultdict(list)
    for line in path.read_text().splitlines():
        query, q0, document, rank, score, _ = line.split()
        assert q0 == "Q0"
        found[query].append((np.float32(score), document, int(rank)))
    for query, rows in found.items():
        assert [rank for *_, rank in rows] == list(range(1, len(rows) + 1)), query
        assert all(a[0] > b[0] for a, b in itertools.pairwise(rows)), query
    return {query: [d for _, d, _ in sorted(rows, reverse=True)] for query, rows in found.items()}


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for line in path.read_text().splitlines():
        query, _, document, grade = line.split()
        found[query][document] = int(grade)
    return found


def ndcg(documents: list[str], grades: dict[str, int], k: int) -> float:
    def dcg(ys):
        return sum((2**y - 1) / math.log2(r + 2) for r, y in enumerate(ys[:k]))

    return dcg([grades[d] for d in documents]) / dcg(sorted(grades.values(), reverse=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", SCORES)
def test_files_read_back_give_the_same_ndcg(tmp_path, kind):
    data = collection(SCORES[kind])
    write_run(tmp_path / "run", ByFeature(), data, name="mine", key=KEY, batch_size=7)
    write_qrels(tmp_path / "qrels", data)
    run, grades = read_run(tmp_path / "run"), read_qrels(tmp_path / "qrels")
    found = per_query(ByFeature(), data, metrics=["ndcg@10"], key=KEY)
    names = data.vocabulary.query_names.to_pylist()
    expected = {names[q]: v for q, v in zip(found["query"], found["ndcg@10"], strict=True) if not np.isnan(v)}
    assert {q: ndcg(run[q], grades[q], 10) for q in grades} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", SCORES)
def test_ir_measures_gives_the_same_numbers(tmp_path, kind):
    ir_measures = pytest.importorskip("ir_measures")
    data = collection(SCORES[kind], seed=1)
    write_run(tmp_path / "run", ByFeature(), data, name="mine", key=KEY)
    write_qrels(tmp_path / "qrels", data)
    exact = ir_measures.nDCG(gains={y: 2**y - 1 for y in range(5)}) @ 10
    wanted = {exact: "ndcg@10", ir_measures.RR @ 10: "mrr@10", ir_measures.AP: "map"}
    qrels = list(ir_measures.read_trec_qrels(str(tmp_path / "qrels")))
    run = list(ir_measures.read_trec_run(str(tmp_path / "run")))
    found = ir_measures.calc_aggregate(list(wanted), qrels, run)
    ours = evaluate(ByFeature(), data, metrics=list(wanted.values()), key=KEY)
    for measure, name in wanted.items():
        assert found[measure] == pytest.approx(ours[name].value, rel=1e-5), name


def test_scores_are_those_of_the_model_where_they_tell_documents_apart(tmp_path):
    data = Collection.from_arrays(
        query=["a", "a", "a", "b", "b", "b"], label=[1, 0, 2, 1, 0, 0], document=list("uvwxyz")
    )
    write_run(tmp_path / "run", np.array([0.1, 0.3, -2.5, 0.5, 1 / 3, 0.5]), data, name="n", key=KEY)
    lines = (tmp_path / "run").read_text().splitlines()
    assert lines[:3] == ["a Q0 v 1 0.3 n", "a Q0 u 2 0.1 n", "a Q0 w 3 -2.5 n"]
    ties = [line.split() for line in lines[3:]]
    assert {row[2] for row in ties[:2]} == {"x", "z"}
    assert [row[2:5] for row in ties][2] == ["y", "3", "0"]
    assert [row[4] for row in ties] == ["2", "1", "0"]


def test_scores_too_large_for_float32_are_replaced(tmp_path):
    data = Collection.from_arrays(query=["a"] * 3, label=[1, 0, 2])
    write_run(tmp_path / "run", np.array([1e300, 1.0, -1e300]), data, name="n", key=KEY)
    assert [line.split()[4] for line in (tmp_path / "run").read_text().splitlines()] == ["2", "1", "0"]


def test_order_of_ties_is_random_and_that_of_the_key(tmp_path):
    data = collection(SCORES["all equal"])
    texts = []
    for key, size in ((KEY, 4), (KEY, 100), (jax.random.key(4), 4)):
        write_run(tmp_path / "run", ByFeature(), data, name="n", key=key, batch_size=size)
        texts.append((tmp_path / "run").read_text())
    assert texts[0] == texts[1] != texts[2]


def test_a_log_gives_the_judged_documents_of_the_queries_that_it_shows(tmp_path):
    rows = [row for row in make_rows(20) if row["query"] in (1, 4)]
    log = write_log(tmp_path / "log", plain(rows), documents=documents_table())
    write_run(tmp_path / "run", ByFeature(), log, name="n", key=KEY)
    write_qrels(tmp_path / "qrels", log)
    run, grades = read_run(tmp_path / "run"), read_qrels(tmp_path / "qrels")
    assert set(run) == set(grades) == {"query%201", "query%204"}  # white space is no part of a name
    assert run["query%201"][0] == "url%2040"  # the largest id that is no multiple of 3, written as 40
    found = evaluate(ByFeature(), log, metrics=["ndcg@5"], key=KEY)["ndcg@5"].value
    assert np.mean([ndcg(run[q], grades[q], 5) for q in grades]) == pytest.approx(found, rel=1e-5)


def test_queries_without_a_relevant_document_are_left_out_or_written(tmp_path):
    data = Collection.from_arrays(query=["a", "a", "b", "b"], label=[0, -1, 3, 0], document=list("wxyz"))
    write_qrels(tmp_path / "skip", data)
    write_qrels(tmp_path / "zero", data, empty_queries="zero")
    assert (tmp_path / "skip").read_text() == "b 0 y 3\nb 0 z 0\n"
    assert (tmp_path / "zero").read_text() == "a 0 w 0\na 0 x 0\nb 0 y 3\nb 0 z 0\n"


def test_what_cannot_be_written_says_why_and_leaves_nothing(tmp_path):
    data = Collection.from_arrays(query=["a", "a"], label=[0.5, 1], document=["u v", "u%20v"])
    run = tmp_path / "run"
    for bad in ("", "two words"):
        with pytest.raises(ConfigError, match="without white space"):
            write_run(run, np.zeros(2), data, name=bad, key=KEY)
    with pytest.raises(ConfigError, match=r"expected a model with score\(sessions\), or scores \[D\] = \(2,\)"):
        write_run(run, np.zeros(3), data, name="n", key=KEY)
    with pytest.raises(DataError, match="found 1 that are NaN"):
        write_run(run, np.array([np.nan, 1]), data, name="n", key=KEY)
    with pytest.raises(DataError, match="two names of a document are the same"):
        write_run(run, np.zeros(2), data, name="n", key=KEY)
    with pytest.raises(DataError, match=r"whole numbers, found 0\.5"):
        write_qrels(run, data)
    with pytest.raises(ConfigError, match="unknown empty_queries"):
        write_qrels(run, data, empty_queries="one")
    nothing = Collection.from_arrays(query=["a", "a"], label=[0, 0])
    with pytest.raises(DataError, match="a grade of 1 or more"):
        write_qrels(run, nothing)
    log = write_log(tmp_path / "log", plain(make_rows(5)), documents=documents_table(labels=False))
    with pytest.raises(DataError, match="graded documents, found none"):
        write_qrels(run, log)
    assert not run.exists()
