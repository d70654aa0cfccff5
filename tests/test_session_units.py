"""What a session is: the key of the log, in splits of `prepare` and in standard errors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from raw_logs import HEADER, lists, prepare_log, write

from ultr import evaluation, models, towers
from ultr.data import ClickLog
from ultr.data.dataset import InMemory
from ultr.errors import ConfigError
from ultr.evaluation.counterfactual_values import counterfactual
from ultr.sessions import Sessions


def raw_log(folder: Path, sessions: int = 120, queries: int = 3) -> Path:
    """Writes sessions of several queries, whose lists are clicked whole or not at all by the session."""
    rng = np.random.default_rng(0)
    rows = []
    for session in range(sessions):
        click = int(rng.random() < 0.5)
        for query in rng.permutation(5)[:queries].tolist():
            time = session // 7 + 100 * query
            rows += [f"s{session},q{query},d{d},{d + 1},{click},{time}" for d in range(2)]
    return write(folder / "log.csv", "\n".join(rows) + "\n", HEADER + ",time")


def parts_of(log: ClickLog) -> dict[str, list[dict[str, Any]]]:
    return {name: lists(ClickLog.open(log.path, split=name), "time") for name, n in log.metadata["splits"].items() if n}


@pytest.mark.parametrize(("by", "together"), [("session", "session"), (None, "query"), ("query", "query")])
def test_prepare_keeps_what_it_splits_by_together(tmp_path: Path, by: Any, together: str) -> None:
    log = prepare_log(raw_log(tmp_path), tmp_path / "out", split={"a": 0.5, "b": 0.5}, split_by=by)
    parts = parts_of(log)
    assert sum(map(len, parts.values())) == len(log) == 360
    keys = [{row[together] for row in part} for part in parts.values()]
    assert len(keys) == 2
    assert not keys[0] & keys[1]
    views = log.split({"a": 0.5, "b": 0.5}, by=together)  # type: ignore[arg-type]
    assert {name: len(view) for name, view in views.items()} == log.metadata["splits"]


def test_a_split_by_list_parts_sessions(tmp_path: Path) -> None:
    log = prepare_log(raw_log(tmp_path), tmp_path / "out", split={"a": 0.5, "b": 0.5}, split_by="list")
    a, b = ({row["session"] for row in part} for part in parts_of(log).values())
    assert a & b


def test_no_time_is_on_both_sides_of_a_split(tmp_path: Path) -> None:
    log = prepare_log(raw_log(tmp_path), tmp_path / "out", split={"a": 0.5, "b": 0.5}, split_by="time")
    parts = parts_of(log)
    assert max(row["time"] for row in parts["a"]) < min(row["time"] for row in parts["b"])
    shared = {row["session"] for row in parts["a"]} & {row["session"] for row in parts["b"]}
    assert log.metadata["report"]["noted"]["sessions_in_several_splits"] == len(shared) > 0


def test_the_command_splits_by_session(tmp_path: Path, ultr: Any) -> None:
    raw, options = raw_log(tmp_path), ("--split", "a=.5,b=.5", "--split-by", "session")
    assert ultr("prepare", raw, "--out", tmp_path / "out", *options).code == 0
    a, b = ({row["session"] for row in part} for part in parts_of(ClickLog.open(tmp_path / "out")).values())
    assert not a & b
    result = ultr("prepare", raw, "--out", tmp_path / "x", "--split-by", "session")
    assert result.code == 2
    assert "--split-by has no effect without --split" in result.err
    with pytest.raises(ConfigError, match="no effect without a split"):
        prepare_log(raw, tmp_path / "x", split_by="query")


def pbm() -> Any:
    return models.PBM(examination=towers.RankTable(4), relevance=towers.DocumentTable(100, initial=-0.5))


def error_over(values: np.ndarray, unit: np.ndarray) -> float:
    """The standard error of a mean of lists [n] whose units are independent: of a ratio of sums over the units."""
    mean = values.mean()
    sums = np.array([(values - mean)[unit == u].sum() for u in np.unique(unit)])
    return float(math.sqrt((sums**2).sum() * len(sums) / (len(sums) - 1)) / len(values))


def test_standard_errors_are_over_the_sessions_of_the_log(tmp_path: Path) -> None:
    log = prepare_log(raw_log(tmp_path), tmp_path / "out")
    model, key = pbm(), jax.random.key(0)
    rows = lists(log)
    each = []
    for batch in log.batches(64):
        kept = batch.shown()
        each += np.asarray(model(batch).log_prob(batch.clicks))[kept].tolist()
    values = np.array(each)
    units = {
        "session": np.unique([row["session"] for row in rows], return_inverse=True)[1],
        "query": np.unique([row["query"] for row in rows], return_inverse=True)[1],
        "list": np.arange(len(rows)),
    }
    found = {}
    for cluster, unit in units.items():
        estimate = evaluation.evaluate(model, log, metrics=["log_likelihood"], key=key, cluster=cluster)
        found[cluster] = estimate["log_likelihood"].standard_error
        np.testing.assert_allclose(found[cluster], error_over(values, unit), rtol=1e-5)
    assert found["session"] > 1.3 * found["list"]
    default = evaluation.evaluate(model, log, metrics=["log_likelihood"], key=key)
    assert default["log_likelihood"].standard_error == found["session"]
    shares = {"a": 0.5, "b": 0.5}
    part = log.split(shares, by="session")["a"].with_sessions()
    batch = next(iter(part.batches(512)))
    assert len(np.unique(np.asarray(batch.session)[batch.shown()])) * 3 == len(part)


def test_sessions_of_one_list_are_units_as_lists_are(tmp_path: Path) -> None:
    log = prepare_log(raw_log(tmp_path, queries=1), tmp_path / "out")
    model, key = pbm(), jax.random.key(0)
    a, b = (evaluation.evaluate(model, log, key=key, cluster=cluster) for cluster in ("session", "list"))
    assert a == b
    assert next(iter(log.with_sessions().batches(8))).session is None


def test_other_analyses_know_sessions_too(tmp_path: Path) -> None:
    log = prepare_log(raw_log(tmp_path), tmp_path / "out")
    model = pbm()
    values, errors = {}, {}
    for cluster in ("session", "list"):
        options: dict[str, Any] = {"propensity": [1.0, 0.5], "cluster": cluster, "key": jax.random.key(0)}
        values[cluster] = counterfactual(log, model, **options).values["logged"]
        errors[cluster] = evaluation.calibration(model, log, cluster=cluster).by_rank.error
    assert values["session"].value == pytest.approx(values["list"].value)
    assert values["session"].standard_error > 1.3 * values["list"].standard_error
    assert errors["session"].standard_error > 1.3 * errors["list"].standard_error


def test_sessions_in_memory_have_a_number(tmp_path: Path) -> None:
    numbers = [7, 7, 9]
    batch = Sessions.from_lists(
        clicks=[[1, 0], [0, 1], [1]], session=numbers, features={"document": [[1, 2]] * 2 + [[3]]}
    )
    assert np.asarray(batch[[2, 0]].session).tolist() == [9, 7]
    assert np.asarray(batch.pad(rows=4).session).tolist() == [7, 7, 9, 0]
    found = evaluation.evaluate(pbm(), InMemory(batch), metrics=["log_likelihood"], key=jax.random.key(0))
    alone = batch.replace(session=None)
    other = evaluation.evaluate(pbm(), InMemory(alone), metrics=["log_likelihood"], key=jax.random.key(0))
    assert found["log_likelihood"].value == other["log_likelihood"].value
    assert found["log_likelihood"].standard_error != other["log_likelihood"].standard_error
