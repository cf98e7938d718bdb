"""The lease, on local disk and on S3: one holder at a time, among threads and processes that are really stopped."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from ray_sisa.errors import BusyError
from ray_sisa.layout import numbered
from ray_sisa.lease import hold_lease
from ray_sisa.process import this_process
from ray_sisa.records import LeaseRecord
from ray_sisa.store import Store

LONG_S = 600.0


def put_lease(store: Store, number: int, holder: str, expires_in_s: float) -> None:
    record = LeaseRecord(number=number, holder=holder, expires_at=max(0.0, time.time() + expires_in_s))
    assert store.create(numbered("lease", number), record.to_bytes())


def latest(store: Store) -> LeaseRecord:
    return store.read(numbered("lease", store.numbers("lease")[-1]), LeaseRecord)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_second_holder_is_refused_and_told_who_has_it(store: Store) -> None:
    with hold_lease(store, duration_s=LONG_S) as lease:
        with pytest.raises(BusyError) as caught, hold_lease(Store(store.uri), wait_s=0):
            raise AssertionError("both hold it")
        assert caught.value.value == latest(store).holder
        assert f"/{os.getpid()}/" in caught.value.value
        assert "lease ends in" in caught.value.rule
        assert "--wait" in caught.value.remedy
        lease.check()


def test_a_released_lease_is_free_at_once(store: Store) -> None:
    numbers = []
    for _ in range(3):
        with hold_lease(store, duration_s=LONG_S) as lease:
            lease.check()
            numbers.append(latest(store).number)
        assert len(store.numbers("lease")) == 1  # no litter
    assert numbers == sorted(set(numbers))


def test_it_is_released_after_an_error(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), hold_lease(store, duration_s=LONG_S):
        raise ZeroDivisionError
    with hold_lease(store):
        pass


@pytest.mark.parametrize("expired_s", [0.01, 3600.0, math.inf])
def test_an_expired_lease_is_taken_at_once(store: Store, expired_s: float) -> None:
    put_lease(store, 41, "a dead one", -expired_s)
    with hold_lease(store, duration_s=LONG_S) as lease:
        lease.check()
        assert latest(store).number == 42


def test_a_dead_holder_blocks_until_its_lease_ends(store: Store) -> None:
    put_lease(store, 1, "a dead one", 0.3)
    with pytest.raises(BusyError, match="a dead one"), hold_lease(store, wait_s=0):
        pass
    with hold_lease(store, duration_s=LONG_S):
        assert latest(store).number == 2


def test_by_default_a_silent_holder_is_waited_for_until_its_lease_must_have_ended(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    put_lease(store, 1, "a far one", 0.5)
    with hold_lease(store, duration_s=0.5) as lease:
        lease.check()
    (told,) = caplog.messages
    assert told.startswith("waiting up to 0.6 s for a far one, which works on this run (its lease ends in 0 s")


def test_waiting_has_an_end(store: Store) -> None:
    put_lease(store, 1, "somebody", LONG_S)
    with pytest.raises(BusyError, match="somebody"), hold_lease(store, wait_s=0.05, duration_s=0.1):
        pass


def test_a_waiting_holder_gets_it(store: Store) -> None:
    got = threading.Event()

    def wait_for_it() -> None:
        with hold_lease(Store(store.uri), wait_s=60):
            got.set()

    waiter = threading.Thread(target=wait_for_it)
    with hold_lease(store, duration_s=LONG_S):
        waiter.start()
        assert not got.wait(0.05)
    waiter.join(60)
    assert got.is_set()


def test_the_heart_keeps_it(store: Store) -> None:
    # Long enough for a machine that stalls, short enough to see it renewed.
    with hold_lease(store, duration_s=3.0) as lease:
        first = latest(store)
        wait_until(lambda: store.numbers("lease")[-1] > first.number)
        assert latest(store).holder == first.holder
        assert latest(store).expires_at > first.expires_at
        lease.check()
        with pytest.raises(BusyError), hold_lease(store, wait_s=0):
            pass
    wait_until(lambda: len(store.numbers("lease")) == 1)


def test_a_holder_that_was_overtaken_is_told(store: Store) -> None:
    with hold_lease(store, duration_s=LONG_S) as lease:
        put_lease(store, latest(store).number + 1, "the next one", LONG_S)
        with pytest.raises(BusyError, match="lease = the next one: took over this run"):
            lease.check()


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_an_overtaken_holder_does_not_release_the_lease_of_another(store: Store, ahead: int) -> None:
    with hold_lease(store, duration_s=LONG_S):
        put_lease(store, latest(store).number + ahead, "the next one", LONG_S)
    assert latest(store).holder == "the next one"
    with pytest.raises(BusyError, match="the next one"), hold_lease(store, wait_s=0):
        pass


def test_eight_threads_never_hold_it_together(store: Store) -> None:
    inside, most, turns = [0], [0], []

    def work() -> None:
        with hold_lease(Store(store.uri), wait_s=120, duration_s=60) as lease:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            lease.check()
            turns.append(latest(store).number)
            inside[0] -= 1

    Store(store.uri).put("run.json", b"{}")
    store = Store(store.uri)
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert most == [1]
    assert len(turns) == 8
    assert turns == sorted(set(turns))


HOLDER = """
import sys
from ray_sisa.errors import BusyError
from ray_sisa.lease import hold_lease
from ray_sisa.store import Store

with hold_lease(Store(sys.argv[1]), duration_s=float(sys.argv[2])) as lease:
    lease.check()
    print("held", flush=True)
    sys.stdin.readline()
    try:
        lease.check()
        print("still mine", flush=True)
    except BusyError as error:
        print(error, flush=True)
"""


def test_a_holder_that_was_stopped_finds_out(store: Store) -> None:
    """SIGSTOP for longer than the lease, then SIGCONT: a real process, and the lease is taken meanwhile."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, store.uri, "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdin
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGSTOP)
        mine = Store(store.uri)
        try:
            with hold_lease(mine, wait_s=60, duration_s=LONG_S) as lease:
                before = latest(mine)
                holder.send_signal(signal.SIGCONT)
                holder.stdin.write("\n")
                holder.stdin.flush()
                assert holder.stdout.readline() == (
                    f"lease = {before.holder}: took over this run. Run the command again\n"
                )
                assert holder.wait(60) == 0
                # What the other left behind did not take the lease away.
                lease.check()
                assert latest(mine) == before
        finally:
            holder.kill()


def test_a_holder_that_is_killed_here_frees_it_at_once(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, store.uri, str(LONG_S)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        holder.kill()
    dead = latest(store)
    with hold_lease(Store(store.uri), wait_s=0, duration_s=LONG_S) as lease:
        lease.check()
        assert latest(store).number == dead.number + 1
    assert caplog.messages == [f"{dead.holder} has died on this machine: its lease is taken over at once"]


def test_a_holder_that_died_elsewhere_has_it_in_time(store: Store) -> None:
    """Its process is gone here too: what tells is where it was."""
    with subprocess.Popen([sys.executable, "-c", "pass"]) as gone:
        gone.wait()
    mine = this_process()
    assert mine
    elsewhere = mine.model_copy(update={"boot": "another", "pid": gone.pid})
    record = LeaseRecord(number=1, holder="a far one", expires_at=time.time() + LONG_S, process=elsewhere)
    assert store.create(record.path, record.to_bytes())
    with pytest.raises(BusyError, match="a far one"), hold_lease(store, wait_s=0):
        pass
