"""Stops the work at hand on request: a signal sets a flag, and work ends at the next place where nothing is half done.

An exception that a signal handler raises comes up anywhere: in a callback of a runtime that swallows it, or between
two statements that belong together. So the command line (`on_signals`) only notes the signal, and loops ask `check`
between their steps. In other programs, which have handlers of their own, `check` does nothing.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
SAME_REQUEST = 0.5  # seconds within which a second signal is the first one again: `timeout` sends it twice
PATIENCE = 1.0  # seconds after which somebody who waits is told how to end at once
LONGEST = 60.0  # seconds after which the process ends if nothing has asked for the signal: something waits for ever
AGAIN = 0.1  # seconds between two attempts to interrupt what runs outside Python


class Stopped(KeyboardInterrupt):
    """The work was stopped by a signal.

    Args:
      number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number

    @property
    def exit_code(self) -> int:
        """The exit code by which shells know the signal."""
        return 128 + self.number


class _Request:
    """What was asked for; one per process."""

    number = 0  # of the first signal; 0: none came
    came_at = 0.0
    heard = False
    interrupts: list[Callable[[], None]]
    whole = threading.RLock()  # held while something is replaced in several steps

    def __init__(self) -> None:
        self.interrupts = []

    def note(self, number: int) -> bool:
        """Notes a signal; returns whether it is a second request."""
        if not self.number:
            self.number, self.came_at = number, time.monotonic()
            return False
        return time.monotonic() - self.came_at > SAME_REQUEST


_REQUEST = _Request()


def check() -> None:
    """Ends the work at hand if that was asked for; called between two steps of everything that takes long.

    Raises:
      Stopped: a signal came.
    """
    if _REQUEST.number:
        _REQUEST.heard = True
        raise Stopped(_REQUEST.number)


@contextlib.contextmanager
def interruptible(interrupt: Callable[[], None]) -> Iterator[None]:
    """Calls a function from another thread when the work shall stop, and again until the block has ended.

    Args:
      interrupt: makes what runs in the block outside Python return early; it must be safe at any time.
    """
    _REQUEST.interrupts.append(interrupt)
    try:
        yield
    finally:
        _REQUEST.interrupts.remove(interrupt)


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """Keeps even a second signal from ending the process within the block, which must be short."""
    with _REQUEST.whole:
        yield


@contextlib.contextmanager
def on_signals(*, for_good: bool = False) -> Iterator[None]:
    """Has Ctrl-C, SIGTERM and SIGHUP stop the work in the block; for the command line.

    The first signal makes `check` raise; a second one ends the process, and so does a minute in which nothing asked
    `check`: folders are written aside, and a process that ends leaves what stood there. Signals that are ignored, such
    as those of a command under `nohup`, stay ignored. Outside the main thread, which alone may have handlers, nothing
    changes.

    Args:
      for_good: whether the process ends after the block: the signals are ignored from then on, since what the
        interpreter and libraries do at the end is quick and must not be torn apart.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, _: FrameType | None) -> None:
        _REQUEST.note(number)

    # The interpreter calls handlers between two steps of the main thread, which may be long in coming: inside the
    # engine or a compiler. It writes the number to a socket at once, though, and a thread listens there.
    listens, speaks = socket.socketpair()
    speaks.setblocking(False)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    handled = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    wakeup = signal.set_wakeup_fd(speaks.fileno(), warn_on_full_buffer=False)
    listener = threading.Thread(target=_listen, args=(listens,), name="ultr-signals", daemon=True)
    try:
        for number in handled:
            signal.signal(number, note)
        listener.start()
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_IGN if for_good else before[number])
        signal.set_wakeup_fd(wakeup)
        speaks.close()
        listener.join()
        listens.close()
        _REQUEST.number, _REQUEST.heard = 0, False


def _listen(listens: socket.socket) -> None:
    """Reads signals until the other end is closed."""
    told = False
    while True:
        ready, _, _ = select.select([listens], [], [], AGAIN if _REQUEST.number else None)
        if ready:
            numbers = listens.recv(64)
            if not numbers:
                return
            for number in numbers:
                if number in SIGNALS and _REQUEST.note(number):
                    _end(128 + number)
        if _REQUEST.number:
            for interrupt in list(_REQUEST.interrupts):
                with contextlib.suppress(Exception):
                    interrupt()
            waited = time.monotonic() - _REQUEST.came_at
            if not _REQUEST.heard and waited > LONGEST:
                _end(128 + _REQUEST.number)
            if not told and waited > PATIENCE:
                told = True
                _say("ultr: stopping after the step at hand; the same signal again ends at once\n")


def _end(code: int) -> None:
    """Ends the process without waiting for threads that are busy outside Python."""
    _REQUEST.whole.acquire(timeout=10.0)
    os._exit(code)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
