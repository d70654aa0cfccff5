"""Whether bias curves agree with propensities, and `ultr diagnose`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Ultr
from flax import nnx
from scipy import stats

from ultr import ClickLog, identifiability, models, save, simulate, solve, towers
from ultr.data import collapse
from ultr.errors import ConfigError
from ultr.identifiability import agreement
from ultr.propensity import Propensities
from ultr.study import METHODS


def harvested(value: Any, covariance: Any) -> Propensities:
    value, covariance = np.asarray(value, float), None if covariance is None else np.asarray(covariance, float)
    spread = np.full(len(value), 0.1) if covariance is None else np.sqrt(np.diag(covariance))
    return Propensities(
        method="test",
        rank=np.arange(1, len(value) + 1),
        value=value,
        standard_error=np.where(np.arange(len(value)) == 0, 0.0, value * spread),
        interval=np.zeros((len(value), 2)),
        impressions=np.ones(len(value)),
        covariance=covariance,
    )


COVARIANCE = np.array([[0.0, 0, 0, 0], [0, 0.04, 0.02, 0.01], [0, 0.02, 0.05, 0.03], [0, 0.01, 0.03, 0.09]])


def test_agreement_is_walds_test() -> None:
    log = np.array([0.3, -0.2, 0.5])
    propensities = harvested([1, 0.5, 0.3, 0.2], COVARIANCE)
    curve = 0.8 * np.array([1, *(np.array([0.5, 0.3, 0.2]) * np.exp(log))])  # the factor says nothing
    found = agreement(curve, propensities)
    expected = log @ np.linalg.inv(COVARIANCE[1:, 1:]) @ log
    assert found.chi_square == pytest.approx(expected)
    assert found.degrees == 3
    assert found.p_value == pytest.approx(stats.chi2.sf(expected, 3))
    np.testing.assert_allclose(found.ratio, np.exp(log))
    np.testing.assert_allclose(found.z, log / np.sqrt(np.diag(COVARIANCE)[1:]))
    np.testing.assert_array_equal(found.rank, [2, 3, 4])
    assert found.agrees == (found.p_value >= 0.05)
    same = agreement(propensities.value, propensities)
    assert same.agrees
    assert (same.chi_square, same.p_value) == (pytest.approx(0, abs=1e-12), 1)
    assert "agrees with the estimated one" in same.text()
    far = agreement([1, 0.5, 0.3, 1.0], propensities)
    assert not far.agrees
    assert "above it at rank 4; the largest difference is a factor of 5.0 at rank 4" in far.text()
    json.dumps(far.to_json(), allow_nan=False)


def test_agreement_of_two_logs_adds_their_errors() -> None:
    one, two = harvested([1, 0.5, 0.3, 0.2], COVARIANCE), harvested([1, 0.6, 0.3, 0.1], 3 * COVARIANCE)
    log = np.log([0.6 / 0.5, 1, 0.5])
    assert agreement(two, one).chi_square == pytest.approx(log @ np.linalg.inv(4 * COVARIANCE[1:, 1:]) @ log)
    assert agreement(one, two).chi_square == pytest.approx(agreement(two, one).chi_square)


def test_agreement_without_covariances_or_values() -> None:
    found = agreement([1, 0.5, 0.4, 0.2], harvested([1, 0.5, 0.3, 0.2], None))
    z = np.log(0.4 / 0.3) / 0.1
    np.testing.assert_allclose(found.z, [0, z, 0], atol=1e-12)
    assert found.p_value == pytest.approx(3 * 2 * stats.norm.sf(z))
    assert found.degrees == 0
    assert "no covariance" in found.text()
    part = harvested([np.nan, 0.5, 0.3, 0.2], COVARIANCE)  # no rank 1: relative to rank 2
    other = agreement([1, 0.5, 0.4, 0.1], part)
    np.testing.assert_array_equal(other.rank, [3, 4])
    variance = 0.04 + 0.05 - 2 * 0.02, 0.04 + 0.09 - 2 * 0.01
    np.testing.assert_allclose(other.z, np.log([4 / 3, 1 / 2]) / np.sqrt(variance))
    assert "Not compared: rank 1, without a value or an error" in other.text()
    short = agreement([1, 0.5], harvested([1, 0.5, 0.3, 0.2], COVARIANCE))
    assert short.degrees == 1
    assert "Not compared: ranks 3-4" in short.text()
    with pytest.raises(ConfigError, match="at two ranks at least, found values of both at 1"):
        agreement([1.0], part_of(part))
    bad: Any
    for bad in ([1, 0], [1, -2], [[1, 2]], [1, np.inf]):
        with pytest.raises(ConfigError, match="expected propensities"):
            agreement(bad, harvested([1, 0.5], COVARIANCE[:2, :2]))


def part_of(propensities: Propensities) -> Propensities:
    return dataclasses.replace(propensities, value=np.array([1.0, *propensities.value[1:]]))


def test_models_agree_with_what_they_were_made_from() -> None:
    value = np.array([1, 0.5, 0.3, 0.2])
    propensities = harvested(value, COVARIANCE)
    relevance = towers.DocumentTable(5)
    pbm = models.PBM(relevance=relevance, examination=towers.RankTable(4, initial=towers.logits_of(0.9 * value)))
    np.testing.assert_allclose(agreement(pbm, propensities).ratio, 1, rtol=1e-5)
    table = towers.RankTable(4, initial=np.log(value), pin_first=True)
    additive = models.AdditivePBM(relevance=relevance, examination=table)
    found = agreement(additive, propensities)
    np.testing.assert_allclose(found.ratio, 1, rtol=1e-5)
    assert "odds, not propensities" in found.text()
    linear = models.PBM(relevance=relevance, examination=towers.Linear(3, rngs=nnx.Rngs(0)))
    bad: Any
    for bad in (linear, models.UBM(relevance=relevance, examination=towers.LastClickTable(4))):
        with pytest.raises(ConfigError, match=r"whose examination is a RankTable.*found (PBM|UBM)"):
            agreement(bad, propensities)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    graded = simulate.collection(queries=30, documents=5, features=4, seed=0)
    graded.save(path / "collection")
    user = simulate.user("pbm", grades=4, ranks=5)
    made = simulate.clicks(
        graded, simulate.Policy("linear", temperature=0.3), user, sessions=4000, seed=0, out=path / "log", ranks=5
    )
    collapse(made, "last-click", directory=path / "counts")
    return path / "log"


def test_the_command_prints_words_and_json(ultr: Ultr, log: Path) -> None:
    code, out, _ = ultr("diagnose", log, "--target", 0.02)
    assert code == 0
    for part in ("In part: ", "What limits it: ", "What to do: ", "rank  impressions", "exchanged in each"):
        assert part in out
    assert out.index("What to do") < out.index("rank  impressions")
    [assumed] = [line for line in out.splitlines() if line.startswith("Assumed: ")]
    assert out.index("What to do") < out.index(assumed) < out.index("rank  impressions")
    for part in ("examination times relevance", "no trust bias", "alpha and beta", "do not cover", "--model trust"):
        assert part in assumed
    assert {"trust", "affine-ips"} <= set(METHODS)  # the names that it gives
    code, out, _ = ultr("diagnose", log, "--json", "--target", 0.02)
    assert code == 0
    found = json.loads(out)
    assert {"components", "standard_error", "sessions_needed", "swaps"} <= set(found)
    assert assumed == f"Assumed: {found['assumption']}"
    assert found["components"] == [[1, 2, 3, 4, 5]]
    assert len(found["standard_error"]) == len(found["sessions_needed"]) == 5
    assert (found["standard_error"][0], found["sessions_needed"][0]) == (0, 0)
    assert all(len(pair) == 2 for swap in found["swaps"] for pair in swap["ranks"])
    opened = ClickLog.open(log)
    assert found.pop("candidates")["shown"] is not None
    assert found == json.loads(json.dumps(identifiability.report(opened, target=0.02).to_json()))
    of_counts = ultr("diagnose", log.parent / "counts", "--json", "--target", 0.02).json
    del of_counts["candidates"]
    assert of_counts == found
    assert len(ultr("diagnose", log, "--json", "--ranks", 3).json["standard_error"]) == 3


@pytest.mark.slow
def test_the_command_compares_a_trained_model(ultr: Ultr, log: Path, tmp_path: Path) -> None:
    opened = ClickLog.open(log)
    tables = models.PBM(relevance=towers.DocumentTable(opened.documents), examination=towers.RankTable(5))
    save(solve(tables, opened, prior=0.1, iterations=200).model, tmp_path / "model")
    code, out, err = ultr("diagnose", log, "--run", tmp_path, "--json")
    assert code == 0, err
    found = json.loads(out)["agreement"]
    assert found["rank"] == [2, 3, 4, 5]
    assert found["agrees"]
    assert found["run"] == str(tmp_path)
    flat = models.PBM(relevance=towers.DocumentTable(opened.documents), examination=towers.RankTable(5))
    save(flat, tmp_path / "flat")
    text = ultr("diagnose", log, "--run", tmp_path / "flat")[1]
    assert text.startswith("The learned curve differs from the estimated one by more than chance")
    assert "above it at ranks 2-5" in text
    assert ultr("diagnose", log, "--run", tmp_path, "--ranks", 3, "--json").json["agreement"]["rank"] == [2, 3]
    save(models.UBM(relevance=towers.DocumentTable(5), examination=towers.LastClickTable(4)), tmp_path / "ubm")
    code, text, _ = ultr("diagnose", log, "--run", tmp_path / "ubm")
    assert code == 0
    assert text.startswith("The learned curve cannot be compared: expected a PBM or AdditivePBM")
    assert "What limits it" in text or "The weakest link" in text
    found = ultr("diagnose", log, "--run", tmp_path / "ubm", "--json").json
    assert "expected a PBM" in found["agreement"]["reason"]
    assert found["components"] == [[1, 2, 3, 4, 5]]


def test_the_command_says_what_is_wrong(ultr: Ultr, log: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ((tmp_path / "none",), "expected the folder of a click log"),
        ((log.parent / "collection",), "a click log (ultr-click-log) is needed here"),
        ((log, "--target", 0), "--target"),
        ((log, "--share", 2), "--share"),
        ((log, "--split", "train"), "train"),
        ((log.parent / "counts", "--split", "train"), "counts, which have none"),
        ((log, "--run", tmp_path), "meta.json"),
    ):
        code, out, err = ultr("diagnose", *arguments)
        assert (code, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1
