"""How much memory the process may still use: by its control groups, its own limits, and what the machine has left."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

_FILES = (  # of control groups of version 2 and 1: the limit, the use, and what of the use can be had back
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available_memory(*, groups: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc")) -> int:
    """Computes how many bytes the process may still use.

    That is the least of what is free on the machine, of what each control group above the process has left (versions 1
    and 2; a container is one), and of the process's limit of address space.

    Args:
      groups: the folder where control groups are mounted.
      process: the folder of processes.
    """
    rooms = [_machine(process), *_address_space(process)]
    for folder in _folders(groups, process):
        rooms += [max(limit - used, 0) for limit, used in _limits(folder)]
    return min(rooms)


def _machine(process: Path) -> int:
    for line in _lines(process / "meminfo"):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) << 10
    return 4 << 30  # not Linux: a guess that most machines can bear


def _address_space(process: Path) -> Iterator[int]:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        pages = next(iter(_lines(process / "self" / "statm")), "0").split()[0]
        yield max(limit - int(pages) * resource.getpagesize(), 0)


def _folders(groups: Path, process: Path) -> list[Path]:
    """Lists the folders of the control groups that limit the memory of the process, from the innermost outwards."""
    out: list[Path] = []
    for line in _lines(process / "self" / "cgroup"):
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number != "0" and "memory" not in controllers.split(","):
            continue
        # In a container the path may be that of the host, of which only the top is to be seen.
        for root in [groups, groups / "unified"] if number == "0" else [groups / "memory", groups]:
            inner = root / path.strip("/")
            out += [folder for folder in (inner, *inner.parents) if folder == root or root in folder.parents]
    return list(dict.fromkeys(out))


def _limits(folder: Path) -> Iterator[tuple[int, int]]:
    for limit_file, used_file, freed in _FILES:
        with contextlib.suppress(ValueError):  # no such file, or "max"
            limit, used = (int(next(iter(_lines(folder / name)), "")) for name in (limit_file, used_file))
            stat = dict(line.split()[:2] for line in _lines(folder / "memory.stat") if len(line.split()) > 1)
            yield limit, max(used - int(stat.get(freed, 0)), 0)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
