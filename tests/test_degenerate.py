"""Logs that say too little: without a click, with clicks alone, of one rank: an error or a reason, never a number."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from ultr import baselines, collapse, fit, models, solve, towers
from ultr.data import ClickLog
from ultr.errors import DataError
from ultr.identifiability import report
from ultr.ingest import prepare
from ultr.sessions import Sessions
from ultr.towers import withheld_ranks
from ultr.training import load

pytestmark = pytest.mark.usefixtures("quickly_compiled")
SESSIONS, RANKS, DOCUMENTS = 60, 3, 4
Solver = Literal["em", "lbfgs", "counting"]


def sessions(clicked: tuple[float, ...] = (0.9, 0.5, 0.3)) -> Sessions:
    """Lists of three documents, clicked with a probability by rank."""
    rng = np.random.default_rng(0)
    shown = np.array([rng.permutation(DOCUMENTS)[:RANKS] + 1 for _ in range(SESSIONS)])
    clicks = (rng.random((SESSIONS, RANKS)) < np.array(clicked)).astype(int)
    return Sessions.from_lists(features={"document": shown}, clicks=clicks, query=np.arange(SESSIONS) % 6)


def log_of(folder: Path, batch: Sessions) -> ClickLog:
    query, clicks = np.asarray(batch.query), np.asarray(batch.clicks)
    rows = [
        f"{s},q{query[s]},d{batch.features['document'][s, k]},{k + 1},{clicks[s, k]}"
        for s in range(len(batch))
        for k in range(batch.shape[1])
    ]
    (folder / "clicks.csv").write_text("session,query,document,rank,click\n" + "\n".join(rows) + "\n")
    log = prepare(folder / "clicks.csv", folder / "log")
    assert isinstance(log, ClickLog)
    return log


def document() -> towers.DocumentTable:
    return towers.DocumentTable(6 * DOCUMENTS)  # as many as a log of six queries has


MODELS: dict[str, Any] = {
    "pbm": lambda: models.PBM(relevance=document(), examination=towers.RankTable(RANKS)),
    "dbn": lambda: models.DBN(relevance=document(), satisfaction=document(), continuation=towers.Constant(1.0)),
    "ubm": lambda: models.UBM(relevance=document(), examination=towers.LastClickTable(RANKS)),
    "rctr": lambda: models.RCTR(towers.RankTable(RANKS)),
    "dctr": lambda: models.DCTR(document()),
}
BASELINES: dict[str, Any] = {
    "naive": lambda: baselines.NaiveListwise(relevance=document()),
    "dla": lambda: baselines.DLA(relevance=document(), examination=towers.RankTable(RANKS)),
}


@pytest.mark.filterwarnings("ignore:the log has not a single click")
@pytest.mark.parametrize("name", [*MODELS, *BASELINES])
def test_training_refuses_data_without_a_click(name: str, tmp_path: Path) -> None:
    unclicked = sessions((0.0,) * RANKS)
    log = log_of(tmp_path, unclicked)
    sources: list[Any] = [unclicked, log]
    for data in (*sources, *([collapse(log, "rank")] if name in ("pbm", "rctr", "dctr") else [])):
        with pytest.raises(DataError, match="expected clicks to learn from, found none in the training data"):
            fit((MODELS | BASELINES)[name](), data, epochs=1, seed=0, progress=False, directory=tmp_path / "run")
        assert not (tmp_path / "run" / "model").exists()
        if name in MODELS:
            methods: tuple[Solver, ...] = ("em", "lbfgs") if name in ("pbm", "dbn", "ubm") else ("counting",)
            for method in methods:
                with pytest.raises(DataError, match="expected clicks to learn from, found none in the training data"):
                    solve(MODELS[name](), data, method=method, iterations=2)


def test_clicks_that_count_for_nothing_are_none_and_grades_need_none() -> None:
    weightless = sessions((1.0,) * RANKS).replace(weight=np.zeros(SESSIONS, np.float32))
    with pytest.raises(DataError):
        fit(MODELS["pbm"](), weightless, epochs=1, seed=0, progress=False)
    graded = sessions((0.0,) * RANKS).replace(labels=np.tile(np.arange(RANKS, dtype=np.float32), (SESSIONS, 1)))
    ranker = baselines.FullInformation(relevance=document())
    assert fit(ranker, graded, epochs=1, seed=0, progress=False).history[0]["loss"] > 0


@pytest.mark.parametrize("how", ["fit", "em", "lbfgs"])
def test_a_curve_has_no_value_where_nothing_was_clicked(how: Any, tmp_path: Path) -> None:
    def trained(batch: Sessions) -> Any:
        if how == "fit":
            return fit(MODELS["pbm"](), batch, epochs=2, seed=0, progress=False, directory=tmp_path / "run").model
        return solve(MODELS["pbm"](), batch, method=how, iterations=5).model

    found = trained(sessions((0.9, 0.5, 0.0)))
    assert np.isnan(found.propensity(RANKS)).tolist() == [False, False, True]
    assert "never clicked in training" in withheld_ranks(found, RANKS)[3]
    if how == "fit":
        np.testing.assert_array_equal(load(tmp_path / "run" / "model").propensity(RANKS), found.propensity(RANKS))
        (tmp_path / "run").rename(tmp_path / "before")
    none = trained(sessions((0.0, 0.5, 0.5)))
    assert np.isnan(none.propensity(RANKS)).all()
    assert "never clicked" in withheld_ranks(none, RANKS)[1]
    assert withheld_ranks(none, RANKS)[2] == "rank 1, which it is compared with, was never clicked in training"


@pytest.mark.parametrize("kind", ["log", "counts"])
def test_a_log_of_clicks_alone_identifies_nothing(kind: str, tmp_path: Path) -> None:
    log = log_of(tmp_path, sessions((1.0,) * RANKS))
    found = report(log if kind == "log" else collapse(log, "last-click"))
    assert not found.identified
    assert found.unsupported == (2, 3)
    assert np.isinf(found.standard_error[1:]).all()
    assert found.plan.swaps == ()
    text = found.text()
    assert text.startswith(
        f"No: every one of the {SESSIONS * RANKS} impressions was clicked, so that nothing tells examination from "
        "attraction."
    )
    assert "Yes" not in text
    assert "target is reached" not in text
    assert found.to_json()["standard_error"] == [0.0, None, None]
    assert report(sessions_log(tmp_path)).text().startswith(("Yes", "In part", "No: this log does not"))


def sessions_log(folder: Path) -> ClickLog:
    """A log in which one impression was not clicked."""
    (folder / "other").mkdir()
    batch = sessions((1.0,) * RANKS)
    clicks = np.array(batch.clicks)
    clicks[0, 0] = 0
    return log_of(folder / "other", batch.replace(clicks=clicks))
