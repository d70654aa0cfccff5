"""Reads User Behavior Insights (UBI 1.3): joins events of impressions and of clicks to shown documents."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir

from ultr.errors import DataError
from ultr.ingest.engine import Engine, EngineError
from ultr.ingest.positions import file_start
from ultr.ingest.readers.base import ColumnRequest, RawRows, missing_columns
from ultr.ingest.readers.lines import unnest_ranked
from ultr.ingest.sources import ScannedFiles, ScannedTable, is_parquet, scan_table
from ultr.ingest.text_files import line_blocks, open_bytes, plain_file
from ultr.ingest.values import as_name, read_time, trimmed

# Our names -> fields of an event.
FIELDS = {
    "session": "query_id",
    "action": "action_name",
    "document": "event_attributes.object.object_id",
    "rank": "event_attributes.position.ordinal",
    "time": "timestamp",
    "query": "user_query",
}
HITS = "query_response_hit_ids"
CLICKS = ("click", "click_through")
SHOWN = ("impression", "view")  # views count as impressions where a log has no impressions
JSON_SUFFIXES = (".json", ".ndjson", ".jsonl")
_JSON_FAILED = re.compile(r'JSON.* in file "(?P<file>[^"]+)",? (?P<rest>.*)')


def read_ubi(engine: Engine, files: list[Path], request: ColumnRequest) -> RawRows:
    """Reads ubi_events files, and ubi_queries files where they are given, as JSON, NDJSON, CSV or Parquet.

    Files with an action_name are events. A query_id is one list: its `impression` events (where the log has none, its
    `view` events; where a query has neither, the query_response_hit_ids of the queries file), with their
    position.ordinal as rank. A `click` or `click_through` event clicks the document of its query_id and object_id,
    where it was last shown before the click. Positions that start again under a query_id are views or further pages
    (see `views`).
    The query is the user_query of the queries file or of the event; a list without one is a query of its own.
    CSV and Parquet hold nested fields as columns with dotted names, as structs, or as JSON text.
    """
    paths = FIELDS | dict(request.columns)
    extra = request.extra
    events: list[ir.Table] = []
    queries: list[ir.Table] = []
    tables = [
        _open(engine, path, number, [*paths.values(), *extra.values(), HITS], request.quote)
        for number, path in enumerate(files)
    ]
    scanned = _ScannedEvents(tables)
    for path, raw in zip(files, tables, strict=True):
        if _holds(engine, raw, paths["action"]):
            events.append(_event_columns(raw, paths, extra, scanned))
        elif _holds(engine, raw, paths["session"]) and (raw.columns.keys() & {paths["query"], HITS}):
            queries.append(_query_columns(raw, paths, scanned))
        else:
            found = engine.json_fields(raw.read) if _is_json(path) else list(raw.columns)
            raise missing_columns(path, {"action": paths["action"]}, found)
    if not events:
        raise DataError(
            "expected a file of UBI events, found only queries",
            fix="Give the ubi_events file too.",
            file=files[0],
        )
    try:
        event = engine.stage("events", ibis.union(*events) if len(events) > 1 else events[0])
        asked = engine.stage("queries_file", _one_per_query(queries)) if queries else None
    except EngineError as error:
        raise scanned.explain(error) from error
    warnings: list[str] = []
    if scanned.may_break:
        for staged in (event, asked):
            warnings += [] if staged is None else scanned.check_line_breaks(engine, staged)
    return _rows(engine, files, event, asked, list(extra), scanned, warnings)


def _rows(
    engine: Engine,
    files: list[Path],
    event: ir.Table,
    asked: ir.Table | None,
    extra: list[str],
    scanned: ScannedFiles,
    warnings: list[str],
) -> RawRows:
    if "broken" in event.columns:
        event = event.drop("broken")
    kinds = engine.table(event.group_by("action").agg(times=event.count())).to_pylist()
    times = {entry["action"]: entry["times"] for entry in kinds}
    shown_as = SHOWN[0] if times.get(SHOWN[0]) else SHOWN[1]
    keyed = event.filter(event.session.notnull() & event.document.notnull())
    shown = keyed.filter(keyed.action == shown_as)
    if asked is not None:
        shown = _with_queries(shown, asked, extra)
    shown = engine.stage("shown", shown.mutate(query=ibis.coalesce(shown["query"], shown["session"])))
    clicks = keyed.filter(keyed.action.isin(CLICKS))
    hit = engine.stage("hits", _clicked_rows(shown, clicks))
    same = [shown["at"] == hit["at"], shown.session == hit["list"], shown.document == hit["object"]]
    table = shown.left_join(hit, same)
    table = table.mutate(click=table.times.notnull().cast("int8"))
    table = table.drop("at_right", "list", "object", "times", "action")
    timeless = engine.number(shown.time.isnull().sum())
    if timeless:
        table = table.drop("time")
    counts = {
        "clicked": engine.number(clicks.count()),
        "hits": engine.number(hit.times.sum()),
        "slots": engine.number(hit.count()),
    }
    of_interest = event.filter(event.action.isin([shown_as, *CLICKS]))
    dropped = {
        "events_without_keys": engine.number((of_interest.session.isnull() | of_interest.document.isnull()).sum()),
        "other_events": sum(n for action, n in times.items() if action not in (shown_as, *CLICKS)),
        "clicks_on_documents_not_shown": counts["clicked"] - counts["hits"],
    }
    nameless = shown.filter(shown["query"] == shown.session)
    if asked is not None:
        dropped["empty_lists"] = engine.number(asked.anti_join(shown, "session").count())
    return RawRows(
        parts=[table],
        files=files,
        read=sum(times.values()),
        dropped=dropped,
        repaired={
            "repeated_clicks": counts["hits"] - counts["slots"],
            "lists_without_query_text": engine.number(nameless.session.nunique()),
            "rows_without_timestamp": timeless,
        },
        text=True,
        asks_about_pages=True,
        reported_row=scanned.reported_row,
        explain=scanned.explain,
        warnings=warnings,
    )


def _clicked_rows(shown: ir.Table, clicks: ir.Table) -> ir.Table:
    """Finds the shown row that each click belongs to: the last of its document before it, or else the first.

    Rows are ordered by time where all have one, otherwise as they stand; a `view` that is asked for has to agree.

    Returns:
      at, list (the session), object (the document) and times, the number of clicks.
    """
    keys = ["session", "document", *(["view"] if "view" in shown.columns else [])]

    def moments(table: ir.Table) -> ir.Table:
        return table.select(*keys, "at", when=read_time(table["time"]))

    shown, clicks = moments(shown), moments(clicks)
    places = shown.group_by(keys).agg(first=shown["at"].min(), count=shown.count())
    hit = clicks.join(places, keys)
    once = hit.filter(hit["count"] == 1).select(*keys, row="first")
    again = hit.filter(hit["count"] > 1).select(*keys, "first", click="at", clicked="when")
    pairs = again.join(shown, keys)
    timed = pairs["clicked"].notnull() & pairs["when"].notnull()
    before = ibis.ifelse(timed, pairs["when"] <= pairs["clicked"], pairs["at"] < pairs["click"])
    pairs = pairs.mutate(when=ibis.ifelse(timed, pairs["when"], 0.0), before=before)
    ranked = pairs.filter(pairs["before"]).mutate(
        number=ibis.row_number().over(group_by=[*keys, "click"], order_by=[ibis.desc("when"), ibis.desc("at")])
    )
    last = ranked.filter(ranked["number"] == 0).select(*keys, "click", row="at")
    rest = again.anti_join(last, [*keys, "click"]).select(*keys, row="first")
    found = once.union(last.drop("click")).union(rest)
    return (
        found.group_by([*keys, "row"])
        .agg(times=found.count())
        .select("times", at="row", list="session", object="document")
    )


def _with_queries(shown: ir.Table, asked: ir.Table, extra: list[str]) -> ir.Table:
    """Adds the query texts, and the lists of queries that have hits but no impressions."""
    named = shown.left_join(asked.select("session", asked_query="query"), "session").drop("session_right")
    named = named.mutate(query=ibis.coalesce(named["asked_query"], named["query"])).drop("asked_query")
    silent = asked.filter(asked.hits.length() > 0).anti_join(shown, "session")
    listed = unnest_ranked(silent.select("at", "session", "query", "time", document="hits"), "document")
    listed = listed.mutate(action=ibis.literal(SHOWN[0]), rank=listed["rank"].cast("string"))
    listed = listed.mutate(**{name: ibis.null("string") for name in named.columns if name not in listed.columns})
    return named.union(listed.select(named.columns))


def _event_columns(
    raw: ScannedTable, paths: Mapping[str, str], extra: Mapping[str, str], scanned: ScannedFiles
) -> ir.Table:
    columns: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for ours, path in (dict(paths) | dict(extra)).items():
        found = _resolve(raw, path)
        if found is None and ours not in ("query", "time"):
            missing[ours] = path
        columns[ours] = _text(found)
    if missing:
        raise missing_columns(raw.path, missing, list(raw.columns))
    return raw.table.select(at=raw.at, **columns, **scanned.broken(raw))


def _text(value: Any) -> ir.Value:
    """Converts a value to text without white space at its ends, null where nothing is left."""
    return ibis.null("string") if value is None else as_name(trimmed(value.cast("string")))


def _query_columns(raw: ScannedTable, paths: Mapping[str, str], scanned: ScannedFiles) -> ir.Table:
    columns: dict[str, Any] = {}
    for ours in ("session", "query", "time"):
        columns[ours] = _text(_resolve(raw, paths[ours]))
    hits = _resolve(raw, HITS)
    if hits is None:
        hits = ibis.null("array<string>")
    elif hits.type().is_string():  # JSON text
        hits = hits.try_cast("json").try_cast("array<string>")
    columns["hits"] = hits.cast("array<string>")
    return raw.table.select(at=raw.at, **columns, **scanned.broken(raw))


def _one_per_query(parts: list[ir.Table]) -> ir.Table:
    table = ibis.union(*parts) if len(parts) > 1 else parts[0]
    table = table.filter(table.session.notnull())
    names = ("query", "time", "hits")
    first = {name: table[name].argmin(table["at"], where=table[name].notnull()) for name in names}
    if "broken" in table.columns:
        first["broken"] = table["broken"].argmin(table["at"], where=table["broken"].notnull())
    return table.group_by("session").agg(at=table["at"].min(), **first)


def _open(engine: Engine, path: Path, number: int, paths: Iterable[str], quote: bool | None) -> ScannedTable:
    if not _is_json(path):
        return scan_table(engine, path, number, quote=quote)
    read = plain_file(path, engine.new_path()).path
    try:
        wrapped = engine.record(engine.read_json(read, {"_source": "JSON"}).limit(1))
        prefix = "_source." if wrapped.get("_source") is not None else ""
        table = engine.read_json(read, _types([prefix + p for p in paths]))
    except EngineError as error:
        raise json_error(path, error) from error
    table = table.mutate(at=ibis.row_number() + (file_start(number) + 1))
    inner = table["_source"] if prefix else None
    names = [n for n in table.columns if n != "at"] if inner is None else list(inner.type().names)
    columns = {n: table[n] if inner is None else inner[n] for n in names}
    return ScannedTable(path, read, table, columns, table["at"])


def _is_json(path: Path) -> bool:
    return not is_parquet(path) and bool(set(path.suffixes) & set(JSON_SUFFIXES))


def _types(paths: Iterable[str]) -> dict[str, str]:
    """Builds the DuckDB types of the top-level fields that hold the dotted paths."""
    tree: dict[str, Any] = {}
    for path in paths:
        node = tree
        *above, leaf = path.split(".")
        for name in above:
            node = node.setdefault(name, {})
        node.setdefault(leaf, {})

    def kind(name: str, node: Mapping[str, Any]) -> str:
        if not node:
            return "VARCHAR[]" if name == HITS else "VARCHAR"
        inside = ", ".join(f'"{n}" {kind(n, child)}' for n, child in node.items())
        return f"STRUCT({inside})"

    return {name: kind(name, node) for name, node in tree.items()}


def _resolve(raw: ScannedTable, path: str) -> Any:
    """Finds the value at a dotted path: a column, a field of a struct or of JSON text; None where there is none."""
    if path in raw.columns:
        return raw.columns[path]
    head, *rest = path.split(".")
    value: Any = raw.columns.get(head)
    if value is None or not rest:
        return None
    if value.type().is_string():
        value = value.try_cast("json")
    for name in rest:
        if value.type().is_struct() and name not in value.type().names:
            return None
        if not (value.type().is_struct() or value.type().is_json()):
            return None
        value = value[name]
    if value.type().is_json():
        value = ibis.coalesce(value.str, value.cast("string")).nullif("null")
    return value


def _holds(engine: Engine, raw: ScannedTable, path: str) -> bool:
    value = _resolve(raw, path)
    if value is None:
        return False
    some = raw.table.select(value=value).limit(1000)
    try:
        return engine.number(some.value.count()) > 0
    except EngineError as error:
        raise _ScannedEvents([raw]).explain(error) from error


class _ScannedEvents(ScannedFiles):
    """Scanned files of events and queries, among them JSON."""

    def explain(self, error: EngineError) -> DataError:
        found = _JSON_FAILED.search(error.text)
        texts = [table.path for table in self.tables if _is_json(table.path)]
        named = [table.path for table in self.tables if found is not None and str(table.read) == found["file"]]
        if named or (len(texts) == 1 and "JSON" in error.text):
            return json_error((named or texts)[0], error)
        return super().explain(error)


def json_error(path: Path, error: EngineError) -> DataError:
    """Finds the line at which the engine stopped reading a JSON file."""
    found = _JSON_FAILED.search(error.text)
    said = found["rest"].strip(" .") if found else error.text
    row = _bad_json(path)
    if row is None and (counted := re.search(r"(?:line|record/value) (\d+)", said)):
        row = int(counted[1])
    return DataError(
        f"expected JSON with one object per event, found: {said}",
        fix="Give one object per line, or one array of objects.",
        file=path,
        row=row,
    )


def _bad_json(path: Path) -> int | None:
    """Finds the line at which a file stops being JSON; the engine's own count may be one off."""
    with open_bytes(path) as stream:
        array = stream.read(1 << 16).lstrip().startswith(b"[")
    if array:
        with open_bytes(path) as stream:
            return _json_error(stream.read())
    numbered = (pair for start, lines in line_blocks(path) for pair in enumerate(lines.to_pylist(), start))
    return next((row for row, line in numbered if line and _json_error(line)), None)


def _json_error(text: str | bytes) -> int | None:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.lineno
    except (ValueError, RecursionError):  # bytes that are no text, or brackets in brackets
        return 1
    return None
