"""SIGTERM is an exception in the block that asks for it, once, and whatever a library answers to it. Real signals."""

from __future__ import annotations

import os
import signal
import sys
import threading

import pytest

from ray_sisa.termination import Terminated, graceful, kept


def test_the_block_ends_and_a_second_signal_does_not_cut_its_end_short() -> None:
    cleaned = []
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), graceful():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(60)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned.append(True)
    assert cleaned
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("cause", [Terminated, KeyboardInterrupt])
def test_what_an_extension_makes_of_the_exception_is_undone(cause: type[BaseException]) -> None:
    with pytest.raises(cause), graceful():
        raise SystemError("returned a result with an exception set") from cause()


def test_other_errors_of_the_system_stay_what_they_are() -> None:
    with pytest.raises(SystemError), graceful():
        raise SystemError("a bug")


def test_a_library_does_not_change_what_the_signal_does() -> None:
    with graceful():
        ours = signal.getsignal(signal.SIGTERM)
        with kept():
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))  # as `ray.init` does
        assert signal.getsignal(signal.SIGTERM) is ours


def test_a_program_without_an_answer_of_its_own_keeps_the_librarys() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with kept():
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)
