"""The part of `ultr train` that chooses by folds: `--model auto` and `--safe`."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ultr.cli import output
from ultr.cli.method_options import METHOD_OPTIONS
from ultr.cli.options import InVain, is_given
from ultr.cli.training_data import hidden_widths
from ultr.cli.training_report import candidates_text, percent, propensity_line
from ultr.files import json_values, write_json
from ultr.study.registry import AUTO
from ultr.text import counted, table

if TYPE_CHECKING:
    from ultr.data import ClickLog

IN_VAIN = ("valid", "valid_split", "valid_fraction", "folds", "solver", "prior", "optimizer", "resume")


def in_vain_with_folds(chosen: bool) -> list[InVain]:
    """Lists the options that have no effect where the folds of the log judge what is trained."""
    why = "with --model auto or --safe: folds of the log judge, and the result is trained on all of it. Leave it out"
    return [InVain(name, chosen, why) for name in IN_VAIN]


def _given_settings() -> dict[str, Any]:
    """Collects the settings of a `StudyMethod` that the command was given; those left out have its defaults."""
    given = click.get_current_context().params
    found = {name: given[name] for name in ("model", "relevance", "transform", "safe", "learning_rate")}
    found |= {name: given[name] for name in ("rows", "propensity", "logger_score", "epochs", "l2") if given[name]}
    found |= {name: given[name] for name in ("batch_size", "patience") if is_given(name)}
    found["options"] = {name: given[name] for name in METHOD_OPTIONS if given[name] not in (None, False)}
    return found | {"hidden": hidden_widths(given["hidden"])}


def train_by_folds(log: ClickLog, out: Path) -> dict[str, Any]:
    """Chooses and trains by folds, as the options of the command say, and saves the ranker in `out/model`.

    Args:
      log: all sessions to learn from.

    Returns:
      The result as JSON values.
    """
    from ultr.study.automatic import choose_automatically, choose_by_folds
    from ultr.study.cross_fitting import CrossFitting, Unit
    from ultr.study.learning import curve_of
    from ultr.study.settings import StudyMethod
    from ultr.training import save
    from ultr.training.checkpoint import facts_of

    settings, seed = _given_settings(), click.get_current_context().params["seed"]
    method = StudyMethod(name=settings["model"], **settings)
    known: dict[Unit, CrossFitting] = {}
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=f".{out.name}-folds-") as work:

        def folds(by: Unit) -> CrossFitting:
            if by not in known:
                folder = Path(work) / by
                folder.mkdir(exist_ok=True)
                known[by] = CrossFitting(log, by=by, seed=seed, work=folder, score=method.logger_score or None)
            return known[by]

        if method.model == AUTO.name or method.relevance == "auto":
            chosen = choose_automatically(method, log, folds, seed=seed, safe=method.safe)
        else:
            chosen = choose_by_folds(method.variants(), log, folds, seed=seed, safe=method.safe)
    curve = curve_of(chosen.fitted.model, log.ranks)
    result: dict[str, Any] = {
        "out": str(out),
        "config": dataclasses.asdict(chosen.method) | {"seed": seed},
        "log": str(log.path),
        "sessions": len(log),
        "validation_sessions": 0,
        "best_epoch": chosen.fitted.best,
        "history": chosen.fitted.history,
        "chosen": chosen.facts,
        "seconds": chosen.all_seconds,
        "notes": chosen.notes,
    }
    if curve is not None:
        result["propensity"] = curve.tolist()
    save(chosen.ranker, out / "model", extra=facts_of(log))
    found: dict[str, Any] = json_values(result)
    return found


def output_by_folds(result: Mapping[str, Any], as_json: bool) -> None:
    """Writes the result beside the model and to standard output."""
    write_json(Path(result["out"]) / "run.json", result)
    output(dict(result), folds_report(result), as_json)


def folds_report(result: Mapping[str, Any]) -> str:
    """Writes the result for people: the candidates, why one was chosen, and how far the guard trusts it."""
    chosen = result["chosen"]
    text = candidates_text(chosen, name=result["config"]["model"])
    if guard := chosen.get("guard"):
        lines = [["correction of the logged order", "gain", "standard error", "lower bound"]]
        for value in guard["values"]:
            mark = "*" if value["correction"] == guard["correction"] else ""
            lines.append(
                [f"{value['correction']:g}{mark}"]
                + [percent(value[key]) for key in ("gain", "standard_error", "lower")]
            )
        text += [table(lines), f"* {guard['reason']}"]
        if guard["agreement_with_logged_order"] is not None:
            share = guard["agreement_with_logged_order"]
            text.append(
                f"the estimate of the logged order has {share:.1%} of the pairs of documents as they were shown"
            )
    epochs = counted(result["best_epoch"], "epoch")
    text.append(f"trained on all {result['sessions']:,} sessions for {epochs}; kept in {Path(result['out'], 'model')}")
    if "propensity" in result:
        text.append(propensity_line(result["propensity"]))
    return "\n".join(text + [f"note: {note}" for note in result["notes"]])
