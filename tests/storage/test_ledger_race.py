"""Eight processes append to one ledger at once: no request is lost, none is there twice, and no number is left out."""

from __future__ import annotations

import json
from collections import Counter

import programs
import pytest

from ray_sisa.layout import LEDGER
from ray_sisa.ledger import EMPTY, append, read_ledger
from ray_sisa.store import Store

pytestmark = pytest.mark.slow

NUM_PROCESSES = 8
EVERY = 10  # of ten requests of a process one is sent by others too
SHARED_BY = 2


def writer(uri: str, number: int, count: int) -> None:
    """Appends so many requests, and prints the number and sample of each; begins when all are ready."""
    store, known, told = Store(uri), EMPTY, []
    store.put(f"ready/{number}", b"")
    while len(store.sizes("ready")) < NUM_PROCESSES:
        pass
    for i in range(count):
        shared = i % EVERY == 0
        name = f"shared-{number // SHARED_BY}-{i}" if shared else f"own-{number}-{i}"
        place = (0, 1) if shared else (number % 3, 1 + i % 3)
        request = append(store, {place: [name]}, "", name, known)
        told.append((request.number, name))
        known = read_ledger(store, known)
    print(json.dumps(told))


# Against one name a SeaweedFS server makes those who come second wait for a second; the benchmark takes them all.
@pytest.mark.parametrize(("where", "total"), [("disk", 2000), ("s3", 320)])
def test_eight_processes_lose_nothing_and_repeat_nothing(
    where: str, total: int, request: pytest.FixtureRequest, tmp_path: object
) -> None:
    uri = f"{tmp_path}/run" if where == "disk" else request.getfixturevalue("s3")
    count = total // NUM_PROCESSES
    writers = [programs.start(writer, uri, number, count) for number in range(NUM_PROCESSES)]
    ended = [program.wait() for program in writers]
    assert [e.code for e in ended] == [0] * NUM_PROCESSES, ended[0].err
    told = [(number, name) for e in ended for number, name in json.loads(e.out)]
    assert len(told) == total

    store = Store(uri)
    ledger = read_ledger(store)  # which checks the chain
    shared = -(-count // EVERY) * NUM_PROCESSES // SHARED_BY
    assert ledger.position == total - shared
    assert store.numbers(LEDGER) == list(range(1, ledger.position + 1))
    # What each process was told is what stands there, and nothing else does.
    names = {request.number: request.sample_ids[0] for request in ledger.requests}
    assert {(number, name) for number, name in told} == set(names.items())
    assert len(set(names.values())) == ledger.position
    times = Counter(name for _, name in told)
    assert Counter(times.values()) == {1: total - 2 * shared, SHARED_BY: shared}
