"""`ultr evaluate`: a trained model and data to numbers with uncertainty."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ultr.cli import json_option, output, seed_option
from ultr.errors import ConfigError
from ultr.plots import calibration as figure_of_calibration
from ultr.plots import style
from ultr.text import table

if TYPE_CHECKING:
    from ultr.evaluation import Bucket, Estimate


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--split", help="Only this split of the data.")
@click.option("--metrics", help="Names joined by commas, such as ndcg@10,perplexity [all that the data allows].")
@click.option(
    "--empty-queries",
    default="skip",
    show_default=True,
    type=click.Choice(["skip", "zero", "one"]),
    help="What a query without a relevant document counts.",
)
@click.option(
    "--cluster",
    default="session",
    show_default=True,
    type=click.Choice(["session", "query"]),
    help="What the standard errors of click metrics take for independent.",
)
@click.option("--calibration", is_flag=True, help="Predicted against observed clicks by rank too.")
@click.option("--figure", type=click.Path(path_type=Path), help="Also draw the --calibration: .png, .svg or .pdf.")
@click.option(
    "--by-frequency",
    metavar="LOG",
    type=click.Path(path_type=Path),
    help="The metrics by how often LOG, such as that of training, shows a query too [ndcg@10 or perplexity].",
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
    calibration: bool,
    figure: Path | None,
    by_frequency: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Judge a trained model on a log or a collection.

    Graded data gives nDCG, DCG, MRR, MAP and ERR; a click log gives log-likelihood and perplexities.

    \b
    Example:
      ultr evaluate run collection --metrics ndcg@10,mrr@10
    Example: is the model's 10 % chance of a click 10 %?
      ultr evaluate run log --calibration --figure calibration.png
    """
    if figure is not None and not calibration:
        raise ConfigError("--figure draws the calibration: add --calibration, or leave --figure out")
    style.check_figure(figure)
    import jax

    from ultr.data import open_data
    from ultr.evaluation import evaluate
    from ultr.towers import reads
    from ultr.training import load
    from ultr.training.checkpoint import read_meta

    folder = run / "model" if (run / "model").is_dir() else run
    model = load(folder)
    trained_on = read_meta(folder)["extra"]
    by_document = "document" in reads(model)
    opened = open_data(data, split=split, vocabulary=trained_on.get("vocabulary") if by_document else None)
    if calibration:
        _check_calibration(model, opened)
    asked = [m.strip() for m in metrics.split(",")] if metrics else None
    found = evaluate(
        model,
        opened,
        metrics=asked,
        key=jax.random.key(seed),
        empty_queries=empty_queries,
        cluster=cluster,
    )
    if _seen(trained_on.get("train"), getattr(opened, "identity", None)):
        click.echo(
            "note: the model was trained on sessions of this log; hold some out with `prepare --split`", err=True
        )
    result: dict[str, Any] = {name: estimate.to_json() for name, estimate in found.items()}
    head = ["value", "standard error", "95 % interval", "count", "excluded"]
    text = table([["metric", *head], *([name, *_cells(e)] for name, e in found.items())])
    if calibration:
        from ultr.evaluation import calibration as calibrate

        cells = calibrate(model, opened, cluster=cluster)
        result["calibration"] = cells.to_json()
        text += f"\n\ncalibration by rank\n{table(cells.by_rank.rows())}\n"
        text += "".join(
            f"error {c.error} by {what}; {c.floor:.4f} would be luck\n"
            for what, c in (("rank", cells.by_rank), ("rank and prediction", cells.by_prediction))
        ).rstrip()
        if figure is not None:
            figure_of_calibration.draw(cells, figure)
    if by_frequency is not None:
        from ultr.data import ClickLog
        from ultr.evaluation import by_frequency as split_up
        from ultr.evaluation import per_query, shared_vocabulary

        log = ClickLog.open(by_frequency)
        shared_vocabulary(log, opened)
        chosen = asked or [next(name for name in ("ndcg@10", "perplexity") if name in found)]
        each = per_query(model, opened, metrics=chosen, key=jax.random.key(seed), empty_queries=empty_queries)
        result["by_frequency"] = {}
        for name in [name for name in each if name != "query"]:
            buckets = split_up(each["query"], each[name], log)
            result["by_frequency"][name] = [bucket.to_json() for bucket in buckets]
            rows = [[b.name, _span(b), f"{b.sessions:,}", *_cells(b.value)] for b in buckets]
            text += f"\n\n{name} by frequency of the query\n"
            text += table([["queries", "sessions each", "sessions", *head], *rows])
    output(result, text, as_json)


def _check_calibration(model: Any, opened: Any) -> None:
    """Before any work: there are clicks, and the model predicts some."""
    from ultr.data import ClickLog
    from ultr.evaluation.calls import Caller

    need = "--calibration compares predicted with observed clicks: it needs a click log and a click model"
    if not isinstance(opened, ClickLog):
        raise ConfigError(f"{need}, found a graded collection. Give a click log, or leave --calibration out")
    if not callable(model) or not Caller(model).is_click_model(next(iter(opened.batches(1)))):
        raise ConfigError(
            f"{need}, found {type(model).__name__}, which predicts no clicks. Give a run of a click model, or leave "
            "--calibration out"
        )


def _cells(estimate: Estimate) -> list[str]:
    low, high = estimate.interval
    return [
        f"{estimate.value:.4f}",
        f"{estimate.standard_error:.4f}" if estimate.standard_error == estimate.standard_error else "-",
        f"{low:.4f} to {high:.4f}" if low == low else "-",
        f"{estimate.count:,.0f}",
        f"{estimate.excluded:,.0f}",
    ]


def _span(bucket: Bucket) -> str:
    return f"{bucket.least:,}" if bucket.least == bucket.most else f"{bucket.least:,} to {bucket.most:,}"


def _seen(train: dict[str, Any] | None, data: dict[str, Any] | None) -> bool:
    """Whether the data holds sessions of the training split: the same log, and the whole of it or the same split."""
    if not train or not data or train.get("fingerprint") != data.get("fingerprint"):
        return False
    return not data.get("split") or data.get("split") == train.get("split")
