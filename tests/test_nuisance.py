"""Nuisance estimates of weighted methods: true curves, logs that identify none, files of propensities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Ultr
from narrowing import present
from propensity_logs import click_log
from stored import write_log

from ultr.data import ClickLog, collapse
from ultr.errors import ConfigError, DataError
from ultr.propensity import conditional_likelihood
from ultr.propensity.affine import fit_affine
from ultr.propensity.arm_counts import as_arm_counts
from ultr.simulate import user
from ultr.simulate.ground_truth import describe_user
from ultr.study import ModelConfig, NuisanceEstimates, build_model
from ultr.study.nuisance import fit_trust, read_propensities
from ultr.study.truth import true_alpha, true_examination

CURVE = [1.0, 0.5, 0.25]


def log_of(path: Path, documents: Any, clicks: Any = (1, 0, 0), ranks: Any = (1, 2, 3)) -> ClickLog:
    """Sessions of query 0, each list of documents in turn, with the same clicks."""
    rows = [
        {"session": str(i), "query": 0, "documents": list(d), "ranks": list(ranks), "clicks": list(clicks)}
        for i, d in enumerate(list(documents) * 20)
    ]
    return write_log(path, rows)


@pytest.fixture
def log(tmp_path: Path) -> ClickLog:
    return log_of(tmp_path / "log", [(1, 2, 3), (2, 3, 1)])


def test_trust_of_a_log_that_tells_nothing_is_refused(tmp_path: Path) -> None:
    without = log_of(tmp_path / "without", [(1, 2, 3), (2, 3, 1)], clicks=(0, 0, 0))
    with pytest.raises(DataError, match="expected clicks, found none"):
        fit_trust(collapse(without, "rank"), seed=0)
    still = log_of(tmp_path / "still", [(1, 2, 3)], clicks=(1, 1, 1))
    with pytest.raises(ConfigError, match=r"unidentified: .*ranks 2-3 .*no document connects them with rank 1"):
        fit_trust(collapse(still, "rank"), seed=0)
    with pytest.raises(ConfigError, match="unidentified"):
        NuisanceEstimates(still, source="conditional-likelihood").propensity  # noqa: B018


def test_trust_is_corrected_for_where_clicks_tell_it(tmp_path: Path) -> None:
    counts = collapse(click_log(tmp_path / "few", sessions=150), "rank")
    alpha, beta = fit_trust(counts, seed=0)
    estimate = conditional_likelihood(counts).value
    np.testing.assert_allclose(alpha, estimate / estimate.max())
    np.testing.assert_array_equal(beta, 0.0)
    counts = collapse(click_log(tmp_path / "many", sessions=20_000), "rank")
    alpha, beta = fit_trust(counts, seed=0)
    found = present(fit_affine(as_arm_counts(counts)))
    np.testing.assert_allclose(alpha / alpha[0], np.exp(found.log_alpha))
    assert beta.min() == 0
    assert (alpha + beta).max() == pytest.approx(1)


def test_true_examination_is_that_of_the_user_and_of_no_other() -> None:
    known = user("pbm", grades=3, ranks=3)
    truth = describe_user(known, [], 3)
    np.testing.assert_array_equal(true_examination(truth), truth["examination"])
    np.testing.assert_array_equal(true_examination(truth | {"noise": {"flip": 0.1}}), truth["examination"])
    moved = {"examination": CURVE[::-1]}
    for other, said in (
        (None, "has none"),
        ({}, "has none"),
        (describe_user(user("pbm-bottom-up", grades=3, ranks=3), [], 3), "upwards"),
        (describe_user(user("pbm+dbn", grades=3, ranks=3), [], 3), "mixture"),
        (truth | {"drift": {"start": truth, "end": moved}}, "drifts"),
        (truth | {"contexts": {"device": {"desk": truth, "phone": moved}}}, "context 'device'"),
    ):
        assert true_examination(other) is None
        for name in ("propensity", "affine"):
            with pytest.raises(ConfigError, match=said):
                getattr(NuisanceEstimates(None, source="true", truth=other), name)  # type: ignore[arg-type]
    np.testing.assert_array_equal(
        true_examination(truth | {"contexts": {"device": {"desk": truth}}}), truth["examination"]
    )


def test_true_affine_has_the_noise_of_the_clicks(log: ClickLog) -> None:
    alpha, beta = np.array([0.8, 0.4, 0.2]), np.array([0.1, 0.05, 0.0])
    truth = {"examination": CURVE, "noise": {"flip": 0.1, "random_clicks": 0.2}}
    relevance = 0.3
    for trust, clicked in (
        ({}, np.array(CURVE) * relevance),
        ({"trust": {"alpha": alpha.tolist(), "beta": beta.tolist()}}, alpha * relevance + beta),
    ):
        a, b = NuisanceEstimates(log, source="true", truth=truth | trust).affine
        accident = clicked + (1 - clicked) * 0.2
        np.testing.assert_allclose(a * relevance + b, accident * 0.9 + (1 - accident) * 0.1)
    with pytest.raises(ConfigError, match="above 0, found none at ranks 1-3 of true"):
        NuisanceEstimates(log, source="true", truth={"examination": CURVE, "noise": {"flip": 0.5}}).affine  # noqa: B018
    with pytest.raises(DataError, match="of 3 ranks, which the log shows, found 2"):
        NuisanceEstimates(log, source="true", truth={"examination": CURVE[:2]}).affine  # noqa: B018


def test_true_affine_of_a_user_without_an_examination_of_its_own(log: ClickLog) -> None:
    noise: Any = {"flip": 0.05, "random_clicks": 0.1}
    truth = describe_user(user("trust-affine", grades=4, ranks=3, **noise), [], 3)
    alpha, beta = NuisanceEstimates(log, source="true", truth=truth).affine
    relevance = np.array([0, 1, 3, 7, 15])[:, None] / 15
    clicked = np.array([0.35, 0.53, 0.55]) * relevance + np.array([0.65, 0.26, 0.15])
    accident = clicked + (1 - clicked) * 0.1
    np.testing.assert_allclose(alpha * relevance + beta, accident * 0.95 + (1 - accident) * 0.05, rtol=1e-5)
    np.testing.assert_allclose(present(true_alpha(truth)), [0.35, 0.53, 0.55], rtol=1e-5)
    for model in ("affine-ips", "intervention-aware"):
        build_model(
            ModelConfig(model=model, relevance="table"), log, NuisanceEstimates(log, source="true", truth=truth)
        )
    assert true_examination(truth) is None
    said = r"has trust \(alpha and beta\) and none apart from it. Choose .* such as affine-ips, or an estimator: "
    with pytest.raises(ConfigError, match=said):
        NuisanceEstimates(log, source="true", truth=truth).propensity  # noqa: B018
    for name, why in (("trust-affine-bottom-up", "upwards"), ("trust-affine+pbm", "mixture")):
        other = describe_user(user(name, grades=4, ranks=3), [], 3)
        assert true_alpha(other) is None
        with pytest.raises(ConfigError, match=why):
            NuisanceEstimates(log, source="true", truth=other).affine  # noqa: B018


def test_true_alpha_is_that_of_no_user_whose_trust_moves() -> None:
    truth = describe_user(user("trust", grades=4, ranks=3), [], 3)
    np.testing.assert_array_equal(true_alpha(truth), truth["trust"]["alpha"])
    assert true_alpha(truth | {"drift": {"start": truth, "end": {"examination": CURVE[::-1]}}}) is None
    assert true_alpha(describe_user(user("pbm", grades=4, ranks=3), [], 3)) is None
    assert true_alpha(None) is None


def written(path: Path, *curves: Any) -> Path:
    """A file as the command writes it: curves of (rank, propensity)."""
    found = [{"method": "m", "ranks": [{"rank": k, "propensity": v} for k, v in curve]} for curve in curves]
    path.write_text(json.dumps({"propensities": found}))
    return path


def test_propensities_of_a_file_stand_where_their_ranks_say(tmp_path: Path) -> None:
    path = tmp_path / "curve.json"
    found = read_propensities(written(path, [(3, 0.25), (1, 1), (2, None)]))
    np.testing.assert_array_equal(found, [1, np.nan, 0.25])
    path.write_text(json.dumps({"ranks": [{"rank": 1, "propensity": 1.0}]}))
    assert read_propensities(path).tolist() == [1]


@pytest.mark.parametrize(
    ("curves", "error", "said"),
    [
        ([[(1, 1), (3, 0.5)]], DataError, "ranks 1, 2 and so on, each once, found 1, 3"),
        ([[(1, 1), (1, 0.5)]], DataError, "found 1, 1"),
        ([[("1", 1)]], DataError, "each once"),
        ([[]], DataError, "found none"),
        ([[(1, 1), (2, "half")]], DataError, "expected a number at rank 2, found 'half'"),
        ([[(1, 1)], [(1, 1)]], ConfigError, "expected one curve, found 2. Write one"),
        ([], ConfigError, "expected one curve, found 0"),
        ([5], ConfigError, "found something else"),
    ],
)
def test_files_that_are_no_curve_are_refused(tmp_path: Path, curves: Any, error: Any, said: str) -> None:
    path = tmp_path / "curve.json"
    if curves == [5]:
        path.write_text("5")
    else:
        written(path, *curves)
    with pytest.raises(error, match=said):
        read_propensities(path)


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (b"\xff\xfe{}", ConfigError, "not JSON"),
        (b"[" * 5000, ConfigError, "not JSON"),
        (b'{"ranks": [{"rank": 1, "propensity": 1%s}]}' % (b"0" * 400), DataError, "one beyond all of them"),
    ],
)
def test_a_damaged_curve_is_an_error(tmp_path: Path, content: bytes, error: Any, said: str) -> None:
    path = tmp_path / "curve.json"
    path.write_bytes(content)
    with pytest.raises(error, match=said):
        read_propensities(path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("additive-weighted", "--propensity", "all-pairs"),
            "weighs by how often documents are shown at which rank. Leave it",
        ),
        (("affine-ips", "--propensity", "all-pairs"), "expected true or a .json file. Leave it out"),
        (("intervention-aware", "--propensity", "ctr"), "expected true or a .json file"),
        (("ips-listwise", "--solver", "em"), "--solver em cannot train --model ips-listwise"),
        (("ips-listwise", "--solver", "em"), "Choose --solver gradient\n"),
        (("pbm+dbn", "--solver", "lbfgs"), "Choose --solver gradient\n"),
        (("pbm", "--solver", "counting"), "Choose --solver gradient, em or lbfgs"),
    ],
)
def test_train_refuses_options_that_would_do_nothing(
    ultr: Ultr, log: ClickLog, tmp_path: Path, arguments: Any, said: str
) -> None:
    code, _, err = ultr("train", log.path, "--out", tmp_path / "run", "--model", *arguments)
    assert code == 2
    assert said in err
    assert "note:" not in err


@pytest.mark.parametrize("model", ["pbm", "naive", "affine-ips", "additive-weighted"])
def test_train_refuses_sessions_without_clicks(ultr: Ultr, tmp_path: Path, model: str) -> None:
    log = log_of(tmp_path / "log", [(1, 2, 3), (2, 3, 1)], clicks=(0, 0, 0))
    code, _, err = ultr("train", log.path, "--out", tmp_path / "run", "--model", model, "--valid-fraction", 0)
    assert code == 2
    assert "expected clicks to learn from, found none in the 40 sessions" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_train_says_that_a_log_of_one_rank_has_nothing_to_correct(ultr: Ultr, tmp_path: Path) -> None:
    log = log_of(tmp_path / "log", [(1,), (2,), (3,)], clicks=(1,), ranks=(1,))
    code, _, err = ultr("train", log.path, "--out", tmp_path / "run", "--model", "pbm", "--epochs", 1)
    assert code == 0
    assert "one rank only" in err
