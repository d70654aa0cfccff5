"""The numbers of a comparison: means over seeds, differences, shares of the gap, errors of propensities."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ultr.errors import DataError
from ultr.holm import holm
from ultr.sessions import Sessions
from ultr.study import Study, collect_results, read_study, results_markdown
from ultr.study.choosing import weighted_gains
from ultr.study.learning import propensity_error
from ultr.study.results import gap_closed
from ultr.study.runs import StoredRuns, study_runs

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def test_gap_closed_is_the_share_of_the_way() -> None:
    rng = np.random.default_rng(0)
    logger, reference = rng.uniform(0, 0.5, 200), rng.uniform(0.5, 1, 200)
    found = gap_closed(0.3 * reference + 0.7 * logger, logger, reference)
    assert found["value"] == pytest.approx(0.3)
    assert found["interval"] == pytest.approx([0.3, 0.3])
    noisy = gap_closed(0.3 * reference + 0.7 * logger + rng.normal(0, 0.1, 200), logger, reference)
    # By the delta method the ratio of means has the deviation of (gain - ratio gap) / mean gap.
    error = 0.1 / (reference - logger).mean() / math.sqrt(200)
    assert np.diff(noisy["interval"])[0] == pytest.approx(2 * 1.96 * error, rel=0.2)
    nothing = gap_closed(logger, reference, logger)
    assert nothing["value"] is None
    assert "not better" in nothing["reason"]
    hardly = gap_closed(logger, logger, logger + rng.normal(0.002, 1, 200))
    assert hardly["interval"] == [None, None]


def store(study: Study, out: Path, method: str, seed: int, **facts: Any) -> None:
    """Stores a run made by hand, whose values per query are given as `ndcg`."""
    run = next(r for r in study_runs(study) if (r.method.name, r.seed) == (method, seed))
    ndcg = facts.pop("ndcg", None)
    table = None if ndcg is None else {"query": np.arange(len(ndcg))} | dict.fromkeys(study.metrics, np.asarray(ndcg))
    StoredRuns(out).write(run, {"queries": 0 if ndcg is None else len(ndcg)} | facts, table)


def test_methods_are_compared_on_the_seeds_that_both_have(study_folder: Path, tmp_path: Path) -> None:
    study, rng = read_study(study_folder / "study.toml"), np.random.default_rng(0)
    values = {
        (m, s): rng.uniform(size=20) for m in ("logger", "naive", "pbm", "ips", "full-information") for s in (0, 1)
    }
    for (method, seed), each in values.items():
        if (method, seed) == ("pbm", 1):
            store(study, tmp_path, method, seed, error="out of luck")
        else:
            store(study, tmp_path, method, seed, ndcg=each)
    results = collect_results(study, tmp_path, any_settings=True)
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
    text = results_markdown(results)
    assert "| pbm (1 of 2 seeds) |" in text
    assert "| ips |" in text


def test_a_mean_with_an_infinite_value_is_none_and_curves_may_differ_in_length(
    study_folder: Path, tmp_path: Path
) -> None:
    study = read_study(study_folder / "study.toml")
    error = {"mean": 0.1, "max": 0.2}
    store(study, tmp_path, "pbm", 0, propensity_error=error, propensity=[1.0, 0.5], clicks={"perplexity": 1.2})
    infinite = {"mean": math.inf, "max": 0.4}
    store(study, tmp_path, "pbm", 1, propensity_error=infinite, propensity=[1.0, 0.7, None], clicks={"perplexity": 1.4})
    results = collect_results(study, tmp_path, any_settings=True)
    row = next(row for row in results["logs"][0]["methods"] if row["name"] == "pbm")
    assert row["propensity_error"] == {"mean": None, "max": pytest.approx(0.3)}
    assert row["clicks"]["perplexity"] == pytest.approx(1.3)
    assert row["notes"] == ["propensity error, mean: infinite or not known with seed 1, so that it has no mean"]
    np.testing.assert_allclose(row["propensity"], [1.0, 0.6, np.nan])


def test_propensity_error_is_relative_to_rank_1() -> None:
    truth = np.array([1, 1 / 2, 1 / 3])
    assert propensity_error(0.7 * truth, truth) == {"mean": pytest.approx(0), "max": pytest.approx(0)}
    found = propensity_error(np.array([1, 1, 1 / 3]), truth)
    assert found == {"mean": pytest.approx(math.log(2) / 2), "max": pytest.approx(math.log(2))}
    assert propensity_error(None, truth) is None
    assert propensity_error(truth, None) is None


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
    assert weighted_gains(scores, batch, weights) == pytest.approx(first + second)


@pytest.mark.parametrize(
    ("facts", "damage", "message"),
    [
        ({"propensity": 3}, None, "TypeError"),
        ({"clicks": [1]}, None, "AttributeError"),
        ({"notes": 5}, None, "TypeError"),
        ({}, b"PK\x03\x04", r"seed-0\.npz: expected results"),
        ({}, b"", r"seed-0\.npz: expected results"),
    ],
)
def test_results_that_no_run_wrote_are_an_error(
    study_folder: Path, tmp_path: Path, facts: dict[str, Any], damage: bytes | None, message: str
) -> None:
    study = read_study(study_folder / "study.toml")
    store(study, tmp_path, "naive", 0, ndcg=np.ones(4), **facts)
    if damage is not None:
        (values,) = tmp_path.glob("cells/*/naive/seed-0.npz")
        values.write_bytes(damage)
    with pytest.raises(DataError, match=f"{message}.*run `ultr compare` again"):
        collect_results(study, tmp_path, any_settings=True)


def test_facts_that_are_brackets_in_brackets_are_missing(study_folder: Path, tmp_path: Path) -> None:
    study = read_study(study_folder / "study.toml")
    store(study, tmp_path, "naive", 0, ndcg=np.ones(4))
    (facts,) = tmp_path.glob("cells/*/naive/seed-0.json")
    for text in ("[" * 5000, '{"schema": 1, "notes": ' + "[" * 900 + "]" * 900 + "}"):
        facts.write_text(text)
        results = collect_results(study, tmp_path, any_settings=True)
        assert any("naive" in title and "seed 0" in title for title in results["missing"])
