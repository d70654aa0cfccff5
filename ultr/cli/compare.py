"""`ultr compare`: a table of methods over logs and seeds, with intervals and tests."""

from __future__ import annotations

from pathlib import Path

import click

from ultr import plots
from ultr.cli import MethodsCommand, hold, json_option, output
from ultr.cli.options import InVain, refuse_in_vain
from ultr.errors import ConfigError
from ultr.files import check_output_folder, json_values, write_json, write_text
from ultr.study.registry import METHODS


@click.command(cls=MethodsCommand, methods=METHODS.values(), method_options=None)
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder of the results: runs, tables and TREC files."
)
@click.option("--only", multiple=True, help="Only this log or method; may be given several times.")
@click.option(
    "--seed", "seeds", multiple=True, type=int, help="Only this seed of the study; may be given several times."
)
@click.option("--jobs", default=1, type=click.IntRange(min=1), help="Processes; one log and seed each.")
@click.option("--retry", is_flag=True, help="Make those runs again that failed.")
@click.option("--keep-logs", is_flag=True, help="Keep the simulated logs, in OUT/logs.")
@click.option(
    "--figure",
    type=click.Path(path_type=Path),
    help="Also draw the first metric of all methods, a panel per log: .png, .svg or .pdf.",
)
@click.option("--strict", is_flag=True, help="End with exit code 1 where a run failed.")
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

    CONFIG is a TOML file: graded lists, logs, methods, seeds. A run is one method on one log with one seed; its result
    is kept in OUT/cells and made again only where its settings changed. OUT/results.json and OUT/table.md hold the
    results of all runs that are there, OUT/trec the same rankings for trec_eval and ir_measures. Methods are listed
    below, with their own options and the defaults of these.

    \b
    Example:
      ultr compare study.toml --out study --jobs 2 --figure study.png
    """
    from ultr.study import collect_results, read_study, results_markdown, run_study
    from ultr.study.tables import LEGEND

    plots.check_figure(figure, made=out)
    study = read_study(config)
    hold(out, inside=True)
    check_out(out)
    simulated = any(log.path is None for log in study.logs)
    refuse_in_vain([InVain("keep_logs", not simulated, "on a study without simulated logs")])
    if figure is not None and study.data.test is None:
        raise ConfigError("--figure draws a ranking metric, and the study has no 'test' lists: leave --figure out")
    counts = run_study(
        study,
        out,
        only=only,
        seeds=seeds,
        jobs=jobs,
        retry=retry,
        keep_logs=keep_logs,
        say=lambda line: click.echo(line, err=True),
    )
    results = collect_results(study, out)
    text = results_markdown(results)
    write_json(out / "results.json", results)
    write_text(out / "table.md", f"{text}\n{LEGEND}\n")
    if figure is not None:
        lines = [m.name for kind in ("logger", "full-information") for m in study.methods if m.model == kind]
        plots.save_figure(plots.comparison(results, lines), figure)
    failed = results["failed"]
    click.echo(f"{counts['made']} runs made, {counts['kept']} kept, {len(failed)} failed", err=True)
    if failed:
        click.echo(f"note: the first that failed is {failed[0]['cell']}: {failed[0]['error']}", err=True)
    output(json_values(results | {"out": str(out), "cells": counts}), f"{text}\n{LEGEND}", as_json)
    return 1 if strict and failed else 0


def check_out(out: Path) -> None:
    """Refuses a folder that holds something else than the results of a comparison.

    Before its first run is finished, a comparison makes the folders `trec`, `about` and those of work in progress.

    Raises:
      ConfigError: names the folder and says what to choose instead.
    """
    if not ((out / "cells").exists() or (out / "results.json").exists()):
        check_output_folder(out, may_hold=lambda entry: entry.name in ("trec", "about"))
