"""The sessions that `ultr train` learns from and judges by, and where it writes, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import numpy as np

from ultr.cli.inputs import open_known
from ultr.cli.options import InVain, is_given, refuse_in_vain
from ultr.errors import ConfigError, DataError
from ultr.files import check_output_folder
from ultr.study.specs import TABLES
from ultr.text import did_you_mean

if TYPE_CHECKING:
    from ultr.data import ClickLog
    from ultr.study.settings import StudyMethod
    from ultr.study.specs import MethodSpec
    from ultr.study.tower_choice import TowerChoice, TowerSetting

MOST_LISTS = 200_000  # of a model that needs lists, which are judged once per fold at every judgement
FOLDS = 5


def hidden_widths(text: str) -> tuple[int, ...]:
    """Reads the widths of hidden layers, such as "64,64"."""
    try:
        widths = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"expected widths such as 64,64; found '{text}'") from error
    if any(w < 1 for w in widths):
        raise click.BadParameter(f"expected widths of at least 1; found '{text}'")
    return widths


def check_clicks(train: ClickLog) -> bool:
    """Refuses sessions without any click: what is learnt from them would be the starting weights or the prior.

    Returns:
      Whether there are impressions without a click too.
    """
    clicked = skipped = False
    for batch in train.columns(["clicks"]):
        clicks = batch["clicks"].flatten().to_numpy()
        clicked, skipped = clicked or bool(clicks.any()), skipped or not clicks.all()
        if clicked and skipped:
            return True
    if not clicked:
        raise DataError(
            f"expected clicks to learn from, found none in the {len(train):,} sessions to train on",
            fix="Check the click column, or train on a log or split with clicks",
            field="clicks",
        )
    return False


def check_out(out: Path, resume: bool) -> None:
    """Refuses, before any work, to write over a finished run or among other files."""
    finished, resumable = (out / "model").exists(), (out / "state").exists()
    if finished and not resume:
        raise ConfigError(f"{out} holds a run already: choose another --out, or continue it with --resume")
    if finished and not resumable:
        raise ConfigError(f"{out} holds a finished run without a state to resume from: choose another --out")
    if not finished and not resumable:
        check_output_folder(out)


def unseen_splits(path: Path, train: ClickLog, split: str) -> str | None:
    """Says which other splits of a log have queries alone that a table is not trained on; None: none.

    Args:
      path: the log.
      train: the sessions to train on.
      split: the split that they are of.
    """
    from ultr.data import ClickLog
    from ultr.evaluation.graded import shown_queries

    trained = shown_queries(train)
    others = [name for name, sessions in train.metadata["splits"].items() if sessions and name != split]
    parts = {name: shown_queries(ClickLog.open(path, split=name)) for name in others}
    apart = [name for name, queries in parts.items() if len(queries) and not np.isin(queries, trained).any()]
    if not apart:
        return None
    several = len(apart) > 1
    return (
        f"the split{'s' if several else ''} {', '.join(apart)} {'have' if several else 'has'} no query that is trained "
        "on. A table knows documents by their ids alone: it has no opinion on those of other queries, and its rankings "
        "there would be chance. Prepare the log with --split-by session or time, or train a network over features "
        "(--relevance mlp)"
    )


def split_sessions(
    path: Path, split: str, valid: Path | None, valid_split: str, fraction: float, seed: int, relevance: str
) -> tuple[ClickLog, ClickLog | None]:
    """Opens the sessions to train on and those that judge the epochs."""
    from ultr.data import ClickLog
    from ultr.study.tower_factory import resolve_relevance

    splits = ClickLog.open(path).metadata["splits"]
    for option, name in (("split", split), ("valid_split", valid_split)):
        given = f"--{option.replace('_', '-')} {name}"
        if is_given(option) and not splits:
            raise ConfigError(
                f"{given}: {path} was prepared without splits, so that there is none of that name. Leave it out to use "
                "all sessions, or prepare the log with --split train=.8,valid=.1,test=.1"
            )
        if is_given(option) and name not in splits:
            known = f"the log has the splits {', '.join(splits)}"
            raise ConfigError(f"{given}: {known}{did_you_mean(name, splits)}")
    if is_given("valid_split") and valid_split == split:
        raise ConfigError(f"--valid-split {split}: these are the sessions to train on. Name another split")
    if splits and split not in splits:
        raise ConfigError(
            f"{path}: the log was prepared with the splits {', '.join(splits)}; name the one to train on with --split"
        )
    judging = valid is None and valid_split in splits and valid_split != split
    why = f"where the split '{valid_split}' of the log judges the epochs: leave it out"
    refuse_in_vain([InVain("valid_fraction", judging, why)])
    train = ClickLog.open(path, split=split if splits else None)
    if valid is not None:
        found = open_known(valid, train)
        if not isinstance(found, ClickLog):
            raise DataError("expected a click log, found a collection", file=valid)
        return train, found
    if judging:
        return train, ClickLog.open(path, split=valid_split)
    if not fraction:
        return train, None
    # A table knows nothing of queries that it was not trained on; a network is judged on how it carries over.
    by: Literal["session", "query"] = "session" if resolve_relevance(relevance, train) in TABLES else "query"
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


def has_network(spec: MethodSpec, relevance: str) -> bool:
    """Tells whether a method trains a network over features that starts at chance, which a prior around 0 suits."""
    return spec.reads_documents and relevance not in TABLES and spec.builder != "policy-gradient"


def judging_folds(
    spec: MethodSpec, options: Mapping[str, Any], train: ClickLog, relevance: str, given: int | None, *, judged: bool
) -> int | None:
    """Decides how many folds of the queries judge the steps; None: sessions that are held out, or none.

    Args:
      options: of the method.
      relevance: the tower, by name.
      given: what was asked for; None leaves it open, 0 asks for none.
      judged: whether the log, or another, has sessions that judge.

    Raises:
      ConfigError: folds where other sessions judge, or that can judge nothing.
    """
    from ultr.rankers import Ranker
    from ultr.study.tower_choice import learns_from_counts

    refuse_in_vain([InVain("folds", judged, "where other sessions judge the steps: leave it out, or --valid")])
    if is_given("folds") and is_given("valid_fraction"):
        raise ConfigError("--folds and --valid-fraction both say what judges the steps: give one of the two")
    if given == 0 or judged or is_given("valid_fraction"):
        return None
    estimated = bool(set(spec.needs) - {"ranks", "propensity", "affine"}) or spec.builder in ("regression", "dropout")
    declared: Any = spec.made_class.has_pure_loss if spec.makes and issubclass(spec.made_class, Ranker) else False
    pure = declared is not False  # a property says it of an object
    possible = pure and has_network(spec, relevance) and not estimated
    if given is not None:
        if not possible:
            raise ConfigError(
                f"--folds cannot judge --model {spec.name} with --relevance {relevance}: it needs a network over "
                "features, and a loss without running statistics, draws and estimates of clicks. Leave it out"
            )
        return given
    lists = train.metadata["impression_features"] or not learns_from_counts(spec, options)
    if not possible or (lists and len(train) > MOST_LISTS) or not _shows_two_queries(train):
        return None
    return FOLDS


def _shows_two_queries(log: ClickLog) -> bool:
    first: int | None = None
    for batch in log.columns(["query"]):
        query = batch["query"].to_numpy()
        if len(query):
            first = int(query[0]) if first is None else first
            if (query != first).any():
                return True
    return False


def kept_choice(out: Path) -> TowerChoice | None:
    """Returns the choice of an interrupted run, which more epochs do not change; None where it made or kept none."""
    from ultr.study.tower_choice import TowerChoice, TowerSetting
    from ultr.training.checkpoint import read_meta

    state = out / "state"
    facts = read_meta(state).get("settings", {}).get("tower") if (state / "meta.json").exists() else None
    return TowerChoice(TowerSetting(**facts["settings"]), facts, []) if facts else None


def tower_choice(method: StudyMethod, settings: Sequence[TowerSetting], train: ClickLog, *, seed: int) -> TowerChoice:
    """Chooses the tower of a method and the strength of its prior, where there is a choice.

    Args:
      settings: to choose from.
      train: all sessions to learn from.
    """
    from ultr.study.tower_choice import TowerChoice, choose_tower_or_usual

    if len(settings) == 1:
        return TowerChoice(settings[0], {}, [])
    return choose_tower_or_usual(method, settings, train, seed=seed)
