"""Three hundred damaged inputs of `benchmarks/bench_damage.py`, ten of each kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from damage_kinds import KINDS, try_one

SEEDS = 10
QUICK = ("study", "propensities", "sessions", "collection-arrays")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in KINDS]
)
def test_damaged_inputs_give_data_or_an_error_of_our_own(name: str, tmp_path: Path) -> None:
    found = [(seed, *try_one(name, seed, tmp_path / "case")) for seed in range(SEEDS)]
    assert [case for case in found if case[1] == "finding"] == []
    assert any(outcome == "refused" for _, outcome, _ in found)  # the damage was damage


@pytest.mark.parametrize("name", QUICK)
def test_whole_inputs_are_read(name: str, tmp_path: Path) -> None:
    files = KINDS[name].make()
    for path, content in files.items():
        (tmp_path / path).write_bytes(content)
    KINDS[name].read(tmp_path)
