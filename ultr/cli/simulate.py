"""`ultr simulate`: graded lists to a click log with known truth."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from ultr.cli import json_option, output, overwrite_option, seed_option
from ultr.errors import ConfigError


@click.command()
@click.argument("collection", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the new log.")
@click.option(
    "--model",
    default="pbm",
    show_default=True,
    help="The user: pbm, trust, additive, ubm, cascade, dcm, sdbn, dbn, ccm.",
)
@click.option("--policy", default="linear", show_default=True, help="The logger: random, oracle, noisy, linear.")
@click.option(
    "--temperature", default=0.0, show_default=True, help="Plackett-Luce randomness of the rankings; 0: none."
)
@click.option("--noise", default=1.0, show_default=True, help="noisy: standard deviation of the error, in grades.")
@click.option("--share", default=0.01, show_default=True, help="linear: share of the queries it is trained on.")
@click.option("--sessions", default=100_000, show_default=True)
@click.option("--ranks", default=10, show_default=True, help="Documents shown per session, at most.")
@click.option("--eta", default=1.0, show_default=True, help="How fast examination falls: 1 / rank^eta.")
@click.option("--zipf", default=0.0, show_default=True, help="Exponent of the query frequencies; 0: uniform.")
@click.option("--split", help="Only this split of the collection.")
@seed_option
@overwrite_option
@json_option
def command(
    collection: Path,
    out: Path,
    model: str,
    policy: str,
    temperature: float,
    noise: float,
    share: float,
    sessions: int,
    ranks: int,
    eta: float,
    zipf: float,
    split: str | None,
    seed: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Simulate a click log from graded lists.

    \b
    Example:
      ultr simulate collection --out log --model pbm --policy linear --temperature .5 --sessions 200000
    """
    from tqdm import tqdm

    from ultr import simulate
    from ultr.logs import Collection

    lists = Collection.open(collection, split=split)
    grades = float(np.nanmax(lists.labels))
    if grades < 1:
        raise ConfigError(f"{collection}: expected grades of at least 1 for some documents, found at most {grades}")
    user = simulate.user(model, grades=int(np.ceil(grades)), ranks=ranks, eta=eta)
    logger = simulate.Policy(policy, temperature=temperature, noise=noise, share=share)
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
            overwrite=overwrite,
            progress=bar.update,
        )
    names = ("sessions", "queries", "documents", "ranks", "impressions", "clicks")
    facts = {"out": str(out)} | {name: log.metadata[name] for name in names} | {"truth": log.metadata["truth"]}
    lines = [f"{name}: {facts[name]:,}" for name in names]
    lines += [f"log-likelihood of the truth, per session: {facts['truth']['log_likelihood']:.4f}"]
    output(facts, "\n".join([f"wrote {out}", *lines]), as_json)
