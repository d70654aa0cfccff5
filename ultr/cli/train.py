"""`ultr train`: a log to a trained model."""

from __future__ import annotations

import dataclasses
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
@click.option(
    "--rows", type=click.IntRange(min=1), help="Shared rows of a compressed table [a tenth of the documents]."
)
@click.option("--hidden", default="64,64", show_default=True, help="Widths of the hidden layers.")
@click.option("--transform", default="standardise", show_default=True, help="Scaling: standardise or log1p.")
@click.option("--split", default="train", show_default=True, help="Where the log has splits: the one to train on.")
@click.option("--valid", type=click.Path(path_type=Path), help="Log to judge the epochs by.")
@click.option("--valid-split", default="valid", show_default=True, help="Without --valid: the split to judge by.")
@click.option(
    "--valid-fraction",
    default=0.1,
    type=click.FloatRange(0, 1, max_open=True),
    show_default=True,
    help="Without --valid and --valid-split: share to hold out (of the sessions for tables, of "
    "the queries for networks); 0: none.",
)
@click.option("--epochs", default=20, show_default=True, type=click.IntRange(min=1), help="At most.")
@click.option(
    "--patience", default=3, show_default=True, type=click.IntRange(min=1), help="Epochs without improvement."
)
@click.option("--batch-size", default=512, show_default=True, type=click.IntRange(min=1))
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
    split: str,
    valid: Path | None,
    valid_split: str,
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
    from ultr.config import ModelConfig, build_model, relevance_kind
    from ultr.models import PBM
    from ultr.training import adam, fit

    _check_out(out, resume)
    train, held_out = _splits(log, split, valid, valid_split, valid_fraction, seed, relevance)
    config = ModelConfig(
        model=model,
        relevance=relevance_kind(relevance, train),
        rows=rows,
        hidden=_widths(hidden),
        transform=transform,
        seed=seed,
    )
    options = {"learning_rate": learning_rate, "valid_fraction": valid_fraction}
    untrained = build_model(config, train)
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
        settings=options,
    )
    result: dict[str, Any] = {
        "out": str(out),
        "config": dataclasses.asdict(config)
        | {"epochs": epochs, "batch_size": batch_size, "l2": l2, "patience": patience}
        | options,
        "log": str(log),
        "sessions": len(train),
        "validation_sessions": len(held_out) if held_out is not None else 0,
        "best_epoch": fitted.best,
        "history": fitted.history,
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


def _check_out(out: Path, resume: bool) -> None:
    """Before any work: a run is only resumed, and nothing else is written into."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: give --out a folder")
    if (out / "model").exists() and not resume:
        raise ConfigError(f"{out} holds a run already: choose another --out, or continue it with --resume")
    if out.is_dir() and any(out.iterdir()) and not ((out / "model").exists() or (out / "state").exists()):
        raise ConfigError(f"{out} holds other files: choose a new or empty folder for --out")


def _splits(
    path: Path, split: str, valid: Path | None, valid_split: str, fraction: float, seed: int, relevance: str
) -> tuple[Any, Any]:
    """The sessions to train on and those to judge the epochs by."""
    from ultr.config import TABLES, relevance_kind
    from ultr.logs import ClickLog

    splits = ClickLog.open(path).metadata["splits"]
    if splits and split not in splits:
        raise ConfigError(
            f"{path}: the log was prepared with the splits {', '.join(splits)}; name the one to train on with --split"
        )
    train = ClickLog.open(path, split=split if splits else None)
    if valid is not None:
        return train, ClickLog.open(valid, vocabulary=train)
    if valid_split in splits and valid_split != split:
        return train, ClickLog.open(path, split=valid_split)
    if not fraction:
        return train, None
    # A table knows nothing of queries that it was not trained on; a network is judged on how it carries over.
    by: Literal["session", "query"] = "session" if relevance_kind(relevance, train) in TABLES else "query"
    shares = {"train": 1 - fraction, "valid": fraction}
    parts = train.split(shares, by=by, seed=seed)
    if by == "query" and not all(len(part) for part in parts.values()):
        by = "session"
        parts = train.split(shares, by=by, seed=seed)
        click.echo("note: too few queries to hold some out; sessions are held out instead", err=True)
    for name, part in parts.items():
        if not len(part):
            what = "to train on" if name == "train" else "to judge the epochs by"
            raise ConfigError(
                f"--valid-fraction {fraction:g} of {len(train):,} sessions, split by {by}, leaves none {what}. "
                "Choose another share, 0 for no validation, or give a log with --valid"
            )
    return parts["train"], parts["valid"]


def _write_aside(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(text)
    os.replace(aside, path)
