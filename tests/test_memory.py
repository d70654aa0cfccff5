"""How much memory `prepare` takes where nobody says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ultr.ingest.memory import available_memory

GIGABYTE = 1 << 30


def files(folder: Path, **contents: object) -> Path:
    """Writes small files; two underscores in a name are a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")
    return folder


def processes(folder: Path, cgroup: str, free: int = 16 * GIGABYTE) -> Path:
    """Makes a folder of processes whose machine has so many bytes free."""
    files(folder / "self", cgroup=cgroup, statm="1000 100 0 0 0 0 0")
    return files(folder, meminfo=f"MemTotal: 99999999 kB\nMemAvailable: {free >> 10} kB")


VERSIONS: dict[str, Any] = {
    "2": ("0::/jobs/mine", "", "memory__max", "memory__current", "inactive_file"),
    "1": (
        "5:cpu,cpuacct:/x\n4:memory:/jobs/mine\n0::/",
        "memory",
        "memory__limit_in_bytes",
        "memory__usage_in_bytes",
        "total_inactive_file",
    ),
}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_control_group_limits_memory(tmp_path: Path, version: str) -> None:
    cgroup, controller, most, used, freed = VERSIONS[version]
    proc, root = processes(tmp_path / "proc", cgroup), tmp_path / "cgroup" / controller
    own = files(root / "jobs" / "mine", **{most: 2 * GIGABYTE, used: GIGABYTE})
    assert available_memory(groups=tmp_path / "cgroup", process=proc) == GIGABYTE
    # Cached files go when memory is needed.
    files(own, memory__stat=f"anon 5\n{freed} {GIGABYTE // 2}")
    assert available_memory(groups=tmp_path / "cgroup", process=proc) == 3 * GIGABYTE // 2
    # A group further out may have less left.
    files(root / "jobs", **{most: 3 * GIGABYTE, used: 3 * GIGABYTE - 500})
    assert available_memory(groups=tmp_path / "cgroup", process=proc) == 500


@pytest.mark.parametrize("version", VERSIONS)
def test_a_container_sees_its_group_at_the_top(tmp_path: Path, version: str) -> None:
    cgroup, controller, most, used, _ = VERSIONS[version]
    proc = processes(tmp_path / "proc", cgroup)
    files(tmp_path / "cgroup" / controller, **{most: 2 * GIGABYTE, used: 0})
    assert available_memory(groups=tmp_path / "cgroup", process=proc) == 2 * GIGABYTE


def test_without_a_limit_the_free_memory_counts(tmp_path: Path) -> None:
    proc = processes(tmp_path / "proc", "0::/", free=3 * GIGABYTE)
    files(tmp_path / "cgroup", memory__max="max", memory__current=5)
    assert available_memory(groups=tmp_path / "cgroup", process=proc) == 3 * GIGABYTE
    assert available_memory(groups=tmp_path / "none", process=tmp_path / "none") == 4 * GIGABYTE
    assert 0 < available_memory() < 1 << 50
