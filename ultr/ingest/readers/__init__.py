"""Readers of raw click logs and graded lists: one module per format, one row in `READERS`.

To add a format, write a module with a reading function (see `Reader.function`) and add its row here: the choices,
help and checks of `ultr prepare` follow.
"""

from __future__ import annotations

from collections.abc import Mapping

from ultr.ingest.readers.base import COLUMNS, VIEW, Reader

READERS: Mapping[str, Reader] = {
    reader.name: reader
    for reader in (
        Reader(
            "table",
            "click log",
            "CSV, TSV or Parquet with one row per shown document",
            "table:read_table",
            columns=(*COLUMNS, VIEW),
            features=None,
            context=None,
        ),
        Reader(
            "yandex",
            "click log",
            "Yandex relevance prediction challenge: lines of queries and of clicks",
            "yandex:read_yandex",
            context=("region",),
        ),
        Reader(
            "yandex-sample",
            "click log",
            "sample of a Yandex log, with the lists of one query per line",
            "yandex:read_yandex_sample",
        ),
        Reader(
            "trec-session",
            "click log",
            "sessions of the TREC session track or TianGong-ST, one list per line",
            "trec:read_trec_session",
            features=("vertical",),
        ),
        Reader(
            "ubi",
            "click log",
            "User Behavior Insights 1.3: events and queries as JSON, CSV or Parquet",
            "ubi:read_ubi",
            columns=(*COLUMNS, VIEW, "action"),
            features=None,
            context=None,
        ),
        Reader(
            "baidu-uva",
            "click log",
            "Baidu-ULTR of the University of Amsterdam; its annotations are graded lists",
            "baidu:read_baidu",
            columns=COLUMNS,
            features=None,
            context=None,
        ),
        Reader(
            "letor",
            "graded lists",
            "LETOR or SVMlight files with qid and features",
            "letor:read_letor",
            counts_features=True,
        ),
        Reader(
            "qrels",
            "graded lists",
            "TREC qrels (query, iteration, document, grade), or a table with the columns query, document and label",
            "qrels:read_qrels",
            may_be_csv=True,
        ),
    )
}
