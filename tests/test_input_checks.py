"""What a model cannot read is refused with its place: documents beyond any table, and features that are not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluated import OwnDocumentTable
from flax import nnx
from named_logs import DOCUMENTS, named_log
from stored import QUERIES, documents_table, make_rows, plain, replace, rewrite, write_log

from ultr import baselines, models, simulate, towers
from ultr.data import ClickLog, Collection
from ultr.errors import DataError
from ultr.evaluation import calibration, evaluate, write_run
from ultr.sessions import Sessions
from ultr.training import fit

pytestmark = pytest.mark.usefixtures("quickly_compiled")
KEY = jax.random.key(0)
IDS = [[1, 2, 3], [4, 5, 6], [3, 2, 8], [7, 1, 2]]
LATER = r"row 3, field 'document': expected ids up to {} in {}, found 8\. .*vocabulary= the log of training"


class Embedding(nnx.Module):
    """Gives NaN beyond its table, as compiled look-ups do; with dropout, which a check must not draw from."""

    def __init__(self, documents: int) -> None:
        self.table = nnx.Embed(documents + 1, 1, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))

    def __call__(self, sessions: Sessions) -> Any:
        return self.dropout(self.table(sessions.features["document"]))[..., 0]


class FromZero(towers.Tower):
    """A tower that declares no bounds and counts documents from 0."""

    def __init__(self, documents: int) -> None:
        self.table = nnx.Param(jnp.zeros(documents))

    def logits(self, sessions: Sessions) -> Any:
        return self.table[...][sessions.features["document"] - 1]


class Whole(nnx.Module):
    """A model of its own, without towers."""

    def __init__(self, documents: int) -> None:
        self.table = nnx.Param(jnp.zeros(documents + 1))

    def score(self, sessions: Sessions) -> Any:
        return jnp.take(self.table[...], sessions.features["document"], axis=0)

    def loss(self, sessions: Sessions) -> Any:
        return ((self.score(sessions) - sessions.clicks) ** 2 * sessions.mask).sum(1)


def pbm(tower: Any) -> models.PBM:
    return models.PBM(relevance=tower, examination=towers.RankTable(15))


OWN: dict[str, Callable[[int], Any]] = {
    "OwnDocumentTable": lambda n: pbm(OwnDocumentTable(n)),
    "Embedding": lambda n: pbm(Embedding(n)),
    "FromZero": lambda n: pbm(FromZero(n)),
    "Whole": Whole,
    "DocumentTable": lambda n: pbm(towers.DocumentTable(n)),
}


def sessions() -> Sessions:
    return Sessions.from_lists(
        features={"document": IDS}, clicks=[[0, 1, 0]] * 4, labels=[[0, 1, 2]] * 4, query=[0, 1, 2, 3]
    )


class Source:
    """Streams batches of two lists, in the order of the seed."""

    def batches(self, batch_size: int, *, seed: int | None = None) -> Iterator[Sessions]:
        whole = sessions()
        order = np.arange(4) if seed is None else np.array([3, 2, 1, 0])
        for start in (0, 2):
            yield whole[order[start : start + 2]]


@pytest.mark.parametrize("source", [sessions, Source])
@pytest.mark.parametrize("name", OWN)
def test_documents_beyond_a_table_are_named(name: str, source: Callable[[], Any]) -> None:
    model = OWN[name](7)
    with pytest.raises(DataError, match="training data, " + LATER.format(7, name)):
        fit(model, source(), epochs=1, batch_size=2, seed=0)
    with pytest.raises(DataError, match="evaluation data, " + LATER.format(7, name)):
        evaluate(model, source(), key=KEY)
    large = OWN[name](8)
    fit(large, source(), epochs=1, batch_size=2, seed=0)
    evaluate(large, source(), key=KEY)


@pytest.mark.parametrize("name", ["OwnDocumentTable", "DocumentTable"])
def test_a_log_tells_session_and_name(name: str, tmp_path: Path) -> None:
    rows = plain(make_rows(60))
    log = write_log(tmp_path / "log", rows)
    first = next(i for i, row in enumerate(rows, 1) if max(row["documents"]) > 100)
    found = next(d for d in rows[first - 1]["documents"] if d > 100)
    query = QUERIES[(found - 1) // 20]
    place = rf"row {first}, field 'document': expected ids up to 100 in {name}, found {found} "
    place += rf"\(document 'url {found}' of query '{query}'\)"
    with pytest.raises(DataError, match="training data, " + place):
        fit(OWN[name](100), log, epochs=1, batch_size=8, seed=3)
    with pytest.raises(DataError, match="evaluation data, " + place):
        evaluate(OWN[name](100), log, metrics=["log_likelihood"], key=KEY)
    shallow = models.PBM(relevance=OWN[name](log.documents).relevance, examination=towers.RankTable(3))
    deep = next(i for i, row in enumerate(rows, 1) if max(row["ranks"]) > 3)
    rank = next(r for r in rows[deep - 1]["ranks"] if r > 3)
    with pytest.raises(
        DataError, match=rf"row {deep}, field 'rank': expected ranks up to 3 .*found {rank}\. .*cut the"
    ):
        fit(shallow, log, epochs=1, batch_size=8, seed=3)


def test_a_look_up_that_wraps_ids_needs_no_table_of_all() -> None:
    class Hashed(nnx.Module):
        def __init__(self) -> None:
            self.table = nnx.Param(jnp.zeros(3))

        def __call__(self, sessions: Sessions) -> Any:
            return self.table[...][sessions.features["document"] % 3]

    evaluate(pbm(Hashed()), sessions(), key=KEY)


def test_the_check_leaves_a_model_as_it_is() -> None:
    model = pbm(Embedding(8))
    before = jax.tree.map(np.asarray, jax.tree.leaves(nnx.state(model, nnx.RngCount)))
    fit(model, sessions(), epochs=1, batch_size=2, seed=0)
    after = jax.tree.map(np.asarray, jax.tree.leaves(nnx.state(model, nnx.RngCount)))
    jax.tree.map(np.testing.assert_array_equal, before, after)


# Features


BAD = [float("nan"), float("inf"), float("-inf")]


def spoilt(value: float) -> np.ndarray:
    x = np.ones((4, 3, 2), np.float32)
    x[2, 1, 1] = value
    return x


class Spoilt:
    def __init__(self, value: float) -> None:
        self.value = value

    def batches(self, batch_size: int, *, seed: int | None = None) -> Iterator[Sessions]:
        whole = sessions().replace(features={"features": spoilt(self.value)})
        order = np.arange(4) if seed is None else np.array([3, 2, 1, 0])
        for start in (0, 2):
            yield whole[order[start : start + 2]]


def linear() -> models.PBM:
    return pbm(towers.Linear(2, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("value", BAD)
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    place = rf"row 3, field 'features\[1\]': expected finite numbers, found {value} at document 2"
    for act in (
        lambda data: fit(linear(), data, epochs=1, batch_size=2, seed=0),
        lambda data: evaluate(linear(), data, key=KEY),
        lambda data: calibration(linear(), data),
    ):
        with pytest.raises(DataError, match=place):
            act(Spoilt(value))
    with pytest.raises(DataError, match=r"features\[1\]"):
        towers.Scaler(2).fit(Spoilt(value))


@pytest.mark.parametrize("value", BAD)
def test_arrays_say_index_and_name(value: float) -> None:
    whole = rf"row 3, field 'features\[features\]': expected finite numbers, found {value} at document 2, column 1"
    with pytest.raises(DataError, match=whole):
        Sessions.from_lists(features={"features": spoilt(value)})
    with pytest.raises(DataError, match=r"row 1, field 'features\[x\]': .*at document 2 of session 1"):
        Sessions.from_lists(features={"x": [[1.0, value]]})
    batch = sessions().replace(features={"features": spoilt(value)})
    for act in (
        batch.validate,
        lambda: evaluate(linear(), batch, key=KEY),
        lambda: fit(linear(), batch, epochs=1, batch_size=2, seed=0),
    ):
        with pytest.raises(DataError, match=whole):
            act()
    features = np.ones((3, 2))
    features[2, 1] = value
    options: dict[str, Any] = {"query": [0, 0, 1], "label": [0, 1, 2], "features": features}
    with pytest.raises(DataError, match=rf"row 3, field 'features\[stock\]': expected finite numbers, found {value}"):
        Collection.from_arrays(**options, feature_names=["price", "stock"])
    with pytest.raises(DataError, match=r"row 3, field 'features\[1\]'"):
        Collection.from_arrays(**options)
    with pytest.raises(DataError, match=r"features\[1\]': expected finite features, found .* of document 2"):
        towers.Stored(towers.Linear(2, rngs=nnx.Rngs(0)), values=features)
    with pytest.raises(DataError, match="NaN"):
        write_run("unused", np.array([np.nan, 1.0, 2.0]), Collection.from_arrays(query=[0, 0, 1], label=[0, 1, 2]),
                  name="run", key=KEY)  # fmt: skip


@pytest.mark.parametrize("value", BAD)
def test_files_say_row_and_name(value: float, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", plain(make_rows(30)))
    rewrite(log, replace("features", 4, [1.0, value]), name="documents.parquet")
    log = ClickLog.open(log.path)
    for act in (
        lambda: evaluate(linear(), log, key=KEY),
        lambda: fit(linear(), log, epochs=1, batch_size=8, seed=0),
        lambda: log.vocabulary.features,
    ):
        with pytest.raises(DataError, match=r"documents.parquet, row 5, field 'features\[minus\]': expected finite"):
            act()


def test_a_collection_of_unchecked_arrays_is_checked_where_it_is_used(tmp_path: Path) -> None:
    good = named_log(tmp_path / "log").collection()
    assert good is not None
    assert good.features is not None
    features = good.features.copy()
    features[7, 0] = np.nan
    bad = Collection(
        offsets=good.offsets, query=good.query, document=good.document, labels=good.labels, features=features,
        vocabulary=good.vocabulary,
    )  # fmt: skip
    ranker = baselines.NaivePointwise(relevance=towers.Linear(2, rngs=nnx.Rngs(0)))
    for act in (
        lambda: evaluate(ranker, bad, key=KEY),
        lambda: write_run(tmp_path / "run", ranker, bad, name="run", key=KEY),
        lambda: fit(baselines.FullInformation(relevance=towers.Linear(2, rngs=nnx.Rngs(0))), bad, epochs=1, seed=0),
    ):
        with pytest.raises(DataError, match=r"features\[price\]': expected finite numbers, found nan at document 3"):
            act()
    assert not (tmp_path / "run").exists()
    with pytest.raises(DataError, match="policy 'linear' scores document"):
        simulate.Policy("linear", share=0.1).scores(bad, seed=0)
    assert len(good.document) == DOCUMENTS


def test_scores_that_are_nan_are_never_ranked(tmp_path: Path) -> None:
    class Nan:
        def score(self, batch: Sessions) -> np.ndarray:
            return np.where(np.asarray(batch.features["document"]) == 8, np.nan, 0.0)

    with pytest.raises(DataError, match="scores documents of 1 lists as NaN, first in query 2"):
        evaluate(Nan(), sessions(), key=KEY)
    log = write_log(tmp_path / "log", plain(make_rows(30)), documents=documents_table())
    with pytest.raises(DataError, match="as NaN, first in query 0"):
        write_run(tmp_path / "run", Nan(), log, name="run", key=KEY)
    assert not (tmp_path / "run").exists()
