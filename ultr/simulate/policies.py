"""Logging policies: which rankings a simulated log shows, and the logger as a ranker of other lists."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from ultr.data import Collection
from ultr.errors import ConfigError
from ultr.sessions import Sessions, SharedFeature

RANKERS = ("random", "oracle", "noisy", "linear", "boosted", "strength")
_ROUNDS = 100


@dataclasses.dataclass(frozen=True)
class Policy:
    """A logging policy: a ranker, and how much chance there is in its rankings.

    Chance comes in this order, and each kind goes with every ranker: `temperature` draws a ranking, `epsilon` puts
    random documents into it, `swaps` exchanges neighbours of what is shown. Without any, a query is ranked the same
    in each session (`random` apart).

    Attributes:
      ranker: `random` (a fresh uniform permutation in each session), `oracle` (the expert grades),
        `noisy` (grades plus one fixed normal error per document), `linear` (ridge regression on the
        features, trained on the grades of a small share of the queries, as in Joachims 2017), `boosted` (LambdaMART
        by LightGBM, trained on the same; needs the extra `peers`), `strength` (below).
      temperature: 0 ranks by score, the same in each session; above 0, Plackett-Luce: each session samples from
        exp(score / temperature), with scores of standard deviation 1 over the collection (Gumbel top-k, Kool 2019).
      noise: `noisy` only, standard deviation of the error in grades.
      share: `linear` and `boosted` only, share of the queries to train on (at least one).
      epsilon: at each rank, with this probability, a document drawn uniformly from those not yet shown, else the best
        of them (epsilon-greedy, Hofmann 2013).
      swaps: in each session, the ranks 1-2, 3-4, ... or 2-3, 4-5, ... (either with one half) are paired, and each
        pair is exchanged with this probability; one half is FairPairs (Radlinski and Joachims 2006).
      strength: `strength` only, a in [-1, 1]: scores a z + (1 - |a|) e, of the standardised grades z and one fixed
        standard normal e per document. 1 is the oracle, 0 a ranker that knows nothing, -1 the worst ranking: how
        strongly the logger's order goes with relevance, the knob of the confounding studies (Zhang 2023, Hager 2025).

    Raises:
      ConfigError: an unknown ranker or a number out of range.
    """

    ranker: str = "linear"
    temperature: float = 0.0
    noise: float = 1.0
    share: float = 0.01
    epsilon: float = 0.0
    swaps: float = 0.0
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.ranker not in RANKERS:
            raise ConfigError(f"unknown policy '{self.ranker}'; known: {', '.join(RANKERS)}")
        if not (0 <= self.temperature < np.inf and 0 <= self.noise < np.inf and 0 < self.share <= 1):
            raise ConfigError(
                f"expected finite temperature >= 0 and noise >= 0, and share in (0, 1], found "
                f"{self.temperature}, {self.noise}, {self.share}"
            )
        if not (0 <= self.epsilon <= 1 and 0 <= self.swaps <= 1 and -1 <= self.strength <= 1):
            raise ConfigError(
                f"expected epsilon and swaps in [0, 1] and strength in [-1, 1], found "
                f"{self.epsilon}, {self.swaps}, {self.strength}"
            )

    def fitted(self, collection: Collection, *, seed: int) -> Logger:
        """The logger of the collection's log, as a ranker that can be evaluated on other lists.

        Args:
          collection: what the log is simulated on, with features for `linear` and `boosted`.
          seed: of the log.

        Raises:
          ConfigError: the collection has no features, or LightGBM is not installed.
        """
        rng = np.random.default_rng(seed)
        labels = np.nan_to_num(np.asarray(collection.labels, np.float64))
        if self.ranker == "random":
            return Logger(self, lambda x, y, d: np.zeros(d.shape))
        if self.ranker in ("linear", "boosted"):
            raw = (_ridge if self.ranker == "linear" else _boosted)(collection, labels, self.share, rng)
        else:
            raw = _graded(self, labels, seed)
        logger = Logger(self, raw)
        scores = raw(collection.features, labels, collection.document)
        deviation = scores.std()
        logger.centre, logger.scale = float(scores.mean()), float(deviation) if deviation > 0 else 1.0
        return logger

    def scores(self, collection: Collection, *, seed: int) -> np.ndarray:
        """[D] scores of the collection's documents, standard deviation 1 unless they are all equal."""
        logger = self.fitted(collection, seed=seed)
        labels = np.nan_to_num(np.asarray(collection.labels, np.float64))
        return logger.standard(collection.features, labels, collection.document)


class Logger:
    """A fitted logging policy as a ranker: `score(sessions)`, which `ultr.evaluation.evaluate` can judge.

    Scores are those that the log's rankings start from, before any chance.

    Attributes:
      policy: the policy.
      centre, scale: mean and standard deviation of the raw scores of the collection that it was fitted on.
    """

    def __init__(self, policy: Policy, raw: Callable[[Any, np.ndarray, np.ndarray], np.ndarray]) -> None:
        self.policy, self._raw = policy, raw
        self.centre, self.scale = 0.0, 1.0

    def standard(self, features: Any, labels: np.ndarray, document: np.ndarray) -> np.ndarray:
        """[D] scores of documents with features [D, F], grades [D] and ids [D]."""
        return (self._raw(features, labels, document) - self.centre) / self.scale

    def score(self, sessions: Sessions) -> np.ndarray:
        """[B, K] scores; reads features (`linear`, `boosted`), or grades and, for their errors, document ids.

        Raises:
          ConfigError: the sessions have not what the policy ranks by.
        """
        shape, ranker = sessions.shape, self.policy.ranker
        given = sessions.features.get("features")
        if ranker in ("linear", "boosted") and given is None:
            raise ConfigError(f"the policy '{ranker}' ranks by document features; these sessions have none")
        if ranker in ("oracle", "noisy", "strength") and sessions.labels is None:
            raise ConfigError(f"the policy '{ranker}' ranks by grades; these sessions have none")
        whole = None if given is None else np.asarray(given.whole() if isinstance(given, SharedFeature) else given)
        features = None if whole is None else whole.reshape(-1, whole.shape[-1])
        count = shape[0] * shape[1]
        labels = np.zeros(count) if sessions.labels is None else np.asarray(sessions.labels, np.float64).reshape(-1)
        ids = sessions.features.get("document")
        document = np.zeros(count, np.int32) if ids is None else np.asarray(ids).reshape(-1)
        scores = self.standard(features, np.nan_to_num(labels), document)
        return np.where(np.asarray(sessions.mask), scores.reshape(shape), 0.0).astype(np.float32)


def _graded(policy: Policy, labels: np.ndarray, seed: int) -> Callable[..., np.ndarray]:
    mean, deviation = labels.mean(), labels.std()
    deviation = deviation if deviation > 0 else 1.0
    a = policy.strength

    def error(document: np.ndarray) -> np.ndarray:
        # By id, so that a document has one error wherever it is seen; id 0 (unseen) has that of id 1.
        drawn = np.random.default_rng(seed).normal(0.0, 1.0, max(int(document.max(initial=1)), 1))
        return drawn[np.maximum(document, 1) - 1]

    def raw(features: Any, grades: np.ndarray, document: np.ndarray) -> np.ndarray:
        if policy.ranker == "oracle":
            return grades
        if policy.ranker == "noisy":
            return grades + policy.noise * error(document)
        return a * (grades - mean) / deviation + (1 - abs(a)) * error(document)

    return raw


def _drawn(collection: Collection, share: float, rng: np.random.Generator, name: str) -> list[np.ndarray]:
    """Rows of each of the queries to train on."""
    if collection.features is None:
        raise ConfigError(f"the policy '{name}' needs document features; choose random, oracle, noisy or strength")
    queries = len(collection.offsets) - 1
    chosen = rng.choice(queries, max(1, round(share * queries)), replace=False)
    return [np.arange(collection.offsets[q], collection.offsets[q + 1]) for q in np.sort(chosen)]


def _ridge(
    collection: Collection, labels: np.ndarray, share: float, rng: np.random.Generator
) -> Callable[..., np.ndarray]:
    rows = np.concatenate(_drawn(collection, share, rng, "linear"))
    x = np.asarray(collection.features, np.float64)
    mean, deviation = x.mean(0), x.std(0)
    deviation = np.where(deviation > 0, deviation, 1.0)
    x = (x[rows] - mean) / deviation
    gram = x.T @ x + len(rows) * 0.1 * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x.T @ (labels[rows] - labels[rows].mean()))
    return lambda features, grades, document: ((np.asarray(features, np.float64) - mean) / deviation) @ weights


def _boosted(
    collection: Collection, labels: np.ndarray, share: float, rng: np.random.Generator
) -> Callable[..., np.ndarray]:
    lists = _drawn(collection, share, rng, "boosted")
    try:
        import lightgbm
    except ImportError as error:
        raise ConfigError("the policy 'boosted' needs LightGBM: pip install 'ultr[peers]', or choose linear") from error
    lists = [rows for rows in lists if len(rows)]
    rows = np.concatenate(lists)
    x = np.asarray(collection.features, np.float64)
    data = lightgbm.Dataset(x[rows], label=np.round(labels[rows]), group=[len(part) for part in lists])
    options = {
        "objective": "lambdarank",
        "num_leaves": 15,
        "min_data_in_leaf": max(1, min(20, len(rows) // 20)),
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,
        "seed": int(rng.integers(2**31)),
        "verbosity": -1,
    }
    trees = lightgbm.train(options, data, num_boost_round=_ROUNDS)
    return lambda features, grades, document: np.asarray(trees.predict(np.asarray(features, np.float64), num_threads=1))
