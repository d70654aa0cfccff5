"""Synthetic click logs for the speed benchmarks, the same sessions in the formats of all contestants.

Every query has 10 documents and every session shows all of them, in the order of their attraction plus Gumbel noise.
Query i of Q is drawn with probability proportional to 1/i. Clicks come from a position-based model and from a dynamic
Bayesian network on the same sessions; with `--features`, a document's attraction is a known smooth function of its
features instead of a number of its own, and its clicks come from the position-based model alone.

One folder per setting holds, for each part (train, valid, test):
  logs/CLICKS/PART               a prepared click log
  clax/CLICKS/PART/part-*.parquet    query_id, query_doc_ids, clicks: what CLAX's Yandex dataset reads
  pyclick/CLICKS/PART.tsv        query, ids by comma, clicks by comma
  features.npy                   [1 + documents, F] float32, row 0 for padding; with features only
  settings.json                  written last: settings, facts, and the log-likelihood of the true model
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from ultr.data import ClickLog, LogWriter

K = 10
PARTS = ("train", "valid", "test")
EXAMINATION = (1.0 / np.arange(1, K + 1)) ** 0.7  # of the position-based model
CONTINUATION = 0.9  # of the dynamic Bayesian network
_BLOCK = 250_000
_VERSION = 1  # of what is written: raise it and every folder is made anew


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the data.

    Attributes:
      queries: number of queries; there are ten times as many documents.
      sessions, valid_sessions, test_sessions: sizes of the parts.
      features: features per document F; 0: none.
      seed: decides everything else.
    """

    queries: int = 500_000
    sessions: int = 1_000_000
    valid_sessions: int = 20_000
    test_sessions: int = 80_000
    features: int = 0
    seed: int = 20250101

    @property
    def documents(self) -> int:
        return self.queries * K

    @property
    def clicks(self) -> tuple[str, ...]:
        return ("pbm",) if self.features else ("pbm", "dbn")

    @property
    def name(self) -> str:
        sizes = f"q{self.queries}-n{self.sessions}-v{self.valid_sessions}-t{self.test_sessions}"
        return f"{sizes}-f{self.features}-s{self.seed}"


class Data:
    """The folder of one setting; `make` returns it."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings = folder, settings
        self.facts: dict[str, Any] = json.loads((folder / "settings.json").read_text())["facts"]

    def log(self, clicks: str, part: str = "train") -> Path:
        return self.folder / "logs" / clicks / part

    def clax(self, clicks: str, part: str = "train") -> Path:
        return self.folder / "clax" / clicks / part

    def pyclick(self, clicks: str, part: str = "train") -> Path:
        return self.folder / "pyclick" / clicks / f"{part}.tsv"

    @property
    def features(self) -> Path:
        return self.folder / "features.npy"


def make(root: Path, settings: Settings) -> Data:
    """Writes the data of a setting below `root`, unless a complete folder of the same setting is there."""
    folder = root / settings.name
    wanted = dataclasses.asdict(settings) | {"version": _VERSION}
    try:
        found = json.loads((folder / "settings.json").read_text())["settings"]
    except FileNotFoundError:
        found = None
    if found != wanted:
        began = time.perf_counter()
        (folder / "settings.json").unlink(missing_ok=True)
        facts = _write(folder, settings)
        facts["seconds"] = round(time.perf_counter() - began, 1)
        (folder / "settings.json").write_text(json.dumps({"settings": wanted, "facts": facts}, indent=1) + "\n")
    return Data(folder, settings)


@dataclasses.dataclass
class _Truth:
    """Attraction and satisfaction [Q, K], and the features [Q * K, F] where there are any."""

    attraction: np.ndarray
    satisfaction: np.ndarray
    features: np.ndarray | None


def _truth(settings: Settings) -> _Truth:
    rng = np.random.default_rng([settings.seed, 0])
    shape = (settings.queries, K)
    attraction = rng.beta(1.0, 2.5, size=shape).astype(np.float32).clip(0.01, 0.97)
    satisfaction = rng.beta(2.0, 2.0, size=shape).astype(np.float32).clip(0.02, 0.98)
    if not settings.features:
        return _Truth(attraction, satisfaction, None)
    x = rng.normal(size=(settings.documents, settings.features)).astype(np.float32)
    weights = rng.normal(size=(settings.features, 24)).astype(np.float32)
    hidden = np.tanh(x @ weights * (2 / np.sqrt(settings.features)))
    quality = hidden @ rng.normal(size=24).astype(np.float32)
    # Standard deviation 1.5 around a logit of -1.2: about the click rate of the other logs.
    logit = 1.5 * (quality - quality.mean()) / quality.std() - 1.2
    attraction = (1 / (1 + np.exp(-logit))).astype(np.float32).clip(0.01, 0.97).reshape(shape)
    return _Truth(attraction, satisfaction, x)


@dataclasses.dataclass
class _Block:
    query: np.ndarray  # [n] int32 from 0
    ids: np.ndarray  # [n, K] int32 from 1
    clicks: dict[str, np.ndarray]  # name -> [n, K] int8
    true: dict[str, np.ndarray]  # name -> [n, K] probability of a click given the clicks above


def _blocks(settings: Settings, truth: _Truth, part: str, sessions: int) -> Iterator[_Block]:
    share = 1.0 / np.arange(1, settings.queries + 1)
    cumulative = np.cumsum(share / share.sum())
    logit = np.log(truth.attraction / (1 - truth.attraction))
    for number, start in enumerate(range(0, sessions, _BLOCK)):
        n = min(_BLOCK, sessions - start)
        rng = np.random.default_rng([settings.seed, 1 + PARTS.index(part), number])
        query = np.searchsorted(cumulative, rng.random(n)).clip(max=settings.queries - 1).astype(np.int32)
        order = np.argsort(-(logit[query] + rng.gumbel(size=(n, K)).astype(np.float32)), axis=1)
        attraction = np.take_along_axis(truth.attraction[query], order, 1).astype(np.float64)
        satisfaction = np.take_along_axis(truth.satisfaction[query], order, 1).astype(np.float64)
        clicks, true = {}, {}
        for name in settings.clicks:
            chance = rng.random((3, n, K), dtype=np.float32)
            simulate = _pbm if name == "pbm" else _dbn
            clicks[name], true[name] = simulate(attraction, satisfaction, chance)
        yield _Block(query, (query[:, None] * K + order + 1).astype(np.int32), clicks, true)


def _pbm(attraction: np.ndarray, satisfaction: np.ndarray, chance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    true = attraction * EXAMINATION
    return (chance[0] < true).astype(np.int8), true


def _dbn(attraction: np.ndarray, satisfaction: np.ndarray, chance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    clicked = np.zeros(attraction.shape, np.int8)
    true = np.zeros(attraction.shape)
    looks = np.ones(len(attraction), bool)
    belief = np.ones(len(attraction))  # probability that the user still looks, given the clicks so far
    for k in range(attraction.shape[1]):
        a, s = attraction[:, k], satisfaction[:, k]
        true[:, k] = belief * a
        now = looks & (chance[0, :, k] < a)
        clicked[:, k] = now
        looks = looks & ~(now & (chance[1, :, k] < s)) & (chance[2, :, k] < CONTINUATION)
        belief = CONTINUATION * np.where(now, 1 - s, (1 - a) * belief / (1 - a * belief))
    return clicked, true


def _write(folder: Path, settings: Settings) -> dict[str, Any]:
    truth = _truth(settings)
    if truth.features is not None:
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "features.npy", np.concatenate([np.zeros((1, settings.features), np.float32), truth.features]))
    facts: dict[str, Any] = {"documents": settings.documents, "ranks": K}
    sizes = dict(zip(PARTS, (settings.sessions, settings.valid_sessions, settings.test_sessions), strict=True))
    seen = np.zeros(settings.documents + 1, bool)
    for part, sessions in sizes.items():
        totals = {name: np.zeros(2) for name in settings.clicks}
        unseen = 0
        with _Writers(folder, settings, truth, part) as out:
            for block in _blocks(settings, truth, part, sessions):
                out.write(block)
                for name, total in totals.items():
                    clicked, true = block.clicks[name], block.true[name]
                    total[0] += clicked.sum()
                    total[1] += np.where(clicked, np.log(true), np.log1p(-true)).sum()
                if part == "train":
                    seen[block.ids] = True
                else:
                    unseen += int((~seen[block.ids]).sum())
        for name, (clicks, likelihood) in totals.items():
            facts[f"{name}/{part}"] = {
                "click_rate": clicks / (sessions * K),
                "true_log_likelihood": likelihood / (sessions * K),
            }
        if part != "train":
            facts[f"unseen_in_{part}"] = unseen / (sessions * K)
    facts["documents_in_train"] = int(seen.sum())
    return facts


class _Writers:
    """One part in all formats."""

    def __init__(self, folder: Path, settings: Settings, truth: _Truth, part: str) -> None:
        self.settings, self.part = settings, part
        self.paths = {name: folder / "{}" / name / part for name in settings.clicks}
        self.rows = 0
        # Two files of the train part, so that two workers of CLAX's loader have one each.
        self.file_rows = -(-settings.sessions // 2) if part == "train" else settings.sessions
        self.truth = truth

    def __enter__(self) -> _Writers:
        names = pa.array(np.arange(self.settings.queries)).cast(pa.string())
        documents: dict[str, Any] = {
            "query": pa.array(np.repeat(np.arange(self.settings.queries, dtype=np.int32), K)),
            "document": pa.array(np.arange(1, self.settings.documents + 1)).cast(pa.string()),
        }
        features = [f"f{i}" for i in range(self.settings.features)]
        if self.truth.features is not None:
            flat = pa.array(self.truth.features.ravel())
            documents["features"] = pa.FixedSizeListArray.from_arrays(flat, self.settings.features)
        self.logs: dict[str, LogWriter] = {}
        self.parquet: dict[tuple[str, int], pq.ParquetWriter] = {}
        self.text: dict[str, Any] = {}
        for name, path in self.paths.items():
            parent = None if self.part == "train" else ClickLog.open(self._at(path, "logs").parent / "train")
            self.logs[name] = LogWriter(
                self._at(path, "logs"),
                queries=names,
                documents=pa.table(documents),
                features=features,
                parent=parent,
                overwrite=True,
            ).__enter__()
            self._at(path, "clax").mkdir(parents=True, exist_ok=True)
            self._at(path, "pyclick").parent.mkdir(parents=True, exist_ok=True)
            self.text[name] = self._at(path, "pyclick").with_suffix(".tsv").open("wb")
        return self

    @staticmethod
    def _at(path: Path, kind: str) -> Path:
        return Path(str(path).format(kind))

    def write(self, block: _Block) -> None:
        n = len(block.query)
        offsets = pa.array(np.arange(0, (n + 1) * K, K, dtype=np.int32))
        ids = pa.ListArray.from_arrays(offsets, pa.array(block.ids.ravel()))
        ranks = pa.ListArray.from_arrays(offsets, pa.array(np.tile(np.arange(1, K + 1, dtype=np.int32), n)))
        query = pa.array(block.query)
        session = pa.array(np.arange(self.rows, self.rows + n))
        text_ids = pc.binary_join(ids.cast(pa.list_(pa.string())), ",")
        quiet = pyarrow.csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
        for name, clicked in block.clicks.items():
            clicks = pa.ListArray.from_arrays(offsets, pa.array(clicked.ravel()))
            columns = {"session": session, "query": query, "documents": ids, "ranks": ranks, "clicks": clicks}
            self.logs[name].write(pa.table(columns))
            self._clax(name, pa.table({"query_id": query, "query_doc_ids": ids, "clicks": clicks}))
            text = pa.table([query, text_ids, pc.binary_join(clicks.cast(pa.list_(pa.string())), ",")], list("qdc"))
            pyarrow.csv.write_csv(text, self.text[name], quiet)
        self.rows += n

    def _clax(self, name: str, table: pa.Table) -> None:
        start = self.rows
        while len(table):
            file, used = divmod(start, self.file_rows)
            key = (name, file)
            if key not in self.parquet:
                for other in [k for k in self.parquet if k[0] == name]:
                    self.parquet[other].close()
                path = self._at(self.paths[name], "clax") / f"part-{file}.parquet"
                self.parquet[key] = pq.ParquetWriter(path, table.schema)
            part = table.slice(0, self.file_rows - used)
            self.parquet[key].write_table(part, row_group_size=50_000)
            table = table.slice(len(part))
            start += len(part)

    def __exit__(self, *error: Any) -> None:
        for writer in self.parquet.values():
            writer.close()
        for file in self.text.values():
            file.close()
        for log in self.logs.values():
            log.__exit__(*error)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("root", type=Path, help="folder that holds one folder per setting")
    for field in dataclasses.fields(Settings):
        options.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default)
    chosen = vars(options.parse_args())
    data = make(chosen.pop("root"), Settings(**chosen))
    print(data.folder)
    print(json.dumps(data.facts, indent=1))


if __name__ == "__main__":
    main()
