"""The registry of methods: what its rows say is what the classes, the solvers, the help and the README say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Ultr
from stored import write_log

from ultr import simulate, towers
from ultr.baselines import ShrunkCTR
from ultr.errors import ConfigError
from ultr.models import UBM, ClickModel, Frailty, LatentVariableModel
from ultr.study import METHODS, ModelConfig, build_model, method_spec, methods_table, specs
from ultr.study.building import build_optimizer
from ultr.study.effects import without_effect
from ultr.study.registry import FAMILIES
from ultr.study.specs import OPTIMIZERS
from ultr.study.tower_factory import TowerFactory
from ultr.training import solver_methods

pytestmark = pytest.mark.usefixtures("quickly_compiled")
TRAINED = {name: spec for name, spec in METHODS.items() if spec.trained_on_log}


@pytest.mark.slow
def test_rows_name_what_is_made(tmp_path: Path) -> None:
    rows = [
        {"session": str(i), "query": 0, "documents": list(d), "ranks": [1, 2, 3], "clicks": [1, 1, 1]}
        for i, d in enumerate([(1, 2, 3), (2, 3, 1), (3, 1, 2)] * 2000)
    ]
    log = write_log(tmp_path / "log", rows, step=2000)
    built = {
        name: build_model(ModelConfig(model=name, relevance="table"), log)
        for name in TRAINED
        if name != "upe"  # which fits a policy first
    }
    assert {name: type(model) for name, model in built.items()} == {n: METHODS[n].made_class for n in built}
    for name, model in built.items():
        assert METHODS[name].is_click_model == isinstance(model, ClickModel)
        assert bool(METHODS[name].solvers) == isinstance(model, LatentVariableModel | ShrunkCTR)
    assert [name for name in METHODS if "counting" in METHODS[name].solvers] == [
        "gctr", "rctr", "dctr", "rdctr", "cascade", "dcm", "sdbn", "shrunk-ctr",
    ]  # fmt: skip


def test_satisfaction_rises_with_relevance_for_networks_unless_told_otherwise(tmp_path: Path) -> None:
    rows = [
        {"session": str(i), "query": 0, "documents": [1, 2, 3], "ranks": [1, 2, 3], "clicks": [1, 0, 1]}
        for i in range(4)
    ]
    log = write_log(tmp_path / "log", rows)

    def made(name: str, relevance: str, **options: object) -> Any:
        return build_model(ModelConfig(name, relevance, options=options), log)

    for name in ("dbn", "sdbn"):
        for model in (made(name, "linear"), made(name, "table", satisfaction="monotone")):
            assert type(model.satisfaction) is towers.Increasing
            assert model.satisfaction.tower is model.relevance
        for model in (made(name, "table"), made(name, "linear", satisfaction="free")):
            assert type(model.satisfaction) is type(model.relevance)
            assert model.satisfaction is not model.relevance
    mixture = made("pbm+dbn", "linear")
    assert mixture.components[1].satisfaction.tower is mixture.components[1].relevance
    assert mixture.components[0].relevance is not mixture.components[1].relevance
    frail = made("ubm", "linear", frailty=True)
    assert (type(frail), type(frail.model)) == (Frailty, UBM)
    with pytest.raises(ConfigError, match="'pbm\\+dbn' has no option 'frailty'"):
        made("pbm+dbn", "linear", frailty=True)


@pytest.mark.parametrize("name", [name for name, spec in METHODS.items() if spec.makes])
def test_rows_declare_the_solvers_of_their_class(name: str) -> None:
    spec = METHODS[name]
    assert spec.solvers == solver_methods(spec.made_class)


def test_every_row_is_complete() -> None:
    assert {spec.family for spec in METHODS.values()} == set(FAMILIES)
    for name, spec in METHODS.items():
        assert spec.name == name
        assert spec.summary
        assert bool(spec.towers or spec.solvers) == bool(spec.makes)
        assert all(hasattr(TowerFactory, tower) for tower in spec.towers.values()), name
        for option in spec.options:
            assert option.help
            assert isinstance(option.default, option.type)
            assert option.read(option.default, "here") == option.default


def test_mixtures_are_made_of_click_models() -> None:
    mixture = method_spec("pbm+additive-frozen")
    assert mixture.is_click_model
    assert mixture.needs == ("propensity",)
    assert mixture.solvers == mixture.options == ()
    with pytest.raises(ConfigError, match="made of click models, and 'naive' in 'pbm\\+naive' is none"):
        method_spec("pbm+naive")
    with pytest.raises(ConfigError, match="unknown model 'dbnn' \\(did you mean 'dbn'\\?\\); known: gctr"):
        method_spec("pbm+dbnn")


@pytest.mark.parametrize(("command", "names"), [("train", list(TRAINED)), ("compare", list(METHODS))])
def test_help_names_every_method_by_family(ultr: Ultr, command: str, names: list[str]) -> None:
    words = ultr(command, "--help").out.replace("\n", " ")
    for name in names:
        assert name in " ".join(words.split()).replace("- ", "-"), name
        assert f"{METHODS[name].family}:" in words


def test_help_and_rows_need_no_jax() -> None:
    code = """
import sys
from ultr.cli import train
from ultr.study import METHODS, methods_table
methods_table()
assert not {"jax", "flax"} & set(sys.modules)
"""
    environment = {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@pytest.mark.parametrize("name", [name for name, spec in TRAINED.items() if spec.builder == "towers"])
def test_the_rate_of_tables_has_an_effect_where_there_are_tables(name: str) -> None:
    graded = simulate.collection(queries=5, documents=4, features=3, seed=0)
    spec, factory = METHODS[name], TowerFactory(ModelConfig(relevance="linear"), graded)
    groups = {group for kind in spec.towers.values() for group in towers.parameter_groups(factory.make(kind)).values()}
    assert ("table" in groups) == ("table_rate" not in without_effect(spec, ["linear"]))
    assert "table_rate" not in without_effect(spec, ["table"])


def test_names_of_transforms_are_those_of_the_scaler() -> None:
    assert towers.Scaler.transforms == specs.TRANSFORMS


def test_the_readme_has_the_table_of_methods() -> None:
    assert methods_table() in (ROOT / "README.md").read_text()


def test_optimizers_that_are_named_are_there() -> None:
    for name in OPTIMIZERS:
        assert build_optimizer(name, 0.1) is not None


@pytest.mark.parametrize("name", specs.NETWORKS)
def test_a_name_of_a_relevance_tower_gives_its_class(name: str) -> None:
    graded = simulate.collection(queries=5, documents=4, features=3, seed=0)
    tower = TowerFactory(ModelConfig(relevance=name, hidden=(5,)), graded).document()
    dotted, settings = specs.NETWORK_TOWERS[name]
    assert type(tower) is specs.import_class(dotted)
    assert ("hidden" in settings) == isinstance(tower, towers.MLP | towers.DCNV2)
    with pytest.raises(ConfigError, match=r"unknown relevance tower 'mpl' \(did you mean 'mlp'\?\)"):
        TowerFactory(ModelConfig(relevance="mpl"), graded)
