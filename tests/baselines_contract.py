"""One row per baseline: how it is built and what it promises; `test_baselines_contract.py` runs all of them.

A new baseline gets a row here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from ultr import baselines, towers
from ultr.models import AdditivePBM
from ultr.sessions import Sessions

V, K, B = 8, 4, 5
PROPENSITY = [0.9, 0.6, 0.4, 0.3]
ALPHA, BETA = [0.5, 0.4, 0.3, 0.25], [0.3, 0.2, 0.1, 0.05]
QUERY = np.array([-1, 0, 0, 0, 0, 1, 1, 1, 1])  # of each document id
LISTS = [[1, 2, 3, 4], [2, 1, 4], [5, 6, 7], [8, 7], [6]]
CLICKS = [[1, 0, 1, 0], [0, 1, 0], [0, 0, 1], [1, 1], [0]]


def batch() -> Sessions:
    """B lists of 1 to K documents with clicks and grades."""
    return Sessions.from_lists(
        features={"document": LISTS},
        clicks=CLICKS,
        labels=[[float(d % 3) for d in row] for row in LISTS],
        query=[int(QUERY[row[0]]) for row in LISTS],
    )


@cache
def displays() -> baselines.Displays:
    """Of the batch."""
    return baselines.Displays.of(batch())


@cache
def regression() -> Any:
    """Estimates that differ between documents."""
    tower = towers.DocumentTable(V, initial=-0.3)
    tower.table[...] = jnp.linspace(-1.0, 1.0, V + 1)
    return tower


def by_rank() -> Any:
    """Examination that falls with the rank."""
    return towers.RankTable(K, initial=[0.8, 0.3, -0.4, -1.1])


def policy() -> Any:
    """A logging policy of the documents, as it starts."""
    return baselines.LoggingPolicy(0, documents=V, width=2, hidden=3, rngs=nnx.Rngs(0))


def guarded_by_document(tower: Any) -> Any:
    """A guarded ranker that corrects documents 1 to 5 only."""
    found = baselines.GuardedRanker(
        ranker=baselines.NaiveListwise(relevance=tower), logger=regression(), correction=0.6, documents=V
    )
    found.known[...] = jnp.arange(V + 1) <= 5
    return found


class Row(NamedTuple):
    """What a baseline promises.

    Attributes:
      build: relevance tower (a function of sessions or a module) -> baseline, whose other parts do for the batch above.
      statistics: as the class says.
      reads: "clicks", "labels" or "" (neither): without it the loss is an error.
      clickless: the loss of a list without clicks; None: not a constant.
      ranks: whether ranks beyond K are an error.
      together: whether the loss of a list depends on the others of the batch.
    """

    build: Callable[[Any], Any]
    statistics: str = "list"
    reads: str = "clicks"
    clickless: float | None = None
    ranks: bool = False
    together: bool = False


def _weighted(kind: Any, *, statistics: str = "list", clickless: float | None = 0.0, **options: Any) -> Row:
    return Row(lambda t: kind(relevance=t, propensity=PROPENSITY, **options), statistics, clickless=clickless,
               ranks=True, together="self_normalised" in options)  # fmt: skip


def _robust(**options: Any) -> Callable[[Any], Any]:
    return lambda t: baselines.DoublyRobust(relevance=t, regression=regression(), alpha=ALPHA, beta=BETA, **options)


def _exposure(objective: str, **options: Any) -> Row:
    def build(tower: Any) -> Any:
        given = options | ({"regression": regression()} if "regression" in options else {})
        return baselines.PolicyGradient(relevance=tower, objective=objective, sessions=500, **given)

    return Row(build, "query", ranks=True)


BASELINES: dict[str, Row] = {
    "naive pointwise": Row(lambda t: baselines.NaivePointwise(relevance=t), "rank"),
    "naive listwise": Row(lambda t: baselines.NaiveListwise(relevance=t), clickless=0.0),
    "naive lambdarank": Row(lambda t: baselines.NaiveLambdaRank(relevance=t), clickless=0.0),
    "full information": Row(lambda t: baselines.FullInformation(relevance=t), reads="labels"),
    "ips pointwise": _weighted(baselines.IPS, form="pointwise", statistics="rank", clickless=None),
    "ips listwise": _weighted(baselines.IPS),
    "ips listwise, clipped": _weighted(baselines.IPS, clip=2.0),
    "ips listwise, self-normalised": _weighted(baselines.IPS, self_normalised=True),
    "ips pairwise": _weighted(baselines.IPS, form="pairwise"),
    "ips pairwise, rank": _weighted(baselines.IPS, form="pairwise", metric="rank"),
    "affine listwise": Row(lambda t: baselines.AffineIPS(relevance=t, alpha=ALPHA, beta=BETA), ranks=True),
    "affine pointwise": Row(
        lambda t: baselines.AffineIPS(relevance=t, alpha=ALPHA, beta=BETA, form="pointwise", clip=3.0),
        "rank",
        ranks=True,
    ),
    "policy-aware": Row(
        lambda t: baselines.PolicyAware(relevance=t, displays=displays(), propensity=PROPENSITY), clickless=0.0
    ),
    "policy-aware pointwise": Row(
        lambda t: baselines.PolicyAware(
            relevance=t, displays=displays(), propensity=PROPENSITY, form="pointwise", clip=4.0
        ),
        "rank",
    ),
    "intervention-aware": Row(
        lambda t: baselines.InterventionAware(relevance=t, displays=displays(), alpha=ALPHA, beta=BETA)
    ),
    "intervention-aware pointwise": Row(
        lambda t: baselines.InterventionAware(
            relevance=t, displays=displays(), alpha=ALPHA, beta=BETA, form="pointwise"
        ),
        "rank",
    ),
    "direct method": Row(lambda t: baselines.DirectMethod(relevance=t, regression=regression()), reads=""),
    "direct method pointwise": Row(
        lambda t: baselines.DirectMethod(relevance=t, regression=regression(), form="pointwise"), "rank", reads=""
    ),
    "doubly robust": Row(_robust(), ranks=True),
    "doubly robust pointwise": Row(_robust(form="pointwise", clip=3.0), "rank", ranks=True),
    "doubly robust by displays": Row(_robust(displays=displays(), form="pointwise"), "rank", ranks=True),
    "exposure crm": _exposure("exposure-crm", alpha=PROPENSITY),
    "safe doubly robust": _exposure("safe-doubly-robust", alpha=ALPHA, beta=BETA, regression=True, metric="dcg"),
    "prpo": _exposure("prpo", alpha=ALPHA, beta=BETA, regression=True),
    "logged order": Row(lambda t: baselines.LoggedOrder(relevance=t), reads=""),
    "dla": Row(lambda t: baselines.DLA(relevance=t, examination=by_rank()), clickless=0.0),
    "dla, no limit": Row(lambda t: baselines.DLA(relevance=t, examination=by_rank(), clip=None), clickless=0.0),
    "regression-em": Row(lambda t: baselines.RegressionEM(relevance=t, examination=by_rank()), "rank"),
    "pair debiasing": Row(lambda t: baselines.PairDebias(relevance=t, ranks=K), clickless=0.0, ranks=True),
    # A list whose documents were all clicked has no pairs: no rank of it is looked up.
    "prs": _weighted(baselines.PRS)._replace(ranks=False),
    "prs, clipped": _weighted(baselines.PRS, metric="rank", clip=1.5)._replace(ranks=False),
    "additive listwise": Row(lambda t: baselines.AdditiveListwise(relevance=t, examination=by_rank()), clickless=0.0),
    "conditional additive": Row(
        lambda t: baselines.ConditionalAdditive(relevance=t, examination=by_rank()), clickless=0.0
    ),
    "conditional pbm": Row(lambda t: baselines.ConditionalPBM(relevance=t, examination=by_rank()), clickless=0.0),
    "adversarial": Row(lambda t: baselines.AdversarialTwoTower(relevance=t, examination=by_rank()), "rank"),
    "weighted by position": Row(
        lambda t: baselines.PositionWeighted(
            AdditivePBM(relevance=t, examination=by_rank()), displays=displays(), clip=2.0
        ),
        "rank",
    ),
    "guarded": Row(
        lambda t: baselines.GuardedRanker(
            ranker=baselines.NaiveListwise(relevance=t), logger=regression(), correction=0.6, ranker_spread=0.7
        ),
        clickless=0.0,
    ),
    "guarded, by document": Row(guarded_by_document, clickless=0.0),
    "upe": Row(lambda t: baselines.UPE(relevance=t, policy=policy(), ranks=K), clickless=0.0, ranks=True),
}
