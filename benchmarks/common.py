"""What the benchmark scripts share: where the data is, the machine and versions, and the output."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ultr.study import ModelConfig, build_model
from ultr.training import Fitted, adam, fit

PACKAGES = ("jax", "flax", "optax", "rax", "numpy", "pyarrow", "duckdb")


def parser(description: str) -> argparse.ArgumentParser:
    """Options of every script."""
    options = argparse.ArgumentParser(description=description)
    default = os.environ.get("ULTR_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
    options.add_argument("--data", type=Path, default=Path(default), help="folder of the real data [$ULTR_DATA]")
    options.add_argument("--json", type=Path, help="also write the result to this file")
    return options


def folder(options: argparse.Namespace, name: str) -> Path:
    """The folder of one collection; ends the script with a message where it is absent."""
    path: Path = options.data / name
    if not path.is_dir():
        sys.exit(f"skipped: {name} is absent; set ULTR_DATA or --data to the folder that holds it")
    return path


def versions() -> dict[str, str]:
    """Machine and package versions, for the record."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "machine": f"{platform.machine()}, {cores} cores"} | found


def finish(options: argparse.Namespace, result: dict[str, Any], text: str) -> None:
    """Prints the table and the versions; writes JSON where asked."""
    result["versions"] = versions()
    print(text)
    print("\n" + ", ".join(f"{k} {v}" for k, v in result["versions"].items()))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def fit_tables(name: str, log: Any, valid: Any, *, strengths: Sequence[float], seed: int) -> tuple[float, Fitted]:
    """A click model on per-document tables, with the strength of the prior that gives the lowest validation loss.

    Returns:
      (the strength, the fit).
    """
    runs: dict[float, Fitted] = {}
    for l2 in strengths:
        model = build_model(ModelConfig(model=name, relevance="table", seed=seed), log)
        runs[l2] = fit(
            model, log, valid, optimizer=adam(0.003), epochs=60, batch_size=256, seed=seed, patience=5, l2=l2
        )
    best = min(runs, key=lambda x: runs[x].history[runs[x].best - 1]["valid_loss"])
    return best, runs[best]


def table(rows: list[list[str]]) -> str:
    """A Markdown table; the first row is the head."""
    head, *body = rows
    lines = [head, ["---", *(["---:"] * (len(head) - 1))], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
