"""What the speed benchmarks share: contestants in processes of their own, rounds that alternate, and the figures."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import table, versions

HERE = Path(__file__).resolve().parent
PEERS = HERE / "peers"
MODELS = ("pbm", "ubm", "sdbn", "dcm", "dbn", "ccm")


class PeerError(RuntimeError):
    """A contestant failed or ended."""


class Peer:
    """A contestant's process; `peer.ask("step", model="pbm")` sends a request and waits for the answer.

    Attributes:
      hello: what it said at the start: versions, seconds until ready.
      started: time.time() at which its process was started.
    """

    def __init__(self, python: str, script: str, *arguments: str, ultr: bool = False) -> None:
        self.name = script
        self.started = time.time()
        environment = os.environ | {"BENCHMARK_STARTED": repr(self.started)}
        if ultr:
            environment["PYTHONPATH"] = os.pathsep.join(
                [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
            )
        else:
            environment.pop("PYTHONPATH", None)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [python, str(PEERS / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            text=True,
        )
        self.hello = self._answer()

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Paths among the arguments are sent as text.

        Raises:
          PeerError: with the end of what the process wrote to stderr.
        """
        request = {k: str(v) if isinstance(v, Path) else v for k, v in arguments.items()}
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": command, **request}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer says more
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"ended with status {self._process.wait()}"}
        if "error" in answer:
            self._errors.seek(0)
            raise PeerError(f"{self.name}: {answer['error']}\n{self._errors.read()[-3000:]}")
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()  # type: ignore[union-attr]
        self._errors.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def rate(peer: Peer, command: str, **arguments: Any) -> Callable[[], float]:
    """A measurement for `alternate`: asks, and takes `rate` of the answer."""
    return lambda: peer.ask(command, **arguments)["rate"]


class Contestants:
    """Starts the contestants that are there; says once of each other one that it is skipped, and why."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.known: dict[str, dict[str, Any]] = {}
        self.skipped: dict[str, str] = {}

    def start(self, name: str) -> Peer | None:
        """A new process of `ultr`, `clax`, `pyclick` or `floor`; None where it is not there."""
        if name in self.skipped:
            return None
        missing = self._missing(name)
        if missing is None:
            try:
                peer = self._start(name)
                self.known[name] = peer.hello["versions"] | {"python": peer.hello["python"]}
                return peer
            except (PeerError, OSError) as error:
                if name == "ultr":
                    raise
                missing = str(error)
        self.skipped[name] = missing
        print(f"skipped {name}: {missing}", file=sys.stderr)
        return None

    def _missing(self, name: str) -> str | None:
        if name == "clax" and not self.options.clax:
            return "give --clax or ULTR_CLAX, the Python interpreter of an environment with CLAX"
        if name == "pyclick" and not self.options.pyclick:
            return "give --pyclick or ULTR_PYCLICK, the folder of a checkout of markovi/PyClick"
        if name == "pyclick" and not (Path(self.options.pyclick) / "pyclick").is_dir():
            return f"{self.options.pyclick} has no folder pyclick"
        if name == "floor" and shutil.which(os.environ.get("CC", "gcc")) is None:
            return "no C compiler"
        return None

    def _start(self, name: str) -> Peer:
        if name == "ultr":
            return Peer(sys.executable, "ultr_peer.py", ultr=True)
        if name == "clax":
            return Peer(self.options.clax, "clax_peer.py")
        if name == "pyclick":
            return Peer(sys.executable, "pyclick_peer.py", self.options.pyclick)
        return Peer(sys.executable, "floor.py")


def parser(description: str) -> argparse.ArgumentParser:
    """Options of every speed benchmark."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("ULTR_BENCHMARK_DATA", Path(tempfile.gettempdir()) / "ultr-benchmarks")
    options.add_argument("--work", type=Path, default=Path(default), help="folder of the generated logs [%(default)s]")
    options.add_argument("--json", type=Path, help="also write the result to this file")
    options.add_argument("--rounds", type=int, default=5, help="alternating rounds [%(default)s]")
    options.add_argument("--seed", type=int, default=20250101, help="of the generated logs [%(default)s]")
    options.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options.add_argument("--clax", default=os.environ.get("ULTR_CLAX"), help="interpreter with CLAX [$ULTR_CLAX]")
    options.add_argument("--pyclick", default=os.environ.get("ULTR_PYCLICK"), help="PyClick folder [$ULTR_PYCLICK]")
    return options


def alternate(
    measurements: Mapping[str, Callable[[], float]], rounds: int, progress: bool = True
) -> dict[str, list[float]]:
    """Takes each measurement once per round, every other round backwards, after one of each that does not count.

    A load that comes and goes then falls on all of them alike.
    """
    names = list(measurements)
    for name in names:
        measurements[name]()
    taken: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            taken[name].append(measurements[name]())
        if progress:
            print(f"round {number + 1}/{rounds}", file=sys.stderr, flush=True)
    return taken


def summary(values: Sequence[float]) -> dict[str, Any]:
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "rounds": list(values),
    }


def ratio(values: Sequence[float], reference: Sequence[float]) -> float:
    """Median of the ratios within each round."""
    return statistics.median(v / r for v, r in zip(values, reference, strict=True))


def short(value: float) -> str:
    """1234567 -> 1.23 M."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def spanned(found: Mapping[str, Any]) -> str:
    """median (min to max)."""
    return f"{short(found['median'])} ({short(found['min'])} to {short(found['max'])})"


def reached(points: Sequence[Mapping[str, float]], target: float) -> float | None:
    """Seconds of the first point whose log-likelihood is at least the target; None where no point is."""
    return next((p["seconds"] for p in points if p["log_likelihood"] >= target), None)


def available_bytes() -> int:
    """Memory that can be had without swapping; 0 where that is not known."""
    try:
        return int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return 0


def machine() -> dict[str, Any]:
    """Processor, cores, memory and the load at the end."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), model)
        total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    except OSError:
        total = 0
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": total,
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }


def finish(
    options: argparse.Namespace,
    result: dict[str, Any],
    rows: list[list[str]],
    contestants: Contestants | None = None,
) -> None:
    """Prints the table and the machine; writes JSON where asked."""
    result["machine"], result["versions"] = machine(), {"driver": versions()}
    result["options"] = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    if contestants is not None:
        result["versions"] |= contestants.known
        result["skipped"] = contestants.skipped
    print(table(rows))
    about = result["machine"]
    print(f"\n{about['processor']}, {about['cores']} cores, {short(about['memory_bytes'])}B")
    for name, found in result["versions"].items():
        print(f"{name}: " + ", ".join(f"{k} {v}" for k, v in found.items()))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
