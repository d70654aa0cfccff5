"""Data is matched to a model by the names of features and categories, at every door, never by their place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import Ultr
from flax import nnx
from named_logs import named_collection, named_log
from narrowing import present

from ultr import models, simulate, towers
from ultr.data import ClickLog, Collection, collapse
from ultr.data.input_schema import InputSchema
from ultr.errors import CheckpointError, ConfigError, DataError
from ultr.evaluation import calibration, cloning, counterfactual, evaluate, per_query, write_run
from ultr.sessions import Sessions
from ultr.towers import matched, schema_of
from ultr.training import adam, fit, load, save, solve

pytestmark = pytest.mark.usefixtures("quickly_compiled")
KEY = jax.random.key(0)
ORDERS = [("stock", "price"), ("weight", "stock", "age", "price")]  # permuted; and a superset
LISTS = r"\(price, stock\), found \(weight, age\); missing: \(price, stock\)"
LINEAR: dict[str, Any] = {"hidden": (4,)}


def network(log: ClickLog | Collection, *, feature: Any = "features", size: int = 2) -> models.PBM:
    scaler = towers.Scaler(size).fit(log, feature=feature)
    relevance = towers.MLP(size, **LINEAR, feature=feature, scaler=scaler, rngs=nnx.Rngs(0))
    return models.PBM(relevance=relevance, examination=towers.RankTable(4))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model of (price, stock), trained."""
    log = named_log(tmp_path_factory.mktemp("train") / "log")
    return fit(network(log), log, epochs=2, batch_size=32, seed=0, optimizer=adam(0.05)).model


def numbers(found: Any) -> Any:
    """The estimates of an evaluation, as plain numbers."""
    return {name: estimate.value for name, estimate in found.items()}


def run_file(model: Any, data: Any, folder: Path) -> str:
    write_run(folder / "run", model, data, name="run", key=KEY)
    return (folder / "run").read_text()


def simulated_clicks(model: Any, data: ClickLog, folder: Path) -> list[Any]:
    graded = data.collection()
    assert graded is not None
    made = simulate.clicks(graded, simulate.Policy("oracle"), model, sessions=50, seed=0, out=folder / "made", ranks=4)
    return [rows.to_pylist() for rows in made.columns(["documents", "clicks"])]


def refitted(model: Any, data: ClickLog, folder: Path) -> Any:
    return fit(model, data, epochs=1, batch_size=32, seed=0).history[0]["loss"]


# What meets a trained model at each door: (model, log, empty folder) -> what must not depend on the order of columns.
DOORS: dict[str, Callable[[Any, ClickLog, Path], Any]] = {
    "evaluate a log": lambda model, log, _: numbers(evaluate(model, log, key=KEY)),
    "evaluate a collection": lambda model, log, _: numbers(evaluate(model, present(log.collection()), key=KEY)),
    "per query": lambda model, log, _: per_query(model, log, metrics=["ndcg", "log_likelihood"], key=KEY),
    "calibration": lambda model, log, _: calibration(model, log).to_json(),
    "write a run": run_file,
    "cloning": lambda model, log, _: cloning(model, log, key=KEY).model.value,
    "counterfactual": lambda model, log, _: counterfactual(
        log, model, propensity=[1, 0.5, 0.3, 0.25], key=KEY
    ).to_json(),
    "regression of a counterfactual": lambda model, log, _: counterfactual(
        log, model, propensity=[1, 0.5, 0.3, 0.25], method="dr", regression=model, key=KEY
    ).to_json(),
    "candidates of a counterfactual": lambda model, log, _: counterfactual(
        log, model, propensity=[1, 0.5, 0.3, 0.25], method="dr", regression=model, candidates=log.collection(), key=KEY
    ).to_json(),
    "train again": refitted,
    "simulate clicks": simulated_clicks,
    "match to score": lambda model, log, _: [
        np.asarray(model.score(b)) for b in matched(model, log, name="log").batches(16)
    ],
    "a matched pass with shared features": lambda model, log, _: [
        np.asarray(model.score(b)) for b in matched(model, log, name="log").batches(16, share_features=True)
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, ClickLog]:
    """The same log with its columns in every order, and one with columns of other names."""
    folder = tmp_path_factory.mktemp("logs")
    orders = [("price", "stock"), *ORDERS, ("weight", "age"), ()]
    return {order: named_log(folder / ("-".join(order) or "none"), order) for order in orders}


@pytest.mark.parametrize("door", DOORS)
def test_the_order_of_columns_changes_nothing(
    door: str, trained: Any, logs: dict[Any, ClickLog], tmp_path: Path
) -> None:
    found = []
    for number, order in enumerate([("price", "stock"), *ORDERS]):
        (tmp_path / str(number)).mkdir()
        found.append(DOORS[door](trained, logs[order], tmp_path / str(number)))
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, found[0])


@pytest.mark.parametrize("door", DOORS)
def test_columns_of_other_names_are_refused_with_both_lists(
    door: str, trained: Any, logs: dict[Any, ClickLog], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=LISTS):
        DOORS[door](trained, logs["weight", "age"], tmp_path)


@pytest.mark.parametrize("door", DOORS)
def test_data_without_features_is_refused(door: str, trained: Any, logs: dict[Any, ClickLog], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\(price, stock\), found none"):
        DOORS[door](trained, logs[()], tmp_path)


@pytest.mark.parametrize("order", ORDERS)
def test_the_scores_are_those_of_the_named_columns(order: Any, trained: Any, logs: dict[Any, ClickLog]) -> None:
    log = logs[order]
    table = log.vocabulary.features
    assert table is not None
    picked = table[:, [order.index("price"), order.index("stock")]]
    for own, found in zip(log.batches(32), matched(trained, log, name="log").batches(32), strict=True):
        expected = picked[own.features["document"]] * own.mask[:, :, None]
        np.testing.assert_array_equal(found.features["features"] * own.mask[:, :, None], expected)


@pytest.mark.parametrize("order", ORDERS)
def test_validation_data_is_matched(order: Any, logs: dict[Any, ClickLog]) -> None:
    train = logs["price", "stock"]
    options: dict[str, Any] = {"epochs": 1, "batch_size": 32, "seed": 0}
    expected = fit(network(train), train, train, **options).history
    assert fit(network(train), train, logs[order], **options).history[0]["valid_loss"] == expected[0]["valid_loss"]
    with pytest.raises(DataError, match=LISTS):
        fit(network(train), train, logs["weight", "age"], **options)


def test_a_scaler_knows_what_it_measured(logs: dict[Any, ClickLog]) -> None:
    options: dict[str, Any] = {"epochs": 1, "batch_size": 32, "seed": 0}
    measured = logs["price", "stock"]
    expected = fit(network(measured), measured, **options)
    other = fit(network(measured), logs["stock", "price"], **options)
    assert other.history[0]["loss"] == expected.history[0]["loss"]
    assert schema_of(other.model) == InputSchema(("price", "stock"))
    with pytest.raises(DataError, match=LISTS):
        fit(network(measured), logs["weight", "age"], **options)


def test_parts_of_different_training_do_not_join(trained: Any, logs: dict[Any, ClickLog]) -> None:
    other = fit(network(logs["stock", "price"]), logs["stock", "price"], epochs=1, batch_size=32, seed=0).model
    mixed = models.PBM(relevance=towers.Sum([trained.relevance, other.relevance]), examination=towers.RankTable(4))
    with pytest.raises(ConfigError, match=r"different features: \(price, stock\) and \(stock, price\)"):
        evaluate(mixed, logs["price", "stock"], key=KEY)
    # A table of ranks reads no features: it may come from anywhere.
    joined = models.PBM(relevance=trained.relevance, examination=other.examination)
    assert schema_of(joined) == InputSchema(("price", "stock"))


def test_saved_models_keep_the_names(trained: Any, logs: dict[Any, ClickLog], tmp_path: Path) -> None:
    save(trained, tmp_path / "model")
    again = load(tmp_path / "model")
    assert schema_of(again) == InputSchema(("price", "stock"))
    expected = numbers(evaluate(trained, logs["price", "stock"], key=KEY))
    assert numbers(evaluate(again, logs["stock", "price"], key=KEY)) == expected
    with pytest.raises(DataError, match=LISTS):
        evaluate(again, logs["weight", "age"], key=KEY)
    file = tmp_path / "model" / "meta.json"
    meta = json.loads(file.read_text())
    file.write_text(json.dumps(meta | {"inputs": {"features": 3, "context": []}}))
    with pytest.raises(CheckpointError, match="names of features"):
        load(tmp_path / "model")


def test_a_model_of_an_earlier_version_still_loads(trained: Any, logs: dict[Any, ClickLog], tmp_path: Path) -> None:
    save(trained, tmp_path / "model")
    file = tmp_path / "model" / "meta.json"
    meta = json.loads(file.read_text())
    del meta["inputs"]
    file.write_text(json.dumps(meta))
    with pytest.warns(UserWarning, match="without the names of its features"):
        old = load(tmp_path / "model")
    expected = numbers(evaluate(trained, logs["price", "stock"], key=KEY))
    assert numbers(evaluate(old, logs["price", "stock"], key=KEY)) == expected
    with pytest.raises(ConfigError, match="expected 2 features, found"):
        evaluate(old, logs[ORDERS[1]], key=KEY)


def test_a_state_of_an_earlier_version_is_resumed(logs: dict[Any, ClickLog], tmp_path: Path) -> None:
    log = logs["price", "stock"]
    options: dict[str, Any] = {"batch_size": 32, "seed": 0, "directory": tmp_path / "run"}
    expected = fit(network(log), log, epochs=2, batch_size=32, seed=0).history
    fit(network(log), log, epochs=1, **options)
    file = tmp_path / "run" / "state" / "meta.json"
    meta = json.loads(file.read_text())
    assert meta.pop("inputs")["features"] == ["price", "stock"]
    file.write_text(json.dumps(meta))
    found = fit(network(log), log, epochs=2, resume=True, **options).history
    assert [epoch["loss"] for epoch in found] == [epoch["loss"] for epoch in expected]


def test_sessions_without_names_are_scored_as_they_are(trained: Any, logs: dict[Any, ClickLog]) -> None:
    batch = next(iter(logs["price", "stock"].batches(200)))
    expected = numbers(evaluate(trained, batch, key=KEY))
    assert expected == numbers(evaluate(trained, batch, key=KEY))
    unnamed = fit(network(batch), batch, epochs=1, batch_size=32, seed=0).model  # type: ignore[arg-type]
    assert schema_of(unnamed) is None
    evaluate(unnamed, logs["weight", "age"], key=KEY)


def test_numbered_columns_are_counted(logs: dict[Any, ClickLog]) -> None:
    numbered = simulate.collection(queries=10, documents=4, features=2, seed=0)
    log = logs["price", "stock"]
    model = fit(network(log), log, epochs=1, batch_size=32, seed=0).model
    evaluate(model, numbered, metrics=["ndcg@5"], key=KEY)
    wide = simulate.collection(queries=10, documents=4, features=3, seed=0)
    with pytest.raises(DataError, match="reads 2 features, found 3"):
        evaluate(model, wide, metrics=["ndcg@5"], key=KEY)


def test_features_of_impressions_are_found_among_those_of_documents(logs: dict[Any, ClickLog], tmp_path: Path) -> None:
    mixed = named_log(tmp_path / "mixed", ("stock",), impressions=("price",))
    model = fit(network(mixed), mixed, epochs=1, batch_size=32, seed=0).model
    assert schema_of(model) == InputSchema(("stock", "price"))
    expected = numbers(evaluate(model, mixed, metrics=["log_likelihood"], key=KEY))
    for order in [("price", "stock"), *ORDERS]:
        assert numbers(evaluate(model, logs[order], metrics=["log_likelihood"], key=KEY)) == expected
    both = named_log(tmp_path / "both", ("stock", "price"), impressions=("price",))
    assert both.input_schema.features == ("stock", "price", "impression.price")


# Categories of contexts


def by_device(values: int) -> models.PBM:
    device = towers.DocumentTable(values, feature="device")
    return models.PBM(relevance=towers.Sum([towers.DocumentTable(30), device]), examination=towers.RankTable(4))


@pytest.mark.parametrize("kind", ["fit", "solve"])
def test_categories_are_matched_by_value(kind: str, tmp_path: Path) -> None:
    train = named_log(tmp_path / "train", devices=("phone", "desk"))
    other = named_log(tmp_path / "other", devices=("tablet", "desk", "phone"))
    if kind == "fit":
        model = fit(by_device(2), train, epochs=2, batch_size=32, seed=0).model
    else:
        table = towers.DocumentTable(2, feature="device")
        model = solve(models.PBM(relevance=table, examination=towers.RankTable(4)), train, other).model
    assert present(schema_of(model)).context == (("device", ("phone", "desk")),)
    expected = numbers(evaluate(model, train, metrics=["log_likelihood"], key=KEY))
    assert numbers(evaluate(model, other, metrics=["log_likelihood"], key=KEY)) == expected
    with pytest.raises(DataError, match=r"reads the contexts \(device\), found none"):
        evaluate(model, named_log(tmp_path / "none", devices=None), metrics=["log_likelihood"], key=KEY)


def test_a_category_that_the_model_does_not_know_counts_as_unknown(tmp_path: Path) -> None:
    train = named_log(tmp_path / "train", devices=("phone",))
    model = fit(by_device(1), train, epochs=2, batch_size=32, seed=0).model
    other = named_log(tmp_path / "other", devices=("desk", "phone"))
    expected = numbers(evaluate(model, train, metrics=["log_likelihood"], key=KEY))
    assert numbers(evaluate(model, other, metrics=["log_likelihood"], key=KEY)) == expected


def test_validation_of_solve_is_matched(tmp_path: Path) -> None:
    train = named_log(tmp_path / "train", devices=("phone", "desk"))
    other = named_log(tmp_path / "other", devices=("desk", "phone"))
    model = models.PBM(relevance=towers.DocumentTable(2, feature="device"), examination=towers.RankTable(4))
    expected = solve(model, train, train, iterations=3).history
    found = solve(model, train, other, iterations=3).history
    assert [epoch["valid_loss"] for epoch in found] == [epoch["valid_loss"] for epoch in expected]


# A user's own tower


class OwnTower(nnx.Module):
    """Reads features and context without saying so."""

    def __init__(self) -> None:
        self.weight = nnx.Param(jax.numpy.ones(2))

    def __call__(self, sessions: Sessions) -> jax.Array:
        return sessions.features["features"] @ self.weight[...]


def test_a_tower_of_ones_own_is_matched_too(logs: dict[Any, ClickLog]) -> None:
    log = logs["price", "stock"]
    model = models.PBM(relevance=OwnTower(), examination=towers.RankTable(4))
    model = fit(model, log, epochs=1, batch_size=32, seed=0).model
    expected = numbers(evaluate(model, log, key=KEY))
    for order in ORDERS:
        assert numbers(evaluate(model, logs[order], key=KEY)) == expected
    with pytest.raises(DataError, match=LISTS):
        evaluate(model, logs["weight", "age"], key=KEY)


# Commands


@pytest.fixture(scope="module")
def run(logs: dict[Any, ClickLog], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from conftest import run_command

    out = tmp_path_factory.mktemp("run") / "run"
    options = ("--relevance", "linear", "--epochs", "2", "--batch-size", "32", "--valid-fraction", "0")
    result = run_command("train", logs["price", "stock"].path, "--out", out, *options)
    assert result.code == 0, result.err
    return out


def test_commands_match_by_name(ultr: Ultr, run: Path, logs: dict[Any, ClickLog], tmp_path: Path) -> None:
    expected = ultr("evaluate", run, logs["price", "stock"].path, "--json").json
    for number, order in enumerate(ORDERS):
        found = ultr("evaluate", run, logs[order].path, "--json").json
        assert found | {"notes": expected["notes"]} == expected  # which say that one of them is the training log
        named_collection(order).save(tmp_path / f"collection-{number}")
    found = [ultr("evaluate", run, tmp_path / f"collection-{n}", "--json").json for n in range(len(ORDERS))]
    assert found[0] == found[1]
    assert found[0]["ndcg@10"]["value"] == expected["ndcg@10"]["value"]
    wrong = ultr("evaluate", run, logs["weight", "age"].path)
    assert wrong.code == 2
    assert "(price, stock), found (weight, age)" in wrong.err


def test_diagnosis_says_that_a_run_is_of_other_features(
    ultr: Ultr, run: Path, logs: dict[Any, ClickLog], tmp_path: Path
) -> None:
    same, permuted, other = (
        ultr("diagnose", logs[order].path, "--run", run, "--json").json["agreement"]
        for order in [("price", "stock"), ORDERS[0], ("weight", "age")]
    )
    assert same == permuted
    assert "note" not in same
    assert "(price, stock), found (weight, age)" in other["note"]
    assert {name: value for name, value in other.items() if name != "note"} == same


def test_training_commands_match_by_name(ultr: Ultr, logs: dict[Any, ClickLog], tmp_path: Path) -> None:
    options = ("--relevance", "linear", "--epochs", "1", "--batch-size", "32", "--json")
    losses = []
    for number, order in enumerate([("price", "stock"), *ORDERS]):
        out = tmp_path / str(number)
        made = ultr("train", logs["price", "stock"].path, "--out", out, "--valid", logs[order].path, *options)
        losses.append(made.json["history"][0]["valid_loss"])
    assert losses[1:] == losses[:1] * 2
    valid = ("--valid", logs["weight", "age"].path)
    wrong = ultr("train", logs["price", "stock"].path, "--out", tmp_path / "x", *valid, *options)
    assert wrong.code == 2
    assert "validation data: the model reads the features (price, stock), found (weight, age)" in wrong.err
    again = ultr("train", logs["stock", "price"].path, "--out", tmp_path / "0", "--resume", *options)
    assert again.code == 2
    assert "inputs.features (['price', 'stock'], now ['stock', 'price'])" in again.err


@pytest.mark.slow
def test_test_lists_of_a_comparison_are_matched_by_name(ultr: Ultr, logs: dict[Any, ClickLog], tmp_path: Path) -> None:
    found = []
    for number, order in enumerate([("price", "stock"), *ORDERS, ("weight", "age")]):
        named_collection(order).save(tmp_path / f"test-{number}")
        (tmp_path / "study.toml").write_text(f"""
            seeds = [0]
            metrics = ["ndcg@3"]
            data = {{test = "test-{number}"}}
            defaults = {{epochs = 1}}
            log = [{{name = "log", path = "{logs["price", "stock"].path}"}}]
            method = [{{model = "pbm", relevance = "linear"}}, {{model = "lightgbm"}}]
        """)
        assert ultr("compare", tmp_path / "study.toml", "--out", tmp_path / f"out-{number}").code == 0
        cells = [
            json.loads(path.read_text()) for path in sorted((tmp_path / f"out-{number}" / "cells").rglob("*.json"))
        ]
        found.append([(cell["method"], cell.get("metrics"), cell.get("error")) for cell in cells])
    assert len(found[0]) == 2
    assert all(error is None for _, _, error in found[0])
    assert found[1] == found[0]
    assert found[2] == found[0]
    assert all("(price, stock), found (weight, age)" in str(error) for _, _, error in found[3])


def test_counts_keep_the_names(trained: Any, logs: dict[Any, ClickLog]) -> None:
    losses = [
        evaluate(trained, collapse(logs[order], "rank"), metrics=["log_likelihood"], key=KEY)["log_likelihood"].value
        for order in [("price", "stock"), ORDERS[0]]
    ]
    assert losses[0] == losses[1]
