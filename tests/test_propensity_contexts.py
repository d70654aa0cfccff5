"""Propensities per context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from propensity_logs import DESK, PHONE, assert_covers, click_log, click_rows, write_small

from ultr import propensity
from ultr.data import ClickLog, collapse
from ultr.errors import ConfigError
from ultr.propensity import ESTIMATORS


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> ClickLog:
    """A log with context columns."""
    return click_log(tmp_path_factory.mktemp("contexts") / "log", sessions=12_000, context=True)


@pytest.mark.parametrize("method", ["maximum-likelihood", "conditional-likelihood"])
@pytest.mark.parametrize("errors", ["information", "query"])
@pytest.mark.filterwarnings("default")
def test_each_context_has_its_curve(devices: ClickLog, method: Any, errors: Any) -> None:
    found = propensity.contextual(devices, "device", method=method, errors=errors)
    assert list(found) == ["device=phone", "device=desk"]
    for curve, truth, name in zip(found.values(), (PHONE, DESK), ("phone", "desk"), strict=True):
        assert_covers(curve, truth, most=0.2)
        assert (curve.method, curve.context) == (method, {"device": name})
        assert curve.rank.tolist() == [1, 2, 3, 4]
        assert curve.covariance is not None
        np.testing.assert_allclose(np.sqrt(np.diag(curve.covariance)), curve.log_standard_error)
    pooled = ESTIMATORS[method].estimate(devices)
    assert (np.abs(pooled.value - found["device=phone"].value)[1:] > 3 * pooled.standard_error[1:]).all()
    total = sum(curve.impressions for curve in found.values())
    np.testing.assert_array_equal(total, pooled.impressions)


def test_contexts_without_common_documents_are_estimated_alone(tmp_path: Path) -> None:
    rows = [row | {"context.device": 1 + row["query"] % 2} for row in click_rows(3000, context=True)]
    found = propensity.contextual(write_small(tmp_path / "all", rows), "device")
    for device, name in ((1, "phone"), (2, "desk")):
        some = [row for row in rows if row["context.device"] == device]
        alone = propensity.conditional_likelihood(write_small(tmp_path / name, some))
        np.testing.assert_allclose(found[f"device={name}"].value, alone.value, rtol=1e-5)
        np.testing.assert_allclose(found[f"device={name}"].standard_error, alone.standard_error, rtol=1e-4)


def test_documents_connect_ranks_over_contexts(tmp_path: Path) -> None:
    # On phones each document has one rank, on desks all: phones alone tell nothing of examination.
    rows = click_rows(6000, context=True)
    for row in rows:
        if row["context.device"] == 1:
            order = np.argsort(row["documents"])
            row["documents"] = [row["documents"][i] for i in order]
    phones = [row for row in rows if row["context.device"] == 1]
    still = [row | {"documents": (row["query"] * 6 + np.arange(1, 5)).tolist()} for row in phones]
    alone = propensity.maximum_likelihood(write_small(tmp_path / "phones", still))
    assert list(alone.unsupported) == [2, 3, 4]
    both = still + [row for row in rows if row["context.device"] == 2]
    found = propensity.contextual(write_small(tmp_path / "both", both), "device")
    assert found["device=phone"].unsupported == {}


def test_numbers_are_cut_into_bins_of_equal_size(devices: ClickLog) -> None:
    # Prices -2, ..., 5, each as often.
    found = propensity.contextual(devices, "price", bins=3)
    assert list(found) == ["price=-2 to 0", "price=1 to 2", "price=3 to 5"]
    shown = np.array([curve.impressions[0] for curve in found.values()])
    np.testing.assert_array_equal(shown, [4500, 3000, 4500])
    whole = propensity.contextual(devices, "price", bins=1)
    assert list(whole) == ["price=-2 to 5"]
    plain = propensity.conditional_likelihood(devices)
    np.testing.assert_allclose(whole["price=-2 to 5"].value, plain.value, rtol=1e-10)
    each = propensity.contextual(devices, "price", bins=50)
    assert list(each) == [f"price={x}" for x in range(-2, 6)]


def test_contexts_are_counted_in_little_memory(devices: ClickLog) -> None:
    names = ["price", "device"]
    found, small = (propensity.contextual(devices, names, bins=2, memory=memory) for memory in (1 << 30, 20_000))
    assert list(found) == list(small)
    assert list(found)[:2] == ["price=-2 to 1, device=phone", "price=-2 to 1, device=desk"]
    assert found["price=2 to 5, device=desk"].context == {"price": "2 to 5", "device": "desk"}
    for name in found:
        np.testing.assert_allclose(small[name].value, found[name].value, rtol=1e-12)


def test_contexts_with_too_little_say_so(tmp_path: Path) -> None:
    rows = click_rows(2000, context=True)
    for i, row in enumerate(rows):
        row["context.device"] = 3 if i < 5 else 0 if i < 400 else row["context.device"]
    found = propensity.contextual(write_small(tmp_path / "log", rows), "device")
    assert list(found) == ["device=unknown", "device=phone", "device=desk", "device=watch"]
    watch = found["device=watch"]
    clicks = sum(map(sum, (row["clicks"] for row in rows[:5])))
    assert watch.warnings[0] == f"too few clicks to tell a curve: {clicks} clicks in 20 impressions of this context"
    assert not any("too few clicks" in w for name in ("unknown", "phone") for w in found[f"device={name}"].warnings)


def test_unusable_contexts(devices: ClickLog, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a context column 'x': found the context columns device, price"):
        propensity.contextual(devices, "x")
    with pytest.raises(ConfigError, match="the log has no context columns"):
        propensity.contextual(click_log(tmp_path / "log", sessions=20), "device")
    with pytest.raises(ConfigError, match="counts have lost the context columns"):
        propensity.contextual(collapse(devices, "rank"), "device")
    options: Any
    for options in ({"by": []}, {"by": ["price", "price"]}, {"bins": 0}, {"method": "all-pairs"}):
        with pytest.raises(ConfigError, match="one or more different columns, at least 1 bin and a method"):
            propensity.contextual(devices, **{"by": "price"} | options)
    with pytest.raises(ConfigError, match="expected errors of 'information' or 'query', found 'best'"):
        propensity.contextual(devices, "price", errors="best")  # type: ignore[arg-type]
    rows = [row | {"context.price": float(i)} for i, row in enumerate(click_rows(400, context=True))]
    with pytest.raises(ConfigError, match=r"400 contexts at 4 ranks are too many.*fewer bins"):
        propensity.contextual(write_small(tmp_path / "many", rows), "price", bins=400)


def test_impression_features_do_not_matter(tmp_path: Path) -> None:
    rows = click_rows(300, context=True)
    plain = write_small(tmp_path / "plain", rows)
    rows = [row | {"feature.age": [1.0, 2.0, 3.0, 4.0]} for row in rows]
    log = write_small(tmp_path / "features", rows, impression_features=["age"])
    np.testing.assert_array_equal(propensity.ctr(log).value, propensity.ctr(plain).value)
    a, b = (propensity.contextual(source, "device")["device=desk"] for source in (log, plain))
    np.testing.assert_array_equal(a.value, b.value)
