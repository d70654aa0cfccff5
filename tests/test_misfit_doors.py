"""Commands and studies say whether clicks fit, and act on it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from conftest import Ultr
from misfit_logs import count, draw, write
from propensity_logs import click_log

from ultr.data import ClickLog, collapse
from ultr.data.counting import count_cells, last_click_key, merge_extra
from ultr.identifiability import report
from ultr.propensity import conditional_likelihood, goodness_of_fit
from ultr.propensity.goodness_of_fit import CASCADES, CHECKS
from ultr.study.assumptions import check_assumptions
from ultr.study.registry import METHODS, method_spec
from ultr.study.specs import Assumption

SESSIONS = 5000
MISFIT = "The position-based model does not fit this log."


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ClickLog]:
    path = tmp_path_factory.mktemp("misfit")
    return {kind: write(path / kind, draw(kind, 3, SESSIONS)) for kind in ("pbm", "ubm", "dbn", "noise")}


def test_a_log_and_its_counts_give_the_same(logs: dict[str, ClickLog]) -> None:
    log = logs["ubm"]
    expected = goodness_of_fit(count(draw("ubm", 3, SESSIONS))).to_json()
    assert goodness_of_fit(log).to_json() == expected
    assert goodness_of_fit(collapse(log, "last-click")).to_json() == expected
    assert report(log).fit.to_json() == expected


def test_cells_by_last_click_add_up_to_cells_by_rank(logs: dict[str, ClickLog]) -> None:
    merged = merge_extra(count_cells(logs["ubm"], last_click_key(logs["ubm"])))
    for one, other in zip(merged, count_cells(logs["ubm"]), strict=True):
        np.testing.assert_array_equal(one, other)  # type: ignore[arg-type]


def test_distinct_lists_count_as_often_as_they_were_shown(logs: dict[str, ClickLog], tmp_path: Path) -> None:
    distinct = collapse(logs["ubm"], "list", directory=tmp_path / "distinct")
    found, expected = goodness_of_fit(distinct), goodness_of_fit(logs["ubm"])
    assert [check.z for check in found.checks] == pytest.approx([check.z for check in expected.checks])


def test_weights_that_are_no_copies_are_not_taken_for_chance(ultr: Ultr, tmp_path: Path) -> None:
    """Ten for a tenth of the sessions: as many clicks as ten times the sessions, and much more chance in them."""
    log = write(tmp_path / "log", draw("pbm", 3, 2000), weight=lambda i: 10.0 if i % 10 == 0 else 1.0)
    for source in (log, collapse(log, "last-click"), collapse(log, "list", directory=tmp_path / "distinct")):
        found = goodness_of_fit(source)
        assert found.fits is None
        assert "weights that need not be copies" in found.text()
    assert "weights that need not be copies" in ultr("propensity", log.path).out
    assert "weights that need not be copies" in ultr("diagnose", log.path).out


def test_propensity_leaves_curves_of_logs_that_fit_as_they_are(ultr: Ultr, logs: dict[str, ClickLog]) -> None:
    found = ultr("propensity", logs["pbm"].path, "--json").json
    assert found["goodness_of_fit"]["fits"] is True
    assert found["propensities"] == [json.loads(json.dumps(conditional_likelihood(logs["pbm"]).to_json()))]
    assert "fits as far as all checks can tell" in ultr("propensity", logs["pbm"].path).out


def test_propensity_widens_and_says_why(ultr: Ultr, logs: dict[str, ClickLog]) -> None:
    log = logs["ubm"]
    found = ultr("propensity", log.path, "--method", "conditional-likelihood", "--method", "ctr", "--json").json
    curve = found["propensities"][0]
    expected = goodness_of_fit(log).widened(conditional_likelihood(log))
    assert curve == json.loads(json.dumps(expected.to_json()))
    assert curve["ranks"][2]["interval"] != json.loads(
        ultr("propensity", log.path, "--no-check", "--json").out
    )["propensities"][0]["ranks"][2]["interval"]  # fmt: skip
    text = ultr("propensity", log.path).out
    assert text.count(MISFIT) == 1
    assert "Train with --model ubm." in text


def test_propensity_withholds_curves_of_cascades(ultr: Ultr, logs: dict[str, ClickLog], tmp_path: Path) -> None:
    out, figure = tmp_path / "curve.csv", tmp_path / "curve.png"
    code, text, err = ultr("propensity", logs["dbn"].path, "--out", out, "--figure", figure)
    assert (code, err) == (0, "")
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert "ranks 2-4: withheld" in text
    assert "--model dbn" in text
    assert out.read_text().splitlines()[2].startswith("conditional-likelihood,2,,,,")
    assert ultr("propensity", logs["dbn"].path, "--no-check", "--json").json["propensities"][0]["ranks"][1][
        "propensity"
    ]


def test_diagnose_prints_the_checks(ultr: Ultr, logs: dict[str, ClickLog]) -> None:
    text = ultr("diagnose", logs["noise"].path).out
    assert MISFIT in text
    assert "(noise)" in text
    found = ultr("diagnose", logs["noise"].path, "--json").json["goodness_of_fit"]
    assert found["failed"] == ["noise"]
    assert [check["name"] for check in found["checks"]] == ["last-click", "click-above", "trust", "noise"]
    assert all(check["sentence"] in text for check in found["checks"] if check["failed"])


def test_each_context_has_a_curve_of_its_own(ultr: Ultr, tmp_path: Path) -> None:
    # Phones and desks: the model fits each, and not both together.
    log = click_log(tmp_path / "log", sessions=12_000, context=True)
    together = ultr("propensity", log.path, "--json").json
    assert together["goodness_of_fit"]["fits"] is False
    assert "--context" in together["goodness_of_fit"]["text"]
    apart = ultr("propensity", log.path, "--context", "device", "--json").json
    assert set(apart["goodness_of_fit"]) == {"device=phone", "device=desk"}
    assert all(fit["fits"] for fit in apart["goodness_of_fit"].values())
    same = ultr("propensity", log.path, "--context", "device", "--no-check", "--json").json
    assert apart["propensities"] == same["propensities"]
    assert "device=phone: The position-based model fits" in ultr("propensity", log.path, "--context", "device").out


@pytest.mark.parametrize(
    ("kind", "model", "said"),
    [("ubm", "pbm", "--model ubm"), ("pbm", "pbm", "fits as far"), ("ubm", "ubm", ""), ("dbn", "ubm", "--model dbn")],
)
def test_train_warns_of_the_assumptions_of_its_model(
    ultr: Ultr, logs: dict[str, ClickLog], tmp_path: Path, kind: str, model: str, said: str
) -> None:
    options = ("--model", model, "--epochs", 1, "--relevance", "table")
    trained = ultr("train", logs[kind].path, "--out", tmp_path / "run", *options)
    assert trained.code == 0, trained.err
    kept = json.loads((tmp_path / "run" / "run.json").read_text())["goodness_of_fit"]
    assert kept["fits"] is (kind == "pbm")
    assert kept["text"] in trained.out
    assert (said in kept["text"]) if said else kept["text"] == ""


def test_methods_that_assume_nothing_are_not_checked(logs: dict[str, ClickLog]) -> None:
    for name in ("naive", "dctr", "dbn", "sdbn"):
        assert check_assumptions(method_spec(name), logs["ubm"]) is None
    both = CHECKS
    assert {*CHECKS, CASCADES} == {*get_args(Assumption)}
    assert {name for name, spec in METHODS.items() if spec.assumes == both} >= {
        "pbm", "ips-listwise", "dla", "regression-em", "prs", "policy-aware", "pbm-frozen", "pairdebias"
    }  # fmt: skip
    assert method_spec("affine-ips").assumes == method_spec("trust").assumes == both[:2]


def test_recommended_models_are_methods_that_can_be_trained(logs: dict[str, ClickLog]) -> None:
    for log in logs.values():
        for name in goodness_of_fit(log).models:
            assert METHODS[name].trained_on_log


@pytest.mark.slow
def test_compare_keeps_the_checks_with_the_log(ultr: Ultr, logs: dict[str, ClickLog], tmp_path: Path) -> None:
    study: list[str] = ["seeds = [0]", 'metrics = ["ndcg@10"]', 'baseline = "pbm"']
    for kind in ("pbm", "ubm"):
        study += ["[[log]]", f'name = "{kind}"', f'path = "{logs[kind].path}"']
    study += ["[[method]]", 'model = "pbm"', 'relevance = "table"', "epochs = 1"]
    (tmp_path / "study.toml").write_text("\n".join(study))
    made = ultr("compare", tmp_path / "study.toml", "--out", tmp_path / "out", "--json")
    assert made.code == 0, made.err
    about: dict[str, Any] = {log["name"]: log["about"]["diagnosis"] for log in made.json["logs"]}
    assert about["pbm"]["misfit"] == [[]]
    assert "last-click" in about["ubm"]["misfit"][0]
    assert about["ubm"]["models"] == ["ubm"]
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.count("licks do not fit the position-based model") == 1


def test_a_misfit_that_hardly_moves_the_curve_is_said_to_be_one(logs: dict[str, ClickLog]) -> None:
    found = goodness_of_fit(logs["ubm"])
    (other,) = found.alternatives
    assert "`ultr propensity` widens its intervals" in found.text()
    assert found.text().endswith("Train with --model ubm.")
    close = dataclasses.replace(other, value=found.curve * np.where(np.arange(len(found.curve)) == 2, 1.012, 1.0))
    text = dataclasses.replace(found, alternatives=(close,)).text()
    assert text.startswith(MISFIT)
    assert "That hardly matters to the curve, which is off by 1.2% at most, at rank 3" in text
    assert text.endswith("To predict clicks, --model ubm may do better.")
