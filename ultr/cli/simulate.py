"""`ultr simulate`: graded lists to a click log whose ground truth is known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from ultr.cli import hold, json_option, output, overwrite_option, seed_option
from ultr.cli.options import InVain, refuse_in_vain
from ultr.errors import ConfigError

_GROUPS = {
    "The user": ("model", "shares", "eta", "examination", "drift", "context", "flip", "random_clicks"),
    "The logger": ("policy", "temperature", "epsilon", "swaps", "noise", "share", "strength"),
    "The log": ("out", "sessions", "ranks", "zipf", "times", "split", "seed", "overwrite", "as_json"),
}


class _GroupedOptions(click.Command):
    """A command whose help lists the options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = (p for p in self.get_params(ctx) if isinstance(p, click.Option))
        rows = {p.name: p.get_help_record(ctx) for p in options}
        named = {name for names in _GROUPS.values() for name in names}
        groups = _GROUPS | {"Other": tuple(str(name) for name in rows if name not in named)}
        for title, names in groups.items():
            with formatter.section(title):
                formatter.write_dl([row for name in names if (row := rows.get(name)) is not None])


def _numbers(ctx: click.Context, option: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        return tuple(float(x) for x in value.split(","))
    except ValueError:
        raise click.BadParameter(f"expected numbers such as .7,.3, found {value!r}") from None


def _contexts(ctx: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[Any, ...]:
    out = []
    for text in values:
        name, found, rest = text.partition("=")
        parts = [part.split(":") for part in rest.split(",")]
        try:
            if not found or {len(part) for part in parts} not in ({2}, {3}):
                raise ValueError
            numbers = [[float(x) for x in part[1:]] for part in parts]
        except ValueError:
            expected = "NAME=VALUE:FACTOR,... or NAME=VALUE:FACTOR:SHARE,..., such as device=desk:1:.6,phone:2:.4"
            raise click.BadParameter(f"expected {expected}, found {text!r}") from None
        shares = tuple(row[1] for row in numbers) if len(numbers[0]) == 2 else None
        out.append((name, tuple(part[0] for part in parts), tuple(row[0] for row in numbers), shares))
    return tuple(out)


@click.command(cls=_GroupedOptions)
@click.argument("collection", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the new log.")
@click.option(
    "--model",
    default="pbm",
    help="gctr, rctr, dctr, rdctr, pbm, trust, trust-affine, additive, ubm, cascade, dcm, sdbn, dbn, ccm, mixture; "
    "followed by -bottom-up: reading upwards; joined by +: a mixture of users.",
)
@click.option("--shares", callback=_numbers, help="Shares of the users of each kind, for names joined by +.")
@click.option("--eta", default=1.0, help="How fast examination falls: 1 / rank^eta.")
@click.option("--examination", default="inverse", help="inverse (1/rank) or joachims (a table).")
@click.option("--drift", type=float, help="eta at the end of the log, to which it changes linearly.")
@click.option(
    "--context",
    multiple=True,
    callback=_contexts,
    metavar="NAME=VALUE:FACTOR[:SHARE],...",
    help="A property of sessions, drawn at random, whose values multiply eta by a factor each. Repeatable.",
)
@click.option("--flip", default=0.0, help="Probability that the opposite of what the user did is recorded.")
@click.option("--random-clicks", default=0.0, help="Probability of an accidental click on a document.")
@click.option("--policy", default="linear", help="random, oracle, noisy, linear, boosted or strength.")
@click.option("--temperature", default=0.0, help="Plackett-Luce randomness of the rankings; 0: none.")
@click.option("--epsilon", default=0.0, help="Probability of a random document at each rank.")
@click.option("--swaps", default=0.0, help="Probability that two neighbours are exchanged.")
@click.option("--noise", default=1.0, help="noisy: standard deviation of the error, in grades.")
@click.option("--share", default=0.01, help="linear, boosted: share of the queries to train on.")
@click.option("--strength", default=1.0, help="strength: from -1 (the worst ranking) over 0 to 1 (the oracle).")
@click.option("--sessions", default=100_000, help="Number of sessions.")
@click.option("--ranks", default=10, help="The most documents that a session shows.")
@click.option("--zipf", default=0.0, help="Exponent of the query frequencies 1/i^zipf; 0: uniform.")
@click.option("--times", is_flag=True, help="Write a column time, from 0 to 1; always written with --drift.")
@click.option("--split", help="Only this split of the collection.")
@seed_option
@overwrite_option
@json_option
def command(
    collection: Path,
    out: Path,
    model: str,
    shares: tuple[float, ...] | None,
    eta: float,
    examination: str,
    drift: float | None,
    context: tuple[Any, ...],
    flip: float,
    random_clicks: float,
    policy: str,
    temperature: float,
    epsilon: float,
    swaps: float,
    noise: float,
    share: float,
    strength: float,
    sessions: int,
    ranks: int,
    zipf: float,
    times: bool,
    split: str | None,
    seed: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Simulate a click log from graded lists.

    \b
    Examples:
      ultr simulate collection --out log --model pbm --policy linear --temperature .5 --sessions 200000
      ultr simulate collection --out log --model dbn --policy boosted --epsilon .1 --zipf 1
      ultr simulate collection --out log --context device=desk:1:.6,phone:2:.4 --swaps .5
      ultr simulate collection --out log --model pbm+dbn --shares .7,.3 --flip .02 --drift 2
    """
    from tqdm import tqdm

    from ultr import simulate
    from ultr.data import Collection
    from ultr.simulate.policies import OWNERS, RANKERS, no_effect

    unused = [name for name, owners in OWNERS.items() if policy in RANKERS and policy not in owners]
    why = {name: no_effect(name, policy).removeprefix("has no effect ") for name in unused}
    refuse_in_vain([InVain(name, True, why[name]) for name in unused])
    hold(out)
    lists = Collection.open(collection, split=split)
    if not (lists.labels >= 1).any():
        raise ConfigError(f"{collection}: expected grades of at least 1 for some documents, found none")
    user = simulate.user(
        model,
        grades=math.ceil(lists.max_grade),
        ranks=ranks,
        eta=eta,
        examination=examination,
        shares=shares,
        contexts=[simulate.Context(*parts) for parts in context],
        drift=drift,
        flip=flip,
        random_clicks=random_clicks,
    )
    logger = simulate.Policy(
        policy,
        temperature=temperature,
        noise=noise,
        share=share,
        epsilon=epsilon,
        swaps=swaps,
        strength=strength,
    )
    with tqdm(total=sessions, unit=" sessions", unit_scale=True, leave=False, disable=None) as bar:
        log = simulate.clicks(
            lists,
            logger,
            user,
            sessions=sessions,
            seed=seed,
            out=out,
            ranks=ranks,
            zipf=zipf,
            times=times or None,
            overwrite=overwrite,
            progress=bar.update,
        )
    names = ("sessions", "queries", "documents", "ranks", "impressions", "clicks")
    facts = {"out": str(out)} | {name: log.metadata[name] for name in names} | {"truth": log.metadata["truth"]}
    lines = [f"{name}: {facts[name]:,}" for name in names]
    lowest = facts["truth"]["lowest"]
    lines += [
        f"log-likelihood of the true user, per session: {facts['truth']['log_likelihood']:.4f} "
        f"(expected: {-lowest['entropy']:.4f})",
        f"lowest possible perplexity: {lowest['perplexity']:.4f}, conditional: {lowest['conditional_perplexity']:.4f}",
    ]
    output(facts, "\n".join([f"wrote {out}", *lines]), as_json)
