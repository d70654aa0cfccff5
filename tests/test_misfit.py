"""Whether clicks fit the position-based model: the tests' chance under it, their power, and the widened curves."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable

import numpy as np
import pytest
from misfit_logs import DOCUMENTS, EXAMINATION, RANKS, RELEVANCE, Drawn, count, draw
from scipy.stats import kstest

from ultr.holm import holm
from ultr.propensity import conditional_likelihood, ctr, goodness_of_fit
from ultr.propensity.alternative_curves import affine_curve, browsing_curve
from ultr.propensity.arm_counts import ArmCounts
from ultr.propensity.clicks_above import (
    ContextCells,
    after_first,
    classes_of,
    common_ratio,
    last_click_class,
    nearness,
    stratified_score,
)
from ultr.propensity.goodness_of_fit import (
    ALWAYS_OR_NEVER,
    CHECKS,
    LEVEL,
    NOT_IN_CASCADE,
    TOO_FEW_UNCLICKED,
    Check,
    GoodnessOfFit,
)

SESSIONS = 6000
KINDS = {"ubm": "ubm", "dbn": "dbn", "trust": "trust", "noise": "trust"}  # and the model that is recommended
FAILS = {"ubm": "last-click", "dbn": "click-above", "trust": "trust", "noise": "noise"}


def by_name(found: GoodnessOfFit) -> dict[str, Check]:
    return {check.name: check for check in found.checks}


@pytest.fixture(scope="module")
def fits() -> dict[str, GoodnessOfFit]:
    """One log of each kind."""
    return {kind: goodness_of_fit(count(draw(kind, 3, SESSIONS))) for kind in ("pbm", *KINDS)}


def cells(impressions: list[tuple[int, int, int, int]]) -> ContextCells:
    """Makes cells of single impressions: (item, rank, last click, click)."""
    keys = sorted({x[:3] for x in impressions})
    n = [sum(x[:3] == key for x in impressions) for key in keys]
    c = [sum(x[3] for x in impressions if x[:3] == key) for key in keys]
    item, rank, last = np.array(keys, np.int64).T
    items = int(item.max()) + 1
    return ContextCells(item, rank, last, np.array(n, float), np.array(c, float), np.arange(items), int(rank.max()))


@pytest.mark.parametrize("contrast", [nearness, after_first])
def test_the_score_has_the_moments_of_all_permutations(contrast: Callable[[ContextCells], np.ndarray]) -> None:
    # Two documents, each at rank 3: every way in which their clicks can fall on the impressions that are compared.
    compared = (lambda last: last > 0) if contrast is nearness else (lambda last: last < 2)
    shown = [[last for last in x if compared(last)] for x in ([0, 1, 2, 2, 1, 0], [0, 2, 1, 0, 1])]
    clicks = [[1, 1, *[0] * (len(shown[0]) - 2)], [1, *[0] * (len(shown[1]) - 1)]]
    scores = []
    for ways in itertools.product(*map(itertools.permutations, clicks)):
        rows = [(d, 3, last, c) for d in (0, 1) for last, c in zip(shown[d], ways[d], strict=True)]
        # Impressions that are not compared change nothing, whatever is clicked.
        rows += [(d, 3, 0 if contrast is nearness else 2, d) for d in (0, 1)]
        at = cells(rows)
        scores.append(stratified_score(at, contrast(at)))
    assert np.mean([score.value for score in scores]) == pytest.approx(0, abs=1e-12)
    assert {round(score.variance, 10) for score in scores} == {round(float(np.var([s.value for s in scores])), 10)}


def test_the_common_ratio_is_that_of_mantel_and_haenszel() -> None:
    rows = [(0, 2, 1, 1)] * 3 + [(0, 2, 1, 0)] * 7 + [(0, 2, 0, 1)] * 4 + [(0, 2, 0, 0)] * 16
    rows += [(1, 2, 1, 1)] * 2 + [(1, 2, 1, 0)] * 6 + [(1, 2, 0, 1)] * 1 + [(1, 2, 0, 0)] * 11
    at = cells(rows)
    expected = (3 * 20 / 30 + 2 * 12 / 20) / (4 * 10 / 30 + 1 * 8 / 20)
    assert common_ratio(at, after_first(at)) == pytest.approx(expected)


def test_ratios_are_those_of_the_true_examination() -> None:
    found = by_name(goodness_of_fit(count(draw("ubm", 5, 40_000))))
    assert found["click-above"].effect > 1.3  # 2, 1.5 and 4/3 at ranks 2, 3 and 4
    # Below a satisfying click 10 % more stop for another reason whether there was a click or not.
    cascade = by_name(goodness_of_fit(count(draw("dbn", 5, 40_000))))
    assert cascade["click-above"].effect == pytest.approx(1 - 0.8 * 0.6, abs=0.15)


@pytest.mark.parametrize("ranks", [4, 30])
def test_classes_of_last_clicks_are_distances(ranks: int) -> None:
    rank, last = (
        np.array([k for k in range(1, ranks + 1) for _ in range(k)]),
        np.concatenate([np.arange(k) for k in range(1, ranks + 1)]),
    )
    found = last_click_class(rank, last, ranks)
    assert found.max() < classes_of(ranks)
    for k, above, kind in zip(rank.tolist(), last.tolist(), found.tolist(), strict=True):
        distance = k - above
        assert kind == (0 if above == 0 else distance if ranks <= 20 else 1 + (distance.bit_length() - 1))


def calibrated(logs: int, sessions: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns p-values [logs, checks] of logs that fit, and whether each is called a misfit."""
    found = [goodness_of_fit(count(draw("pbm", 100 + i, sessions))) for i in range(logs)]
    return np.array([[c.p_value for c in f.checks] for f in found]), np.array([not f.fits for f in found])


def test_p_values_are_uniform_where_the_model_fits() -> None:
    p, failed = calibrated(60, 3000)
    for column, name in zip(p.T, CHECKS, strict=True):
        assert np.isfinite(column).all(), name
        assert kstest(column, "uniform").pvalue > 0.005, name
    assert failed.mean() < 0.1


@pytest.mark.slow
def test_few_logs_that_fit_are_called_misfits() -> None:
    p, failed = calibrated(400, 3000)
    for column, name in zip(p.T, CHECKS, strict=True):
        made = column[np.isfinite(column)]  # but for logs that are taken for cascades
        assert len(made) > 390, name
        assert kstest(made, "uniform").pvalue > 0.001, name
    assert failed.mean() < LEVEL + 3 * np.sqrt(LEVEL / 400)


@pytest.mark.parametrize("kind", KINDS)
def test_every_misfit_is_noticed_and_named(kind: str, fits: dict[str, GoodnessOfFit]) -> None:
    found = fits[kind]
    assert found.fits is False
    assert FAILS[kind] in found.failed
    assert found.models[0] == KINDS[kind]
    text = found.text()
    assert text.startswith("The position-based model does not fit this log.")
    assert f"--model {KINDS[kind]}" in text
    if kind in ("trust", "noise"):
        assert found.failed == (kind,)
        assert ("trust bias" in text, "(noise)" in text) == (kind == "trust", kind == "noise")
        effect = by_name(found)[kind].effect
        assert effect < 0.9 if kind == "trust" else effect > 1.05
    else:
        assert not {"trust", "noise"} & set(found.failed)  # these allow for what the others find
        assert by_name(found)["trust"].reason == (NOT_IN_CASCADE if kind == "dbn" else "")
        assert found.cascade == (kind == "dbn")


def test_a_log_that_fits_says_so(fits: dict[str, GoodnessOfFit]) -> None:
    found = fits["pbm"]
    assert found.fits is True
    assert (found.failed, found.models, found.alternatives, found.off) == ((), (), (), None)
    assert found.text().startswith("The position-based model fits as far as all checks can tell")
    assert found.text_for(CHECKS) == ""
    curve = conditional_likelihood(count(draw("pbm", 3, SESSIONS)))
    assert found.widened(curve) is curve
    np.testing.assert_allclose(found.curve, curve.value, rtol=1e-6)


def test_adjusted_p_values_are_holms(fits: dict[str, GoodnessOfFit]) -> None:
    for kind, found in fits.items():
        if kind == "dbn":  # where two checks are taken back after the adjustment
            continue
        p = {check.name: check.p_value for check in found.checks}
        left, most = dict(p), 0.0
        while left:  # the smallest of those that are left, times how many these are
            name = min(left, key=left.__getitem__)
            most = max(most, min(1.0, left.pop(name) * (len(left) + 1)))
            assert by_name(found)[name].adjusted == pytest.approx(most)
        assert [c.adjusted for c in found.checks] == pytest.approx(holm(list(p.values())).tolist())
        assert found.failed == tuple(c.name for c in found.checks if c.adjusted < LEVEL)


@pytest.mark.parametrize("kind", ["ubm", "trust", "noise"])
def test_widened_intervals_hold_the_truth(kind: str) -> None:
    before: list[float] = []
    after: list[float] = []
    for seed in range(8):
        drawn = draw(kind, 20 + seed, SESSIONS)
        counts = count(drawn)
        curve = conditional_likelihood(counts)
        wide = goodness_of_fit(counts).widened(curve)
        np.testing.assert_array_equal(wide.value, curve.value)
        assert (wide.interval[1:, 0] <= curve.interval[1:, 0]).all()
        assert (wide.interval[1:, 1] >= curve.interval[1:, 1]).all()
        log_width = np.log(wide.interval[1:, 1] / wide.interval[1:, 0])
        np.testing.assert_allclose(wide.standard_error[1:], wide.value[1:] * log_width / (2 * 1.959964), rtol=1e-6)
        assert any("does not fit" in warning for warning in wide.warnings)
        for out, found in ((before, curve), (after, wide)):
            low, high = found.interval[1:].T
            out.append(((low <= drawn.examination[1:]) & (drawn.examination[1:] <= high)).mean())
    assert np.mean(before) < 0.6
    assert np.mean(after) > 0.94


def test_curves_of_cascades_are_withheld_by_every_estimator(fits: dict[str, GoodnessOfFit]) -> None:
    counts = count(draw("dbn", 3, SESSIONS))
    for curve in (conditional_likelihood(counts), ctr(counts, replicates=50)):
        found = fits["dbn"].widened(curve)
        assert found.value[0] == 1
        assert np.isnan(found.value[1:]).all()
        assert np.isnan(found.interval[1:]).all()
        assert set(found.unsupported) == {2, 3, 4}
        assert all("cascade" in reason for reason in found.unsupported.values())
        json.dumps(found.to_json())


def test_an_interval_is_withheld_where_no_other_curve_is_known(fits: dict[str, GoodnessOfFit]) -> None:
    curve = conditional_likelihood(count(draw("ubm", 3, SESSIONS)))
    unknown = dataclasses.replace(fits["ubm"], alternatives=(), impossible=("last-click",))
    found = unknown.widened(curve)
    np.testing.assert_array_equal(found.value, curve.value)
    assert np.isnan(found.interval[1:]).all()
    assert set(found.unsupported) == {2, 3, 4}
    assert "cannot be estimated" in unknown.text()


def test_a_model_hears_of_its_own_assumptions_only(fits: dict[str, GoodnessOfFit]) -> None:
    above, unexplained = ("last-click", "click-above"), ("trust", "noise")
    assert fits["ubm"].text_for(unexplained) == ""
    assert "--model ubm" in fits["ubm"].text_for(above)
    assert fits["noise"].text_for(above) == ""
    assert "(noise)" in fits["noise"].text_for(unexplained)
    assert fits["dbn"].text_for(unexplained) == ""
    assert "--model dbn" in fits["dbn"].text_for(("cascade", *unexplained))
    assert fits["ubm"].text_for(("cascade", *unexplained)) == ""


def test_json_holds_all_of_it(fits: dict[str, GoodnessOfFit]) -> None:
    found = json.loads(json.dumps(fits["ubm"].to_json()))
    assert [check["name"] for check in found["checks"]] == list(CHECKS)
    assert found["fits"] is False
    assert found["models"] == ["ubm"]
    assert found["text"] == fits["ubm"].text()
    assert found["alternatives"][0]["model"] == "ubm"
    off, rank = fits["ubm"].off or (0.0, 0)
    assert found["off"] == {"relative": pytest.approx(off), "rank": rank}
    assert f"{abs(off):.0%}" in found["text"]


def expected_counts(p: np.ndarray, n: float) -> ArmCounts:
    """Makes counts of documents [D] at every rank [K], n impressions each, with expected clicks."""
    documents, ranks = p.shape
    item, arm = (x.ravel() for x in np.indices(p.shape))
    return ArmCounts(item, arm, np.full(p.size, n), n * p.ravel(), np.arange(documents), ranks)


@pytest.mark.parametrize("beta", [0.65 / np.arange(1, 5) ** 2, np.full(4, 0.05), np.zeros(4)])
def test_the_affine_curve_is_alpha_whatever_beta(beta: np.ndarray) -> None:
    alpha = np.array([0.34, 0.3, 0.2, 0.15])
    gamma = np.random.default_rng(0).uniform(0, 0.9, 50)
    found = affine_curve(expected_counts(alpha * gamma[:, None] + beta, 1e7))
    assert found is not None
    np.testing.assert_allclose(found.value, alpha / alpha[0], rtol=1e-3)
    assert ((found.interval[1:, 0] < found.value[1:]) & (found.value[1:] < found.interval[1:, 1])).all()


def test_an_affine_curve_says_next_to_nothing_where_documents_do_not_differ() -> None:
    found = affine_curve(expected_counts(np.full((20, 1), 0.5) * EXAMINATION, 1e4))
    assert found is None or (found.interval[1:, 1] > 4 * found.interval[1:, 0]).all()


def test_the_browsing_curve_is_the_average_examination() -> None:
    drawn = draw("ubm", 8, 60_000)
    found = goodness_of_fit(count(drawn))
    (other,) = found.alternatives
    np.testing.assert_allclose(other.value, drawn.examination, rtol=0.05)


def test_no_browsing_curve_without_last_clicks() -> None:
    at = dataclasses.replace(cells([(0, 1, 0, 1), (0, 2, 0, 1), (0, 2, 1, 0)]), shown=None)
    assert browsing_curve(at) is None


def test_counts_by_rank_allow_for_two_checks() -> None:
    drawn = draw("noise", 3, SESSIONS)
    whole, by_rank = (by_name(goodness_of_fit(count(drawn, by=by))) for by in ("last-click", "rank"))
    for name in ("trust", "noise"):
        assert by_rank[name].z == pytest.approx(whole[name].z)
    for name in ("last-click", "click-above"):
        assert "counts by rank" in by_rank[name].reason
        assert np.isnan(by_rank[name].adjusted)
    assert "Not checked: dependence on the last click" in goodness_of_fit(count(drawn, by="rank")).text()


def test_what_a_check_would_notice_shrinks_with_the_root_of_the_log(fits: dict[str, GoodnessOfFit]) -> None:
    drawn = draw("pbm", 3, SESSIONS)
    small, large = (by_name(goodness_of_fit(count(drawn, weight=w))) for w in (1, 4))
    for name in CHECKS:
        assert np.log(small[name].noticed) / np.log(large[name].noticed) == pytest.approx(2, rel=0.05), name
    weakest = max(c.noticed for c in fits["pbm"].checks)
    assert f"misfits that change examination by less than about {weakest - 1:.0%} may be missed" in fits["pbm"].text()


def test_checks_without_power_are_not_made() -> None:
    found = goodness_of_fit(count(draw("ubm", 3, 60)))
    assert found.fits is None
    assert {check.reason for check in found.checks} == {"too few clicks to notice a doubling"}
    assert found.text().startswith("Whether the position-based model fits cannot be checked")
    assert found.to_json()["fits"] is None


def certain(kind: str) -> Drawn:
    """Returns sessions whose clicks leave nothing to chance."""
    drawn = draw("pbm", 3, 4000)
    clicks = {
        "all": np.ones_like(drawn.clicks),
        "documents": drawn.shown % 2 == 0,
        "ranks": np.broadcast_to(np.arange(RANKS) < 2, drawn.clicks.shape),
    }
    return drawn._replace(clicks=clicks[kind])


@pytest.mark.parametrize("by", ["rank", "last-click"])
def test_a_log_of_clicks_alone_is_not_checked(by: str) -> None:
    found = goodness_of_fit(count(certain("all"), by=by))
    assert [check.reason for check in found.checks] == ["every impression was clicked"] * 4
    assert "(every impression was clicked)" in found.checks[0].sentence
    assert found.text() == "Whether the position-based model fits cannot be checked: every impression was clicked."


@pytest.mark.parametrize("kind", ["documents", "ranks"])
def test_clicks_without_chance_have_no_p_value(kind: str) -> None:
    found = goodness_of_fit(count(certain(kind)))
    assert all(np.isnan(check.p_value) for check in found.checks)
    assert {check.reason for check in found.checks} == {ALWAYS_OR_NEVER}


def test_a_handful_of_impressions_without_a_click_is_no_evidence() -> None:
    drawn = certain("all")
    clicks = drawn.clicks.copy()
    clicks[:5, -1] = False
    found = goodness_of_fit(count(drawn._replace(clicks=clicks)))
    assert {check.reason for check in found.checks[2:]} == {TOO_FEW_UNCLICKED}


def test_ranks_that_no_document_connects_are_not_called_too_few() -> None:
    drawn = draw("pbm", 3, 4000)
    still = drawn._replace(shown=np.broadcast_to(np.arange(RANKS), drawn.shown.shape))
    assert by_name(goodness_of_fit(count(still)))["trust"].reason == "no document with clicks connects two ranks"


def test_whole_weights_count_as_sessions_and_others_are_refused() -> None:
    drawn = draw("ubm", 3, 2000)
    twice = draw("ubm", 3, 2000)._replace(
        **{name: np.concatenate([getattr(drawn, name)] * 2) for name in ("query", "shown", "clicks")}
    )
    weighted, repeated = (goodness_of_fit(c) for c in (count(drawn, weight=2), count(twice)))
    assert [c.z for c in weighted.checks] == pytest.approx([c.z for c in repeated.checks])
    uneven = goodness_of_fit(count(drawn, weight=0.3))
    assert uneven.fits is None
    assert "not whole numbers" in uneven.text()


def test_ranks_can_be_cut_and_one_rank_says_nothing() -> None:
    counts = count(draw("ubm", 3, SESSIONS))
    two = goodness_of_fit(counts, ranks=2)
    assert len(two.curve) == 2
    assert by_name(two)["last-click"].reason == "the log has too few ranks for it"
    assert "click-above" in two.failed
    assert goodness_of_fit(counts, ranks=1).fits is None


@pytest.mark.slow
def test_long_lists_are_checked_by_classes_of_distance() -> None:
    relevance = np.random.default_rng(2).uniform(0.1, 0.9, (6, 30))
    for kind, fine in (("pbm", True), ("ubm", False)):
        found = goodness_of_fit(count(draw(kind, 4, 8000, relevance, 25), 30))
        assert found.fits is fine, kind
    assert RELEVANCE.shape[1] == DOCUMENTS
    assert len(EXAMINATION) == RANKS
