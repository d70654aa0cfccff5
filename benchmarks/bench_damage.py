"""Reads damaged inputs of every kind, and says which of them end in something else than data or an error of our own.

Raw files of all formats, grades, prepared folders, saved models, studies, propensities and arguments of Python
functions are made small, damaged at random by a seed (`damage`), and read in a process of its own. Right are a typed
error that says what is wrong, and data that can be: finite numbers, clicks of 0 and 1, as many rows as the metadata
say. Another exception, a process that dies, one that takes longer than the limit, files that are left behind and data
that cannot be are findings. Each is printed with the kind and seed that make it again:

    python benchmarks/bench_damage.py --only table-csv --seed 17 --keep /tmp/damaged
"""

from __future__ import annotations

import argparse
import collections
import json
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from common import finish, parser, table


def worker() -> None:
    """Tries the inputs that stand on standard input, and writes a line of JSON after each."""
    from damage_kinds import try_one

    with tempfile.TemporaryDirectory() as temporary:
        for line in sys.stdin:
            name, seed = json.loads(line)
            found, said = try_one(name, seed, Path(temporary) / "case")
            print(json.dumps([found, said]), flush=True)


class Worker:
    """A process that tries damaged inputs; it is started anew after it died or was ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._answers: Queue[str] = Queue()

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, __file__, "--worker"], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # fmt: skip
        answers: Queue[str] = Queue()
        self._answers = answers

        def listen() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                answers.put(line)
            answers.put("")

        threading.Thread(target=listen, daemon=True).start()
        return process

    def ask(self, name: str, seed: int, limit: float) -> tuple[str, str]:
        """Tries one input; `limit` is in seconds, of which the first of a process has 60 more to import."""
        if self._process is None:
            self._process = self._start()
            limit += 60
        process = self._process
        assert process.stdin is not None
        process.stdin.write(json.dumps([name, seed]) + "\n")
        process.stdin.flush()
        try:
            answer = self._answers.get(timeout=limit)
        except Empty:
            self.end()
            return "finding", f"no end after {limit:.0f} s"
        if not answer:
            code = process.wait()
            self._process = None
            return "finding", f"the process died with code {code}"
        found, said = json.loads(answer)
        return str(found), str(said)

    def end(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def replay(name: str, seed: int, keep: Path | None) -> None:
    """Tries one input in this process, and prints its traceback where it is a finding."""
    import damage_kinds

    folder = keep or Path(tempfile.mkdtemp())
    print(damage_kinds.try_one(name, seed, folder), folder)
    try:
        damage_kinds.KINDS[name].read(folder)
    except Exception:
        traceback.print_exc()


def run(options: argparse.Namespace) -> dict[str, Any]:
    from damage_kinds import KINDS

    names = [name for name in KINDS if not options.only or name in options.only]
    counts = {name: collections.Counter[str]() for name in names}
    findings: list[dict[str, Any]] = []
    asked, began = Worker(), time.monotonic()
    done = 0
    for number in range(options.inputs):
        name, seed = names[number % len(names)], options.start + number // len(names)
        if time.monotonic() - began > options.minutes * 60:
            break
        found, said = asked.ask(name, seed, options.limit)
        counts[name][found] += 1
        done += 1
        if found == "finding":
            findings.append({"kind": name, "seed": seed, "said": said})
            print(f"--only {name} --seed {seed}: {said}", flush=True)
    asked.end()
    seconds = time.monotonic() - began
    kinds = {name: {key: count[key] for key in ("read", "refused", "finding")} for name, count in counts.items()}
    return {"inputs": done, "next": options.start + done // len(names), "seconds": round(seconds, 1), "kinds": kinds,
            "findings": findings}  # fmt: skip


def main() -> None:
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--inputs", type=int, default=5000, help="how many damaged inputs")
    options.add_argument("--start", type=int, default=0, help="the first seed of each kind")
    options.add_argument("--minutes", type=float, default=60, help="stop after these")
    options.add_argument("--limit", type=float, default=20, help="seconds that one input may take")
    options.add_argument("--only", action="append", help="a kind, may be given again [all]")
    options.add_argument("--seed", type=int, help="try this seed of the one kind alone, and show the traceback")
    options.add_argument("--keep", type=Path, help="with --seed: leave the damaged input in this folder")
    options.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.worker:
        worker()
    elif given.seed is not None:
        replay(given.only[0], given.seed, given.keep)
    else:
        result = run(given)
        rows = [["kind", "read", "refused", "findings"]]
        rows += [[name, *(str(count[key]) for key in count)] for name, count in result["kinds"].items()]
        rows.append(
            ["all", *(str(sum(c[k] for c in result["kinds"].values())) for k in ("read", "refused", "finding"))]
        )
        text = f"{table(rows)}\n\n{result['inputs']:,} inputs in {result['seconds']:,} s; next seed {result['next']}"
        finish(given, result, text)


if __name__ == "__main__":
    main()
