"""A curve relative to rank 1 has values only at ranks that training showed, and none where it never showed rank 1."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from ultr import baselines, fit, models, solve, towers
from ultr.data import ClickLog, collapse
from ultr.ingest import prepare
from ultr.sessions import Sessions, concatenate
from ultr.towers import withheld_ranks
from ultr.training import load

pytestmark = pytest.mark.usefixtures("quickly_compiled")
EXAMINATION = np.array([1.0, 0.5, 0.25])


def sessions(first: int = 0, count: int = 600) -> Sessions:
    """Lists of three documents at positions from `first` on, with clicks of a PBM."""
    rng = np.random.default_rng(3)
    relevance = rng.uniform(0.2, 0.9, 10)
    shown = np.array([rng.permutation(10)[:3] for _ in range(count)])
    clicks = rng.random((count, 3)) < EXAMINATION * relevance[shown]
    positions = np.tile(np.arange(first, first + 3), (count, 1))
    return Sessions.from_lists(features={"document": shown + 1}, clicks=clicks.astype(int), positions=positions)


def pbm(ranks: int) -> models.PBM:
    return models.PBM(relevance=towers.DocumentTable(10), examination=towers.RankTable(ranks))


def trained(model: Any, data: Any, how: str, **options: Any) -> Any:
    if how == "solve":
        return solve(model, data).model
    return fit(model, data, epochs=2, batch_size=64, seed=0, progress=False, **options).model


@pytest.mark.parametrize("how", ["fit", "solve"])
def test_ranks_that_training_showed_have_the_same_values_as_in_a_table_of_their_size(how):
    small, large = trained(pbm(3), sessions(), how), trained(pbm(6), sessions(), how)
    np.testing.assert_allclose(large.propensity(6)[:3], small.propensity(3), rtol=0.02)
    assert np.isnan(large.propensity(6)[3:]).all()
    assert np.isnan(small.propensity(5)[3:]).all()
    assert withheld_ranks(large, 5) == dict.fromkeys((4, 5), "never shown in training")
    assert withheld_ranks(small, 5) == dict.fromkeys((4, 5), "beyond the model's table of 3 ranks")
    assert withheld_ranks(small, 3) == {}


@pytest.mark.parametrize("how", ["fit", "solve"])
def test_without_rank_1_there_is_no_curve_and_the_reason_is_said(how, tmp_path):
    model = trained(pbm(10), sessions(first=1), how)
    assert np.isnan(model.propensity(5)).all()
    reasons = withheld_ranks(model, 5)
    assert {r for r, text in reasons.items() if "rank 1 (position 0) was never shown" in text} == {2, 3, 4}
    assert {r for r, text in reasons.items() if text == "never shown in training"} == {1, 5}


def test_a_saved_model_and_an_untrained_one(tmp_path):
    trained(pbm(10), sessions(first=1), "fit", directory=tmp_path / "run")
    assert np.isnan(load(tmp_path / "run" / "model").propensity(3)).all()
    assert np.isfinite(pbm(10).propensity(10)).all()
    file = tmp_path / "run" / "model" / "meta.json"
    old = json.loads(file.read_text())
    for name in ("shown_ranks", "clicked_ranks"):
        del old["model"]["examination"][name]  # as versions before it was noted saved it
    file.write_text(json.dumps(old))
    assert np.isfinite(load(tmp_path / "run" / "model").propensity(3)).all()


def test_training_goes_on_from_what_was_shown_before_and_a_resumed_run_remembers(tmp_path):
    first = trained(pbm(4), sessions(), "fit")
    both = trained(first, sessions(first=1), "fit")
    assert np.isfinite(both.propensity(4)).all()
    trained(pbm(10), sessions(), "fit", directory=tmp_path / "run")
    again = trained(pbm(10), sessions(), "fit", directory=tmp_path / "run", resume=True)
    assert np.isnan(again.propensity(4)).tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    "make",
    [
        lambda: baselines.DLA(relevance=towers.DocumentTable(10), examination=towers.RankTable(10)),
        lambda: baselines.RegressionEM(relevance=towers.DocumentTable(10), examination=towers.RankTable(10)),
        lambda: baselines.PairDebias(relevance=towers.DocumentTable(10), ranks=10),
        lambda: baselines.AdditiveListwise(relevance=towers.DocumentTable(10), examination=towers.RankTable(10)),
    ],
)
def test_every_learnt_curve_is_withheld_alike(make):
    assert np.isnan(trained(make(), sessions(first=1), "fit").propensity(4)).all()
    found = trained(make(), sessions(), "fit").propensity(4)
    assert np.isnan(found).tolist() == [False, False, False, True]


def test_given_propensities_are_not_a_matter_of_what_was_shown():
    given = towers.examination_of([1.0, 0.5, 0.3, 0.2])
    model = trained(models.PBM(relevance=towers.DocumentTable(10), examination=given), sessions(first=1), "fit")
    np.testing.assert_allclose(model.propensity(4), [1.0, 0.5, 0.3, 0.2], rtol=1e-4)


def test_sessions_of_weight_zero_show_nothing(tmp_path):
    weighted = sessions().replace(weight=np.zeros(600, np.float32))
    last = sessions(first=1).replace(weight=np.ones(600, np.float32))
    for how in ("fit", "solve"):
        assert np.isnan(trained(pbm(10), concatenate([weighted, last]), how).propensity(3)).all()


@pytest.mark.slow
def test_the_command_says_why_there_is_no_curve(ultr, tmp_path):
    rows = [f"{s},q,d{(s + r) % 5},{r},{int((s * r) % 3 == 0)}" for s in range(200) for r in (2, 3, 4)]
    (tmp_path / "clicks.csv").write_text("session,query,document,rank,click\n" + "\n".join(rows) + "\n")
    prepare(tmp_path / "clicks.csv", tmp_path / "log")
    for solver, data in (("gradient", "log"), ("em", "log")):
        run = tmp_path / f"run-{solver}"
        options = ("--solver", solver, "--epochs", 2, "--relevance", "table")
        done = ultr("train", tmp_path / data, "--out", run, *options)
        assert done.code == 0, done.err
        assert "propensity by rank, relative to rank 1: - - - -" in done.out
        assert "rank 1: never shown in training" in done.out
        assert "ranks 2-4: rank 1 (position 0) was never shown in training" in done.out
        stored = json.loads((run / "run.json").read_text())
        assert stored["propensity"] == [None] * 4
        assert set(stored["unsupported"]) == {"1", "2", "3", "4"}


def test_counts_show_the_ranks_of_their_cells(tmp_path):
    rows = [f"{s},q,d{(s + r) % 5},{r},{int((s * r) % 3 == 0)}" for s in range(200) for r in (2, 3, 4)]
    (tmp_path / "clicks.csv").write_text("session,query,document,rank,click\n" + "\n".join(rows) + "\n")
    log = prepare(tmp_path / "clicks.csv", tmp_path / "log")
    assert isinstance(log, ClickLog)
    model = models.PBM(relevance=towers.DocumentTable(5), examination=towers.RankTable(4))
    for data in (log, collapse(log, "rank")):
        assert np.isnan(trained(model, data, "fit").propensity(4)).all()


def test_where_everything_was_clicked_there_is_no_curve(ultr, tmp_path):
    rows = [f"{s},q,d{(s + r) % 5},{r},1" for s in range(60) for r in (1, 2, 3)]
    (tmp_path / "clicks.csv").write_text("session,query,document,rank,click\n" + "\n".join(rows) + "\n")
    prepare(tmp_path / "clicks.csv", tmp_path / "log")
    done = ultr("train", tmp_path / "log", "--out", tmp_path / "run", "--solver", "em", "--epochs", 2)
    assert done.code == 0, done.err
    assert "note: every impression was clicked" in done.err
    assert "relative to rank 1: - - -" in done.out
    stored = json.loads((tmp_path / "run" / "run.json").read_text())
    assert stored["propensity"] == [None] * 3
    assert set(stored["unsupported"]) == {"1", "2", "3"}
