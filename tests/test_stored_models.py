"""Saved models and states of runs: what was edited or emptied is named, and everything that is saved loads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optax
import pytest

from ultr import baselines, models, towers
from ultr.errors import CheckpointError, ConfigError
from ultr.sessions import Sessions
from ultr.training import adam, fit, lazy_adam, load, save
from ultr.training.checkpoint import build, read_meta

K, DOCUMENTS = 3, 8


def pbm() -> models.PBM:
    return models.PBM(relevance=towers.DocumentTable(DOCUMENTS), examination=towers.RankTable(K))


def sessions(seed: int = 0) -> Sessions:
    rng = np.random.default_rng(seed)
    document = rng.integers(1, DOCUMENTS + 1, (40, K)).tolist()
    return Sessions.from_lists(features={"document": document}, clicks=rng.integers(0, 2, (40, K)).tolist())


def edit(folder: Path, **changes: Any) -> None:
    """Replaces facts of meta.json; None removes one."""
    file = folder / "meta.json"
    meta = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in meta.items() if value is not None}))


MODEL: dict[str, Any] = {"class": "PBM", "relevance": {"class": "Constant"}, "examination": {"class": "Constant"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": {}}, r"field 'files': .*expected mapping of length >= 1, found \{\}"),
        ({"files": None}, r"field 'files': .*expected a value, found none"),
        ({"files": ["a"]}, r"field 'files': .*expected mapping, found \['a'\]"),
        ({"files": {"arrays/x": 3}}, r"field 'files\[\.\.\.\]': .*expected str"),
        ({"files": {"../x": "0"}}, r"field 'files': '\.\./x' is outside the folder"),
        ({"format": None}, r"field 'format': expected ultr-model or ultr-state, found None"),
        ({"format": ["a"]}, r"field 'format': expected ultr-model or ultr-state"),
        ({"model": None}, r"field 'model': .*expected a value, found none"),
        ({"model": 3}, r"field 'model': .*expected mapping, found 3"),
        ({"extra": None}, r"field 'extra': .*expected a value, found none"),
        ({"extra": {"vocabulary": {"documents": 1}}}, r"field 'extra\.vocabulary\.fingerprint': .*expected a value"),
        ({"extra": {"train": "log"}}, r"field 'extra\.train': .*expected mapping \| null, found 'log'"),
        ({"model": {}}, r"field 'model\.class': expected the name of a class, found None"),
        ({"model": {"class": 3}}, r"field 'model\.class': expected the name of a class, found 3"),
        ({"model": {"class": ["PBM"]}}, r"field 'model\.class': expected the name of a class, found \['PBM'\]"),
        (
            {"model": {"class": "shared", "module": 7}},
            r"field 'model\.module': expected the number of one of 0",
        ),
        ({"model": MODEL | {"relevance": {"class": "shared"}}}, r"field 'model\.relevance\.module': expected .* None"),
        ({"model": MODEL | {"relevance": {"class": "Nothing"}}}, r"field 'model\.relevance': unknown model or tower"),
        ({"model": MODEL | {"wrong": 1}}, r"field 'model': PBM has no argument 'wrong'"),
        ({"model": {"class": "PBM"}}, r"field 'model': PBM: .*missing"),
        (
            {"model": MODEL | {"examination": {"class": "RankTable", "ranks": "x"}}},
            r"field 'model\.examination': Rank",
        ),
        (
            {"model": MODEL | {"relevance": {"class": "DocumentTable", "documents": 3, "feature": ["a"]}}},
            r"field 'model\.relevance': DocumentTable: expected feature as a name, found \['a'\]",
        ),
        (
            {"model": MODEL | {"relevance": {"class": "Linear", "size": 2, "feature": [["a"], "b"]}}},
            r"field 'model\.relevance': Linear: expected feature as a name, found \['a'\]",
        ),
        ({"model": {"class": "array", "value": "x"}}, r"field 'model\.value': expected numbers"),
        ({"model": {"class": "array", "value": [1]}}, r"field 'model': expected a model, found"),
    ],
)
def test_what_was_edited_is_named_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = save(pbm(), tmp_path / "m")
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=message) as found:
        load(folder)
    assert "meta.json" in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("text", ["[" * 1000, "\xff\xfe", "{", "null", "3"])
def test_a_meta_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    folder = save(pbm(), tmp_path / "m")
    (folder / "meta.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"meta\.json: the file is damaged"):
        load(folder)


def test_every_file_of_arrays_has_a_checksum(tmp_path: Path) -> None:
    folder = save(pbm(), tmp_path / "m")
    files = read_meta(folder)["files"]
    assert set(files) == {str(p.relative_to(folder)) for p in (folder / "arrays").rglob("*") if p.is_file()}
    (folder / "arrays" / ".DS_Store").write_text("of a file manager")
    load(folder)
    name = sorted(files)[0]
    edit(folder, files={n: digest for n, digest in files.items() if n != name})
    with pytest.raises(CheckpointError, match=rf"{name}: meta\.json has no checksum of this file"):
        load(folder)


def plain(batch: Sessions) -> Any:
    return batch.features["document"] * 0.5


def test_a_model_without_arrays_is_saved_and_loaded(tmp_path: Path) -> None:
    model = baselines.FullInformation(relevance=plain)
    loaded = load(save(model, tmp_path / "m"), like=baselines.FullInformation(relevance=plain))
    graded = sessions().replace(labels=np.ones((40, K), np.float32))
    np.testing.assert_array_equal(loaded.score(graded), model.score(graded))
    fitted = fit(model, graded, epochs=1, batch_size=8, seed=0, directory=tmp_path / "run")
    again = load(tmp_path / "run" / "model", like=model)
    np.testing.assert_array_equal(again.score(graded), fitted.model.score(graded))
    with pytest.raises(CheckpointError, match=r"array '.*' is absent in the file|is \(1,\) in the file"):
        load(tmp_path / "m", like=pbm())


@pytest.mark.parametrize("number", [np.int64(8), np.int32(8), np.uint8(8)])
def test_numbers_of_numpy_are_numbers(tmp_path: Path, number: Any) -> None:
    model = models.PBM(relevance=towers.DocumentTable(number), examination=towers.RankTable(K))
    assert load(save(model, tmp_path / "m")).relevance.documents == 8


class Streamed:
    """Batches without an identity."""

    def batches(self, batch_size: int, *, seed: int | None = None) -> Iterator[Sessions]:
        yield sessions()[np.arange(32)]


def run(folder: Path, data: Any, *, epochs: int, valid: Any = None, **options: Any) -> Any:
    return fit(pbm(), data, valid, epochs=epochs, batch_size=8, seed=0, directory=folder, **options)


def test_settings_that_are_no_numbers_resume(tmp_path: Path) -> None:
    settings = {"clip": float("nan"), "rate": np.float32(0.5), "sizes": np.arange(3), "limit": float("inf")}
    run(tmp_path, sessions(), epochs=1, settings=settings)
    run(tmp_path, sessions(), epochs=2, settings=settings, resume=True)
    with pytest.raises(ConfigError, match=r"another settings\.clip \(nan, now 1\.0\)"):
        run(tmp_path, sessions(), epochs=3, settings=settings | {"clip": 1.0}, resume=True)
    with pytest.raises(ConfigError, match="settings: expected values that JSON can hold"):
        run(tmp_path, sessions(), epochs=3, settings={"clip": object()}, resume=True)


@pytest.mark.parametrize(
    ("before", "now", "names"),
    [
        (adam(0.1), lazy_adam(0.1), r"'.*ScaleByAdamState.*', now 'RowAdam.*'"),
        (optax.sgd(0.1), adam(0.1), r"'.*', now '.*ScaleByAdamState.*'"),
        (optax.sgd(0.1, momentum=0.9), optax.sgd(0.1), "'TraceState.*', now '.*'"),
    ],
)
def test_another_optimizer_is_named(tmp_path: Path, before: Any, now: Any, names: str) -> None:
    run(tmp_path, sessions(), epochs=1, optimizer=before)
    with pytest.raises(ConfigError, match=rf"the interrupted run had another optimizer \({names}\)"):
        run(tmp_path, sessions(), epochs=2, optimizer=now, resume=True)
    run(tmp_path, sessions(), epochs=2, optimizer=before, resume=True)


def test_other_sessions_in_memory_are_noticed(tmp_path: Path) -> None:
    run(tmp_path, sessions(), epochs=1, valid=sessions(1))
    with pytest.raises(ConfigError, match=r"another train\.fingerprint"):
        run(tmp_path, sessions(2), epochs=2, valid=sessions(1), resume=True)
    with pytest.raises(ConfigError, match=r"another valid\.fingerprint"):
        run(tmp_path, sessions(), epochs=2, valid=sessions(2), resume=True)
    assert len(run(tmp_path, sessions(), epochs=2, valid=sessions(1), resume=True).history) == 2


def test_data_without_an_identity_is_said_not_to_be_checked(tmp_path: Path) -> None:
    run(tmp_path, Streamed(), epochs=1)
    with pytest.warns(UserWarning, match="whether the train data is that of the interrupted run cannot be checked"):
        run(tmp_path, Streamed(), epochs=2, resume=True)


def test_a_state_from_before_optimizers_were_recorded_resumes(tmp_path: Path) -> None:
    run(tmp_path, sessions(), epochs=1)
    edit(tmp_path / "state", optimizer=None, train=None)
    assert len(run(tmp_path, sessions(), epochs=2, resume=True).history) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (3, r"field 'run': .*expected mapping, found 3"),
        ({}, r"field 'run\.history': .*expected a value, found none"),
        ({"history": [], "best": -1, "best_loss": None}, r"field 'run\.best': .*expected int >= 0, found -1"),
        ({"history": [], "best": 0, "best_loss": 1.0, "partial": {}}, r"field 'run\.partial\.blocks': .*a value"),
    ],
)
def test_a_state_that_was_edited_is_named(tmp_path: Path, change: Any, message: str) -> None:
    run(tmp_path, sessions(), epochs=1)
    edit(tmp_path / "state", run=change)
    with pytest.raises(CheckpointError, match=message):
        run(tmp_path, sessions(), epochs=2, resume=True)


def test_a_model_is_no_state(tmp_path: Path) -> None:
    save(pbm(), tmp_path / "state")
    with pytest.raises(ConfigError, match="expected the state of an interrupted run, found a ultr-model"):
        run(tmp_path, sessions(), epochs=2, resume=True)


def test_a_description_may_be_built_alone() -> None:
    assert build({"class": "RankTable", "ranks": 4}).ranks == 4


@pytest.mark.slow
def test_a_tower_of_two_slots_is_saved_once_and_trained_as_one(tmp_path: Path) -> None:
    tower = towers.DocumentTable(DOCUMENTS)
    satisfaction = towers.Increasing(tower, slope=0.5, intercept=-1.0)
    dbn = models.DBN(relevance=tower, satisfaction=satisfaction, continuation=towers.Constant(1.0))
    fitted = fit(models.Frailty(dbn), sessions(), seed=0, epochs=3, batch_size=20).model
    again = load(save(fitted, tmp_path / "m"))
    assert again.model.satisfaction.tower is again.model.relevance
    assert again.standard_deviation == fitted.standard_deviation != 1.0
    np.testing.assert_array_equal(again.loss(sessions()), fitted.loss(sessions()))
    logits = fitted.model.logits(sessions())
    slope, intercept = np.logaddexp(0, fitted.model.satisfaction.k[...]), fitted.model.satisfaction.b[...]
    assert slope != 0.5
    np.testing.assert_allclose(logits["satisfaction"], slope * logits["relevance"] + intercept, rtol=1e-5)
    assert models.Frailty(pbm()).sufficient_statistics == "list"  # whatever those of the model


def test_a_tower_of_two_slots_runs_once() -> None:
    calls = []

    def relevance(lists: Sessions) -> Any:
        calls.append(1)
        return lists.features["document"] * 0.1

    tower = towers.as_tower(relevance)
    dbn = models.DBN(relevance=tower, satisfaction=towers.Increasing(tower), continuation=towers.Constant(1.0))
    for model in (dbn, models.Frailty(dbn)):
        calls.clear()
        model.loss(sessions())
        assert len(calls) == 1


def test_the_folder_of_a_run_is_one_of_its_model(tmp_path: Path) -> None:
    model = models.PBM(relevance=towers.DocumentTable(3), examination=towers.RankTable(2))
    save(model, tmp_path / "run" / "model")
    assert isinstance(load(tmp_path / "run"), models.PBM)
    with pytest.raises(CheckpointError, match="expected a saved model"):
        load(tmp_path)
