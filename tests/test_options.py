"""Options without effect, values without meaning and misspelt names are errors, in every command, before any work."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from conftest import CommandResult, Ultr, run_command

from ultr import simulate
from ultr.errors import ConfigError, UltrError
from ultr.ingest import prepare
from ultr.study.registry import METHODS

TRAINED = [name for name, spec in METHODS.items() if spec.trained_on_log]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small logs: `plain`, with `features`, with `splits`; graded `lists`; and a `run` of a table on the plain log."""
    folder = tmp_path_factory.mktemp("options")
    rng = np.random.default_rng(0)
    rows = [
        f"{s},q{s % 5},d{d},{rank},{int(rng.random() < 0.5 / rank)},{d}.5"
        for s in range(60)
        for rank, d in enumerate(rng.permutation(3), start=1)
    ]
    raw = folder / "clicks.csv"
    raw.write_text("session,query,document,rank,click,price\n" + "\n".join(rows) + "\n")
    (folder / "graded.txt").write_text("".join(f"{d} qid:{q} 1:{d}.5\n" for q in range(6) for d in range(3)))
    prepare(raw, folder / "plain")
    prepare(raw, folder / "features", features=["price"])
    prepare(raw, folder / "splits", split={"train": 0.6, "valid": 0.2, "test": 0.2}, split_by="session")
    prepare(folder / "graded.txt", folder / "lists", format="letor", vocabulary=folder / "plain")
    (folder / "study.toml").write_text(
        f'[[log]]\nname = "real"\npath = "{folder}/plain"\n[[method]]\nmodel = "dctr"\nrelevance = "table"\n'
    )
    made = run_command("train", folder / "plain", "--out", folder / "run", "--epochs", 1)
    assert made.code == 0, made.err
    names = ("plain", "features", "splits", "lists", "run", "clicks.csv", "graded.txt", "study.toml")
    return {name.partition(".")[0]: folder / name for name in names}


def refused(places: dict[str, Path], tmp: Path, arguments: str) -> CommandResult:
    """Runs a command that must end with one line and code 2 and leave nothing."""
    result = run_command(*(a.format(**places, out=tmp / "out") for a in arguments.split()))
    assert result.code == 2, result.out + result.err
    assert result.out == ""
    lines = [line for line in result.err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1
    assert "error: " in lines[0]
    assert list(tmp.iterdir()) == []
    return result


# Arguments of a command -> what its option has an effect with.
IN_VAIN = {
    # train: the model
    "train {plain} --out {out} --model gctr --relevance table": "--relevance has no effect with --model gctr",
    "train {plain} --out {out} --model rctr --hidden 8": "--hidden has no effect with --model rctr",
    "train {plain} --out {out} --model rdctr --rows 8": "--rows has no effect with --model rdctr",
    "train {plain} --out {out} --hidden 8": "--hidden has no effect with --relevance table, only with mlp, dcn",
    "train {features} --out {out} --relevance linear --hidden 8": "--hidden has no effect with --relevance linear",
    "train {plain} --out {out} --transform log1p": "--transform has no effect with --relevance table",
    "train {features} --out {out} --relevance table --transform log1p": "only with networks over features",
    "train {plain} --out {out} --rows 5": "rows belong to a compressed table",
    "train {plain} --out {out} --model pbm --satisfaction free": "--satisfaction has no effect with --model pbm, only",
    "train {plain} --out {out} --model dla --frailty": "--frailty has no effect with --model dla, only with gctr",
    "train {plain} --out {out} --model pbm+dbn --frailty": "--frailty has no effect with --model pbm+dbn, only with",
    "train {plain} --out {out} --frailty --solver em": "--solver em cannot train a model with --frailty",
    "train {plain} --out {out} --model dbn --satisfaction monotone --solver em": "with --satisfaction monotone. Choose",
    "train {plain} --out {out} --model pbm --clip 5": "--clip has no effect with --model pbm, only with",
    "train {plain} --out {out} --model pbm --delta .5": "--delta has no effect with --model pbm, only with exp",
    "train {plain} --out {out} --model pbm --propensity true": "--propensity has no effect with --model pbm, only with",
    # train: the sessions
    "train {plain} --out {out} --split foo": "--split foo: {plain} was prepared without splits",
    "train {plain} --out {out} --split train": "--split train: {plain} was prepared without splits",
    "train {plain} --out {out} --valid-split foo": "--valid-split foo: {plain} was prepared without splits",
    "train {splits} --out {out} --split trian": "the log has the splits train, valid, test (did you mean 'train'?)",
    "train {splits} --out {out} --valid-split tset": "train, valid, test (did you mean 'test'?)",
    "train {splits} --out {out} --split train --valid-split train": "these are the sessions to train on",
    "train {plain} --out {out} --valid {plain} --valid-split valid": "--valid-split has no effect with --valid",
    "train {plain} --out {out} --valid {plain} --valid-fraction .2": "--valid-fraction has no effect with --valid",
    "train {splits} --out {out} --valid-fraction .2": "the split 'valid' of the log judges the epochs",
    "train {plain} --out {out} --valid-fraction 0 --patience 2": "--patience has no effect without sessions that judge",
    # train: the optimizer
    "train {features} --out {out} --optimizer lazy-adam": "--optimizer has no effect as lazy-adam",
    "train {plain} --out {out} --solver em --learning-rate .1": "--learning-rate has no effect with --solver em",
    "train {plain} --out {out} --prior 2": "--prior has no effect with --solver gradient",
    "train {plain} --out {out} --model dctr --solver counting --epochs 3": "--epochs has no effect with --solver count",
    "train {plain} --out {out} --solver em --seed 3 --valid-fraction 0": "--seed has no effect with --solver em",
    # evaluate
    "evaluate {run} {plain} --metrics perplexity --empty-queries zero": "--empty-queries has no effect without a rank",
    "evaluate {run} {plain} --empty-queries zero": "--empty-queries has no effect without a ranking metric",
    "evaluate {run} {plain} --metrics perplexity --seed 1": "--seed has no effect without a ranking metric",
    "evaluate {run} {plain} --metrics perplexity --max-grade 4": "--max-grade has no effect without the metric err",
    "evaluate {run} {lists} --metrics ndcg@5 --max-grade 4": "--max-grade has no effect without the metric err",
    "evaluate {run} {lists} --metrics ndcg@5 --cluster query": "--cluster has no effect without click metrics",
    "evaluate {run} {plain} --figure {out}.png": "add --calibration, or leave --figure out",
    # prepare
    "prepare {clicks} --out {out} --split-by time": "--split-by has no effect without --split",
    "prepare {clicks} --out {out} --seed 3": "--seed has no effect without --split",
    "prepare {clicks} --out {out} --split a=.5,b=.5 --split-by time --seed 3": "--seed has no effect with --split-by",
    "prepare {clicks} --out {out} --max-grade 4": "max_grade) has no effect: there are no grades",
    "prepare {graded} --format letor --out {out} --feature x": "take no columns, features",
    # simulate
    "simulate {lists} --out {out} --policy oracle --noise 2": "--noise has no effect on the policy 'oracle', only on",
    "simulate {lists} --out {out} --policy noisy --share .5": "--share has no effect on the policy 'noisy'",
    "simulate {lists} --out {out} --policy linear --strength .5": "--strength has no effect on the policy 'linear'",
    "simulate {lists} --out {out} --policy random --temperature 1": "--temperature has no effect on the policy",
    "simulate {lists} --out {out} --policy random --swaps .1": "--swaps has no effect on the policy 'random'",
    "simulate {lists} --out {out} --model sdbn --eta 2": "the user 'sdbn' does not depend on eta",
    "simulate {lists} --out {out} --model dctr --drift 2": "the user 'dctr' does not depend on eta",
    "simulate {lists} --out {out} --model dbn --examination joachims": "the user 'dbn' has no curve over ranks",
    "simulate {lists} --out {out} --model pbm --shares 1": "shares are of users joined by '+'",
    # propensity, diagnose, compare
    "propensity {plain} --seed 3": "--seed has no effect with --method conditional-likelihood, only with those that",
    "propensity {plain} --replicates 50": "--replicates has no effect with --method conditional-likelihood",
    "propensity {plain} --method all-pairs --errors query": "--errors has no effect with --method all-pairs",
    "propensity {plain} --bins 3": "--bins has no effect without --context",
    "diagnose {plain} --seed 3": "--seed has no effect here: nothing is random",
    "compare {study} --out {out} --keep-logs": "--keep-logs has no effect on a study without simulated logs",
}


@pytest.mark.parametrize("arguments", IN_VAIN)
def test_an_option_without_effect_is_an_error_that_says_with_what_it_has_one(arguments, places, tmp_path):
    expected = IN_VAIN[arguments].format(**places) if "{" in IN_VAIN[arguments] else IN_VAIN[arguments]
    assert expected in refused(places, tmp_path, arguments).err


WITHOUT_MEANING = [
    *(f"train {{plain}} --out {{out}} --{name} {value}"
      for name in ("l2", "learning-rate", "valid-fraction", "batch-size", "epochs", "patience", "seed")
      for value in ("nan", "inf", "-1", "x")),
    *(f"train {{plain}} --out {{out}} --{name} 0" for name in ("learning-rate", "batch-size", "epochs", "patience")),
    *(f"train {{plain}} --out {{out}} --solver em --prior {value}" for value in ("nan", "inf", "0", "-1")),
    *(f"train {{plain}} --out {{out}} --model ips-pointwise --clip {value}" for value in ("nan", "inf", "0", "-1")),
    *(f"train {{features}} --out {{out}} --hidden {value}" for value in ("0", "-4", "4,,4", "nan", "4.5")),
    *(f"prepare {{graded}} --format letor --out {{out}} --max-grade {value}" for value in ("nan", "inf", "0", "1")),
    *(f"prepare {{clicks}} --out {{out}} --split a={value},b=.5" for value in ("nan", "inf", "-.5", "0", ".6")),
    *(f"evaluate {{run}} {{lists}} --metrics err --max-grade {value}" for value in ("nan", "inf", "0", "1")),
    *(f"evaluate {{run}} {{lists}} --metrics {value}" for value in (",", "ndcg@0", "ndcg@-1", "ndcg@1.5", "ndcg@x")),
    *(f"diagnose {{plain}} --{name} {value}" for name in ("target", "share") for value in ("nan", "inf", "0", "-1")),
    *(f"simulate {{lists}} --out {{out}} --{name} {value}"
      for name in ("eta", "drift", "flip", "random-clicks", "temperature", "epsilon", "swaps", "zipf")
      for value in ("nan", "inf", "-1")),
    *(f"simulate {{lists}} --out {{out}} --{name} {value}" for name in ("sessions", "ranks") for value in ("0", "x")),
    *(f"simulate {{lists}} --out {{out}} --model pbm+dbn --shares {value}" for value in ("nan,1", "0,1", "-1,2", "1")),
    "propensity {plain} --ranks 0", "compare {study} --out {out} --jobs 0", "compare {study} --out {out} --seed -1",
]  # fmt: skip


@pytest.mark.parametrize("arguments", WITHOUT_MEANING)
def test_a_value_without_meaning_is_an_error(arguments, places, tmp_path):
    error = refused(places, tmp_path, arguments).err
    option, value = [text for text in arguments.split() if not text.startswith("{")][-2:]
    name = option.removeprefix("--")
    ways = (name, name.rstrip("s"), name.replace("-", "_"), name.replace("-", " "), value, "fractions")
    assert any(text in error for text in ways)


MISSPELT = {
    "trian {plain} --out {out}": "'train'",
    "train {plain} --out {out} --model pmb": "'pbm'",
    "train {plain} --out {out} --model pbm+dnb": "'dbn'",
    "train {plain} --out {out} --model ligthgbm": "",  # close to what this command does not train
    "train {plain} --out {out} --relevance tabel": "'table'",
    "train {plain} --out {out} --solver counitng": "'counting'",
    "train {plain} --out {out} --optimizer adm": "'adam'",
    "train {plain} --out {out} --model ips-pointwise --propensity conditional-likelyhood": "'conditional-likelihood'",
    "evaluate {run} {plain} --metrics perplexty": "'perplexity'",
    "evaluate {run} {splits} --split tset": "'test'",
    "evaluate {run} {plain} --cluster querry": "'query'",
    "prepare {clicks} --out {out} --format tabel": "'table'",
    "prepare {clicks} --out {out} --split a=.5,b=.5 --split-by sesion": "'session'",
    "propensity {plain} --method al-pairs": "'all-pairs'",
    "propensity {splits} --split vaild": "'valid'",
    "simulate {lists} --out {out} --policy orcale": "'oracle'",
    "simulate {lists} --out {out} --model pmb": "'pbm'",
    "compare {study} --out {out} --only rael": "'real'",
}


@pytest.mark.parametrize("arguments", MISSPELT)
def test_a_misspelt_name_gets_a_suggestion(arguments, places, tmp_path):
    error = refused(places, tmp_path, arguments).err
    assert ("did you mean" in error) == bool(MISSPELT[arguments])
    assert MISSPELT[arguments] in error


@pytest.mark.parametrize("model", ["nothing", "lightgbm", "logger", "full-information"])
def test_train_names_only_the_methods_that_it_trains(model, places, tmp_path):
    error = refused(places, tmp_path, f"train {{plain}} --out {{out}} --model {model}").err
    known = error.partition("known: ")[2].strip().split(", ")
    assert known == TRAINED


@pytest.mark.parametrize(
    ("ranker", "options"),
    [
        ("oracle", {"noise": 2.0}),
        ("noisy", {"share": 0.5}),
        ("linear", {"strength": 0.5}),
        ("random", {"epsilon": 0.5}),
    ],
)
def test_policies_refuse_what_changes_nothing(ranker, options):
    with pytest.raises(ConfigError, match=f"{next(iter(options))} has no effect on the policy '{ranker}', only on"):
        simulate.Policy(ranker, **options)


@pytest.mark.parametrize("options", [{"grades": 0}, {"grades": 1.5}, {"ranks": 0}, {"eta": math.nan}, {"drift": -1.0}])
def test_users_refuse_what_means_nothing(options):
    with pytest.raises(UltrError):
        simulate.user("pbm", **{"grades": 4} | options)


@pytest.mark.slow
def test_options_with_effect_stay_possible(ultr: Ultr, places, tmp_path):
    for number, arguments in enumerate(
        (
            "train {splits} --split train --valid-split test --epochs 1 --seed 3 --patience 1",
            "train {plain} --solver em --seed 3 --epochs 2",
            "train {features} --model upe --relevance table --transform log1p --epochs 1",
            "prepare {clicks} --split a=.5,b=.5 --split-by query --seed 3",
        )
    ):
        done = ultr(*(a.format(**places) for a in arguments.split()), "--out", tmp_path / str(number))
        assert done.code == 0, done.err
