"""The registry of readers, and what the command derives from it."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ultr.errors import ConfigError
from ultr.ingest.readers import READERS
from ultr.ingest.readers.base import ColumnRequest


@pytest.mark.parametrize("name", READERS)
def test_every_format_has_its_reading_function(name: str) -> None:
    reader = READERS[name]
    assert reader.name == name
    module, function = reader.function.split(":")
    assert callable(getattr(importlib.import_module(f"ultr.ingest.readers.{module}"), function))


def test_the_help_lists_every_format_and_column(ultr: Any) -> None:
    result = ultr("prepare", "--help")
    assert result.code == 0
    words = " ".join(result.out.split())
    for reader in READERS.values():
        assert f" {reader.name} {reader.description}" in words
        assert all(f"--{column} COLUMN" in words for column in reader.columns)


def test_the_registry_and_the_help_load_no_engine() -> None:
    code = (
        "import sys; from ultr import cli\n"
        "try: cli.main(['prepare', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'duckdb', 'ibis', 'pyarrow', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("name", "request_", "message"),
    [
        ("table", ColumnRequest({"url": "document"}), r"--url has no meaning with .*'table', .* found \['url'\]"),
        ("ubi", ColumnRequest({"action": "event"}, ["price"], ["store"]), None),
        ("qrels", ColumnRequest({"query": "topic"}), "the fields of the format 'qrels' are fixed"),
        ("trec-session", ColumnRequest(features=["vertical"]), None),
        ("trec-session", ColumnRequest(features=["bm25"]), r"has features \['vertical'\], found \['bm25'\]"),
        ("yandex-sample", ColumnRequest(context=["region"]), r"has context \[\], found \['region'\]"),
    ],
)
def test_a_format_is_asked_for_what_it_has(name: str, request_: ColumnRequest, message: str | None) -> None:
    if message is None:
        READERS[name].check(request_)
    else:
        with pytest.raises(ConfigError, match=message):
            READERS[name].check(request_)


def test_the_command_maps_the_action_of_events(ultr: Any, tmp_path: Path) -> None:
    raw = tmp_path / "events.csv"
    raw.write_text("what,query_id,sku,slot\nimpression,1,a,1\nclick,1,a,1\n")
    columns = ("--action", "what", "--document", "sku", "--rank", "slot")
    result = ultr("prepare", raw, "--out", tmp_path / "log", "--format", "ubi", *columns, "--json")
    assert result.code == 0, result.err
    assert (result.json["impressions"], result.json["clicks"]) == (1, 1)


def test_an_unknown_format_is_named_with_those_that_exist(ultr: Any, tmp_path: Path) -> None:
    result = ultr("prepare", tmp_path / "raw", "--out", tmp_path / "log", "--format", "xml")
    assert result.code == 2
    assert "'xml' is not one of 'table', 'yandex'" in result.err
