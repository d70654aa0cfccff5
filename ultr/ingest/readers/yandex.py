"""Reads logs of the Yandex relevance prediction challenge, and the sample in which it was also published."""

from __future__ import annotations

from pathlib import Path

import ibis

from ultr.ingest.engine import Engine
from ultr.ingest.readers.base import ColumnRequest, RawRows
from ultr.ingest.readers.lines import load_lines, mark_clicked, reject_lines, rows_of_lines, unnest_ranked


def read_yandex(engine: Engine, files: list[Path], request: ColumnRequest) -> RawRows:
    """Reads the format of the challenge: tab-separated lines of queries and of clicks.

    `session time Q query region url1 url2 ...` is one list; `session time C url` is a click. A click belongs to the
    last list above it, of the same session, that shows the url.
    """
    lines = load_lines(engine, files)
    part = lines.text.split("\t")
    fields = engine.stage(
        "fields",
        lines.select(
            "at",
            session=part[0].strip(),
            time=part[1].strip(),
            kind=part[2].strip(),
            value=part[3].strip(),
            region=part[4].strip(),
            urls=part[5:],
            length=part.length(),
        ),
    )
    click = (fields.kind == "C") & (fields.length >= 4)
    shown = (fields.kind == "Q") & (fields.length >= 5)
    reject_lines(
        engine,
        files,
        lines.semi_join(fields.filter(~(click | shown).fill_null(False)), "at"),
        "expected 'session time Q query region url...' or 'session time C url' between tabs",
    )
    lists = fields.filter(fields.kind == "Q")
    rows = lists.select("at", "session", "time", "region", query="value", list="at", document="urls")
    rows = unnest_ranked(rows, "document")
    rows = engine.stage("shown", rows.mutate(document=rows.document.strip()).filter(lambda t: t.document != ""))
    clicks = fields.filter(fields.kind == "C").select("at", "session", document="value")
    places = rows.group_by(["list", "session", "document"]).agg(rank=rows["rank"].min())
    same = [places["session"] == clicks["session"], places["document"] == clicks["document"]]
    found = places.join(clicks, [*same, places["list"] < clicks["at"]])
    # `at` is the position of the click, `list` that of the list: the last list above the click has the largest.
    hits = found.group_by("at").agg(rank=found["rank"].argmax(found["list"]), list=found["list"].max())
    table, counts = mark_clicked(engine, rows, hits, clicks.count())
    counts["empty_lists"] = engine.number(lists.anti_join(rows, "at").count())
    names = ["at", "list", "session", "query", "document", "rank", "click", "time"]
    table = table.select(*names, **{f"context.{n}": table[n] for n in request.context})
    return rows_of_lines(engine, table, files, lines, counts)


def read_yandex_sample(engine: Engine, files: list[Path], request: ColumnRequest) -> RawRows:
    """Reads the format of the sample: each line holds the lists of one query, separated by semicolons.

    A list is `query_region <tab> url1,url2,... : url , url ...` with the clicked urls after the colon. Sessions are
    numbered in the order of the files.
    """
    lines = load_lines(engine, files)
    entries = unnest_ranked(lines.select("at", entry=lines.text.split(";")), "entry")
    entries = entries.mutate(entry=entries.entry.strip()).filter(lambda t: t.entry != "")
    part = entries.entry.split("\t")
    halves = part[1].split(":")
    lists = engine.stage(
        "entries",
        entries.select(
            "at",
            list=ibis.row_number().over(order_by=[entries["at"], entries["rank"]]),
            query=part[0].strip(),
            urls=halves[0].split(","),
            clicked=halves[1].split(","),
            wrong=ibis.ifelse((part.length() == 2) & (halves.length() == 2), ibis.null("string"), entries.entry),
        ),
    )
    reject_lines(
        engine,
        files,
        lists.filter(lists.wrong.notnull()).select("at", text="wrong"),
        "expected 'query <tab> url,url,... : clicked , clicked' between semicolons",
    )
    rows = unnest_ranked(lists.select("at", "list", "query", session="list", document="urls"), "document")
    rows = engine.stage("shown", rows.mutate(document=rows.document.strip()).filter(lambda t: t.document != ""))
    clicks = unnest_ranked(lists.select("list", document="clicked"), "document")
    clicks = clicks.select("list", document=clicks.document.strip()).filter(lambda t: t.document != "")
    places = rows.group_by(["list", "document"]).agg(rank=rows["rank"].min())
    table, counts = mark_clicked(engine, rows, clicks.join(places, ["list", "document"]), clicks.count())
    counts["empty_lists"] = engine.number(lists.anti_join(rows, "list").count())
    names = ["at", "list", "session", "query", "document", "rank", "click"]
    return rows_of_lines(engine, table.select(names), files, lines, counts)
