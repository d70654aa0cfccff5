"""`ultr train`: a log to a trained model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import click

from ultr.cli import json_option, output, seed_option, table
from ultr.errors import ConfigError


def _widths(text: str) -> tuple[int, ...]:
    try:
        widths = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"expected widths such as 64,64; found '{text}'") from error
    if any(w < 1 for w in widths):
        raise click.BadParameter(f"expected widths of at least 1; found '{text}'")
    return widths


@click.command()
@click.argument("log", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the run.")
@click.option(
    "--model",
    default="pbm",
    show_default=True,
    help="gctr, rctr, dctr, rdctr, pbm, trust, additive, ubm, cascade, dcm, sdbn, dbn, ccm, naive, "
    "naive-listwise; a mixture: pbm+dbn.",
)
@click.option(
    "--relevance",
    default="auto",
    show_default=True,
    help="table, hashed, quotient-remainder, robe, linear, mlp, dcn; auto: mlp where there are features.",
)
@click.option("--rows", type=int, help="Shared rows of a compressed table [a tenth of the documents].")
@click.option("--hidden", default="64,64", show_default=True, help="Widths of the hidden layers.")
@click.option("--transform", default="standardise", show_default=True, help="Scaling: standardise or log1p.")
@click.option("--valid", type=click.Path(path_type=Path), help="Log to judge the epochs by.")
@click.option(
    "--valid-fraction",
    default=0.1,
    show_default=True,
    help="Without --valid and without a split 'valid': share to hold out (of the sessions for tables, of "
    "the queries for networks); 0: none.",
)
@click.option("--epochs", default=20, show_default=True, help="At most.")
@click.option("--patience", default=3, show_default=True, help="Epochs without improvement before it stops.")
@click.option("--batch-size", default=512, show_default=True)
@click.option(
    "--learning-rate", default=0.003, show_default=True, help="Adam's for networks; ten times that for tables."
)
@click.option("--l2", default=0.0, show_default=True, help="Strength of a Gaussian prior on the parameters.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run in --out.")
@seed_option
@json_option
def command(
    log: Path,
    out: Path,
    model: str,
    relevance: str,
    rows: int | None,
    hidden: str,
    transform: str,
    valid: Path | None,
    valid_fraction: float,
    epochs: int,
    patience: int,
    batch_size: int,
    learning_rate: float,
    l2: float,
    resume: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Train a click model or a two-tower ranker on a log.

    \b
    Example:
      ultr train log --out run --model pbm --relevance mlp --epochs 10 --seed 1
    """
    config: dict[str, Any] = {
        "model": model,
        "relevance": relevance,
        "rows": rows,
        "hidden": _widths(hidden),
        "transform": transform,
        "seed": seed,
    }
    from ultr.config import ModelConfig, build_model
    from ultr.models import PBM
    from ultr.training import adam, fit

    if (out / "model").exists() and not resume:
        raise ConfigError(f"{out} holds a run already: choose another --out, or continue it with --resume")
    train, held_out = _splits(log, valid, valid_fraction, seed, relevance)
    untrained = build_model(ModelConfig(**config), train)
    fitted = fit(
        untrained,
        train,
        held_out,
        optimizer=adam(learning_rate),
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        patience=patience,
        l2=l2,
        directory=out,
        resume=resume,
    )
    result: dict[str, Any] = {
        "out": str(out),
        "config": config
        | {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "l2": l2, "patience": patience},
        "log": str(log),
        "sessions": len(train),
        "validation_sessions": len(held_out) if held_out is not None else 0,
        "best_epoch": fitted.best,
        "history": fitted.history,
        "vocabulary": train.vocabulary.identity,
    }
    if isinstance(fitted.model, PBM):
        result["propensity"] = [float(x) for x in fitted.model.propensity(train.ranks)]
    _write_aside(out / "run.json", json.dumps(result, indent=1) + "\n")
    head = [["epoch", "loss", "validation loss", "seconds"]]
    rows_ = [
        [
            str(h["epoch"]) + ("*" if h["epoch"] == fitted.best else ""),
            f"{h['loss']:.5f}",
            "-" if h["valid_loss"] is None else f"{h['valid_loss']:.5f}",
            f"{h['seconds']:.1f}",
        ]
        for h in fitted.history
    ]
    text = [table(head + rows_), f"* best epoch, kept in {out / 'model'}"]
    impossible = fitted.history[-1]["impossible"] if fitted.history else 0
    if impossible:
        text.append(f"{impossible:,.0f} sessions are impossible under this model and were left out of the loss")
    if "propensity" in result:
        text.append("propensity by rank, relative to rank 1: " + " ".join(f"{x:.3f}" for x in result["propensity"]))
    output(result, "\n".join(text), as_json)


def _splits(path: Path, valid: Path | None, fraction: float, seed: int, relevance: str) -> tuple[Any, Any]:
    from ultr.config import TABLES, relevance_kind
    from ultr.logs import ClickLog

    whole = ClickLog.open(path)
    splits = whole.metadata["splits"]
    train = ClickLog.open(path, split="train") if "train" in splits else whole
    if valid is not None:
        return train, ClickLog.open(valid, vocabulary=train)
    if "valid" in splits:
        return train, ClickLog.open(path, split="valid")
    if not 0 <= fraction < 1:
        raise click.BadParameter(f"expected --valid-fraction from 0 to below 1, found {fraction}")
    if not fraction:
        return train, None
    # A table knows nothing of queries that it was not trained on; a network is judged on how it carries over.
    by: Literal["session", "query"] = "session" if relevance_kind(relevance, train) in TABLES else "query"
    parts = train.split({"train": 1 - fraction, "valid": fraction}, by=by, seed=seed)
    return parts["train"], (parts["valid"] if len(parts["valid"]) else None)


def _write_aside(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(text)
    os.replace(aside, path)
