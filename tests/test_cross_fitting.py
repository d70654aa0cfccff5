"""What held-out clicks are judged by, which candidate they choose, and the commands that rest on it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Ultr
from flax import nnx
from scipy.optimize import minimize

from ultr import baselines, simulate, towers
from ultr.data import ClickLog, Collection, collapse
from ultr.errors import ConfigError, UltrError
from ultr.evaluation.ranking_gains import ranking_gain
from ultr.sessions import Sessions
from ultr.study.automatic import choose_automatically, choose_by_folds
from ultr.study.candidates import Candidate, PerQuery, choose, difference
from ultr.study.cross_fitting import CrossFitting
from ultr.study.held_out import document_scores, examination, relevance_by_place, standardised, totals
from ultr.study.registry import AUTO_MODELS
from ultr.study.settings import StudyMethod
from ultr.training import load

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def graded(seed: int = 0, queries: int = 40, most: int = 12) -> Collection:
    """Lists of several lengths whose grade follows the first feature and noise."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(4, most + 1, queries)
    features = rng.normal(size=(sizes.sum(), 3)).astype(np.float32)
    grades = np.clip(np.round(1 + features[:, 0] + rng.normal(0, 0.7, len(features))), 0, 3)
    return Collection.from_arrays(query=np.repeat(np.arange(queries), sizes), label=grades, features=features)


def logged(path: Path, user: str, sessions: int = 6000, **policy: Any) -> ClickLog:
    options: dict[str, Any] = {"ranker": "strength", "strength": 0.3, "temperature": 0.8}
    chosen = simulate.Policy(**(options | policy))
    return simulate.clicks(
        graded(), chosen, simulate.user(user, grades=3), sessions=sessions, seed=1, out=path, ranks=5
    )  # fmt: skip


def features_of(log: ClickLog) -> np.ndarray:
    found = log.vocabulary.features
    assert found is not None
    return found


def grades_of(log: ClickLog) -> np.ndarray:
    found = log.vocabulary.labels
    assert found is not None
    return np.nan_to_num(found)


@pytest.fixture(scope="module")
def pbm_log(tmp_path_factory: pytest.TempPathFactory) -> ClickLog:
    return logged(tmp_path_factory.mktemp("pbm") / "log", "pbm")


@pytest.fixture(scope="module")
def cascade_log(tmp_path_factory: pytest.TempPathFactory) -> ClickLog:
    return logged(tmp_path_factory.mktemp("dcm") / "log", "dcm", 20_000)


def test_examination_is_that_of_the_user(pbm_log: ClickLog) -> None:
    found = examination(collapse(pbm_log, "rank"))
    truth = np.array(pbm_log.metadata["truth"]["examination"])[:5]
    np.testing.assert_allclose(found.table[:, 0], truth / truth[0], rtol=0.25)
    assert (found.table == found.table[:, :1]).all()
    assert found.notes == ()


def test_ranks_that_nothing_connects_have_click_rates_and_a_note(tmp_path: Path) -> None:
    counts = collapse(logged(tmp_path / "log", "pbm", 500, temperature=0.0), "rank")
    found = examination(counts)
    rate = np.bincount(counts.rank, counts.clicks)[1:] / np.bincount(counts.rank, counts.impressions)[1:]
    np.testing.assert_allclose(found.table[:, 0], rate / rate[0], rtol=0.05)
    assert "do not connect the ranks" in found.notes[0]


def test_exposure_and_clicks_are_sums_over_cells(pbm_log: ClickLog) -> None:
    counts = collapse(pbm_log, "last-click")
    assert counts.last_click is not None
    table = np.random.default_rng(0).uniform(0.1, 1, (5, 6))
    clicks, exposure = totals(counts, table)
    wanted = np.zeros(len(exposure))
    for d, k, last, n in zip(counts.document, counts.rank, counts.last_click, counts.impressions, strict=True):
        wanted[d] += n * table[k - 1, last]
    np.testing.assert_allclose(exposure, wanted)
    assert clicks.sum() == counts.clicks.sum()


@pytest.mark.slow
def test_dependence_on_clicks_above_is_noticed(tmp_path: Path, pbm_log: ClickLog, cascade_log: ClickLog) -> None:
    """Then relevance by last click is nearer to the truth than by rank alone."""
    assert not CrossFitting(pbm_log, by="query", seed=0, work=tmp_path).depends_on_clicks
    data = CrossFitting(cascade_log, by="query", seed=0, work=tmp_path)
    assert data.depends_on_clicks
    assert "each last click" in data.notes[0]
    truth = grades_of(cascade_log)
    correlation = []
    for how in ("rank", "last-click"):
        counts = collapse(cascade_log, how)  # type: ignore[call-overload]
        clicks, exposure = totals(counts, examination(counts).table)
        often = exposure > 30
        correlation.append(np.corrcoef(clicks[often] / exposure[often], truth[often])[0, 1])
    assert correlation[1] > correlation[0]


def test_the_regression_maximises_its_likelihood() -> None:
    rng = np.random.default_rng(0)
    place, exposure = rng.normal(size=200), rng.uniform(0.1, 5, 200)
    clicks = rng.poisson(exposure * np.exp(-1 + 0.4 * place))

    def loss(w: np.ndarray) -> float:
        mean = exposure * np.exp(w[0] + w[1] * np.clip(place, -3, 3))
        return float(mean.sum() - clicks @ np.log(mean) + w[1] ** 2 / 2)

    best = minimize(loss, np.zeros(2)).x
    wanted = np.array([-9.0, 0.5])
    np.testing.assert_allclose(
        relevance_by_place(place, clicks, exposure, wanted), np.exp(best[0] + best[1] * np.array([-3, 0.5])), rtol=1e-4
    )
    assert (relevance_by_place(place, np.zeros(200), exposure, wanted) == 0).all()


def test_scores_of_documents_are_those_of_each_alone(pbm_log: ClickLog) -> None:
    ranker = baselines.NaiveListwise(relevance=towers.Linear(3, rngs=nnx.Rngs(0)))
    chosen = np.random.default_rng(0).permutation(np.arange(1, pbm_log.documents + 1))[:200]
    features = features_of(pbm_log)[chosen][:, None]
    alone = Sessions(
        mask=np.ones((200, 1), bool),
        position=np.zeros((200, 1), np.int32),
        features={"document": chosen[:, None].astype(np.int32), "features": features},
    )
    found = document_scores(ranker, pbm_log.vocabulary, chosen)
    np.testing.assert_allclose(found, np.asarray(ranker.score(alone))[:, 0], rtol=1e-5)


def test_standardised_scores_have_mean_0_and_deviation_1_within_queries() -> None:
    query = np.array([0, 1, 0, 1, 1])
    found = standardised(np.array([1.0, 5, 3, 9, 7]), query)
    assert np.bincount(query, found) == pytest.approx([0, 0])
    assert np.mean(found**2) == pytest.approx(1)
    assert (standardised(np.ones(5), query) == 0).all()


def test_held_out_clicks_rank_rankers_as_grades_do(tmp_path: Path, pbm_log: ClickLog) -> None:
    """The feature that makes the grades gains over the logged order, one that tells nothing loses."""
    data = CrossFitting(pbm_log, by="query", seed=0, work=tmp_path)
    features, labels = features_of(pbm_log), grades_of(pbm_log)
    for fold in range(data.folds):
        found = data.held_out(fold)
        assert len(np.unique(found.document)) == len(found.document)
        gains = [
            ranking_gain(found.clicks, s, found.logged).value
            for s in (labels[found.document], features[found.document, 0], features[found.document, 1])
        ]
        assert gains[0] > gains[1] > 0 > gains[2] - 0.1


def test_tables_are_judged_by_sessions(tmp_path: Path, pbm_log: ClickLog) -> None:
    data = CrossFitting(pbm_log, by="session", seed=0, work=tmp_path, folds=2)
    found = data.held_out(0)
    train, valid = data.counts("rank", 0), data.counts("rank", 0, held_out=True)
    assert train.sessions + valid.sessions == len(pbm_log)
    assert found.clicks.clicks.sum() == valid.clicks.sum()
    assert len(set(train.query) & set(valid.query)) > 30


def test_features_of_impressions_are_refused(pbm_log: ClickLog, tmp_path: Path) -> None:
    class OfImpressions:
        metadata = {"impression_features": ["bm25"]}  # noqa: RUF012

    with pytest.raises(ConfigError, match="features of impressions"):
        CrossFitting(OfImpressions(), by="query", seed=0, work=tmp_path)  # type: ignore[arg-type]


def candidate(
    name: str, gain: float, loss: float, *, spread: float = 0.5, folds: int = 2, click: bool = True
) -> Candidate:
    """A candidate with a gain on 100 queries per fold, whose noise it does not share with others."""
    rng = np.random.default_rng(sum(map(ord, name)))
    noise = [rng.normal(0, 0.5, 100) for _ in range(folds)]
    told = [PerQuery(gain + e - e.mean(), np.ones(100)) for e in noise]
    method = StudyMethod(name, "pbm")
    return Candidate(method, {"model": name}, told=told, losses=[loss] * folds, is_click_model=click)


def test_the_largest_gain_is_chosen() -> None:
    a, b = candidate("a", 0.1, 2.0), candidate("b", 0.5, 2.1)
    assert choose([a, b]) == (b, "the largest gain")
    assert difference(b, a).value == pytest.approx(0.4)


def test_likelihood_decides_between_gains_that_cannot_be_told_apart() -> None:
    a, b = candidate("a", 0.499, 2.0), candidate("b", 0.5, 2.1)
    chosen, reason = choose([a, b])
    assert chosen is a
    assert "likelihood" in reason
    assert choose([candidate("a", 0.499, 2.0, click=False), b]).candidate is b


def test_a_candidate_given_up_or_failed_is_not_chosen() -> None:
    a, b = candidate("a", 0.9, 2.0, folds=1), candidate("b", 0.5, 2.1)
    failed = Candidate(StudyMethod("c", "pbm"), {}, error="no propensities")
    assert choose([a, b, failed]).candidate is b
    assert failed.to_json() == {"settings": {}, "error": "no propensities"}
    with pytest.raises(UltrError, match="no propensities"):
        choose([failed])


@pytest.mark.slow
def test_safe_training_keeps_a_guarded_ranker(ultr: Ultr, tmp_path: Path, pbm_log: ClickLog) -> None:
    done = ultr(
        "train", pbm_log.path, "--out", tmp_path / "run", "--model", "pbm", "--relevance", "linear", "--safe",
        "--epochs", 2, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    guard = done.json["chosen"]["guard"]
    assert (guard["values"][0]["correction"], guard["values"][0]["gain"]) == (0, 0)
    chosen = next(value for value in guard["values"] if value["correction"] == guard["correction"])
    assert chosen["gain"] == max(value["gain"] for value in guard["values"] if value["lower"] > 0)
    assert chosen["lower"] > 0  # a weak logger, and many clicks
    assert chosen["lower"] < chosen["gain"]
    model = load(tmp_path / "run" / "model")
    assert isinstance(model, baselines.GuardedRanker)
    assert model.correction == guard["correction"]
    said = ultr("evaluate", tmp_path / "run", pbm_log.path, "--json")
    assert said.code == 0, said.err
    assert said.json["ndcg@10"]["value"] > 0.7


@pytest.mark.slow
def test_auto_says_the_gain_of_every_candidate(tmp_path: Path, pbm_log: ClickLog) -> None:
    data = CrossFitting(pbm_log, by="query", seed=0, work=tmp_path, folds=2)
    method = StudyMethod("auto", "auto", epochs=1)
    chosen = choose_automatically(method, pbm_log, lambda by: data, seed=0, safe=True)
    values = chosen.facts["values"]
    assert {value["settings"]["model"] for value in values} == set(AUTO_MODELS)
    assert {value["settings"]["relevance"] for value in values} == {"linear", "mlp"}
    assert {value["settings"]["l2"] for value in values} == {3.0, 10.0, 30.0}
    assert chosen.facts["settings"] in [value["settings"] for value in values]
    assert chosen.facts["reason"]
    assert all(math.isfinite(value["lower"]) for value in values)
    assert isinstance(chosen.ranker, baselines.GuardedRanker)
    assert chosen.facts["guard"]["correction"] == chosen.ranker.correction
    assert chosen.method.model == chosen.facts["settings"]["model"]


@pytest.mark.slow
def test_a_table_corrects_only_the_documents_that_it_knows(tmp_path: Path, pbm_log: ClickLog) -> None:
    data = CrossFitting(pbm_log, by="session", seed=0, work=tmp_path, folds=2)
    method = StudyMethod("pbm", "pbm", relevance="table", epochs=2, safe=True)
    chosen = choose_by_folds(method.variants(), pbm_log, lambda by: data, seed=0, safe=True)
    assert chosen.by == "session"
    model = chosen.ranker
    assert model.correction > 0  # four thousand sessions of forty queries tell more than a weak logger
    never = np.setdiff1d(np.arange(1, pbm_log.documents + 1), data.counts("rank").document)
    known = np.asarray(model.known[...])
    assert not known[never].any()
    assert known.sum() == pbm_log.documents - len(never)


def test_a_log_that_supports_no_correction_keeps_the_logged_order(tmp_path: Path) -> None:
    """Inverse propensities need ranks that documents connect, which a deterministic logger does not."""
    log = logged(tmp_path / "log", "pbm", 300, temperature=0.0)
    (tmp_path / "work").mkdir()
    data = CrossFitting(log, by="query", seed=0, work=tmp_path / "work")
    method = StudyMethod("ips", "ips-listwise", relevance="linear")
    with pytest.raises(UltrError, match="no candidate could be trained"):
        choose_by_folds(method.variants(), log, lambda by: data, seed=0, safe=False)
    chosen = choose_by_folds(method.variants(), log, lambda by: data, seed=0, safe=True)
    assert chosen.ranker.correction == 0
    assert "the logged order is kept" in chosen.facts["reason"]
    shown = np.arange(1, log.documents + 1)
    order = np.argsort(document_scores(chosen.ranker, log.vocabulary, shown))
    assert (np.diff(data.logged().scores[shown][order]) >= -1e-4).all()


@pytest.mark.parametrize("given", [["--solver", "em"], ["--valid-fraction", "0.2"], ["--resume"]])
def test_options_without_effect_on_folds_are_refused(
    ultr: Ultr, tmp_path: Path, pbm_log: ClickLog, given: list[str]
) -> None:
    done = ultr("train", pbm_log.path, "--out", tmp_path / "run", "--safe", *given)
    assert done.code == 2
    assert f"{given[0]} has no effect with --model auto or --safe" in done.err


def test_a_score_without_the_guard_is_refused(ultr: Ultr, tmp_path: Path, pbm_log: ClickLog) -> None:
    done = ultr("train", pbm_log.path, "--out", tmp_path / "run", "--logger-score", "0")
    assert done.code == 2
    assert "without --safe" in done.err
