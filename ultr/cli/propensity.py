"""`ultr propensity`: how much users examine each rank, by one or several estimators side by side."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ultr.cli import json_option, output, seed_option
from ultr.errors import ConfigError, DataError
from ultr.files import write_text
from ultr.plots import propensities as figure_of_propensities
from ultr.plots import style
from ultr.text import table

if TYPE_CHECKING:
    from ultr.propensity import Propensities

LIKELIHOODS = ("maximum-likelihood", "conditional-likelihood")
TABLES = (".csv", ".json")


@click.command()
@click.argument("log", type=click.Path(path_type=Path))
@click.option(
    "--method",
    "methods",
    multiple=True,
    default=["conditional-likelihood"],
    show_default=True,
    help="conditional-likelihood, maximum-likelihood, all-pairs, variance-weighted, adjacent-chain, pivot-one, "
    "randomised, ctr; may be given several times.",
)
@click.option(
    "--errors",
    default="information",
    show_default=True,
    type=click.Choice(["information", "query"]),
    help="Of the likelihoods: errors of the model; query: robust to a model that is not right, over queries.",
)
@click.option(
    "--replicates",
    default=1000,
    show_default=True,
    type=click.IntRange(min=40),
    help="Of the other methods: how many times queries are resampled.",
)
@click.option(
    "--context", multiple=True, help="One curve per value of this context column; may be given several times."
)
@click.option(
    "--bins", default=4, show_default=True, type=click.IntRange(min=1), help="Cuts a --context of numbers into so many."
)
@click.option("--split", help="Only this split of the log.")
@click.option("--ranks", type=click.IntRange(min=1), help="Look at ranks 1 to this alone [all].")
@click.option("--out", type=click.Path(path_type=Path), help="Also write the table: .csv or .json.")
@click.option("--figure", type=click.Path(path_type=Path), help="Also draw the curves: .png, .svg or .pdf.")
@seed_option
@json_option
def command(
    log: Path,
    methods: Sequence[str],
    errors: str,
    replicates: int,
    context: Sequence[str],
    bins: int,
    split: str | None,
    ranks: int | None,
    out: Path | None,
    figure: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Estimate how much users examine each rank.

    LOG is a click log, or counts of one. Values are relative to rank 1, with standard errors and 95 % intervals.
    Where the log cannot tell a value, there is none, and the reason. Session weights are taken as numbers
    of equal sessions.

    \b
    Example:
      ultr propensity log --method conditional-likelihood --method all-pairs --figure curves.png
    Example: one curve per device
      ultr propensity log --context device --out curves.csv
    """
    import numpy as np

    from ultr.data import open_counted
    from ultr.propensity import METHODS, contextual
    from ultr.propensity.cells import cells_of, first_ranks

    methods = list(dict.fromkeys(methods))
    _check(methods, METHODS, context, out, figure)
    source = open_counted(log, split=split)
    found: dict[str, Propensities] = {}
    if context:
        _check_ranks(min(ranks or source.ranks, source.ranks), ranks)
        for method in methods:
            curves_of = contextual(source, context, bins=bins, method=method, errors=errors, ranks=ranks)  # type: ignore[arg-type]
            for name, curve in curves_of.items():
                found[name if len(methods) == 1 else f"{method}, {name}"] = curve
    else:
        cells = first_ranks(cells_of(source), ranks)
        _check_ranks(len(np.unique(cells.arm)), ranks)
        for method in methods:
            options = {"errors": errors} if method in LIKELIHOODS else {"replicates": replicates, "seed": seed}
            found[method] = METHODS[method](cells, **options)
    result = {"log": str(log), "split": split, "propensities": [curve.to_json() for curve in found.values()]}
    if out is not None:
        write_text(out, _csv(found) if out.suffix == ".csv" else json.dumps(result, indent=1) + "\n")
    if figure is not None:
        figure_of_propensities.draw(found, figure)
    output(result, _report(found), as_json)


def _check(
    methods: Sequence[str], known: Mapping[str, Any], context: Sequence[str], out: Path | None, figure: Path | None
) -> None:
    """Before any work: names and options that go together, files that can be written."""
    given = click.get_current_context()
    for method in methods:
        if method not in known:
            raise ConfigError(f"unknown method '{method}'; known: {', '.join(known)}")
        if context and method not in LIKELIHOODS:
            raise ConfigError(f"--context goes with --method {' or '.join(LIKELIHOODS)}, not with {method}")
    unheeded = {
        "errors": not set(methods) & set(LIKELIHOODS),
        "replicates": set(methods) <= set(LIKELIHOODS),
        "bins": not context,
    }
    for name, nothing in unheeded.items():
        if nothing and given.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            raise ConfigError(
                f"--{name} says nothing "
                + ("without --context" if name == "bins" else f"to --method {', '.join(methods)}")
            )
    style.check_file("--out", out, TABLES)
    style.check_figure(figure)


def _check_ranks(shown: int, ranks: int | None) -> None:
    """Propensities are relative: there must be ranks to compare."""
    if shown == 1:
        mend = "Look at more ranks" if ranks == 1 else "Give a log whose lists show more ranks"
        raise DataError("one rank only: there is nothing to compare", fix=mend)


def _csv(found: Mapping[str, Propensities]) -> str:
    """One row per curve and rank; what is not known is empty."""
    contexts = list(dict.fromkeys(name for curve in found.values() for name in curve.context))
    head = ["method", *contexts, "rank", "propensity", "standard_error", "low", "high", "impressions", "unsupported"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for curve in found.values():
        for row in curve.to_json()["ranks"]:
            numbers = [row["propensity"], row["standard_error"], *row["interval"], row["impressions"]]
            where = [curve.context.get(name, "") for name in contexts]
            writer.writerow([curve.method, *where, row["rank"], *numbers, row["unsupported"] or ""])
    return text.getvalue()


def _report(found: Mapping[str, Propensities]) -> str:
    """The curves for people: side by side where there are several, then what to know about them."""
    first, *others = found.values()
    if not others:
        rows = [row[:-1] for row in first.rows()]
        lines = [table(rows), "propensity: how much a rank is examined, relative to rank 1"]
    else:
        rows = [["rank", *found]]
        rows += [[str(rank), *(_cell(curve, i) for curve in found.values())] for i, rank in enumerate(first.rank)]
        lines = [table(rows), "how much a rank is examined, relative to rank 1, ± its standard error"]
    for name, curve in found.items():
        lead = f"{name}: " if others else ""
        lines += [f"{lead}{reason}" for reason in curve.by_reason()]
        lines += [f"{lead}warning: {warning}" for warning in curve.warnings]
    return "\n".join(lines)


def _cell(curve: Propensities, i: int) -> str:
    value, error, high = curve.value[i], curve.standard_error[i], curve.interval[i, 1]
    if value == 0 and math.isfinite(high):
        return f"< {high:.4f}"
    if not math.isfinite(value) or curve.rank[i] == 1:
        return "-" if not math.isfinite(value) else f"{value:.4f}"
    return f"{value:.4f} ± {error:.4f}" if math.isfinite(error) else f"{value:.4f} ± -"
