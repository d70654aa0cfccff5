"""Shared fixtures: strict JAX settings and the place of the real data."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 2)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def data_dir() -> Callable[[str], Path]:
    """`data_dir("yandex-sample")` is the folder of that real collection, or the test is skipped."""

    def find(name: str) -> Path:
        base = Path(os.environ.get("ULTR_DATA", ROOT.parent / "shared" / "data"))
        if not (base / name).is_dir():
            pytest.skip(f"real data {name!r} is absent: set ULTR_DATA to the folder that holds it")
        return base / name

    return find
