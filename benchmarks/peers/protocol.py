"""How a driver talks to a contestant: one JSON object per line, a request on stdin, an answer on stdout.

Standard library alone, so that every contestant's own interpreter can import it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_STARTED = float(os.environ.get("BENCHMARK_STARTED", time.time()))


def since_start() -> float:
    """Seconds since the driver started this process."""
    return time.time() - _STARTED


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    try:
        # Not getrusage: what the parent held when it started this process counts there.
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory() -> dict[str, float]:
    """Peak memory of this process, and of the largest of its finished children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {"peak_bytes": peak_bytes(), "largest_child_bytes": children * (1 if sys.platform == "darwin" else 1024)}


def serve(commands: Mapping[str, Callable[..., Any]], **facts: Any) -> None:
    """Says hello, then answers requests until stdin ends; `{"do": name, ...}` calls the command of that name.

    An answer is what the command returned, or `{"error": text}`. What libraries print goes to stderr.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    known = {"memory": memory} | dict(commands)

    def say(answer: Any) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    say({"ready": since_start(), "python": sys.version.split()[0], **facts})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            say(known[request.pop("do")](**request))
        except Exception as error:
            traceback.print_exc()
            say({"error": f"{type(error).__name__}: {error}"})
