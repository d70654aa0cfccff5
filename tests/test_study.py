"""Making the runs of a study: once each, with the same numbers in any process, and with a clear end after a failure."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Ultr
from studies import study_text

from ultr.cli.compare import check_out
from ultr.errors import ConfigError, DataError
from ultr.evaluation import Estimate
from ultr.files import json_values
from ultr.study import METHODS, LogSpec, Study, collect_results, read_study, results_markdown, run_study
from ultr.study.boosting import package_version
from ultr.study.runs import StoredRuns, study_runs

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture(scope="module")
def done(study_folder: Path, quickly_compiled: None) -> tuple[Study, Path, dict[str, Any]]:
    study = read_study(study_folder / "study.toml")
    counts = run_study(study, study_folder / "out")
    assert counts == {"made": 2 * 6, "kept": 0, "failed": 0}
    return study, study_folder / "out", collect_results(study, study_folder / "out")


def changed(study_folder: Path, old: str, new: str) -> Study:
    path = study_folder / "changed.toml"
    path.write_text(study_text((old, new)))
    return read_study(path)


@pytest.mark.slow
def test_finished_runs_are_kept_and_changed_ones_made_again(study_folder: Path, done: Any, tmp_path: Path) -> None:
    study, out, _ = done
    assert run_study(study, out) == {"made": 0, "kept": 12, "failed": 0}
    shutil.copytree(out, tmp_path / "out")
    other = changed(study_folder, "clip = 20.0", "clip = 21.0")
    assert [m.name for m in other.methods if m not in study.methods] == ["ips"]
    stale = collect_results(other, tmp_path / "out")
    assert stale["missing"] == ["some log / ips / seed 0", "some log / ips / seed 1"]
    assert run_study(other, tmp_path / "out", seeds=(1,)) == {"made": 1, "kept": 5, "failed": 0}
    # A log that changed has every run but that of the method which learns from grades made again.
    moved = changed(study_folder, "sessions = 1500", "sessions = 1400")
    assert len(collect_results(moved, tmp_path / "out")["missing"]) == 2 * 5
    made = run_study(moved, tmp_path / "out", only=("random", "full-information"))
    assert made == {"made": 2, "kept": 2, "failed": 0}


def test_what_a_killed_run_left_is_made_again(done: Any, tmp_path: Path) -> None:
    study, out, _ = done
    shutil.copytree(out, tmp_path / "out")
    run, stored = next(r for r in study_runs(study) if r.method.name == "random"), StoredRuns(tmp_path / "out")
    stored.path(run, "cells", ".npz").unlink()
    assert run_study(study, tmp_path / "out")["made"] == 1
    stored.path(run, "cells", ".json").write_text('{"schema":')
    assert run_study(study, tmp_path / "out")["made"] == 1
    assert not list((tmp_path / "out").glob(".work*"))


ORPHAN = """
import concurrent.futures, multiprocessing, os, signal, time
from ultr.study.workers import end_with_parent
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 60)
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
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
    for name in ("trec", "about", ".ultr-scratch-x1"):
        (tmp_path / name).mkdir()
        check_out(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match="holds other files"):
        check_out(tmp_path)


def test_a_diagnosis_asked_for_later_is_made(done: Any, tmp_path: Path) -> None:
    study, out, _ = done
    shutil.copytree(out, tmp_path / "out")
    place = tmp_path / "out" / "about" / "some_log" / "seed-0.json"
    facts = json.loads(place.read_text())
    said = facts.pop("diagnosis")
    place.write_text(json.dumps(facts))
    quiet = dataclasses.replace(study, diagnose=False)
    assert run_study(quiet, tmp_path / "out") == {"made": 0, "kept": 12, "failed": 0}
    assert "diagnosis" not in json.loads(place.read_text())
    assert run_study(study, tmp_path / "out") == {"made": 0, "kept": 12, "failed": 0}
    assert json.loads(place.read_text())["diagnosis"] == said


def test_the_table_is_what_the_runs_say(done: Any) -> None:
    study, out, results = done
    (log,) = results["logs"]
    rows = {row["name"]: row for row in log["methods"]}
    values = {}
    for name in ("logger", "naive", "pbm", "full-information"):
        own = [StoredRuns(out).read_values(run) for run in study_runs(study) if run.method.name == name]
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
    text = results_markdown(results)
    assert "| pbm |" in text
    assert f"{rows['pbm']['metrics']['ndcg@10']['value']:.4f}" in text


def test_settings_are_chosen_without_test_grades(done: Any) -> None:
    rows = {row["name"]: row for row in done[2]["logs"][0]["methods"]}
    for name in ("pbm", "ips"):
        for chosen in rows[name]["chosen"]:
            assert chosen["by"] == "gain in DCG@10 over the logged order on held-out queries, by debiased clicks"
            whole = [value for value in chosen["values"] if value["folds"] == chosen["folds"]]
            picked = next(value for value in whole if value["settings"] == chosen["settings"])
            best = max(whole, key=lambda v: v["gain"])
            assert picked is best or (picked["loss"] < best["loss"] and "likelihood" in chosen["reason"])


def test_trec_files_give_the_numbers_of_the_table(done: Any) -> None:
    ir_measures = pytest.importorskip("ir_measures")
    study, out, _ = done
    exact = ir_measures.nDCG(gains={y: 2**y - 1 for y in range(5)}) @ 10
    qrels = list(ir_measures.read_trec_qrels(str(out / "trec" / "qrels")))
    stored = StoredRuns(out)
    for run in study_runs(study):
        ranking = list(ir_measures.read_trec_run(str(stored.path(run, "trec", ".run"))))
        found = ir_measures.calc_aggregate([exact, ir_measures.RR @ 10], qrels, ranking)
        kept = stored.read(run)
        assert kept is not None
        assert found[exact] == pytest.approx(kept["metrics"]["ndcg@10"], abs=1e-6), run.title
        assert found[ir_measures.RR @ 10] == pytest.approx(kept["metrics"]["mrr@10"], abs=1e-6), run.title


@pytest.mark.slow
def test_processes_make_the_same_runs(study_folder: Path, done: Any, tmp_path: Path) -> None:
    study, out, _ = done
    only = ("random", "logger")
    alone = dataclasses.replace(study, diagnose=False)
    assert run_study(alone, tmp_path, only=only, jobs=2) == {"made": 4, "kept": 0, "failed": 0}
    for run in study_runs(study):
        if run.method.name in only:
            one, other = StoredRuns(out).read_values(run), StoredRuns(tmp_path).read_values(run)
            assert one is not None
            assert other is not None
            np.testing.assert_allclose(one["ndcg@10"], other["ndcg@10"], rtol=1e-6)


def test_lists_to_judge_on_are_of_other_queries(study_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(study_folder / "collection", tmp_path / "test")
    collection = study_folder / "collection"
    changes = (
        ('collection = "collection"\n', ""),
        ('vali = "vali"', f'vali = "{collection}"'),
        ('train = "train"', f'train = "{collection}"'),
    )
    (tmp_path / "study.toml").write_text(study_text(*changes))
    with pytest.raises(DataError, match="other queries than 'train', found 45 of 45 in both"):
        run_study(read_study(tmp_path / "study.toml"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_prints_and_saves_the_table(ultr: Ultr, done: Any, study_folder: Path) -> None:
    _, out, results = done
    found = ultr("compare", study_folder / "study.toml", "--out", out, "--json")
    assert found.code == 0, found.err
    assert "0 runs made, 12 kept, 0 failed" in found.err
    printed = found.json
    assert printed["logs"] == json_values(results)["logs"]
    assert json.loads((out / "results.json").read_text())["logs"] == printed["logs"]
    assert "| pbm |" in (out / "table.md").read_text()


def test_the_command_goes_on_after_a_failure_and_says_so(ultr: Ultr, study_folder: Path, tmp_path: Path) -> None:
    text = study_text(("temperature = 1.0", "temperature = 0.0"), ("[0, 1]", "[0]"))
    text = text.split("[[method]]\nname = ")[0].replace('reference = "full-information"\n', "")
    (study_folder / "fails.toml").write_text(text + "[[method]]\nmodel = 'ips-listwise'\n")
    options = (
        "compare",
        study_folder / "fails.toml",
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
    assert "0 runs made, 2 kept, 1 failed" in again.err
    assert "1 runs made, 1 kept" not in ultr(*options, "--retry").err


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
def test_bad_use_ends_with_one_line(ultr: Ultr, study_folder: Path, tmp_path: Path, arguments: Any, said: str) -> None:
    name, *rest = arguments
    rest = (
        [study_folder / rest[1] if r == "collection" else r for r in rest]
        if "--out" in rest
        else [*rest, "--out", tmp_path / "o"]
    )
    found = ultr("compare", study_folder / name, *rest)
    assert found.code == 2
    assert said in found.err
    assert len(found.err.strip().splitlines()) == 1


@pytest.mark.slow
def test_the_example_runs(study_folder: Path, tmp_path: Path) -> None:
    text = (ROOT / "examples" / "compare.toml").read_text()
    for old, new in (("[0, 1, 2]", "[0]"), ("20_000", "400"), ("[[16]]", "[[2]]"), ("rounds = 100", "rounds = 10")):
        assert old in text
        text = text.replace(old, new)
    text = text.replace("[defaults] ", "[defaults]\nepochs = 1 ")
    path = study_folder / "example.toml"
    path.write_text(text)
    study = read_study(path)
    # The methods that are left out are those of the study above.
    only = ("weak logger", "logger", "pbm", "ips, estimated", "lightgbm-position")
    counts = run_study(study, tmp_path, only=only)
    without = 0 if package_version(METHODS["lightgbm"]) else 1
    assert counts == {"made": 4 - without, "kept": 0, "failed": without}
    assert isinstance(study.logs[1], LogSpec)
    assert "strong logger" in results_markdown(collect_results(study, tmp_path))
