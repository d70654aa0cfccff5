"""`ultr compare`: a table of methods over logs and seeds, with intervals and tests."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ultr import plots
from ultr.cli import json_option, output
from ultr.errors import ConfigError
from ultr.files import write_text


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of cells, tables and TREC files.")
@click.option("--only", multiple=True, help="Only this log or method; may be given several times.")
@click.option(
    "--seed", "seeds", multiple=True, type=int, help="Only this seed of the study; may be given several times."
)
@click.option(
    "--jobs", default=1, show_default=True, type=click.IntRange(min=1), help="Processes; one log and seed each."
)
@click.option("--retry", is_flag=True, help="Make those cells again that failed.")
@click.option("--keep-logs", is_flag=True, help="Keep the simulated logs, in OUT/logs.")
@click.option(
    "--figure",
    type=click.Path(path_type=Path),
    help="Also draw the first metric of all methods, a panel per log: .png, .svg or .pdf.",
)
@click.option("--strict", is_flag=True, help="End with exit code 1 where a cell failed.")
@json_option
def command(
    config: Path,
    out: Path,
    only: tuple[str, ...],
    seeds: tuple[int, ...],
    jobs: int,
    retry: bool,
    keep_logs: bool,
    figure: Path | None,
    strict: bool,
    as_json: bool,
) -> int:
    """Compare methods on simulated or real logs, over seeds, with intervals and paired tests.

    CONFIG is a TOML file: graded lists, logs, methods, seeds. A finished cell (log, method, seed) is kept in OUT and
    made again only where its settings changed. OUT/results.json and OUT/table.md hold the result of all that is there,
    OUT/trec the same rankings for trec_eval and ir_measures.

    \b
    Example:
      ultr compare study.toml --out study --jobs 2 --figure study.png
    """
    from ultr.study import collect, markdown, read, run
    from ultr.study.cells import dumps
    from ultr.study.tables import LEGEND

    plots.check_figure(figure, made=out)
    study = read(config)
    _check_out(out)
    if figure is not None and study.data.test is None:
        raise ConfigError("--figure draws a ranking metric, and the study has no 'test' lists: leave --figure out")
    with _terminable():
        counts = run(
            study,
            out,
            only=only,
            seeds=seeds,
            jobs=jobs,
            retry=retry,
            keep_logs=keep_logs,
            say=lambda line: click.echo(line, err=True),
        )
    results = collect(study, out)
    text = markdown(results)
    write_text(out / "results.json", dumps(results))
    write_text(out / "table.md", f"{text}\n{LEGEND}\n")
    if figure is not None:
        lines = [m.name for kind in ("logger", "full-information") for m in study.methods if m.model == kind]
        plots.save_figure(plots.comparison(results, lines), figure)
    failed = results["failed"]
    click.echo(f"{counts['made']} cells made, {counts['kept']} kept, {len(failed)} failed", err=True)
    if failed:
        click.echo(f"note: the first that failed is {failed[0]['cell']}: {failed[0]['error']}", err=True)
    output(json.loads(dumps(results | {"out": str(out), "cells": counts})), f"{text}\n{LEGEND}", as_json)
    return 1 if strict and failed else 0


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does: processes are ended and working folders removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: give --out a folder")
    if not out.is_dir() or (out / "cells").exists() or (out / "results.json").exists():
        return
    # Before its first cell is finished, a run makes these.
    if not all(entry.name in ("trec", "about") or entry.name.startswith(".work-") for entry in out.iterdir()):
        raise ConfigError(f"{out} holds other files: choose a new or empty folder for --out")
