"""Training on the least of a log that a likelihood needs: when, the same loss, and what the result says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from stored import PER_QUERY, QUERIES, make_rows, plain, write_log

from ultr import baselines, models, towers
from ultr.data import ClickLog, Counts, InMemory, collapse
from ultr.data.distinct import share_distinct
from ultr.errors import ConfigError
from ultr.sessions import concatenate
from ultr.training import fit
from ultr.training.sufficient import statistics_for, sufficient

pytestmark = pytest.mark.usefixtures("quickly_compiled")

DOCUMENTS, RANKS = PER_QUERY * len(QUERIES), 15


def rows_of(count: int, *, distinct: int, clicks: float = 0.2) -> list[dict[str, Any]]:
    """Sessions on so many lists, with clicks of their own; none are weighted."""
    rng = np.random.default_rng(1)
    lists = [{k: v for k, v in row.items() if k != "weight"} for row in plain(make_rows(distinct, seed=1))]
    picked = [lists[int(i)] for i in rng.integers(len(lists), size=count)]
    return [
        row | {"session": str(i), "clicks": (rng.random(len(row["clicks"])) < clicks).astype(int).tolist()}
        for i, row in enumerate(picked)
    ]


def document() -> Any:
    return towers.DocumentTable(DOCUMENTS)


def pbm(relevance: Any = None) -> models.PBM:
    return models.PBM(relevance=relevance or document(), examination=towers.RankTable(RANKS))


def dbn() -> models.DBN:
    return models.DBN(relevance=document(), satisfaction=document(), continuation=towers.Constant(1.0))


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ClickLog]:
    folder = tmp_path_factory.mktemp("logs")
    return {
        "repeating": write_log(folder / "a", rows_of(400, distinct=8)),
        "silent": write_log(folder / "b", rows_of(400, distinct=8, clicks=0.01)),
        "all different": write_log(folder / "c", rows_of(3, distinct=100)),
        "impression features": write_log(
            folder / "d",
            [row | {"feature.age": [0.5] * len(row["clicks"])} for row in rows_of(400, distinct=8)],
            impression_features=["age"],
        ),
    }


def test_what_a_model_can_be_trained_on_is_declared(logs: dict[str, ClickLog]) -> None:
    log, network = logs["repeating"], towers.Linear(2, rngs=nnx.Rngs(0))
    ubm = models.UBM(relevance=document(), examination=towers.LastClickTable(RANKS))
    known: list[tuple[Any, str]] = [
        (pbm(), "rank"),
        (pbm(network), "rank"),
        (ubm, "last-click"),
        (baselines.NaivePointwise(relevance=network), "rank"),
        (baselines.NaiveListwise(relevance=network), "list"),
        (dbn(), "list"),
        (pbm(towers.Linear(2, feature=("features", "device"), rngs=nnx.Rngs(0))), "list"),
        (pbm(lambda sessions: jnp.zeros(sessions.shape)), "list"),  # may read anything
        (nnx.Linear(1, 1, rngs=nnx.Rngs(0)), "list"),
    ]
    for model, expected in known:
        assert statistics_for(model, log) == expected
    assert statistics_for(pbm(), logs["impression features"]) == "list"


def test_a_log_is_collapsed_where_there_is_less_to_read(logs: dict[str, ClickLog]) -> None:
    def kind(model: Any, name: str) -> tuple[str, int]:
        with sufficient(model, logs[name]) as found:
            if isinstance(found, Counts):
                return found.sufficient_statistics, found.rows
            return ("sessions" if found is logs[name] else "lists"), len(found)

    assert kind(pbm(), "repeating") == ("rank", collapse(logs["repeating"], "rank").rows)
    assert kind(pbm(), "all different") == ("sessions", 3)
    assert kind(dbn(), "all different") == ("sessions", 3)
    assert kind(dbn(), "silent")[0] == "lists"
    assert kind(pbm(), "impression features")[0] == "lists"
    memory = InMemory(concatenate(list(logs["all different"].batches(3))))
    with sufficient(pbm(), memory) as same:
        assert same is memory


def test_the_share_of_distinct_sessions(logs: dict[str, ClickLog], tmp_path: Path) -> None:
    for name, log in logs.items():
        lists = collapse(log, "list", directory=tmp_path / name)
        assert share_distinct(log) == pytest.approx(len(lists) / len(log))


@pytest.mark.parametrize(("make", "name"), [(pbm, "repeating"), pytest.param(dbn, "silent", marks=pytest.mark.slow)])
def test_the_loss_is_that_of_the_sessions(make: Any, name: str, logs: dict[str, ClickLog]) -> None:
    options: dict[str, Any] = {"optimizer": optax.sgd(0.0), "epochs": 1, "batch_size": 64, "seed": 0}
    log = logs[name]
    short, long = (fit(make(), log, log, collapse=c, **options) for c in ("auto", False))
    losses = [
        np.average([e["loss"] for e in x.history], weights=[e["sessions"] for e in x.history]) for x in (short, long)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert short.history[-1]["valid_loss"] == pytest.approx(long.history[-1]["valid_loss"], rel=1e-5)
    found, sessions = short.trained_on, long.trained_on
    assert found is not None
    assert sessions is not None
    assert found.collapsed
    assert not sessions.collapsed
    assert found.sessions == sessions.sessions == 400
    assert found.rows < 400 or found.statistics != "list"
    ids = np.concatenate([np.asarray(b["documents"].flatten()) for b in log.columns(["documents"])])
    queries = np.concatenate([np.asarray(b["query"]) for b in log.columns(["query"])])
    expected = (len(np.unique(queries)), len(np.unique(ids)))
    assert (found.queries, found.documents) == (sessions.queries, sessions.documents) == expected
    assert f"on {expected[0]} queries and {expected[1]} documents" in found.text


def test_an_epoch_of_counts_makes_a_hundred_steps(logs: dict[str, ClickLog]) -> None:
    log = logs["repeating"]
    fitted = fit(pbm(), log, log, epochs=2, batch_size=64, seed=0)
    ends = [entry for entry in fitted.history if isinstance(entry["epoch"], int)]
    assert [entry["epoch"] for entry in ends] == [1, 2]
    each = -(-len(collapse(log, "rank")) // 64)
    passes = -(-100 // each)
    steps = passes * collapse(log, "rank").count_batches(64)
    assert [entry["steps"] for entry in ends] == [steps, 2 * steps]
    assert sum(entry["sessions"] for entry in fitted.history) == pytest.approx(2 * 400, rel=1e-5)  # as of one pass


def test_resuming_with_other_statistics_is_refused(logs: dict[str, ClickLog], tmp_path: Path) -> None:
    log, options = logs["repeating"], {"batch_size": 64, "seed": 0}
    whole = fit(pbm(), log, log, epochs=3, **options)  # type: ignore[arg-type]
    fit(pbm(), log, log, epochs=1, directory=tmp_path, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"another statistics \('rank', now None\)"):
        fit(pbm(), log, log, epochs=2, directory=tmp_path, resume=True, collapse=False, **options)  # type: ignore[arg-type]
    rest = fit(pbm(), log, log, epochs=3, directory=tmp_path, resume=True, **options)  # type: ignore[arg-type]
    assert [e["loss"] for e in rest.history] == [e["loss"] for e in whole.history]
