"""PyClick as a contestant: its own maximum-likelihood and EM inference, driven by `benchmarks/speed.py`.

PyClick is the GitHub project markovi/PyClick (the registry's `pyclick` is something else); the first argument is the
folder of a checkout, the one that holds the package `pyclick`. Any Python runs it: standard library alone.
"""

from __future__ import annotations

import builtins
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from protocol import peak_bytes, serve, since_start

if not hasattr(builtins, "xrange"):
    builtins.xrange = range  # type: ignore[attr-defined]  # it was written for Python 2

sys.path.insert(0, sys.argv[1])

from pyclick.click_models import CCM, DBN, DCM, PBM, SDBN, UBM  # type: ignore[import-not-found]
from pyclick.click_models.Inference import EMInference  # type: ignore[import-not-found]
from pyclick.search_session.SearchResult import SearchResult  # type: ignore[import-not-found]
from pyclick.search_session.SearchSession import SearchSession  # type: ignore[import-not-found]

MODELS = {"pbm": PBM, "ubm": UBM, "dcm": DCM, "sdbn": SDBN, "dbn": DBN, "ccm": CCM}


class Passes(list):
    """Sessions that call back whenever a pass over them begins: EM makes one pass per iteration."""

    begins: Callable[[], None] = staticmethod(lambda: None)

    def __iter__(self) -> Iterator[Any]:
        self.begins()
        return super().__iter__()


def read(path: str, sessions: int) -> Passes:
    """Lines of query, ids, clicks, separated by tabs."""
    out = Passes()
    with open(path) as lines:
        for line in lines:
            if len(out) == sessions:
                break
            query, ids, clicks = line.rstrip("\n").split("\t")
            session = SearchSession(query)
            for document, click in zip(ids.split(","), clicks.split(","), strict=True):
                session.web_results.append(SearchResult(document, int(click)))
            out.append(session)
    return out


def likelihood(model: Any, sessions: Passes) -> float:
    """Mean over documents of ln P(c_k | c_<k); its own LogLikelihood is the mean over sessions of the mean in each."""
    total, count = 0.0, 0
    for session in list.__iter__(sessions):
        for p in model.get_conditional_click_probs(session):
            total += math.log(p) if p > 0 else -math.inf
            count += 1
    return total / count


def train(model: str, train: str, test: str, sessions: int, test_sessions: int, iterations: int = 50) -> dict[str, Any]:
    """Its `train`; seconds and held-out log-likelihood after each EM iteration, or after the one pass of MLE.

    Seconds of a point: process start (imports and reading included) to that point, without evaluation.
    """
    seen, held_out = read(train, sessions), read(test, test_sessions)
    ready = since_start()
    built = MODELS[model]()
    em = isinstance(built._inference, EMInference)
    if em:
        built._inference = EMInference(iterations)
    points: list[dict[str, float]] = []
    spent, since = 0.0, time.perf_counter()
    passes = 0

    def judge() -> None:
        nonlocal spent, since
        spent += time.perf_counter() - since
        points.append({"seconds": ready + spent, "log_likelihood": likelihood(built, held_out)})
        since = time.perf_counter()

    def begins() -> None:
        nonlocal passes
        passes += 1
        if passes > 1:
            judge()

    seen.begins = begins  # type: ignore[method-assign]
    built.train(seen)
    judge()
    return {
        "points": points,
        "log_likelihood": points[-1]["log_likelihood"],
        "iterations": passes,
        "em": em,
        "sessions": sessions,
        "seconds": spent,
        "rate": sessions * passes / spent,
        "seconds_until_training": ready,
        "peak_bytes": peak_bytes(),
    }


if __name__ == "__main__":
    serve({"train": train}, contestant="PyClick", versions={"implementation": platform.python_implementation()})
