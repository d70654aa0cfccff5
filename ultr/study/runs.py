"""Runs of a study, one method on one log with one seed each, and the folder that keeps their results."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ultr import __version__
from ultr.data import ClickLog, Collection, open_data
from ultr.errors import DataError
from ultr.files import file_digest, folder_name, json_digest, json_values, write_bytes, write_json
from ultr.study.boosting import package_version
from ultr.study.effects import takes_setting
from ultr.study.settings import LogSpec, Study, StudyMethod

SCHEMA = 1
GRADED = "graded lists"  # in place of a log's name, for methods that learn from grades


@dataclasses.dataclass(frozen=True)
class Run:
    """One method on one log with one seed; `log` is None for methods that learn from grades."""

    log: LogSpec | None
    method: StudyMethod
    seed: int

    @property
    def title(self) -> str:
        """Names the run for people."""
        return f"{self.log.name if self.log else GRADED} / {self.method.name} / seed {self.seed}"


def study_runs(study: Study) -> Iterator[Run]:
    """Yields every run of a study; those that learn from grades once per seed, not once per log."""
    for seed in study.seeds:
        for method in study.methods:
            if method.spec.learns_from == "grades":
                yield Run(None, method, seed)
        for log in study.logs:
            for method in study.methods:
                if method.spec.learns_from != "grades":
                    yield Run(log, method, seed)


def run_digest(study: Study, run: Run) -> str:
    """Computes the digest of all that decides a run's results: settings and data; with another one it is made again."""
    given, spec = run.method, run.method.spec
    method, data = json_values(given), json_values(study.data)
    for name in [name for name in method if name == "name" or not takes_setting(spec, name)]:
        del method[name]
    method["options"] = json_values(given.all_options())
    log = json_values(run.log) if run.log else None
    if log:
        del log["name"]
    facts = {
        "schema": SCHEMA,
        "version": __version__,
        "data": {"settings": sorted(k for k, v in data.items() if v), "lists": _list_identities(study)},
        "log": log,
        "sessions": _identity(run.log.path) if run.log and run.log.path else None,
        "method": method,
        "seed": run.seed,
        "metrics": list(study.metrics),
        "shares": [study.valid_share, study.test_share] if run.log else [],
        "peer": package_version(spec) if spec.package else None,
        "file": _digest_of(given.propensity) if given.propensity.endswith(".json") else None,
    }
    files = [source for source in given.grid.get("propensity", ()) if source.endswith(".json")]
    if files:
        facts["files"] = [_digest_of(source) for source in files]
    return json_digest(facts)


def _list_identities(study: Study) -> list[str]:
    data = study.data
    if data.collection is not None:
        return [_identity(data.collection), *(str(x) for x in (data.train, data.vali, data.test))]
    return [_identity(Path(x)) if x else "" for x in (data.train, data.vali, data.test)]


@cache
def _identity(path: Path) -> str:
    found: ClickLog | Collection = open_data(path)
    return str(found.identity["fingerprint"])


def _digest_of(path: str) -> str | None:
    try:
        return file_digest(path)
    except OSError:
        return None


class StoredRuns:
    """The results of a study's runs and the facts of its logs, as files of a folder.

    Args:
      folder: it need not exist.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, run: Run, kind: str, suffix: str) -> Path:
        """Names the file of a run: "cells" with .json (facts) and .npz (values per query), or "trec" with .run."""
        log = folder_name(run.log.name) if run.log else "-"
        return self.folder / kind / log / folder_name(run.method.name) / f"seed-{run.seed}{suffix}"

    def read(self, run: Run) -> dict[str, Any] | None:
        """Reads the facts of a run; None where there are none or they cannot be read."""
        found = _read_json(self.path(run, "cells", ".json"))
        return found if found.get("schema") == SCHEMA else None

    def read_values(self, run: Run) -> dict[str, np.ndarray] | None:
        """Reads the metrics per query, with "query" [Q]; None where there are none.

        Raises:
          DataError: the file is damaged.
        """
        path = self.path(run, "cells", ".npz")
        try:
            with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as found:
                return {name: found[name] for name in found.files}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
            raise damaged_results(path, error) from error

    def write(self, run: Run, facts: Mapping[str, Any], values: Mapping[str, np.ndarray] | None) -> None:
        """Writes a run: the values per query first, so that the facts are there only with them."""
        target = self.path(run, "cells", ".json")
        target.parent.mkdir(parents=True, exist_ok=True)
        if values is not None:
            content = io.BytesIO()
            arrays: dict[str, Any] = dict(values)
            np.savez_compressed(content, **arrays)
            write_bytes(target.with_suffix(".npz"), content.getvalue())
        write_json(target, {"schema": SCHEMA, **facts})

    def is_finished(self, run: Run, digest: str, *, retry: bool) -> bool:
        """Tells whether results with this digest are there, so that the run need not be made again.

        Args:
          retry: whether one that failed counts as not finished.
        """
        found = self.read(run)
        if found is None or found.get("fingerprint") != digest:
            return False
        if found.get("error") is not None:
            return not (retry or found.get("unexpected"))
        return not found.get("queries") or self.path(run, "cells", ".npz").exists()

    def read_log_facts(self, log: LogSpec, seed: int) -> dict[str, Any]:
        """Reads what was written of a log of one seed; empty where there is nothing or it cannot be read."""
        return _read_json(self._log_path(log, seed))

    def write_log_facts(self, log: LogSpec, seed: int, facts: Mapping[str, Any]) -> None:
        """Writes what is known of a log of one seed: its size, its truth, its diagnosis."""
        path = self._log_path(log, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, facts)

    def _log_path(self, log: LogSpec, seed: int) -> Path:
        return self.folder / "about" / folder_name(log.name) / f"seed-{seed}.json"


def damaged_results(path: Path, error: Exception) -> DataError:
    """Makes the error about results of a study that are not what a run writes."""
    return DataError(
        f"expected results that a run of the study wrote, found others ({type(error).__name__}: {error})",
        fix="Remove what is damaged and run `ultr compare` again: it makes what is missing.",
        file=path,
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json_values(json.loads(path.read_text("utf-8")))  # which goes through lists in lists, as results do
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
