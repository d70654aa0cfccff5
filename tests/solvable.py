"""Click models with tables that `solve` can train, small data, and the objective as the enumeration gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx

from ultr import models, towers
from ultr.sessions import Sessions

V, RANKS, WIDTH = 6, 6, 4  # documents (7 and 8 are never shown), ranks of the tables, longest list
NOISE = 1e-6  # of an objective per session in float32


def table() -> towers.DocumentTable:
    return towers.DocumentTable(V + 2)


def rank() -> towers.RankTable:
    return towers.RankTable(RANKS)


def constant() -> towers.Constant:
    return towers.Constant()


MODELS: dict[str, Callable[[], models.LatentVariableModel]] = {
    "GCTR": lambda: models.GCTR(constant()),
    "RCTR": lambda: models.RCTR(rank()),
    "DCTR": lambda: models.DCTR(table()),
    "RDCTR": lambda: models.RDCTR(towers.RankDocumentTable(V + 2, ranks=RANKS)),
    "PBM": lambda: models.PBM(relevance=table(), examination=rank()),
    "UBM": lambda: models.UBM(relevance=table(), examination=towers.LastClickTable(RANKS)),
    "CascadeModel": lambda: models.CascadeModel(relevance=table()),
    "DCM": lambda: models.DCM(relevance=table(), continuation=rank()),
    "SDBN": lambda: models.SDBN(relevance=table(), satisfaction=table()),
    "DBN": lambda: models.DBN(relevance=table(), satisfaction=table(), continuation=constant()),
    "CCM": lambda: models.CCM(
        relevance=table(), after_skip=constant(), after_irrelevant_click=rank(), after_relevant_click=constant()
    ),
}
STORIES: dict[str, reference.Story] = {
    "PBM": reference.pbm,
    "UBM": reference.ubm,
    "CascadeModel": reference.cascade,
    "DCM": reference.dcm,
    "SDBN": reference.sdbn,
    "DBN": reference.dbn,
    "CCM": reference.ccm,
}
HIDDEN = ("PBM", "UBM", "DCM", "SDBN", "DBN", "CCM")
EXACT = ("GCTR", "RCTR", "DCTR", "RDCTR", "CascadeModel")

every_model = pytest.mark.parametrize("name", MODELS)
every_hidden = pytest.mark.parametrize("name", HIDDEN)


def story_of(name: str) -> tuple[reference.Story, tuple[str, ...]]:
    """Returns the story of a model and the names of its latent variables, in the order of its slots."""
    if name not in STORIES:
        return reference.independent, ("click",)
    return STORIES[name], MODELS[name]().slots


@cache
def data(count: int = 300, *, clicks: float = 0.3, seed: int = 0, once: bool = False) -> Sessions:
    """Makes lists of 1 to 4 of 6 documents at 6 ranks with gaps, and weights; with `once` at most one click in each."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, WIDTH + 1, count)
    relevance = np.linspace(0.5, 2, V) * clicks
    lists: dict[str, list[Any]] = {"documents": [], "positions": [], "clicks": []}
    for size in sizes:
        documents = rng.permutation(V)[:size]
        clicked = (rng.random(size) < relevance[documents]).astype(int)
        if once and clicked.any():
            clicked[clicked.argmax() + 1 :] = 0
        lists["documents"].append(documents + 1)
        lists["positions"].append(np.sort(rng.permutation(RANKS)[:size]))
        lists["clicks"].append(clicked)
    weight = rng.integers(1, 5, count) / 2
    return Sessions.from_lists(
        features={"document": lists["documents"]},
        positions=lists["positions"],
        clicks=lists["clicks"],
        weight=weight,
    )


def rows_of(sessions: Sessions) -> Iterator[tuple[float, list[tuple[int, int, int]]]]:
    """Yields (weight, [(document, rank, click), ...]) for each list."""
    document, position, clicks = sessions.features["document"], sessions.position, sessions.clicks
    for i, size in enumerate(np.asarray(sessions.mask).sum(1)):
        weight = 1.0 if sessions.weight is None else float(sessions.weight[i])
        columns = (np.asarray(x)[i, :size].tolist() for x in (document, position + 1, clicks))
        yield weight, list(zip(*columns, strict=True))


def probability(logits: Any) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))


def logits_of(model: Any) -> dict[str, np.ndarray]:
    """Returns slot -> the logits of its table's entries, in the table's shape."""
    found = {}
    for slot in model.slots:
        tower = getattr(model, slot)
        if isinstance(tower, towers.Constant):
            found[slot] = np.asarray(tower.value[...], np.float64)
        else:
            found[slot] = np.asarray(tower.table[...], np.float64)
            if hasattr(tower, "common"):
                found[slot] = found[slot] + np.asarray(tower.common[...], np.float64)
    return found


def assert_same_model(found: Any, wanted: Any, atol: float = 1e-5) -> None:
    for slot, x in logits_of(wanted).items():
        np.testing.assert_allclose(logits_of(found)[slot], x, atol=atol, err_msg=slot)


def latent_logits(name: str, width: int, lists: int) -> dict[str, np.ndarray]:
    """Draws logits: latent variable -> [K, lists], for the examination of UBM [K, K + 1, lists]."""
    _, latents = story_of(name)
    rng = np.random.default_rng([len(name), width])
    tails = {c: (width + 1,) if (name, c) == ("UBM", "examination") else () for c in latents}
    return {c: rng.uniform(-4, 4, (width, *tails[c], lists)) for c in latents}


def given_last(x: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Picks what belongs to the last click of each row: [..., rows, K, K + 1, lists] -> [..., rows, K, lists]."""
    rows, width = vectors.shape
    last = [[max([0, *(j + 1 for j in range(k) if row[j])]) for k in range(width)] for row in vectors]
    return x[..., np.arange(rows)[:, None], np.arange(width)[None, :], np.array(last), :]


@cache
def averages(name: str, sessions: Callable[[], Sessions] = data) -> dict[str, float]:
    """Computes slot -> the average of its latent variable in the first pass from logits of 0, by enumeration."""
    story, latents = story_of(name)
    by_width = {}
    for width in range(1, WIDTH + 1):
        zeros = {c: np.zeros_like(x[..., :1]) for c, x in latent_logits(name, width, 1).items()}
        found = reference.expected_flips(story, **zeros)
        by_width[width] = {c: x.reshape(*x.shape[:2], -1).sum(2) for c, x in found.items()}  # [2, rows]
    sums = {c: np.zeros(2) for c in latents}
    for weight, row in rows_of(sessions()):
        number = int("".join(str(click) for _, _, click in row), 2)
        for c in latents:
            sums[c] += weight * by_width[len(row)][c][:, number]
    return {slot: float(sums[c][0] / sums[c].sum()) for slot, c in zip(MODELS[name]().slots, latents, strict=True)}


@cache
def penalised_of(name: str, sessions: Callable[[], Sessions], prior: float) -> Callable[[Any], Any]:
    """Makes the function from the state of a model to the objective per session and its gradient."""
    lists, average = sessions(), averages(name)
    weight = np.asarray(lists.weight, np.float64)
    graphdef = nnx.graphdef(MODELS[name]())

    def objective(state: Any) -> Any:
        model = nnx.merge(graphdef, state)
        total = -jnp.sum(model.loss(lists) * weight)
        for slot, mean in average.items():
            tower = getattr(model, slot)
            x = (tower.value if isinstance(tower, towers.Constant) else tower.table)[...]
            if hasattr(tower, "common"):
                common = tower.common[...]
                x = common.reshape((1,) * (x.ndim - common.ndim) + common.shape) + x.at[0].set(0.0)
            total += prior * jnp.sum(mean * jax.nn.log_sigmoid(x) + (1 - mean) * jax.nn.log_sigmoid(-x))
        return total / weight.sum()

    return jax.jit(jax.value_and_grad(objective))


def penalised(
    name: str, model: Any, prior: float = 2.0, sessions: Callable[[], Sessions] = data
) -> tuple[float, np.ndarray]:
    """Computes the objective per session and its gradient, in float64, from the model's own loss."""
    with jax.enable_x64(True):
        state = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), nnx.state(model))
        value, slope = penalised_of(name, sessions, prior)(state)
        return float(value), np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(slope)])


def mean_loss(model: Any, sessions: Sessions) -> float:
    """Computes the mean loss over the sessions that the model can produce."""
    loss = np.asarray(jax.jit(lambda m, s: m.loss(s))(model, sessions), np.float64)
    weight = np.asarray(sessions.weight) * np.isfinite(loss)
    return float(np.where(np.isfinite(loss), loss, 0.0) @ weight / weight.sum())


def column(history: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([epoch[name] for epoch in history])
