"""The simulator against the probabilities that it states."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import jax
import numpy as np
import pytest

from ultr import models, simulate, towers
from ultr.errors import ConfigError, DataError
from ultr.logs import ClickLog, Collection
from ultr.sessions import Sessions


@pytest.fixture(scope="module")
def lists() -> Collection:
    return simulate.collection(queries=40, documents=12, features=6, seed=0)


def shown(log: ClickLog) -> Sessions:
    (batch,) = log.batches(len(log))
    return batch


def simulated(lists: Collection, path: Path, policy: simulate.Policy, user: str = "pbm", n: int = 20_000) -> ClickLog:
    model = simulate.user(user, grades=4, ranks=5)
    return simulate.clicks(lists, policy, model, sessions=n, seed=1, out=path, ranks=5)


def test_a_synthetic_collection_has_the_stated_grades(lists: Collection) -> None:
    shares = np.bincount(lists.labels.astype(int), minlength=5) / len(lists.labels)
    np.testing.assert_allclose(shares, [0.5, 0.2, 0.15, 0.1, 0.05], atol=0.003)
    again = simulate.collection(queries=40, documents=12, features=6, seed=0)
    np.testing.assert_array_equal(lists.features, again.features)


def test_clicks_follow_examination_times_relevance(lists: Collection, tmp_path: Path) -> None:
    batch = shown(simulated(lists, tmp_path / "log", simulate.Policy("random")))
    clicks, labels = np.asarray(batch.clicks), np.asarray(batch.labels)
    for grade, gain in enumerate([0, 1, 3, 7, 15]):
        for rank in range(5):
            here = labels[:, rank] == grade
            p = (0.1 + 0.9 * gain / 15) / (rank + 1)
            deviation = np.sqrt(p * (1 - p) / here.sum()) + 1e-9
            assert abs(clicks[here, rank].mean() - p) < 4.5 * deviation, (grade, rank)


def test_the_log_keeps_the_truth(lists: Collection, tmp_path: Path) -> None:
    log = simulated(lists, tmp_path / "log", simulate.Policy("noisy", temperature=0.5))
    truth = log.metadata["truth"]
    np.testing.assert_allclose(truth["examination"], 1 / np.arange(1, 6), rtol=1e-6)
    batch = shown(log)
    expected = float(np.asarray(simulate.user("pbm", grades=4, ranks=5).log_prob(batch)).mean())
    assert truth["log_likelihood"] == pytest.approx(expected, rel=1e-5)
    assert truth["policy"] == {"ranker": "noisy", "temperature": 0.5, "noise": 1.0, "share": 0.01}
    np.testing.assert_array_equal(log.vocabulary.labels[1:], lists.labels)  # type: ignore[index]


@pytest.mark.parametrize("user", simulate.USERS)
def test_every_user_clicks_as_its_model_says(user: str, lists: Collection, tmp_path: Path) -> None:
    log = simulated(lists, tmp_path / "log", simulate.Policy("linear", temperature=1.0), user, n=4000)
    batch = shown(log)
    expected = np.exp(np.asarray(simulate.user(user, grades=4, ranks=5)(batch).marginal())).mean(0)
    error = np.sqrt(expected * (1 - expected) / len(log))
    assert (np.abs(np.asarray(batch.clicks).mean(0) - expected) < 4.5 * error + 1e-9).all()


def test_policies_rank_as_they_are_named(lists: Collection, tmp_path: Path) -> None:
    rankings = {}
    for policy in ("random", "oracle", "noisy", "linear"):
        batch = shown(simulated(lists, tmp_path / policy, simulate.Policy(policy), n=3000))
        rankings[policy] = batch
        first_query = np.asarray(batch.features["document"])[np.asarray(batch.query) == batch.query[0]]
        assert (len(np.unique(first_query, axis=0)) > 1) == (policy == "random")
    labels = {name: np.asarray(b.labels) for name, b in rankings.items()}
    assert (np.diff(labels["oracle"], axis=1) <= 0).all()
    assert labels["oracle"][:, 0].mean() > labels["noisy"][:, 0].mean() > labels["random"][:, 0].mean()
    expected = lists.labels.mean()
    assert abs(labels["random"].mean() - expected) < 4 * lists.labels.std() / np.sqrt(labels["random"].size)


def test_plackett_luce_has_the_stated_probabilities(tmp_path: Path) -> None:
    three = Collection.from_arrays(query=[0, 0, 0], label=[0.0, 1.0, 2.0])
    policy = simulate.Policy("oracle", temperature=0.7)
    log = simulate.clicks(three, policy, simulate.user("pbm", grades=2, ranks=2), sessions=30_000, seed=3,
                          out=tmp_path / "log", ranks=2)  # fmt: skip
    weight = np.exp(policy.scores(three, seed=3) / 0.7)
    documents = np.asarray(shown(log).features["document"])
    for first, second in permutations(range(3), 2):
        p = weight[first] / weight.sum() * weight[second] / (weight.sum() - weight[first])
        share = ((documents[:, 0] == first + 1) & (documents[:, 1] == second + 1)).mean()
        assert abs(share - p) < 4.5 * np.sqrt(p * (1 - p) / 30_000)


def test_equal_scores_are_not_ordered_by_the_file(tmp_path: Path) -> None:
    # 300 queries of two documents with the same grade: each comes first about half of the time.
    pairs = Collection.from_arrays(query=np.repeat(np.arange(300), 2), label=np.ones(600))
    log = simulate.clicks(pairs, simulate.Policy("oracle"), simulate.user("pbm", grades=1), sessions=3000, seed=0,
                          out=tmp_path / "log")  # fmt: skip
    batch = shown(log)
    first = {int(q): int(d) % 2 for q, d in zip(batch.query, np.asarray(batch.features["document"])[:, 0], strict=True)}
    assert abs(np.mean(list(first.values())) - 0.5) < 4 * 0.5 / np.sqrt(len(first))


def test_zipf_queries_and_short_lists(tmp_path: Path) -> None:
    sizes = [1, 3, 8]
    query = np.repeat(np.arange(3), sizes)
    ragged = Collection.from_arrays(query=query, label=np.arange(12) % 3)
    log = simulate.clicks(ragged, simulate.Policy("random"), simulate.user("dbn", grades=2, ranks=5), sessions=9000,
                          seed=0, out=tmp_path / "log", ranks=5, zipf=1.0)  # fmt: skip
    lengths = log.metadata["lengths"]
    assert set(lengths) == {"1", "3", "5"}
    for size, share in zip(("1", "3", "5"), np.array([6, 3, 2]) / 11, strict=True):
        assert abs(lengths[size] / 9000 - share) < 4.5 * np.sqrt(share * (1 - share) / 9000)


def test_the_same_seed_gives_the_same_log(lists: Collection, tmp_path: Path) -> None:
    a, b = (shown(simulated(lists, tmp_path / n, simulate.Policy("random"), n=500)) for n in "ab")
    assert all((x == y).all() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_bad_use_is_explained(lists: Collection, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown policy 'best'; known: random, oracle, noisy, linear"):
        simulate.Policy("best")
    with pytest.raises(ConfigError, match="share in"):
        simulate.Policy("linear", share=0.0)
    with pytest.raises(ConfigError, match="unknown user model 'eye'"):
        simulate.user("eye", grades=4)
    bare = Collection.from_arrays(query=[0, 0], label=[0, 1])
    out = tmp_path / "log"
    with pytest.raises(ConfigError, match="'linear' needs document features"):
        simulate.clicks(bare, simulate.Policy("linear"), simulate.user("pbm", grades=1), sessions=5, seed=0, out=out)
    with pytest.raises(DataError, match="field 'labels': expected grades up to 1 in GradeTable, found"):
        simulate.clicks(lists, simulate.Policy("random"), simulate.user("pbm", grades=1), sessions=99, seed=0, out=out)
    user = models.PBM(relevance=towers.Constant(), examination=towers.RankTable(2))
    with pytest.raises(DataError, match="field 'rank': expected ranks up to 2"):
        simulate.clicks(lists, simulate.Policy("random"), user, sessions=5, seed=0, out=out)
    with pytest.raises(ConfigError, match="at least one session"):
        simulate.clicks(lists, simulate.Policy("random"), simulate.user("pbm", grades=4), sessions=0, seed=0, out=out)
    assert list(tmp_path.iterdir()) == []
