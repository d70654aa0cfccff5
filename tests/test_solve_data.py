"""`solve` on a log, on its counts, on its distinct lists, and in blocks of any size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from solvable import (
    MODELS,
    assert_same_model,
    column,
    data,
)
from stored import PER_QUERY, QUERIES, make_rows, plain, write_log

from ultr import models, towers
from ultr.data import InMemory, as_dataset, collapse
from ultr.errors import ConfigError
from ultr.sessions import Sessions, concatenate
from ultr.training import SolverMemory, solve
from ultr.training.inputs import batch_weight, count_rows

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.mark.parametrize("method", ["em", "lbfgs"])
def test_sizes_of_blocks_and_memory_change_nothing(method: Any) -> None:
    class Streamed(InMemory):
        passes = 0

        def batches(self, batch_size: int, *, seed: int | None = None, **options: Any) -> Iterator[Sessions]:
            self.passes += 1
            return super().batches(batch_size, seed=seed)

    options: dict[str, Any] = {"method": method, "iterations": 6, "tolerance": 0.0}
    source = Streamed(data())
    whole = solve(MODELS["DBN"](), source, **options)
    assert source.passes == 1
    source = Streamed(data())
    memory = SolverMemory(batch_rows=16, block_sessions=64, device_bytes=4000, float64_entries=0)
    parts = solve(MODELS["DBN"](), source, memory=memory, **options)
    assert source.passes == len(parts.history) == 6
    for field in ("loss", "objective", "sessions"):
        np.testing.assert_allclose(column(parts.history, field), column(whole.history, field), atol=2e-6)
    assert_same_model(parts.model, whole.model, atol=1e-4)


DOCUMENTS, LOG_RANKS = len(QUERIES) * PER_QUERY, 15
STORED: dict[str, Callable[[], models.LatentVariableModel]] = {
    "PBM": lambda: models.PBM(relevance=towers.DocumentTable(DOCUMENTS), examination=towers.RankTable(LOG_RANKS)),
    "UBM": lambda: models.UBM(relevance=towers.DocumentTable(DOCUMENTS), examination=towers.LastClickTable(LOG_RANKS)),
    "DBN": lambda: models.DBN(
        relevance=towers.DocumentTable(DOCUMENTS),
        satisfaction=towers.DocumentTable(DOCUMENTS),
        continuation=towers.Constant(),
    ),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Makes the same weighted sessions on lists with gaps in their ranks, in all forms."""
    folder = tmp_path_factory.mktemp("solve")
    rng = np.random.default_rng(0)
    lists = [row for row in plain(make_rows(30)) if 4 < len(row["ranks"]) <= 8]  # streamed with one width
    rows = []
    for i in range(400):
        row = lists[int(rng.integers(len(lists)))]
        clicks = (rng.random(len(row["clicks"])) < 0.2).astype(int).tolist()
        rows.append(row | {"session": str(i), "clicks": clicks, "weight": float(1 + i % 3) / 2})
    log = write_log(folder / "log", rows)
    return {
        "memory": concatenate(list(log.batches(64))),
        "log": log,
        "rank": collapse(log, "rank"),
        "last-click": collapse(log, "last-click"),
        "list": collapse(log, "list", directory=folder / "lists"),
    }


FORMS = {"PBM": ("log", "rank", "last-click", "list"), "UBM": ("log", "last-click", "list"), "DBN": ("log", "list")}


@pytest.mark.parametrize("name", FORMS)
def test_a_log_its_counts_and_its_distinct_lists_give_the_same(sources: dict[str, Any], name: str) -> None:
    memory = sources["memory"]
    weight = float(np.asarray(memory.weight)[np.asarray(memory.mask)[:, 0]].sum())
    options: dict[str, Any] = {"iterations": 5, "tolerance": 0.0}
    wanted = solve(STORED[name](), memory, **options)
    for form in FORMS[name]:
        found = solve(STORED[name](), sources[form], **options)
        assert_same_model(found.model, wanted.model, atol=2e-4)
        for field in ("loss", "objective", "sessions"):
            x, y = column(found.history, field), column(wanted.history, field)
            np.testing.assert_allclose(x, y, rtol=3e-6, err_msg=f"{form}: {field}")
        assert found.history[-1]["sessions"] == pytest.approx(weight, rel=1e-6)


def test_counts_judge_per_session(sources: dict[str, Any]) -> None:
    fitted = solve(STORED["PBM"](), sources["rank"], sources["rank"], iterations=4, tolerance=0.0)
    losses = column(fitted.history, "loss"), column(fitted.history, "valid_loss")
    np.testing.assert_allclose(losses[1][:-1], losses[0][1:], rtol=1e-5)


def test_logs_that_counts_cannot_stand_for(tmp_path: Path) -> None:
    """A log is not collapsed where a table reads context columns, or where it has impression features."""
    rows = make_rows(120, length=6)
    full = write_log(tmp_path / "full", rows)
    bare = [{name: x for name, x in row.items() if not name.startswith("feature.")} for row in rows]
    context = write_log(tmp_path / "context", bare)
    memory = concatenate(list(context.batches(64)))
    options: dict[str, Any] = {"iterations": 3, "tolerance": 0.0}

    def by_device() -> models.PBM:
        device = towers.DocumentTable(2, feature="device")
        return models.PBM(relevance=device, examination=towers.RankTable(LOG_RANKS))

    for model, log in ((by_device, context), (STORED["PBM"], full)):
        assert_same_model(solve(model(), log, **options).model, solve(model(), memory, **options).model)
    with pytest.raises(ConfigError, match="reads the feature 'device'"):
        solve(by_device(), collapse(context, "rank"))


def test_counts_that_say_too_little(sources: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"UBM needs more than counts by rank.*sufficient_statistics='last-click'"):
        solve(STORED["UBM"](), sources["rank"])
    for by in ("rank", "last-click"):
        with pytest.raises(
            ConfigError, match=f"validation data: DBN needs more than counts by {by}.*sufficient_statistics='list'"
        ):
            solve(STORED["DBN"](), sources["memory"], sources[by])
    rows = concatenate(list(sources["last-click"].batches(64)))
    with pytest.raises(ConfigError, match="DBN needs whole lists"):
        solve(STORED["DBN"](), rows)


class Streamed:
    """Has no description: it must be streamed to know what it holds."""

    def __init__(self, source: Any) -> None:
        self.batches = source.batches


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("form", ["memory", "log", "rank", "last-click", "list", "plain"])
def test_what_a_source_says_of_itself_is_what_a_pass_finds(
    form: str, batch_size: int, sources: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "memory":
        empty = sources["memory"].mask & (np.arange(len(sources["memory"])) % 3 > 0)[:, None]
        source: Any = InMemory(sources["memory"].replace(mask=empty))
    elif form == "plain":
        rows = [{n: x for n, x in row.items() if n != "weight"} for row in plain(make_rows(40))]
        source = write_log(tmp_path / "log", rows)
    else:
        source = sources[form]
    streamed = as_dataset(Streamed(source))
    total, batch = streamed.description.total_weight, batch_weight(streamed, batch_size)
    assert streamed.description.weighted == (batch > 0) == (form != "plain")
    count = count_rows(as_dataset(Streamed(source)), "data")
    monkeypatch.setattr(type(source), "batches", None)
    assert source.description.total_weight == pytest.approx(total, rel=1e-6)
    assert batch_weight(source, batch_size) == pytest.approx(batch, rel=1e-6)
    if form not in ("memory", "rank", "last-click"):  # lists without documents are no sessions, cells have two rows
        assert count_rows(source, "data") == count
