"""The scale of the grades belongs to a collection: parts, logs and what is prepared against it keep it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pytest

from ultr import models, simulate, towers
from ultr.data import ClickLog, Collection, LogWriter, collapse, write_collection
from ultr.errors import ConfigError, DataError
from ultr.evaluation import evaluate
from ultr.ingest import prepare
from ultr.sessions import Sessions
from ultr.training import save

KEY = jax.random.key(0)


class InOrder:
    """Ranks documents in the order in which a list has them."""

    def score(self, sessions: Sessions) -> Any:
        return -np.broadcast_to(np.arange(sessions.shape[1], dtype=np.float32), sessions.shape)


def stop(grade: float, highest: float) -> float:
    return (2**grade - 1) / 2**highest


def err(grades: list[float], highest: float) -> float:
    """Chapelle's formula, as a loop over the ranks."""
    arrive, total = 1.0, 0.0
    for rank, grade in enumerate(grades, 1):
        total += arrive * stop(grade, highest) / rank
        arrive *= 1 - stop(grade, highest)
    return total


GRADES: dict[str, list[float]] = {
    "a": [4, 0, 1],
    "b": [2, 1, 0],
    "c": [1, 0, 2],
}  # by query; only the first has the highest grade


def letor(path: Path, queries: str) -> Path:
    lines = [f"{y} qid:{q} 1:{i}.5" for q in queries for i, y in enumerate(GRADES[q])]
    path.write_text("\n".join(lines) + "\n")
    return path


def expected(queries: str, highest: float) -> float:
    return float(np.mean([err(GRADES[q], highest) for q in queries]))


def found(lists: Any, **options: Any) -> float:
    return evaluate(InOrder(), lists, metrics=["err"], key=KEY, **options)["err"].value


def test_parts_of_a_collection_keep_its_scale(tmp_path):
    query, grades = np.repeat([0, 1, 2], 3), np.concatenate(list(GRADES.values()))
    whole = Collection.from_arrays(query=query, label=grades)
    assert whole.max_grade == 4
    assert found(whole.select([1, 2])) == pytest.approx(expected("bc", 4))
    assert found(whole.select([1, 2]), max_grade=3) == pytest.approx(expected("bc", 3))
    whole.select([1, 2]).save(tmp_path / "part")
    assert found(Collection.open(tmp_path / "part")) == pytest.approx(expected("bc", 4))
    stated = Collection.from_arrays(query=query, label=grades, max_grade=5)
    assert found(stated.split({"x": 0.5, "y": 0.5}, seed=1)["x"].select([0])) in [
        pytest.approx(expected(q, 5)) for q in "abc"
    ]
    assert stated.identity != whole.identity
    with pytest.raises(
        DataError, match=r"row 1, field 'label': expected grades of at most 3, the highest of the scale, found 4"
    ):
        Collection.from_arrays(query=query, label=grades, max_grade=3)
    for bad in (0, -1, float("nan"), float("inf"), "4", True):
        with pytest.raises(ConfigError, match="max_grade"):
            Collection.from_arrays(query=query, label=grades, max_grade=bad)  # type: ignore[arg-type]


def test_prepared_lists_take_the_scale_stated_that_of_the_vocabulary_or_the_highest_grade(tmp_path):
    train, test = letor(tmp_path / "train.txt", "a"), letor(tmp_path / "test.txt", "bc")
    parent = prepare(train, tmp_path / "train", format="letor")
    alone = prepare(test, tmp_path / "alone", format="letor")
    against = prepare(test, tmp_path / "against", format="letor", vocabulary=parent)
    stated = prepare(test, tmp_path / "stated", format="letor", max_grade=4)
    above = prepare(test, tmp_path / "above", format="letor", vocabulary=tmp_path / "train", max_grade=5)
    assert found(alone) == pytest.approx(expected("bc", 2))
    assert found(against) == found(stated) == pytest.approx(expected("bc", 4))
    assert found(above) == pytest.approx(expected("bc", 5))
    higher = prepare(train, tmp_path / "higher", format="letor", vocabulary=alone)
    assert found(higher) == pytest.approx(expected("a", 4))
    with pytest.raises(DataError, match="found 4 of document '1' of query 'a'"):
        prepare(train, tmp_path / "no", format="letor", max_grade=3)
    with pytest.raises(ConfigError, match="at least 4, that of the vocabulary, found 3"):
        prepare(test, tmp_path / "no", format="letor", vocabulary=parent, max_grade=3)
    assert not (tmp_path / "no").exists()


def csv(path: Path) -> Path:
    rows = [f"{s},b,d{r},{r},{int(r == s % 3 + 1)}" for s in range(20) for r in (1, 2, 3)]
    path.write_text("session,query,document,rank,click\n" + "\n".join(rows) + "\n")
    return path


def test_logs_with_grades_and_what_is_made_of_them_keep_the_scale(tmp_path):
    clicks = csv(tmp_path / "clicks.csv")
    (tmp_path / "grades.qrels").write_text("".join(f"b 0 d{r} {y}\n" for r, y in enumerate(GRADES["b"], 1)))
    log = prepare(clicks, tmp_path / "log", labels=tmp_path / "grades.qrels", max_grade=4)
    assert isinstance(log, ClickLog)
    assert found(log) == pytest.approx(expected("b", 4))
    assert found(log.split({"x": 0.5, "y": 0.5})["x"]) == pytest.approx(expected("b", 4))
    assert found(collapse(log, "list", directory=tmp_path / "lists")) == pytest.approx(expected("b", 4))
    counts = collapse(log, "rank", directory=tmp_path / "counts")
    assert counts.vocabulary.max_grade == type(counts).open(tmp_path / "counts").vocabulary.max_grade == 4
    with pytest.raises(ConfigError, match=r"max_grade\) has no effect: there are no grades"):
        prepare(clicks, tmp_path / "none", max_grade=4)


def test_simulated_users_read_the_scale_and_not_the_highest_grade_that_is_there(ultr, tmp_path):
    letor(tmp_path / "test.txt", "bc")
    prepare(tmp_path / "test.txt", tmp_path / "c", format="letor", max_grade=4)
    options = ("--sessions", 4000, "--policy", "random", "--model", "dctr", "--ranks", 3)
    assert ultr("simulate", tmp_path / "c", "--out", tmp_path / "log", *options).code == 0
    log = ClickLog.open(tmp_path / "log")
    assert log.vocabulary.max_grade == 4
    gain = np.array([(2.0**y - 1) / (2.0**4 - 1) for q in "bc" for y in GRADES[q]])
    rate = float(np.mean(0.1 + 0.9 * gain))
    spread = np.sqrt(rate * (1 - rate) / log.metadata["impressions"])
    assert abs(log.metadata["clicks"] / log.metadata["impressions"] - rate) < 4 * spread
    with pytest.raises(DataError, match="grades"):  # a user of a lower scale has no answer to a higher grade
        simulate.clicks(
            Collection.from_arrays(query=[0, 0], label=[0, 4]), simulate.Policy("random"),
            simulate.user("pbm", grades=2, ranks=2), sessions=10, seed=0, out=tmp_path / "bad", ranks=2,
        )  # fmt: skip


def test_the_commands_print_the_scale_and_older_folders_get_a_sentence(ultr, tmp_path):
    letor(tmp_path / "test.txt", "bc")
    made = ultr("prepare", tmp_path / "test.txt", "--format", "letor", "--out", tmp_path / "c", "--max-grade", 4)
    assert "highest grade: 4" in made.out
    lists = Collection.open(tmp_path / "c")
    model = models.DCTR(towers.DocumentTable(lists.documents))
    save(model, tmp_path / "run", extra={"vocabulary": lists.vocabulary.identity})
    stored = ultr("evaluate", tmp_path / "run", tmp_path / "c", "--metrics", "err@3,ndcg@3")
    assert "err@3: on a scale of grades from 0 to 4, that of the data" in stored.out
    other = ultr("evaluate", tmp_path / "run", tmp_path / "c", "--metrics", "err@3", "--max-grade", 6, "--json").json
    same = ultr("evaluate", tmp_path / "run", tmp_path / "c", "--metrics", "err@3", "--json").json
    assert (other["max_grade"], same["max_grade"]) == (6, 4)
    assert other["err@3"]["value"] < same["err@3"]["value"] / 2
    file = tmp_path / "c" / "metadata.json"
    metadata = json.loads(file.read_text())
    del metadata["max_grade"]
    file.write_text(json.dumps(metadata))
    old = ultr("evaluate", tmp_path / "run", tmp_path / "c", "--metrics", "err@3")
    assert "from 0 to 2, the highest found" in old.out
    assert "prepared before the scale of grades was kept" in old.err
    file.write_text(json.dumps(metadata | {"max_grade": "4"}))
    with pytest.raises(DataError, match="field 'max_grade'"):
        Collection.open(tmp_path / "c")


def documents_with(grade: float) -> pa.Table:
    columns = {"query": pa.array([0, 0], pa.int32()), "document": ["a", "b"]}
    return pa.table(columns | {"label": pa.array([0.0, grade], pa.float32())})


def written(grade: float, folder: Path) -> None:
    with LogWriter(folder / "log", queries=pa.array(["q"]), documents=documents_with(grade)):
        pass


def unchecked(grade: float, folder: Path) -> None:
    lists = Sessions.from_lists(labels=[[0, 1]])
    strange = lists.replace(labels=np.array([[0, grade]], np.float32))
    source = type("Source", (), {"batches": lambda self, batch_size, seed=None: iter([strange])})()
    evaluate(InOrder(), source, metrics=["err@5"], key=KEY)


DOORS: dict[str, Callable[[float, Path], object]] = {
    "from_lists": lambda grade, _: Sessions.from_lists(labels=[[0, grade]]),
    "validate": lambda grade, _: (
        Sessions.from_lists(labels=[[0, 1]]).replace(labels=np.array([[0, grade]], np.float32)).validate()
    ),
    "from_arrays": lambda grade, _: Collection.from_arrays(query=[0, 0], label=[0, grade]),
    "write_collection": lambda grade, folder: write_collection(
        folder / "lists", queries=pa.array(["q"]), documents=documents_with(grade)
    ),
    "LogWriter": written,
    "evaluate": unchecked,
}


@pytest.mark.parametrize("grade", [31.5, 126.0, 1000.0])
@pytest.mark.parametrize("door", DOORS)
def test_a_grade_that_metrics_would_lose_is_refused(door: str, grade: float, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"expected a grade of at most 31, found {grade:g}.*Scale the grades"):
        DOORS[door](grade, tmp_path)


@pytest.mark.parametrize("door", [name for name in DOORS if name != "LogWriter"])  # which wants sessions
def test_the_highest_grade_there_may_be_is_taken(door: str, tmp_path: Path) -> None:
    DOORS[door](31.0, tmp_path)


def test_a_scale_that_err_would_lose_is_refused() -> None:
    lists = Sessions.from_lists(labels=[[0, 1]])
    assert evaluate(InOrder(), lists, metrics=["err@5"], key=KEY, max_grade=31)["err@5"].value > 0
    with pytest.raises(ConfigError, match="of at most 31, found 126"):
        evaluate(InOrder(), lists, metrics=["err@5"], key=KEY, max_grade=126)
    with pytest.raises(ConfigError, match="at most 31, found 126"):
        Collection.from_arrays(query=[0], label=[1], max_grade=126)
