"""What datasets say of themselves, against what a pass over them finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored import make_rows, write_log

import ultr
from ultr import simulate
from ultr.data import Collection, Dataset, InMemory, as_dataset, collapse
from ultr.errors import ConfigError
from ultr.sessions import Sessions, SharedFeature, concatenate


class Own(Dataset):
    """A user's dataset that defines `batches` alone."""

    def __init__(self, inner: Dataset) -> None:
        self.inner = inner

    def batches(self, batch_size: int, *, seed: int | None = None, share_features: bool = False) -> Iterator[Sessions]:
        yield from self.inner.batches(batch_size, seed=seed)


class Duck:
    """An object with `batches` of another class."""

    def __init__(self, inner: Dataset) -> None:
        self.inner = inner

    def batches(self, batch_size: int, *, seed: int | None = None) -> Iterator[Sessions]:
        yield from self.inner.batches(batch_size, seed=seed)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    folder = tmp_path_factory.mktemp("datasets")
    log = write_log(folder / "log", make_rows(90))
    plain = write_log(folder / "plain", [{n: x for n, x in r.items() if n != "weight"} for r in make_rows(90)])
    countable = [{n: x for n, x in r.items() if not n.startswith(("feature.", "context."))} for r in make_rows(90)]
    counted = write_log(folder / "counted", countable)
    memory = concatenate(list(plain.batches(90)))
    memory = memory[memory.shown()]
    return {
        "log": log,
        "log without weights": plain,
        "a split": log.split({"a": 0.5, "b": 0.5}, seed=1)["a"],
        "counts": collapse(counted, "rank"),
        "counts by last click": collapse(counted, "last-click"),
        "distinct lists": collapse(counted, "list", directory=folder / "lists"),
        "a collection": simulate.collection(queries=20, documents=7, features=3, seed=0),
        "memory": InMemory(memory),
        "memory with padding": InMemory(memory.pad(rows=len(memory) + 5)),
        "own": Own(plain),
        "duck": as_dataset(Duck(log)),
    }


NAMES = ("log", "log without weights", "a split", "counts", "counts by last click", "distinct lists", "a collection",
         "memory", "memory with padding", "own", "duck")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_description_says_what_a_pass_finds(name: str, datasets: dict[str, Dataset]) -> None:
    data = datasets[name]
    about = data.description
    batches = list(data.batches(16, seed=3))
    shown = [batch.shown() for batch in batches]
    weights = np.concatenate([b.row_weights()[s] for b, s in zip(batches, shown, strict=True)])
    assert about.total_weight == pytest.approx(weights.sum(), rel=1e-6)
    assert about.weighted == any(b.weight is not None for b in batches)
    assert data.count_batches(16) == len(batches)
    if about.sufficient_statistics == "list":
        assert about.rows == sum(int(s.sum()) for s in shown)
        assert about.rows_per_session == 1.0
    else:
        assert all(batch.shape[1] == 1 for batch in batches)
        assert about.rows_per_session > 1
    if about.documents is not None:
        ids = np.concatenate([np.asarray(b.features["document"])[b.mask] for b in batches])
        assert ids.max() <= about.documents
    if about.ranks is not None:
        ranks = np.concatenate([np.asarray(b.position)[b.mask] + 1 for b in batches])
        assert ranks.max() <= about.ranks
    assert as_dataset(data) is data


@pytest.mark.parametrize("name", NAMES)
def test_shared_features_are_the_same_features(name: str, datasets: dict[str, Dataset]) -> None:
    data = datasets[name]
    pairs = zip(data.batches(16, seed=1), data.batches(16, seed=1, share_features=True), strict=True)
    for plain, shared in pairs:
        assert plain.features.keys() == shared.features.keys()
        for feature, value in shared.features.items():
            assert not isinstance(plain.features[feature], SharedFeature)
            whole = value.whole() if isinstance(value, SharedFeature) else value
            np.testing.assert_array_equal(
                np.asarray(whole)[plain.mask], np.asarray(plain.features[feature])[plain.mask]
            )


@pytest.mark.parametrize("name", NAMES)
def test_a_cached_dataset_has_the_same_rows(name: str, datasets: dict[str, Dataset]) -> None:
    data = datasets[name]
    for memory in (0, 1 << 30):
        cached = data.cached(memory)
        for _ in range(2):
            for one, other in zip(data.batches(16, seed=5), cached.batches(16, seed=5), strict=True):
                np.testing.assert_array_equal(one.mask, other.mask)
                np.testing.assert_array_equal(one.features["document"], other.features["document"])


def test_a_view_describes_itself_and_not_the_whole_log(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", make_rows(60))
    assert log.description.rows == 60
    part = log.split({"a": 0.5, "b": 0.5}, seed=0)["a"]
    assert part.description.rows == len(part) < 60
    assert part.description.identity != log.description.identity
    few = log.with_documents(3)
    assert few.description.documents == few.documents == 3
    assert log.description.documents == log.documents > 3
    assert max(int(np.max(b.features["document"])) for b in few.batches(20)) <= 3


def test_what_is_no_dataset_is_refused() -> None:
    for given in (3, "log", [1, 2], np.zeros(3)):
        with pytest.raises(ConfigError, match=f"expected a dataset .* found {type(given).__name__}"):
            as_dataset(given)  # type: ignore[arg-type]


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "fit": lambda data: ultr.fit(model(), data, epochs=1, batch_size=16, seed=0).history[0]["sessions"],
    "solve": lambda data: ultr.solve(model(), data, iterations=2).history[0]["sessions"],
}


def model() -> Any:
    return ultr.models.RCTR(ultr.towers.RankTable(20))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_take_every_form_of_data(function: str, datasets: dict[str, Dataset]) -> None:
    memory = datasets["memory"]
    assert isinstance(memory, InMemory)
    call = FUNCTIONS[function]
    assert call(memory.sessions) == call(memory) == call(Own(memory)) == call(Duck(memory)) == 90.0


def test_a_collection_of_arrays_has_an_identity_of_its_content() -> None:
    one, same, other = (
        Collection.from_arrays(query=[0, 0, 1], label=labels) for labels in ([0, 1, 2], [0, 1, 2], [0, 2, 1])
    )
    assert one.description.identity == same.description.identity != other.description.identity
