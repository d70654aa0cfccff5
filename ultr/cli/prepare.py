"""`ultr prepare`: raw data to a click log or a collection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ultr.cli import json_option, output, overwrite_option, seed_option

COLUMNS = ("session", "query", "document", "rank", "click", "time", "label")


def _fractions(text: str | None) -> dict[str, float] | None:
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


def _options(command: Any) -> Any:
    for name in reversed(COLUMNS):
        command = click.option(f"--{name}", metavar="COLUMN", help=f"Column that holds the {name} [{name}].")(command)
    return command


@click.command()
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to make.")
@click.option(
    "--format",
    "format_",
    default="table",
    show_default=True,
    help="table, yandex, yandex-sample, trec-session, baidu-uva, ubi; for graded lists letor, qrels.",
)
@_options
@click.option("--feature", "features", multiple=True, metavar="COLUMN", help="Numeric column per shown document.")
@click.option("--context", multiple=True, metavar="COLUMN", help="Column that is constant in a session.")
@click.option("--labels", type=click.Path(path_type=Path), help="Grades per (query, document): qrels or CSV.")
@click.option("--vocabulary", type=click.Path(path_type=Path), help="Log or collection whose ids to keep.")
@click.option("--split", help="Named shares, such as train=.8,valid=.1,test=.1.")
@click.option("--split-by", default="query", show_default=True, type=click.Choice(["query", "session", "time"]))
@click.option("--engine", default="duckdb", show_default=True, help="What runs joins and sorts.")
@click.option("--memory-limit", help="Bound of the engine's memory, such as 4GB; it spills to disk beyond.")
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
    vocabulary: Path | None,
    split: str | None,
    split_by: str,
    engine: str,
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
    from ultr.ingest.preparing import prepare

    made = prepare(
        list(inputs),
        out,
        format=format_,
        columns={name: column for name, column in columns.items() if column},
        features=list(features),
        context=list(context),
        labels=labels,
        vocabulary=vocabulary,
        split=_fractions(split),
        split_by=split_by,
        seed=seed,
        overwrite=overwrite,
        engine=engine,
        memory_limit=memory_limit,
    )
    facts: dict[str, Any] = {
        "out": str(out),
        "queries": made.metadata["queries"],
        "documents": made.metadata["documents"],
    }
    if isinstance(made, ClickLog):
        facts |= {name: made.metadata[name] for name in ("sessions", "ranks", "impressions", "clicks")}
    facts |= {"splits": made.metadata["splits"], "report": made.metadata["report"]}
    lines = [f"{name}: {value:,}" for name, value in facts.items() if isinstance(value, int)]
    lines += [f"split {name}: {count:,}" for name, count in facts["splits"].items()]
    # What is printed above, or as a warning, is not said again.
    lines += _report({n: v for n, v in facts["report"].items() if n != "warnings" and facts.get(n) != v})
    output(facts, "\n".join([f"wrote {out}", *lines]), as_json)
    for warning in facts["report"]["warnings"]:
        click.echo(f"warning: {warning}", err=True)


def _report(report: dict[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for name, value in report.items():
        label = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, dict):
            lines += _report(value, f"{label}: ")
        else:
            lines.append(f"{label}: {_plain(value)}")
    return [f"  {line}" if not prefix else line for line in lines]


def _plain(value: Any) -> str:
    if isinstance(value, list):
        shown = [str(v) for v in value]
        return ", ".join(shown if len(shown) <= 6 else [*shown[:5], f"... ({len(shown):,} in all)"])
    return f"{value:,}" if isinstance(value, int) else str(value)
