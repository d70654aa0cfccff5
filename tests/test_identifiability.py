"""What a log identifies, against graphs with known resistances and dense information matrices; bad input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rank_logs import check, contrasts, dense, fisher, logged, make_counts, ranked, relevance
from stored import PER_QUERY, make_rows, plain, write_log

from ultr.data import Counts, collapse
from ultr.errors import ConfigError, DataError, UltrError
from ultr.identifiability import report
from ultr.identifiability.assumed_model import assume_model
from ultr.identifiability.rank_graph import smallest_standard_errors
from ultr.propensity import maximum_likelihood
from ultr.propensity.arm_counts import as_arm_counts
from ultr.propensity.information import information_laplacian, relative_covariance, smoothed_log_relevance


def blocks(groups: list[list[int]], ranks: int = 10) -> list[tuple[int, list[int], int]]:
    """Two rankings of one query in which only ranks (from 1) of the same group exchange their documents."""
    order = list(range(ranks))
    for group in groups:
        for here, there in zip(group, group[1:] + group[:1], strict=True):
            order[there - 1] = here - 1
    return [(0, list(range(ranks)), 200), (0, order, 200)]


def span(first: int, last: int) -> list[int]:
    return list(range(first, last + 1))


def test_the_sets_of_the_identifiability_paper() -> None:
    # Chen 2024: five sets of queries, from one component to four, and one again by a single query of swaps.
    four = [span(1, 3), span(4, 6), [7, 8], [9, 10]]
    for groups in ([span(1, 10)], [span(1, 4), span(5, 10)], [span(1, 4), span(5, 7), span(8, 10)], four):
        found = report(ranked(blocks(groups), 10))
        assert [list(c.ranks) for c in found.components] == groups
        assert found.to_json()["components"] == groups
        assert found.identified == (len(groups) == 1)
        first = np.isin(np.arange(1, 11), groups[0])
        np.testing.assert_array_equal(np.isfinite(found.standard_error), first)
        np.testing.assert_array_equal(np.isfinite(found.sessions_needed), first)
    swapped = list(range(10))
    for i, j in ((3, 4), (6, 7), (8, 9)):
        swapped[i - 1], swapped[j - 1] = swapped[j - 1], swapped[i - 1]
    lists = [*blocks(four), (1, list(range(10)), 50), (1, swapped, 1)]
    joined = report(ranked(lists, 10))
    assert [list(c.ranks) for c in joined.components] == [span(1, 10)]
    assert joined.identified
    assert np.isfinite(joined.standard_error).all()


def test_two_rankings_of_four_documents_make_two_components() -> None:
    found = report(ranked([(0, [0, 1, 2, 3], 100), (0, [1, 0, 3, 2], 100)], 4))
    assert [c.ranks for c in found.components] == [(1, 2), (3, 4)]
    assert found.components[1].standard_error[0] == 0
    assert 0 < found.components[1].standard_error[1] < np.inf
    assert found.cut is not None
    assert (found.cut.near, found.cut.far, found.cut.conductance, found.cut.documents) == ((1, 2), (3, 4), 0.0, 0)
    assert "no document was shown both at ranks 1-2 and ranks 3-4" in found.text()
    assert "ranks 3-4 cannot be compared with rank 1" in found.text()


def weights(found: Any, counts: Counts) -> Callable[[int, int], float]:
    """(document, rank) -> n p / (1 - p) at the probabilities that a report assumes, written out."""
    n, theta = counts.impressions.astype(float), found.propensity
    gamma = relevance(dense(counts), counts, theta)

    def weight(document: int, rank: int) -> float:
        own = counts.document == document
        p = theta[rank - 1] * gamma[document - 1]
        return float(n[own & (counts.rank == rank)].sum() * p / (1 - p))

    return weight


def links(pairs: list[tuple[int, int]], ranks: int) -> Counts:
    """One document per pair of ranks, shown at both."""
    rng = np.random.default_rng(len(pairs))
    n = np.zeros((len(pairs), ranks), np.int64)
    for d, (i, j) in enumerate(pairs):
        n[d, i - 1], n[d, j - 1] = rng.integers(500, 3000, 2)
    clicks = np.round(n * np.linspace(0.3, 0.6, len(pairs))[:, None] / np.arange(1, ranks + 1)).astype(np.int64)
    return make_counts(n, clicks, np.zeros(len(pairs), np.int64), sessions=1000)


def test_resistances_of_a_chain_add_up() -> None:
    pairs = [(1, 2), (2, 3), (3, 4), (4, 5)]
    counts = links(pairs, 5)
    found = report(counts)
    weight = weights(found, counts)
    # A document is two resistors in series, from one rank to it and from it to the other.
    each = [1 / weight(d + 1, i) + 1 / weight(d + 1, j) for d, (i, j) in enumerate(pairs)]
    np.testing.assert_allclose(found.standard_error, np.sqrt(np.cumsum([0.0, *each])), rtol=1e-9)


def test_resistances_of_a_cycle_are_parallel() -> None:
    pairs = [(1, 2), (2, 3), (3, 4), (1, 4)]
    counts = links(pairs, 4)
    found = report(counts)
    weight = weights(found, counts)
    each = np.array([1 / weight(d + 1, i) + 1 / weight(d + 1, j) for d, (i, j) in enumerate(pairs)])
    way = np.cumsum([0.0, *each[:3]])  # up to each rank, the other way being the rest of the cycle
    np.testing.assert_allclose(found.standard_error, np.sqrt(way * (each.sum() - way) / each.sum()), rtol=1e-9)


def test_standard_errors_are_those_of_the_whole_information_matrix() -> None:
    rng = np.random.default_rng(3)
    n = rng.integers(0, 400, (5, 4)) * rng.integers(0, 2, (5, 4))
    n[0] = (100, 100, 0, 50)
    n[1, 2:] = 80
    clicks = rng.binomial(n, np.linspace(0.2, 0.8, 5)[:, None] / np.arange(1, 5))
    clicks[3] = 0  # never clicked, and still worth something before training
    counts = make_counts(n, clicks, np.zeros(5, np.int64))
    found = report(counts)
    a = np.log(found.propensity)
    b = smoothed_log_relevance(as_arm_counts(counts), a)
    p = np.exp(a + b[:, None])

    def expected(parameters: np.ndarray) -> float:
        log = parameters[:4] + parameters[4:, None]
        return float(np.sum(n * (p * log + (1 - p) * np.log(-np.expm1(log)))))

    np.testing.assert_allclose(found.standard_error, contrasts(fisher(expected, np.append(a, b)), 4), rtol=1e-3)


@pytest.mark.parametrize("sessions", [1000, 3000, 12_000])
def test_errors_of_few_clicks_are_those_of_the_true_relevances(sessions: int) -> None:
    ratio = []
    for seed in range(9):
        counts, gamma = logged("random", queries=60, sessions=sessions, ranks=10, seed=seed)
        arm_counts, a = as_arm_counts(counts), -np.log(np.arange(1.0, 11))
        found, true = (
            relative_covariance(information_laplacian(arm_counts, a, b))[9, 9]
            for b in (smoothed_log_relevance(arm_counts, a), np.log(gamma))
        )
        ratio.append(np.sqrt(found / true))
    assert np.median(ratio) == pytest.approx(1, abs=0.1)


def test_a_rich_log_is_known_as_well_as_maximum_likelihood_says() -> None:
    counts, _ = logged("random", sessions=60_000)
    found, fitted = report(counts), maximum_likelihood(counts)
    np.testing.assert_allclose(found.propensity, fitted.value, rtol=0.01)
    np.testing.assert_allclose(found.standard_error[1:], fitted.log_standard_error[1:], rtol=0.03)
    assert found.identified
    assert (found.standard_error <= 0.05).all()
    assert found.text().startswith("Yes: this log identifies the propensities of ranks 1-6 to 5.0% or better")
    assert found.swaps == ()
    assert found.plan.reached
    assert (found.sessions_needed == 0).all()


def test_the_sessions_that_are_needed_reach_the_target() -> None:
    counts, _ = logged("adjacent", sessions=8000)
    found = report(counts, target=0.1)
    assert found.worst == 6
    error, more = found.standard_error[5], found.sessions_needed[5]
    assert error > 0.1
    assert more == np.ceil(8000 * ((error / 0.1) ** 2 - 1))
    times = (8000 + more) / 8000
    none = np.zeros((240, 6))
    larger = make_counts(none, none, np.repeat(np.arange(40), 6), sessions=8000 * times)
    larger.document, larger.rank = counts.document, counts.rank
    larger.impressions, larger.clicks = counts.impressions * times, counts.clicks * times
    assert report(larger, target=0.1).standard_error[5] == pytest.approx(0.1, rel=0.01)


def test_the_cut_of_a_dumbbell_is_its_handle() -> None:
    n = np.zeros((21, 6), np.int64)
    for d in range(10):  # two well connected groups of three ranks,
        n[d, :3], n[10 + d, 3:] = 1000, 1000
    n[20, [1, 4]] = 40, 60  # and one document between them
    clicks = np.round(n * 0.4 / np.arange(1, 7)).astype(np.int64)
    counts = make_counts(n, clicks, np.arange(21))
    found = report(counts, share=1.0)
    cut = found.cut
    assert cut is not None
    assert (cut.near, cut.far, cut.documents, cut.impressions) == ((1, 2, 3), (4, 5, 6), 1, 40)
    weight = weights(found, counts)
    assert cut.conductance == pytest.approx(1 / (1 / weight(21, 2) + 1 / weight(21, 5)))
    assert cut.standard_error == pytest.approx(cut.conductance**-0.5)
    assert (found.standard_error[3:] > cut.standard_error).all()  # it is in the way of all of them
    assert (found.standard_error[:3] < 0.05).all()
    assert "ranks 1-3 and ranks 4-6 are compared by only 1 document, shown 40 times on the rarer side" in found.text()


def test_one_rank_only() -> None:
    n = np.full((5, 1), 100)
    found = report(make_counts(n, n // 4, np.arange(5)))
    assert found.to_json()["components"] == [[1]]
    assert found.to_json()["sessions_needed"] == [0]
    assert (found.swaps, found.cut, found.identified) == ((), None, False)
    assert check(found).startswith("Nothing to identify: the log shows rank 1 only")


def test_no_clicks() -> None:
    with pytest.raises(DataError, match="expected clicks, found none in 1,000 impressions"):
        report(make_counts(np.full((5, 2), 100), np.zeros((5, 2), int), np.arange(5)))
    late = make_counts(np.full((5, 3), 100), np.tile([0, 0, 9], (5, 1)), np.arange(5))
    with pytest.raises(DataError, match="expected clicks at ranks 1 to 2"):
        report(late, ranks=2)


def test_a_rank_that_was_never_clicked() -> None:
    counts, _ = logged("random", sessions=20_000)
    counts.clicks = np.where(counts.rank == 5, 0, counts.clicks)
    found = report(counts)
    assert "never clicked: rank 5" in check(found)
    assert np.isfinite(found.standard_error).all()
    assert found.propensity[4] == pytest.approx(1 / 5, rel=0.5)  # the curve that is assumed, not 0
    assert (found.clicks[4], found.impressions[4] > 0) == (0, True)
    assert not found.identified
    assert found.to_json()["unsupported"] == [5]
    assert "In part: the propensity of rank 5 is assumed rather than measured" in found.text().split("\n")[0]


def test_clicks_that_support_no_propensity() -> None:
    counts, _ = logged("random", sessions=20_000)
    counts.clicks = np.where(counts.rank == 1, 0, counts.clicks)
    found = report(counts)
    assert check(found).startswith("No: rank 1 was never clicked in 20,000 impressions")
    assert (found.identified, found.unsupported) == (False, (2, 3, 4, 5, 6))
    counts.clicks = np.zeros_like(counts.clicks)
    counts.clicks[0] = 1
    found = report(counts)
    assert not found.identified
    text = check(found)
    assert text.startswith("No: this log does not identify propensities: the propensities of ranks 2-6 are assumed")
    assert "What to do: First of all log more sessions: no click compares ranks" in text
    one_sided = np.array([[500, 500, 0], [500, 0, 500]])
    found = report(make_counts(one_sided, np.array([[90, 40, 0], [0, 0, 30]]), np.array([0, 0])))
    assert (found.identified, found.unsupported) == (False, (3,))
    assert "In part: the propensity of rank 3 is assumed" in check(found)


@pytest.mark.parametrize("empty", [0, 1, 3])
def test_ranks_without_impressions(empty: int) -> None:
    counts, _ = logged("random", sessions=20_000, ranks=4)
    keep = counts.rank != empty + 1
    for name in ("document", "rank", "impressions", "clicks"):
        setattr(counts, name, getattr(counts, name)[keep])
    found = report(counts)
    text = check(found)
    assert f"nothing was shown at rank {empty + 1}" in text
    assert found.impressions[empty] == 0
    assert not np.isfinite(found.standard_error[empty])
    assert found.to_json()["sessions_needed"][empty] is None
    assert [list(c.ranks) for c in found.components] == [[k + 1 for k in range(4) if k != empty]]
    assert np.isfinite(found.components[0].standard_error).all()
    if empty:
        assert found.identified
        others = [k for k in range(4) if k != empty]
        assert np.isfinite(found.standard_error[others]).all()
    else:
        assert not found.identified
        assert text.startswith("No: nothing was shown at rank 1")
        assert "times as relevant as those at rank 2" in text
        assert "nan" not in text
        assert found.plan.reason.startswith("nothing was shown at rank 1")


def test_a_single_document() -> None:
    both = report(make_counts(np.array([[500, 300]]), np.array([[200, 60]]), np.array([0])))
    assert both.identified
    assert both.cut is not None
    assert both.cut.documents == 1
    check(both)
    one = report(make_counts(np.array([[500, 0]]), np.array([[200, 0]]), np.array([0])))
    assert not one.identified
    assert "Nothing to identify" in check(one)


def test_documents_that_are_not_known() -> None:
    counts, _ = logged("random", sessions=2000)
    known = report(counts)
    counts.document = np.append(0, counts.document).astype(np.int32)
    counts.rank, counts.clicks = np.append(1, counts.rank), np.append(50, counts.clicks)
    counts.impressions = np.append(100, counts.impressions)
    found = report(counts)
    np.testing.assert_array_equal(found.standard_error, known.standard_error)
    assert "100 impressions of documents that the vocabulary does not know" in check(found)
    counts.document[:] = 0
    with pytest.raises(DataError, match="expected impressions of documents that the vocabulary knows"):
        report(counts)


def test_arguments_that_make_no_sense() -> None:
    counts, _ = logged("random", sessions=500)
    for bad in (0, -1, 1, 0.0009, float("nan")):
        with pytest.raises(ConfigError, match=r"expected a target from 0.001 to below 1"):
            report(counts, target=bad)
    options: Any
    for options in ({"share": 0}, {"share": 1.5}, {"pairs": 0}, {"ranks": 0}):
        with pytest.raises(ConfigError):
            report(counts, **options)
    with pytest.raises(ConfigError, match="expected a ClickLog or its Counts"):
        report([1, 2])  # type: ignore[arg-type]


def test_the_first_ranks_alone() -> None:
    counts, _ = logged("random")
    found = report(counts, ranks=3)
    assert found.standard_error.shape == (3,)
    assert found.components[0].ranks == (1, 2, 3)
    np.testing.assert_array_equal(found.impressions, report(counts).impressions[:3])


def test_few_impressions_per_document_are_warned_of() -> None:
    n = np.full((200, 2), 2)
    assert "shown at most 4 times" in check(report(make_counts(n, n // 2, np.arange(200))))


def test_logs_and_their_counts_say_the_same(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", plain(make_rows(400)))
    found = report(log)
    rank, last = (report(collapse(log, by)) for by in ("rank", "last-click"))
    assert last.to_json() == found.to_json()
    without_fit = [{name: x for name, x in r.to_json().items() if name != "goodness_of_fit"} for r in (rank, found)]
    assert without_fit[0] == without_fit[1]  # counts by rank do not tell what was clicked above
    assert found.sessions == sum(range(400))  # weights
    assert found.features is not None
    with_features = write_log(tmp_path / "features", make_rows(400), impression_features=["bm25", "age"])
    np.testing.assert_allclose(report(with_features).standard_error, found.standard_error)
    assert log.documents == PER_QUERY * 7


def test_assumed_probabilities_survive_a_likelihood_without_a_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise UltrError("no maximum")

    counts, _ = logged("random", sessions=2000)
    monkeypatch.setattr("ultr.identifiability.assumed_model.fit_conditional", fail)
    assumed = assume_model(as_arm_counts(counts))
    np.testing.assert_allclose(np.exp(assumed.log_propensity), 1 / np.arange(1, 7))
    assert "propensities of 1/rank assumed" in check(report(counts))


def test_documents_that_were_never_clicked_do_not_join_curves() -> None:
    # Ranks 1, 2 and ranks 3, 4 are compared by clicks; between 2 and 3 there are only documents without any.
    n = np.zeros((120, 4), np.int64)
    n[:40, :2], n[40:80, 2:], n[80:, 1:3] = 5000, 5000, 50
    clicks = np.round(n * 0.5 / np.array([1, 2, 3, 4.5])).astype(np.int64)
    clicks[80:] = 0
    found = report(make_counts(n, clicks, np.arange(120)))
    assert not found.identified
    assert found.unsupported == (3, 4)
    assert found.propensity[1] == pytest.approx(0.5, rel=0.01)
    assert found.propensity[3] / found.propensity[2] == pytest.approx(3 / 4.5, rel=0.01)
    # What is between the two pairs comes from 1/rank, as the mean of the logarithms over each of them.
    prior = np.log([1, 2, 3, 4])
    assert np.log(found.propensity[2:]).mean() - np.log(found.propensity[:2]).mean() == pytest.approx(
        prior[:2].mean() - prior[2:].mean(), abs=0.01
    )


def test_large_logs_are_estimated_from_the_documents_that_say_most() -> None:
    counts, _ = logged("random", sessions=60_000)
    whole = report(counts)
    part = assume_model(as_arm_counts(counts), max_cells=400)
    np.testing.assert_allclose(np.exp(part.log_propensity), whole.propensity, rtol=0.1)
    np.testing.assert_allclose(smallest_standard_errors(part), whole.standard_error, rtol=0.1)
