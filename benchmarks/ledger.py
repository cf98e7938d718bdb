"""How long is a deletion request in the making, alone and beside others, and how long does a long ledger take to open?

Requests are appended by one process, then by eight at once, each of which knows what it has read before, as a `Run`
does; a tenth of their keys are sent by two. Then ledgers of many requests are opened, with segments and without; they
are written directly, since only opening is measured. On a folder by default, or on any URI; for S3, credentials come
from the environment.

Targets: 8 processes lose nothing; a ledger of 100,000 requests opens in under 10 s.

    python benchmarks/ledger.py
    python benchmarks/ledger.py --long 5000 --storage-path 's3://bucket?endpoint_override=localhost:8333&scheme=http'
    python benchmarks/ledger.py --quick --json ledger.json
"""

from __future__ import annotations

import argparse
import multiprocessing
import secrets
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing.synchronize import Barrier
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import _measure

from ray_sisa.digests import digest_bytes
from ray_sisa.layout import numbered
from ray_sisa.ledger import EMPTY, append, compact, read_ledger
from ray_sisa.location import join_run
from ray_sisa.records import Place, Request
from ray_sisa.store import Store

QUESTION = "Time to keep a deletion request, and to open a ledger"
NUM_PROCESSES, SHARED_EVERY = 8, 10
BOUNDS = {"at_most": 10.0}


def write(uri: str, writer: int, count: int, together: Barrier) -> list[float]:
    """Appends requests when all writers are ready; seconds of each."""
    store, known, seconds = Store(uri), EMPTY, []
    store.find("run.json")  # a connection, and the libraries
    together.wait()
    for i in range(count):
        name = f"{writer // 2 if i % SHARED_EVERY == 0 else f'own-{writer}'}-{i}"
        began = time.perf_counter()
        append(store, {(0, 1): [name]}, "", name, known)
        seconds.append(time.perf_counter() - began)
        known = read_ledger(store, known)
    return seconds


def in_processes(uri: str, processes: int, total: int) -> tuple[list[float], float]:
    """Seconds of each append, and of all, by so many processes at once."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(processes) as pool:
        together = manager.Barrier(processes + 1)
        count = total // processes
        told = [pool.apply_async(write, (uri, writer, count, together)) for writer in range(processes)]
        together.wait()
        began = time.perf_counter()
        seconds = [value for answer in told for value in answer.get()]
        took = time.perf_counter() - began
    ledger = read_ledger(Store(uri))
    shared = len(range(0, count, SHARED_EVERY)) * (processes // 2)
    assert ledger.position == count * processes - shared, "a request was lost, or is there twice"
    return seconds, took


def fill(store: Store, count: int) -> None:
    """A ledger of so many requests of one sample each."""
    previous: str | None = None
    objects: list[tuple[str, bytes]] = []
    for number in range(1, count + 1):
        request = Request(
            number=number,
            idempotency_key=f"key-{number}",
            reason="",
            places=(Place(shard=number % 100, slice=1, samples=(f"sample-{number:08d}",)),),
            previous=previous,
            created_at="2026-01-01T00:00:00Z",
        )
        data = request.to_bytes()
        previous = digest_bytes(data)
        objects.append((numbered("ledger", number), data))
    if store.is_local:  # without bringing each to the disk
        (Path(store.uri) / "ledger").mkdir(parents=True)
        for path, data in objects:
            (Path(store.uri) / path).write_bytes(data)
    else:
        with ThreadPoolExecutor(32) as writers:
            list(writers.map(lambda item: store.put(*item), objects))


def long_ledger(uri: str, count: int) -> dict[str, float]:
    """Seconds to open a ledger of so many requests and to append one to it, without segments and with them."""
    store = Store(uri)
    fill(store, count)
    took: dict[str, float] = {}

    def timed(name: str, began: float) -> None:
        took[name] = time.perf_counter() - began

    began = time.perf_counter()
    ledger = read_ledger(Store(uri))
    timed("open, without segments", began)
    assert ledger.position == count
    began = time.perf_counter()
    compact(store, ledger)
    timed("write its segments", began)
    began = time.perf_counter()
    ledger = read_ledger(Store(uri))
    timed("open", began)
    began = time.perf_counter()
    append(store, {(0, 1): ["the last"]}, "", "the last", ledger)
    timed("append to it", began)
    return took


def findings(name: str, seconds: list[float], took: float) -> list[_measure.Finding]:
    """What one way of appending showed."""
    return [
        _measure.Finding(name=f"append, {name}: median", value=1e3 * _measure.percentile(seconds, 50), unit="ms"),
        _measure.Finding(
            name=f"append, {name}: 99th percentile", value=1e3 * _measure.percentile(seconds, 99), unit="ms"
        ),
        _measure.Finding(name=f"append, {name}: all {len(seconds)}", value=took, unit="s"),
    ]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--storage-path", help="a folder or URI; by default a temporary folder")
    parser.add_argument("--requests", type=int, default=2000, help="that eight processes append; one appends a tenth")
    parser.add_argument("--long", type=int, default=100_000, help="requests of the ledger that is opened")


def main() -> None:
    arguments = _measure.parse_arguments(__doc__, add_options)
    if arguments.quick:
        arguments.requests, arguments.long = 80, 2000
    before = _measure.machine()
    with ExitStack() as stack:
        place = arguments.storage_path or stack.enter_context(tempfile.TemporaryDirectory())
        stamp = secrets.token_hex(4)  # of its own, so that it can be run again on the same bucket

        def uri(name: str) -> str:
            return join_run(place, f"ledger-{stamp}-{name}")

        alone = in_processes(uri("one"), 1, arguments.requests // 10)
        together = in_processes(uri("eight"), NUM_PROCESSES, arguments.requests)
        opened = long_ledger(uri("long"), arguments.long)
    long = f"a ledger of {arguments.long:,}"
    _measure.report(
        question=QUESTION,
        findings=[
            *findings("one process", *alone),
            *findings("8 processes", *together),
            *(
                _measure.Finding(name=f"{long}: {name}", value=took, unit="s", **(BOUNDS if name == "open" else {}))
                for name, took in opened.items()
            ),
        ],
        arguments=arguments,
        raw={"alone": alone, "together": together, "long": opened},
        settings={
            "requests": arguments.requests,
            "long": arguments.long,
            "kind": place.partition("://")[0] if "://" in place else "folder",
        },
        before=before,
    )


if __name__ == "__main__":
    main()
