"""`ultr prepare`: turns raw data into a click log or a collection."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ultr.cli import json_option, output, overwrite_option, seed_option
from ultr.cli.options import FiniteRange, InVain, Name, refuse_in_vain
from ultr.ingest.readers import READERS

# Our names of columns, of all formats together.
COLUMNS = tuple(dict.fromkeys(name for reader in READERS.values() for name in reader.columns))


class _PrepareCommand(click.Command):
    """Lists the formats at the end of its help."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for kind in dict.fromkeys(reader.kind for reader in READERS.values()):
            with formatter.section(f"Formats ({kind})"):
                formatter.write_dl([(r.name, r.description) for r in READERS.values() if r.kind == kind])


def _parse_split(text: str | None) -> dict[str, float] | None:
    """Parses "name=share,..." to name -> share."""
    if text is None:
        return None
    out: dict[str, float] = {}
    try:
        for part in text.split(","):
            name, share = part.split("=")
            name = name.strip()
            if name in out:
                raise click.BadParameter(f"expected each split once, found '{name}' twice in '{text}'")
            if not name:
                raise ValueError("a split without a name")
            out[name] = float(share)
        return out
    except ValueError as error:
        raise click.BadParameter(
            f"expected NAME=SHARE,..., such as train=.8,valid=.1,test=.1; found '{text}'"
        ) from error


def _column_options(command: Callable[..., None]) -> Callable[..., None]:
    for name in reversed(COLUMNS):
        formats = [reader.name for reader in READERS.values() if name in reader.columns]
        place = f"in a table: {name}" if "table" in formats else f"format {', '.join(formats)}"
        command = click.option(f"--{name}", metavar="COLUMN", help=f"Column with the {name} [{place}].")(command)
    return command


@click.command(cls=_PrepareCommand)
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to make.")
@click.option(
    "--format",
    "format_",
    default="table",
    metavar="FORMAT",
    type=Name(list(READERS)),
    help="Format of the inputs; the formats are listed below.",
)
@_column_options
@click.option("--feature", "features", multiple=True, metavar="COLUMN", help="Number per shown document.")
@click.option("--context", multiple=True, metavar="COLUMN", help="Number or text per list.")
@click.option("--labels", type=click.Path(path_type=Path), help="Grades per query and document: qrels or a table.")
@click.option(
    "--quote/--no-quote",
    default=None,
    help="Double quotes enclose values of CSV and TSV [yes, unless tabs separate the values].",
)
@click.option(
    "--features",
    "feature_count",
    type=click.IntRange(min=1),
    metavar="N",
    help="Features of a document, where lines leave out zeros (format letor) [the largest of a line].",
)
@click.option(
    "--vocabulary",
    type=click.Path(path_type=Path),
    help="Prepared log or collection whose ids are kept. Its grades and features hold where the inputs have none of "
    "their own.",
)
@click.option("--split", help="Splits and their shares of the lists, such as train=.8,valid=.1,test=.1.")
@click.option(
    "--split-by",
    type=Name(["query", "session", "time", "list"]),
    help="Draw all lists of a query together, all of a session, or each list, or take the earliest lists for the first "
    "split [query].",
)
@click.option(
    "--max-grade",
    type=FiniteRange(min=0, min_open=True),
    help="The highest grade of the scale, whatever grades are there; metrics and simulated users refer to it [that of "
    "the vocabulary, or the highest grade].",
)
@click.option(
    "--pages",
    type=click.Choice(["separate", "joined", "first"]),
    help="Where ranks start again with other documents within a session and query: lists of their own, further pages "
    "whose ranks go on, or rows to drop: first keeps one list per session and query, the first row at each rank, so "
    "that reloads are not told apart either [separate with a warning; UBI logs need an answer].",
)
@click.option("--memory-limit", help="Most memory of the query engine, such as 4GB; beyond it, disk is used.")
@seed_option
@overwrite_option
@json_option
def command(
    inputs: tuple[Path, ...],
    out: Path,
    format_: str,
    features: tuple[str, ...],
    context: tuple[str, ...],
    labels: Path | None,
    quote: bool | None,
    feature_count: int | None,
    vocabulary: Path | None,
    split: str | None,
    split_by: str | None,
    max_grade: float | None,
    pages: str | None,
    memory_limit: str | None,
    seed: int,
    overwrite: bool,
    as_json: bool,
    **columns: str | None,
) -> None:
    """Turn raw click logs or graded lists into a log or a collection.

    \b
    Example: one row per shown document, with names of its own for two columns
      ultr prepare clicks.csv --out log --session search_id --document sku --feature price
    Example: graded lists with features
      ultr prepare train.txt --format letor --out collection
    """
    from ultr.data import ClickLog
    from ultr.ingest import prepare

    refuse_in_vain(
        [
            InVain("split_by", split is None, "without --split"),
            InVain("seed", split is None, "without --split: it draws the splits, and nothing else is random"),
            InVain("seed", split_by == "time", "with --split-by time: nothing is drawn"),
        ]
    )
    made = prepare(
        list(inputs),
        out,
        format=format_,
        columns={name: column for name, column in columns.items() if column},
        features=list(features),
        context=list(context),
        labels=labels,
        quote=quote,
        feature_count=feature_count,
        vocabulary=vocabulary,
        split=_parse_split(split),
        split_by=split_by,
        max_grade=max_grade,
        seed=seed,
        pages=pages,
        overwrite=overwrite,
        memory_limit=memory_limit,
    )
    facts: dict[str, Any] = {
        "out": str(out),
        "queries": made.metadata["queries"],
        "documents": made.metadata["documents"],
    }
    if isinstance(made, ClickLog):
        facts["distinct_sessions"] = made.metadata["report"]["distinct_sessions"]
        facts |= {name: made.metadata[name] for name in ("sessions", "ranks", "impressions", "clicks")}
    if (scale := made.metadata["max_grade"]) is not None:
        facts["max_grade"] = scale
    facts |= {"splits": made.metadata["splits"], "report": made.metadata["report"]}
    lines = [f"{_LABELS.get(name, name)}: {value:,}" for name, value in facts.items() if isinstance(value, int)]
    if scale is not None:
        whence = "" if max_grade is not None else "; --max-grade sets the scale, metrics such as err refer to it"
        lines.append(f"highest grade: {scale:g}{whence}")
    lines += [f"split {name}: {count:,}" for name, count in facts["splits"].items()]
    # The report without the warnings, which go to standard error, and without what is printed above.
    lines += _report_lines({n: v for n, v in facts["report"].items() if n != "warnings" and facts.get(n) != v})
    if isinstance(made, ClickLog):
        facts["lists"] = facts["sessions"]  # by the name that the text has
    output(facts, "\n".join([f"wrote {out}", *lines]), as_json)
    for warning in facts["report"]["warnings"]:
        click.echo(f"warning: {warning}", err=True)


# What the numbers of a log are called for people: its rows are lists, of which a session may have several.
_LABELS = {
    "sessions": "lists",
    "distinct_sessions": "sessions",
    "queries_with_several_views": "queries of a session with several lists",
    "by_time": "queries of a session whose repeated ranks time explains, as views or copies",
    "by_order": "queries of a session whose repeated ranks the order of rows explains, as views or copies",
    "by_column": "queries of a session with several lists by the column of views",
    "pages": "lists of these that show other documents than the lists above them",
}


def _report_lines(report: dict[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for name, value in report.items():
        label = f"{prefix}{_LABELS.get(name, name).replace('_', ' ')}"
        if isinstance(value, int) and not value:
            continue  # --json has the kinds that did not occur
        if isinstance(value, dict):
            lines += _report_lines(value, f"{label}: ")
        else:
            lines.append(f"{label}: {_value_text(value)}")
    return [f"  {line}" if not prefix else line for line in lines]


def _value_text(value: Any) -> str:
    if isinstance(value, list):
        shown = [str(v) for v in value]
        return ", ".join(shown if len(shown) <= 6 else [*shown[:5], f"... ({len(shown):,} in all)"])
    return f"{value:,}" if isinstance(value, int) else str(value)
