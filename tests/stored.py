"""Small logs with known content, and ways to damage them, for the tests of what lies on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ultr.data import ClickLog, LogWriter, click_log
from ultr.data.storage import file_record

QUERIES = [f"query {i}" for i in range(7)]
PER_QUERY = 20
SMALL_FILES: dict[str, Any] = {"group_rows": 8, "file_groups": 2}  # sessions per row group, row groups per file
POOL_SESSIONS = 24  # with `SMALL_FILES`, a hundred sessions cross every border
SMALL_POOLS: dict[str, Any] = SMALL_FILES | {"pool_sessions": POOL_SESSIONS}
CONTEXT = {"device": {"kind": "category", "values": ["phone", "desk"]}, "price": {"kind": "number"}}


def documents_table(*, labels: bool = True, features: bool = True, queries: int = len(QUERIES)) -> pa.Table:
    """`PER_QUERY` documents per query; grade = id mod 5, none where id mod 3 = 0; features (id, -id)."""
    ids = np.arange(1, queries * PER_QUERY + 1)
    columns: dict[str, Any] = {
        "query": pa.array(np.repeat(np.arange(queries), PER_QUERY), pa.int32()),
        "document": [f"url {i}" for i in ids],
    }
    if labels:
        columns["label"] = pa.array((ids % 5).astype(np.float32), mask=ids % 3 == 0)
    if features:
        flat = np.stack([ids, -ids], 1).astype(np.float32).ravel()
        columns["features"] = pa.FixedSizeListArray.from_arrays(pa.array(flat), 2)
    return pa.table(columns)


def make_rows(count: int = 100, *, seed: int = 0, length: int | None = None) -> list[dict[str, Any]]:
    """Sessions whose weight is their number, so that a streamed row tells which one it is."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        query = int(rng.integers(len(QUERIES)))
        k = length or int(rng.integers(1, 12))
        rows.append(
            {
                "session": f"s{i // 2}",
                "query": query,
                "documents": (rng.permutation(PER_QUERY)[:k] + 1 + query * PER_QUERY).tolist(),
                "ranks": (np.sort(rng.permutation(15)[:k]) + 1).tolist(),
                "clicks": rng.integers(0, 2, k).tolist(),
                "time": float(rng.integers(1000)),
                "weight": float(i),
                "context.device": int(rng.integers(3)),
                "context.price": float(rng.integers(100)) / 4,
                "feature.bm25": rng.random(k, np.float32).tolist(),
                "feature.age": rng.random(k, np.float32).tolist(),
            }
        )
    return rows


def write_log(
    path: Path,
    rows: list[dict[str, Any]],
    *,
    step: int = 30,
    pool_sessions: int = click_log.POOL_SESSIONS,
    **options: Any,
) -> ClickLog:
    """Writes the rows, `step` at a time, and opens the log; options are those of `LogWriter`."""
    documents = options.pop("documents", documents_table())
    context = CONTEXT if "context.device" in rows[0] else {}
    features = ["plus", "minus"] if "features" in documents.column_names else []
    queries = options.pop("queries", pa.array(QUERIES))
    options = {"context": context, "features": features} | options
    with LogWriter(path, queries=queries, documents=documents, **options) as out:
        for start in range(0, len(rows), step):
            out.write(pa.Table.from_pylist(rows[start : start + step]))
    return ClickLog.open(path, pool_sessions=pool_sessions)


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the required columns and the weight alone."""
    names = ("session", "query", "documents", "ranks", "clicks", "weight")
    return [{name: row[name] for name in names} for row in rows]


def streamed(source: Any, batch_size: int = 16, **options: Any) -> list[int]:
    """The numbers of the sessions in the order in which they are streamed."""
    order: list[int] = []
    for batch in source.batches(batch_size, **options):
        order += batch.weight[batch.mask[:, 0]].astype(int).tolist()
    return order


def rewrite(log: ClickLog, change: Any, *, name: str = "sessions-00000.parquet") -> None:
    """Replaces a file of the log as a writer without checks would have written it."""
    file = log.path / name
    table = change(pq.read_table(file))
    pq.write_table(table, file, write_page_checksum=True)
    metadata = json.loads((log.path / "metadata.json").read_text())
    for records in (metadata["files"], metadata["vocabulary"]["files"]):
        for i, record in enumerate(records):
            if record["name"] == name:
                records[i] = file_record(file, len(table))
    (log.path / "metadata.json").write_text(json.dumps(metadata))


def replace(name: str, row: int, value: Any) -> Any:
    """A change for `rewrite`: another value in one row of one column."""

    def change(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        values[row] = value
        at = table.schema.get_field_index(name)
        kind = table.schema.field(at).type
        if pa.types.is_list(kind):
            kind = pa.list_(kind.value_type)
        return table.set_column(at, name, pa.array(values, kind))

    return change


def flip(file: Path, column: str, *, group: int = 0) -> None:
    """Flips a bit in the last byte that a row group holds of a column."""
    about = pq.read_metadata(file).row_group(group)
    (chunk,) = (c for c in map(about.column, range(about.num_columns)) if c.path_in_schema.split(".list.")[0] == column)
    content = bytearray(file.read_bytes())
    start = chunk.data_page_offset if chunk.dictionary_page_offset is None else chunk.dictionary_page_offset
    content[start + chunk.total_compressed_size - 1] ^= 1
    file.write_bytes(content)
