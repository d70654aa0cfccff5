"""`solve`: expectations against the enumeration, optima against an independent slope, counts against a dictionary."""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import scipy.optimize
import scipy.stats
from flax import nnx
from stored import PER_QUERY, QUERIES, make_rows, plain, write_log

from ultr import models, towers
from ultr.data import ClickLog, InMemory, as_dataset, collapse
from ultr.errors import ConfigError, DataError, UltrError
from ultr.models import LatentVariable
from ultr.sessions import Sessions, concatenate
from ultr.towers.lookup import lookup_small
from ultr.training import SolverMemory, load, save, solve
from ultr.training.inputs import batch_weight, count_rows
from ultr.training.objective import FITTED_ENTRIES, fit_beta

SOLVE = sys.modules[solve.__module__]
V, RANKS, WIDTH = 6, 6, 4  # documents (7 and 8 are never shown), ranks of the tables, longest list
NOISE = 1e-6  # of an objective per session in float32


pytestmark = pytest.mark.usefixtures("quickly_compiled")


# --- Models and data --------------------------------------------------------------------------------------


def table() -> towers.DocumentTable:
    return towers.DocumentTable(V + 2)


def rank() -> towers.RankTable:
    return towers.RankTable(RANKS)


def coin() -> towers.Constant:
    return towers.Constant()


MODELS: dict[str, Callable[[], models.LatentVariableModel]] = {
    "GCTR": lambda: models.GCTR(coin()),
    "RCTR": lambda: models.RCTR(rank()),
    "DCTR": lambda: models.DCTR(table()),
    "RDCTR": lambda: models.RDCTR(towers.RankDocumentTable(V + 2, ranks=RANKS)),
    "PBM": lambda: models.PBM(relevance=table(), examination=rank()),
    "UBM": lambda: models.UBM(relevance=table(), examination=towers.LastClickTable(RANKS)),
    "CascadeModel": lambda: models.CascadeModel(relevance=table()),
    "DCM": lambda: models.DCM(relevance=table(), continuation=rank()),
    "SDBN": lambda: models.SDBN(relevance=table(), satisfaction=table()),
    "DBN": lambda: models.DBN(relevance=table(), satisfaction=table(), continuation=coin()),
    "CCM": lambda: models.CCM(
        relevance=table(), after_skip=coin(), after_irrelevant_click=rank(), after_relevant_click=coin()
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
    """The story of a model and the names of its coins, in the order of its slots."""
    if name not in STORIES:
        return reference.independent, ("click",)
    return STORIES[name], MODELS[name]().slots


@cache
def data(count: int = 300, *, clicks: float = 0.3, seed: int = 0, once: bool = False) -> Sessions:
    """Lists of 1 to 4 of 6 documents at 6 ranks with gaps, and weights; with `once` at most one click in each."""
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
    """(weight, [(document, rank, click), ...]) of each list."""
    document, position, clicks = sessions.features["document"], sessions.position, sessions.clicks
    for i, size in enumerate(np.asarray(sessions.mask).sum(1)):
        weight = 1.0 if sessions.weight is None else float(sessions.weight[i])
        columns = (np.asarray(x)[i, :size].tolist() for x in (document, position + 1, clicks))
        yield weight, list(zip(*columns, strict=True))


def probability(logits: Any) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))


def logits_of(model: Any) -> dict[str, np.ndarray]:
    """Slot -> the logits of its table's cells, in the table's shape."""
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


# --- What EM expects --------------------------------------------------------------------------------------


def coin_logits(name: str, width: int, lists: int) -> dict[str, np.ndarray]:
    """Coin -> [K, lists]; of UBM's examination [K, K + 1, lists]."""
    _, coins = story_of(name)
    rng = np.random.default_rng([len(name), width])
    tails = {c: (width + 1,) if (name, c) == ("UBM", "examination") else () for c in coins}
    return {c: rng.uniform(-4, 4, (width, *tails[c], lists)) for c in coins}


def given_last(x: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """[..., rows, K, K + 1, lists] -> [..., rows, K, lists]: what belongs to the last click of each row."""
    rows, width = vectors.shape
    last = [[max([0, *(j + 1 for j in range(k) if row[j])]) for k in range(width)] for row in vectors]
    return x[..., np.arange(rows)[:, None], np.arange(width)[None, :], np.array(last), :]


@every_model
def test_slopes_are_the_expected_outcomes(name: str) -> None:
    """On lists of 1 to 4 documents with all click vectors, ranks first, as `solve` looks at them."""
    story, coins = story_of(name)
    lists = 3
    parts: dict[str, list[np.ndarray]] = defaultdict(list)

    def add(field: str, x: np.ndarray) -> None:  # [rows, K, lists] -> [lists * rows, 4]
        flat = np.moveaxis(x, -1, 0).reshape(-1, x.shape[1])
        parts[field].append(np.pad(flat, ((0, 0), (0, WIDTH - flat.shape[1])), constant_values=-7.0))

    for width in range(1, WIDTH + 1):
        logits, vectors = coin_logits(name, width, lists), reference.click_vectors(width)
        expected = reference.expected_flips(story, **logits)
        size = (len(vectors), width, lists)
        add("clicks", np.broadcast_to(vectors[:, :, None], size))
        add("size", np.full(size, float(width)))
        log_table = reference.log_table(story, **logits)
        add("log_prob", np.broadcast_to(log_table[:, None, :], size))
        for c in coins:
            x, outcomes = np.broadcast_to(logits[c], (len(vectors), *logits[c].shape)), expected[c]
            if x.ndim == 4:
                assert np.nansum(outcomes) == pytest.approx(np.nansum(given_last(outcomes, vectors)))
                x, outcomes = given_last(x, vectors), given_last(outcomes, vectors)
            add(c, x)
            add(f"{c} yes", outcomes[0])
            add(f"{c} no", outcomes[1])
    batch = {field: np.concatenate(x) for field, x in parts.items()}
    rows = len(batch["size"])
    sessions = Sessions(
        mask=np.arange(WIDTH) < batch["size"][:, :1],
        position=np.tile(np.arange(WIDTH, dtype=np.int32), (rows, 1)),
        clicks=(batch["clicks"] == 1).astype(np.int8),
        features={c: batch[c] for c in coins},
    )
    model = MODELS[name]()

    @jax.jit
    def slopes(sessions: Sessions) -> Any:
        lists = sessions.rank_first()

        def total(given: list[LatentVariable]) -> Any:
            log_prob = type(model).from_latents(lists, given).log_prob(lists.clicks)  # type: ignore[arg-type]
            return jnp.sum(jnp.where(log_prob > -jnp.inf, log_prob, 0.0)), log_prob

        features = (lists.features[c] for c in coins)
        given = [LatentVariable(jax.nn.log_sigmoid(x), jax.nn.log_sigmoid(-x)) for x in features]
        outcomes, log_prob = jax.grad(total, has_aux=True)(given)
        feature = {slot: partial(lambda s, c: s.features[c], c=c) for slot, c in zip(model.slots, coins, strict=True)}
        return jax.tree.map(jnp.transpose, outcomes), log_prob, type(model)(**feature).log_prob(sessions)

    with jax.enable_x64(True):
        outcomes, log_prob, direct = jax.tree.map(np.asarray, slopes(sessions))
    assert log_prob.dtype == np.float64
    np.testing.assert_allclose(log_prob, batch["log_prob"][:, 0], rtol=1e-12)
    np.testing.assert_allclose(direct, log_prob, rtol=1e-12)
    possible = np.isfinite(log_prob)
    assert possible.all() == (name != "CascadeModel")
    inside = np.asarray(sessions.mask)
    for c, found in zip(coins, outcomes, strict=True):
        for side, x in zip(("yes", "no"), found, strict=True):
            wanted = np.where(inside & possible[:, None], batch[f"{c} {side}"], 0.0)
            np.testing.assert_allclose(x, wanted, rtol=1e-11, atol=1e-12, err_msg=f"{c} {side}")


# --- The maximum ------------------------------------------------------------------------------------------


@cache
def averages(name: str, sessions: Callable[[], Sessions] = data) -> dict[str, float]:
    """Slot -> the average of its coins in the first pass from logits of 0, from the enumeration."""
    story, coins = story_of(name)
    by_width = {}
    for width in range(1, WIDTH + 1):
        zeros = {c: np.zeros_like(x[..., :1]) for c, x in coin_logits(name, width, 1).items()}
        found = reference.expected_flips(story, **zeros)
        by_width[width] = {c: x.reshape(*x.shape[:2], -1).sum(2) for c, x in found.items()}  # [2, rows]
    sums = {c: np.zeros(2) for c in coins}
    for weight, row in rows_of(sessions()):
        number = int("".join(str(click) for _, _, click in row), 2)
        for c in coins:
            sums[c] += weight * by_width[len(row)][c][:, number]
    return {slot: float(sums[c][0] / sums[c].sum()) for slot, c in zip(MODELS[name]().slots, coins, strict=True)}


@cache
def penalised_of(name: str, sessions: Callable[[], Sessions], prior: float) -> Callable[[Any], Any]:
    """State of a model -> the objective per session and its slope by all parameters."""
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
    """The objective per session and its slope by all parameters, in float64, from the model's own loss."""
    with jax.enable_x64(True):
        state = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), nnx.state(model))
        value, slope = penalised_of(name, sessions, prior)(state)
        return float(value), np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(slope)])


def mean_loss(model: Any, sessions: Sessions) -> float:
    """Per session that the model can produce."""
    loss = np.asarray(jax.jit(lambda m, s: m.loss(s))(model, sessions), np.float64)
    weight = np.asarray(sessions.weight) * np.isfinite(loss)
    return float(np.where(np.isfinite(loss), loss, 0.0) @ weight / weight.sum())


def column(history: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([epoch[name] for epoch in history])


@every_hidden
def test_em_and_lbfgs_end_at_the_maximum(name: str) -> None:
    sessions = data()
    em = solve(MODELS[name](), sessions, iterations=200, tolerance=0.0)
    quasi = solve(MODELS[name](), sessions, method="lbfgs", iterations=100, tolerance=0.0)
    rises = np.diff(column(em.history, "objective"))
    assert rises.min() > -NOISE
    assert rises[0] > 0.01
    value, start = penalised(name, MODELS[name]())
    for found in (em, quasi):
        assert found.history[0]["objective"] == pytest.approx(value, abs=NOISE)
    best, slope = penalised(name, quasi.model)
    assert np.linalg.norm(slope) < 2e-3 * np.linalg.norm(start)
    objective = column(quasi.history, "objective")
    assert quasi.best == 4 + int(objective[3:].argmax())
    assert best == pytest.approx(objective.max(), abs=NOISE)
    reached, slope = penalised(name, em.model)
    assert np.linalg.norm(slope) < 0.01 * np.linalg.norm(start)
    assert abs(reached - best) < 1e-5
    passes = [int(np.argmax(column(x.history, "objective") > best - 1e-5)) for x in (quasi, em)]
    assert 0 < passes[0] <= passes[1]


def test_lbfgs_keeps_the_highest_point() -> None:
    for iterations in (5, 7):
        fitted = solve(MODELS["UBM"](), data(), method="lbfgs", iterations=iterations, tolerance=0.0)
        objective = column(fitted.history, "objective")
        assert len(objective) == iterations
        assert fitted.best == 4 + int(objective[3:].argmax())
        assert penalised("UBM", fitted.model)[0] == pytest.approx(objective.max(), abs=NOISE)


@pytest.mark.parametrize("method", ["em", "lbfgs"])
def test_sizes_of_blocks_and_memory_change_nothing(method: Any) -> None:
    class Streamed(InMemory):
        passes = 0

        def batches(self, batch_size: int, *, seed: int | None = None, **options: Any) -> Iterator[Sessions]:
            self.passes += 1
            return super().batches(batch_size, seed=seed)

    options: dict[str, Any] = {"method": method, "iterations": 6, "tolerance": 0.0}
    source = Streamed(data())
    whole = solve(MODELS["DBN"](), source, **options)
    assert source.passes == 1
    source = Streamed(data())
    memory = SolverMemory(batch_rows=16, block_sessions=64, device_bytes=4000, float64_entries=0)
    parts = solve(MODELS["DBN"](), source, memory=memory, **options)
    assert source.passes == len(parts.history) == 6
    for field in ("loss", "objective", "sessions"):
        np.testing.assert_allclose(column(parts.history, field), column(whole.history, field), atol=2e-6)
    assert_same_model(parts.model, whole.model, atol=1e-4)


# --- Counting ---------------------------------------------------------------------------------------------


def counted(name: str, sessions: Sessions) -> dict[str, dict[Any, list[float]]]:
    """Slot -> cell -> [yes, no], as a dictionary counts them."""
    cells: dict[str, Any] = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))

    def count(slot: str, cell: Any, yes: bool, weight: float) -> None:
        cells[slot][cell][0 if yes else 1] += weight

    for weight, row in rows_of(sessions):
        clicked = [i for i, (_, _, click) in enumerate(row) if click]
        last = clicked[-1] if clicked else len(row) - 1
        if name == "CascadeModel" and len(clicked) > 1:
            continue
        for i, (document, rank, click) in enumerate(row):
            cell = {"GCTR": 0, "RCTR": rank, "DCTR": document, "RDCTR": (document, rank)}.get(name)
            if cell is not None:
                count("tower", cell, bool(click), weight)
            elif i <= last:  # examined
                count("relevance", document, bool(click), weight)
                if click and name == "SDBN":
                    count("satisfaction", document, i == last, weight)
                if click and name == "DCM":
                    count("continuation", rank, i < last, weight)
    return cells


def assert_counted(model: Any, cells: Mapping[str, Any], prior: float) -> None:
    """Each probability is (yes + prior mean) / (yes + no + prior), also in cells without data."""
    assert set(cells) == set(model.slots)
    for slot, found in logits_of(model).items():
        sums = np.sum(list(cells[slot].values()), axis=0)
        mean = sums[0] / sums.sum()
        ranks = isinstance(getattr(model, slot), towers.RankTable)
        for place in np.ndindex(found.shape):
            cell: Any = place[0] + ranks if len(place) == 1 else (place[0], place[1] + 1) if place else 0
            yes, no = cells[slot].get(cell, (0.0, 0.0))
            wanted = (yes + prior * mean) / (yes + no + prior)
            assert probability(found[place]) == pytest.approx(wanted, rel=2e-6), (slot, cell)


@pytest.mark.parametrize("prior", [0.25, 20.0])
@pytest.mark.parametrize("name", [*EXACT, "SDBN", "DCM"])
def test_counting_is_what_a_dictionary_counts(name: str, prior: float) -> None:
    sessions = data()
    fitted = solve(MODELS[name](), sessions, method="counting", prior=prior)
    assert_counted(fitted.model, counted(name, sessions), prior)
    (epoch,) = fitted.history
    impossible = sum(w for w, row in rows_of(sessions) if sum(click for *_, click in row) > 1)
    assert epoch["impossible"] == (impossible if name == "CascadeModel" else 0)
    assert epoch["sessions"] == np.asarray(sessions.weight).sum() - epoch["impossible"]


def test_lists_without_a_click_are_examined_whole() -> None:
    sessions = Sessions.from_lists(features={"document": [[1, 2, 3], [3, 1]]}, clicks=[[0, 0, 0], [0, 1]])
    fitted = solve(MODELS["SDBN"](), sessions, method="counting", prior=1.0).model
    relevance = probability(logits_of(fitted)["relevance"])
    mean = 1 / 5  # one click on five documents
    wanted = [(1 + mean) / 3, mean / 2, mean / 3]
    np.testing.assert_allclose(relevance[1:4], wanted, rtol=1e-6)


def test_nothing_seen_of_a_table() -> None:
    """Without clicks nothing is known about satisfaction."""
    sessions = Sessions.from_lists(features={"document": [[1, 2], [3]]}, clicks=[[0, 0], [0]])
    fitted = solve(MODELS["SDBN"](), sessions, method="counting").model
    np.testing.assert_allclose(logits_of(fitted)["satisfaction"], 0.0, atol=1e-6)
    assert (logits_of(fitted)["relevance"] < -5).all()


@pytest.mark.parametrize("name", EXACT)
def test_without_hidden_choices_em_is_counting(name: str) -> None:
    counting = solve(MODELS[name](), data(), method="counting")
    em = solve(MODELS[name](), data(), method="em")
    assert len(em.history) == 3  # the start, the maximum, and to see that it is
    assert_same_model(em.model, counting.model)
    assert (em.best, counting.best) == (3, 1)


@pytest.mark.parametrize("name", ["PBM", "UBM", "DBN", "CCM"])
def test_models_that_cannot_be_counted(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} has no counting estimator"):
        solve(MODELS[name](), data(), method="counting")


# --- Logs, counts, distinct lists -------------------------------------------------------------------------

DOCUMENTS, LOG_RANKS = len(QUERIES) * PER_QUERY, 15
STORED: dict[str, Callable[[], models.LatentVariableModel]] = {
    "PBM": lambda: models.PBM(relevance=towers.DocumentTable(DOCUMENTS), examination=towers.RankTable(LOG_RANKS)),
    "UBM": lambda: models.UBM(relevance=towers.DocumentTable(DOCUMENTS), examination=towers.LastClickTable(LOG_RANKS)),
    "DBN": lambda: models.DBN(
        relevance=towers.DocumentTable(DOCUMENTS),
        satisfaction=towers.DocumentTable(DOCUMENTS),
        continuation=towers.Constant(),
    ),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same weighted sessions on lists with gaps in their ranks, in all forms."""
    folder = tmp_path_factory.mktemp("solve")
    rng = np.random.default_rng(0)
    lists = [row for row in plain(make_rows(30)) if 4 < len(row["ranks"]) <= 8]  # streamed with one width
    rows = []
    for i in range(400):
        row = lists[int(rng.integers(len(lists)))]
        clicks = (rng.random(len(row["clicks"])) < 0.2).astype(int).tolist()
        rows.append(row | {"session": str(i), "clicks": clicks, "weight": float(1 + i % 3) / 2})
    log = write_log(folder / "log", rows)
    return {
        "memory": concatenate(list(log.batches(64))),
        "log": log,
        "rank": collapse(log, "rank"),
        "last-click": collapse(log, "last-click"),
        "list": collapse(log, "list", directory=folder / "lists"),
    }


FORMS = {"PBM": ("log", "rank", "last-click", "list"), "UBM": ("log", "last-click", "list"), "DBN": ("log", "list")}


@pytest.mark.parametrize("name", FORMS)
def test_a_log_its_counts_and_its_distinct_lists_give_the_same(sources: dict[str, Any], name: str) -> None:
    memory = sources["memory"]
    weight = float(np.asarray(memory.weight)[np.asarray(memory.mask)[:, 0]].sum())
    options: dict[str, Any] = {"iterations": 5, "tolerance": 0.0}
    wanted = solve(STORED[name](), memory, **options)
    for form in FORMS[name]:
        found = solve(STORED[name](), sources[form], **options)
        assert_same_model(found.model, wanted.model, atol=2e-4)
        for field in ("loss", "objective", "sessions"):
            x, y = column(found.history, field), column(wanted.history, field)
            np.testing.assert_allclose(x, y, rtol=3e-6, err_msg=f"{form}: {field}")
        assert found.history[-1]["sessions"] == pytest.approx(weight, rel=1e-6)


def test_counts_judge_per_session(sources: dict[str, Any]) -> None:
    fitted = solve(STORED["PBM"](), sources["rank"], sources["rank"], iterations=4, tolerance=0.0)
    losses = column(fitted.history, "loss"), column(fitted.history, "valid_loss")
    np.testing.assert_allclose(losses[1][:-1], losses[0][1:], rtol=1e-5)


def test_logs_that_counts_cannot_stand_for(tmp_path: Path) -> None:
    """A log is not collapsed where a table reads context columns, or where it has impression features."""
    rows = make_rows(120, length=6)
    full = write_log(tmp_path / "full", rows)
    bare = [{name: x for name, x in row.items() if not name.startswith("feature.")} for row in rows]
    context = write_log(tmp_path / "context", bare)
    memory = concatenate(list(context.batches(64)))
    options: dict[str, Any] = {"iterations": 3, "tolerance": 0.0}

    def by_device() -> models.PBM:
        device = towers.DocumentTable(2, feature="device")
        return models.PBM(relevance=device, examination=towers.RankTable(LOG_RANKS))

    for model, log in ((by_device, context), (STORED["PBM"], full)):
        assert_same_model(solve(model(), log, **options).model, solve(model(), memory, **options).model)
    with pytest.raises(ConfigError, match="reads the feature 'device'"):
        solve(by_device(), collapse(context, "rank"))


def test_counts_that_say_too_little(sources: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"UBM needs more than counts by rank.*sufficient_statistics='last-click'"):
        solve(STORED["UBM"](), sources["rank"])
    for by in ("rank", "last-click"):
        with pytest.raises(
            ConfigError, match=f"validation data: DBN needs more than counts by {by}.*sufficient_statistics='list'"
        ):
            solve(STORED["DBN"](), sources["memory"], sources[by])
    rows = concatenate(list(sources["last-click"].batches(64)))
    with pytest.raises(ConfigError, match="DBN needs whole lists"):
        solve(STORED["DBN"](), rows)


class Streamed:
    """Says nothing of itself."""

    def __init__(self, source: Any) -> None:
        self.batches = source.batches


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("form", ["memory", "log", "rank", "last-click", "list", "plain"])
def test_what_a_source_says_of_itself_is_what_a_pass_finds(
    form: str, batch_size: int, sources: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "memory":
        empty = sources["memory"].mask & (np.arange(len(sources["memory"])) % 3 > 0)[:, None]
        source: Any = InMemory(sources["memory"].replace(mask=empty))
    elif form == "plain":
        rows = [{n: x for n, x in row.items() if n != "weight"} for row in plain(make_rows(40))]
        source = write_log(tmp_path / "log", rows)
    else:
        source = sources[form]
    streamed = as_dataset(Streamed(source))
    total, batch = streamed.description.total_weight, batch_weight(streamed, batch_size)
    assert streamed.description.weighted == (batch > 0) == (form != "plain")
    count = count_rows(as_dataset(Streamed(source)), "data")
    monkeypatch.setattr(type(source), "batches", None)
    assert source.description.total_weight == pytest.approx(total, rel=1e-6)
    assert batch_weight(source, batch_size) == pytest.approx(batch, rel=1e-6)
    if form not in ("memory", "rank", "last-click"):  # lists without documents are no sessions, cells have two rows
        assert count_rows(source, "data") == count


# --- Recovery ---------------------------------------------------------------------------------------------


def shuffled(count: int, documents: int, ranks: int, seed: int) -> tuple[np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(seed)
    return rng.permuted(np.tile(np.arange(1, documents + 1), (count, 1)), axis=1)[:, :ranks].astype(np.int32), rng


def whole_lists(document: np.ndarray, clicks: np.ndarray) -> Sessions:
    return Sessions(
        mask=np.ones(document.shape, bool),
        position=np.tile(np.arange(document.shape[1], dtype=np.int32), (len(document), 1)),
        features={"document": document},
        clicks=clicks.astype(np.int8),
    )


def distinct(sessions: Sessions) -> Sessions:
    """Each list with its clicks once, weighted."""
    keys = np.concatenate([sessions.features["document"], np.asarray(sessions.clicks)], axis=1)
    _, first, weight = np.unique(keys, axis=0, return_index=True, return_counts=True)
    return sessions[first].replace(weight=weight.astype(np.float32))


def test_pbm_recovers_the_propensities() -> None:
    """Within the efficiency limit: Var log(theta_k / theta_1) is the effective resistance between the ranks.

    Clicks of probability p = theta_k gamma_d, seen n times, carry the information w = n p / (1 - p) about
    log theta_k + log gamma_d. Without the documents, S = diag(sum_d w_dk) - sum_d w_dk w_dj / sum_i w_di.
    """
    theta, gamma = np.array([0.9, 0.6, 0.4, 0.2]), np.linspace(0.1, 0.8, 12)
    document, rng = shuffled(20_000, 12, 4, seed=1)
    p = theta * gamma[document - 1]
    sessions = distinct(whole_lists(document, rng.random(p.shape) < p))
    model = models.PBM(relevance=towers.DocumentTable(12), examination=towers.RankTable(4))
    fitted = solve(model, sessions, method="lbfgs", prior=0.01, tolerance=0.0).model
    found = np.log(fitted.propensity(4))
    p = np.outer(gamma, theta)
    w = len(document) / 12 * p / (1 - p)
    s = np.diag(w.sum(0)) - np.einsum("dk,dj->kj", w, w / w.sum(1, keepdims=True))
    inverse = np.linalg.pinv(s)
    error = np.sqrt([inverse[0, 0] + inverse[k, k] - 2 * inverse[0, k] for k in range(1, 4)])
    assert error.max() < 0.03  # so that the next line says something
    assert (np.abs(found[1:] - np.log(theta[1:] / theta[0])) < 4 * error).all()


def test_dbn_recovers_its_parameters() -> None:
    """Within standard errors from the inverse of the observed information, the curvature of the model's own loss."""
    attract, satisfy, go_on = np.linspace(0.2, 0.7, 5), np.linspace(0.8, 0.3, 5), 0.85
    document, rng = shuffled(30_000, 5, 4, seed=2)
    clicks, examining = np.zeros(document.shape, bool), np.ones(len(document), bool)
    for k, d in enumerate(document.T - 1):
        clicks[:, k] = examining & (rng.random(len(d)) < attract[d])
        satisfied = clicks[:, k] & (rng.random(len(d)) < satisfy[d])
        examining &= ~satisfied & (rng.random(len(d)) < go_on)
    sessions = distinct(whole_lists(document, clicks))
    weight = np.asarray(sessions.weight, np.float64)
    model = models.DBN(
        relevance=towers.DocumentTable(5), satisfaction=towers.DocumentTable(5), continuation=towers.Constant()
    )
    fitted = solve(model, sessions, method="lbfgs", prior=0.01, tolerance=0.0).model
    found = logits_of(fitted)
    found = np.concatenate([found["relevance"][1:], found["satisfaction"][1:], [found["continuation"]]])
    truth = towers.logits_of(np.concatenate([attract, satisfy, [go_on]]))

    def loss(x: Any) -> Any:
        towers = {"relevance": x[:5], "satisfaction": x[5:10]}
        each = {n: partial(lambda s, v: v[s.features["document"] - 1], v=v) for n, v in towers.items()}
        user = models.DBN(**each, continuation=lambda s: jnp.broadcast_to(x[10], s.shape))
        return jnp.sum(user.loss(sessions) * weight)

    with jax.enable_x64(True):
        information = np.asarray(jax.jit(jax.hessian(loss))(jnp.asarray(found)))
    error = np.sqrt(np.diag(np.linalg.inv(information)))
    assert error.max() < 0.15
    assert (np.abs(found - truth) < 4 * error).all()


# --- What else solve() promises ---------------------------------------------------------------------------


def test_slots_may_share_a_table() -> None:
    shared = table()
    fitted = solve(models.SDBN(relevance=shared, satisfaction=shared), data(), method="counting", prior=3.0).model
    assert fitted.relevance is fitted.satisfaction
    cells = counted("SDBN", data())
    both = {d: np.add(cells["relevance"][d], cells["satisfaction"][d]) for d in range(1, V + 1)}
    assert_counted(fitted, dict.fromkeys(("relevance", "satisfaction"), both), 3.0)


@pytest.mark.parametrize("method", ["em", "lbfgs"])
def test_what_was_never_shown_gets_the_average(method: Any) -> None:
    fitted = solve(MODELS["PBM"](), data(), method=method, iterations=8, tolerance=0.0).model
    average = averages("PBM")
    relevance, examination = (probability(logits_of(fitted)[slot]) for slot in ("relevance", "examination"))
    np.testing.assert_allclose(relevance[[0, V + 1, V + 2]], average["relevance"], rtol=1e-5)
    assert np.abs(relevance[1 : V + 1] - average["relevance"]).min() > 1e-3
    assert np.abs(examination - average["examination"]).min() > 1e-3
    assert probability(fitted.relevance.common[...]) == pytest.approx(average["relevance"], rel=1e-5)


def partly_unseen() -> Sessions:
    known = data()
    document = np.where(known.features["document"] <= 2, 0, known.features["document"])
    return known.replace(features={"document": document})  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("name", ["PBM", "RDCTR"])
def test_unseen_documents_in_training(name: str) -> None:
    """All documents with id 0 are one: the model that is returned has the likelihood that was maximised."""
    fitted = solve(MODELS[name](), partly_unseen(), method="lbfgs", iterations=40, tolerance=0.0)
    value, slope = penalised(name, fitted.model, sessions=partly_unseen)
    assert value == pytest.approx(fitted.history[fitted.best - 1]["objective"], abs=NOISE)
    _, start = penalised(name, MODELS[name](), sessions=partly_unseen)
    assert np.linalg.norm(slope) < 2e-3 * np.linalg.norm(start)


@pytest.mark.parametrize("method", ["em", "lbfgs"])
def test_validation_keeps_the_best(method: Any) -> None:
    train, valid = data(25), data(200, seed=1)
    fitted = solve(MODELS["SDBN"](), train, valid, method=method, prior=1e-3, iterations=25, tolerance=0.0)
    losses = column(fitted.history, "valid_loss")
    assert 1 <= fitted.best == int(losses.argmin()) + 1 < len(losses)
    assert losses.min() == pytest.approx(mean_loss(fitted.model, valid), rel=1e-5)
    assert losses.min() < losses[-1] - 1e-3


def test_history_says_what_a_pass_found() -> None:
    sessions = data()
    weight = np.asarray(sessions.weight)
    fitted = solve(MODELS["DCM"](), sessions, sessions, iterations=4, tolerance=0.0)
    assert [epoch["epoch"] for epoch in fitted.history] == [1, 2, 3, 4]
    assert fitted.best == 4
    keys = {"epoch", "loss", "objective", "valid_loss", "sessions", "impossible", "seconds"}
    for epoch in fitted.history:
        assert set(epoch) == keys
        assert (epoch["sessions"], epoch["impossible"]) == (weight.sum(), 0)
        assert 0 <= epoch["seconds"] < 600
    for model, loss in ((MODELS["DCM"](), fitted.history[0]["loss"]), (fitted.model, fitted.history[3]["valid_loss"])):
        assert loss == pytest.approx(mean_loss(model, sessions), rel=1e-5)
    valid = column(fitted.history, "valid_loss")
    np.testing.assert_allclose(valid[:-1], column(fitted.history, "loss")[1:], rtol=1e-5)  # a pass later


@pytest.mark.parametrize("method", ["em", "lbfgs"])
def test_it_stops(method: Any) -> None:
    options: dict[str, Any] = {"method": method, "prior": 10.0}
    assert len(solve(MODELS["PBM"](), data(), iterations=5, tolerance=0.0, **options).history) == 5
    assert len(solve(MODELS["PBM"](), data(), iterations=1, **options).history) == 1
    fitted = solve(MODELS["PBM"](), data(), iterations=300, tolerance=1e-4, **options)
    gains = [b - a for a, b in pairwise(column(fitted.history, "objective"))]
    assert 4 < len(fitted.history) < 100
    assert gains[-1] < 1e-4
    if method == "em":
        assert min(gains[:-1]) >= 1e-4


def test_impossible_sessions_are_left_out_and_counted() -> None:
    sessions = data()
    twice = np.array([sum(click for *_, click in row) > 1 for _, row in rows_of(sessions)])
    weight = np.asarray(sessions.weight)
    model = MODELS["CascadeModel"]
    found = solve(model(), sessions, sessions)
    alone = solve(model(), sessions[~twice], sessions[~twice])
    assert_same_model(found.model, alone.model)
    assert found.history[-1]["impossible"] == weight[twice].sum() > 10
    assert found.history[-1]["sessions"] == weight[~twice].sum()
    for field in ("loss", "objective", "valid_loss"):
        np.testing.assert_allclose(column(found.history, field), column(alone.history, field), rtol=1e-5)
    for pair in ((sessions[twice], None), (sessions, sessions[twice])):
        with pytest.raises(DataError, match=f"none of the {weight[twice].sum():.0f} sessions is possible"):
            solve(model(), *pair)


@pytest.mark.parametrize("method", ["em", "lbfgs"])
@pytest.mark.parametrize("name", ["PBM", "DBN"])
def test_a_weak_prior_keeps_numbers_finite(name: str, method: Any) -> None:
    """Documents that are always or never clicked."""
    documents = [[1, 2, 3], [1, 3], [2, 1]] * 20
    clicks = [[int(d == 1) for d in row] for row in documents]
    sessions = Sessions.from_lists(features={"document": documents}, clicks=clicks)
    fitted = solve(MODELS[name](), sessions, method=method, prior=1e-3, iterations=60, tolerance=0.0)
    for field in ("loss", "objective"):
        assert np.isfinite(column(fitted.history, field)).all()
    for x in logits_of(fitted.model).values():
        assert np.isfinite(x).all()
    relevance = probability(logits_of(fitted.model)["relevance"])
    assert relevance[1] > 0.9
    assert relevance[2] < 0.1
    assert fitted.history[-1]["objective"] > fitted.history[0]["objective"] + 0.5


def test_the_model_stays_and_the_result_can_be_saved(tmp_path: Path) -> None:
    model = MODELS["UBM"]()
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model)))
    fitted = solve(model, data(), iterations=3)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(model)))
    assert type(fitted.model) is models.UBM
    save(fitted.model, tmp_path / "model")
    again = load(tmp_path / "model")
    assert_same_model(again, fitted.model, atol=0)
    np.testing.assert_array_equal(again.score(data()), fitted.model.score(data()))


class Unusual(towers.RankTable):
    pass


UNSOLVABLE = {
    "a network": lambda: models.DCTR(towers.Linear(2, rngs=nnx.Rngs(0))),
    "a function": lambda: models.DCTR(lambda s: jnp.zeros(s.shape)),
    "a subclass": lambda: models.RCTR(Unusual(RANKS)),
    "a pinned table": lambda: models.PBM(relevance=table(), examination=towers.RankTable(RANKS, pin_first=True)),
    "a hashed table": lambda: models.DCTR(towers.DocumentTable(V, kind="hashed", rows=4)),
    "last clicks in a PBM": lambda: models.PBM(relevance=table(), examination=towers.LastClickTable(RANKS)),
    "last clicks as relevance": lambda: models.UBM(relevance=towers.LastClickTable(RANKS), examination=rank()),
}


@pytest.mark.parametrize("name", UNSOLVABLE)
def test_towers_without_a_table(name: str) -> None:
    with pytest.raises(ConfigError, match=r"tower '\w+' \(\w+\) is not a plain table.*ultr\.training\.fit"):
        solve(UNSOLVABLE[name](), data())


def test_models_without_coins() -> None:
    for model in (
        models.AdditivePBM(relevance=table(), examination=rank()),
        models.TrustPBM(relevance=table(), examination=rank(), trust_relevant=rank(), trust_irrelevant=rank()),
        models.Mixture(components=[models.DCTR(table()), models.RCTR(rank())]),
    ):
        with pytest.raises(ConfigError, match=rf"{type(model).__name__}.*ultr\.training\.fit"):
            solve(model, data())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"prior": 0.0},
        {"prior": -1.0},
        {"prior": math.inf},
        {"prior": math.nan},
        {"iterations": 0},
        {"tolerance": -1e-9},
        {"tolerance": math.nan},
    ],
    ids=str,
)
def test_unusable_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"expected prior > 0 \(or 'fitted'\), iterations >= 1 and tolerance >= 0"):
        solve(MODELS["PBM"](), data(), **options)


def test_unusable_data(tmp_path: Path) -> None:
    model, sessions = MODELS["PBM"], data()
    with pytest.raises(ConfigError, match="expected method 'em', 'lbfgs' or 'counting', found 'newton'"):
        solve(model(), sessions, method="newton")  # type: ignore[arg-type]
    for train, valid, name in ((sessions[:0], None, "training"), (sessions, sessions[:0], "validation")):
        with pytest.raises(DataError, match=f"{name} data: expected at least one session"):
            solve(model(), train, valid)
    for change in ({"mask": np.zeros(sessions.shape, bool)}, {"weight": np.zeros(len(sessions), np.float32)}):
        with pytest.raises(DataError, match="training data: expected sessions with documents and a weight above 0"):
            solve(model(), sessions.replace(**change))
    log = write_log(tmp_path / "log", [row | {"split": "a"} for row in plain(make_rows(20))])
    with pytest.raises(DataError, match=r"at least one session|split"):
        solve(STORED["PBM"](), ClickLog.open(log.path, split="b"))
    with pytest.raises(ConfigError, match="training data: a click likelihood needs clicks"):
        solve(model(), sessions.replace(clicks=None))
    with pytest.raises(ConfigError, match=r"'document'.*the sessions have: none"):
        solve(model(), sessions.replace(features={}))
    position = np.asarray(sessions.position) + RANKS
    with pytest.raises(DataError, match=r"validation data, .*field 'rank'.*RankTable"):
        solve(model(), sessions, sessions.replace(position=position))
    with pytest.raises(DataError, match=r"training data, .*field 'document'.*up to 3 in DocumentTable"):
        solve(models.DCTR(towers.DocumentTable(3)), sessions)
    broken = MODELS["PBM"]()
    broken.examination.table[...] = jnp.full(RANKS, jnp.nan)
    with pytest.raises(UltrError, match=r"log-likelihood is nan. Start from a model with finite logits"):
        solve(broken, sessions)


# --- Small tables -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (40,), (3, 37), (2, 3, 19), (4, 0)], ids=str)
def test_small_tables_are_read_as_by_indexing(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(shape))
    index = rng.integers(0, 7, shape).astype(np.int32)
    weight = rng.normal(size=shape)
    values = rng.normal(size=7)

    def total(t: Any, index: Any, weight: Any) -> Any:
        found = lookup_small(t, index)
        return jnp.sum(found * weight), found

    with jax.enable_x64(True):
        slope, found = jax.jit(jax.grad(total, has_aux=True))(values, index, weight)
    assert found.shape == shape
    np.testing.assert_array_equal(found, values[index])
    wanted = np.zeros(7)
    np.add.at(wanted, index, weight)
    np.testing.assert_allclose(slope, wanted, rtol=1e-12, atol=1e-14)


def test_gradients_of_tables_per_rank() -> None:
    sessions = data(50)
    inside = np.asarray(sessions.mask)
    weight = np.random.default_rng(0).normal(size=inside.shape) * inside
    position = np.asarray(sessions.position)
    sums = np.bincount(position.ravel(), weight.ravel(), RANKS)
    last = np.random.default_rng(1).integers(0, RANKS + 1, inside.shape).astype(np.int32)
    pairs = np.zeros((RANKS, RANKS + 1))
    np.add.at(pairs, (position, last), weight)

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def slopes(towers: Any, lists: Sessions, w: Any, last: Any) -> Any:
        plain, pinned, after = towers
        logits = plain(lists)
        return jnp.sum((logits + pinned(lists) + after.logits_after(lists, last)) * w), logits

    tables = (
        towers.RankTable(RANKS, initial=np.arange(RANKS)),
        towers.RankTable(RANKS, pin_first=True),
        towers.LastClickTable(RANKS),
    )
    for lists, w, above in ((sessions, weight, last), (sessions.rank_first(), weight.T, last.T)):
        (plain, pinned, after), logits = slopes(tables, lists, w, above)
        np.testing.assert_array_equal(np.asarray(logits)[lists.mask], lists.position[lists.mask])
        np.testing.assert_allclose(plain.table[...], sums, atol=1e-5)
        np.testing.assert_allclose(pinned.table[...], sums - np.eye(RANKS)[0] * sums.sum(), atol=1e-5)
        np.testing.assert_allclose(after.table[...], pairs, atol=1e-5)


# --- The fitted prior -------------------------------------------------------------------------------------


def beta_data(count: int = 3000, *, a: float = 1.5, b: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """Clicks and skips of documents whose click probabilities come from Beta(a, b); few impressions each."""
    rng = np.random.default_rng(7)
    shown = rng.integers(1, 12, count)
    clicks = rng.binomial(shown, rng.beta(a, b, count))
    return clicks, shown - clicks


def test_the_fitted_prior_is_the_most_likely_beta() -> None:
    yes, no = beta_data()
    found = fit_beta(yes, no)

    def loss(log: np.ndarray) -> float:
        return -scipy.stats.betabinom.logpmf(yes, yes + no, *np.exp(log)).sum()

    wanted = np.exp(scipy.optimize.minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-6}).x)
    np.testing.assert_allclose(found, wanted, rtol=1e-3)
    np.testing.assert_allclose(found, (1.5, 4.0), rtol=0.2)


def test_few_or_equal_cells_leave_the_prior_finite() -> None:
    yes, no = beta_data(FITTED_ENTRIES - 1)
    assert fit_beta(yes, no) is None
    same = fit_beta(np.full(500, 3.0), np.full(500, 9.0))
    assert np.isfinite(same).all()
    assert same[0] / sum(same) == pytest.approx(0.25, abs=0.02)
    never = fit_beta(np.zeros(500), np.full(500, 9.0))
    assert np.isfinite(never).all()
    assert never[0] > 0


def test_a_fitted_prior_gives_posterior_means() -> None:
    clicks, skips = beta_data()
    rows = np.repeat(np.arange(len(clicks)) + 1, clicks + skips)
    clicked = np.concatenate([np.r_[np.ones(c), np.zeros(n)] for c, n in zip(clicks, skips, strict=True)])
    sessions = Sessions.from_lists(features={"document": rows[:, None]}, clicks=clicked.astype(int)[:, None])
    model = models.DCTR(towers.DocumentTable(len(clicks) + 1))
    fitted = solve(model, sessions, method="counting").model
    a, b = fit_beta(clicks, skips)
    table = np.asarray(fitted.tower.common[...] + fitted.tower.table[...])
    np.testing.assert_allclose(1 / (1 + np.exp(-table[1:-1])), (clicks + a) / (clicks + skips + a + b), rtol=1e-4)
    np.testing.assert_allclose(1 / (1 + np.exp(-table[-1])), a / (a + b), rtol=1e-4)  # nothing was seen of it


def test_a_fitted_prior_does_not_feed_on_itself() -> None:
    """Satisfaction of DBN is out of sight: its prior comes from counting, and leaves documents apart."""
    rng = np.random.default_rng(3)
    documents, lists, width = 400, 4000, 5
    attraction, satisfaction = rng.beta(1.0, 2.0, documents), rng.beta(2.0, 2.0, documents)
    ids = np.argsort(rng.random((lists, documents)), axis=1)[:, :width]
    clicks = np.zeros((lists, width), np.int8)
    going = np.ones(lists, bool)
    for k in range(width):
        clicks[:, k] = going & (rng.random(lists) < attraction[ids[:, k]])
        satisfied = (clicks[:, k] == 1) & (rng.random(lists) < satisfaction[ids[:, k]])
        going &= ~satisfied & (rng.random(lists) < 0.9)
    sessions = Sessions.from_lists(features={"document": ids + 1}, clicks=clicks)
    slots = {name: towers.DocumentTable(documents) for name in ("relevance", "satisfaction")}
    model = models.DBN(**slots, continuation=towers.Constant(1.0))
    fitted = solve(model, sessions, prior="fitted", iterations=60).model
    found = {
        name: 1 / (1 + np.exp(-np.asarray(getattr(fitted, name).common[...] + getattr(fitted, name).table[...])[1:]))
        for name in slots
    }
    assert np.corrcoef(found["relevance"], attraction)[0, 1] > 0.9
    assert np.corrcoef(found["satisfaction"], satisfaction)[0, 1] > 0.4
    assert found["satisfaction"].std() > 0.3 * satisfaction.std()
