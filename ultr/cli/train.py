"""`ultr train`: a log to a trained model."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import click

from ultr.cli import MethodsCommand, hold, json_option, output, seed_option
from ultr.cli.folds import in_vain_with_folds, output_by_folds, train_by_folds
from ultr.cli.inputs import match_notes
from ultr.cli.keeping import says_what_is_kept
from ultr.cli.method_options import METHOD_OPTIONS, given_options, method_options
from ultr.cli.options import FiniteRange, InVain, Name, check_tables, is_given, refuse_in_vain
from ultr.cli.training_data import (
    check_clicks,
    check_out,
    has_network,
    hidden_widths,
    judging_folds,
    kept_choice,
    split_sessions,
    tower_choice,
    unseen_splits,
)
from ultr.cli.training_method import TRAINED, check_propensity, check_solver, nuisance_estimates, trained_method
from ultr.cli.training_report import training_report
from ultr.errors import ConfigError
from ultr.files import json_values, write_json
from ultr.study.effects import without_document_tower, without_effect
from ultr.study.registry import AUTO, AUTO_MODELS
from ultr.study.specs import NETWORKS, OPTIMIZERS, RELEVANCE_TOWERS, TABLES, MethodSpec
from ultr.text import counted

if TYPE_CHECKING:
    from ultr.data import ClickLog

Solver = Literal["em", "lbfgs", "counting"]

GRADIENT_OPTIONS = (
    "patience",
    "batch_size",
    "optimizer",
    "learning_rate",
    "l2",
    "l2_unit",
    "collapse",
    "resume",
    "folds",
)
ALL_CLICKED = "every impression was clicked, so that nothing tells examination from relevance"
# Solver -> options that have no effect with it.
WITHOUT_EFFECT = {
    "gradient": ("prior",),
    "em": GRADIENT_OPTIONS,
    "lbfgs": GRADIENT_OPTIONS,
    "counting": (*GRADIENT_OPTIONS, "epochs"),
}


@click.command(cls=MethodsCommand, methods=TRAINED.values(), method_options=METHOD_OPTIONS)
@click.argument("log", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the run.")
@click.option(
    "--model",
    default="pbm",
    help="A method, listed below; click models joined by + are a mixture, such as pbm+dbn; auto: one of "
    f"{', '.join(AUTO_MODELS)} with tower and prior, chosen by unbiased ranking gains on held-out queries.",
)
@click.option(
    "--safe",
    is_flag=True,
    help="Return a correction of the logged order, only as strong as held-out clicks vouch for.",
)
@click.option("--logger-score", help="With --safe: the feature that holds the logger's score [estimated].")
@click.option(
    "--propensity",
    help="Weighted methods: where examination comes from, an estimator of `ultr propensity`, a .json file that it "
    "wrote, or true (of a simulated log) [conditional-likelihood of the training sessions]. affine-ips and "
    "intervention-aware: a file or true [a trust model fitted to the training sessions].",
)
@method_options
@click.option(
    "--relevance",
    default="auto",
    help=f"The relevance tower: {', '.join(RELEVANCE_TOWERS[1:])}; auto: where there are features the better of linear "
    "and mlp on held-out queries, else table.",
)
@click.option(
    "--rows", type=click.IntRange(min=1), help="Shared rows of a compressed table [a tenth of the documents]."
)
@click.option("--hidden", default="64,64", help="Widths of the hidden layers.")
@click.option("--transform", default="standardise", help="Scaling: standardise or log1p.")
@click.option("--split", default="train", help="The split to train on, where the log has splits.")
@click.option("--valid", type=click.Path(path_type=Path), help="A log whose sessions judge the epochs.")
@click.option(
    "--valid-split",
    default="valid",
    help="Without --valid: the split whose sessions judge the epochs.",
)
@click.option(
    "--valid-fraction",
    default=0.1,
    type=FiniteRange(0, 1, max_open=True),
    help="Without --valid and --valid-split: the share that is held out (of the sessions for tables, of "
    "the queries for networks); 0: none.",
)
@click.option(
    "--folds",
    type=click.IntRange(min=0),
    help="Judge the steps by cross-validation over so many folds of the queries, and learn from all sessions [5 for "
    "networks, where no sessions are held out by one of the options above]; 0: no folds.",
)
@click.option(
    "--solver",
    default="gradient",
    type=Name(list(WITHOUT_EFFECT)),
    help="gradient: minibatches, for every model. For click models on tables, without learning rate and batches: em, "
    "lbfgs, counting (one pass).",
)
@click.option(
    "--prior",
    type=FiniteRange(min=0, min_open=True),
    help="em, lbfgs, counting: outcomes assumed per probability before any is seen [fitted to each table].",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    help="Passes over the log, at most; over its counts, as many times more as make a hundred steps [20; em, lbfgs: "
    "100].",
)
@click.option(
    "--patience",
    default=3,
    type=click.IntRange(min=1),
    help="Judgements without improvement before training stops: epochs, and parts of long ones.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Sessions or counted cells per step [64 to 2048, so that an epoch has a hundred steps or more].",
)
@click.option(
    "--collapse",
    default="auto",
    type=Name(("auto", "never")),
    help="auto: train on the log's counts or distinct lists where the model allows it and there is less to read: the "
    "same loss; never: on its sessions.",
)
@click.option(
    "--optimizer",
    default="auto",
    type=Name(("auto", *OPTIMIZERS)),
    help="adam; lazy-adam, lazy-adagrad: only the rows of document tables that a batch reads; auto: lazy-adam where a "
    "table is large.",
)
@click.option(
    "--learning-rate",
    default=0.003,
    help="Learning rate of networks; of tables ten times that, of document tables under lazy-adagrad a hundred times.",
)
@click.option(
    "--l2",
    type=FiniteRange(min=0),
    help="Strength of a Gaussian prior on the parameters [of networks chosen by folds of the queries, with the tower; "
    "of tables 0].",
)
@click.option(
    "--l2-unit",
    default="query",
    type=Name(("query", "session")),
    help="query: the prior on networks weighs as much beside the average query's sessions, however many there are; "
    "session: that on all parameters beside all sessions, so that it fades.",
)
@click.option("--resume", is_flag=True, help="Continue the interrupted run in --out.")
@seed_option
@json_option
def command(
    log: Path,
    out: Path,
    model: str,
    safe: bool,
    logger_score: str | None,
    propensity: str | None,
    clip: float | None,
    satisfaction: str | None,
    frailty: bool,
    delta: float | None,
    samples: int | None,
    metric: str | None,
    relevance: str,
    rows: int | None,
    hidden: str,
    transform: str,
    split: str,
    valid: Path | None,
    valid_split: str,
    valid_fraction: float,
    folds: int | None,
    solver: str,
    prior: float | None,
    epochs: int | None,
    patience: int,
    batch_size: int | None,
    collapse: str,
    optimizer: str,
    learning_rate: float,
    l2: float | None,
    l2_unit: str,
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
    from ultr.data import QueryLists
    from ultr.data.remembered import counts_of
    from ultr.evaluation import check_satisfaction
    from ultr.models import PBM, Frailty
    from ultr.propensity import conditional_likelihood
    from ultr.study.assumptions import check_assumptions, fit_of
    from ultr.study.building import build_model, build_optimizer, resolve_optimizer
    from ultr.study.curves import learnt_curve
    from ultr.study.settings import StudyMethod
    from ultr.study.steps import learnt_from, steps_for
    from ultr.study.support import check_support
    from ultr.study.tower_choice import tower_settings
    from ultr.study.tower_factory import ModelConfig, check_rows, resolve_relevance
    from ultr.towers import row_tables, withheld_ranks
    from ultr.training import fit, save, solve
    from ultr.training.checkpoint import facts_of

    widths = hidden_widths(hidden)
    by_folds = safe or model == AUTO.name
    refuse_in_vain([*in_vain_with_folds(by_folds), InVain("logger_score", not safe, "without --safe")])
    spec = trained_method(model)
    if not spec.by_gradient:
        solver = solver if is_given("solver") else spec.solvers[0]
    _check_options(solver)
    drawn = valid is None and valid_fraction > 0
    refuse_in_vain(_in_vain_without_log(spec, solver, valid, drawn))
    check_solver(spec, solver)
    if propensity is not None:
        check_propensity(spec, propensity)
    own = {"clip": clip, "delta": delta, "samples": samples, "metric": metric, "satisfaction": satisfaction}
    chosen = given_options(spec, own | {"frailty": frailty or None})
    check_tables(chosen, solver)
    hold(out, inside=True)
    check_out(out, resume)
    click.get_current_context().with_resource(says_what_is_kept(out))
    if by_folds:
        whole = split_sessions(log, split, None, split, 0.0, seed, relevance)[0]
        check_clicks(whole)
        output_by_folds(train_by_folds(whole, out), as_json)
        return
    relevance = relevance if spec.by_gradient else "table"
    parts = (log, split, valid, valid_split)
    train, held_out = split_sessions(*parts, 0.0, seed, relevance)
    found = resolve_relevance(relevance, train)
    if solver == "gradient":
        folds = judging_folds(spec, chosen, train, found, folds, judged=held_out is not None)
    if folds is None:
        train, held_out = split_sessions(*parts, valid_fraction, seed, relevance)
    is_judged = held_out is not None or folds is not None
    vary = check_clicks(train)
    if not vary:
        click.echo(f"note: {ALL_CLICKED}", err=True)
    if train.ranks == 1:
        click.echo(
            "note: one rank only: there is no position to correct for, and a method that compares the documents of a "
            "list learns nothing. Give a log whose lists show more ranks",
            err=True,
        )
    refuse_in_vain([*_in_vain(spec, train, found, judged=is_judged), InVain("l2_unit", l2 is None, "without --l2")])
    if found in TABLES and spec.reads_documents and (apart := unseen_splits(log, train, split)) is not None:
        click.echo(f"note: {apart}", err=True)
    check_rows(rows, found)
    choice = None
    if has_network(spec, found) and solver == "gradient":
        method = StudyMethod(
            name=model,
            model=model,
            relevance=found,
            hidden=widths,
            transform=transform,
            epochs=epochs or 20,
            patience=patience,
            learning_rate=learning_rate,
            options=chosen,
        )
        choice = kept_choice(out) if resume else None
        if choice is None:
            choice = tower_choice(method, tower_settings(relevance, found, l2), train, seed=seed)
        found = choice.setting.relevance
        if l2 is None:
            l2, l2_unit = choice.setting.l2, "query"
        for note in choice.notes:
            click.echo(f"note: {note}", err=True)
    config = ModelConfig(
        model=model,
        relevance=found,
        rows=rows,
        hidden=widths,
        transform=transform,
        seed=seed,
        options=chosen,
    )
    if solver != "gradient" and config.relevance != "table" and spec.reads_documents:
        raise ConfigError(
            f"--relevance {config.relevance} is not a plain table, which --solver {solver} needs. Choose --relevance "
            "table, or --solver gradient"
        )
    if held_out is not None and config.relevance in TABLES:
        known = train.input_schema.only({"document"})
        match = known.match(held_out.input_schema, required=None, name="validation data", file=held_out.path)
        for note in match_notes(match):
            click.echo(f"note: validation data: {note}", err=True)
    nuisance = nuisance_estimates(log, train, spec, propensity, seed)
    counts = functools.partial(counts_of, train, "last-click")
    countable = not train.metadata["impression_features"]  # which counts do not hold
    warning = None
    if spec.examination in ("learnt", "modelled"):
        by_features = config.relevance not in TABLES
        warning = check_support(
            spec, conditional_likelihood(counts() if countable else train), train, by_features=by_features
        )
    if warning is not None:
        click.echo(f"note: {warning}", err=True)
    untrained = build_model(config, train, nuisance)
    options: dict[str, Any] = {"solver": solver, "valid_fraction": valid_fraction}
    if solver == "gradient":
        kind = resolve_optimizer(optimizer, untrained)
        by_rows = kind.startswith("lazy") and not row_tables(untrained)
        refuse_in_vain([InVain("optimizer", by_rows, f"as {kind}: this model has no document table. Choose adam")])
        settings = options | {"optimizer": kind, "learning_rate": learning_rate}
        settings |= {"tower": choice.facts} if choice is not None and choice.facts else {}
        loop: dict[str, Any] = {"epochs": epochs or 20, "batch_size": batch_size, "patience": patience}
        loop |= {
            "l2": l2 or 0.0,
            "l2_unit": l2_unit,
            "folds": folds,
            "collapse": "auto" if collapse == "auto" else False,
        }
        data, judged = learnt_from(untrained, train), None if held_out is None else learnt_from(untrained, held_out)
        if isinstance(data, QueryLists):
            steps = steps_for(
                len(data), epochs=20, patience=patience, batch_size=batch_size if is_given("batch_size") else None
            )
            loop |= {name: value for name, value in steps._asdict().items() if not is_given(name)}
            click.echo(f"note: {data.never_shown_text()}", err=True)
        options = options | {"optimizer": kind, "learning_rate": learning_rate} | loop | {"collapse": collapse}
        fitted = fit(
            untrained,
            data,
            judged,
            optimizer=build_optimizer(kind, learning_rate),
            seed=seed,
            directory=out,
            resume=resume,
            settings=settings,
            **loop,
        )
        if resume and fitted.resumed == len(fitted.history) > 0:
            trained = int(fitted.history[-1]["epoch"])
            done = f"after {counted(trained, 'epoch')}"
            longer = "give more --epochs" + (" or --patience" if trained < loop["epochs"] else "")
            click.echo(
                f"note: nothing was trained: the run in {out} had ended {done}, and the result is printed again. To "
                f"train on, {longer}",
                err=True,
            )
    else:
        epochs = epochs or (1 if solver == "counting" else 100)
        strength: float | Literal["fitted"] = prior or "fitted"
        options |= {"prior": strength, "epochs": epochs}
        fitted = solve(
            untrained, train, held_out, method=cast(Solver, solver), prior=strength, iterations=epochs
        )  # fmt: skip
    if "propensity" in spec.needs:
        options["propensity"] = {"source": nuisance.source, "by_rank": nuisance.propensity.tolist()}
    result = {
        "out": str(out),
        "config": dataclasses.asdict(config) | options,
        "log": str(log),
        "sessions": len(train),
        "validation_sessions": len(held_out) if held_out is not None else 0,
        "tower": None if choice is None else choice.facts,
        "best_judgement": fitted.best,
        "best_epoch": fitted.history[fitted.best - 1]["epoch"] if fitted.best else 0,
        "history": fitted.history,
    }
    if (about := fitted.trained_on) is not None:
        result["trained_on"] = dataclasses.asdict(about) | {"text": about.text}
    if fitted.trained_on is not None and (turning := fitted.turning) is not None:
        result["turning"] = dataclasses.asdict(turning) | {"text": turning.text}
    learnt = fitted.model.model if isinstance(fitted.model, Frailty) else fitted.model
    if isinstance(fitted.model, Frailty):
        result["frailty"] = fitted.model.standard_deviation
    if isinstance(learnt, PBM):
        result["propensity"] = [float(x) if vary else None for x in learnt.propensity(train.ranks)]
        result["unsupported"] = withheld_ranks(fitted.model, train.ranks)
        if not vary:
            result["unsupported"] = dict.fromkeys(range(1, train.ranks + 1), ALL_CLICKED)
    if (satisfied := check_satisfaction(fitted.model, train, held_out, seed=seed)) is not None:
        result["satisfaction"] = satisfied.to_json()
        result["warnings"] = list(satisfied.warnings)
    if warning is not None:
        result["support"] = warning
    if spec.assumes and (checked := check_assumptions(spec, counts() if countable else train)) is not None:
        result["goodness_of_fit"] = checked
    curve = (
        None
        if not countable
        else learnt_curve(fitted.model, counts, lists=lambda: train, fit=lambda: fit_of(counts()), seed=seed)
    )
    if vary and curve is not None:
        result["examination"] = curve
    if solver != "gradient":  # `fit` keeps its model itself, so that a run that is interrupted hereafter can be resumed
        save(fitted.model, out / "model", extra=facts_of(train))
    write_json(out / "run.json", result)
    output(json_values(result), training_report(result), as_json)


def _check_options(solver: str) -> None:
    """Refuses options that were given and have no effect with the solver."""
    for name in WITHOUT_EFFECT[solver]:
        others = ", ".join(other for other, names in WITHOUT_EFFECT.items() if name not in names)
        refuse_in_vain([InVain(name, True, f"with --solver {solver}, only with {others}")])


def _in_vain_without_log(spec: MethodSpec, solver: str, valid: Path | None, drawn: bool) -> list[InVain]:
    """Lists the situations in which options have no effect, as far as they can be told before the log is opened."""
    with_model = f"with --model {spec.name}, which has no tower over documents"
    solved = solver != "gradient" and not spec.takes_propensities
    judged = "with --valid, whose sessions judge the epochs. Give one of the two"
    return [
        *(InVain(name, valid is not None, judged) for name in ("valid_split", "valid_fraction")),
        *(InVain(name, True, with_model) for name in without_document_tower(spec)),
        InVain("seed", solved and not drawn, f"with --solver {solver} where no share of the log is held out"),
    ]


def _in_vain(spec: MethodSpec, train: ClickLog, relevance: str, *, judged: bool) -> list[InVain]:
    """Lists the situations in which options have no effect on a log."""
    features = train.metadata["features"] or train.metadata["impression_features"]
    in_vain = without_effect(spec, [relevance])
    if not features:
        in_vain.setdefault("transform", f"only with networks over features ({', '.join(NETWORKS)})")
    unjudged = "without sessions that judge the epochs: leave it out, or hold some out with --valid-fraction or --valid"
    return [
        *(
            InVain(name, True, f"with --relevance {relevance}, {in_vain[name]}")
            for name in ("hidden", "transform")
            if name in in_vain
        ),
        InVain("patience", not judged, unjudged),
    ]
