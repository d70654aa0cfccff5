"""The command line as its users meet it: results, JSON alone on standard output, one line for a mistake."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Ultr, run_command

from ultr import cli, compilation_cache, models, simulate, towers
from ultr.cli import train
from ultr.data import ClickLog
from ultr.errors import ConfigError
from ultr.study import ModelConfig, build_model, specs
from ultr.study.building import build_optimizer, resolve_optimizer
from ultr.training import adam, fit, lazy_adam, load, optimizers, solve
from ultr.training.checkpoint import read_meta


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "collection"
    simulate.collection(queries=60, documents=12, features=5, seed=0).save(path)
    return path


@pytest.fixture(scope="module")
def log(collection: Path) -> Path:
    path = collection.parent / "log"
    result = run_command("simulate", collection, "--out", path, "--sessions", 3000, "--policy", "random", "--json")
    assert result.code == 0, result.err
    return path


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_with_an_example(name: str, ultr: Ultr) -> None:
    result = ultr(name, "--help")
    assert result.code == 0
    assert f"ultr {name}" in result.out
    assert "Example" in result.out
    for option in ("--json", "--seed"):
        assert option in result.out


def test_the_command_lists_its_commands(ultr: Ultr) -> None:
    result = ultr("--help")
    assert result.code == 0
    assert all(name in result.out for name in cli.COMMANDS)
    assert "0.1.0" in ultr("--version").out


@pytest.mark.slow
def test_from_a_table_of_clicks_to_numbers(ultr: Ultr, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = ["search,query,sku,rank,click,price,device"]
    for session in range(600):
        for rank, sku in enumerate(rng.permutation(5), start=1):
            click = int(rng.random() < (sku + 1) / 5 / rank)
            rows.append(
                f"{session},q{session % 7},d{sku},{rank},{click},{sku + 0.5},{'pc' if session % 3 else 'phone'}"
            )
    raw = tmp_path / "clicks.csv"
    raw.write_text("\n".join(rows) + "\n")
    made = ultr("prepare", raw, "--out", tmp_path / "log", "--session", "search", "--document", "sku", "--feature",
                "price", "--context", "device", "--json")  # fmt: skip
    assert made.code == 0, made.err
    facts = made.json
    assert (facts["sessions"], facts["queries"], facts["documents"], facts["ranks"]) == (600, 7, 35, 5)
    trained = ultr("train", tmp_path / "log", "--out", tmp_path / "run", "--model", "pbm", "--relevance", "table",
                   "--epochs", 4, "--batch-size", 64, "--seed", 1, "--json")  # fmt: skip
    assert trained.code == 0, trained.err
    assert len(trained.json["propensity"]) == 5
    assert trained.json["propensity"][0] == 1.0
    judged = ultr("evaluate", tmp_path / "run", tmp_path / "log", "--json")
    assert judged.code == 0, judged.err
    assert judged.json["perplexity"]["value"] > 1
    assert judged.json["log_likelihood"]["value"] < 0
    assert judged.json["conditional_perplexity"]["standard_error"] > 0
    text = ultr("evaluate", tmp_path / "run", tmp_path / "log", "--metrics", "perplexity")
    assert "perplexity" in text.out
    assert "trained on sessions of this log" in text.err


@pytest.mark.slow
def test_a_network_is_judged_on_graded_lists(ultr: Ultr, log: Path, collection: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained = ultr("train", log, "--out", run, "--model", "naive", "--hidden", "8", "--epochs", 12,
                   "--learning-rate", 0.02, "--json")  # fmt: skip
    assert trained.code == 0, trained.err
    judged = ultr("evaluate", run, collection, "--metrics", "ndcg@10,mrr@10", "--json")
    assert judged.code == 0, judged.err
    assert set(judged.json) == {"ndcg@10", "mrr@10", "judged", "notes"}
    assert 0.5 < judged.json["ndcg@10"]["value"] <= 1
    low, high = judged.json["ndcg@10"]["interval"]
    assert low < judged.json["ndcg@10"]["value"] < high


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_and_resume_goes_on(ultr: Ultr, log: Path, tmp_path: Path) -> None:
    options = ("--batch-size", "256", "--seed", "5", "--json")
    ultr("train", log, "--out", tmp_path / "b", "--epochs", 1, *options)
    chosen = json.loads((tmp_path / "b" / "run.json").read_text())["config"]
    given = ("--relevance", chosen["relevance"], "--l2", chosen["l2"])
    whole = ultr("train", log, "--out", tmp_path / "a", "--epochs", 3, *given, *options).json
    rest = ultr("train", log, "--out", tmp_path / "b", "--epochs", 3, "--resume", *options)
    assert rest.code == 0, rest.err
    assert [h["loss"] for h in rest.json["history"]] == [h["loss"] for h in whole["history"]]
    assert rest.json["propensity"] == whole["propensity"]
    first = json.loads((tmp_path / "b" / "state" / "meta.json").read_text())["settings"]["tower"]
    assert rest.json["tower"] == first  # it is not chosen again by more epochs


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["em", "lbfgs", "counting"])
def test_a_solver_trains_tables(solver: str, ultr: Ultr, log: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("--solver", solver, "--prior", 3.0, "--seed", 4, *(() if solver == "counting" else ("--epochs", 3)))
    trained = ultr("train", log, "--out", run, "--model", "sdbn", "--relevance", "table", *options, "--json")
    assert trained.code == 0, trained.err
    assert json.loads((run / "run.json").read_text()) == trained.json
    opened = ClickLog.open(log)
    parts = opened.split({"train": 0.9, "valid": 0.1}, by="session", seed=4)
    untrained = build_model(ModelConfig("sdbn", "table"), opened)
    same = solve(untrained, parts["train"], parts["valid"], method=solver, prior=3.0, iterations=3)  # type: ignore[arg-type]
    timeless = [
        [{k: v for k, v in h.items() if k != "seconds"} for h in x] for x in (same.history, trained.json["history"])
    ]
    assert timeless[0] == timeless[1]
    assert trained.json["best_epoch"] == same.best
    np.testing.assert_array_equal(load(run / "model").relevance.table[...], same.model.relevance.table[...])
    found = trained.json["config"]
    assert (found["solver"], found["prior"], found["epochs"]) == (solver, 3.0, 1 if solver == "counting" else 3)
    assert not {"optimizer", "learning_rate", "batch_size", "l2", "patience"} & set(found)
    extra = read_meta(run / "model")["extra"]
    assert extra == {"vocabulary": opened.vocabulary.identity, "train": parts["train"].identity}
    judged = ultr("evaluate", run, log, "--metrics", "log_likelihood", "--json")
    assert "trained on sessions of this log" in judged.err
    resumed = ultr("train", log, "--out", run, "--resume")
    assert resumed.code == 2
    assert "without a state to resume from" in resumed.err


def test_options_that_a_solver_does_not_heed_are_rejected(ultr: Ultr, log: Path, tmp_path: Path) -> None:
    given: dict[str, tuple[str, ...]] = {"l2_unit": ("session",), "collapse": ("never",), "resume": ()}
    given |= {"patience": ("2",), "batch_size": ("64",), "optimizer": ("adam",), "learning_rate": ("0.1",)}
    given |= {"l2": ("1",), "epochs": ("3",), "prior": ("1",), "folds": ("3",)}
    for solver, unheeded in train.WITHOUT_EFFECT.items():
        for name in unheeded:
            option = f"--{name.replace('_', '-')}"
            result = ultr("train", log, "--out", tmp_path / "r", "--solver", solver, option, *given[name])
            assert result.code == 2
            assert f"{option} has no effect with --solver {solver}, only with" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_optimizer_is_recorded_and_resuming_with_another_is_refused(ultr: Ultr, log: Path, tmp_path: Path) -> None:
    options = ("train", log, "--out", tmp_path / "r", "--relevance", "table", "--batch-size", 256, "--json")
    trained = ultr(*options, "--epochs", 1, "--optimizer", "lazy-adagrad", "--learning-rate", 0.002)
    assert trained.json["config"]["optimizer"] == "lazy-adagrad"
    assert trained.json["config"]["solver"] == "gradient"
    for other, what in (
        (("--optimizer", "lazy-adagrad"), "settings.learning_rate (0.002, now 0.003)"),
        (("--optimizer", "adam", "--learning-rate", 0.002), "settings.optimizer ('lazy-adagrad', now 'adam')"),
    ):
        refused = ultr(*options, "--epochs", 2, "--resume", *other)
        assert refused.code == 2
        assert what in refused.err
    more = ultr(*options, "--epochs", 2, "--resume", "--optimizer", "lazy-adagrad", "--learning-rate", 0.002)
    assert more.json["history"][-1]["epoch"] == 2
    assert more.json["history"][0] == trained.json["history"][0]


def test_without_options_training_is_what_fit_does_without_them(ultr: Ultr, log: Path, tmp_path: Path) -> None:
    trained = ultr("train", log, "--out", tmp_path / "r", "--relevance", "table", "--epochs", 1, "--json").json
    opened = ClickLog.open(log)
    parts = opened.split({"train": 0.9, "valid": 0.1}, by="session", seed=0)
    model = build_model(ModelConfig("pbm", "table"), opened)
    expected = fit(model, parts["train"], parts["valid"], epochs=1, seed=0, batch_size=None)
    assert trained["history"][0]["loss"] == expected.history[0]["loss"]
    about = expected.trained_on
    assert about is not None
    assert trained["trained_on"] == dataclasses.asdict(about) | {"text": about.text}
    assert trained["config"]["optimizer"] == "adam"


@pytest.mark.parametrize("documents", [optimizers.LARGE_TABLE - 1, optimizers.LARGE_TABLE])
def test_the_automatic_optimizer_is_that_of_fit(documents: int, log: Path) -> None:
    sessions = ClickLog.open(log)
    model = models.DCTR(towers.DocumentTable(documents))
    kind = resolve_optimizer("auto", model)
    assert kind == ("lazy-adam" if documents == optimizers.LARGE_TABLE else "adam")

    def loss(**options: Any) -> float:
        (epoch,) = fit(model, sessions, epochs=1, seed=0, **options).history
        return float(epoch["loss"])

    automatic, own = loss(), {"adam": loss(optimizer=adam()), "lazy-adam": loss(optimizer=lazy_adam())}
    assert [name for name, value in own.items() if value == automatic] == [kind]


def test_optimizers_have_names() -> None:
    assert specs.OPTIMIZERS == ("adam", "lazy-adam", "lazy-adagrad")
    assert resolve_optimizer("lazy-adagrad", None) == "lazy-adagrad"
    assert build_optimizer("lazy-adam", 0.002).tables.learning_rate == pytest.approx(0.02)
    assert build_optimizer("lazy-adagrad", 0.002).tables.learning_rate == pytest.approx(0.2)
    with pytest.raises(ConfigError, match="unknown optimizer 'sgd'; known: adam, lazy-adam, lazy-adagrad"):
        build_optimizer("sgd", 0.1)


def fresh(code: str, *arguments: object, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a process of its own, where nothing is imported yet."""
    root = str(Path(cli.__file__).parents[2])
    unset = ("JAX_COMPILATION_CACHE_DIR", "ULTR_CACHE", "XDG_CACHE_HOME")
    variables = {k: v for k, v in os.environ.items() if k not in unset} | {"PYTHONPATH": root}
    variables |= {k: v for k, v in environment.items() if v is not None}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=variables, check=True)


@pytest.mark.slow
def test_what_is_compiled_is_kept_for_the_next_command(run: Path, log: Path, tmp_path: Path) -> None:
    code = "import sys; from ultr import cli; cli.main(sys.argv[1:])"
    arguments = ("evaluate", run, log, "--metrics", "perplexity", "--json")
    first = fresh(code, *arguments, XDG_CACHE_HOME=str(tmp_path))
    folder = tmp_path / "ultr" / "xla"
    assert folder.stat().st_mode & 0o077 == 0
    kept = {p.name for p in folder.iterdir()}
    assert any(name.startswith("jit_") for name in kept)
    again = fresh(code, *arguments, XDG_CACHE_HOME=str(tmp_path))
    assert {p.name for p in folder.iterdir()} == kept
    assert first.stdout == again.stdout
    assert again.stderr.count("\n") == 1  # the note about sessions of training
    (tmp_path / "file").write_text("not a folder")
    without = fresh(code, *arguments, XDG_CACHE_HOME=str(tmp_path / "file"))
    assert (without.stdout, without.stderr) == (first.stdout, first.stderr)


def test_where_compiled_programs_are_kept(tmp_path: Path) -> None:
    code = """
import json, os, sys
from ultr.compilation_cache import turn_on
turn_on()
assert "jax" not in sys.modules
print(json.dumps({k: v for k, v in os.environ.items() if k.startswith("JAX_")}))
"""
    folder = "JAX_COMPILATION_CACHE_DIR"

    def settings(**environment: str) -> Any:
        return json.loads(fresh(code, **environment).stdout)

    (tmp_path / "file").write_text("")
    assert settings(XDG_CACHE_HOME=str(tmp_path))[folder] == str(tmp_path / "ultr" / "xla")
    assert settings(XDG_CACHE_HOME="relative", HOME=str(tmp_path))[folder] == str(tmp_path / ".cache" / "ultr" / "xla")
    mine = {folder: str(tmp_path / "mine"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "3"}
    found = settings(**mine)
    assert {name: found[name] for name in mine} == mine
    assert not (tmp_path / "mine").exists()
    assert folder not in settings(XDG_CACHE_HOME=str(tmp_path / "file"))
    off = settings(ULTR_CACHE="off", XDG_CACHE_HOME=str(tmp_path / "unused"))
    assert folder not in off
    assert off["JAX_ENABLE_COMPILATION_CACHE"] == "false"
    assert not (tmp_path / "unused").exists()


def test_the_cache_does_not_grow_without_end(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"jit_{i}").write_text("")
        os.utime(tmp_path / f"jit_{i}", (i, i))
    compilation_cache.prune(tmp_path, entries=4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["jit_2", "jit_3", "jit_4"]
    compilation_cache.prune(tmp_path, entries=4)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_process_that_has_imported_jax_keeps_its_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = dict(os.environ)
    compilation_cache.turn_on()
    assert dict(os.environ) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_splits_of_a_log_are_used(ultr: Ultr, log: Path, tmp_path: Path) -> None:
    result = ultr("train", log, "--out", tmp_path / "r", "--model", "rctr", "--epochs", 1, "--valid-fraction", 0,
                  "--json")  # fmt: skip
    assert result.json["validation_sessions"] == 0
    assert result.json["sessions"] == len(ClickLog.open(log))
    mixed = ultr("train", log, "--out", tmp_path / "m", "--model", "pbm+dbn", "--relevance", "linear", "--epochs", 1,
                 "--valid", log, "--json")  # fmt: skip
    assert mixed.code == 0, mixed.err
    assert mixed.json["validation_sessions"] == 3000


@pytest.mark.slow
def test_training_takes_the_split_that_it_is_told(ultr: Ultr, tmp_path: Path) -> None:
    rows = [f"{s},q{s % 9},d{k},{k},{int(s % k == 0)}" for s in range(200) for k in (1, 2, 3)]
    (tmp_path / "c.csv").write_text("\n".join(["session,query,document,rank,click", *rows]) + "\n")
    split = ("--split", "fit=.5,dev=.2,test=.3", "--split-by", "session")
    assert ultr("prepare", tmp_path / "c.csv", "--out", tmp_path / "log", *split).code == 0
    splits = ClickLog.open(tmp_path / "log").metadata["splits"]
    refused = ultr("train", tmp_path / "log", "--out", tmp_path / "run", "--model", "rctr")
    assert refused.code == 2
    assert "name the one to train on with --split" in refused.err
    options = ("--model", "rctr", "--epochs", 1, "--split", "fit")
    told = ultr("train", tmp_path / "log", "--out", tmp_path / "run", *options, "--valid-split", "dev", "--json")
    assert (told.json["sessions"], told.json["validation_sessions"]) == (splits["fit"], splits["dev"])
    held_out = ultr("evaluate", tmp_path / "run", tmp_path / "log", "--split", "test", "--json")
    assert held_out.json["log_likelihood"]["count"] == splits["test"]
    assert held_out.err == ""
    assert "trained on sessions of this log" in ultr("evaluate", tmp_path / "run", tmp_path / "log").err
    tiny = ultr("train", tmp_path / "log", "--out", tmp_path / "r2", *options, "--valid-fraction", "0.00001")
    assert "leaves none to judge the epochs by" in tiny.err


@pytest.mark.slow
def test_a_log_of_one_query_holds_sessions_out(ultr: Ultr, tmp_path: Path) -> None:
    rows = [f"{s},q,d{k},{k},{int(s % k == 0)},{k}.5" for s in range(100) for k in (1, 2, 3)]
    (tmp_path / "c.csv").write_text("\n".join(["session,query,document,rank,click,price", *rows]) + "\n")
    assert ultr("prepare", tmp_path / "c.csv", "--out", tmp_path / "log", "--feature", "price").code == 0
    result = ultr("train", tmp_path / "log", "--out", tmp_path / "run", "--epochs", 1, "--json")
    assert "sessions are held out instead" in result.err
    assert 0 < result.json["validation_sessions"] < 30
    assert result.json["config"]["relevance"] == "mlp"


@pytest.mark.slow
def test_the_demo_writes_its_results(ultr: Ultr, tmp_path: Path) -> None:
    small = ("--queries", 40)
    result = ultr("demo", "--out", tmp_path / "demo", "--sessions", 2000, "--seed", 2, *small)
    assert result.code == 0, result.err
    for word in ("naive", "two-tower", "full information", "true examination", "learned"):
        assert word in result.out
    saved = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert set(saved["ndcg@10"]) == {"naive", "two-tower (PBM)", "full information"}
    assert len(saved["examination"]["learned"]) == 10
    assert len(ClickLog.open(tmp_path / "demo" / "log")) == 2000
    again = ultr("demo", "--out", tmp_path / "demo", "--sessions", 1000, *small, "--json")
    assert again.json["sessions"] == 1000
    (tmp_path / "demo" / "thesis.txt").write_text("mine")
    assert ultr("demo", "--out", tmp_path / "demo", "--sessions", 1000).code == 2
    assert (tmp_path / "demo" / "thesis.txt").read_text() == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "results.json").write_text("{}")
    assert ultr("demo", "--out", tmp_path / "other", "--sessions", 1000).code == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demo", "other"]


MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "command": (("trian",), "unknown command 'trian' (did you mean 'train'?); known: demo, prepare"),
    "option": (("train", "{log}", "--out", "{tmp}/r", "--epoch", "3"), "No such option"),
    "model": (
        ("train", "{log}", "--out", "{tmp}/r", "--model", "pmb"),
        "unknown model 'pmb' (did you mean 'pbm'?); known: gctr",
    ),
    "mixture": (("train", "{log}", "--out", "{tmp}/r", "--model", "pbm+naive"), "made of click models"),
    "relevance": (("train", "{log}", "--out", "{tmp}/r", "--relevance", "tree"), "unknown relevance tower 'tree'"),
    "hidden": (("train", "{log}", "--out", "{tmp}/r", "--hidden", "big"), "expected widths such as 64,64"),
    "no log": (("train", "{tmp}/none", "--out", "{tmp}/r"), "none"),
    "not a log": (("train", "{collection}", "--out", "{tmp}/r"), "ultr-click-log"),
    "policy": (("simulate", "{collection}", "--out", "{tmp}/l", "--policy", "best"), "unknown policy 'best'"),
    "user": (("simulate", "{collection}", "--out", "{tmp}/l", "--model", "eye"), "unknown user model 'eye'"),
    "exists": (("simulate", "{collection}", "--out", "{log}"), "overwrite"),
    "metric": (("evaluate", "{run}", "{log}", "--metrics", "ndgc@10"), "unknown metric 'ndgc@10'"),
    "no run": (("evaluate", "{tmp}/none", "{log}"), "expected a saved model"),
    "missing metric": (("evaluate", "{run}", "{collection}", "--metrics", "perplexity"), "no clicks"),
    "input": (("prepare", "{tmp}/none.csv", "--out", "{tmp}/l"), "none.csv"),
    "format": (("prepare", "{run}/run.json", "--out", "{tmp}/l", "--format", "xml"), "xml"),
    "seed": (("train", "{log}", "--out", "{tmp}/r", "--seed", "-1"), "-1"),
    "rate": (("train", "{log}", "--out", "{tmp}/r", "--learning-rate", "-1"), "learning rate above 0"),
    "rows": (("train", "{log}", "--out", "{tmp}/r", "--rows", "5"), "rows belong to a compressed table"),
    "transform": (("train", "{log}", "--out", "{tmp}/r", "--transform", "zzz"), "unknown transform 'zzz'"),
    "optimizer": (("train", "{log}", "--out", "{tmp}/r", "--optimizer", "sgd"), "'sgd' is not one of 'auto', 'adam'"),
    "solver": (("train", "{log}", "--out", "{tmp}/r", "--solver", "newton"), "'newton' is not one of 'gradient', 'em'"),
    "network with a solver": (("train", "{log}", "--out", "{tmp}/r", "--solver", "em"), "is not a plain table"),
    "model with a solver": (
        ("train", "{log}", "--out", "{tmp}/r", "--solver", "em", "--model", "naive"),
        "cannot train --model naive, only gctr",
    ),
    "counting": (
        ("train", "{log}", "--out", "{tmp}/r", "--solver", "counting", "--relevance", "table"),
        "counting cannot train --model pbm",
    ),
    "prior": (
        ("train", "{log}", "--out", "{tmp}/r", "--solver", "em", "--relevance", "table", "--prior", "0"),
        "x>0",
    ),
    "foreign folder": (("train", "{log}", "--out", "{log}"), "holds other files"),
    "file as folder": (("train", "{log}", "--out", "{run}/run.json"), "is a file"),
    "below a file": (("demo", "--out", "{run}/run.json/x"), "run.json"),
    "temperature": (("simulate", "{collection}", "--out", "{tmp}/l", "--temperature", "inf"), "finite temperature"),
    "zipf": (("simulate", "{collection}", "--out", "{tmp}/l", "--zipf", "nan"), "zipf as a finite number"),
    "split": (("prepare", "{run}/run.json", "--out", "{tmp}/l", "--split", "a:b"), "expected NAME=SHARE"),
    "demo": (("demo", "--sessions", "3"), "3"),
}


@pytest.fixture(scope="module")
def run(log: Path) -> Path:
    path = log.parent / "run"
    result = run_command("train", log, "--out", path, "--model", "rctr", "--epochs", 1, "--json")
    assert result.code == 0, result.err
    return path


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_line_and_exit_code_2(
    name: str, ultr: Ultr, log: Path, collection: Path, run: Path, tmp_path: Path
) -> None:
    arguments, message = MISTAKES[name]
    places = {"log": log, "collection": collection, "run": run, "tmp": tmp_path}
    result = ultr(*(a.format(**places) for a in arguments))
    assert result.code == 2, result.err
    assert result.out == ""
    assert message in result.err
    assert result.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_does_not_overwrite_the_first(ultr: Ultr, log: Path, run: Path) -> None:
    before = (run / "run.json").read_text()
    result = ultr("train", log, "--out", run, "--model", "pbm")
    assert result.code == 2
    assert "holds a run already" in result.err
    assert (run / "run.json").read_text() == before
