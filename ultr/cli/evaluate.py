"""`ultr evaluate`: a trained model and data to numbers with uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ultr import plots
from ultr.cli import json_option, output, seed_option
from ultr.cli.inputs import load_model, match_notes, open_known
from ultr.cli.options import FiniteRange, InVain, Name, refuse_in_vain
from ultr.errors import ConfigError, DataError
from ultr.text import table

if TYPE_CHECKING:
    from ultr.data import ClickLog, Collection
    from ultr.evaluation import Calibration, Estimate, FrequencyBucket
    from ultr.evaluation.metrics import Metric

CONDITIONAL = "conditional_perplexity"
_HEAD = ["value", "standard error", "95 % interval", "count", "excluded"]


class _WithMetrics(click.Command):
    """A command whose help lists the metrics of the registry below the options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from ultr.evaluation.metrics import METRICS

        super().format_options(ctx, formatter)
        needs = dict.fromkeys(metric.needs for metric in METRICS.values())
        for need in needs:
            with formatter.section(f"Metrics of {need}"):
                rows = [(", ".join(m.forms), m.description) for m in METRICS.values() if m.needs == need]
                formatter.write_dl(rows)


@click.command(cls=_WithMetrics)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--split", help="Only this split of the data.")
@click.option(
    "--metrics", help="Names from the list below joined by commas, such as ndcg@10,perplexity [all that data allows]."
)
@click.option(
    "--empty-queries",
    default="skip",
    type=Name(["skip", "zero", "one"]),
    help="The value of a query without a relevant document; skip leaves it out.",
)
@click.option(
    "--cluster",
    default="session",
    type=Name(["session", "query", "list"]),
    help="The independent units of the standard errors of click metrics: all lists of a session, all of a query, or "
    "each list.",
)
@click.option(
    "--max-grade",
    type=FiniteRange(min=0, min_open=True),
    help="The highest grade of the scale, for err [that of the data].",
)
@click.option("--calibration", is_flag=True, help="Also compare predicted with observed clicks by rank.")
@click.option("--figure", type=click.Path(path_type=Path), help="Also draw the --calibration: .png, .svg or .pdf.")
@click.option(
    "--by-frequency",
    metavar="LOG",
    type=click.Path(path_type=Path),
    help="Also average the metrics by how many sessions LOG, such as the training log, has of a query "
    "[ndcg@10 or perplexity].",
)
@click.option(
    "--candidates",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Judged documents to rank in place of those of DATA: a table with the columns query, document, the features "
    "of the model and label [the grades of DATA], or a prepared collection.",
)
@click.option(
    "--vocabulary",
    metavar="LOG",
    type=click.Path(path_type=Path),
    help="The log that the model was trained on, whose names tell which documents of other data it knows [where it was "
    "then].",
)
@seed_option
@json_option
def command(
    run: Path,
    data: Path,
    split: str | None,
    metrics: str | None,
    empty_queries: str,
    cluster: str,
    max_grade: float | None,
    calibration: bool,
    figure: Path | None,
    by_frequency: Path | None,
    candidates: Path | None,
    vocabulary: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Evaluate a trained model on a click log or a collection of graded lists.

    \b
    Example:
      ultr evaluate run collection --metrics ndcg@10,mrr@10
    Example: of a log whose features are per impression, with the features of the judged documents
      ultr evaluate run log --candidates candidates.csv
    Example: of documents with a predicted chance of 10 %, are 10 % clicked?
      ultr evaluate run log --calibration --figure calibration.png
    """
    if figure is not None and not calibration:
        raise ConfigError("--figure draws the calibration: add --calibration, or leave --figure out")
    plots.check_figure(figure)
    import jax

    from ultr import evaluation
    from ultr.evaluation.metrics import parse_metric
    from ultr.towers import indexed_fields, input_match

    asked = None if metrics is None else [m.strip() for m in metrics.split(",")]
    if asked is not None:
        _refuse_in_vain([parse_metric(name).metric for name in asked], calibration)
    _check_order(run, data)
    model, trained_on = load_model(run, vocabulary=vocabulary)
    known = trained_on.get("vocabulary") if "document" in indexed_fields(model) else None
    opened = open_known(data, known, split=split)
    match = input_match(model, opened, name="evaluation data")
    judged = None if candidates is None else _read_candidates(candidates, model, opened, max_grade)
    if calibration:
        _check_calibration(model, opened)
    key = jax.random.key(seed)
    ranking: dict[str, Any] = {"empty_queries": empty_queries, "candidates": judged, "max_grade": max_grade}
    found = evaluation.evaluate(model, opened, metrics=asked, key=key, cluster=cluster, **ranking)
    _refuse_in_vain([parse_metric(name).metric for name in found], calibration, chosen=asked is not None)
    notes = match_notes(match)
    notes += [f"no {kind} metrics: {why}" for kind, why in found.not_computed.items()]
    notes += found.notes
    if _saw_sessions(trained_on.get("train"), opened.identity):
        notes.append("the model was trained on sessions of this log; hold some out with `prepare --split`")
    for note in notes:
        click.echo(f"note: {note}", err=True)
    result: dict[str, Any] = {name: estimate.to_json() for name, estimate in found.items()}
    if found.documents is not None:
        result["documents"] = dict(zip(("found_by_name", "unknown"), found.documents, strict=True))
    if found.judged is not None:
        result["judged"] = {"documents": found.judged.documents, "never_shown": found.judged.never_shown}
    if found.candidates:
        result["candidates"] = dict(found.candidates)
    result["notes"] = notes
    if found.not_computed:
        result["not_computed"] = dict(found.not_computed)
    repeated = _repeated(found)
    text = table(
        [["metric", *_HEAD], *([name, *_estimate_row(e)] for name, e in found.items() if name not in repeated)]
    )
    if repeated:
        text += (
            f"\n{repeated[0]} is perplexity, at every rank: the model predicts the same whatever was clicked above "
            "(--json has the rows)"
        )
    if scaled := [name for name in found if parse_metric(name).metric.needs_max_grade]:
        scale, whence = _grade_scale(opened, judged, max_grade)
        result["max_grade"] = scale
        text += f"\n{', '.join(scaled)}: on a scale of grades from 0 to {scale:g}, {whence}"
    if calibration:
        calibrated = evaluation.calibration(model, opened, cluster=cluster)
        result["calibration"] = calibrated.to_json()
        text += f"\n\n{_calibration_text(calibrated)}"
        if figure is not None:
            plots.save_figure(plots.calibration(calibrated), figure)
    if by_frequency is not None:
        from ultr.data import ClickLog

        log = ClickLog.open(by_frequency)
        evaluation.check_shared_vocabulary(log, opened)
        chosen = asked or [next(name for name in ("ndcg@10", "perplexity") if name in found)]
        each = evaluation.per_query(model, opened, metrics=chosen, key=key, **ranking)
        result["by_frequency"] = {}
        for name in [name for name in each if name != "query"]:
            buckets = evaluation.by_frequency(each["query"], each[name], log, bounds=parse_metric(name).metric.bounds)
            result["by_frequency"][name] = [bucket.to_json() for bucket in buckets]
            rows = [[b.name, _span(b), f"{b.sessions:,}", *_estimate_row(b.value)] for b in buckets]
            text += f"\n\n{name} by frequency of the query\n"
            text += table([["queries", "sessions each", "sessions", *_HEAD], *rows])
    output(result, text, as_json)


def _repeated(found: Mapping[str, Estimate]) -> list[str]:
    """Names the conditional perplexities where each is the perplexity without the condition, to 1 in 100,000."""
    names = [name for name in found if name.startswith(CONDITIONAL)]
    pairs = [(found[name], found.get(name.removeprefix("conditional_"))) for name in names]
    same = (
        plain is not None
        and (own.count, own.excluded) == (plain.count, plain.excluded)
        and math.isclose(own.value, plain.value, rel_tol=1e-5)
        for own, plain in pairs
    )
    return names if len(names) > 1 and all(same) else []


def _check_order(run: Path, data: Path) -> None:
    """Refuses data in place of the run, before anything is opened."""
    from ultr.data.storage import prepared_format

    if prepared_format(run) is None:
        return
    if (data / "model").is_dir() or (data / "meta.json").is_file():
        raise ConfigError(f"expected RUN and then DATA, found them swapped: give `ultr evaluate {data} {run}`")
    raise ConfigError(
        f"{run}: expected the folder of a run or a saved model first, found prepared data. Train one with `ultr train "
        f"{run} --out run`"
    )


def _read_candidates(path: Path, model: object, opened: ClickLog | Collection, max_grade: float | None) -> Collection:
    """Opens a prepared collection, or reads a table of the features that the model knows by name."""
    from ultr.data import Collection
    from ultr.ingest.candidates import read_candidates
    from ultr.towers import schema_of

    if path.is_dir():
        return Collection.open(path)
    schema = schema_of(model)
    return read_candidates(path, schema.features if schema else (), graded_by=opened.vocabulary, max_grade=max_grade)


def _refuse_in_vain(metrics: list[Metric], calibration: bool, *, chosen: bool = True) -> None:
    """Refuses options that were given and have no effect on any of the metrics that are computed.

    A seed may always be given where the data decides on the metrics.
    """
    from ultr.evaluation.metrics import METRICS

    ranking, clicks = ([m for m in metrics if m.kind == kind] for kind in ("ranking", "clicks"))
    known = ", ".join(name for name, metric in METRICS.items() if metric.kind == "ranking")
    scaled = ", ".join(name for name, metric in METRICS.items() if metric.needs_max_grade)
    refuse_in_vain(
        [
            InVain("empty_queries", not ranking, f"without a ranking metric ({known}) of graded lists"),
            InVain(
                "seed",
                chosen and not ranking,
                f"without a ranking metric ({known}): it orders documents of equal scores",
            ),
            InVain("max_grade", not any(m.needs_max_grade for m in metrics), f"without the metric {scaled}"),
            InVain("cluster", not (clicks or calibration), "without click metrics or --calibration"),
        ]
    )


def _grade_scale(opened: ClickLog | Collection, judged: Collection | None, stated: float | None) -> tuple[float, str]:
    """Returns the highest grade of the scale that metrics refer to, and says where it comes from."""
    from ultr.data import Collection

    if stated is not None:
        return stated, "as --max-grade says"
    data = opened.vocabulary.max_grade
    if judged is None and data is not None:
        return data, "that of the data"
    lists = judged or (opened if isinstance(opened, Collection) else opened.collection())
    if lists is None:
        raise DataError("expected graded lists, found none", file=opened.vocabulary.path)
    if judged is not None and (judged.metadata or judged.max_grade == data):  # prepared, or graded on that scale
        return judged.max_grade, "that of the data" if judged.max_grade == data else "that of the candidates"
    why = "the candidates tell no scale" if judged else "this folder was prepared before the scale of grades was kept"
    again = "" if judged else ", or prepare the data again"
    click.echo(
        f"note: {why}: the highest grade found counts as the highest there is. Give it with --max-grade{again}",
        err=True,
    )
    return lists.max_grade, "the highest found"


def _check_calibration(model: object, opened: ClickLog | Collection) -> None:
    """Checks, before any work, that there are clicks and that the model predicts them."""
    from ultr.data import ClickLog
    from ultr.evaluation.compiled import CompiledModel

    need = "--calibration compares predicted with observed clicks: it needs a click log and a click model"
    if not isinstance(opened, ClickLog):
        raise ConfigError(f"{need}, found a graded collection. Give a click log, or leave --calibration out")
    if not CompiledModel(model).predicts_clicks(next(iter(opened.batches(1)))):
        raise ConfigError(
            f"{need}, found {type(model).__name__}, which predicts no clicks. Give a run of a click model, or leave "
            "--calibration out"
        )


def _calibration_text(found: Calibration) -> str:
    errors = [
        f"error {bins.error} by {what}; {bins.floor:.4f} is expected by chance"
        for what, bins in (("rank", found.by_rank), ("rank and prediction", found.by_prediction))
    ]
    return "\n".join(["calibration by rank", table(found.by_rank.rows()), *errors])


def _estimate_row(estimate: Estimate) -> list[str]:
    low, high = estimate.interval
    return [
        f"{estimate.value:.4f}",
        f"{estimate.standard_error:.4f}" if estimate.standard_error == estimate.standard_error else "-",
        f"{low:.4f} to {high:.4f}" if low == low else "-",
        f"{estimate.count:,.0f}",
        f"{estimate.excluded:,.0f}",
    ]


def _span(bucket: FrequencyBucket) -> str:
    return f"{bucket.least:,}" if bucket.least == bucket.most else f"{bucket.least:,} to {bucket.most:,}"


def _saw_sessions(train: dict[str, Any] | None, data: dict[str, Any] | None) -> bool:
    """Tells whether the data holds sessions of the training split: the same log, as a whole or in the same split."""
    if not train or not data or train.get("fingerprint") != data.get("fingerprint"):
        return False
    return not data.get("split") or data.get("split") == train.get("split")
