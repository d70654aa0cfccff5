"""Simulated click logs: annotated lists, a logging policy and a click model whose relevance reads the grades.

A simulated user is an ordinary click model, so simulated and estimated behaviour cannot drift apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
from flax import nnx

from ultr import models
from ultr.errors import ConfigError, DataError
from ultr.logs import ClickLog, Collection, LogWriter
from ultr.models import ClickModel
from ultr.sessions import Sessions
from ultr.towers import Constant, GradeTable, LastClickTable, RankTable, check, logits

RANKERS = ("random", "oracle", "noisy", "linear")
_BLOCK_CELLS = 4_000_000  # candidates ranked at a time: bounds the memory


@dataclasses.dataclass(frozen=True)
class Policy:
    """A logging policy: a ranker, and how much chance there is in its rankings.

    Attributes:
      ranker: `random` (a fresh uniform permutation in each session), `oracle` (the expert grades),
        `noisy` (grades plus one fixed normal error per document), `linear` (ridge regression on the
        features, trained on the grades of a small share of the queries).
      temperature: 0 ranks by score, the same in each session; above 0, Plackett-Luce: each session samples from
        exp(score / temperature), with scores of standard deviation 1 over the collection.
      noise: `noisy` only, standard deviation of the error in grades.
      share: `linear` only, share of the queries to train on (at least one).
    """

    ranker: str = "linear"
    temperature: float = 0.0
    noise: float = 1.0
    share: float = 0.01

    def __post_init__(self) -> None:
        if self.ranker not in RANKERS:
            raise ConfigError(f"unknown policy '{self.ranker}'; known: {', '.join(RANKERS)}")
        if not (0 <= self.temperature < np.inf and 0 <= self.noise < np.inf and 0 < self.share <= 1):
            raise ConfigError(
                f"expected finite temperature >= 0 and noise >= 0, and share in (0, 1], found "
                f"{self.temperature}, {self.noise}, {self.share}"
            )

    def scores(self, collection: Collection, *, seed: int) -> np.ndarray:
        """[D] scores of the collection's documents, standard deviation 1 unless they are all equal."""
        rng = np.random.default_rng(seed)
        labels = np.nan_to_num(np.asarray(collection.labels, np.float64))
        if self.ranker == "random":
            return np.zeros(len(labels))
        if self.ranker == "linear":
            scores = _ridge(collection, labels, self.share, rng)
        else:
            scores = labels + (rng.normal(0.0, self.noise, len(labels)) if self.ranker == "noisy" else 0.0)
        deviation = scores.std()
        return (scores - scores.mean()) / (deviation if deviation > 0 else 1.0)


def _ridge(collection: Collection, labels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    if collection.features is None:
        raise ConfigError("the policy 'linear' needs document features; choose random, oracle or noisy")
    queries = len(collection.offsets) - 1
    chosen = rng.choice(queries, max(1, round(share * queries)), replace=False)
    rows = np.concatenate([np.arange(collection.offsets[q], collection.offsets[q + 1]) for q in np.sort(chosen)])
    x = np.asarray(collection.features, np.float64)
    mean, deviation = x.mean(0), x.std(0)
    x = (x - mean) / np.where(deviation > 0, deviation, 1.0)
    gram = x[rows].T @ x[rows] + len(rows) * 0.1 * np.eye(x.shape[1])
    return x @ np.linalg.solve(gram, x[rows].T @ (labels[rows] - labels[rows].mean()))


def _pbm(grades: int, ranks: int, eta: float) -> ClickModel:
    return models.PBM(relevance=_noisy_grades(grades), examination=_by_rank(ranks, eta))


def _trust(grades: int, ranks: int, eta: float) -> ClickModel:
    k = np.arange(1, ranks + 1)
    return models.TrustPBM(
        relevance=GradeTable.from_probabilities(_gain(grades)),
        examination=_by_rank(ranks, eta),
        trust_relevant=RankTable(ranks, initial=logits(np.maximum(1 - (k + 1) / 100, 0.01))),
        trust_irrelevant=RankTable(ranks, initial=logits(0.65 / k)),
    )


def _additive(grades: int, ranks: int, eta: float) -> ClickModel:
    return models.AdditivePBM(
        relevance=GradeTable([y - 2.0 for y in range(grades + 1)]),
        examination=RankTable(ranks, initial=-eta * np.log(np.arange(1, ranks + 1))),
    )


def _ubm(grades: int, ranks: int, eta: float) -> ClickModel:
    rank, last = np.arange(1, ranks + 1)[:, None], np.arange(ranks + 1)[None, :]
    table = LastClickTable(ranks)
    table.table[...] = jax.numpy.asarray(logits(1.0 / np.maximum(rank - last, 1) ** eta), "float32")
    return models.UBM(relevance=_noisy_grades(grades), examination=table)


def _cascade(grades: int, ranks: int, eta: float) -> ClickModel:
    return models.CascadeModel(relevance=_noisy_grades(grades))


def _dcm(grades: int, ranks: int, eta: float) -> ClickModel:
    return models.DCM(relevance=_noisy_grades(grades), continuation=_by_rank(ranks, eta))


def _sdbn(grades: int, ranks: int, eta: float) -> ClickModel:
    return models.SDBN(relevance=_share_of_grade(grades, 1.0), satisfaction=_share_of_grade(grades, 0.5))


def _dbn(grades: int, ranks: int, eta: float) -> ClickModel:
    return models.DBN(
        relevance=_share_of_grade(grades, 1.0),
        satisfaction=_share_of_grade(grades, 0.5),
        continuation=Constant(float(logits(0.8))),
    )


def _ccm(grades: int, ranks: int, eta: float) -> ClickModel:
    return models.CCM(
        relevance=_noisy_grades(grades),
        after_skip=Constant(float(logits(0.9))),
        after_irrelevant_click=Constant(float(logits(0.7))),
        after_relevant_click=Constant(float(logits(0.3))),
    )


USERS: dict[str, Callable[[int, int, float], ClickModel]] = {
    "pbm": _pbm,
    "trust": _trust,
    "additive": _additive,
    "ubm": _ubm,
    "cascade": _cascade,
    "dcm": _dcm,
    "sdbn": _sdbn,
    "dbn": _dbn,
    "ccm": _ccm,
}


def user(name: str, *, grades: int, ranks: int = 10, eta: float = 1.0) -> ClickModel:
    """A simulated user with the constants of the literature.

    Examination falls as 1/rank^eta (for `ubm` as 1/(ranks since the last click)^eta; for `dcm` this is the
    continuation after a click). A document of grade y attracts with probability .1 + .9 (2^y - 1)/(2^grades - 1);
    under `sdbn` and `dbn` with y/grades, satisfies with half of that, and `dbn` goes on with .8.
    `trust`: e+ = 1 - (k+1)/100, e- = .65/k (Agarwal 2019). `additive`: logit -eta ln k + (y - 2).

    Args:
      name: pbm, trust, additive, ubm, cascade, dcm, sdbn, dbn or ccm.
      grades: the highest grade of the collection.
      ranks: length of the lists.
      eta: how fast examination falls.
    """
    if name not in USERS:
        raise ConfigError(f"unknown user model '{name}'; known: {', '.join(USERS)}")
    if grades < 1 or ranks < 1:
        raise ConfigError(f"expected a highest grade and a number of ranks of at least 1, found {grades} and {ranks}")
    if not 0 <= eta < np.inf:
        raise ConfigError(f"expected a finite eta of at least 0, found {eta}")
    return USERS[name](grades, ranks, eta)


def _gain(grades: int) -> np.ndarray:
    return (2.0 ** np.arange(grades + 1) - 1) / (2.0**grades - 1)


def _noisy_grades(grades: int) -> GradeTable:
    return GradeTable.from_probabilities(0.1 + 0.9 * _gain(grades))


def _share_of_grade(grades: int, most: float) -> GradeTable:
    return GradeTable.from_probabilities(most * np.arange(grades + 1) / grades)


def _by_rank(ranks: int, eta: float) -> RankTable:
    return RankTable(ranks, initial=logits(np.arange(1, ranks + 1.0) ** -eta))


def clicks(
    collection: Collection,
    policy: Policy,
    model: ClickModel,
    *,
    sessions: int,
    seed: int,
    out: str | Path,
    ranks: int = 10,
    zipf: float = 0.0,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> ClickLog:
    """Simulates sessions and streams them to disk as a click log that holds the truth.

    Each session draws a query, ranks its documents by the policy, shows the first `ranks` of them and
    samples clicks from the model. The log's vocabulary keeps the grades and features of the collection;
    its metadata keep policy, seed, the true examination (where the model has one) and the mean
    log-likelihood of the sessions under the true model, which no estimated model can beat in the long run.

    Args:
      collection: annotated lists.
      policy: the logging policy.
      model: the user; any click model, whose towers may read labels, positions, features and documents.
      sessions: how many.
      seed: decides queries, rankings and clicks.
      out: folder of the new log.
      ranks: how many documents are shown at most.
      zipf: exponent of the query frequencies 1/i^zipf in the order of the collection; 0: uniform.
      overwrite: replace a log at `out`.
      progress: called with the number of sessions after each block.

    Raises:
      ConfigError: fewer than one session or rank, or a policy that the collection cannot feed.
      DataError: `out` exists, or a grade or rank beyond the model's tables.
    """
    if sessions < 1 or ranks < 1:
        raise ConfigError(f"expected at least one session and one rank, found {sessions} and {ranks}")
    if seed < 0 or not 0 <= zipf < np.inf:
        raise ConfigError(f"expected seed >= 0 and a finite zipf >= 0, found {seed} and {zipf}")
    sizes = np.diff(collection.offsets)
    if not (sizes > 0).any():
        raise DataError("expected a collection with documents, found none")
    rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    scores = policy.scores(collection, seed=seed)
    chance = 1.0 if policy.ranker == "random" else policy.temperature
    popularity = np.where(sizes > 0, np.arange(1, len(sizes) + 1.0) ** -zipf, 0.0)
    cumulative = np.cumsum(popularity) / popularity.sum()
    width = int(sizes.max())
    block = max(1, min(sessions, _BLOCK_CELLS // width))
    top = min(ranks, width)
    sample = jax.jit(partial(_sample, nnx.split(model)[0]))
    state = nnx.split(model)[1]
    truth: dict[str, Any] = {
        "policy": dataclasses.asdict(policy),
        "user": type(model).__name__,
        "seed": seed,
        "zipf": zipf,
    }
    if isinstance(model, models.PBM) and isinstance(model.examination, RankTable):
        truth["examination"] = [float(x) for x in jax.nn.sigmoid(model.examination.table[...])[:top]]
    total = 0.0
    queries, documents = collection.vocabulary.tables()
    writer = LogWriter(
        out, queries=queries, documents=documents, features=collection.vocabulary.feature_names, overwrite=overwrite
    )
    with writer:
        for start in range(0, sessions, block):
            n = min(block, sessions - start)
            query = np.searchsorted(cumulative, rng.random(n), side="right")
            shown = _rank(scores, collection.offsets, query, chance, top, rng)
            batch = _lists(collection, query, shown).pad(rows=block)
            check(model, batch, source="collection")
            key = jax.random.fold_in(jax.random.key(seed), start)
            clicked, log_prob = sample(state, batch, key)
            total += float(np.asarray(log_prob, np.float64)[:n].sum())
            writer.write(_table(start, collection, query, shown, np.asarray(clicked)[:n]))
            if progress is not None:
                progress(n)
        writer.truth = truth | {"log_likelihood": total / sessions}
        writer.report = {"sessions": sessions}
    return ClickLog.open(out)


def _sample(graphdef: Any, state: Any, batch: Sessions, key: Any) -> tuple[jax.Array, jax.Array]:
    distribution = nnx.merge(graphdef, state)(batch)
    clicked = distribution.sample(key)
    return clicked, distribution.log_prob(clicked)


def _rank(
    scores: np.ndarray, offsets: np.ndarray, query: np.ndarray, chance: float, top: int, rng: np.random.Generator
) -> np.ndarray:
    """[n, top] rows of the collection in displayed order, -1 beyond the end of a list."""
    start, size = offsets[query], (offsets[1:] - offsets[:-1])[query]
    width = int(size.max())
    column = np.arange(width)
    inside = column < size[:, None]
    row = np.where(inside, start[:, None] + column, 0)
    # Least first. -log of an exponential variable is Gumbel: adding it to score / chance samples Plackett-Luce.
    # Equal scores are broken at random by a second, much smaller draw, never by the order of the file.
    if chance > 0:
        cost = np.log(rng.standard_exponential(row.shape)) - scores[row] / chance
    else:
        tie = rng.random(len(scores))
        order = np.empty(len(scores))
        order[np.lexsort((tie, -scores))] = np.arange(len(scores))
        cost = order[row]
    cost = np.where(inside, cost, np.inf)
    keep = min(top, width)
    first = np.argpartition(cost, keep - 1, axis=1)[:, :keep] if keep < width else np.broadcast_to(column, row.shape)
    first = np.take_along_axis(first, np.argsort(np.take_along_axis(cost, first, 1), axis=1, kind="stable"), 1)
    shown = np.where(np.arange(keep) < size[:, None], np.take_along_axis(row, first, 1), -1)
    return np.pad(shown, ((0, 0), (0, top - keep)), constant_values=-1)


def _lists(collection: Collection, query: np.ndarray, shown: np.ndarray) -> Sessions:
    mask = shown >= 0
    row = np.where(mask, shown, 0)
    features: dict[str, Any] = {"document": np.where(mask, collection.document[row], 0).astype(np.int32)}
    if collection.features is not None:
        features["features"] = np.where(mask[:, :, None], collection.features[row], 0).astype(np.float32)
    return Sessions(
        mask=mask,
        position=np.broadcast_to(np.arange(shown.shape[1], dtype=np.int32), shown.shape),
        features=features,
        labels=np.where(mask, collection.labels[row], 0).astype(np.float32),
        query=collection.query[query].astype(np.int32),
    )


def _table(start: int, collection: Collection, query: np.ndarray, shown: np.ndarray, clicked: np.ndarray) -> pa.Table:
    mask = shown >= 0
    size = mask.sum(1)
    offsets = pa.array(np.concatenate([[0], np.cumsum(size)]), pa.int32())
    rank = np.broadcast_to(np.arange(1, shown.shape[1] + 1, dtype=np.int32), shown.shape)

    def lists(values: np.ndarray, kind: pa.DataType) -> pa.ListArray:
        return pa.ListArray.from_arrays(offsets, pa.array(values[mask], kind))

    return pa.table(
        {
            "session": pa.array(np.arange(start, start + len(query)), pa.int64()),
            "query": pa.array(collection.query[query], pa.int32()),
            "documents": lists(collection.document[np.where(mask, shown, 0)], pa.int32()),
            "ranks": lists(rank, pa.int32()),
            "clicks": lists(clicked, pa.int8()),
        }
    )


def collection(*, queries: int, documents: int = 20, features: int = 16, noise: float = 0.3, seed: int) -> Collection:
    """A synthetic collection: graded lists whose grades are a smooth, not linear, function of the features.

    A document's quality is a random two-layer function of its features plus normal noise. The best twentieth of all
    documents gets grade 4, then come shares of .1, .15 and .2 for the grades 3, 2 and 1; the rest is 0.

    Args:
      queries, documents: number of queries, and of documents per query.
      features: number of features F.
      noise: standard deviation of what the features do not tell, in standard deviations of what they tell.
      seed: decides everything.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(queries * documents, features)).astype(np.float32)
    hidden = np.tanh(x @ rng.normal(size=(features, 24)) / np.sqrt(features) * 2)
    quality = hidden @ rng.normal(size=24)
    quality = quality / quality.std() + noise * rng.normal(size=quality.shape)
    grade = np.searchsorted(np.quantile(quality, [0.5, 0.7, 0.85, 0.95]), quality)
    return Collection.from_arrays(query=np.repeat(np.arange(queries), documents), label=grade, features=x)
