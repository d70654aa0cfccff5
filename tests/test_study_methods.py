"""What methods make of one log: reasons where they cannot, boosted trees, choices without test grades."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import Ultr
from studies import study_text

from ultr import simulate
from ultr.data import ClickLog
from ultr.evaluation import per_query
from ultr.ingest.preparing import prepare
from ultr.study import METHODS, NuisanceEstimates, read_study, run_study
from ultr.study.boosting import TreeRanker, judge_by_grades, package_version, rows_of_clicks
from ultr.study.prepared import JudgedLists, PreparedLog, count_shared
from ultr.study.runs import StoredRuns, study_runs
from ultr.study.steps import training_steps
from ultr.training.schedule import STEPS_PER_EPOCH

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.mark.parametrize("metric", ["mrr@10", "ndcg@1"])
def test_grades_choose_by_the_metric_that_is_asked_for(study_folder: Path, metric: str) -> None:
    lists = JudgedLists(read_study(study_folder / "study.toml").data)["vali"]
    assert lists.features is not None
    predict = lambda x, n: x[:, 0]  # noqa: E731
    ranker = TreeRanker(predict, 10, lists.features.shape[1])
    both = per_query(ranker, lists, metrics=["mrr@10", "ndcg@1"], key=jax.random.key(0))
    expected = {name: float(np.nanmean(values)) for name, values in both.items()}
    assert expected["mrr@10"] != expected["ndcg@1"]
    assert judge_by_grades(lists, metric=metric, seed=0)(predict, 10) == (expected[metric], 10)


def test_an_epoch_of_a_small_log_has_a_hundred_steps(study_folder: Path) -> None:
    study = read_study(study_folder / "study.toml")
    lists = JudgedLists(study.data)["train"]
    method = dataclasses.replace(study.methods[2], batch_size=4, epochs=2, patience=3)
    steps = training_steps(method, len(lists))
    assert STEPS_PER_EPOCH == 100
    assert (steps.epochs, steps.patience) == (2 * 25, 3 * 25)  # of 15 lists in 4 steps each


def one_run(study_folder: Path, out: Path, method: str, log: str = "") -> dict[str, Any]:
    """Makes the only run of a study with one method on one log, and returns its facts."""
    head, tail = study_text().split("[[log]]")[0], tail_of(log)
    head = head.replace('baseline = "naive"\nreference = "full-information"\n', "").replace("[0, 1]", "[0]")
    text = f"{head}{tail}[defaults]\nrelevance = 'linear'\nepochs = 1\n[[method]]\n{method}"
    (study_folder / "one.toml").write_text(text.replace('"ndcg@10", "mrr@10"', '"ndcg@10"'))
    study = read_study(study_folder / "one.toml")
    run_study(study, out)
    (run,) = study_runs(study)
    found = StoredRuns(out).read(run)
    assert found is not None
    return found


def tail_of(log: str) -> str:
    return (
        f'[[log]]\nname = "log"\n{log}\n'
        if log.startswith("path")
        else f'[[log]]\nname = "log"\nsessions = 500\n{log}\n'
    )


@pytest.mark.slow
def test_a_log_without_variation_of_ranks_is_told_unidentified(study_folder: Path, tmp_path: Path) -> None:
    fixed = 'policy = "oracle"\ntemperature = 0.0'
    found = one_run(study_folder, tmp_path / "ips", "model = 'ips-listwise'", fixed)
    assert found["error"].startswith("unidentified: the conditional-likelihood of this log gives ranks")
    assert "metrics" not in found
    known = one_run(study_folder, tmp_path / "true", "model = 'ips-listwise'\npropensity = 'true'", fixed)
    assert known["metrics"]["ndcg@10"] > 0
    learnt = one_run(study_folder, tmp_path / "pbm", "model = 'pbm'", fixed)
    assert any("does not identify examination" in note for note in learnt["notes"])


def test_a_log_of_one_rank_is_told_so(study_folder: Path, tmp_path: Path) -> None:
    found = one_run(study_folder, tmp_path, "model = 'pbm'", "ranks = 1")
    assert any("does not identify examination" in note for note in found["notes"])
    assert found["propensity_error"] is None


def test_a_log_without_clicks_gives_no_number(study_folder: Path, tmp_path: Path) -> None:
    lists = JudgedLists(read_study(study_folder / "study.toml").data)["train"]
    user: Any = simulate.user("gctr", grades=4, ranks=4)
    user.tower.value[...] = jax.numpy.float32(-40)
    simulate.clicks(lists, simulate.Policy("random"), user, sessions=200, seed=0, out=tmp_path / "log", ranks=4)
    assert ClickLog.open(tmp_path / "log").metadata["clicks"] == 0
    for model in ("naive", "pbm", "lightgbm"):
        found = one_run(study_folder, tmp_path / model, f"model = '{model}'", f'path = "{tmp_path / "log"}"')
        assert found["error"] == "expected clicks to learn from, found none in 200 sessions"


@pytest.mark.parametrize(
    ("curve", "said"),
    [
        ([1.0, 0.5, 0.0, 0.25], "found none at rank 3"),
        ([1.0, 0.5, None, None], "found none at ranks 3-4"),
        ([1.0, 0.5], "expected propensities of 4 ranks, which the log shows, found 2"),
        ("nothing", "expected what `ultr propensity --json` writes"),
    ],
)
def test_propensities_that_cannot_be_used(study_folder: Path, tmp_path: Path, curve: Any, said: str) -> None:
    rows = [{"rank": k, "propensity": x} for k, x in enumerate(curve, 1)] if isinstance(curve, list) else curve
    (tmp_path / "curve.json").write_text(json.dumps({"propensities": [{"ranks": rows}]}))
    method = f"model = 'ips-listwise'\npropensity = '{tmp_path / 'curve.json'}'"
    found = one_run(study_folder, tmp_path / "out", method, "ranks = 4")
    assert said in found["error"]


def test_the_logger_of_a_real_log_is_not_known(study_folder: Path, tmp_path: Path) -> None:
    lists = JudgedLists(read_study(study_folder / "study.toml").data)["train"]
    simulate.clicks(lists, simulate.Policy("random"), simulate.user("pbm", grades=4, ranks=4), sessions=200, seed=0,
                    out=tmp_path / "log", ranks=4)  # fmt: skip
    found = one_run(study_folder, tmp_path / "out", "model = 'logger'", f'path = "{tmp_path / "log"}"')
    assert "is not known" in found["error"]
    found = one_run(study_folder, tmp_path / "naive", "model = 'naive'", f'path = "{tmp_path / "log"}"')
    assert found["metrics"]["ndcg@10"] > 0


def test_an_absent_package_says_how_to_install_it(
    study_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("lightgbm", "xgboost"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises ImportError
    assert package_version(METHODS["xgboost-unbiased"]) is None
    found = one_run(study_folder, tmp_path, "model = 'lightgbm-position'", "temperature = 1.0")
    assert found["error"] == "lightgbm is not installed: pip install 'ultr[peers]' (or lightgbm)"


@pytest.mark.parametrize("model", ["lightgbm", "lightgbm-position", "xgboost", "xgboost-unbiased", "lightgbm-labels"])
def test_boosted_trees_learn_and_choose_their_rounds(study_folder: Path, tmp_path: Path, model: str) -> None:
    pytest.importorskip(model.split("-")[0])
    found = one_run(
        study_folder, tmp_path, f"model = '{model}'\nrounds = 30\ngrid = {{leaves = [2, 8]}}", "temperature = 2.0"
    )
    assert "error" not in found
    assert found["chosen"]["rounds"] in (10, 20, 30)
    assert found["metrics"]["ndcg@10"] > 0.6
    again = one_run(
        study_folder, tmp_path / "b", f"model = '{model}'\nrounds = 30\ngrid = {{leaves = [2, 8]}}", "temperature = 2.0"
    )
    assert again["metrics"] == found["metrics"]


def test_rows_of_trees_stand_in_displayed_order(study_folder: Path, tmp_path: Path) -> None:
    study = read_study(study_folder / "study.toml")
    log = PreparedLog(study.logs[0], seed=0, lists=JudgedLists(study.data), shares=(0.3, 0.1), work=tmp_path)
    rows = rows_of_clicks(log, max_rows=10**6, seed=0)
    assert rows.left_out == 0
    part = log.part("train", "query")
    table = part.vocabulary.features
    assert table is not None
    expected: list[Any] = []
    for batch in part.columns(["documents", "ranks", "clicks"]):
        for documents, ranks, clicks in zip(*(batch[n].to_pylist() for n in batch.schema.names), strict=True):
            if 0 < sum(clicks) < len(clicks):
                expected.append((documents, ranks, clicks))
    np.testing.assert_array_equal(rows.sizes, [len(e[0]) for e in expected])
    np.testing.assert_array_equal(rows.x, table[np.concatenate([e[0] for e in expected])])
    np.testing.assert_array_equal(rows.position + 1, np.concatenate([e[1] for e in expected]))
    np.testing.assert_array_equal(rows.y, np.concatenate([e[2] for e in expected]))
    some = rows_of_clicks(log, max_rows=100, seed=0)
    assert len(some.y) <= 104
    assert some.left_out == pytest.approx(1 - len(some.sizes) / len(rows.sizes))


def test_the_queries_of_a_log_are_known_by_name(study_folder: Path, tmp_path: Path) -> None:
    study = read_study(study_folder / "study.toml")
    lists = JudgedLists(study.data)
    log = PreparedLog(study.logs[0], seed=0, lists=lists, shares=(0.3, 0.1), work=tmp_path)
    assert count_shared(log.query_names, lists["train"].query_names) == 15
    assert count_shared(log.query_names, lists["test"].query_names) == 0


@pytest.mark.slow
def test_affine_estimates_find_trust(study_folder: Path, tmp_path: Path) -> None:
    lists = JudgedLists(read_study(study_folder / "study.toml").data)["train"]
    user = simulate.user("trust", grades=4, ranks=4)
    log = simulate.clicks(
        lists, simulate.Policy("random"), user, sessions=60_000, seed=0, out=tmp_path / "log", ranks=4
    )
    truth = log.metadata["truth"]
    alpha, beta = NuisanceEstimates(log, source="true", truth=truth).affine
    np.testing.assert_allclose(alpha, truth["trust"]["alpha"])
    np.testing.assert_allclose(beta, truth["trust"]["beta"])
    found, _ = NuisanceEstimates(log).affine
    # The scale of relevance is not identified: alpha is known up to a factor.
    np.testing.assert_allclose(found / found[0], alpha / alpha[0], rtol=0.1)


@pytest.mark.slow
def test_train_takes_propensities_and_says_when_it_estimates_them(
    ultr: Ultr, study_folder: Path, tmp_path: Path
) -> None:
    lists = JudgedLists(read_study(study_folder / "study.toml").data)["train"]
    log = tmp_path / "log"
    simulate.clicks(lists, simulate.Policy("random"), simulate.user("pbm", grades=4, ranks=4), sessions=600, seed=0,
                    out=log, ranks=4)  # fmt: skip
    options = ("--epochs", 1, "--relevance", "linear", "--json")
    found = ultr("train", log, "--out", tmp_path / "a", "--model", "ips-listwise", *options)
    assert found.code == 0, found.err
    assert "examination is estimated on the training sessions by the conditional likelihood" in found.err
    curve = ultr("propensity", log, "--json")
    (tmp_path / "curve.json").write_text(curve.out)
    for number, source in enumerate(("true", "all-pairs", tmp_path / "curve.json")):
        weights = ("--propensity", source, "--clip", 3)
        found = ultr("train", log, "--out", tmp_path / f"run{number}", "--model", "ips-listwise", *weights, *options)
        assert found.code == 0, found.err
        assert "estimated" not in found.err
        given = found.json["config"]
        assert len(given["propensity"]["by_rank"]) == 4
        assert given["options"] == {"clip": 3.0}
    curve_of = [row["propensity"] for row in json.loads(curve.out)["propensities"][0]["ranks"]]
    np.testing.assert_allclose(given["propensity"]["by_rank"], curve_of)
    for extra, said in (
        (("--model", "pbm", "--propensity", "true"), "--propensity has no effect with --model pbm"),
        (("--model", "naive", "--clip", 2), "--clip has no effect with --model naive"),
        (("--model", "prs", "--propensity", "treu"), "unknown propensity 'treu' (did you mean 'true'?)"),
        (("--model", "prs", "--propensity", tmp_path / "no.json"), "no such file"),
    ):
        found = ultr("train", log, "--out", tmp_path / "bad", *extra)
        assert found.code == 2
        assert said in found.err


def test_methods_are_judged_on_lists_that_were_prepared_apart(tmp_path: Path) -> None:
    """Whatever ranks by features finds them by name: the ids of documents are those of each folder alone."""
    packages = [p for p in ("lightgbm", "xgboost") if importlib.util.find_spec(p)]
    rng = np.random.default_rng(0)
    for first, role in zip((0, 100, 200), ("train", "vali", "test"), strict=True):
        rows = [(query, rng.normal(size=2)) for query in range(first, first + 15) for _ in range(6)]
        lines = [f"{2 if x[0] > 0.5 else 0} qid:{query} 1:{x[0]:.4f} 2:{x[1]:.4f}" for query, x in rows]
        (tmp_path / f"{role}.txt").write_text("\n".join(lines))
        prepare([tmp_path / f"{role}.txt"], tmp_path / role, format="letor")
    models = ["logger", "random", "naive", "pbm", "full-information", *packages, *(f"{p}-labels" for p in packages)]
    (tmp_path / "study.toml").write_text(
        'seeds = [0]\nmetrics = ["ndcg@10"]\n[data]\ntrain = "train"\nvali = "vali"\ntest = "test"\n'
        '[[log]]\nname = "log"\nuser = "pbm"\npolicy = "linear"\nsessions = 500\n'
        '[defaults]\nrelevance = "linear"\nepochs = 1\n' + "".join(f"[[method]]\nmodel = '{m}'\n" for m in models)
    )
    study = read_study(tmp_path / "study.toml")
    run_study(study, tmp_path / "out")
    found = {run.method.name: StoredRuns(tmp_path / "out").read(run) for run in study_runs(study)}
    assert {name: (facts or {}).get("error") for name, facts in found.items()} == dict.fromkeys(models)
