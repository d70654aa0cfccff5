"""Methods that learn examination refuse a log that does not tell it, or warn of what their answer rests on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import Ultr
from stored import write_log

from ultr.data import ClickLog, Counts, collapse
from ultr.errors import ConfigError
from ultr.propensity import ESTIMATORS
from ultr.study.nuisance import check_identified, unidentified
from ultr.study.registry import METHODS, method_spec
from ultr.study.support import NOISE, VAGUE, check_support, features_error

QUERIES = 12
LEARNT = [name for name, spec in METHODS.items() if spec.examination == "learnt"]
MODELLED = [name for name, spec in METHODS.items() if spec.examination == "modelled"]


def log_of(
    path: Path, order: Callable[[int, np.random.Generator], Any], features: Any, *, sessions: int = 600
) -> ClickLog:
    """Clicks with examination 1, 1/2, 1/3 and relevance .6 on three documents per query, shown in a given order.

    Args:
      order: number of the session, generator -> places of the three documents.
      features: place [0, 1, 2] of a document, query -> its number.
    """
    rng, rows = np.random.default_rng(0), []
    for i in range(sessions):
        documents = 3 * (i % QUERIES) + 1 + np.asarray(order(i, rng))
        clicks = (rng.random(3) < 0.6 / np.arange(1, 4)).astype(int)
        rows.append({"session": str(i), "query": i % QUERIES, "documents": documents.tolist(), "ranks": [1, 2, 3],
                     "clicks": clicks.tolist()})  # fmt: skip
    values = np.array([features(d, q) for q in range(QUERIES) for d in range(3)], np.float32)
    documents = pa.table(
        {
            "query": pa.array(np.repeat(np.arange(QUERIES), 3), pa.int32()),
            "document": [f"url {i}" for i in range(3 * QUERIES)],
            "features": pa.FixedSizeListArray.from_arrays(pa.array(np.stack([values, values**2], 1).ravel()), 2),
        }
    )
    return write_log(path, rows, documents=documents, queries=pa.array([f"q{i}" for i in range(QUERIES)]))


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ClickLog]:
    """`moved`, `few`: every order; `fixed`: one, by which features do not go; `ranked`: the features are the rank."""
    folder, noise = tmp_path_factory.mktemp("support"), np.random.default_rng(1).normal(size=(3, QUERIES))
    fixed = lambda i, rng: [0, 1, 2]  # noqa: E731
    return {
        "moved": log_of(folder / "moved", lambda i, rng: rng.permutation(3), lambda d, q: noise[d, q], sessions=2000),
        "few": log_of(folder / "few", lambda i, rng: rng.permutation(3), lambda d, q: noise[d, q], sessions=30),
        "fixed": log_of(folder / "fixed", fixed, lambda d, q: noise[d, q]),
        "ranked": log_of(folder / "ranked", fixed, lambda d, q: d),
    }


def checked(name: str, log: ClickLog, *, by_features: bool = False) -> str | None:
    counts = collapse(log, "rank")
    return check_support(method_spec(name), estimate(counts), counts, by_features=by_features)


def estimate(counts: Counts) -> Any:
    return ESTIMATORS["conditional-likelihood"].estimate(counts)


def test_every_row_says_what_it_needs_to_know_of_examination() -> None:
    for name, spec in METHODS.items():
        assert (spec.examination == "given") == spec.takes_propensities, name
        by_rank = {"rank", "rank_from_first", "last_click"} & set(spec.towers.values())
        learns = bool(by_rank) and "examination" in spec.towers
        assert not learns or spec.examination == ("modelled" if spec.family == "Click models" else "learnt"), name
    assert {"dla", "regression-em", "pairdebias", "upe", "additive-listwise"} <= set(LEARNT)
    assert method_spec("pbm+dbn").examination == "modelled"
    assert method_spec("dctr+dbn").examination == "none"
    assert method_spec("pbm-frozen+dbn").examination == "given"


@pytest.mark.parametrize("name", LEARNT)
def test_what_would_be_noise_is_refused_in_the_words_of_weighted_methods(name: str, logs: dict[str, ClickLog]) -> None:
    counts = collapse(logs["fixed"], "rank")
    with pytest.raises(ConfigError) as refused:
        check_identified(estimate(counts))
    sentence = unidentified(estimate(counts))
    assert sentence is not None
    assert str(refused.value).startswith(sentence)
    with pytest.raises(ConfigError) as also:
        checked(name, logs["fixed"])
    assert str(also.value).startswith(f"{sentence}: what '{name}' learns there would be noise")
    with pytest.raises(ConfigError, match="nor do the features of the documents compare them"):
        checked(name, logs["ranked"], by_features=True)
    assert checked(name, logs["moved"]) is None


def test_features_that_compare_the_ranks_are_an_assumption_that_is_warned_of(logs: dict[str, ClickLog]) -> None:
    counts = collapse(logs["fixed"], "rank")
    error = features_error(counts)
    assert 0 < error < NOISE
    said = checked("dla", logs["fixed"], by_features=True)
    assert said is not None
    assert said.startswith(str(unidentified(estimate(counts))))
    assert f"error of at least {error:.0%}" in said
    assert features_error(collapse(logs["ranked"], "rank")) == np.inf


@pytest.mark.parametrize("name", MODELLED)
def test_likelihoods_are_warned_of_and_never_refused(name: str, logs: dict[str, ClickLog]) -> None:
    for log in ("fixed", "ranked"):
        said = checked(name, logs[log])
        assert said is not None
        assert "come from its assumptions" in said
    assert checked(name, logs["moved"]) is None


def test_too_few_clicks_are_warned_of(logs: dict[str, ClickLog]) -> None:
    counts = collapse(logs["few"], "rank")
    found = estimate(counts)
    assert unidentified(found) is None
    worst = np.nanmax(found.log_standard_error)
    assert worst > VAGUE
    assert f"factor of up to {np.exp(1.96 * worst):.1f} either way" in str(checked("dla", logs["few"]))
    for name in ("naive", "dctr", "shrunk-ctr", "ips-listwise"):  # need nothing, or are checked elsewhere
        assert checked(name, logs["few"]) is checked(name, logs["fixed"]) is None


def test_train_refuses_and_warns(ultr: Ultr, logs: dict[str, ClickLog], tmp_path: Path) -> None:
    options = ("--valid-fraction", 0, "--epochs", 1, "--json", "--relevance")
    for model in ("dla", "ips-listwise"):
        bad = ultr("train", logs["fixed"].path, "--out", tmp_path / model, "--model", model, *options, "table")
        assert bad.code == 2
        assert "unidentified: the conditional-likelihood of this log gives ranks 2-3" in bad.err
        assert not (tmp_path / model / "model").exists()
    for model, relevance in (("dla", "linear"), ("pbm", "table")):
        out = tmp_path / f"good-{model}"
        good = ultr("train", logs["fixed"].path, "--out", out, "--model", model, *options, relevance)
        assert good.code == 0, good.err
        assert good.json["support"].startswith("unidentified: ")
        assert f"note: {good.json['support']}" in good.err
