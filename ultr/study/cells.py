"""Cells: what one method made of one log with one seed, kept as files so that it is not made again."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ultr import __version__
from ultr.data import ClickLog, Collection, open_data
from ultr.files import write_bytes, write_text
from ultr.study import boosting
from ultr.study.spec import Log, Method, Study, plain, slug

SCHEMA = 1
GRADED = "graded lists"  # in place of a log's name, for methods that learn from none


@dataclasses.dataclass(frozen=True)
class Cell:
    """One method on one log with one seed; `log` is None for methods that learn from grades."""

    log: Log | None
    method: Method
    seed: int

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.log.name if self.log else GRADED} / {self.method.name} / seed {self.seed}"

    def place(self, folder: Path, kind: str, suffix: str) -> Path:
        """Where a file of the cell is kept."""
        log = slug(self.log.name) if self.log else "-"
        return folder / kind / log / slug(self.method.name) / f"seed-{self.seed}{suffix}"


def cells(study: Study) -> Iterator[Cell]:
    """Every cell of a study; those that learn from grades alone once per seed, not once per log."""
    for seed in study.seeds:
        for method in study.methods:
            if method.kind.learns == "labels":
                yield Cell(None, method, seed)
        for log in study.logs:
            for method in study.methods:
                if method.kind.learns != "labels":
                    yield Cell(log, method, seed)


def fingerprint(study: Study, cell: Cell) -> str:
    """Of all that decides what a cell holds: another one, and it is made again."""
    method, study_plain = plain(cell.method), plain(study.data)
    for unheeded in ("name", *(f for f in method if not cell.method.kind.takes(f))):
        method.pop(unheeded, None)
    method["options"] = plain({**cell.method.kind.options, **cell.method.options})
    shares = [study.valid_share, study.test_share] if cell.log else []
    log = plain(cell.log) if cell.log else None
    if log:
        log.pop("name")
    facts = {
        "schema": SCHEMA,
        "version": __version__,
        "data": {"settings": sorted(k for k, v in study_plain.items() if v), "lists": _lists(study)},
        "log": log,
        "sessions": _identity(cell.log.path) if cell.log and cell.log.path else None,
        "method": method,
        "seed": cell.seed,
        "metrics": list(study.metrics),
        "shares": shares,
        "peer": boosting.version(cell.method.model) if cell.method.kind.how == "boost" else None,
        "file": _content(cell.method.propensity) if cell.method.propensity.endswith(".json") else None,
    }
    files = [source for source in cell.method.grid.get("propensity", ()) if source.endswith(".json")]
    if files:
        facts["files"] = [_content(source) for source in files]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _lists(study: Study) -> list[str]:
    data = study.data
    if data.collection is not None:
        return [_identity(data.collection), *(str(x) for x in (data.train, data.vali, data.test))]
    return [_identity(Path(x)) if x else "" for x in (data.train, data.vali, data.test)]


@cache
def _identity(path: Path) -> str:
    found: ClickLog | Collection = open_data(path)
    return str(found.identity["fingerprint"])


def _content(path: str) -> str | None:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return None


def read(folder: Path, cell: Cell) -> dict[str, Any] | None:
    """What is kept of a cell; None where there is nothing or it cannot be read."""
    try:
        found = json.loads(cell.place(folder, "cells", ".json").read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("schema") == SCHEMA else None


def finished(folder: Path, cell: Cell, mark: str, *, retry: bool) -> bool:
    """Whether a cell of these settings is kept, so that it need not be made again."""
    found = read(folder, cell)
    if found is None or found.get("fingerprint") != mark:
        return False
    if found.get("error") is not None:
        return not (retry or found.get("unexpected"))
    return not found.get("queries") or cell.place(folder, "cells", ".npz").exists()


def write(folder: Path, cell: Cell, facts: Mapping[str, Any], values: Mapping[str, np.ndarray] | None) -> None:
    """Keeps a cell: the values per query first, so that what names them is there only with them."""
    target = cell.place(folder, "cells", ".json")
    target.parent.mkdir(parents=True, exist_ok=True)
    if values is not None:
        content = io.BytesIO()
        np.savez_compressed(content, **values)  # type: ignore[arg-type]
        write_bytes(target.with_suffix(".npz"), content.getvalue())
    write_text(target, dumps({"schema": SCHEMA, **facts}))


def values(folder: Path, cell: Cell) -> dict[str, np.ndarray] | None:
    """The metrics per query, with "query" [Q]; None where none were kept."""
    try:
        with np.load(cell.place(folder, "cells", ".npz"), allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except (OSError, ValueError):
        return None


def dumps(value: Any) -> str:
    """JSON, in which what is not finite is null."""
    return json.dumps(_finite(value), indent=1) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
