"""`ultr demo`: the whole way from a click log to a debiased ranker, without data."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from ultr.cli import json_option, output, seed_option
from ultr.files import new_folder, write_json
from ultr.text import table

FORMAT = "ultr-demo"


@click.command()
@click.option("--out", default="demo", type=click.Path(path_type=Path), help="Folder of the results.")
@click.option("--sessions", default=100_000, type=click.IntRange(min=1000))
@click.option(
    "--queries",
    default=900,
    type=click.IntRange(min=9),
    help="Queries to learn from; a ninth as many choose the epochs, five ninths as many judge the rankers.",
)
@seed_option
@json_option
def command(out: Path, sessions: int, queries: int, seed: int, as_json: bool) -> None:
    """Make a log, train a naive ranker and a two-tower on it, and compare them.

    Documents with 16 features and grades from 0 to 4 are ranked by a weak linear logger with little randomness;
    simulated users examine rank k with probability 1/k and click. From these clicks alone a naive ranker and a PBM
    two-tower are trained; a ranker trained on the grades shows what could be reached.

    \b
    Example:
      ultr demo --out demo --seed 1
    """
    result = run_demo(out, sessions=sessions, queries=queries, seed=seed)
    rows = [["ranker", "trained on", "nDCG@10 on unseen queries"]]
    for name, source in (("naive", "clicks"), ("two-tower (PBM)", "clicks"), ("full information", "grades")):
        found = result["ndcg@10"][name]
        rows.append([name, source, f"{found['value']:.4f} ± {1.96 * found['standard_error']:.4f}"])
    curve = [["rank", "true examination", "learned", "click rate"]]
    for k, values in enumerate(
        zip(
            result["examination"]["true"],
            result["examination"]["learned"],
            result["examination"]["click_rate"],
            strict=True,
        )
    ):
        curve.append([str(k + 1), *(f"{v:.3f}" for v in values)])
    text = [
        f"{sessions:,} sessions of 10 documents, {result['clicks']:,} clicks, seed {seed}",
        "",
        table(rows),
        "There is no gap between naive and full information."
        if result["gap_closed"] is None
        else f"The two-tower closes {result['gap_closed']:.0%} of the gap between naive and full information.",
        "",
        "Examination and click rate relative to rank 1:",
        table(curve),
        "",
        f"Results: {out / 'results.json'}; the log: {out / 'log'}; the two-tower: {out / 'two-tower'}. "
        f"{result['seconds']:.0f} s.",
    ]
    output(result, "\n".join(text), as_json)


def run_demo(out: Path, *, sessions: int, queries: int, seed: int) -> dict[str, Any]:
    """Makes the log, trains the rankers, writes log, model and results.json to `out` and returns the results."""
    began = time.perf_counter()
    with new_folder(out, check=_refuse) as aside:
        result = _train_and_judge(aside, sessions=sessions, queries=queries, seed=seed)
        result["seconds"] = round(time.perf_counter() - began, 1)
        write_json(aside / "results.json", result)
    return result


def _refuse(out: Path) -> None:
    if out.exists() and not _is_demo(out):
        raise click.UsageError(f"{out} exists and is not the folder of a demo: choose another --out")


def _is_demo(folder: Path) -> bool:
    """Tells whether a folder is empty or holds nothing but the results of an earlier demo."""
    if not folder.is_dir() or not {p.name for p in folder.iterdir()} <= {"results.json", "log", "two-tower"}:
        return False
    try:
        return not any(folder.iterdir()) or json.loads((folder / "results.json").read_text())["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _train_and_judge(folder: Path, *, sessions: int, queries: int, seed: int) -> dict[str, Any]:
    import jax
    import numpy as np
    from flax import nnx
    from tqdm import tqdm

    from ultr import simulate
    from ultr.baselines import FullInformation, NaivePointwise
    from ultr.evaluation import evaluate
    from ultr.models import PBM
    from ultr.towers import MLP, RankTable, Scaler
    from ultr.training import fit, save

    sizes = {"train": queries, "valid": queries // 9, "test": queries * 5 // 9}
    lists = simulate.collection(queries=sum(sizes.values()), seed=seed)
    edges = np.cumsum([0, *sizes.values()])
    part = {name: lists.select(slice(edges[i], edges[i + 1])) for i, name in enumerate(sizes)}
    policy = simulate.Policy("linear", temperature=0.2, share=0.001)
    truth = simulate.user("pbm", grades=4, ranks=10)
    with tqdm(total=sessions, desc="simulate", unit=" sessions", unit_scale=True, leave=False, disable=None) as bar:
        log = simulate.clicks(
            part["train"], policy, truth, sessions=sessions, seed=seed, out=folder / "log", progress=bar.update
        )
    clicks = log.split({"train": 0.9, "valid": 0.1}, by="query", seed=seed)
    size = lists.features.shape[1] if lists.features is not None else 0
    key = jax.random.key(seed)

    def network(source: Any, number: int) -> MLP:
        scaler = Scaler(size).fit(source)
        return MLP(size, hidden=(32, 32), scaler=scaler, rngs=nnx.Rngs(seed * 3 + number))

    def train(model: Any, source: Any, valid: Any, batch_size: int, epochs: int, l2: float = 0.0) -> Any:
        fitted = fit(model, source, valid, batch_size=batch_size, epochs=epochs, patience=3, seed=seed, l2=l2)
        return fitted.model

    learn = (clicks["train"], clicks["valid"], 1024, 12, 30.0)
    naive = train(NaivePointwise(relevance=network(clicks["train"], 0)), *learn)
    two_tower = train(PBM(relevance=network(clicks["train"], 1), examination=RankTable(10)), *learn)
    full = train(FullInformation(relevance=network(part["train"], 2)), part["train"], part["valid"], 64, 40)
    rankers = {"naive": naive, "two-tower (PBM)": two_tower, "full information": full}
    ndcg = {
        name: evaluate(model, part["test"], metrics=["ndcg@10"], key=key)["ndcg@10"] for name, model in rankers.items()
    }
    save(two_tower, folder / "two-tower")
    by_rank = np.zeros(log.ranks)
    for batch in log.batches(8192):
        by_rank += np.asarray(batch.clicks).sum(0)
    low, mid, high = (ndcg[name].value for name in rankers)
    return {
        "format": FORMAT,
        "sessions": sessions,
        "seed": seed,
        "clicks": log.metadata["clicks"],
        "ndcg@10": {name: estimate.to_json() for name, estimate in ndcg.items()},
        "gap_closed": (mid - low) / (high - low) if high > low else None,
        "examination": {
            "true": [round(1 / k, 4) for k in range(1, log.ranks + 1)],
            "learned": [float(x) for x in two_tower.propensity(log.ranks)],
            "click_rate": [float(x) for x in by_rank / by_rank[0]],
        },
    }
