"""`ultr train`: a log to a trained model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import click

from ultr.cli import json_option, output, seed_option, table
from ultr.errors import ConfigError, DataError
from ultr.files import write_text

OPTIMIZERS = ("auto", "adam", "lazy-adam", "lazy-adagrad")
STEPS = ("patience", "batch_size", "optimizer", "learning_rate", "l2", "resume")
UNHEEDED = {"gradient": ("prior",), "em": STEPS, "lbfgs": STEPS, "counting": (*STEPS, "epochs")}  # by each solver

DOCUMENTLESS = ("gctr", "rctr", "rdctr")  # whatever --relevance says, they have tables of their own


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
    help="Click models: gctr, rctr, dctr, rdctr, pbm, trust, additive, ubm, cascade, dcm, sdbn, dbn, ccm; a mixture: "
    "pbm+dbn. Naive: naive, naive-listwise, naive-lambdarank. Weighted: ips-pointwise, ips-listwise, ips-pairwise, "
    "affine-ips, policy-aware, intervention-aware, direct-method, doubly-robust, prs. Joint: dla, regression-em, "
    "pairdebias, upe, additive-listwise, additive-dropout, additive-reversal, additive-weighted, additive-frozen, "
    "pbm-frozen.",
)
@click.option(
    "--propensity",
    help="Weighted methods: where examination comes from, an estimator of `ultr propensity`, a .json file that it "
    "wrote, or true (of a simulated log) [conditional-likelihood of the training sessions]. affine-ips and "
    "intervention-aware: a file or true [a trust model fitted to the training sessions].",
)
@click.option("--clip", type=click.FloatRange(min=0, min_open=True), help="Weighted methods: the largest weight.")
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
@click.option(
    "--solver",
    default="gradient",
    show_default=True,
    type=click.Choice(list(UNHEEDED)),
    help="gradient: minibatches, for every model. For click models on tables, without learning rate and batches: em, "
    "lbfgs, counting (one pass).",
)
@click.option(
    "--prior",
    type=click.FloatRange(min=0, min_open=True),
    help="em, lbfgs, counting: outcomes assumed per probability [fitted to each table].",
)
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the log, at most [20; em, lbfgs: 100].")
@click.option(
    "--patience", default=3, show_default=True, type=click.IntRange(min=1), help="Epochs without improvement."
)
@click.option("--batch-size", default=512, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--optimizer",
    default="auto",
    show_default=True,
    type=click.Choice(OPTIMIZERS),
    help="adam; lazy-adam, lazy-adagrad: only the rows of document tables that a batch reads; auto: lazy-adam where a "
    "table is large.",
)
@click.option(
    "--learning-rate",
    default=0.003,
    show_default=True,
    help="For networks; ten times that for tables, a hundred times for those of lazy-adagrad.",
)
@click.option("--l2", default=0.0, show_default=True, help="Strength of a Gaussian prior on the parameters.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run in --out.")
@seed_option
@json_option
def command(
    log: Path,
    out: Path,
    model: str,
    propensity: str | None,
    clip: float | None,
    relevance: str,
    rows: int | None,
    hidden: str,
    transform: str,
    split: str,
    valid: Path | None,
    valid_split: str,
    valid_fraction: float,
    solver: str,
    prior: float | None,
    epochs: int | None,
    patience: int,
    batch_size: int,
    optimizer: str,
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
    Example: tables, to the maximum of the likelihood
      ultr train log --out run --model ubm --relevance table --solver em
    """
    from ultr.models import PBM
    from ultr.study.registry import MODELS, ModelConfig, build_model, build_optimizer, optimizer_kind, relevance_kind
    from ultr.training import fit, save, solve

    _check_heeded(solver)
    _check_solver(model, solver)
    _check_weights(model, propensity, clip)
    _check_out(out, resume)
    train, held_out = _splits(log, split, valid, valid_split, valid_fraction, seed, relevance)
    _check_clicks(train)
    if train.ranks == 1:
        click.echo(
            "note: one rank only: there is no position to correct for, and a method that compares the documents of a "
            "list learns nothing. Give a log whose lists show more ranks",
            err=True,
        )
    config = ModelConfig(
        model=model,
        relevance=relevance_kind(relevance, train),
        rows=rows,
        hidden=_widths(hidden),
        transform=transform,
        seed=seed,
        options={} if clip is None else {"clip": clip},
    )
    if solver != "gradient" and config.relevance != "table" and model not in DOCUMENTLESS:
        raise ConfigError(
            f"--relevance {config.relevance} is not a plain table, which --solver {solver} needs. Choose --relevance "
            "table, or --solver gradient"
        )
    harvest = _harvest(log, train, model, propensity, seed)
    untrained = build_model(config, train, harvest)
    options: dict[str, Any] = {"solver": solver, "valid_fraction": valid_fraction}
    if solver == "gradient":
        kind = optimizer_kind(optimizer, untrained)
        settings = options | {"optimizer": kind, "learning_rate": learning_rate}
        loop: dict[str, Any] = {"epochs": epochs or 20, "batch_size": batch_size, "l2": l2, "patience": patience}
        options = settings | loop
        fitted = fit(
            untrained,
            train,
            held_out,
            optimizer=build_optimizer(kind, learning_rate),
            seed=seed,
            directory=out,
            resume=resume,
            settings=settings,
            **loop,
        )
    else:
        epochs = epochs or (1 if solver == "counting" else 100)
        strength: Any = prior or "fitted"
        options |= {"prior": strength, "epochs": epochs}
        fitted = solve(untrained, train, held_out, method=solver, prior=strength, iterations=epochs)  # type: ignore[arg-type]
        save(fitted.model, out / "model", extra={"vocabulary": train.vocabulary.identity, "train": train.identity})
    if MODELS.get(model) and "propensity" in MODELS[model].needs:
        options["propensity"] = {"source": harvest.source, "by_rank": harvest.propensity.tolist()}
    result: dict[str, Any] = {
        "out": str(out),
        "config": dataclasses.asdict(config) | options,
        "log": str(log),
        "sessions": len(train),
        "validation_sessions": len(held_out) if held_out is not None else 0,
        "best_epoch": fitted.best,
        "history": fitted.history,
    }
    if isinstance(fitted.model, PBM):
        result["propensity"] = [float(x) for x in fitted.model.propensity(train.ranks)]
    write_text(out / "run.json", json.dumps(result, indent=1) + "\n")
    output(result, _report(result), as_json)


def _report(result: dict[str, Any]) -> str:
    """A result for people to read."""
    epochs = result["history"]
    rows = [["epoch", "loss", "validation loss", "seconds"]]
    for epoch in epochs:
        number = str(epoch["epoch"]) + ("*" if epoch["epoch"] == result["best_epoch"] else "")
        valid = "-" if epoch["valid_loss"] is None else f"{epoch['valid_loss']:.5f}"
        rows.append([number, f"{epoch['loss']:.5f}", valid, f"{epoch['seconds']:.1f}"])
    text = [table(rows), f"* best epoch, kept in {Path(result['out'], 'model')}"]
    impossible = epochs[-1]["impossible"] if epochs else 0
    if impossible:
        text.append(f"{impossible:,.0f} sessions are impossible under this model and were left out of the loss")
    if "propensity" in result:
        text.append("propensity by rank, relative to rank 1: " + " ".join(f"{x:.3f}" for x in result["propensity"]))
    return "\n".join(text)


def _check_heeded(solver: str) -> None:
    """Rejects options that were given and that the solver would not heed."""
    context = click.get_current_context()
    for name in UNHEEDED[solver]:
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            others = ", ".join(other for other, unheeded in UNHEEDED.items() if name not in unheeded)
            raise ConfigError(f"--{name.replace('_', '-')} says nothing to --solver {solver}, only to {others}")


def _check_solver(model: str, solver: str) -> None:
    """Before any work: a solver is given what it can solve."""
    from ultr.study.registry import MODELS

    solved = [name for name, recipe in MODELS.items() if solver in recipe.solvers]
    if solver != "gradient" and all(name in MODELS for name in model.split("+")) and model not in solved:
        *others, last = ["gradient", *(MODELS[model].solvers if model in MODELS else ())]
        raise ConfigError(
            f"--solver {solver} cannot train --model {model}, only {', '.join(solved)}. Choose --solver "
            + (f"{', '.join(others)} or {last}" if others else last)
        )


def _check_clicks(train: Any) -> None:
    """Every model here learns from clicks: without one it would be its starting weights or its prior."""
    import pyarrow.compute as pc

    if not any(pc.any(pc.not_equal(batch["clicks"].flatten(), 0)).as_py() for batch in train.columns(["clicks"])):
        raise DataError(
            f"expected clicks to learn from, found none in the {len(train):,} sessions to train on",
            fix="Check the click column, or train on a log or split with clicks",
            field="clicks",
        )


def _check_weights(model: str, propensity: str | None, clip: float | None) -> None:
    """Before any work: options of weighted methods are given to those only."""
    from ultr.propensity import ESTIMATORS
    from ultr.study.nuisance import TRUE
    from ultr.study.registry import MODELS

    recipe = MODELS.get(model)
    if propensity is not None:
        if recipe is None or not recipe.needs:
            weighing = ", ".join(name for name, other in MODELS.items() if other.needs)
            raise ConfigError(f"--propensity says nothing to --model {model}, only to {weighing}")
        if propensity not in (TRUE, *ESTIMATORS) and not propensity.endswith(".json"):
            known = ", ".join((TRUE, *ESTIMATORS))
            raise ConfigError(f"unknown --propensity '{propensity}'; known: {known}, or a .json file")
        if "propensity" not in recipe.needs and "affine" not in recipe.needs:
            raise ConfigError(
                f"--propensity says nothing to --model {model}, which weighs by how often documents are shown where. "
                "Leave it out"
            )
        if "affine" in recipe.needs and propensity in ESTIMATORS:
            raise ConfigError(
                f"--propensity {propensity} says nothing to --model {model}, which needs trust as well: expected "
                f"{TRUE} or a .json file. Leave it out, and a trust model is fitted to the training sessions"
            )
        if propensity.endswith(".json") and not Path(propensity).is_file():
            raise ConfigError(f"--propensity {propensity}: no such file. Write it with `ultr propensity LOG --json`")
    if clip is not None and (recipe is None or "clip" not in recipe.options):
        clipped = ", ".join(name for name, other in MODELS.items() if "clip" in other.options)
        raise ConfigError(f"--clip says nothing to --model {model}, only to {clipped}")


def _harvest(log: Path, train: Any, model: str, propensity: str | None, seed: int) -> Any:
    """What weighted methods are given beside the training sessions."""
    from ultr.data import ClickLog
    from ultr.study.nuisance import DEFAULT, Harvest
    from ultr.study.registry import MODELS

    needs = MODELS[model].needs if model in MODELS else ()
    if needs and propensity is None and set(needs) != {"displays"}:
        how = "a trust model" if "affine" in needs else "the conditional likelihood"
        click.echo(f"note: without --propensity, examination is estimated on the training sessions by {how}", err=True)
    whole = ClickLog.open(log)  # with the sessions held out, whose queries have displays of their own
    return Harvest(train, source=propensity or DEFAULT, truth=whole.metadata.get("truth"), shown=whole, seed=seed)


def _check_out(out: Path, resume: bool) -> None:
    """Before any work: a run is only resumed, and nothing else is written into."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: give --out a folder")
    if (out / "model").exists() and not resume:
        raise ConfigError(f"{out} holds a run already: choose another --out, or continue it with --resume")
    if resume and (out / "model").exists() and not (out / "state").exists():
        raise ConfigError(f"{out} holds a finished run without a state to resume from: choose another --out")
    if out.is_dir() and any(out.iterdir()) and not ((out / "model").exists() or (out / "state").exists()):
        raise ConfigError(f"{out} holds other files: choose a new or empty folder for --out")


def _splits(
    path: Path, split: str, valid: Path | None, valid_split: str, fraction: float, seed: int, relevance: str
) -> tuple[Any, Any]:
    """The sessions to train on and those to judge the epochs by."""
    from ultr.data import ClickLog
    from ultr.study.registry import TABLES, relevance_kind

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
