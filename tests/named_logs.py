"""Logs of one world whose features and contexts stand under any names and in any order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ultr.data import ClickLog, Collection, LogWriter

QUERIES, PER_QUERY = 6, 5
DOCUMENTS = QUERIES * PER_QUERY
RNG = np.random.default_rng(5)
VALUES = {name: RNG.normal(size=DOCUMENTS).astype(np.float32) * scale for name, scale in (("price", 9), ("stock", 1))}
VALUES |= {"weight": VALUES["price"] + 1, "age": VALUES["stock"] - 1}
GRADES = np.round(np.clip(VALUES["stock"] + 1, 0, 4)).astype(np.float32)


def documents_table(features: Sequence[str]) -> pa.Table:
    """The documents of the world with the features of these names."""
    columns: dict[str, Any] = {
        "query": pa.array(np.repeat(np.arange(QUERIES), PER_QUERY), pa.int32()),
        "document": [f"d{i}" for i in range(DOCUMENTS)],
        "label": pa.array(GRADES),
    }
    if features:
        flat = np.stack([VALUES[name] for name in features], 1).ravel()
        columns["features"] = pa.FixedSizeListArray.from_arrays(pa.array(flat), len(features))
    return pa.table(columns)


def named_log(
    path: Path,
    features: Sequence[str] = ("price", "stock"),
    *,
    impressions: Sequence[str] = (),
    devices: Sequence[str] | None = ("phone", "desk"),
    sessions: int = 120,
    grades: bool = True,
) -> ClickLog:
    """The sessions of the world: documents that are in stock are clicked more often, and more so on the phone.

    Args:
      features: names of document features, in the order of the columns.
      impressions: names of features that the log gives per impression.
      devices: categories of the context, in the order of their codes; None: there is no context.
      grades: whether the documents have grades.
    """
    rng = np.random.default_rng(1)
    rows: dict[str, list[Any]] = {name: [] for name in ("session", "query", "documents", "ranks", "clicks")}
    used: list[str] = []
    shown: list[np.ndarray] = []
    for session in range(sessions):
        query = int(rng.integers(QUERIES))
        documents = rng.permutation(PER_QUERY)[:4] + query * PER_QUERY
        device = ("phone", "desk")[int(rng.integers(2))]
        chance = 1 / (1 + np.exp(-VALUES["stock"][documents] - (device == "phone"))) / np.arange(1, 5)
        values = (f"s{session}", query, documents + 1, np.arange(1, 5), (rng.random(4) < chance).astype(np.int8))
        for name, value in zip(rows, values, strict=True):
            rows[name].append(value)
        used.append(device)
        shown.append(documents)
    table = pa.table(rows)
    for name in impressions:
        table = table.append_column(f"feature.{name}", pa.array([VALUES[name][ids].tolist() for ids in shown]))
    context = {}
    if devices is not None:
        context["device"] = {"kind": "category", "values": list(devices)}
        codes = [list(devices).index(device) + 1 if device in devices else 0 for device in used]
        table = table.append_column("context.device", pa.array(codes, pa.int32()))
    queries = pa.array([f"q{i}" for i in range(QUERIES)])
    documents_of = documents_table(features) if grades else documents_table(features).drop_columns("label")
    with LogWriter(path, queries=queries, documents=documents_of, features=features, context=context) as out:
        out.write(table)
    return ClickLog.open(path)


def named_collection(features: Sequence[str] = ("price", "stock")) -> Collection:
    """The graded documents of the world."""
    return Collection.from_arrays(
        query=np.repeat(np.arange(QUERIES), PER_QUERY),
        label=GRADES,
        features=np.stack([VALUES[name] for name in features], 1),
        document=[f"d{i}" for i in range(DOCUMENTS)],
        feature_names=features,
    )
