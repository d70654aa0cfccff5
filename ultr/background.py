"""Computing ahead in background threads: the next results are made while one is used."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from ultr import stopping

T = TypeVar("T")


def run_ahead(tasks: Iterable[Callable[[], T]], *, depth: int, workers: int = 1) -> Generator[T, None, None]:
    """Yields the results of tasks in order, while threads compute the next ones.

    A consumer that stops early waits for the tasks that run; those that have not begun are dropped.

    Args:
      tasks: called in background threads, in order.
      depth: how many results are computed ahead.
      workers: number of threads; with one, no two tasks run at the same time.
    """
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="ultr-ahead") as threads:
        try:
            for task in tasks:
                stopping.check()
                pending.append(threads.submit(task))
                if len(pending) > depth:
                    yield pending.popleft().result()
            while pending:
                stopping.check()
                yield pending.popleft().result()
        finally:
            for waiting in pending:
                waiting.cancel()


def iterate_ahead(items: Iterator[T], *, depth: int = 1) -> Generator[T, None, None]:
    """Yields the items of an iterator, while one background thread advances it.

    Args:
      items: advanced in the background alone; a generator is closed with this one.
      depth: how many items are computed ahead.
    """
    end: Any = object()
    advance = functools.partial(next, items, end)
    try:
        with contextlib.closing(run_ahead(itertools.repeat(advance), depth=depth)) as results:
            for item in results:
                if item is end:
                    return
                yield item
    finally:
        if isinstance(items, Generator):
            with contextlib.suppress(ValueError):  # it runs still: Ctrl-C came a second time, while this waited for it
                items.close()  # so that its own threads end here, not whenever it is collected


def complete(task: Callable[[], T]) -> T:
    """Calls a function that must not be stopped half-way, such as one whose own threads write files.

    It runs in a thread of its own; Ctrl-C meanwhile is raised when it is done.
    """
    held: KeyboardInterrupt | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="ultr-complete") as threads:
        future = threads.submit(task)
        while not future.done():
            try:
                future.exception()
            except KeyboardInterrupt as stop:
                held = stop
    if held is not None and future.exception() is None:
        raise held
    return future.result()
