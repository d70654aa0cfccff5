"""`solve`: validation, history, when it stops, what it refuses."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from solvable import (
    MODELS,
    NOISE,
    RANKS,
    V,
    assert_same_model,
    averages,
    column,
    data,
    logits_of,
    mean_loss,
    penalised,
    probability,
    rank,
    rows_of,
    table,
)
from stored import make_rows, plain, write_log

from ultr import models, towers
from ultr.data import ClickLog
from ultr.errors import ConfigError, DataError, UltrError
from ultr.sessions import Sessions
from ultr.training import load, save, solve

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.mark.parametrize("method", ["em", "lbfgs"])
def test_what_was_never_shown_gets_the_average(method: Any) -> None:
    fitted = solve(MODELS["PBM"](), data(), method=method, iterations=8, tolerance=0.0).model
    average = averages("PBM")
    relevance, examination = (probability(logits_of(fitted)[slot]) for slot in ("relevance", "examination"))
    np.testing.assert_allclose(relevance[[0, V + 1, V + 2]], average["relevance"], rtol=1e-5)
    assert np.abs(relevance[1 : V + 1] - average["relevance"]).min() > 1e-3
    assert np.abs(examination - average["examination"]).min() > 1e-3
    assert probability(fitted.relevance.common[...]) == pytest.approx(average["relevance"], rel=1e-5)


def partly_unseen() -> Sessions:
    known = data()
    document = np.where(known.features["document"] <= 2, 0, known.features["document"])
    return known.replace(features={"document": document})


@pytest.mark.parametrize("name", ["PBM", "RDCTR"])
def test_unseen_documents_in_training(name: str) -> None:
    """All documents with id 0 are one: the model that is returned has the likelihood that was maximised."""
    fitted = solve(MODELS[name](), partly_unseen(), method="lbfgs", iterations=40, tolerance=0.0)
    value, slope = penalised(name, fitted.model, sessions=partly_unseen)
    assert value == pytest.approx(fitted.history[fitted.best - 1]["objective"], abs=NOISE)
    _, start = penalised(name, MODELS[name](), sessions=partly_unseen)
    assert np.linalg.norm(slope) < 2e-3 * np.linalg.norm(start)


@pytest.mark.parametrize("method", ["em", "lbfgs"])
def test_validation_keeps_the_best(method: Any) -> None:
    train, valid = data(25), data(200, seed=1)
    fitted = solve(MODELS["SDBN"](), train, valid, method=method, prior=1e-3, iterations=25, tolerance=0.0)
    losses = column(fitted.history, "valid_loss")
    assert 1 <= fitted.best == int(losses.argmin()) + 1 < len(losses)
    assert losses.min() == pytest.approx(mean_loss(fitted.model, valid), rel=1e-5)
    assert losses.min() < losses[-1] - 1e-3


def test_history_says_what_a_pass_found() -> None:
    sessions = data()
    weight = np.asarray(sessions.weight)
    fitted = solve(MODELS["DCM"](), sessions, sessions, iterations=4, tolerance=0.0)
    assert [epoch["epoch"] for epoch in fitted.history] == [1, 2, 3, 4]
    assert fitted.best == 4
    keys = {"epoch", "loss", "objective", "valid_loss", "sessions", "impossible", "seconds"}
    for epoch in fitted.history:
        assert set(epoch) == keys
        assert (epoch["sessions"], epoch["impossible"]) == (weight.sum(), 0)
        assert 0 <= epoch["seconds"] < 600
    for model, loss in ((MODELS["DCM"](), fitted.history[0]["loss"]), (fitted.model, fitted.history[3]["valid_loss"])):
        assert loss == pytest.approx(mean_loss(model, sessions), rel=1e-5)
    valid = column(fitted.history, "valid_loss")
    np.testing.assert_allclose(valid[:-1], column(fitted.history, "loss")[1:], rtol=1e-5)  # a pass later


@pytest.mark.parametrize("method", ["em", "lbfgs"])
def test_it_stops(method: Any) -> None:
    options: dict[str, Any] = {"method": method, "prior": 10.0}
    assert len(solve(MODELS["PBM"](), data(), iterations=5, tolerance=0.0, **options).history) == 5
    assert len(solve(MODELS["PBM"](), data(), iterations=1, **options).history) == 1
    fitted = solve(MODELS["PBM"](), data(), iterations=300, tolerance=1e-4, **options)
    gains = [b - a for a, b in pairwise(column(fitted.history, "objective"))]
    assert 4 < len(fitted.history) < 100
    assert gains[-1] < 1e-4
    if method == "em":
        assert min(gains[:-1]) >= 1e-4


def test_impossible_sessions_are_left_out_and_counted() -> None:
    sessions = data()
    twice = np.array([sum(click for *_, click in row) > 1 for _, row in rows_of(sessions)])
    weight = np.asarray(sessions.weight)
    model = MODELS["CascadeModel"]
    found = solve(model(), sessions, sessions)
    alone = solve(model(), sessions[~twice], sessions[~twice])
    assert_same_model(found.model, alone.model)
    assert found.history[-1]["impossible"] == weight[twice].sum() > 10
    assert found.history[-1]["sessions"] == weight[~twice].sum()
    for field in ("loss", "objective", "valid_loss"):
        np.testing.assert_allclose(column(found.history, field), column(alone.history, field), rtol=1e-5)
    for pair in ((sessions[twice], None), (sessions, sessions[twice])):
        with pytest.raises(DataError, match=f"none of the {weight[twice].sum():.0f} sessions is possible"):
            solve(model(), *pair)


@pytest.mark.parametrize("method", ["em", "lbfgs"])
@pytest.mark.parametrize("name", ["PBM", "DBN"])
def test_a_weak_prior_keeps_numbers_finite(name: str, method: Any) -> None:
    """Documents that are always or never clicked."""
    documents = [[1, 2, 3], [1, 3], [2, 1]] * 20
    clicks = [[int(d == 1) for d in row] for row in documents]
    sessions = Sessions.from_lists(features={"document": documents}, clicks=clicks)
    fitted = solve(MODELS[name](), sessions, method=method, prior=1e-3, iterations=60, tolerance=0.0)
    for field in ("loss", "objective"):
        assert np.isfinite(column(fitted.history, field)).all()
    for x in logits_of(fitted.model).values():
        assert np.isfinite(x).all()
    relevance = probability(logits_of(fitted.model)["relevance"])
    assert relevance[1] > 0.9
    assert relevance[2] < 0.1
    assert fitted.history[-1]["objective"] > fitted.history[0]["objective"] + 0.5


def test_the_model_stays_and_the_result_can_be_saved(tmp_path: Path) -> None:
    model = MODELS["UBM"]()
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model)))
    fitted = solve(model, data(), iterations=3)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(model)))
    assert type(fitted.model) is models.UBM
    save(fitted.model, tmp_path / "model")
    again = load(tmp_path / "model")
    assert_same_model(again, fitted.model, atol=0)
    np.testing.assert_array_equal(again.score(data()), fitted.model.score(data()))


class Unusual(towers.RankTable):
    pass


UNSOLVABLE = {
    "a network": lambda: models.DCTR(towers.Linear(2, rngs=nnx.Rngs(0))),
    "a function": lambda: models.DCTR(lambda s: jnp.zeros(s.shape)),
    "a subclass": lambda: models.RCTR(Unusual(RANKS)),
    "a pinned table": lambda: models.PBM(relevance=table(), examination=towers.RankTable(RANKS, pin_first=True)),
    "a hashed table": lambda: models.DCTR(towers.DocumentTable(V, kind="hashed", rows=4)),
    "last clicks in a PBM": lambda: models.PBM(relevance=table(), examination=towers.LastClickTable(RANKS)),
    "last clicks as relevance": lambda: models.UBM(relevance=towers.LastClickTable(RANKS), examination=rank()),
}


@pytest.mark.parametrize("name", UNSOLVABLE)
def test_towers_without_a_table(name: str) -> None:
    with pytest.raises(ConfigError, match=r"tower '\w+' \(\w+\) is not a plain table.*ultr\.training\.fit"):
        solve(UNSOLVABLE[name](), data())


def test_models_without_latent_variables() -> None:
    for model in (
        models.AdditivePBM(relevance=table(), examination=rank()),
        models.TrustPBM(relevance=table(), examination=rank(), trust_relevant=rank(), trust_irrelevant=rank()),
        models.Mixture(components=[models.DCTR(table()), models.RCTR(rank())]),
    ):
        with pytest.raises(ConfigError, match=rf"{type(model).__name__}.*ultr\.training\.fit"):
            solve(model, data())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"prior": 0.0},
        {"prior": -1.0},
        {"prior": math.inf},
        {"prior": math.nan},
        {"iterations": 0},
        {"tolerance": -1e-9},
        {"tolerance": math.nan},
    ],
    ids=str,
)
def test_unusable_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"expected {next(iter(options))}"):
        solve(MODELS["PBM"](), data(), **options)


def test_unusable_data(tmp_path: Path) -> None:
    model, sessions = MODELS["PBM"], data()
    with pytest.raises(ConfigError, match="expected method 'em', 'lbfgs' or 'counting', found 'newton'"):
        solve(model(), sessions, method="newton")  # type: ignore[arg-type]
    for train, valid, name in ((sessions[:0], None, "training"), (sessions, sessions[:0], "validation")):
        with pytest.raises(DataError, match=f"{name} data: expected at least one session"):
            solve(model(), train, valid)
    for change in ({"mask": np.zeros(sessions.shape, bool)}, {"weight": np.zeros(len(sessions), np.float32)}):
        with pytest.raises(DataError, match="training data: expected sessions with documents and a weight above 0"):
            solve(model(), sessions.replace(**change))
    log = write_log(tmp_path / "log", [row | {"split": "a"} for row in plain(make_rows(20))])
    with pytest.raises(DataError, match=r"at least one session|split"):
        solve(model(), ClickLog.open(log.path, split="b"))
    with pytest.raises(ConfigError, match="training data: a click likelihood needs clicks"):
        solve(model(), sessions.replace(clicks=None))
    with pytest.raises(ConfigError, match=r"'document'.*the sessions have: none"):
        solve(model(), sessions.replace(features={}))
    position = np.asarray(sessions.position) + RANKS
    with pytest.raises(DataError, match=r"validation data, .*field 'rank'.*RankTable"):
        solve(model(), sessions, sessions.replace(position=position))
    with pytest.raises(DataError, match=r"training data, .*field 'document'.*up to 3 in DocumentTable"):
        solve(models.DCTR(towers.DocumentTable(3)), sessions)
    broken: Any = MODELS["PBM"]()
    broken.examination.table[...] = jnp.full(RANKS, jnp.nan)
    with pytest.raises(UltrError, match=r"log-likelihood is nan. Start from a model with finite logits"):
        solve(broken, sessions)
