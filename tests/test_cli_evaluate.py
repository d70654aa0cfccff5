"""What `ultr evaluate` adds to its table on demand, against the functions behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import pyarrow as pa
import pytest
from stored import QUERIES, documents_table, make_rows, plain, write_log

from ultr import baselines, models, towers
from ultr.data import ClickLog
from ultr.evaluation import by_frequency, calibration, per_query
from ultr.training import save


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ClickLog, Any]:
    """A model on disk, its log, and the model."""
    folder = tmp_path_factory.mktemp("evaluate")
    log = write_log(folder / "log", plain(make_rows(120)), documents=documents_table())
    model = models.PBM(relevance=towers.DocumentTable(log.documents), examination=towers.RankTable(log.ranks))
    save(model, folder / "run", extra={"vocabulary": log.vocabulary.identity})
    return folder / "run", log, model


@pytest.mark.slow
def test_calibration_and_frequency_are_those_of_the_functions(ultr, trained):
    run, log, model = trained
    options = ("--metrics", "ndcg@5,log_likelihood", "--calibration", "--by-frequency", log.path)
    result = ultr("evaluate", run, log.path, "--json", *options)
    assert result.code == 0, result.err
    found = result.json
    assert set(found) == {"ndcg@5", "log_likelihood", "calibration", "by_frequency", "judged", "notes"}
    pairs = zip(found["calibration"]["by_rank"]["bins"], calibration(model, log).by_rank.to_json()["bins"], strict=True)
    assert all(a == pytest.approx(b) for a, b in pairs)
    each = per_query(model, log, metrics=["ndcg@5"], key=jax.random.key(0))
    expected = by_frequency(each["query"], each["ndcg@5"], log, bounds=(0.0, 1.0))
    assert found["by_frequency"]["ndcg@5"] == [bucket.to_json() for bucket in expected]
    code, out, _ = ultr("evaluate", run, log.path, *options)
    assert code == 0
    assert "calibration by rank" in out
    assert "is expected by chance" in out
    assert "ndcg@5 by frequency of the query" in out
    assert "head" in out


def test_frequency_in_a_log_of_other_ids_is_an_error(ultr, trained, tmp_path):
    run, log, _ = trained
    other = write_log(tmp_path / "other", plain(make_rows(20)), queries=pa.array([f"another {q}" for q in QUERIES]))
    code, _, err = ultr("evaluate", run, log.path, "--metrics", "ndcg@5", "--by-frequency", other.path)
    assert code == 2
    assert "other document ids" in err


@pytest.mark.parametrize("metrics", [(), ("--metrics", "ndcg@5")])
def test_calibration_of_grades_is_an_error_before_any_work(ultr, trained, tmp_path, monkeypatch, metrics):
    run, log, _ = trained
    log.collection().save(tmp_path / "collection")
    monkeypatch.setattr("ultr.evaluation.evaluate", lambda *_, **__: pytest.fail("metrics were computed"))
    code, _, err = ultr("evaluate", run, tmp_path / "collection", "--calibration", *metrics)
    assert code == 2
    assert "needs a click log and a click model, found a graded collection. Give a click log" in err


def test_calibration_of_a_ranker_is_an_error_before_any_work(ultr, trained, tmp_path, monkeypatch):
    _, log, _ = trained
    ranker = baselines.NaivePointwise(relevance=towers.DocumentTable(log.documents))
    save(ranker, tmp_path / "run", extra={"vocabulary": log.vocabulary.identity})
    monkeypatch.setattr("ultr.evaluation.evaluate", lambda *_, **__: pytest.fail("metrics were computed"))
    code, _, err = ultr("evaluate", tmp_path / "run", log.path, "--calibration")
    assert code == 2
    assert "needs a click log and a click model, found NaivePointwise, which predicts no clicks. Give a run" in err


@pytest.mark.parametrize("by_rank", [True, False])
def test_conditional_perplexities_that_say_nothing_more_are_one_line(ultr, trained, tmp_path, by_rank):
    run, log, _ = trained
    if not by_rank:  # the chance of a click depends on those above
        model = models.DCM(relevance=towers.DocumentTable(log.documents), continuation=towers.RankTable(log.ranks))
        save(model, tmp_path / "run", extra={"vocabulary": log.vocabulary.identity})
        run = tmp_path / "run"
    metrics = ("--metrics", "perplexity,perplexity/rank,conditional_perplexity,conditional_perplexity/rank")
    code, out, err = ultr("evaluate", run, log.path, *metrics)
    assert code == 0, err
    assert ("conditional_perplexity is perplexity, at every rank" in out) == by_rank
    assert ("conditional_perplexity/rank-2 " in out) != by_rank
    assert "\nperplexity/rank-2 " in out
    assert "conditional_perplexity/rank-2" in ultr("evaluate", run, log.path, *metrics, "--json").json
    alone = ultr("evaluate", run, log.path, "--metrics", "conditional_perplexity").out
    assert "conditional_perplexity  " in alone
