"""Comparing methods: cells that are made once, numbers that others reproduce, and clear answers to bad input."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pytest

from ultr import baselines, cli, simulate, towers
from ultr import study as compare
from ultr.cli import compare as command
from ultr.data import ClickLog
from ultr.data.collection import write_collection
from ultr.errors import ConfigError, DataError
from ultr.evaluation import Estimate
from ultr.evaluation.significance import holm
from ultr.sessions import Sessions
from ultr.study import boosting as peers
from ultr.study import cells, prepared
from ultr.study import learning as learn
from ultr.study import results as result
from ultr.study.methods import KINDS
from ultr.study.nuisance import Harvest
from ultr.study.reading import log_options
from ultr.study.registry import MODELS
from ultr.study.spec import Log

compare_run = importlib.import_module("ultr.study.running")  # the package has a function of this name
ROOT = Path(__file__).resolve().parent.parent
STUDY = """
seeds = [0, 1]
metrics = ["ndcg@10", "mrr@10"]
baseline = "naive"
reference = "full-information"
valid_share = 0.3
[data]
collection = "collection"
train = "train"
vali = "vali"
test = "test"
[[log]]
name = "some log"
user = "pbm"
policy = "linear"
temperature = 1.0
sessions = 1500
ranks = 4
[defaults]
relevance = "linear"
epochs = 2
[[method]]
model = "logger"
[[method]]
model = "random"
[[method]]
model = "naive"
[[method]]
model = "pbm"
grid = {l2 = [0.0, 1000.0]}
[[method]]
name = "ips"
model = "ips-listwise"
clip = 20.0
grid = {propensity = ["true", "conditional-likelihood"]}
[[method]]
model = "full-information"
"""


pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture(scope="module", autouse=True)
def _few_steps() -> Iterator[None]:
    """Logs as small as these are passed over a few times only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learn, "FEWEST_STEPS", 10)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection with splits and a study of it."""
    path = tmp_path_factory.mktemp("compare")
    made = simulate.collection(queries=45, documents=6, features=3, seed=0)
    queries, documents = made.vocabulary.tables()
    names = np.repeat(["train", "vali", "test"], 15).tolist()
    write_collection(path / "collection", queries=queries, documents=documents, features=made.vocabulary.feature_names,
                     splits=pa.array(names), split_names=["train", "vali", "test"])  # fmt: skip
    (path / "study.toml").write_text(STUDY)
    return path


@pytest.fixture(scope="module")
def done(folder: Path) -> tuple[compare.Study, Path, dict[str, Any]]:
    study = compare.read(folder / "study.toml")
    counts = compare.run(study, folder / "out")
    assert counts == {"made": 2 * 6, "kept": 0, "failed": 0}
    return study, folder / "out", compare.collect(study, folder / "out")


def changed(folder: Path, old: str, new: str) -> compare.Study:
    assert old in STUDY
    path = folder / "changed.toml"
    path.write_text(STUDY.replace(old, new))
    return compare.read(path)


def test_finished_cells_are_kept_and_changed_ones_made_again(folder: Path, done: Any, tmp_path: Path) -> None:
    study, out, _ = done
    assert compare.run(study, out) == {"made": 0, "kept": 12, "failed": 0}
    shutil.copytree(out, tmp_path / "out")
    other = changed(folder, "clip = 20.0", "clip = 21.0")
    assert [m.name for m in other.methods if m not in study.methods] == ["ips"]
    stale = compare.collect(other, tmp_path / "out")
    assert stale["missing"] == ["some log / ips / seed 0", "some log / ips / seed 1"]
    assert compare.run(other, tmp_path / "out", seeds=(1,)) == {"made": 1, "kept": 5, "failed": 0}
    # A log that changed has every cell but that of the method which learns from grades made again.
    moved = changed(folder, "sessions = 1500", "sessions = 1400")
    assert len(compare.collect(moved, tmp_path / "out")["missing"]) == 2 * 5
    made = compare.run(moved, tmp_path / "out", only=("random", "full-information"))
    assert made == {"made": 2, "kept": 2, "failed": 0}


def test_what_a_killed_run_left_is_made_again(done: Any, tmp_path: Path) -> None:
    study, out, _ = done
    shutil.copytree(out, tmp_path / "out")
    cell = next(c for c in cells.cells(study) if c.method.name == "random")
    cell.place(tmp_path / "out", "cells", ".npz").unlink()
    assert compare.run(study, tmp_path / "out")["made"] == 1
    cell.place(tmp_path / "out", "cells", ".json").write_text('{"schema":')
    assert compare.run(study, tmp_path / "out")["made"] == 1
    assert not list((tmp_path / "out").glob(".work*"))


def test_what_dead_processes_left_is_removed(tmp_path: Path) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    mine = compare_run._work(tmp_path)
    dead = tmp_path / mine.name.replace(f"-{os.getpid()}-", f"-{child.pid}-")
    elsewhere = tmp_path / f".work-other.machine-{child.pid}-x"
    for path in (dead, elsewhere):
        path.mkdir()
    compare_run.sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([mine, elsewhere])


ORPHAN = """
import concurrent.futures, multiprocessing, os, signal, time
from ultr.study.running import _end_with_parent
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(1, mp_context=context, initializer=_end_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 60)
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    (tmp_path / "orphan.py").write_text(ORPHAN)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, tmp_path / "orphan.py"], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.wait(60)
    for _ in range(100):
        if not _runs(worker):
            return
        time.sleep(0.1)
    raise AssertionError(f"process {worker} lives on")


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_an_early_end_left_can_be_taken_up_again(tmp_path: Path) -> None:
    for name in ("trec", "about", ".work-machine-1-x"):
        (tmp_path / name).mkdir()
        command._check_out(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match="holds other files"):
        command._check_out(tmp_path)


def test_a_diagnosis_asked_for_later_is_made(done: Any, tmp_path: Path) -> None:
    study, out, _ = done
    shutil.copytree(out, tmp_path / "out")
    place = tmp_path / "out" / "about" / "some_log" / "seed-0.json"
    facts = json.loads(place.read_text())
    said = facts.pop("diagnosis")
    place.write_text(json.dumps(facts))
    quiet = dataclasses.replace(study, diagnose=False)
    assert compare.run(quiet, tmp_path / "out") == {"made": 0, "kept": 12, "failed": 0}
    assert "diagnosis" not in json.loads(place.read_text())
    assert compare.run(study, tmp_path / "out") == {"made": 0, "kept": 12, "failed": 0}
    assert json.loads(place.read_text())["diagnosis"] == said


@pytest.mark.parametrize("metric", ["mrr@10", "ndcg@1"])
def test_grades_choose_by_the_metric_that_is_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    asked: list[Any] = []

    def judged(*_: Any, metrics: list[str], **__: Any) -> dict[str, np.ndarray]:
        asked.extend(metrics)
        return {name: np.array([0.5]) for name in metrics}

    monkeypatch.setattr(peers, "per_query", judged)
    lists = prepared.Lists(compare.read(folder / "study.toml").data)
    assert peers._by_grades(lists, 0, metric)(lambda x, n: x[:, 0], 10) == (0.5, 10)
    assert asked == [metric]


def test_the_table_is_what_the_cells_say(done: Any) -> None:
    study, out, results = done
    (log,) = results["logs"]
    rows = {row["name"]: row for row in log["methods"]}
    values = {}
    for name in ("logger", "naive", "pbm", "full-information"):
        own = [cells.values(out, c) for c in cells.cells(study) if c.method.name == name]
        each = np.array([v["ndcg@10"] for v in own if v is not None])
        assert each.shape == (2, 15)
        values[name] = each.mean(0)
        expected = Estimate.mean(values[name])
        found = rows[name]["metrics"]["ndcg@10"]
        assert found["value"] == pytest.approx(expected.value)
        assert found["interval"] == pytest.approx(expected.interval)
        assert found["seed_deviation"] == pytest.approx(abs(np.subtract(*np.nanmean(each, 1))) / math.sqrt(2))
    difference = rows["pbm"]["difference"]["ndcg@10"]
    assert difference["difference"]["value"] == pytest.approx(np.nanmean(values["pbm"] - values["naive"]))
    assert difference["p_t"] <= difference["holm_t"] <= 1
    assert "difference" not in rows["naive"]
    gap = rows["pbm"]["gap_closed"]
    low, high = np.nanmean(values["logger"]), np.nanmean(values["full-information"])
    if high > low:
        assert gap["value"] == pytest.approx((np.nanmean(values["pbm"]) - low) / (high - low))
    else:
        assert gap["value"] is None
        assert "not better" in gap["reason"]
    # What is known of the process stands above: a model can only be worse in the long run.
    assert rows["pbm"]["clicks"]["perplexity"] > log["about"]["lowest"]["perplexity"] * 0.97
    assert rows["pbm"]["seconds"] > 0
    assert rows["ips"]["weighting"]["effective_sample_size"] > 0
    text = compare.markdown(results)
    assert "| pbm |" in text
    assert f"{rows['pbm']['metrics']['ndcg@10']['value']:.4f}" in text


def test_settings_are_chosen_without_test_grades(done: Any) -> None:
    rows = {row["name"]: row for row in done[2]["logs"][0]["methods"]}
    for chosen in rows["pbm"]["chosen"]:
        assert chosen["by"] == "likelihood of held-out sessions"
        best = min(chosen["values"], key=lambda v: v["value"])
        assert chosen["settings"] == best["settings"]
    for chosen in rows["ips"]["chosen"]:
        assert chosen["by"] == "weighted DCG@10 of held-out clicks"
        best = max(chosen["values"], key=lambda v: v["value"])
        assert chosen["settings"] == best["settings"]


def test_trec_files_give_the_numbers_of_the_table(done: Any) -> None:
    ir_measures = pytest.importorskip("ir_measures")
    study, out, _ = done
    exact = ir_measures.nDCG(gains={y: 2**y - 1 for y in range(5)}) @ 10
    qrels = list(ir_measures.read_trec_qrels(str(out / "trec" / "qrels")))
    for cell in cells.cells(study):
        run = list(ir_measures.read_trec_run(str(cell.place(out, "trec", ".run"))))
        found = ir_measures.calc_aggregate([exact, ir_measures.RR @ 10], qrels, run)
        kept = cells.read(out, cell)
        assert kept is not None
        assert found[exact] == pytest.approx(kept["metrics"]["ndcg@10"], abs=1e-6), cell.title
        assert found[ir_measures.RR @ 10] == pytest.approx(kept["metrics"]["mrr@10"], abs=1e-6), cell.title


def test_processes_make_the_same_cells(folder: Path, done: Any, tmp_path: Path) -> None:
    study, out, _ = done
    only = ("random", "logger")
    alone = dataclasses.replace(study, diagnose=False)
    assert compare.run(alone, tmp_path, only=only, jobs=2) == {"made": 4, "kept": 0, "failed": 0}
    for cell in cells.cells(study):
        if cell.method.name in only:
            one, other = cells.values(out, cell), cells.values(tmp_path, cell)
            assert one is not None
            assert other is not None
            np.testing.assert_allclose(one["ndcg@10"], other["ndcg@10"], rtol=1e-6)


def test_gap_closed_is_the_share_of_the_way() -> None:
    rng = np.random.default_rng(0)
    logger, reference = rng.uniform(0, 0.5, 200), rng.uniform(0.5, 1, 200)
    found = result.gap_closed(0.3 * reference + 0.7 * logger, logger, reference)
    assert found["value"] == pytest.approx(0.3)
    assert found["interval"] == pytest.approx([0.3, 0.3])
    noisy = result.gap_closed(0.3 * reference + 0.7 * logger + rng.normal(0, 0.1, 200), logger, reference)
    # By the delta method the ratio of means has the deviation of (gain - ratio gap) / mean gap.
    error = 0.1 / (reference - logger).mean() / math.sqrt(200)
    assert np.diff(noisy["interval"])[0] == pytest.approx(2 * 1.96 * error, rel=0.2)
    nothing = result.gap_closed(logger, reference, logger)
    assert nothing["value"] is None
    assert "not better" in nothing["reason"]
    hardly = result.gap_closed(logger, logger, logger + rng.normal(0.002, 1, 200))
    assert hardly["interval"] == [None, None]


def kept(study: compare.Study, out: Path, method: str, seed: int, **facts: Any) -> None:
    """A cell made by hand, whose values per query are given as `ndcg`."""
    cell = next(c for c in cells.cells(study) if (c.method.name, c.seed) == (method, seed))
    ndcg = facts.pop("ndcg", None)
    table = None if ndcg is None else {"query": np.arange(len(ndcg))} | dict.fromkeys(study.metrics, np.asarray(ndcg))
    cells.write(out, cell, {"queries": 0 if ndcg is None else len(ndcg)} | facts, table)


def test_methods_are_compared_on_the_seeds_that_both_have(folder: Path, tmp_path: Path) -> None:
    study, rng = compare.read(folder / "study.toml"), np.random.default_rng(0)
    values = {
        (m, s): rng.uniform(size=20) for m in ("logger", "naive", "pbm", "ips", "full-information") for s in (0, 1)
    }
    for (method, seed), each in values.items():
        if (method, seed) == ("pbm", 1):
            kept(study, tmp_path, method, seed, error="out of luck")
        else:
            kept(study, tmp_path, method, seed, ndcg=each)
    results = compare.collect(study, tmp_path, settings=False)
    rows = {row["name"]: row for row in results["logs"][0]["methods"]}
    found = rows["pbm"]["difference"]["ndcg@10"]
    assert found["seeds"] == [0]
    assert found["difference"]["value"] == pytest.approx(np.mean(values["pbm", 0] - values["naive", 0]))
    whole = rows["ips"]["difference"]["ndcg@10"]
    assert whole["seeds"] == [0, 1]
    expected = np.mean([values["ips", s] - values["naive", s] for s in (0, 1)])
    assert whole["difference"]["value"] == pytest.approx(expected)
    tests = [row["difference"]["ndcg@10"] for row in rows.values() if "difference" in row]
    np.testing.assert_allclose([t["holm_t"] for t in tests], holm([t["p_t"] for t in tests]))
    low, high = values["logger", 0].mean(), values["full-information", 0].mean()
    if high > low:
        assert rows["pbm"]["gap_closed"]["value"] == pytest.approx((values["pbm", 0].mean() - low) / (high - low))
    assert rows["pbm"]["notes"] == ["seed 1 failed: its numbers are of seed 0 alone"]
    text = compare.markdown(results)
    assert "| pbm (1 of 2 seeds) |" in text
    assert "| ips |" in text


def test_a_mean_with_an_infinite_value_is_none_and_curves_may_differ_in_length(folder: Path, tmp_path: Path) -> None:
    study = compare.read(folder / "study.toml")
    error = {"mean": 0.1, "max": 0.2}
    kept(study, tmp_path, "pbm", 0, propensity_error=error, propensity=[1.0, 0.5], clicks={"perplexity": 1.2})
    infinite = {"mean": math.inf, "max": 0.4}
    kept(study, tmp_path, "pbm", 1, propensity_error=infinite, propensity=[1.0, 0.7, None], clicks={"perplexity": 1.4})
    results = compare.collect(study, tmp_path, settings=False)
    row = next(row for row in results["logs"][0]["methods"] if row["name"] == "pbm")
    assert row["propensity_error"] == {"mean": None, "max": pytest.approx(0.3)}
    assert row["clicks"]["perplexity"] == pytest.approx(1.3)
    assert row["notes"] == ["propensity error, mean: infinite or not known with seed 1, so that it has no mean"]
    np.testing.assert_allclose(row["propensity"], [1.0, 0.6, np.nan])


def test_propensity_error_is_relative_to_rank_1() -> None:
    truth = np.array([1, 1 / 2, 1 / 3])
    assert learn.propensity_error(0.7 * truth, truth) == {"mean": pytest.approx(0), "max": pytest.approx(0)}
    found = learn.propensity_error(np.array([1, 1, 1 / 3]), truth)
    assert found == {"mean": pytest.approx(math.log(2) / 2), "max": pytest.approx(math.log(2))}
    assert learn.propensity_error(None, truth) is None
    assert learn.propensity_error(truth, None) is None


def test_an_epoch_of_a_small_log_has_a_hundred_steps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, asked = compare.read(folder / "study.toml"), dict[str, Any]()
    lists = prepared.Lists(study.data)["train"]
    monkeypatch.setattr(learn, "FEWEST_STEPS", prepared.FEWEST_STEPS)
    monkeypatch.setattr(learn, "fit", lambda *_, **options: asked.update(options))
    method = dataclasses.replace(study.methods[2], batch_size=4, epochs=2, patience=3)
    learn._fit(method, baselines.NaiveListwise(relevance=towers.Constant()), lists, lists, 0)
    assert prepared.FEWEST_STEPS == 100
    assert (asked["epochs"], asked["patience"]) == (2 * 25, 3 * 25)  # of 15 lists in 4 steps each


def test_weighted_gains_by_hand() -> None:
    # Two lists; the second one stands for three sessions, and two of its scores are equal.
    batch = Sessions(
        mask=np.array([[1, 1, 0], [1, 1, 1]], bool),
        position=np.array([[0, 1, 0], [0, 1, 2]]),
        clicks=np.array([[0, 1, 1], [1, 0, 1]]),
        weight=np.array([1.0, 3.0]),
    )
    scores = np.array([[0.1, 0.9, 5.0], [0.5, 0.5, 0.1]])
    weights = np.array([1.0, 2.0, 4.0])
    first = 2 / math.log2(2)  # its second document is ranked first; what is padded neither ranks nor counts
    second = 3 * (1 / math.log2(1 + 1.5) + 4 / math.log2(4))
    assert learn._gains(scores, batch, weights) == pytest.approx(first + second)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seeds = [0, 1]", "seed = [0, 1]", "the top level: unknown key 'seed' (did you mean 'seeds'?)"),
        ("seeds = [0, 1]", "seeds = [0.5]", "'seeds' should be of kind list of int, found [0.5]"),
        ("seeds = [0, 1]", "seeds = [1, 1]", "expected different seeds"),
        ('vali = "vali"', 'valid = "vali"', "[data]: unknown key 'valid' (did you mean 'vali'?)"),
        ('vali = "vali"', "", "learns from grades: expected 'train' and 'vali'"),
        ("temperature = 1.0", "temprature = 1.0", "[[log]] 1: unknown key 'temprature' (did you mean 'temperature'?)"),
        ("temperature = 1.0", 'temperature = "hot"', "'temperature' should be of kind float, found 'hot'"),
        ('user = "pbm"', 'user = "pmb"', "[[log]] 1: unknown user 'pmb'"),
        ('policy = "linear"', 'policy = "linaer"', "unknown policy 'linaer' (did you mean 'linear'?)"),
        ('name = "some log"', 'path = "log"\nname = "some log"', "belongs to simulated logs; this one has a path"),
        ("epochs = 2", "epocs = 2", "[defaults]: unknown key 'epocs' (did you mean 'epochs'?)"),
        ('model = "naive"', 'model = "naiv"', "unknown model 'naiv' (did you mean 'naive'?)"),
        ('model = "naive"', 'model = "naive"\nclip = 3.0', "[[method]] 3 (naive): unknown key 'clip'"),
        ("l2 = [0.0", "epoch = [0.0", "grid: unknown key 'epoch' (did you mean 'epochs'?)"),
        ("l2 = [0.0, 1000.0]", "l2 = []", "'l2' should have at least one value"),
        ('"true", "cond', '"treu", "cond', "unknown propensity 'treu' (did you mean 'true'?)"),
        ('baseline = "naive"', 'baseline = "naiv"', "baseline 'naiv' is no method (did you mean 'naive'?)"),
        ('name = "ips"', 'name = "pbm"', "two methods are called 'pbm'"),
        ("valid_share = 0.3", "valid_share = 0.0", "expected valid_share above 0"),
        ("[[log]]", "[log]", "expected at least one [[log]] table"),
        ("[data]", "[data", "not TOML"),
        ('"mrr@10"', '"ndgc@10"', "found 'ndgc@10' (did you mean 'ndcg@10'?)"),
        (
            '"mrr@10"',
            '"perplexity"',
            "expected ranking metrics (ndcg@k, dcg@k, mrr@k, map@k, err@k), found 'perplexity'",
        ),
        ('"mrr@10"', '"ndcg@10"', "the metric 'ndcg@10' is given twice"),
        ("temperature = 1.0", 'drift = "fast"', "'drift' should be of kind float, found 'fast'"),
        ("temperature = 1.0", "zipf = -1", "[[log]] 1: expected 'zipf' of at least 0, found -1"),
        ("temperature = 1.0", "temperature = -1", "[[log]] 1: expected finite temperature >= 0"),
        ("temperature = 1.0", 'examination = "inv"', "[[log]] 1: unknown examination 'inv'"),
        ("temperature = 1.0", "shares = [0.5, 0.5]", "expected one share above 0 for each of 1 users"),
        ("temperature = 1.0", "times = true", "a study simulates no 'times': simulate the log by itself"),
        ("sessions = 1500", "sessions = 0", "expected 'sessions' of at least 1, found 0"),
        ("ranks = 4", "ranks = 5.7", "'ranks' should be of kind int, found 5.7"),
        ("clip = 20.0", "clip = -3", "expected 'clip' of at least 0; 0: no limit, found -3.0"),
        ("l2 = [0.0, 1000.0]", "epochs = [0, 3]", "expected 'epochs' of at least 1, found 0"),
        (
            'model = "pbm"',
            'model = "pbm+naive"',
            "a mixture is made of click models, and 'naive' in 'pbm+naive' is none",
        ),
        ('model = "pbm"', 'model = "pbm+logger"', "'logger' in 'pbm+logger' is none"),
        ('reference = "full-information"', 'reference = "pbm"', "expected a reference that learns from grades"),
        ('name = "some log"', 'name = ".."', "the log name '..' cannot name a folder"),
        ('name = "ips"', 'name = "-"', "the method name '-' cannot name a folder"),
        ('name = "ips"', 'name = "PBM"', "the methods 'pbm' and 'PBM' would be kept in the same folder"),
        ("[defaults]", '[[log]]\nname = "some_log"\n[defaults]', "the logs 'some log' and 'some_log' would be kept"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in STUDY
    path = tmp_path / "study.toml"
    path.write_text(STUDY.replace(old, new, 1))
    with pytest.raises(ConfigError) as error:
        compare.read(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


TRUST = "'propensity' as 'all-pairs' says nothing to '{}', which needs trust as well: expected true or a .json file"


@pytest.mark.parametrize("model", ["affine-ips", "intervention-aware", "direct-method", "doubly-robust"])
@pytest.mark.parametrize(
    ("given", "place"),
    [
        ('propensity = "all-pairs"', ""),
        ('grid = {propensity = ["true", "all-pairs"]}', ", grid"),
    ],
)
def test_an_estimator_that_knows_no_trust_is_refused_where_trust_is_needed(
    tmp_path: Path, model: str, given: str, place: str
) -> None:
    trust = "" if model in ("affine-ips", "intervention-aware") else "trust = true\n"
    path = tmp_path / "study.toml"
    row = f'model = "naive"\n[[method]]\nname = "mine"\nmodel = "{model}"\n{trust}'
    path.write_text(STUDY.replace('model = "naive"', row + given, 1))
    with pytest.raises(ConfigError) as error:
        compare.read(path)
    assert str(error.value).startswith(f"{path}, [[method]] 4 (mine){place}: {TRUST.format(model)}")
    assert "Leave it out, and a trust model is fitted to the training sessions" in str(error.value)
    # What says something is taken, and so is what stands for all methods.
    for fine in (given.replace("all-pairs", "true"), given.replace("all-pairs", "curve.json")):
        path.write_text(STUDY.replace('model = "naive"', row + fine, 1))
        compare.read(path)
    shared = STUDY.replace('model = "naive"', row, 1).replace("epochs = 2", 'epochs = 2\npropensity = "all-pairs"')
    path.write_text(shared)
    compare.read(path)
    if trust:
        path.write_text(STUDY.replace('model = "naive"', row.replace(trust, "") + given, 1))
        compare.read(path)


def test_paths_start_from_the_folder_of_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    study = compare.read(folder / "study.toml")
    assert study.data.collection == folder / "collection"
    text = STUDY.replace('propensity = ["true"', 'propensity = ["curve.json"')
    (folder / "other.toml").write_text(text.replace("clip = 20.0", 'clip = 20.0\npropensity = "curve.json"'))
    ips = compare.read(folder / "other.toml").methods[4]
    assert ips.propensity == str(folder / "curve.json")
    assert ips.grid["propensity"] == (str(folder / "curve.json"), "conditional-likelihood")


def test_a_file_of_the_grid_decides_what_a_cell_holds(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(
        STUDY.replace('["true"', '["curve.json"').replace('"collection"', f'"{folder / "collection"}"', 1)
    )
    study = compare.read(tmp_path / "study.toml")
    cell = next(c for c in cells.cells(study) if c.method.name == "ips")
    marks = []
    for content in ("[1]", "[2]"):
        (tmp_path / "curve.json").write_text(content)
        marks.append(cells.fingerprint(study, cell))
    assert marks[0] != marks[1]


def test_shares_of_users_are_an_option_of_a_log(folder: Path) -> None:
    study = changed(folder, 'user = "pbm"', 'user = "pbm+dbn"\nshares = [0.7, 0.3]')
    assert study.logs[0].options["shares"] == (0.7, 0.3)


def test_every_method_has_one_row_and_every_option_of_a_simulated_log_is_known() -> None:
    assert set(MODELS) < set(KINDS)
    assert {"temperature", "epsilon", "share", "sessions", "ranks", "eta", "zipf"} <= set(log_options())
    assert not {"seed", "out", "collection", "model"} & set(log_options())
    assert KINDS["ips-listwise"].takes("propensity")
    assert not KINDS["naive"].takes("propensity")
    assert not KINDS["lightgbm"].takes("epochs")


def one_cell(folder: Path, out: Path, method: str, log: str = "") -> dict[str, Any]:
    """The only cell of a study with one method on one log."""
    head, tail = STUDY.split("[[log]]")[0], tail_of(log)
    head = head.replace('baseline = "naive"\nreference = "full-information"\n', "").replace("[0, 1]", "[0]")
    text = f"{head}{tail}[defaults]\nrelevance = 'linear'\nepochs = 1\n[[method]]\n{method}"
    (folder / "one.toml").write_text(text.replace('"ndcg@10", "mrr@10"', '"ndcg@10"'))
    study = compare.read(folder / "one.toml")
    compare.run(study, out)
    (cell,) = cells.cells(study)
    found = cells.read(out, cell)
    assert found is not None
    return found


def tail_of(log: str) -> str:
    return (
        f'[[log]]\nname = "log"\n{log}\n'
        if log.startswith("path")
        else f'[[log]]\nname = "log"\nsessions = 500\n{log}\n'
    )


def test_a_log_without_variation_of_ranks_is_told_unidentified(folder: Path, tmp_path: Path) -> None:
    fixed = 'policy = "oracle"\ntemperature = 0.0'
    found = one_cell(folder, tmp_path / "ips", "model = 'ips-listwise'", fixed)
    assert found["error"].startswith("unidentified: the conditional-likelihood of this log gives ranks")
    assert "metrics" not in found
    known = one_cell(folder, tmp_path / "true", "model = 'ips-listwise'\npropensity = 'true'", fixed)
    assert known["metrics"]["ndcg@10"] > 0
    learnt = one_cell(folder, tmp_path / "pbm", "model = 'pbm'", fixed)
    assert any("does not identify examination" in note for note in learnt["notes"])


def test_a_log_of_one_rank_is_told_so(folder: Path, tmp_path: Path) -> None:
    found = one_cell(folder, tmp_path, "model = 'pbm'", "ranks = 1")
    assert any("does not identify examination" in note for note in found["notes"])
    assert found["propensity_error"] is None


def test_a_log_without_clicks_gives_no_number(folder: Path, tmp_path: Path) -> None:
    lists = prepared.Lists(compare.read(folder / "study.toml").data)["train"]
    user = simulate.user("gctr", grades=4, ranks=4)
    user.tower.value[...] = jax.numpy.float32(-40)
    simulate.clicks(lists, simulate.Policy("random"), user, sessions=200, seed=0, out=tmp_path / "log", ranks=4)
    assert ClickLog.open(tmp_path / "log").metadata["clicks"] == 0
    for model in ("naive", "pbm", "lightgbm"):
        found = one_cell(folder, tmp_path / model, f"model = '{model}'", f'path = "{tmp_path / "log"}"')
        assert found["error"] == "expected clicks to learn from, found none in 200 sessions"


@pytest.mark.parametrize(
    ("curve", "said"),
    [
        ([1.0, 0.5, 0.0, 0.25], "found none at ranks 3"),
        ([1.0, 0.5, None, None], "found none at ranks 3, 4"),
        ([1.0, 0.5], "expected propensities of 4 ranks, which the log shows, found 2"),
        ("nothing", "expected what `ultr propensity --json` writes"),
    ],
)
def test_propensities_that_cannot_be_used(folder: Path, tmp_path: Path, curve: Any, said: str) -> None:
    rows = [{"rank": k, "propensity": x} for k, x in enumerate(curve, 1)] if isinstance(curve, list) else curve
    (tmp_path / "curve.json").write_text(json.dumps({"propensities": [{"ranks": rows}]}))
    method = f"model = 'ips-listwise'\npropensity = '{tmp_path / 'curve.json'}'"
    found = one_cell(folder, tmp_path / "out", method, "ranks = 4")
    assert said in found["error"]


def test_the_logger_of_a_real_log_is_not_known(folder: Path, tmp_path: Path) -> None:
    lists = prepared.Lists(compare.read(folder / "study.toml").data)["train"]
    simulate.clicks(lists, simulate.Policy("random"), simulate.user("pbm", grades=4, ranks=4), sessions=200, seed=0,
                    out=tmp_path / "log", ranks=4)  # fmt: skip
    found = one_cell(folder, tmp_path / "out", "model = 'logger'", f'path = "{tmp_path / "log"}"')
    assert "is not known" in found["error"]
    found = one_cell(folder, tmp_path / "naive", "model = 'naive'", f'path = "{tmp_path / "log"}"')
    assert found["metrics"]["ndcg@10"] > 0


def test_an_absent_package_says_how_to_install_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def absent(name: str, *rest: Any) -> Any:
        if name in ("lightgbm", "xgboost"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(peers.importlib, "import_module", absent)
    assert peers.version("xgboost-unbiased") is None
    found = one_cell(folder, tmp_path, "model = 'lightgbm-position'", "temperature = 1.0")
    assert found["error"] == "lightgbm is not installed: pip install 'ultr[peers]' (or lightgbm)"


@pytest.mark.parametrize("model", ["lightgbm", "lightgbm-position", "xgboost", "xgboost-unbiased", "lightgbm-labels"])
def test_boosted_trees_learn_and_choose_their_rounds(folder: Path, tmp_path: Path, model: str) -> None:
    pytest.importorskip(model.split("-")[0])
    found = one_cell(
        folder, tmp_path, f"model = '{model}'\nrounds = 30\ngrid = {{leaves = [2, 8]}}", "temperature = 2.0"
    )
    assert "error" not in found
    assert found["chosen"]["rounds"] in (10, 20, 30)
    assert found["metrics"]["ndcg@10"] > 0.6
    again = one_cell(
        folder, tmp_path / "b", f"model = '{model}'\nrounds = 30\ngrid = {{leaves = [2, 8]}}", "temperature = 2.0"
    )
    assert again["metrics"] == found["metrics"]


def test_rows_of_peers_stand_in_displayed_order(folder: Path, tmp_path: Path) -> None:
    study = compare.read(folder / "study.toml")
    log = prepared.Prepared(study.logs[0], seed=0, lists=prepared.Lists(study.data), shares=(0.3, 0.1), work=tmp_path)
    rows, dropped = peers._clicked(log, 10**6, 0)
    assert dropped == 0
    part = log.part("train", "query")
    table = part.vocabulary.features
    assert table is not None
    expected: list[Any] = []
    for batch in part.columns(["documents", "ranks", "clicks"]):
        for documents, ranks, clicks in zip(*(batch[n].to_pylist() for n in batch.schema.names), strict=True):
            if 0 < sum(clicks) < len(clicks):
                expected.append((documents, ranks, clicks))
    np.testing.assert_array_equal(rows.sizes, [len(e[0]) for e in expected])
    np.testing.assert_array_equal(rows.x, table[np.concatenate([e[0] for e in expected])])
    np.testing.assert_array_equal(rows.position + 1, np.concatenate([e[1] for e in expected]))
    np.testing.assert_array_equal(rows.y, np.concatenate([e[2] for e in expected]))
    some, dropped = peers._clicked(log, 100, 0)
    assert len(some.y) <= 104
    assert dropped == pytest.approx(1 - len(some.sizes) / len(rows.sizes))


def test_lists_to_judge_on_are_of_other_queries(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "collection", tmp_path / "test")
    (tmp_path / "study.toml").write_text(
        STUDY.replace('collection = "collection"\n', "")
        .replace('vali = "vali"', f'vali = "{folder / "collection"}"')
        .replace('train = "train"', f'train = "{folder / "collection"}"')
    )
    with pytest.raises(DataError, match="other queries than 'train', found 45 of 45 in both"):
        compare.run(compare.read(tmp_path / "study.toml"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_queries_of_a_log_are_known_by_name(folder: Path, tmp_path: Path) -> None:
    study = compare.read(folder / "study.toml")
    lists = prepared.Lists(study.data)
    log = prepared.Prepared(study.logs[0], seed=0, lists=lists, shares=(0.3, 0.1), work=tmp_path)
    assert prepared.shared_queries(log.query_names, lists["train"].query_names) == 15
    assert prepared.shared_queries(log.query_names, lists["test"].query_names) == 0


def test_affine_harvest_finds_trust(folder: Path, tmp_path: Path) -> None:
    lists = prepared.Lists(compare.read(folder / "study.toml").data)["train"]
    user = simulate.user("trust", grades=4, ranks=4)
    log = simulate.clicks(
        lists, simulate.Policy("random"), user, sessions=60_000, seed=0, out=tmp_path / "log", ranks=4
    )
    truth = log.metadata["truth"]
    alpha, beta = Harvest(log, source="true", truth=truth).affine
    np.testing.assert_allclose(alpha, truth["trust"]["alpha"])
    np.testing.assert_allclose(beta, truth["trust"]["beta"])
    found, _ = Harvest(log).affine
    # The scale of relevance is not identified: alpha is known up to a factor.
    np.testing.assert_allclose(found / found[0], alpha / alpha[0], rtol=0.1)


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def ultr(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as stop:
            cli.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Result(int(stop.value.code or 0), captured.out, captured.err)

    return call


def test_the_command_prints_and_saves_the_table(ultr: Any, done: Any, folder: Path) -> None:
    _, out, results = done
    found = ultr("compare", folder / "study.toml", "--out", out, "--json")
    assert found.code == 0, found.err
    assert "0 cells made, 12 kept, 0 failed" in found.err
    printed = json.loads(found.out)
    assert printed["logs"] == json.loads(cells.dumps(results))["logs"]
    assert json.loads((out / "results.json").read_text())["logs"] == printed["logs"]
    assert "| pbm |" in (out / "table.md").read_text()


def test_the_command_goes_on_after_a_failure_and_says_so(ultr: Any, folder: Path, tmp_path: Path) -> None:
    text = STUDY.replace("temperature = 1.0", "temperature = 0.0").replace("[0, 1]", "[0]", 1)
    text = text.split("[[method]]\nname = ")[0].replace('reference = "full-information"\n', "")
    (folder / "fails.toml").write_text(text + "[[method]]\nmodel = 'ips-listwise'\n")
    options = (
        "compare",
        folder / "fails.toml",
        "--out",
        tmp_path / "out",
        "--only",
        "random",
        "--only",
        "ips-listwise",
    )
    found = ultr(*options)
    assert found.code == 0
    assert "note: the first that failed is some log / ips-listwise / seed 0: unidentified" in found.err
    assert "- ips-listwise failed: unidentified" in found.out
    again = ultr(*options, "--strict")
    assert again.code == 1
    assert "0 cells made, 2 kept, 1 failed" in again.err
    assert "1 cells made, 1 kept" not in ultr(*options, "--retry").err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing.toml",), "nothing.toml: No such file or directory"),
        (("study.toml", "--only", "pmb"), "no log or method is called 'pmb'"),
        (("study.toml", "--seed", "7"), "seed 7 is none of the study's: 0, 1"),
        (("study.toml", "--jobs", "0"), "0 is not in the range"),
        (("study.toml", "--out", "collection"), "holds other files"),
    ],
)
def test_bad_use_ends_with_one_line(ultr: Any, folder: Path, tmp_path: Path, arguments: Any, said: str) -> None:
    name, *rest = arguments
    rest = (
        [folder / rest[1] if r == "collection" else r for r in rest]
        if "--out" in rest
        else [*rest, "--out", tmp_path / "o"]
    )
    found = ultr("compare", folder / name, *rest)
    assert found.code == 2
    assert said in found.err
    assert len(found.err.strip().splitlines()) == 1


def test_train_takes_propensities_and_says_when_it_estimates_them(ultr: Any, folder: Path, tmp_path: Path) -> None:
    lists = prepared.Lists(compare.read(folder / "study.toml").data)["train"]
    log = tmp_path / "log"
    simulate.clicks(lists, simulate.Policy("random"), simulate.user("pbm", grades=4, ranks=4), sessions=600, seed=0,
                    out=log, ranks=4)  # fmt: skip
    options = ("--epochs", 1, "--relevance", "linear", "--json")
    found = ultr("train", log, "--out", tmp_path / "a", "--model", "ips-listwise", *options)
    assert found.code == 0, found.err
    assert "examination is estimated on the training sessions by the conditional likelihood" in found.err
    curve = ultr("propensity", log, "--json")
    (tmp_path / "curve.json").write_text(curve.out)
    for number, source in enumerate(("true", "all-pairs", tmp_path / "curve.json")):
        weights = ("--propensity", source, "--clip", 3)
        found = ultr("train", log, "--out", tmp_path / f"run{number}", "--model", "ips-listwise", *weights, *options)
        assert found.code == 0, found.err
        assert "estimated" not in found.err
        given = json.loads(found.out)["config"]
        assert len(given["propensity"]["by_rank"]) == 4
        assert given["options"] == {"clip": 3.0}
    curve_of = [row["propensity"] for row in json.loads(curve.out)["propensities"][0]["ranks"]]
    np.testing.assert_allclose(given["propensity"]["by_rank"], curve_of)
    for extra, said in (
        (("--model", "pbm", "--propensity", "true"), "--propensity says nothing to --model pbm"),
        (("--model", "naive", "--clip", 2), "--clip says nothing to --model naive"),
        (("--model", "prs", "--propensity", "treu"), "unknown --propensity 'treu'"),
        (("--model", "prs", "--propensity", tmp_path / "no.json"), "no such file"),
    ):
        found = ultr("train", log, "--out", tmp_path / "bad", *extra)
        assert found.code == 2
        assert said in found.err


def test_train_names_every_model(ultr: Any) -> None:
    words = ultr("train", "--help").out.replace("\n", " ")
    for name in MODELS:
        assert name in " ".join(words.split()).replace("- ", "-"), name


def test_the_example_runs(folder: Path, tmp_path: Path) -> None:
    text = (ROOT / "examples" / "compare.toml").read_text()
    for old, new in (("[0, 1, 2]", "[0]"), ("20_000", "400"), ("[[16]]", "[[2]]"), ("rounds = 100", "rounds = 10")):
        assert old in text
        text = text.replace(old, new)
    text = text.replace("[defaults] ", "[defaults]\nepochs = 1 ")
    path = folder / "example.toml"
    path.write_text(text)
    study = compare.read(path)
    # The methods that are left out are those of the study above.
    only = ("weak logger", "logger", "pbm", "ips, estimated", "lightgbm-position")
    counts = compare.run(study, tmp_path, only=only)
    without = 0 if peers.version("lightgbm") else 1
    assert counts == {"made": 4 - without, "kept": 0, "failed": without}
    assert isinstance(study.logs[1], Log)
    assert "strong logger" in compare.markdown(compare.collect(study, tmp_path))
