"""`ultr evaluate`: a trained model and data to numbers with uncertainty."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ultr.cli import json_option, output, seed_option, table


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
@seed_option
@json_option
def command(
    run: Path,
    data: Path,
    split: str | None,
    metrics: str | None,
    empty_queries: str,
    cluster: str,
    seed: int,
    as_json: bool,
) -> None:
    """Judge a trained model on a log or a collection.

    Graded data gives nDCG, DCG, MRR, MAP and ERR; a click log gives log-likelihood and perplexities.

    \b
    Example:
      ultr evaluate run collection --metrics ndcg@10,mrr@10
    """
    import jax

    from ultr.evaluation import evaluate
    from ultr.logs import open_data
    from ultr.towers import reads
    from ultr.training import load
    from ultr.training.checkpoint import read_meta

    folder = run / "model" if (run / "model").is_dir() else run
    model = load(folder)
    trained_on = read_meta(folder)["extra"]
    by_document = "document" in reads(model)
    opened = open_data(data, split=split, vocabulary=trained_on.get("vocabulary") if by_document else None)
    found = evaluate(
        model,
        opened,
        metrics=[m.strip() for m in metrics.split(",")] if metrics else None,
        key=jax.random.key(seed),
        empty_queries=empty_queries,
        cluster=cluster,
    )
    if _seen(trained_on.get("train"), getattr(opened, "identity", None)):
        click.echo(
            "note: the model was trained on sessions of this log; hold some out with `prepare --split`", err=True
        )
    result: dict[str, Any] = {name: estimate.to_json() for name, estimate in found.items()}
    rows = [["metric", "value", "standard error", "95 % interval", "count", "excluded"]]
    for name, e in found.items():
        low, high = e.interval
        rows.append(
            [
                name,
                f"{e.value:.4f}",
                f"{e.standard_error:.4f}" if e.standard_error == e.standard_error else "-",
                f"{low:.4f} to {high:.4f}" if low == low else "-",
                f"{e.count:,.0f}",
                f"{e.excluded:,.0f}",
            ]
        )
    output(result, table(rows), as_json)


def _seen(train: dict[str, Any] | None, data: dict[str, Any] | None) -> bool:
    """Whether the data holds sessions of the training split: the same log, and the whole of it or the same split."""
    if not train or not data or train.get("fingerprint") != data.get("fingerprint"):
        return False
    return not data.get("split") or data.get("split") == train.get("split")
