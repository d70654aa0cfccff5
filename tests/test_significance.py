"""Paired tests against scipy, against all sign vectors and against their own promise; Holm against its definition."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
import scipy.stats

from ultr.errors import ConfigError, DataError
from ultr.evaluation import compare, holm, paired_difference, paired_t, randomisation


def pairs(n: int, shift: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    base = rng.random(n)
    return base + rng.normal(shift, 0.3, n), base


@pytest.mark.parametrize(("n", "shift"), [(2, 0.1), (7, -0.2), (300, 0.02)])
def test_t_is_that_of_scipy(n, shift):
    a, b = pairs(n, shift)
    found, expected = paired_t(a, b), scipy.stats.ttest_rel(a, b)
    assert found.statistic == pytest.approx(expected.statistic)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.p_value < 0.05) == (not found.difference.interval[0] <= 0 <= found.difference.interval[1])


def test_pairs_without_a_value_are_excluded_and_counted():
    a, b = pairs(20, 0.1)
    a[3], b[7], b[3] = np.nan, np.nan, np.nan
    kept = np.delete(np.arange(20), [3, 7])
    for found, expected in [
        (paired_t(a, b), paired_t(a[kept], b[kept])),
        (randomisation(a, b, seed=1), randomisation(a[kept], b[kept], seed=1)),
    ]:
        assert found.p_value == expected.p_value
        assert (found.difference.count, found.difference.excluded) == (18, 2)
        assert found.difference == paired_difference(a, b)


def test_few_differences_try_every_sign_vector():
    a, b = pairs(6, 0.15, seed=3)
    d = a - b
    sums = [abs(np.dot(signs, d)) for signs in itertools.product([1, -1], repeat=6)]
    expected = np.mean([s >= abs(d.sum()) * (1 - 1e-12) for s in sums])
    found = randomisation(a, b, seed=0)
    assert found.p_value == expected
    assert found.rounds == 0
    scipy_p = scipy.stats.permutation_test(
        (d,), lambda x, axis: x.mean(axis), permutation_type="samples", vectorized=True, n_resamples=np.inf
    ).pvalue
    assert found.p_value == pytest.approx(scipy_p)


def test_equal_differences_count_as_equal_in_spite_of_rounding():
    # All of one size: a sum is as far from 0 as the observed one for the two vectors of equal signs only.
    a = np.full(10, 0.1) + np.arange(10)
    assert randomisation(a, np.arange(10.0), seed=0).p_value == 2 / 2**10
    # Zeros exchange nothing.
    more = np.concatenate([a, np.zeros(30)]), np.concatenate([np.arange(10.0), np.zeros(30)])
    assert randomisation(*more, seed=0).p_value == 2 / 2**10


def test_many_differences_are_drawn_and_the_observed_one_is_counted():
    a, b = pairs(200, 0.3)
    found = randomisation(a, b, seed=0, rounds=999)
    assert found.p_value == 1 / 1000  # far beyond every draw
    assert found.rounds == 999
    assert randomisation(a, b, seed=5, rounds=999) == randomisation(a, b, seed=5, rounds=999)


def test_drawn_p_values_agree_with_the_normal_limit():
    a, b = pairs(400, 0.02, seed=4)
    d = a - b
    rounds = 20_000
    p = randomisation(a, b, seed=2, rounds=rounds, signs_at_once=5000).p_value  # several pieces
    expected = 2 * scipy.stats.norm.sf(abs(d.sum()) / np.sqrt((d**2).sum()))
    assert abs(p - expected) < 4 * np.sqrt(expected * (1 - expected) / rounds) + 0.003


@pytest.mark.slow
def test_without_a_difference_small_p_values_are_as_rare_as_they_say():
    rng = np.random.default_rng(0)
    p = [randomisation(*rng.normal(size=(2, 12)), seed=0).p_value for _ in range(300)]
    assert np.mean(np.array(p) <= 0.1) < 0.1 + 3 * np.sqrt(0.1 * 0.9 / 300)
    assert np.mean(np.array(p) <= 0.5) > 0.5 - 3 * np.sqrt(0.5 * 0.5 / 300)


def test_nothing_to_tell_apart():
    a = np.array([0.5, 0.25, 0.75])
    assert paired_t(a, a).p_value == 1
    assert randomisation(a, a, seed=0).p_value == 1
    assert paired_t(a + 0.25, a).p_value == 0  # without any variation
    nothing = np.full(3, np.nan)
    assert np.isnan(paired_t(a, nothing).p_value)
    assert np.isnan(randomisation(a, nothing, seed=0).p_value)
    assert np.isnan(paired_t(a[:1], a[1:2]).p_value)
    assert randomisation(a[:1], a[1:2], seed=0).p_value == 1  # either sign is as far


def test_holm_is_its_definition():
    p = np.array([0.01, 0.04, 0.03, 0.005])
    # Ordered .005 .01 .03 .04, times 4 3 2 1, never less than the one before.
    assert holm(p) == pytest.approx([3 * 0.01, 2 * 0.03, 2 * 0.03, 4 * 0.005])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert holm([]).shape == (0,)


def test_holm_leaves_out_what_is_no_test():
    found = holm([np.nan, 0.02, 0.5])
    assert np.isnan(found[0])
    assert found[1:] == pytest.approx([2 * 0.02, 0.5])


def test_holm_rejects_one_after_the_other():
    rng = np.random.default_rng(1)
    for _ in range(50):
        p = rng.random(6) ** 3
        rejected = np.zeros(6, bool)
        for i, at in enumerate(np.argsort(p)):  # the procedure as Holm states it
            if p[at] > 0.05 / (6 - i):
                break
            rejected[at] = True
        assert ((holm(p) <= 0.05) == rejected).all()


def test_compare_takes_every_method_against_the_baseline():
    a, b = pairs(50, 0.2)
    c = pairs(50, 0.0, seed=9)[0]
    rows = compare({"good": a, "base": b, "other": c}, baseline="base", seed=3)
    assert [row.name for row in rows] == ["good", "other"]
    t = [scipy.stats.ttest_rel(x, b).pvalue for x in (a, c)]
    assert [row.p_t for row in rows] == pytest.approx(t)
    assert [row.holm_t for row in rows] == pytest.approx(holm(t))
    assert [row.p_randomisation for row in rows] == [randomisation(x, b, seed=3).p_value for x in (a, c)]
    assert [row.holm_randomisation for row in rows] == pytest.approx(holm([row.p_randomisation for row in rows]))
    assert rows[0].difference == paired_difference(a, b)
    assert json.loads(json.dumps(rows[0].to_json()))["difference"]["count"] == 50


def test_what_cannot_be_compared_says_why():
    a = np.arange(3.0)
    with pytest.raises(ConfigError, match="unknown baseline 'x'; known: a"):
        compare({"a": a}, baseline="x")
    with pytest.raises(ConfigError, match="found none"):
        compare({"a": a}, baseline="a")
    with pytest.raises(DataError, match="over the same queries"):
        paired_t(a, np.arange(4.0))
    with pytest.raises(DataError, match="infinite"):
        randomisation(a, np.array([1.0, np.inf, 2.0]), seed=0)
    with pytest.raises(ConfigError, match="at least 1 round"):
        randomisation(a, a, seed=0, rounds=0)
    bad: Any
    for bad in ([1.5], [-0.1], [[0.1]]):
        with pytest.raises(DataError, match="between 0 and 1"):
            holm(bad)
