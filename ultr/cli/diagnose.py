"""`ultr diagnose`: what a log can tell about examination, before anything is trained on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ultr import stopping
from ultr.cli import json_option, output, ranks_option
from ultr.cli.inputs import load_model, other_inputs
from ultr.cli.options import FiniteRange, InVain, refuse_in_vain
from ultr.errors import UltrError

if TYPE_CHECKING:
    from ultr.data import ClickLog, Collection, Counts


@click.command()
@click.argument("log", type=click.Path(path_type=Path))
@click.option(
    "--target",
    default=0.05,
    type=FiniteRange(0.001, 1, max_open=True),
    help="Relative standard error of the propensities that is wanted.",
)
@click.option("--split", help="Diagnose this split of the log only.")
@ranks_option
@click.option(
    "--share",
    default=0.5,
    type=FiniteRange(0, 1, min_open=True),
    help="Share of the log's sessions of a query that the swap plan may randomise.",
)
@click.option("--pairs", type=click.IntRange(min=1), help="Pairs of ranks that the plan may exchange per session [50].")
@click.option(
    "--candidates",
    type=click.Path(path_type=Path),
    help="The lists that rankings are made of, to say what of them the log never shows: a prepared collection, or a "
    "table with the columns query, document and the features of the log [the documents that the log knows of its "
    "queries].",
)
@click.option("--run", type=click.Path(path_type=Path), help="Run of `ultr train` whose bias curve to compare.")
@click.option(
    "--seed",
    default=0,
    show_default=False,
    type=click.IntRange(0, 2**31 - 1),
    help="Refused, since nothing here is random.",
)
@json_option
def command(
    log: Path,
    target: float,
    split: str | None,
    ranks: int | None,
    share: float,
    pairs: int | None,
    candidates: Path | None,
    run: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Diagnose what a click log can tell about examination, before training.

    LOG is a click log, or counts of one. Says which ranks it compares, how precisely each propensity can be known at
    best, what limits that, how many more sessions reach the target, and in which few sessions to exchange which ranks
    so that they do; what share of the candidates was ever shown, what the others cost, and which of
    them to show. With --run it also says whether the bias curve of a trained model agrees with the conditional
    likelihood of this log.

    \b
    Example:
      ultr diagnose log --target 0.05
    """
    from ultr.data import open_counted
    from ultr.identifiability import agreement, diagnose_candidates, report
    from ultr.propensity import conditional_likelihood

    refuse_in_vain([InVain("seed", True, "here: nothing is random")])
    model = load_model(run)[0] if run else None
    source = open_counted(log, split=split)
    found = report(source, target=target, ranks=ranks, share=share, pairs=pairs)
    stopping.check()
    result, text = found.to_json(), found.text()
    lists = None if candidates is None else _read_candidates(candidates, source)
    unseen = diagnose_candidates(source, lists, share=share)
    stopping.check()
    result["candidates"] = unseen.to_json()
    text = f"{text}\n\n{unseen.text()}"
    if model is not None:
        try:
            compared = agreement(model, conditional_likelihood(found.counts))
            result["agreement"] = compared.to_json() | {"run": str(run)}
            sentence = compared.text()
            if (note := other_inputs(model, source)) is not None:
                result["agreement"]["note"] = note
                sentence += f" {note}"
        except UltrError as e:
            result["agreement"] = {"run": str(run), "reason": str(e)}
            sentence = f"The learned curve cannot be compared: {str(e).rstrip('.')}."
        text = f"{sentence}\n\n{text}"
    output(result, text, as_json)


def _read_candidates(path: Path, source: ClickLog | Counts) -> Collection:
    """Opens a prepared collection, or reads a table with the features that the log has."""
    from ultr.data import Collection
    from ultr.ingest.candidates import read_candidates
    from ultr.ingest.sources import table_columns

    if not path.is_file():
        return Collection.open(path)
    features = source.vocabulary.feature_names
    if not features:  # those of impressions are in a log what a table of candidates has
        features = tuple(sorted(set(source.input_schema.features) & set(table_columns(path))))
    return read_candidates(path, features, graded=False)
