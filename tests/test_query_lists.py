"""Lists per query with displays and clicks, against a count of its own; what trains on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stored import PER_QUERY, make_rows, plain, write_log

import ultr
from ultr import baselines, towers
from ultr.baselines import PolicyGradient
from ultr.data import QueryLists, collapse
from ultr.errors import ConfigError, DataError
from ultr.sessions import SharedFeature

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture(scope="module")
def rows() -> list:  # type: ignore[type-arg]
    return [row for row in plain(make_rows(60)) if row["query"] != 3]


def test_lists_hold_displays_and_clicks_of_each_query(tmp_path: Path, rows: list) -> None:  # type: ignore[type-arg]
    log = write_log(tmp_path / "log", rows)
    made = collapse(log, "query")
    assert isinstance(made, QueryLists)
    queries = sorted({row["query"] for row in rows if row["weight"]})
    shown = {d for row in rows if row["weight"] for d in row["documents"]}
    assert made.never_shown == len(queries) * PER_QUERY - len(shown)
    about = made.description
    assert (about.rows, about.sufficient_statistics) == (len(queries), "query")
    assert about.weight == pytest.approx(sum(row["weight"] for row in rows))
    seen = {}
    for batch in made.batches(4):
        assert batch.validate() is batch
        assert batch.features["features"].shape == (4, batch.shape[1], 2)
        assert not batch.features["features"][~batch.mask].any()
        for i in np.flatnonzero(batch.mask[:, 0]):
            n = int(batch.mask[i].sum())
            ids = batch.features["document"][i, :n].tolist()
            seen[int(batch.query[i])] = ids  # type: ignore[index]
            own = [row for row in rows if row["query"] == batch.query[i]]  # type: ignore[index]
            total = sum(row["weight"] for row in own)
            assert batch.weight[i] == pytest.approx(total)  # type: ignore[index]
            displays, clicks = np.zeros((PER_QUERY * 7 + 1, log.ranks)), np.zeros(PER_QUERY * 7 + 1)
            for row in own:
                for d, rank, click in zip(row["documents"], row["ranks"], row["clicks"], strict=True):
                    displays[d, rank - 1] += row["weight"] / total
                    clicks[d] += click * row["weight"] / total
            np.testing.assert_allclose(batch.features["displays"][i, :n], displays[ids], rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(batch.features["click_rate"][i, :n], clicks[ids], rtol=1e-5, atol=1e-7)
            assert sorted(ids) == np.flatnonzero(displays.sum(1)).tolist()
            mean = displays[ids] @ np.arange(log.ranks) / displays[ids].sum(1)
            assert (np.diff(mean) >= -1e-5).all()  # the logged order
            np.testing.assert_allclose(batch.position[i, :n], mean, atol=0.501)
            np.testing.assert_array_equal(batch.features["features"][i, :n, 0], ids)
    assert sorted(seen) == queries
    # A shuffled pass has the same lists, features shared or not.
    again = {}
    for batch in made.batches(4, seed=5, share_features=True):
        assert isinstance(batch.features["features"], SharedFeature)
        for i in np.flatnonzero(batch.mask[:, 0]):
            again[int(batch.query[i])] = batch.features["document"][i, : batch.mask[i].sum()].tolist()  # type: ignore[index]
    assert again == seen
    assert made.count_batches(4) == len(list(made.batches(4, seed=1)))


def test_what_cannot_be_collapsed_is_refused(tmp_path: Path, rows: list) -> None:  # type: ignore[type-arg]
    log = write_log(tmp_path / "log", rows)
    with pytest.raises(ConfigError, match="'query' stays in memory: leave directory= out"):
        collapse(log, "query", directory=tmp_path / "x")  # type: ignore[call-overload]
    unseen = write_log(tmp_path / "unseen", [row | {"documents": [0] * len(row["documents"])} for row in rows])
    with pytest.raises(DataError, match="expected a log that shows documents, found none"):
        collapse(unseen, "query")


def gradient() -> PolicyGradient:
    tower = towers.DocumentTable(PER_QUERY * 7)
    return PolicyGradient(relevance=tower, objective="ips", alpha=0.9 ** np.arange(15), sessions=500, samples=20)


def test_a_log_is_collapsed_for_what_learns_per_query(tmp_path: Path, rows: list) -> None:  # type: ignore[type-arg]
    log = write_log(tmp_path / "log", rows)
    lists = collapse(log, "query")
    fitted = [ultr.fit(gradient(), data, data, seed=0, epochs=3, batch_size=2, progress=False) for data in (log, lists)]
    one, other = (f.model.relevance.table[...] for f in fitted)
    np.testing.assert_array_equal(one, other)
    assert fitted[0].history[-1]["valid_loss"] < fitted[0].history[0]["loss"]
    assert fitted[0].history[0]["sessions"] == pytest.approx(sum(row["weight"] for row in rows))
    # What a list of a query does not tell is refused to those that need it.
    for model, needs in (
        (baselines.NaivePointwise(relevance=towers.DocumentTable(PER_QUERY * 7)), "rank"),
        (baselines.NaiveListwise(relevance=towers.DocumentTable(PER_QUERY * 7)), "list"),
    ):
        with pytest.raises(ConfigError, match=f"needs more than counts by query. .*statistics='{needs}'"):
            ultr.fit(model, lists, seed=0, epochs=1)


def test_training_finds_what_is_clicked(tmp_path: Path) -> None:
    # Ten documents, shown in random order; those of higher numbers are clicked more: a list that is not enumerated.
    rng, rows = np.random.default_rng(0), []
    for i in range(1500):
        order = rng.permutation(10) + 1
        examined = 0.9 ** np.arange(10)
        clicks = rng.random(10) < examined * order / 11
        rows.append({"session": str(i), "query": 0, "documents": order.tolist(), "ranks": list(range(1, 11)),
                     "clicks": clicks.astype(int).tolist()})  # fmt: skip
    log = write_log(tmp_path / "log", rows, step=500)
    model = gradient()
    fitted = ultr.fit(model, log, seed=1, epochs=150, batch_size=1, progress=False)
    scores = np.asarray(fitted.model.relevance.table[...])[1:11]
    assert np.corrcoef(scores, np.arange(10))[0, 1] > 0.9
