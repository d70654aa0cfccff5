"""Logging policies: which rankings a simulated log shows, and the fitted policy as a ranker of any lists."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

from ultr import stopping
from ultr.data import Collection
from ultr.data.input_schema import FEATURES, InputSchema
from ultr.errors import ConfigError, DataError
from ultr.sessions import Sessions, whole_feature
from ultr.text import did_you_mean

RANKERS = ("random", "oracle", "noisy", "linear", "boosted", "strength")
_BOOSTING_ROUNDS = 100


_ORDERED = ("oracle", "noisy", "linear", "boosted", "strength")  # the others are random as they are
# Option -> the rankers that it has an effect on.
OWNERS = {
    "noise": ("noisy",),
    "share": ("linear", "boosted"),
    "strength": ("strength",),
    **dict.fromkeys(("temperature", "epsilon", "swaps"), _ORDERED),
}


def no_effect(option: str, ranker: str) -> str:
    """Says on which policies an option has an effect, where it has none on this one."""
    return f"has no effect on the policy '{ranker}', only on {', '.join(OWNERS[option])}: leave it out"


@dataclasses.dataclass(frozen=True)
class Policy:
    """A logging policy: a ranker, and how much randomness there is in its rankings.

    Randomness is added in this order, each kind with any ranker but `random`: `temperature` draws a ranking, `epsilon`
    puts random documents into it, `swaps` exchanges neighbours of what is shown. Without any, a query is ranked the
    same in each session, except by `random`.

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
      strength: `strength` only, a in [-1, 1]: scores are a z + (1 - |a|) e, with z the standardised grades and e one
        fixed standard normal error per document. 1 is the oracle, 0 a ranker that knows nothing, -1 the worst ranking:
        how strongly the logger's order depends on relevance in confounding studies (Zhang 2023, Hager 2025).

    Raises:
      ConfigError: an unknown ranker, a number out of range, or one that has no effect on this ranker.
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
            hint = did_you_mean(str(self.ranker), RANKERS)
            raise ConfigError(f"unknown policy '{self.ranker}'{hint}; known: {', '.join(RANKERS)}")
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
        given = dataclasses.asdict(self)
        for field in dataclasses.fields(self):
            owners = OWNERS.get(field.name, RANKERS)
            if self.ranker not in owners and given[field.name] != field.default:
                raise ConfigError(f"{field.name} {no_effect(field.name, self.ranker)}")

    def fitted(self, collection: Collection, *, seed: int) -> FittedPolicy:
        """Fits the policy to a collection; the result is a ranker that can be evaluated on other lists.

        Args:
          collection: that of the log, with features for `linear` and `boosted`.
          seed: that of the log.

        Raises:
          ConfigError: the collection has no features, or LightGBM is not installed.
          DataError: a score is not finite.
        """
        rng = np.random.default_rng(seed)
        labels = np.nan_to_num(np.asarray(collection.labels, np.float64))
        if self.ranker == "random":
            return FittedPolicy(self, lambda features, grades, document: np.zeros(document.shape))
        if self.ranker in ("linear", "boosted"):
            raw = (_ridge if self.ranker == "linear" else _boosted)(collection, labels, self.share, rng)
        else:
            raw = _graded(self, labels, seed)
        by_features = self.ranker in ("linear", "boosted")
        fitted = FittedPolicy(self, raw, collection.input_schema.only({FEATURES}) if by_features else None)
        scores = raw(collection.features, labels, collection.document)
        if not (finite := np.isfinite(scores)).all():
            raise DataError(
                f"the policy '{self.ranker}' scores document {collection.document[~finite][0]} as {scores[~finite][0]}",
                fix="Its features are not finite: fill them",
                field="features",
            )
        deviation = scores.std()
        fitted.centre, fitted.scale = float(scores.mean()), float(deviation) if deviation > 0 else 1.0
        return fitted

    def scores(self, collection: Collection, *, seed: int) -> np.ndarray:
        """Computes scores [D] of the documents, of standard deviation 1 unless they are all equal."""
        fitted = self.fitted(collection, seed=seed)
        labels = np.nan_to_num(np.asarray(collection.labels, np.float64))
        return fitted.standard(collection.features, labels, collection.document)


class _RawScores(Protocol):
    """Computes raw scores [D] of documents with features [D, F] or None, grades [D] and ids [D]."""

    def __call__(self, features: np.ndarray | None, grades: np.ndarray, document: np.ndarray) -> np.ndarray: ...


class FittedPolicy:
    """A logging policy fitted to a collection, as a ranker that `ultr.evaluation.evaluate` can judge.

    Its scores are those that the rankings of a log start from, before any randomness.

    Attributes:
      policy: the policy.
      centre, scale: mean and standard deviation of the raw scores of the collection that it was fitted on.
      input_schema: names of the features that it reads; None: it reads none.
    """

    def __init__(self, policy: Policy, raw: _RawScores, input_schema: InputSchema | None = None) -> None:
        self.policy, self._raw, self.input_schema = policy, raw, input_schema
        self.centre, self.scale = 0.0, 1.0

    def standard(self, features: np.ndarray | None, labels: np.ndarray, document: np.ndarray) -> np.ndarray:
        """Computes standardised scores [D] of documents with features [D, F], grades [D] and ids [D]."""
        return (self._raw(features, labels, document) - self.centre) / self.scale

    def score(self, sessions: Sessions) -> np.ndarray:
        """Computes scores [B, K] from features (`linear`, `boosted`), or from grades and document ids.

        Raises:
          ConfigError: the sessions lack what the policy ranks by.
        """
        shape, ranker = sessions.shape, self.policy.ranker
        given = sessions.features.get("features")
        if ranker in ("linear", "boosted") and given is None:
            raise ConfigError(f"the policy '{ranker}' ranks by document features; these sessions have none")
        if ranker in ("oracle", "noisy", "strength") and sessions.labels is None:
            raise ConfigError(f"the policy '{ranker}' ranks by grades; these sessions have none")
        whole = None if given is None else np.asarray(whole_feature(given))
        features = None if whole is None else whole.reshape(-1, whole.shape[-1])
        count = shape[0] * shape[1]
        labels = np.zeros(count) if sessions.labels is None else np.asarray(sessions.labels, np.float64).reshape(-1)
        ids = sessions.features.get("document")
        document = np.zeros(count, np.int32) if ids is None else np.asarray(ids).reshape(-1)
        scores = self.standard(features, np.nan_to_num(labels), document)
        return np.where(np.asarray(sessions.mask), scores.reshape(shape), 0.0).astype(np.float32)


def _graded(policy: Policy, labels: np.ndarray, seed: int) -> _RawScores:
    """Makes scores from grades and a fixed error per document."""
    mean, deviation = labels.mean(), labels.std()
    deviation = deviation if deviation > 0 else 1.0
    a = policy.strength

    def error(document: np.ndarray) -> np.ndarray:
        # By id, so that a document has the same error in all lists; id 0 (unseen) has that of id 1.
        drawn = np.random.default_rng(seed).normal(0.0, 1.0, max(int(document.max(initial=1)), 1))
        return np.asarray(drawn[np.maximum(document, 1) - 1])

    def raw(features: np.ndarray | None, grades: np.ndarray, document: np.ndarray) -> np.ndarray:
        if policy.ranker == "oracle":
            return grades
        if policy.ranker == "noisy":
            return grades + policy.noise * error(document)
        return np.asarray(a * (grades - mean) / deviation + (1 - abs(a)) * error(document))

    return raw


def _training_queries(collection: Collection, share: float, rng: np.random.Generator, name: str) -> list[np.ndarray]:
    """Draws the queries to train on, and returns the rows of each."""
    if collection.features is None:
        raise ConfigError(
            f"the policy '{name}' needs document features, which the collection lacks: choose random, oracle, noisy or "
            "strength"
        )
    queries = len(collection.offsets) - 1
    chosen = rng.choice(queries, max(1, round(share * queries)), replace=False)
    return [np.arange(collection.offsets[q], collection.offsets[q + 1]) for q in np.sort(chosen)]


def _ridge(collection: Collection, labels: np.ndarray, share: float, rng: np.random.Generator) -> _RawScores:
    """Fits a ridge regression of the grades on standardised features."""
    rows = np.concatenate(_training_queries(collection, share, rng, "linear"))
    x = np.asarray(collection.features, np.float64)
    mean, deviation = x.mean(0), x.std(0)
    deviation = np.where(deviation > 0, deviation, 1.0)
    x = (x[rows] - mean) / deviation
    gram = x.T @ x + len(rows) * 0.1 * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x.T @ (labels[rows] - labels[rows].mean()))
    return lambda features, grades, document: ((np.asarray(features, np.float64) - mean) / deviation) @ weights


def _boosted(collection: Collection, labels: np.ndarray, share: float, rng: np.random.Generator) -> _RawScores:
    """Trains LambdaMART on the grades."""
    lists = _training_queries(collection, share, rng, "boosted")
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
    trees = lightgbm.train(options, data, num_boost_round=_BOOSTING_ROUNDS, callbacks=[lambda _: stopping.check()])
    return lambda features, grades, document: np.asarray(trees.predict(np.asarray(features, np.float64), num_threads=1))
