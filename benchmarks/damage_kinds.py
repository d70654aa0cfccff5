"""The kinds of input that `bench_damage` damages: how each is made, damaged and read, and what must hold then."""

from __future__ import annotations

import bz2
import gzip
import json
import math
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from damage import (
    NUMBERS,
    VALUES,
    Rng,
    damage_bytes,
    damage_feather,
    damage_json,
    damage_json_lines,
    damage_parquet,
    damage_table,
    damage_text,
    damage_tree,
)
from flax import nnx

from ultr import models, towers
from ultr.data import ClickLog, Collection, collapse, open_data
from ultr.data.storage import file_record
from ultr.files import json_values
from ultr.ingest import prepare
from ultr.sessions import Sessions
from ultr.study import Study, collect_results, read_study, results_markdown
from ultr.study.nuisance import read_propensities
from ultr.study.reading import parse_study
from ultr.study.runs import StoredRuns, study_runs
from ultr.training import load, save

Files = dict[str, bytes]
LARGEST_RANKS = 1000  # that everything takes
Change = Callable[[bytes, Rng], bytes]


class Implausible(Exception):
    """What was read of a damaged input cannot be."""


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
      make: gives the whole files, by name.
      damage: damages them in place.
      read: reads them from a folder; what it returns has passed the checks.
    """

    make: Callable[[], Files]
    damage: Callable[[Files, Rng], Any]
    read: Callable[[Path], object]


def check(condition: bool, what: str) -> None:
    if not condition:
        raise Implausible(what)


def check_log(log: ClickLog) -> None:
    """Checks what a log gives: every batch, its collection and its counts."""
    sessions = impressions = clicks = 0
    for batch in log.batches(64):
        batch.validate()
        mask = np.asarray(batch.mask)
        position, document = np.asarray(batch.position), np.asarray(batch.features["document"])
        clicked = np.asarray(batch.clicks)
        check(bool(np.isin(clicked[mask], (0, 1)).all()), "clicks other than 0 and 1")
        check(bool(((position >= 0) & (position < log.ranks))[mask].all()), "ranks beyond those of the log")
        check(bool(((document >= 0) & (document <= log.documents))[mask].all()), "documents beyond those of the log")
        for name, values in batch.features.items():
            check(bool(np.isfinite(np.asarray(values)).all()), f"{name} that is not finite")
        sessions += int(mask.any(1).sum())
        impressions += int(mask.sum())
        clicks += int(clicked[mask].sum())
    check(0 < sessions == len(log), "another number of sessions than the log says")
    if log.metadata["sessions"] == len(log):
        check(impressions == log.metadata["impressions"], "another number of impressions than the metadata say")
        check(clicks == log.metadata["clicks"], "another number of clicks than the metadata say")
    if log.ranks <= LARGEST_RANKS and not log.metadata.get("impression_features"):
        counts = collapse(log, "rank")
        check(counts.impressions.sum() == impressions and counts.clicks.sum() == clicks, "other counts by rank")
    if (found := log.collection()) is not None:
        check_collection(found)


def check_collection(found: Collection) -> None:
    """Checks what a collection gives."""
    check(len(found) > 0, "no list")
    check(bool(np.isfinite(found.labels).all()), "grades that are not finite")
    if found.features is not None:
        check(bool(np.isfinite(found.features).all()), "features that are not finite")
    total = sum(int(np.asarray(batch.mask).sum()) for batch in found.batches(64))
    check(total == len(found.labels), "other documents than there are grades")


def check_data(found: Any) -> None:
    if isinstance(found, ClickLog):
        check_log(found)
    else:
        check_collection(found)


# Raw files


def click_rows(seed: int = 0) -> list[list[str]]:
    """Makes rows of session, query, document, rank, click, time and price."""
    rng = np.random.default_rng(seed)
    rows = []
    for session in range(12):
        for rank, document in enumerate(rng.permutation(9)[: int(rng.integers(1, 7))], 1):
            rows.append([f"{session}", f"q{session % 4}", f"d{document}", f"{rank}", f"{rng.integers(2)}",
                         f"{100 + session}", f"{rng.random():.3f}"])  # fmt: skip
    return rows


TABLE = ["session", "query", "document", "rank", "click", "time", "price"]


def delimited(sign: str, header: list[str] = TABLE, rows: list[list[str]] | None = None) -> bytes:
    return "".join(sign.join(row) + "\n" for row in [header, *(click_rows() if rows is None else rows)]).encode()


def parquet(table: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(table), sink)
    return bytes(sink.getvalue().to_pybytes())


def click_table() -> pa.Table:
    columns = list(zip(*click_rows(), strict=True))
    kinds: list[Any] = [int, str, str, int, int, float, float]
    return pa.table({n: [k(x) for x in c] for n, k, c in zip(TABLE, kinds, columns, strict=True)})


def yandex() -> bytes:
    lines = []
    for session in range(10):
        urls = [f"u{(session + i) % 7}" for i in range(5)]
        lines.append("\t".join([str(session), "0", "Q", f"q{session % 3}", "7", *urls]))
        lines.append(f"{session}\t{session}\tC\t{urls[session % 5]}")
    return "\n".join(lines).encode() + b"\n"


def yandex_sample() -> bytes:
    lists = [f"q{i % 4}_1\ta{i},b{i},c{i} : b{i} , a{i}" for i in range(20)]
    return "\n".join("; ".join(lists[i : i + 4]) for i in range(0, 20, 4)).encode() + b"\n"


def trec(graded: bool) -> bytes:
    grades = "\t[2,-1,0]" if graded else ""
    return "".join(
        f"{i}\tq{i % 3}\t['a{i}', \"b's\", c[1]]\t[1,2,1]\t[0,1,{i % 2}]{grades}\n" for i in range(12)
    ).encode()


def letor() -> bytes:
    rng = np.random.default_rng(1)
    lines = []
    for i in range(24):
        features = " ".join(f"{f}:{rng.random():.3f}" for f in range(1, 6) if f == 5 or rng.integers(4))
        lines.append(f"{i % 5 - (i == 4)} qid:{i // 6} {features}" + (f" # docid = D{i}" if i % 2 else ""))
    return "\n".join(lines).encode() + b"\n"


def events() -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for i in range(16):
        position = {"object": {"object_id": f"o{i % 5}"}, "position": {"ordinal": i % 4 + 1}}
        for action in ("impression", "click") if i % 3 == 0 else ("impression",):
            out.append({"action_name": action, "query_id": f"s{i // 4}", "timestamp": f"2025-01-01T00:00:{i:02}Z",
                        "user_query": f"lamp {i // 8}", "event_attributes": position})  # fmt: skip
    return out


def flat_events() -> list[list[str]]:
    rows = []
    for event in events():
        about = event["event_attributes"]
        place = [about["object"]["object_id"], str(about["position"]["ordinal"])]
        rows.append([event[name] for name in ("action_name", "query_id", "timestamp", "user_query")] + place)
    return rows


FLAT = ["action_name", "query_id", "timestamp", "user_query", "event_attributes.object.object_id",
        "event_attributes.position.ordinal"]  # fmt: skip


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode() + b"\n"


def hits() -> list[dict[str, Any]]:
    return [{"query_id": f"s{i}", "user_query": f"desk {i}", "query_response_hit_ids": ["o1", "o2"]} for i in range(6)]


def baidu(lists: bool) -> pa.Table:
    rng = np.random.default_rng(2)
    sizes = [int(n) for n in rng.integers(1, 6, 8)]
    docs = [[f"d{rng.integers(20)}-{k}" for k in range(n)] for n in sizes]
    vectors = [[rng.random(4).astype(np.float32).tolist() for _ in range(n)] for n in sizes]
    clicks = [[int(c) for c in rng.integers(0, 2, n)] for n in sizes]
    kinds = {"query_document_embedding": pa.list_(pa.list_(pa.float32())) if lists else pa.list_(pa.float32())}
    columns: dict[str, Any] = {"query_md5": [f"q{i % 5}" for i in range(8)], "url_md5": docs,
                               "position": [list(range(1, n + 1)) for n in sizes], "click": clicks,
                               "query_document_embedding": vectors, "bm25": [[0.5] * n for n in sizes]}  # fmt: skip
    if not lists:
        columns["query_no"] = list(range(8))
        columns = {
            name: [
                x for row, n in zip(values, sizes, strict=True) for x in (row if isinstance(row, list) else [row] * n)
            ]
            for name, values in columns.items()
        }
    return pa.table({n: pa.array(v, kinds.get(n)) for n, v in columns.items()})


def feather(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as out:
        out.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


QRELS = b"".join(f"q{i % 4} 0 d{i % 9} {i % 5 - 1}\n".encode() for i in range(20))
GRADES = delimited(",", ["query", "document", "label"], [[f"q{i % 4}", f"d{i % 9}", f"{i % 5}"] for i in range(20)])


def raw(
    name: str, make: Callable[[], bytes], change: Change, format: str, *, other: Mapping[str, bytes] | None = None,
    labels: str | None = None, **options: Any,
) -> Kind:  # fmt: skip
    """Describes a raw file that `prepare` reads, beside other files that stay whole."""

    def read(folder: Path) -> None:
        more = options | ({} if labels is None else {"labels": folder / labels})
        files = [folder / n for n in (name, *(other or {})) if n != labels]
        made = prepare(files, folder / "out", format=format, **more)
        check_data(made)
        labels_found = made.vocabulary.labels
        if labels_found is not None:
            judged = labels_found[~np.isnan(labels_found)]
            check(bool(((judged >= 0) & (judged <= 31)).all()), "grades beyond 0 to 31")
        check({path.name for path in folder.iterdir()} == {name, "out", *(other or {})}, "files left behind")

    def damage(files: Files, rng: Rng) -> None:
        files[name] = change(files[name], rng)

    return Kind(lambda: {name: make(), **(other or {})}, damage, read)


# Prepared folders and models


@cache
def folder_files(kind: str) -> Files:
    """Makes a prepared log or collection or a saved model, and returns its files."""
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        made = home / "made"
        if kind == "log":
            (home / "a.csv").write_bytes(delimited(","))
            (home / "g.csv").write_bytes(GRADES)
            prepare(home / "a.csv", made, labels=home / "g.csv", features=["price"], split={"train": 0.5, "test": 0.5})
        elif kind == "collection":
            (home / "a.txt").write_bytes(letor())
            prepare(home / "a.txt", made, format="letor", split={"train": 0.5, "test": 0.5})
        else:
            table = towers.DocumentTable(20, kind="robe", rows=8, rngs=nnx.Rngs(0))
            relevance = towers.Linear(5, rngs=nnx.Rngs(0)) if kind == "linear" else table
            save(models.PBM(examination=towers.RankTable(6), relevance=relevance), made)
        return {str(p.relative_to(made)): p.read_bytes() for p in sorted(made.rglob("*")) if p.is_file()}


def damage_folder(files: Files, rng: Rng) -> None:
    """Damages one file of a prepared folder; that of a table often with the record that belongs to it."""
    name = str(rng.choice(["metadata.json", *sorted(files)]))
    if name == "metadata.json":
        files[name] = damage_json(files[name], rng)
    elif rng.integers(8) == 0:
        del files[name]
    elif rng.integers(3) == 0:
        files[name] = damage_bytes(files[name], rng)
    else:
        table = damage_table(pq.read_table(pa.BufferReader(files[name])), rng)
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / name
            try:
                pq.write_table(table, path, write_page_checksum=True)
            except (pa.ArrowException, ValueError):
                files[name] = damage_bytes(files[name], rng)
                return
            files[name] = path.read_bytes()
            metadata = json.loads(files["metadata.json"])
            for records in (metadata.get("files", []), metadata["vocabulary"]["files"]):
                for record in records:
                    if record["name"] == name:
                        record |= file_record(path, len(table))
            files["metadata.json"] = json.dumps(metadata).encode()


def damage_model(files: Files, rng: Rng) -> None:
    name = str(rng.choice(["meta.json", "meta.json", "meta.json", *sorted(files)]))
    if name == "meta.json" and rng.integers(6) == 0:
        files[name] = json.dumps(json.loads(files[name]) | {"files": {}}).encode()
    elif name == "meta.json":
        files[name] = damage_json(files[name], rng)
    elif rng.integers(4) == 0:
        del files[name]
    else:
        files[name] = damage_bytes(files[name], rng)


def read_model(folder: Path) -> None:
    model = load(folder)
    for leaf in (np.asarray(x) for x in nnx.to_flat_state(nnx.state(model)).leaves if hasattr(x, "shape")):
        check(leaf.dtype.kind != "f" or bool(np.isfinite(leaf).all()), "parameters that are not finite")


def read_folder(folder: Path) -> None:
    found = open_data(folder)
    check_data(found)
    for split in ("train", "test"):
        check_data(open_data(folder, split=split))


# Studies, propensities, values in Python

STUDY = b"""
seeds = [0, 1]
metrics = ["ndcg@10", "mrr@10"]
baseline = "naive"
reference = "full-information"
valid_share = 0.3
[data]
collection = "collection"
train = "train"
vali = "vali"
test = "test"
[[log]]
name = "some log"
user = "pbm"
policy = "linear"
temperature = 1.0
sessions = 1500
ranks = 4
[[log]]
name = "real"
path = "log"
split = "train"
[defaults]
relevance = "linear"
hidden = [8, 8]
epochs = 2
[[method]]
model = "naive"
[[method]]
model = "pbm"
grid = {l2 = [0.0, 1000.0]}
[[method]]
name = "ips"
model = "ips-listwise"
clip = 20.0
propensity = "examination.json"
[[method]]
model = "full-information"
"""


def curve() -> bytes:
    ranks = [{"rank": i, "propensity": 1 / i, "standard_error": 0.1, "shown": 10} for i in range(1, 6)]
    return json.dumps({"propensities": [{"method": "conditional-likelihood", "ranks": ranks}]}).encode()


def read_curve(folder: Path) -> None:
    values = read_propensities(folder / "curve.json")
    check(values.ndim == 1 and len(values) > 0 and values.dtype == np.float64, "a curve of another form")


def damage_curve(files: Files, rng: Rng) -> None:
    files["curve.json"] = damage_json(files["curve.json"], rng)


def session_lists() -> dict[str, Any]:
    sizes = [3, 1, 4, 2]
    return {
        "clicks": [[i % 2 for i in range(n)] for n in sizes],
        "labels": [[float(i) for i in range(n)] for n in sizes],
        "positions": [list(range(n)) for n in sizes],
        "features": {"document": [list(range(1, n + 1)) for n in sizes], "x": [[[0.5, 1.0]] * n for n in sizes]},
        "query": [0, 1, 0, 2],
        "weight": [1.0, 2.0, 0.5, 1.0],
    }


def collection_arrays() -> dict[str, Any]:
    return {"query": [0, 0, 1, 1, 2], "label": [0.0, 1.0, 2.0, 0.0, 4.0], "features": [[1.0, 2.0]] * 5,
            "document": ["a", "b", "c", "d", "e"], "ids": [1, 2, 3, 5, 4], "feature_names": ["x", "y"]}  # fmt: skip


def python_values(make: Callable[[], dict[str, Any]], use: Callable[..., None]) -> Kind:
    """Describes arguments of a Python function, whose damage a seed decides."""

    def damage(files: Files, rng: Rng) -> None:
        files["seed"] = str(int(rng.integers(2**31))).encode()

    def read(folder: Path) -> None:
        seed = (folder / "seed").read_text()
        rng = np.random.default_rng(int(seed or 0))
        arguments: Any = make()
        for _ in range(int(rng.integers(1, 3)) if seed else 0):
            try:
                arguments = _damage_values(arguments, rng)
            except (RecursionError, TypeError):  # it is damaged too much to be damaged again
                break
        use(**{name: arguments.get(name) for name in make()})

    return Kind(lambda: {"seed": b""}, damage, read)


def _damage_values(arguments: Any, rng: Rng) -> Any:
    if rng.integers(2):
        changed = damage_tree(arguments, rng)
        return changed if isinstance(changed, dict) else {}
    name = str(rng.choice(sorted(arguments))) if arguments else ""
    kinds: list[Any] = [np.float64, np.int8, np.uint8, bool, str, object, np.complex128, "datetime64[s]", np.float16]
    kind = kinds[int(rng.integers(len(kinds)))]
    options: list[Callable[[Any], Any]] = [
        lambda x: np.asarray(x, dtype=kind) if rng.integers(2) else np.asarray(x, dtype=object).astype(kind),
        lambda x: np.zeros((), kind),
        lambda x: np.zeros((4, 0)),
        lambda x: np.zeros((0, 3)),
        lambda x: np.zeros((4, 3, 2, 2)),
        lambda x: str(rng.choice(NUMBERS)),
        lambda x: VALUES[int(rng.integers(len(VALUES)))],
        lambda x: iter(x),
        lambda x: {0: x},
        lambda x: [],
    ]
    try:
        arguments[name] = options[int(rng.integers(len(options)))](arguments[name])
    except Exception:  # numpy makes no array of it
        arguments[name] = None
    return arguments


def use_sessions(**arguments: Any) -> None:
    batch = Sessions.from_lists(**arguments).validate()
    mask = np.asarray(batch.mask)
    check(mask.ndim == 2, "a batch of another form")
    if batch.clicks is not None:
        check(bool(np.isin(np.asarray(batch.clicks)[mask], (0, 1)).all()), "clicks other than 0 and 1")
    position = np.asarray(batch.position)
    check(position.dtype.kind in "iu" and bool((position[mask] >= 0).all()), "positions below 0 or no whole numbers")
    for name, values in batch.features.items():
        array = np.asarray(values)
        check(array.dtype.kind in "biuf" and bool(np.isfinite(array[mask]).all()), f"{name} that is not finite")
    if batch.weight is not None:
        check(bool(np.isfinite(np.asarray(batch.weight)).all()), "weights that are not finite")
    if batch.query is not None:
        check(np.asarray(batch.query).dtype.kind in "iu", "queries that are no whole numbers")


def use_arrays(**arguments: Any) -> None:
    found = Collection.from_arrays(**arguments)
    check(len(found) > 0 and bool(np.isfinite(found.labels).all()), "grades that are not finite")
    check(found.features is None or bool(np.isfinite(found.features).all()), "features that are not finite")
    next(iter(found.batches(2))).validate()


def read_toml(folder: Path) -> None:
    check(len(read_study(folder / "study.toml").methods) > 0, "a study without methods")


def small_study() -> Study:
    tree = tomllib.loads(STUDY.decode())
    tree["log"] = tree["log"][:1]
    return parse_study(tree)


@cache
def study_results() -> Files:
    """Makes what the runs of a study leave in its folder, with numbers of our own."""
    rng = np.random.default_rng(3)
    study = small_study()
    with tempfile.TemporaryDirectory() as temporary:
        stored = StoredRuns(temporary)
        for run in study_runs(study):
            facts = {"fingerprint": "x", "seconds": 1.5, "queries": 6, "notes": ["a note"], "metrics": {"ndcg@10": 0.5},
                     "chosen": {"l2": 0.0}, "propensity": [1.0, 0.5, 0.25], "clicks": {"log_likelihood": -0.5},
                     "propensity_error": {"mean": 0.1}}  # fmt: skip
            values: dict[str, np.ndarray] = {"query": np.arange(6), **{m: rng.random(6) for m in study.metrics}}
            stored.write(run, facts, values)
            worst = {"standard_error": 0.1, "rank": 2}
            diagnosis = {"identified": True, "worst": worst, "components": [[1, 2, 3]]}
            about = {"sessions": 9, "clicks": 5, "queries": 4, "ranks": 3, "diagnosis": diagnosis,
                     "truth": {"lowest": {"perplexity": 1.2}, "examination": [1.0, 0.5, 0.25]}}  # fmt: skip
            stored.write_log_facts(study.logs[0], run.seed, about)
        home = Path(temporary)
        return {str(p.relative_to(home)): p.read_bytes() for p in sorted(home.rglob("*")) if p.is_file()}


def damage_results(files: Files, rng: Rng) -> None:
    name = str(rng.choice(sorted(files)))
    files[name] = (damage_bytes if name.endswith(".npz") else damage_json)(files[name], rng)


def read_results(folder: Path) -> None:
    study = small_study()
    found = collect_results(study, folder, any_settings=True)
    json.dumps(json_values(found), allow_nan=False)
    for row in found["logs"][0]["methods"]:
        for name, estimate in row.get("metrics", {}).items():
            value = estimate["value"]
            check(value is None or math.isfinite(value), f"{name} that is not finite")
    check(len(results_markdown(found)) > 0, "no table")


def damage_one(name: str, change: Change) -> Callable[[Files, Rng], None]:
    def damage(files: Files, rng: Rng) -> None:
        files[name] = change(files[name], rng)

    return damage


def packed(pack: Callable[[bytes], bytes]) -> Callable[[], bytes]:
    return lambda: pack(delimited(","))


PLAIN_LOG = {"a.csv": delimited(",")}
PRICED: dict[str, Any] = {"features": ["price"], "split": {"train": 0.5, "test": 0.5}, "split_by": "time"}

KINDS: dict[str, Kind] = {
    "table-csv": raw("a.csv", lambda: delimited(","), damage_text, "table", **PRICED),
    "table-tsv": raw("a.tsv", lambda: delimited("\t"), damage_text, "table", context=["time"]),
    "table-semicolon": raw("a.csv", lambda: delimited(";"), damage_text, "table"),
    "table-gz": raw("a.csv.gz", packed(gzip.compress), damage_bytes, "table"),
    "table-bz2": raw("a.csv.bz2", packed(bz2.compress), damage_bytes, "table"),
    "table-zst": raw("a.csv.zst", packed(lambda b: pa.compress(b, "zstd", asbytes=True)), damage_bytes, "table"),
    "table-parquet": raw("a.parquet", lambda: parquet(click_table()), damage_parquet, "table", **PRICED),
    "yandex": raw("a.tsv", yandex, damage_text, "yandex", context=["region"]),
    "yandex-sample": raw("a.txt", yandex_sample, damage_text, "yandex-sample"),
    "trec-session": raw("a.txt", lambda: trec(False), damage_text, "trec-session", features=["vertical"]),
    "trec-graded": raw("a.txt", lambda: trec(True), damage_text, "trec-session"),
    "ubi-ndjson": raw("a.ndjson", lambda: json_lines(events()), damage_json_lines, "ubi"),
    "ubi-json": raw("a.json", lambda: json.dumps(events()).encode(), damage_json, "ubi"),
    "ubi-queries": raw("q.ndjson", lambda: json_lines(hits()), damage_json_lines, "ubi",
                       other={"a.ndjson": json_lines(events())}),
    "ubi-csv": raw("a.csv", lambda: delimited(",", FLAT, flat_events()), damage_text, "ubi"),
    "ubi-parquet": raw("a.parquet", lambda: parquet(pa.Table.from_pylist(events())), damage_parquet, "ubi"),
    "baidu-lists": raw("a.parquet", lambda: parquet(baidu(True)), damage_parquet, "baidu-uva"),
    "baidu-documents": raw("a.feather", lambda: feather(baidu(False)), damage_feather, "baidu-uva", features=["bm25"]),
    "letor": raw("a.txt", letor, damage_text, "letor", split={"train": 0.5, "test": 0.5}),
    "qrels": raw("a.txt", lambda: QRELS, damage_text, "qrels"),
    "labels-qrels": raw("g.txt", lambda: QRELS, damage_text, "table", other=PLAIN_LOG, labels="g.txt"),
    "labels-csv": raw("g.csv", lambda: GRADES, damage_text, "table", other=PLAIN_LOG, labels="g.csv"),
    "labels-parquet": raw("g.parquet", lambda: parquet({"query": ["q0", "q1"], "document": ["d1", "d2"],
                          "label": [1.0, 2.0]}), damage_parquet, "table", other=PLAIN_LOG, labels="g.parquet"),
    "log-folder": Kind(lambda: dict(folder_files("log")), damage_folder, read_folder),
    "collection-folder": Kind(lambda: dict(folder_files("collection")), damage_folder, read_folder),
    "model-linear": Kind(lambda: dict(folder_files("linear")), damage_model, read_model),
    "model-table": Kind(lambda: dict(folder_files("table")), damage_model, read_model),
    "study": Kind(lambda: {"study.toml": STUDY}, damage_one("study.toml", damage_text), read_toml),
    "study-results": Kind(lambda: dict(study_results()), damage_results, read_results),
    "propensities": Kind(lambda: {"curve.json": curve()}, damage_curve, read_curve),
    "sessions": python_values(session_lists, use_sessions),
    "collection-arrays": python_values(collection_arrays, use_arrays),
}  # fmt: skip


def try_one(name: str, seed: int, folder: Path) -> tuple[str, str]:
    """Damages one input and reads it.

    Args:
      name: of `KINDS`.
      seed: decides the damage.
      folder: an existing folder, in which the input is left.

    Returns:
      "refused" (an error of the toolkit's own), "read", or "finding", and what was said.
    """
    import warnings

    from ultr.errors import UltrError

    kind = KINDS[name]
    files = kind.make()
    kind.damage(files, np.random.default_rng([seed, *name.encode()]))
    shutil.rmtree(folder, ignore_errors=True)
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    folder.mkdir(exist_ok=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", RuntimeWarning)
            kind.read(folder)
    except UltrError as error:
        said = str(error)
        if len(said) > 2000:
            return "finding", f"an error of {len(said):,} signs: {said[:200]}"
        return "refused", said
    except Exception as error:
        return "finding", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return "read", ""
