"""The training loop and models on disk."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType

import ultr
from ultr import baselines, models, towers
from ultr.data import InMemory
from ultr.errors import CheckpointError, ConfigError, DataError, UltrError
from ultr.files import file_digest
from ultr.sessions import Sessions, concatenate
from ultr.training import adam, fit, load, save
from ultr.training.checkpoint import build, describe

K, V, F = 4, 12, 3


def log(sessions: int = 400, *, seed: int = 0, clicks: bool = True) -> Sessions:
    """Clicks of a PBM with examination 1/k over documents whose relevance rises with their id."""
    rng = np.random.default_rng(seed)
    document = rng.integers(1, V + 1, (sessions, K)).astype(np.int32)
    p = document / (V + 1) / np.arange(1, K + 1)
    feature = np.stack([document / V, document % 2, rng.normal(size=document.shape)], axis=-1)
    return Sessions(
        mask=np.ones((sessions, K), bool),
        position=np.tile(np.arange(K, dtype=np.int32), (sessions, 1)),
        features={"document": document, "features": feature.astype(np.float32)},
        clicks=(rng.random((sessions, K)) < p).astype(np.int8) if clicks else None,
        labels=np.round(document / 6).astype(np.float32),
    )


def pbm() -> models.PBM:
    return models.PBM(relevance=towers.DocumentTable(V), examination=towers.RankTable(K))


def same(a: Any, b: Any) -> bool:
    leaves = zip(jax.tree.leaves(nnx.state(a)), jax.tree.leaves(nnx.state(b)), strict=True)
    return all(bool((x == y).all()) for x, y in leaves)


def test_rctr_converges_to_the_click_rates() -> None:
    # The maximum of the likelihood of RCTR is known in closed form.
    sessions = log()
    fitted = fit(models.RCTR(towers.RankTable(K)), InMemory(sessions), epochs=150, batch_size=400, seed=0,
                 optimizer=optax.adam(0.1), patience=None)  # fmt: skip
    found = jax.nn.sigmoid(fitted.model.tower.table[...])
    np.testing.assert_allclose(found, np.asarray(sessions.clicks).mean(0), atol=1e-3)


def test_pbm_recovers_the_examination() -> None:
    fitted = fit(pbm(), InMemory(log(20_000)), epochs=8, batch_size=200, seed=0)
    np.testing.assert_allclose(fitted.model.propensity(K), 1 / np.arange(1, K + 1), atol=0.04)
    entry = np.asarray(fitted.model.relevance.table[...])[1:]
    assert np.corrcoef(entry, np.arange(V))[0, 1] > 0.95


def test_networks_learn_slower_than_tables_by_default() -> None:
    model = models.PBM(relevance=towers.Linear(F, rngs=nnx.Rngs(0)), examination=towers.RankTable(K))
    fitted = fit(model, InMemory(log(32)), epochs=1, batch_size=32, seed=0).model
    # The first step of Adam moves every parameter by the learning rate.
    moved = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()), nnx.state(fitted, nnx.Param), nnx.state(model, nnx.Param)
    )
    assert moved.relevance.output.kernel.get_value() == pytest.approx(0.003, rel=1e-3)
    assert moved.examination.table.get_value() == pytest.approx(0.03, rel=1e-3)


def test_history_counts_and_averages_what_was_seen() -> None:
    sessions = log(50)
    model = pbm()
    fitted = fit(model, InMemory(sessions), InMemory(sessions), epochs=1, batch_size=16, seed=0,
                 optimizer=optax.sgd(0.0))  # fmt: skip
    mean = float(np.asarray(model.loss(sessions)).mean())
    (epoch,) = fitted.history
    assert epoch["loss"] == pytest.approx(mean, rel=1e-5)
    assert epoch["valid_loss"] == pytest.approx(mean, rel=1e-5)
    assert (epoch["sessions"], epoch["impossible"], epoch["epoch"]) == (50, 0, 1)


def test_the_same_seed_gives_the_same_parameters_and_the_input_stays() -> None:
    source, model = InMemory(log()), pbm()
    untouched = pbm()
    first, again = (fit(model, source, epochs=2, batch_size=32, seed=3).model for _ in range(2))
    other = fit(model, source, epochs=2, batch_size=32, seed=4).model
    assert same(first, again)
    assert not same(first, other)
    assert same(model, untouched)


def test_weights_count_like_repetitions() -> None:
    once = log(30)
    weight = np.arange(30) % 4
    repeated = once[np.repeat(np.arange(30), weight)]
    weighted = once.replace(weight=weight.astype(np.float32))
    options: dict[str, Any] = {"epochs": 5, "batch_size": 64, "seed": 0, "l2": 5.0}
    a, b = (fit(pbm(), InMemory(s), **options) for s in (weighted, repeated))
    assert a.history[-1]["loss"] == pytest.approx(b.history[-1]["loss"], rel=1e-4)
    assert a.history[-1]["sessions"] == b.history[-1]["sessions"] == weight.sum()
    np.testing.assert_allclose(a.model.relevance.table[...], b.model.relevance.table[...], atol=1e-3)


class Overfits(nnx.Module):
    """Its loss falls on `train` (label 0) and rises on `valid` (label 1) once the parameter passes 1."""

    def __init__(self) -> None:
        self.x = nnx.Param(jnp.zeros(()))

    def loss(self, sessions: Sessions) -> jax.Array:
        aim = jnp.where(jnp.asarray(sessions.labels)[:, 0] == 0, 3.0, 1.0)
        return (self.x[...] - aim) ** 2

    def score(self, sessions: Sessions) -> jax.Array:
        return jnp.zeros(sessions.shape)


def flat(label: float) -> InMemory:
    return InMemory(Sessions.from_lists(labels=[[label]] * 8))


@pytest.mark.parametrize(("patience", "epochs_run"), [(2, 7), (None, 20)])
def test_the_best_epoch_is_restored_whether_or_not_it_stopped_early(patience: int | None, epochs_run: int) -> None:
    # x moves by .2 per epoch towards 3; validation is best at x = 1, after epoch 5.
    fitted = fit(Overfits(), flat(0), flat(1), optimizer=optax.sign_sgd(0.2), epochs=20, batch_size=8, seed=0,
                 patience=patience)  # fmt: skip
    assert fitted.best == 5
    assert len(fitted.history) == epochs_run
    assert float(fitted.model.x[...]) == pytest.approx(1.0, abs=1e-5)


def test_without_validation_the_last_epoch_counts() -> None:
    fitted = fit(Overfits(), flat(0), optimizer=optax.sign_sgd(0.2), epochs=4, batch_size=8, seed=0)
    assert fitted.best == 4
    assert float(fitted.model.x[...]) == pytest.approx(0.8, abs=1e-5)


def test_l2_is_a_gaussian_prior_in_units_of_sessions() -> None:
    # Minimum of 8 (x - 3)^2 + l2/2 x^2: x = 48 / (16 + l2).
    fitted = fit(Overfits(), flat(0), optimizer=optax.sgd(0.1), epochs=100, batch_size=8, seed=0, l2=32.0)
    assert float(fitted.model.x[...]) == pytest.approx(48 / 48, abs=1e-4)


def test_impossible_sessions_are_left_out_and_counted() -> None:
    clicks = [[0, 1, 0], [1, 1, 0], [0, 0, 0], [1, 0, 1]]
    possible = Sessions.from_lists(clicks=[clicks[0], clicks[2]])
    model = models.CascadeModel(relevance=towers.RankTable(3))
    options: dict[str, Any] = {"epochs": 3, "batch_size": 4, "seed": 0}
    fitted = fit(model, InMemory(Sessions.from_lists(clicks=clicks)), **options)
    alone = fit(model, InMemory(possible), **options)
    assert [h["impossible"] for h in fitted.history] == [2, 2, 2]
    assert fitted.history[-1]["loss"] == pytest.approx(alone.history[-1]["loss"], rel=1e-6)
    np.testing.assert_allclose(fitted.model.relevance.table[...], alone.model.relevance.table[...], rtol=1e-6)
    with pytest.raises(DataError, match="none of the 1 sessions is possible"):
        fit(model, InMemory(Sessions.from_lists(clicks=[[1, 1]])), **options)


def test_ragged_lists_and_several_widths_give_the_same_mean() -> None:
    wide = log(20)
    ragged = wide.replace(mask=np.arange(K) < (np.arange(20) % K + 1)[:, None])

    class Buckets:
        def __len__(self) -> int:
            return 20

        def batches(self, batch_size: int, *, seed: int | None = None) -> Any:
            short = np.arange(20) % K < 2
            narrow = jax.tree.map(lambda x: x[:, :2] if x.ndim > 1 else x, ragged[short])
            yield narrow.pad(rows=batch_size)
            yield ragged[~short].pad(rows=batch_size)

    rates: dict[str, Any] = {"epochs": 1, "batch_size": 32, "seed": 0, "optimizer": optax.sgd(0.0)}
    a, b = fit(pbm(), Buckets(), **rates), fit(pbm(), InMemory(ragged), **rates)
    assert a.history[0]["loss"] == pytest.approx(b.history[0]["loss"], rel=1e-6)


def test_bad_use_is_explained(tmp_path: Path) -> None:
    source = InMemory(log(10))
    small = models.PBM(relevance=towers.DocumentTable(3), examination=towers.RankTable(K))
    with pytest.raises(DataError, match=r"training data, row .* field 'document': expected ids up to 3"):
        fit(small, source, epochs=1, seed=0)
    with pytest.raises(UltrError, match=r"the loss is nan in epoch 1\. Lower the learning rate"):
        fit(pbm(), source, optimizer=optax.sgd(float("nan")), epochs=3, batch_size=2, seed=0)
    with pytest.raises(ConfigError, match="resume needs directory="):
        fit(pbm(), source, epochs=1, seed=0, resume=True)
    with pytest.raises(ConfigError, match="batch_size as a whole number of at least 1"):
        fit(pbm(), source, epochs=1, batch_size=0, seed=0)
    with pytest.raises(DataError, match="at least one session"):
        fit(pbm(), InMemory(log(0)), epochs=1, seed=0)
    with pytest.raises(ConfigError, match="needs clicks"):
        fit(pbm(), InMemory(log(5, clicks=False)), epochs=1, seed=0)
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))
    with pytest.raises(DataError, match="a weight above 0"):
        fit(pbm(), log(5).replace(weight=np.zeros(5, np.float32)), epochs=1, seed=0)
    refused: tuple[dict[str, Any], ...] = (
        *({"seed": x} for x in (-1, 0.5, "a")), *({"l2": x} for x in (-1.0, math.nan, math.inf, "a")),
        *({name: x} for name in ("patience", "batch_size", "block_sessions") for x in (0, -1, 1.5, math.nan, True)),
    )  # fmt: skip
    for wrong in refused:
        with pytest.raises(ConfigError, match=f"expected {next(iter(wrong))}"):
            fit(pbm(), source, epochs=1, **({"seed": 0} | wrong))
    with pytest.raises(ConfigError, match="learning rate above 0"):
        adam(-1.0)
    with pytest.raises(ConfigError, match="must be a multiple"):
        fit(pbm(), source, epochs=1, batch_size=3, seed=0, mesh=mesh)


def test_two_devices_give_the_result_of_one() -> None:
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))
    options: dict[str, Any] = {"epochs": 2, "batch_size": 32, "seed": 0, "optimizer": optax.sgd(0.5)}
    one, two = (fit(pbm(), InMemory(log(100)), mesh=m, **options) for m in (None, mesh))
    np.testing.assert_allclose(one.model.relevance.table[...], two.model.relevance.table[...], atol=1e-5)


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    train, valid = InMemory(log(100)), InMemory(log(50, seed=1))
    options: dict[str, Any] = {"batch_size": 32, "seed": 0, "patience": None}
    whole = fit(pbm(), train, valid, epochs=4, **options)
    fit(pbm(), train, valid, epochs=2, directory=tmp_path, **options)
    rest = fit(pbm(), train, valid, epochs=4, directory=tmp_path, resume=True, **options)
    assert same(whole.model, rest.model)
    assert same(load(tmp_path / "model"), whole.model)
    without = [{k: v for k, v in h.items() if k not in ("seconds", "waiting")} for h in whole.history]
    assert [{k: v for k, v in h.items() if k not in ("seconds", "waiting")} for h in rest.history] == without
    with pytest.raises(ConfigError, match="another seed"):
        fit(pbm(), train, valid, epochs=4, directory=tmp_path, resume=True, **(options | {"seed": 1}))


SAVED: dict[str, Any] = {
    "pbm": pbm,
    "ubm": lambda: models.UBM(
        relevance=towers.DocumentTable(V, kind="robe", rows=5, rngs=nnx.Rngs(1)),
        examination=towers.Sum([towers.LastClickTable(K), towers.Linear(F, rngs=nnx.Rngs(2))]),
    ),
    "shared": lambda: _shared(),
    "mixture": lambda: models.Mixture(
        components=[
            pbm(),
            models.DBN(
                relevance=towers.DCNV2(F, rank=2, rngs=nnx.Rngs(3)),
                satisfaction=towers.DocumentTable(V, kind="quotient-remainder", rows=3, rngs=nnx.Rngs(4)),
                continuation=towers.Constant(1.0),
            ),
            models.RDCTR(towers.RankDocumentTable(V, ranks=K)),
        ],
        prior_logits=np.array([0.1, 0.2, 0.3]),
    ),
    "trust": lambda: models.TrustPBM(
        relevance=towers.MLP(F, hidden=(4,), scaler=towers.Scaler(F, transform="log1p"), rngs=nnx.Rngs(5)),
        examination=towers.RankTable(K, initial=[0.0, -1.0, -2.0, -3.0]),
        trust_relevant=towers.RankTable(K),
        trust_irrelevant=towers.Constant(-2.0),
    ),
    "additive": lambda: models.AdditivePBM(
        relevance=towers.Linear(F, feature=("features",), rngs=nnx.Rngs(6)),
        examination=towers.RankTable(K, pin_first=True),
    ),
    "ccm": lambda: models.CCM(
        relevance=towers.GradeTable([-1.0, 0.0, 1.0]),
        after_skip=towers.Constant(),
        after_irrelevant_click=towers.Constant(),
        after_relevant_click=towers.DocumentTable(V, kind="hashed", rows=4),
    ),
    "naive": lambda: baselines.NaiveListwise(relevance=towers.DocumentTable(V)),
    "full information": lambda: baselines.FullInformation(relevance=towers.DocumentTable(V)),
}


def _shared() -> models.PBM:
    tower = towers.Linear(F, scaler=towers.Scaler(F), rngs=nnx.Rngs(7))
    return models.SDBN(relevance=tower, satisfaction=tower)  # type: ignore[return-value]


@pytest.mark.parametrize("name", SAVED)
def test_a_saved_model_scores_and_judges_as_before(name: str, tmp_path: Path) -> None:
    model, sessions = SAVED[name](), log(5)
    # Parameters and statistics as after training: nothing stands at its starting value.
    state = jax.tree.map(lambda x: x + 0.37, nnx.state(model, nnx.Param))
    nnx.update(model, state)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, towers.Scaler):
            module.mean[...], module.scale[...] = jnp.full(F, 0.2), jnp.full(F, 1.7)
    save(model, tmp_path / "m", extra={"note": 1})
    again = load(tmp_path / "m")
    assert describe(again) == describe(model)
    np.testing.assert_array_equal(again.score(sessions), model.score(sessions))
    np.testing.assert_array_equal(again.loss(sessions), model.loss(sessions))
    save(again, tmp_path / "m")  # replaces the older one
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_a_model_with_own_towers_needs_a_template(tmp_path: Path) -> None:
    model: Any = models.PBM(relevance=towers.DocumentTable(V), examination=lambda s: jnp.zeros(s.shape))
    model.relevance.table[...] = jnp.arange(V + 1.0)
    save(model, tmp_path / "m")
    with pytest.raises(CheckpointError, match="Pass like="):
        load(tmp_path / "m")
    like = models.PBM(relevance=towers.DocumentTable(V), examination=model.examination)
    assert same(load(tmp_path / "m", like=like), model)
    other = models.PBM(relevance=towers.DocumentTable(V + 1), examination=model.examination)
    with pytest.raises(CheckpointError, match=r"array 'relevance\.table.*' is \(13,\) in the file and \(14,\)"):
        load(tmp_path / "m", like=other)


def test_damage_to_a_saved_model_is_found(tmp_path: Path) -> None:
    folder = save(pbm(), tmp_path / "m")
    meta = folder / "meta.json"
    good = meta.read_text()

    def broken(change: dict[str, Any]) -> None:
        meta.write_text(json.dumps(json.loads(good) | change))

    broken({"schema": 99})
    with pytest.raises(CheckpointError, match="saved with schema 99, this version reads 1"):
        load(folder)
    broken({"model": {"class": "os.system"}})
    with pytest.raises(CheckpointError, match=r"unknown model or tower 'os\.system'"):
        load(folder)
    broken({"model": {"class": "RankTable", "ranks": 3, "depth": 2}})
    with pytest.raises(CheckpointError, match="RankTable has no argument 'depth'"):
        load(folder)
    meta.write_text("{")
    with pytest.raises(CheckpointError, match="it is not JSON"):
        load(folder)
    meta.write_text(good)
    victim = max((p for p in (folder / "arrays").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=r"checksum differs"):
        load(folder)
    victim.unlink()
    with pytest.raises(CheckpointError, match="missing from the saved model"):
        load(folder)
    with pytest.raises(CheckpointError, match=r"expected a saved model \(meta.json\), found none"):
        load(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    "text", ["[1, 2]", "{}", '{"schema": 1}', '{"schema": 1, "format": "ultr-model", "files": {}}']
)
def test_a_description_that_is_no_description_is_rejected(text: str, tmp_path: Path) -> None:
    folder = save(pbm(), tmp_path / "m")
    (folder / "meta.json").write_text(text)
    with pytest.raises(
        CheckpointError, match=r"meta\.json(: (the file is damaged|saved with schema None)|, field '\w+': )"
    ):
        load(folder)


class Noisy(nnx.Module):
    """A tower with dropout and batch statistics, which change during training."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm = nnx.BatchNorm(F, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.linear = nnx.Linear(F, 1, rngs=rngs)

    def __call__(self, sessions: Sessions) -> jax.Array:
        return self.linear(self.dropout(self.norm(jnp.asarray(sessions.features["features"]))))[..., 0]


@pytest.mark.slow
def test_dropout_and_batch_statistics_are_trained_saved_and_resumed(tmp_path: Path) -> None:
    def model() -> models.PBM:
        return models.PBM(relevance=Noisy(nnx.Rngs(0)), examination=towers.RankTable(K))

    options: dict[str, Any] = {"batch_size": 32, "seed": 0, "directory": tmp_path}
    fit(model(), log(64), epochs=1, **options)
    rest = fit(model(), log(64), epochs=3, resume=True, **options)
    whole = fit(model(), log(64), epochs=3, batch_size=32, seed=0)
    assert [h["loss"] for h in rest.history] == [h["loss"] for h in whole.history]
    judged = fit(model(), log(64), log(64), epochs=1, batch_size=64, seed=0)
    quiet = nnx.merge(*nnx.split(judged.model))
    quiet.eval()
    assert judged.history[0]["valid_loss"] == pytest.approx(float(quiet.loss(log(64)).mean()), rel=1e-5)
    loaded = load(tmp_path / "model", like=model())
    own, other = loaded.relevance.function.norm, whole.model.relevance.function.norm
    np.testing.assert_array_equal(own.mean[...], other.mean[...])
    assert (np.asarray(own.mean[...]) != 0).all()


def test_ctrl_c_waits_for_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checksum = file_digest

    def interrupted(path: Path) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        return checksum(path)

    monkeypatch.setattr("ultr.training.checkpoint.file_digest", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores Ctrl-C
    with pytest.raises(KeyboardInterrupt):
        save(pbm(), tmp_path / "m")
    signal.signal(signal.SIGINT, before)
    monkeypatch.undo()
    assert same(load(tmp_path / "m"), pbm())
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_resuming_with_other_data_or_settings_is_refused(tmp_path: Path) -> None:
    class Named(InMemory):
        def __init__(self, sessions: Sessions, name: str) -> None:
            super().__init__(sessions)
            self.description = dataclasses.replace(self.description, identity={"fingerprint": name})

    options: dict[str, Any] = {"epochs": 1, "batch_size": 32, "seed": 0, "directory": tmp_path}
    fit(pbm(), Named(log(40), "a"), settings={"learning_rate": 0.1}, **options)
    for train, rate, word in (("b", 0.1, r"train\.fingerprint"), ("a", 0.2, r"settings\.learning_rate")):
        with pytest.raises(ConfigError, match=f"another {word}"):
            fit(pbm(), Named(log(40), train), resume=True, settings={"learning_rate": rate}, **options)
    other = models.PBM(relevance=towers.DocumentTable(V + 1), examination=towers.RankTable(K))
    with pytest.raises(ConfigError, match=r"another model\.relevance\.documents \(12, now 13\)"):
        fit(other, Named(log(40), "a"), resume=True, settings={"learning_rate": 0.1}, **options)


def test_a_failed_save_leaves_the_older_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(pbm(), tmp_path / "m")
    changed: Any = pbm()
    changed.relevance.table[...] = jnp.ones(V + 1)

    def fails(*_: Any) -> str:
        raise OSError("disk full")

    monkeypatch.setattr("ultr.training.checkpoint.file_digest", fails)
    with pytest.raises(OSError, match="disk full"):
        save(changed, folder)
    monkeypatch.undo()
    assert same(load(folder), pbm())
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_descriptions_make_the_same_model_again() -> None:
    for make in SAVED.values():
        description = describe(make())
        assert describe(build(json.loads(json.dumps(description)))) == description
    with pytest.raises(ConfigError, match="unknown model or tower"):
        build({"class": "Path"})
    with pytest.raises(ConfigError, match="is not a class of the toolkit"):
        describe(Overfits())


def test_naive_losses_are_those_of_their_formulas() -> None:
    s = Sessions.from_lists(features={"x": [[0.5, -1.0, 2.0], [1.0]]}, clicks=[[1, 0, 1], [0]], labels=[[2, 0, 1], [0]])
    tower = lambda sessions: jnp.asarray(sessions.features["x"])  # noqa: E731
    p = 1 / (1 + np.exp(-np.array([0.5, -1.0, 2.0])))
    pointwise = baselines.NaivePointwise(relevance=tower).loss(s)
    expected = [-np.log(p[0]) - np.log(1 - p[1]) - np.log(p[2]), -np.log(1 - 1 / (1 + np.exp(-1.0)))]
    np.testing.assert_allclose(pointwise, expected, rtol=1e-6)
    log_softmax = np.array([0.5, -1.0, 2.0]) - np.log(np.exp([0.5, -1.0, 2.0]).sum())
    np.testing.assert_allclose(
        baselines.NaiveListwise(relevance=tower).loss(s), [-log_softmax[0] - log_softmax[2], 0.0], rtol=1e-6
    )
    full = -(2**2 - 1) * log_softmax[0] - (2**1 - 1) * log_softmax[2]
    np.testing.assert_allclose(baselines.FullInformation(relevance=tower).loss(s), [full, 0.0], rtol=1e-6)
    with pytest.raises(ConfigError, match="learns from labels"):
        baselines.FullInformation(relevance=tower).loss(s.replace(labels=None))


def test_unjudged_documents_and_padding_do_not_move_full_information() -> None:
    s = Sessions.from_lists(features={"x": [[0.5, -1.0], [1.0, 3.0]]}, labels=[[2, float("nan")], [1, 0]])
    model = baselines.FullInformation(relevance=towers.Linear(1, feature="x", rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    loss, slope = jax.value_and_grad(lambda p: nnx.merge(graphdef, p).loss(s.pad(rows=3, width=4)).sum())(state)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((loss, slope)))
    assert model.loss(s)[0] == pytest.approx(0.0, abs=1e-6)  # one judged document: softmax over itself


def test_public_names_resolve() -> None:
    for name in ultr.__all__:
        assert getattr(ultr, name) is not None
    assert set(ultr.__all__) <= set(dir(ultr))
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        ultr.fitt  # noqa: B018
    assert concatenate([log(2), log(3)]).shape == (5, K)
