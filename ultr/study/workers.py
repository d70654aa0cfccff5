"""Processes that make runs side by side: they end with the one that started them and leave no folders behind."""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax

from ultr import compilation_cache, stopping
from ultr.errors import UltrError
from ultr.locks import Scratch, sweep

T = TypeVar("T")
POLL_SECONDS = 0.2


def call_in_processes(
    function: Callable[..., T], tasks: Sequence[tuple[Any, ...]], *, jobs: int, folder: Path
) -> Generator[T, None, None]:
    """Calls a function with each of the tasks' arguments in processes, and yields the results as they come.

    Where the caller stops early or fails, the processes are killed and their working folders removed.

    Args:
      jobs: processes, at most.
      folder: where the working folders lie.
    """
    context, cache = multiprocessing.get_context("spawn"), Scratch(folder)
    others = set(multiprocessing.active_children())
    pool = concurrent.futures.ProcessPoolExecutor(
        min(jobs, len(tasks)), mp_context=context, initializer=end_with_parent
    )
    with cache as programs, _environment(programs), pool:
        try:
            with _without_interrupts():
                waiting = {pool.submit(function, *task) for task in tasks}
            while waiting:
                stopping.check()
                done, waiting = concurrent.futures.wait(waiting, POLL_SECONDS, concurrent.futures.FIRST_COMPLETED)
                for result in done:
                    stopping.check()  # a signal to all processes ends this one as it does without others
                    yield result.result()
        except BaseException as error:
            workers = set(multiprocessing.active_children()) - others
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.kill()
            for worker in workers:
                worker.join()
            sweep(folder)
            if isinstance(error, concurrent.futures.process.BrokenProcessPool):
                raise UltrError(
                    "a process that made runs was ended from outside, as the system does where memory runs out. Lower "
                    "--jobs, or the sizes of logs and models in the study; the runs that are finished are kept"
                ) from error
            raise


def end_with_parent() -> None:
    """Ends this process as soon as the one that started it is gone, however it ended."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Has processes that are started ignore Ctrl-C, which a terminal sends to all: who starts them ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _environment(cache: Path) -> Iterator[None]:
    """Sets the environment of the processes, and puts it back.

    Each has one thread. What one of them compiles serves all, since most of a run's time is compilation: programs are
    kept in the given folder, unless they are kept anyway.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    settings = {"OMP_NUM_THREADS": "1", "XLA_FLAGS": f"{flags} --xla_cpu_multi_thread_eigen=false".strip()}
    if jax.config.values["jax_compilation_cache_dir"] is None:
        settings["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        settings |= {name: os.environ.get(name, value) for name, value in compilation_cache.KEEP.items()}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
