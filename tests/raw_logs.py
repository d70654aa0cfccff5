"""Small raw logs, and what becomes of them, for the tests of `prepare`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa

from ultr.data import ClickLog, Collection
from ultr.ingest import prepare

HEADER = "session,query,document,rank,click"
ROWS = """\
s2,shoes,a,1,0
s2,shoes,b,2,1
s1,hats,x,1,1
s1,hats,y,2,0
s1,hats,z,3,0
s3,shoes,b,1,0
s3,shoes,c,2,0
"""


def write(path: Path, text: str, header: str = HEADER) -> Path:
    """Writes a CSV file."""
    path.write_text(f"{header}\n{text}")
    return path


def prepare_log(*arguments: Any, **options: Any) -> ClickLog:
    """Prepares raw files that must give a click log."""
    made = prepare(*arguments, **options)
    assert isinstance(made, ClickLog)
    return made


def prepare_collection(*arguments: Any, **options: Any) -> Collection:
    """Prepares raw files that must give a collection."""
    made = prepare(*arguments, **options)
    assert isinstance(made, Collection)
    return made


def lists(log: ClickLog, *more: str) -> list[dict[str, Any]]:
    """Returns the lists of a log with names instead of ids."""
    queries = pa.chunked_array(log.vocabulary.query_names).to_pylist()
    documents = [None, *log.vocabulary.document_names.to_pylist()]
    names = ["session", "query", "documents", "ranks", "clicks", *more]
    out = [row for batch in log.columns(names) for row in batch.to_pylist()]
    for row in out:
        row["query"] = queries[row["query"]]
        row["documents"] = [documents[i] for i in row["documents"]]
    return out


def digest(folder: Path) -> str:
    """Computes a digest of the names and contents of the files in a folder."""
    files = sorted(p for p in folder.iterdir())
    return hashlib.sha256(b"".join(p.name.encode() + p.read_bytes() for p in files)).hexdigest()


def left(folder: Path) -> list[str]:
    """Lists the names in a folder."""
    return sorted(p.name for p in folder.iterdir())
