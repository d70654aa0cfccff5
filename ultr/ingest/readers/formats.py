"""Raw click logs of several formats as one long table: a row per shown document, values as they stand in the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ibis
import ibis.expr.types as ir

from ultr.errors import ConfigError, DataError
from ultr.ingest.engine import Engine, EngineError
from ultr.ingest.sources import LINES, Raw, csv_error, is_parquet, open_table, place, read_lines, table_line

OURS = ("session", "query", "document", "rank", "click", "time", "label")
REQUIRED = OURS[:5]


@dataclass(frozen=True)
class Request:
    """Which columns are asked for.

    Attributes:
      columns: our name -> the file's.
      features, context: column names of the file.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    features: Sequence[str] = ()
    context: Sequence[str] = ()

    def fixed(self, name: str, features: Sequence[str] = (), context: Sequence[str] = ()) -> None:
        """Raises ConfigError where more is asked for than a format of fixed fields has."""
        if self.columns:
            raise ConfigError(f"the fields of the format {name!r} are fixed: it takes no column names")
        for what, wanted, known in (("features", self.features, features), ("context", self.context, context)):
            if unknown := [n for n in wanted if n not in known]:
                raise ConfigError(f"the format {name!r} has {what} {list(known)}, found {unknown}")

    def names(self) -> dict[str, str]:
        """Our names -> the file's, where they differ."""
        return dict(self.columns) | self.extra()

    def extra(self) -> dict[str, str]:
        """Our names of the features and context columns -> the file's."""
        return {f"feature.{n}": n for n in self.features} | {f"context.{n}": n for n in self.context}


@dataclass
class Rows:
    """Shown documents.

    Attributes:
      parts: tables of the same columns, with the types of their files: at, session, query, document, rank, click,
        where there are any time, label, feature.<name>, context.<name>; `list` where the format says which list a
        row belongs to (otherwise session and query do), `slot` where the documents have embeddings.
      files: what `at` points into.
      read: rows or lines of the input.
      shown: rows of the parts, once they are counted.
      dropped, repaired: kind -> how many the reader left out or put right.
      once: whether reading the parts again would be slow.
      text: whether a string may stand for a number, as in CSV.
      graded: whether these are graded documents (with `label`, without rank and click) rather than shown ones.
      line: (file, row) -> row to report.
      explain: what an engine error means.
    """

    parts: list[ir.Table]
    files: list[Path]
    read: int | None = None
    shown: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    repaired: dict[str, int] = field(default_factory=dict)
    once: bool = True
    text: bool = False
    graded: bool = False
    line: Callable[[Path, int], int] | None = None
    explain: Callable[[EngineError], DataError] = lambda error: error


def name_it(ours: str) -> str:
    """How to say which column of a file is one of `OURS`."""
    return f"Name it with --{ours} COLUMN (in Python: columns={{'{ours}': ...}})."


def missing(path: Path, ours: str, theirs: str, found: Sequence[str]) -> DataError:
    """The error about a column that a file does not have."""
    wanted = f"a column '{theirs}'" + (f" for '{ours}'" if ours in OURS and ours != theirs else "")
    fix = name_it(ours) if ours in OURS else "Check its name."
    return DataError(f"expected {wanted}, found the columns {list(found)}", fix=fix, file=path, field=theirs)


def read_table(engine: Engine, files: list[Path], request: Request) -> Rows:
    """A long table in CSV, TSV or Parquet: one row per shown document.

    Columns are session, query, document, rank (1-based) and click (0 or 1), and if there are any time and label,
    or what `request.columns` calls them. The rows of one session and query are one list.
    """
    raws = [open_table(engine, path, number) for number, path in enumerate(files)]
    names = {name: request.columns.get(name, name) for name in OURS}
    for name in OURS[len(REQUIRED) :]:
        if name not in request.columns and names[name] not in raws[0].columns:
            del names[name]
    names |= request.extra()

    def part(raw: Raw) -> ir.Table:
        for ours, theirs in names.items():
            if theirs not in raw.columns:
                raise missing(raw.path, ours, theirs, list(raw.columns))
        return raw.table.select(at=raw.at, **{ours: raw.columns[theirs] for ours, theirs in names.items()})

    return Rows(
        parts=[part(raw) for raw in raws],
        files=files,
        once=not all(is_parquet(path) for path in files),
        text=not any(is_parquet(path) for path in files),
        line=table_line,
        explain=lambda error: csv_error(files, error),
    )


def read_yandex(engine: Engine, files: list[Path], request: Request) -> Rows:
    """The Yandex relevance prediction format: tab-separated lines of queries and of clicks.

    `session time Q query region url1 url2 ...` is one list; `session time C url` is a click. It belongs to the
    latest list above it, of the same session, that showed the url.
    """
    request.fixed("yandex", context=["region"])
    lines = engine.load("lines", read_lines(files), LINES)
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
    _reject(
        engine,
        files,
        lines.semi_join(fields.filter(~(click | shown).fill_null(False)), "at"),
        "expected 'session time Q query region url...' or 'session time C url' between tabs",
    )
    lists = fields.filter(fields.kind == "Q")
    rows = lists.select("at", "session", "time", "region", query="value", list="at", document="urls")
    rows = long(rows, "document")
    rows = engine.stage("shown", rows.mutate(document=rows.document.strip()).filter(lambda t: t.document != ""))
    clicks = fields.filter(fields.kind == "C").select("at", "session", document="value")
    places = rows.group_by(["list", "session", "document"]).agg(rank=rows["rank"].min())
    same = [places["session"] == clicks["session"], places["document"] == clicks["document"]]
    found = places.join(clicks, [*same, places["list"] < clicks["at"]])
    # `at` is the click's, `list` where the list stands: the latest list above the click wins.
    hits = found.group_by("at").agg(rank=found["rank"].argmax(found["list"]), list=found["list"].max())
    table, counts = _clicked(engine, rows, hits, clicks.count())
    counts["empty_lists"] = number_of(engine, lists.anti_join(rows, "at").count())
    names = ["at", "list", "session", "query", "document", "rank", "click", "time"]
    table = table.select(*names, **{f"context.{n}": table[n] for n in request.context})
    return _text_rows(engine, table, files, lines, counts)


def read_yandex_sample(engine: Engine, files: list[Path], request: Request) -> Rows:
    """The Yandex sample format: each line holds the lists of one query, separated by semicolons.

    A list is `query_region <tab> url1,url2,... : url , url ...` with the clicked urls after the colon. The sessions
    are numbered in the order in which they stand.
    """
    request.fixed("yandex-sample")
    lines = engine.load("lines", read_lines(files), LINES)
    entries = long(lines.select("at", entry=lines.text.split(";")), "entry")
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
    _reject(
        engine,
        files,
        lists.filter(lists.wrong.notnull()).select("at", text="wrong"),
        "expected 'query <tab> url,url,... : clicked , clicked' between semicolons",
    )
    rows = long(lists.select("at", "list", "query", session="list", document="urls"), "document")
    rows = engine.stage("shown", rows.mutate(document=rows.document.strip()).filter(lambda t: t.document != ""))
    clicks = long(lists.select("list", document="clicked"), "document")
    clicks = clicks.select("list", document=clicks.document.strip()).filter(lambda t: t.document != "")
    places = rows.group_by(["list", "document"]).agg(rank=rows["rank"].min())
    table, counts = _clicked(engine, rows, clicks.join(places, ["list", "document"]), clicks.count())
    counts["empty_lists"] = number_of(engine, lists.anti_join(rows, "list").count())
    names = ["at", "list", "session", "query", "document", "rank", "click"]
    return _text_rows(engine, table.select(names), files, lines, counts)


def read_trec_session(engine: Engine, files: list[Path], request: Request) -> Rows:
    """Session files as made from the TREC session track and from TianGong-ST.

    A line is `session <tab> query <tab> [documents] <tab> [verticals] <tab> [clicks]`, and may have grades as a
    sixth field; the fields in brackets have one value per shown document. `vertical` can be asked for as a feature.
    Grades below 0 (junk) count as 0, as in trec_eval.
    """
    request.fixed("trec-session", features=["vertical"])
    lines = engine.load("lines", read_lines(files), LINES)
    part = lines.text.split("\t")

    def values(number: int) -> ir.ArrayValue:
        inside = part[number].replace("[", "").replace("]", "").replace(" ", "").replace("'", "")
        return inside.split(",")

    fields = engine.stage(
        "fields",
        lines.select(
            "at",
            "text",
            session=part[0].strip(),
            query=part[1].strip(),
            documents=values(2),
            verticals=values(3),
            clicks=values(4),
            grades=ibis.ifelse(part.length() >= 6, values(5), ibis.null("array<string>")),
            length=part.length(),
        ),
    )
    size = fields.documents.length()
    ragged = (fields.verticals.length() != size) | (fields.clicks.length() != size)
    ragged |= (fields.grades.length() != size).fill_null(False)
    _reject(
        engine,
        files,
        fields.filter((fields.length < 5) | (fields.length > 6) | ragged.fill_null(True)),
        "expected 'session query [documents] [verticals] [clicks]' or these and '[grades]' between tabs, "
        "with as many values in each bracket",
    )
    graded = number_of(engine, fields.grades.notnull().sum())
    columns = [fields.documents, fields.clicks, fields.verticals]
    if graded:
        ungraded = ibis.array([ibis.null("string")]).repeat(size)
        columns.append(ibis.coalesce(fields.grades, ungraded))
    zipped = columns[0].zip(*columns[1:])
    rows = long(fields.select("at", "session", "query", list="at", shown=zipped), "shown")
    values_ = {"document": rows.shown["f1"], "click": rows.shown["f2"], "feature.vertical": rows.shown["f3"]}
    if graded:
        values_["label"] = rows.shown["f4"]
    wanted = [n for n in values_ if n != "feature.vertical" or request.features]
    table = rows.select("at", "list", "session", "query", "rank", **{n: values_[n] for n in wanted})
    table = table.filter(table.document != "")
    counts = {"empty_lists": number_of(engine, fields.filter(fields.documents[0] == "").count())}
    return _text_rows(engine, table, files, lines, counts)


def long(table: ir.Table, column: str) -> ir.Table:
    """One row per value of an array column, with its 1-based place as `rank`."""
    out = table.unnest(column, offset="place", keep_empty=False)
    return out.mutate(rank=out.place + 1).drop("place")


def _clicked(
    engine: Engine, rows: ir.Table, hits: ir.Table, clicks: ir.IntegerScalar
) -> tuple[ir.Table, dict[str, int]]:
    """Marks the rows that were hit (by list and rank), and counts the clicks that hit none or one twice."""
    hit = engine.stage("hits", hits.group_by(["list", "rank"]).agg(times=hits.count()))
    table = rows.left_join(hit, ["list", "rank"])
    table = table.mutate(click=table.times.notnull().cast("int8")).drop("times", "list_right", "rank_right")
    totals = engine.record(hit.agg(hits=hit.times.sum().fill_null(0), slots=hit.count()))
    total = number_of(engine, clicks)
    return table, {
        "clicks_on_documents_not_shown": total - totals["hits"],
        "repeated_clicks": totals["hits"] - totals["slots"],
    }


def _text_rows(engine: Engine, table: ir.Table, files: list[Path], lines: ir.Table, counts: dict[str, int]) -> Rows:
    repaired = {name: counts.pop(name) for name in ("repeated_clicks",) if name in counts}
    read = number_of(engine, lines.count())
    return Rows(parts=[table], files=files, read=read, dropped=counts, repaired=repaired)


def number_of(engine: Engine, value: ir.IntegerScalar) -> int:
    return int(engine.record(value.name("value").as_table())["value"] or 0)


def _reject(engine: Engine, files: list[Path], bad: ir.Table, expected: str) -> None:
    """Raises about the first of the rows (at, text), if there are any."""
    first = engine.record(bad.select("at", "text").order_by("at").limit(1))
    if first:
        text = first["text"] if len(first["text"]) <= 80 else first["text"][:80] + "..."
        raise DataError(f"{expected}, found {text!r}", **place(files, first["at"]))
