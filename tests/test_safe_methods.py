"""The safe methods by name: in `ultr train`, in studies, and from a saved model."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import Ultr

import ultr as package
from ultr import baselines, simulate
from ultr.data import ClickLog, collapse
from ultr.evaluation import per_query
from ultr.study import ModelConfig, NuisanceEstimates, build_model, read_study
from ultr.study.prepared import JudgedLists
from ultr.training import load

pytestmark = pytest.mark.usefixtures("quickly_compiled")
SAFE = ("exposure-crm", "safe-doubly-robust", "prpo")


@pytest.fixture
def log(study_folder: Path, tmp_path: Path) -> ClickLog:
    """A log of a good policy that shows four documents per query."""
    lists = JudgedLists(read_study(study_folder / "study.toml").data)["train"]
    user = simulate.user("pbm", grades=4, ranks=4)
    simulate.clicks(lists, simulate.Policy("oracle", temperature=1.0), user, sessions=600, seed=0,
                    out=tmp_path / "log", ranks=4)  # fmt: skip
    return ClickLog.open(tmp_path / "log")


@pytest.mark.slow
def test_train_makes_safe_rankers(ultr: Ultr, log: ClickLog, tmp_path: Path) -> None:
    options = ("--relevance", "linear", "--propensity", "true", "--epochs", 3, "--json")
    own = ("--delta", 0.5, "--samples", 10, "--metric", "dcg")
    found = ultr("train", log.path, "--out", tmp_path / "run", "--model", "prpo", *own, *options)
    assert found.code == 0, found.err
    shown = len(collapse(log, "query").document)
    assert shown < log.documents
    assert f"of the {log.documents:,} documents" not in found.err  # a tenth of the queries is held out
    assert "how the others are ranked rests on the features that they share with these" in found.err
    assert found.json["config"]["options"] == {"delta": 0.5, "samples": 10, "metric": "dcg"}
    assert len(found.json["history"]) == 3
    model = load(tmp_path / "run" / "model")
    assert isinstance(model, baselines.PolicyGradient)
    assert (model.objective, model.delta, model.samples, model.metric) == ("prpo", 0.5, 10, "dcg")
    assert model.sessions == found.json["sessions"]
    judged = ultr("evaluate", tmp_path / "run", log.path, "--json", "--metrics", "ndcg@4")
    assert judged.code == 0, judged.err
    assert json.loads(judged.out)
    for extra, said in (
        (("--model", "pbm", "--delta", 0.5), "--delta has no effect with --model pbm, only with exposure-crm, safe-"),
        (("--model", "naive", "--samples", 8), "--samples has no effect with --model naive"),
        (("--model", "prpo", "--samples", 7), "expected --samples as an even number, found 7"),
        (("--model", "prpo", "--metric", "rank"), "unknown metric 'rank'; known: clicks, dcg"),
    ):
        refused = ultr("train", log.path, "--out", tmp_path / "bad", *extra)
        assert refused.code == 2
        assert said in refused.err


@pytest.mark.slow
@pytest.mark.parametrize("name", SAFE)
def test_methods_start_at_the_logged_order_and_learn_from_there(name: str, log: ClickLog) -> None:
    nuisance = NuisanceEstimates(log, source="true", truth=log.metadata["truth"])
    model = build_model(ModelConfig(name, "linear"), log, nuisance)
    again = build_model(ModelConfig(name, "linear"), log, nuisance)
    assert model.relevance is not again.relevance  # each trains its own copy of the tower
    lists = collapse(log, "query")
    (batch,) = lists.batches(len(lists)) if len(set(np.diff(lists.offsets) > 4)) == 1 else [next(lists.batches(64))]
    scores = np.where(batch.mask, np.asarray(model.score(batch)), np.nan)
    better = (scores[:, :, None] > scores[:, None, :])[:, *np.triu_indices(scores.shape[1], 1)]
    pairs = batch.mask[:, np.triu_indices(scores.shape[1], 1)[1]]
    assert better[pairs].mean() > 0.7  # lists stand in the logged order
    fitted = package.fit(model, log, seed=0, epochs=5, batch_size=16, progress=False)
    assert np.isfinite([row["loss"] for row in fitted.history]).all()
    before, after = (np.asarray(m.score(batch)) for m in (model, fitted.model))
    assert (before != after).any()


@pytest.mark.slow
def test_a_few_sessions_leave_the_logged_order(study_folder: Path, log: ClickLog) -> None:
    lists = JudgedLists(read_study(study_folder / "study.toml").data)["test"]
    few = log.split({"some": 0.1, "rest": 0.9}, by="session", seed=0)["some"]
    assert len(few) < 100
    nuisance = NuisanceEstimates(few, source="true", truth=log.metadata["truth"], shown=log)
    model = build_model(ModelConfig("prpo", "linear"), few, nuisance)
    assert float(model.limit[...]) == 1.0
    fitted = package.fit(model, few, seed=0, epochs=100, batch_size=16, progress=False)
    one, other = (
        float(np.nanmean(per_query(m, lists, metrics=["ndcg@10"], key=jax.random.key(0))["ndcg@10"]))
        for m in (model, fitted.model)
    )
    assert abs(one - other) < 0.03
