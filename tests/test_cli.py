"""The command line as its users meet it: results, JSON alone on standard output, one line for a mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ultr import cli, simulate
from ultr.logs import ClickLog


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def ultr(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as stop:
            cli.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Result(int(stop.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "collection"
    simulate.collection(queries=60, documents=12, features=5, seed=0).save(path)
    return path


@pytest.fixture(scope="module")
def log(collection: Path) -> Path:
    path = collection.parent / "log"
    with pytest.raises(SystemExit) as stop:
        cli.main(
            ["simulate", str(collection), "--out", str(path), "--sessions", "3000", "--policy", "random", "--json"]
        )
    assert not stop.value.code
    return path


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_with_an_example(name: str, ultr: Any) -> None:
    result = ultr(name, "--help")
    assert result.code == 0
    assert f"ultr {name}" in result.out
    assert "Example" in result.out
    for option in ("--json", "--seed"):
        assert option in result.out


def test_the_command_lists_its_commands(ultr: Any) -> None:
    result = ultr("--help")
    assert result.code == 0
    assert all(name in result.out for name in cli.COMMANDS)
    assert "0.1.0" in ultr("--version").out


def test_from_a_table_of_clicks_to_numbers(ultr: Any, tmp_path: Path) -> None:
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


def test_a_network_is_judged_on_graded_lists(ultr: Any, log: Path, collection: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained = ultr("train", log, "--out", run, "--model", "naive", "--hidden", "8", "--epochs", 12,
                   "--learning-rate", 0.02, "--json")  # fmt: skip
    assert trained.code == 0, trained.err
    judged = ultr("evaluate", run, collection, "--metrics", "ndcg@10,mrr@10", "--json")
    assert judged.code == 0, judged.err
    assert set(judged.json) == {"ndcg@10", "mrr@10"}
    assert 0.5 < judged.json["ndcg@10"]["value"] <= 1
    low, high = judged.json["ndcg@10"]["interval"]
    assert low < judged.json["ndcg@10"]["value"] < high


def test_the_same_seed_gives_the_same_run_and_resume_goes_on(ultr: Any, log: Path, tmp_path: Path) -> None:
    options = ("--hidden", "4", "--batch-size", "256", "--seed", "5", "--json")
    whole = ultr("train", log, "--out", tmp_path / "a", "--epochs", 3, *options).json
    ultr("train", log, "--out", tmp_path / "b", "--epochs", 1, *options)
    rest = ultr("train", log, "--out", tmp_path / "b", "--epochs", 3, "--resume", *options)
    assert rest.code == 0, rest.err
    assert [h["loss"] for h in rest.json["history"]] == [h["loss"] for h in whole["history"]]
    assert rest.json["propensity"] == whole["propensity"]


def test_splits_of_a_log_are_used(ultr: Any, log: Path, tmp_path: Path) -> None:
    result = ultr("train", log, "--out", tmp_path / "r", "--model", "rctr", "--epochs", 1, "--valid-fraction", 0,
                  "--relevance", "table", "--json")  # fmt: skip
    assert result.json["validation_sessions"] == 0
    assert result.json["sessions"] == len(ClickLog.open(log))
    mixed = ultr("train", log, "--out", tmp_path / "m", "--model", "pbm+dbn", "--relevance", "linear", "--epochs", 1,
                 "--valid", log, "--json")  # fmt: skip
    assert mixed.code == 0, mixed.err
    assert mixed.json["validation_sessions"] == 3000


def test_training_takes_the_split_that_it_is_told(ultr: Any, tmp_path: Path) -> None:
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


def test_a_log_of_one_query_holds_sessions_out(ultr: Any, tmp_path: Path) -> None:
    rows = [f"{s},q,d{k},{k},{int(s % k == 0)},{k}.5" for s in range(100) for k in (1, 2, 3)]
    (tmp_path / "c.csv").write_text("\n".join(["session,query,document,rank,click,price", *rows]) + "\n")
    assert ultr("prepare", tmp_path / "c.csv", "--out", tmp_path / "log", "--feature", "price").code == 0
    result = ultr("train", tmp_path / "log", "--out", tmp_path / "run", "--epochs", 1, "--json")
    assert "sessions are held out instead" in result.err
    assert 0 < result.json["validation_sessions"] < 30
    assert result.json["config"]["relevance"] == "mlp"


def test_the_demo_writes_its_results(ultr: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ultr.cli import demo

    monkeypatch.setattr(demo, "QUERIES", {"train": 40, "valid": 10, "test": 20})
    result = ultr("demo", "--out", tmp_path / "demo", "--sessions", 2000, "--seed", 2)
    assert result.code == 0, result.err
    for word in ("naive", "two-tower", "full information", "true examination", "learned"):
        assert word in result.out
    saved = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert set(saved["ndcg@10"]) == {"naive", "two-tower (PBM)", "full information"}
    assert len(saved["examination"]["learned"]) == 10
    assert len(ClickLog.open(tmp_path / "demo" / "log")) == 2000
    again = ultr("demo", "--out", tmp_path / "demo", "--sessions", 1000, "--json")
    assert again.json["sessions"] == 1000
    (tmp_path / "demo" / "thesis.txt").write_text("mine")
    assert ultr("demo", "--out", tmp_path / "demo", "--sessions", 1000).code == 2
    assert (tmp_path / "demo" / "thesis.txt").read_text() == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "results.json").write_text("{}")
    assert ultr("demo", "--out", tmp_path / "other", "--sessions", 1000).code == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demo", "other"]


MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "command": (("trian",), "unknown command 'trian'; known: demo, prepare"),
    "option": (("train", "{log}", "--out", "{tmp}/r", "--epoch", "3"), "No such option"),
    "model": (("train", "{log}", "--out", "{tmp}/r", "--model", "pmb"), "unknown model 'pmb'; known: gctr"),
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
    "foreign folder": (("train", "{log}", "--out", "{log}"), "holds other files"),
    "file as folder": (("train", "{log}", "--out", "{run}/run.json"), "is a file"),
    "below a file": (("demo", "--out", "{run}/run.json/x"), "run.json"),
    "temperature": (("simulate", "{collection}", "--out", "{tmp}/l", "--temperature", "inf"), "finite temperature"),
    "zipf": (("simulate", "{collection}", "--out", "{tmp}/l", "--zipf", "nan"), "finite zipf"),
    "split": (("prepare", "{run}/run.json", "--out", "{tmp}/l", "--split", "a:b"), "expected NAME=SHARE"),
    "demo": (("demo", "--sessions", "3"), "3"),
}


@pytest.fixture(scope="module")
def run(log: Path) -> Path:
    path = log.parent / "run"
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", str(log), "--out", str(path), "--model", "rctr", "--epochs", "1", "--json"])
    assert not stop.value.code
    return path


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_line_and_exit_code_2(
    name: str, ultr: Any, log: Path, collection: Path, run: Path, tmp_path: Path
) -> None:
    arguments, message = MISTAKES[name]
    places = {"log": log, "collection": collection, "run": run, "tmp": tmp_path}
    result = ultr(*(a.format(**places) for a in arguments))
    assert result.code == 2, result.err
    assert result.out == ""
    assert message in result.err
    assert result.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_does_not_overwrite_the_first(ultr: Any, log: Path, run: Path) -> None:
    before = (run / "run.json").read_text()
    result = ultr("train", log, "--out", run, "--model", "pbm")
    assert result.code == 2
    assert "holds a run already" in result.err
    assert (run / "run.json").read_text() == before
