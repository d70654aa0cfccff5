"""`solve(method="counting")`: probabilities are what a dictionary counts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from solvable import (
    EXACT,
    MODELS,
    V,
    assert_same_model,
    data,
    logits_of,
    probability,
    rows_of,
    table,
)

from ultr import models, towers
from ultr.errors import ConfigError, DataError
from ultr.sessions import Sessions
from ultr.training import solve

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def counted(name: str, sessions: Sessions) -> dict[str, dict[Any, list[float]]]:
    """Counts slot -> entry of its table -> [yes, no] with a dictionary."""
    cells: dict[str, Any] = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))

    def count(slot: str, cell: Any, yes: bool, weight: float) -> None:
        cells[slot][cell][0 if yes else 1] += weight

    for weight, row in rows_of(sessions):
        clicked = [i for i, (_, _, click) in enumerate(row) if click]
        last = clicked[-1] if clicked else len(row) - 1
        if name == "CascadeModel" and len(clicked) > 1:
            continue
        for i, (document, rank, click) in enumerate(row):
            cell = {"GCTR": 0, "RCTR": rank, "DCTR": document, "RDCTR": (document, rank)}.get(name)
            if cell is not None:
                count("tower", cell, bool(click), weight)
            elif i <= last:  # examined
                count("relevance", document, bool(click), weight)
                if click and name == "SDBN":
                    count("satisfaction", document, i == last, weight)
                if click and name == "DCM":
                    count("continuation", rank, i < last, weight)
    return cells


def assert_counted(model: Any, cells: Mapping[str, Any], prior: float) -> None:
    """Asserts that each probability is (yes + prior mean) / (yes + no + prior), also without data."""
    assert set(cells) == set(model.slots)
    for slot, found in logits_of(model).items():
        sums = np.sum(list(cells[slot].values()), axis=0)
        mean = sums[0] / sums.sum()
        ranks = isinstance(getattr(model, slot), towers.RankTable)
        for place in np.ndindex(found.shape):
            cell: Any = place[0] + ranks if len(place) == 1 else (place[0], place[1] + 1) if place else 0
            yes, no = cells[slot].get(cell, (0.0, 0.0))
            wanted = (yes + prior * mean) / (yes + no + prior)
            assert probability(found[place]) == pytest.approx(wanted, rel=2e-6), (slot, cell)


@pytest.mark.parametrize("prior", [0.25, 20.0])
@pytest.mark.parametrize("name", [*EXACT, "SDBN", "DCM"])
def test_counting_is_what_a_dictionary_counts(name: str, prior: float) -> None:
    sessions = data()
    fitted = solve(MODELS[name](), sessions, method="counting", prior=prior)
    assert_counted(fitted.model, counted(name, sessions), prior)
    (epoch,) = fitted.history
    impossible = sum(w for w, row in rows_of(sessions) if sum(click for *_, click in row) > 1)
    assert epoch["impossible"] == (impossible if name == "CascadeModel" else 0)
    assert epoch["sessions"] == np.asarray(sessions.weight).sum() - epoch["impossible"]


def test_lists_without_a_click_are_examined_whole() -> None:
    sessions = Sessions.from_lists(features={"document": [[1, 2, 3], [3, 1]]}, clicks=[[0, 0, 0], [0, 1]])
    fitted = solve(MODELS["SDBN"](), sessions, method="counting", prior=1.0).model
    relevance = probability(logits_of(fitted)["relevance"])
    mean = 1 / 5  # one click on five documents
    wanted = [(1 + mean) / 3, mean / 2, mean / 3]
    np.testing.assert_allclose(relevance[1:4], wanted, rtol=1e-6)


def test_nothing_is_counted_without_clicks() -> None:
    sessions = Sessions.from_lists(features={"document": [[1, 2], [3]]}, clicks=[[0, 0], [0]])
    with pytest.raises(DataError, match="expected clicks to learn from"):
        solve(MODELS["SDBN"](), sessions, method="counting")


@pytest.mark.parametrize("name", EXACT)
def test_without_hidden_choices_em_is_counting(name: str) -> None:
    counting = solve(MODELS[name](), data(), method="counting")
    em = solve(MODELS[name](), data(), method="em")
    assert len(em.history) == 3  # the start, the maximum, and to see that it is
    assert_same_model(em.model, counting.model)
    assert (em.best, counting.best) == (3, 1)


@pytest.mark.parametrize("name", ["PBM", "UBM", "DBN", "CCM"])
def test_models_that_cannot_be_counted(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} has no counting estimator"):
        solve(MODELS[name](), data(), method="counting")


def test_slots_may_share_a_table() -> None:
    shared = table()
    fitted = solve(models.SDBN(relevance=shared, satisfaction=shared), data(), method="counting", prior=3.0).model
    assert fitted.relevance is fitted.satisfaction
    cells = counted("SDBN", data())
    both = {d: np.add(cells["relevance"][d], cells["satisfaction"][d]) for d in range(1, V + 1)}
    assert_counted(fitted, dict.fromkeys(("relevance", "satisfaction"), both), 3.0)
