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

from ultr import plots
from ultr.cli import json_option, output, ranks_option, seed_option
from ultr.cli.options import InVain, Name, refuse_in_vain
from ultr.errors import ConfigError, DataError
from ultr.files import write_text
from ultr.plots.style import check_file
from ultr.text import did_you_mean, table

if TYPE_CHECKING:
    from ultr.propensity import EstimatorSpec, GoodnessOfFit, Propensities
    from ultr.propensity.likelihood_table import Errors

TABLES = (".csv", ".json")


class _PropensityCommand(click.Command):
    """A command whose help lists the registered estimators."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from ultr.propensity import ESTIMATORS

        super().format_options(ctx, formatter)
        with formatter.section("Estimators"):
            formatter.write_dl([(spec.name, spec.summary) for spec in ESTIMATORS.values()])


@click.command(cls=_PropensityCommand)
@click.argument("log", type=click.Path(path_type=Path))
@click.option(
    "--method",
    "methods",
    multiple=True,
    default=["conditional-likelihood"],
    help="Estimator, one of those below; may be given several times.",
)
@click.option(
    "--errors",
    default="information",
    type=Name(["information", "query"]),
    help="For likelihoods: errors from the information matrix, right where the model is; query: robust to a wrong "
    "model, by a sandwich over queries.",
)
@click.option(
    "--replicates",
    default=1000,
    type=click.IntRange(min=40),
    help="For the other estimators: how many times queries are resampled.",
)
@click.option(
    "--context", multiple=True, help="One curve per value of this context column; may be given several times."
)
@click.option(
    "--bins",
    default=4,
    type=click.IntRange(min=1),
    help="Number of intervals that a --context of numbers is cut into.",
)
@click.option("--split", help="Read this split of the log only.")
@ranks_option
@click.option(
    "--check/--no-check",
    default=True,
    help="Check whether clicks fit the position-based model, and widen or withhold curves where they do not.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Also write the table: .csv or .json.")
@click.option("--figure", type=click.Path(path_type=Path), help="Also draw the curves: .png, .svg or .pdf.")
@seed_option
@json_option
def command(
    log: Path,
    methods: Sequence[str],
    errors: Errors,
    replicates: int,
    context: Sequence[str],
    bins: int,
    split: str | None,
    ranks: int | None,
    check: bool,
    out: Path | None,
    figure: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Estimate how much users examine each rank.

    LOG is a click log, or counts of one. Values are relative to rank 1, with standard errors and 95 % intervals.
    Where the log does not support a value, the reason is given instead. A session of weight w counts as w equal
    sessions.

    All estimators assume that clicks are examination by rank times relevance. The command checks this: where the
    log contradicts it, intervals reach over the curves of models that allow for it as well, or values are withheld.

    \b
    Example:
      ultr propensity log --method conditional-likelihood --method all-pairs --figure curves.png
    Example: one curve per device
      ultr propensity log --context device --out curves.csv
    """
    import numpy as np

    from ultr.data import open_counted
    from ultr.data.counting import merge_extra
    from ultr.propensity import ESTIMATORS
    from ultr.propensity.arm_counts import arm_counts_of_cells, count_clicks_above, count_documents, first_ranks
    from ultr.propensity.contexts import contextual_with_fit
    from ultr.propensity.goodness_of_fit import goodness_of_fit_of_cells

    methods = list(dict.fromkeys(methods))
    _check_options(methods, ESTIMATORS, context, out, figure)
    source = open_counted(log, split=split)
    found: dict[str, Propensities] = {}
    fits: dict[str, GoodnessOfFit] = {}
    if context:
        _check_ranks(min(ranks or source.ranks, source.ranks), ranks)
        for method in methods:
            options: dict[str, Any] = {"bins": bins, "method": method, "errors": errors, "ranks": ranks}
            curves_of, checks = contextual_with_fit(source, context, **options, checked=check and not fits)
            fits = fits or checks
            for name, curve in curves_of.items():
                widened = fits[name].widened(curve) if fits else curve
                found[name if len(methods) == 1 else f"{method}, {name}"] = widened
    else:
        counted = count_clicks_above(source) if check else count_documents(source)
        counts = first_ranks(arm_counts_of_cells(source, merge_extra(counted)), ranks)
        _check_ranks(len(np.unique(counts.arm)), ranks)
        fits = {"": goodness_of_fit_of_cells(source, counted, ranks=ranks)} if check else {}
        for method in methods:
            spec = ESTIMATORS[method]
            if spec.resampled:
                found[method] = spec.estimate(counts, replicates=replicates, seed=seed)
            else:
                found[method] = spec.estimate(counts, errors=errors)
            found[method] = fits[""].widened(found[method]) if fits else found[method]
    result: dict[str, Any] = {
        "log": str(log),
        "split": split,
        "propensities": [curve.to_json() for curve in found.values()],
    }
    checked = {name: fit.to_json() for name, fit in fits.items()}
    result["goodness_of_fit"] = checked.get("", checked or None)
    if out is not None:
        write_text(out, _csv(found) if out.suffix == ".csv" else json.dumps(result, indent=1) + "\n")
    if figure is not None:
        plots.save_figure(plots.propensities(found), figure)
    output(result, _report(found, fits), as_json)


def _check_options(
    methods: Sequence[str],
    estimators: Mapping[str, EstimatorSpec],
    context: Sequence[str],
    out: Path | None,
    figure: Path | None,
) -> None:
    """Checks, before any work, that names are known, options go together and files can be written."""
    for method in methods:
        if method not in estimators:
            hint = did_you_mean(method, estimators)
            raise ConfigError(f"unknown method '{method}'{hint}; known: {', '.join(estimators)}")
    likelihoods = [name for name, spec in estimators.items() if not spec.resampled]
    for method in methods:
        if context and method not in likelihoods:
            raise ConfigError(f"--context goes with --method {' or '.join(likelihoods)}, not with {method}")
    with_method = f"with --method {', '.join(methods)}"
    resampled = ", ".join(name for name in estimators if name not in likelihoods)
    only = f"{with_method}, only with those that resample queries: {resampled}"
    refuse_in_vain(
        [
            InVain("errors", not set(methods) & set(likelihoods), f"{with_method}: leave it out"),
            InVain("replicates", set(methods) <= set(likelihoods), f"{with_method}: leave it out"),
            InVain("seed", set(methods) <= set(likelihoods), only),
            InVain("bins", not context, "without --context: leave it out"),
        ]
    )
    check_file("--out", out, TABLES)
    plots.check_figure(figure)


def _check_ranks(shown: int, ranks: int | None) -> None:
    """Checks that there are ranks to compare, since propensities are relative."""
    if shown == 1:
        mend = "Look at more ranks" if ranks == 1 else "Give a log whose lists show more ranks"
        raise DataError("one rank only: there is nothing to compare", fix=mend)


def _csv(found: Mapping[str, Propensities]) -> str:
    """Writes one row per curve and rank; values that are not known stay empty."""
    contexts = list(dict.fromkeys(name for curve in found.values() for name in curve.context))
    head = [
        "method",
        *contexts,
        "rank",
        "propensity",
        "standard_error",
        "low",
        "high",
        "impressions",
        "compared",
        "unsupported",
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for curve in found.values():
        for row in curve.to_json()["ranks"]:
            numbers = [row["propensity"], row["standard_error"], *row["interval"], row["impressions"], row["compared"]]
            where = [curve.context.get(name, "") for name in contexts]
            writer.writerow([curve.method, *where, row["rank"], *numbers, row["unsupported"] or ""])
    return text.getvalue()


def _report(found: Mapping[str, Propensities], fits: Mapping[str, GoodnessOfFit]) -> str:
    """Formats the curves, side by side where there are several, then reasons and warnings, then whether they fit."""
    first, *others = found.values()
    if not others:
        rows = [row[:-1] for row in first.table_rows()]
        lines = [
            table(rows),
            "propensity: how much a rank is examined, relative to rank 1; compared: impressions of the documents that "
            "compare ranks",
        ]
    else:
        rows = [["rank", *found]]
        rows += [[str(rank), *(_cell(curve, i) for curve in found.values())] for i, rank in enumerate(first.rank)]
        lines = [table(rows), "how much a rank is examined, relative to rank 1, ± its standard error"]
    for name, curve in found.items():
        lead = f"{name}: " if others else ""
        lines += [f"{lead}{line}" for line in curve.unsupported_lines()]
        said = {line for fit in fits.values() for line in fit.text().splitlines()}
        lines += [f"{lead}warning: {warning}" for warning in curve.warnings if warning not in said]
    for name, fit in fits.items():
        lines += [f"{name}: {line}" if name else line for line in fit.text().splitlines()]
    return "\n".join(lines)


def _cell(curve: Propensities, i: int) -> str:
    value, error, high = curve.value[i], curve.standard_error[i], curve.interval[i, 1]
    if value == 0 and math.isfinite(high):
        return f"< {high:.4f}"
    if not math.isfinite(value) or curve.rank[i] == 1:
        return "-" if not math.isfinite(value) else f"{value:.4f}"
    return f"{value:.4f} ± {error:.4f}" if math.isfinite(error) else f"{value:.4f} ± -"
