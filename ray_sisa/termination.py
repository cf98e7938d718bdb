"""An end by SIGTERM that gives back what is held, as Ctrl-C does: the run's lease, workers, clusters.

`ray job stop`, batch systems and containers end a program so. Python's own answer is to die on the spot.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

TERMINATED = 128 + signal.SIGTERM  # the exit code that shells give such an end


class Terminated(BaseException):
    """The process was told to end; no `Exception`, so that nothing takes it for a failure to be tried again."""


@contextmanager
def graceful() -> Iterator[None]:
    """Makes SIGTERM raise `Terminated` in the block, once: what ends the block is not to be cut short by another."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    except SystemError as error:  # so Ray's `wait` reports an exception that a signal raises within it
        if isinstance(error.__cause__, Terminated | KeyboardInterrupt):
            raise error.__cause__ from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def kept() -> Iterator[None]:
    """Puts this process's own answer to SIGTERM back after a block in which a library sets another.

    Ray's prints a native stack trace. Where a program has no answer of its own, Ray's stays.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _raise(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated
