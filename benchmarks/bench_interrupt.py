"""Interrupts every command at random moments, and reports how it ends, how fast, what it leaves and what resumes.

python benchmarks/bench_interrupt.py --tries 100 --others 12
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ultr import simulate
from ultr.data.collection import write_collection
from ultr.text import table

ROOT = Path(__file__).resolve().parents[1]
# Ctrl-C is ignored by what a script has started in the background: here it is not.
START = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from ultr.cli import main; main()"
LONGEST = 120.0  # seconds after which a process that does not stop is killed, and counted as such
STUDY = """
seeds = [0, 1, 2]
[data]
collection = "collection"
train = "train"
vali = "vali"
test = "test"
[[log]]
name = "log"
user = "pbm"
policy = "linear"
temperature = 1.0
sessions = 20000
ranks = 6
[defaults]
relevance = "linear"
epochs = 3
[[method]]
model = "naive"
[[method]]
model = "pbm"
[[method]]
model = "ips-listwise"
"""


class Commands:
    """The commands to interrupt, on small inputs in a folder of their own.

    Args:
      folder: an empty folder.
      sessions: of the log to train on.
    """

    def __init__(self, folder: Path, sessions: int) -> None:
        self.folder, self.cache = folder, folder / "cache"
        lists = simulate.collection(queries=240, seed=1)
        queries, documents = lists.vocabulary.tables()
        write_collection(
            folder / "collection",
            queries=queries,
            documents=documents,
            features=lists.vocabulary.feature_names,
            splits=pa.array(["train"] * 140 + ["vali"] * 40 + ["test"] * 60),
        )
        self.run(["simulate", "collection", "--out", "log", "--sessions", str(sessions), "--temperature", "0.5"])
        (folder / "study.toml").write_text(STUDY)
        self._write_raw(folder / "raw.csv", sessions)
        self.run([*self.train(), "--out", "whole"])
        self.whole = self.result("whole")

    def _write_raw(self, path: Path, sessions: int) -> None:
        rng = np.random.default_rng(0)
        with path.open("w") as out:
            out.write("session,query,document,rank,click\n")
            for i in range(sessions):
                query = int(rng.integers(5000))
                documents = rng.permutation(20)[:6]
                out.writelines(
                    f"s{i},q{query},d{d},{k + 1},{int(rng.random() < 0.5 / (k + 1))}\n"
                    for k, d in enumerate(documents.tolist())
                )

    @staticmethod
    def train() -> list[str]:
        return ["train", "log", "--model", "pbm", "--relevance", "mlp", "--epochs", "4", "--batch-size", "256"]

    def named(self) -> dict[str, list[str]]:
        """Each command with its arguments; OUT stands for an output that is not there yet."""
        return {
            "prepare": ["prepare", "raw.csv", "--out", "OUT", "--split", "train=.8,test=.2"],
            "simulate": ["simulate", "collection", "--out", "OUT", "--sessions", "600000"],
            "evaluate": ["evaluate", "whole", "log", "--calibration"],
            "propensity": ["propensity", "log", "--method", "all-pairs", "--replicates", "4000", "--out", "OUT.csv"],
            "diagnose": ["diagnose", "log"],
            "compare": ["compare", "study.toml", "--out", "OUT", "--jobs", "1"],
            "compare --jobs 2": ["compare", "study.toml", "--out", "OUT", "--jobs", "2"],
            "train --solver em": ["train", "log", "--out", "OUT", "--relevance", "table", "--solver", "em"],
            "demo": ["demo", "--out", "OUT", "--sessions", "60000"],
        }

    def start(self, arguments: Sequence[str], *, cache: bool = True) -> subprocess.Popen[str]:
        """Starts a command, in a process group of its own, as a terminal does."""
        known = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(self.cache)}
        known |= {"TMPDIR": str(self.folder / "tmp"), "ULTR_CACHE": "" if cache else "off"}
        (self.folder / "tmp").mkdir(exist_ok=True)
        return subprocess.Popen(
            [sys.executable, "-c", START, *arguments],
            cwd=self.folder,
            env=os.environ | known,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, arguments: Sequence[str]) -> float:
        """Runs a command to its end; returns the seconds that it took."""
        began = time.perf_counter()
        process = self.start(arguments)
        _, errors = process.communicate()
        if process.returncode:
            sys.exit(f"{' '.join(arguments)}: {errors}")
        return time.perf_counter() - began

    def result(self, run: str) -> tuple[Any, dict[str, bytes]]:
        """Reads what training found, without the seconds that it took: losses and the bytes of all arrays."""
        from flax import nnx

        from ultr.training import load
        from ultr.training.checkpoint import named_arrays

        history = json.loads((self.folder / run / "run.json").read_text())["history"]
        kept = [{k: v for k, v in epoch.items() if k not in ("seconds", "waiting")} for epoch in history]
        model = load(self.folder / run / "model")
        return kept, {name: np.asarray(x).tobytes() for name, x in named_arrays(nnx.state(model)).items()}

    def left(self, out: str) -> list[str]:
        """Names what a command has left beside its output and in the folder for temporary files."""
        found = [p.name for p in self.folder.iterdir() if p.name.startswith(".")]
        inside = self.folder / out
        found += [f"{out}/{p.name}" for p in inside.rglob(".*")] if inside.is_dir() else []
        return found + [f"tmp/{p.name}" for p in (self.folder / "tmp").iterdir()]


def interrupt(
    commands: Commands, arguments: Sequence[str], after: float, kind: signal.Signals, *, group: bool, cache: bool
) -> dict[str, Any]:
    """Interrupts a command once.

    Args:
      after: seconds from the start.
      kind: the signal.
      group: whether the signal goes to all processes of the group, as from a terminal.
      cache: whether compiled programs are kept.
    """
    process = commands.start(arguments, cache=cache)
    ended = False
    try:
        process.wait(timeout=after)
        ended = True
    except subprocess.TimeoutExpired:
        (os.killpg if group else os.kill)(process.pid, kind)
    began = time.perf_counter()
    killed = False
    try:
        _, errors = process.communicate(timeout=LONGEST)
    except subprocess.TimeoutExpired:
        killed = True
        os.killpg(process.pid, signal.SIGKILL)
        _, errors = process.communicate()
    seconds = time.perf_counter() - began
    return {
        "code": process.returncode,
        "ended": ended,
        "killed": killed,
        "seconds": 0.0 if ended else seconds,
        "traceback": "Traceback" in errors or "Fatal" in errors,
        "errors": errors,
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tries", type=int, default=100, help="interrupts of `train`, half with the cache off")
    options.add_argument("--others", type=int, default=12, help="interrupts of each other command")
    options.add_argument("--only", nargs="*", help="these commands alone, such as train prepare")
    options.add_argument("--sessions", type=int, default=100_000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--json", type=Path, help="also write the result to this file")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="interrupt-") as name:
        commands = Commands(Path(name), chosen.sessions)
        result: dict[str, Any] = {}
        if not chosen.only or "train" in chosen.only:
            result |= {f"train, cache {k}": _train(commands, chosen, k == "on") for k in ("on", "off")}
        for what, arguments in commands.named().items():
            if not chosen.only or what in chosen.only:
                result[what] = _others(commands, what, arguments, chosen)
    head = ["command", "interrupts", "exit codes", "seconds to stop: median", "most", "tracebacks", "left", "resumed"]
    rows = [head]
    for what, found in result.items():
        codes = ", ".join(f"{code}: {n}" for code, n in sorted(found["codes"].items()))
        numbers = [f"{found['median']:.2f}", f"{found['most']:.2f}", str(found["tracebacks"]), str(found["left"])]
        rows.append([what, str(found["tries"]), codes, *numbers, found.get("resumed", "-")])
    print(table(rows))
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=1) + "\n")


def _train(commands: Commands, chosen: argparse.Namespace, cache: bool) -> dict[str, Any]:
    """Interrupts `train` and resumes it; the result must be that of a run that was left alone, bit for bit."""
    rng = random.Random(f"{chosen.seed} train {cache}")
    process = commands.start([*commands.train(), "--out", "timed"], cache=cache)
    began = time.perf_counter()
    process.communicate()
    whole = time.perf_counter() - began
    shutil.rmtree(commands.folder / "timed")
    found, equal, resumed, fresh = [], 0, 0, 0
    for i in range(chosen.tries // 2):
        kind = signal.SIGTERM if i % 4 == 3 else signal.SIGINT
        arguments = [*commands.train(), "--out", "run"]
        found.append(interrupt(commands, arguments, rng.uniform(0.3, whole), kind, group=i % 2 == 0, cache=cache))
        _say(f"train {i}: {found[-1]}")
        found[-1]["left"] = commands.left("run")
        if (commands.folder / "run" / "state").exists() and found[-1]["code"]:
            resumed += 1
            commands.run([*arguments, "--resume"])
            equal += commands.result("run") == commands.whole
        elif found[-1]["code"]:
            fresh += 1
        shutil.rmtree(commands.folder / "run", ignore_errors=True)
    about = f"{equal} of {resumed} bit-equal ({fresh} stopped before the first block)"
    return _summary(found) | {"resumed": about}


def _others(commands: Commands, what: str, arguments: Sequence[str], chosen: argparse.Namespace) -> dict[str, Any]:
    rng = random.Random(f"{chosen.seed} {what}")
    whole = commands.run([a.replace("OUT", "timed") for a in arguments])
    _remove(commands.folder, "timed")
    found = []
    for i in range(chosen.others):
        kind = signal.SIGTERM if i % 4 == 3 else signal.SIGINT
        given = [a.replace("OUT", "out") for a in arguments]
        found.append(interrupt(commands, given, rng.uniform(0.3, whole), kind, group=i % 2 == 0, cache=i % 3 > 0))
        _say(f"{what} {i}: {found[-1]}")
        found[-1]["left"] = commands.left("out")
        _remove(commands.folder, "out")
    return _summary(found)


def _remove(folder: Path, name: str) -> None:
    for path in (folder / name, folder / f"{name}.csv"):
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)


def _summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [f["seconds"] for f in found if not f["ended"]]
    return {
        "tries": len(found),
        "codes": dict(Counter(str(f["code"]) + ("*" if f["killed"] else "") for f in found)),
        "median": float(np.median(seconds)) if seconds else 0.0,
        "most": max(seconds, default=0.0),
        "tracebacks": sum(f["traceback"] for f in found),
        "left": sum(bool(f["left"]) for f in found),
        "all": found,
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
