"""How long after a deletion request arrives does no head carry its samples any more?

A run of 1,000 shards x 20 slices in a local store: 40,000 samples are truly ingested, and all 20,000 stages are truly
committed, with the initial weights of their shard in place of trained ones, which no request reads. Then requests of
one sample each: from the call of `Run.forget` to the rolled-back head in the store, by `Run.unlearn`, which is stopped
as if by a crash at that instant. Likewise for requests that touch many shards.

Target: 100 ms for a request of one sample, at the median and at the 99th percentile, with the run open, as in a
service. Told beside it: `forget` alone, from the acknowledgement of which no reader is served the samples' models; the
same for a process that opens the run anew; and the same once a thousand requests more are in the ledger.

    python benchmarks/time_to_effective.py
    python benchmarks/time_to_effective.py --requests 500 --profile
    python benchmarks/time_to_effective.py --quick --json effective.json
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import multiprocessing
import pstats
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import _measure
import numpy as np

from ray_sisa import data, heads
from ray_sisa.clock import now
from ray_sisa.config import DataConfig, PlacementConfig, Recipe, RunConfig
from ray_sisa.digests import digest_bytes
from ray_sisa.layout import HEADS, LEDGER, RUN, numbered
from ray_sisa.ledger import EMPTY, read_ledger
from ray_sisa.lineage import Chain
from ray_sisa.location import join_run
from ray_sisa.records import Constituent, Head, Place, Request, RunRecord
from ray_sisa.run import Run
from ray_sisa.samples import make_samples
from ray_sisa.store import Store

QUESTION = "Time from a deletion request's arrival to the rolled-back head in the store"
MODEL = "time_to_effective:build_line"
SAMPLES_PER_SLICE = 2
NAME = "run"
ONE = "one sample"


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """What is made and asked."""

    shards: int
    slices: int
    requests: int
    """Of one sample each."""
    wide_requests: int
    """Of a sample in each of many shards, for each number of shards."""
    earlier_requests: int
    """That are in the ledger before the last requests are timed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """One request, in seconds."""

    forget: float
    effective: float
    """From the same start."""


class EffectiveReached(Exception):
    """A head was written."""


class StoppingStore(Store):
    """A store that ends its user, as a crash would, once a head is in it."""

    def create(self, path: str, data: bytes) -> bool:
        created = super().create(path, data)
        if created and path.startswith(f"{HEADS}/"):
            raise EffectiveReached
        return created


# --- the run


def build_line(num_classes: int, image_shape: tuple[int, ...]) -> object:
    """The smallest network: 20,000 of them are stored."""
    from torch import nn

    return nn.Linear(image_shape[0], num_classes)


def make_run(folder: str, size: Size) -> None:
    config = RunConfig(
        name=NAME,
        storage_path=folder,
        data=DataConfig(source="digits"),  # in name: the samples are given
        placement=PlacementConfig(shards=size.shards, slices=size.slices, key="benchmark"),
        recipe=Recipe(model=MODEL, epochs_per_slice=1),
    )
    num_samples = SAMPLES_PER_SLICE * size.shards * size.slices
    generator = np.random.default_rng(0)
    samples = make_samples(
        ids=[f"sample-{row:08d}" for row in range(num_samples)],
        images=generator.standard_normal((num_samples, 2), dtype=np.float32),
        labels=generator.integers(0, 2, num_samples),
    )
    dataset = data.Dataset(train=samples, test=None, num_classes=2, mean=(0.0,), std=(1.0,))
    run = Run.create(config, dataset)
    chains = run.live.chains(read_ledger(run.store))
    constituents = [commit_chain(run, chain) for chain in chains if chain.stages]
    heads.write_head(run.store, constituents, ledger=EMPTY, complete=True)


def commit_chain(run: Run, chain: Chain) -> Constituent:
    """Commits every stage of a chain; the constituent that the last one gives."""
    # Here, since they load torch, which the process that is measured does not need.
    from ray_sisa.stages import commit_stage, environment_of
    from ray_sisa.training import initial_state

    weights = initial_state(run.record.training, chain.initial, None)
    environment = environment_of("cpu", 1)
    records = [commit_stage(run.store, chain, stage, weights, (), 0.0, environment) for stage in chain.stages]
    return heads.constituent(records[-1])


def in_own_process(folder: str, size: Size) -> str:
    """Makes the run and returns its URI, leaving nothing in this process's memory for its collector to go through."""
    process = multiprocessing.get_context("spawn").Process(target=make_run, args=(folder, size))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit("the run could not be made")
    return join_run(folder, NAME)


def open_run(uri: str) -> Run:
    """The run at a URI, in a store that stops its user once a head is written."""
    store = StoppingStore(uri)
    return Run(store, store.read(RUN, RunRecord))


# --- what is measured


def ask(run: Callable[[], Run], samples: Sequence[str]) -> Latency:
    began = time.perf_counter()
    opened = run()
    opened.forget(samples=samples)
    forgotten = time.perf_counter() - began
    try:
        opened.unlearn(runner="local")
    except EffectiveReached:
        return Latency(forget=forgotten, effective=time.perf_counter() - began)
    raise AssertionError("no head was written")


def names_by_shard(run: Run) -> dict[int, Iterator[str]]:
    """The samples of each shard in random order, each to be asked for once."""
    generator = np.random.default_rng(1)
    names: dict[int, Iterator[str]] = {}
    for shard in range(len(run.record.slices)):
        ids = run.live.index(shard).ids.to_pylist()
        if ids:
            names[shard] = iter(generator.permutation(ids).tolist())
    return names


def measure(uri: str, size: Size, profile: bool) -> dict[str, list[Latency]]:
    names = names_by_shard(Run.open(uri))  # of another object, so that the measured one has no index read yet
    generator = np.random.default_rng(2)
    shards = sorted(names)

    def some(num_shards: int) -> list[str]:
        return [next(names[shard]) for shard in generator.choice(shards, num_shards, replace=False).tolist()]

    run = open_run(uri)
    measured: dict[str, list[Latency]] = {}
    with cProfile.Profile() if profile else nullcontext() as profiler:
        measured[ONE] = [ask(lambda: run, some(1)) for _ in range(size.requests)]
    if profiler:
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("cumulative").print_stats(45)
    measured[f"{ONE}, run opened anew"] = [ask(lambda: open_run(uri), some(1)) for _ in range(size.wide_requests)]
    for num_shards in sorted({len(shards) // 10, len(shards)}):
        name = f"{num_shards} shards"
        measured[name] = [ask(lambda: run, some(num_shards)) for _ in range(size.wide_requests)]
    num_asked = sum(len(latencies) for latencies in measured.values())
    check(run, num_heads=num_asked + 1, num_requests=num_asked)
    fill_ledger(run, [some(1) for _ in range(size.earlier_requests)])
    ask(lambda: run, some(1))  # a head that respects them all
    position = read_ledger(run.store).position
    measured[f"{ONE}, {position} requests before"] = [ask(lambda: run, some(1)) for _ in range(size.wide_requests * 2)]
    check(run, num_heads=num_asked + 2 + size.wide_requests * 2, num_requests=position + size.wide_requests * 2)
    return measured


def fill_ledger(run: Run, requests: Sequence[Sequence[str]]) -> None:
    """Appends requests as `ledger.append` does, without reading the ledger again for each."""
    ledger = read_ledger(run.store)
    tip = ledger.tip()
    for number, samples in enumerate(requests, start=ledger.position + 1):
        places = run.locate(samples=samples).places
        request = Request(
            number=number,
            idempotency_key=f"filled-{number}",
            reason="",
            places=tuple(Place(shard=s, slice=r, samples=tuple(ids)) for (s, r), ids in places.items()),
            previous=tip,
            created_at=now(),
        )
        content = request.to_bytes()
        run.store.create(numbered(LEDGER, number), content)
        tip = digest_bytes(content)


def check(run: Run, *, num_heads: int, num_requests: int) -> None:
    """Fails unless each request that was timed gave a head, and the last head is clean of them all."""
    head, ledger = heads.latest_head(run.store), read_ledger(run.store)
    assert head is not None
    assert (head.number, head.ledger, ledger.position) == (num_heads, num_requests, num_requests)
    assert is_clean(head, run)


def is_clean(head: Head, run: Run) -> bool:
    chains = {chain.shard: set(chain.keys) for chain in run.live.chains(read_ledger(run.store))}
    return all(constituent.key in chains[constituent.shard] for constituent in head.constituents)


def compare(measured: dict[str, list[Latency]]) -> list[_measure.Finding]:
    return list(itertools.chain.from_iterable(_findings(name, latencies) for name, latencies in measured.items()))


def _findings(name: str, latencies: Sequence[Latency]) -> list[_measure.Finding]:
    bound = {"at_most": 100.0} if name == ONE else {}
    effective, forget = ([1000 * getattr(latency, kind) for latency in latencies] for kind in ("effective", "forget"))
    return [
        _measure.found(f"{name}: effective, p50", effective, "ms", **bound),
        _measure.Finding(name=f"{name}: effective, p99", value=_measure.percentile(effective, 99), unit="ms", **bound),
        _measure.found(f"{name}: forget alone, p50", forget, "ms"),
        _measure.Finding(name=f"{name}: forget alone, p99", value=_measure.percentile(forget, 99), unit="ms"),
    ]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shards", type=int, default=1_000)
    parser.add_argument("--slices", type=int, default=20)
    parser.add_argument("--requests", type=int, default=100, help="requests of one sample")
    parser.add_argument("--profile", action="store_true", help="tell where their time goes; slows them down")


def main() -> None:
    arguments = _measure.parse_arguments(__doc__, add_options)
    size = Size(
        shards=arguments.shards,
        slices=arguments.slices,
        requests=arguments.requests,
        wide_requests=5,
        earlier_requests=1_000,
    )
    if arguments.quick:
        size = Size(shards=20, slices=5, requests=5, wide_requests=2, earlier_requests=10)
    before = _measure.machine()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        uri = in_own_process(folder, size)
        print(f"run made in {time.perf_counter() - began:.0f} s", file=sys.stderr)
        measured = measure(uri, size, arguments.profile)
    _measure.report(
        question=QUESTION,
        findings=compare(measured),
        arguments=arguments,
        raw={
            name: {"effective_seconds": [one.effective for one in some], "forget_seconds": [one.forget for one in some]}
            for name, some in measured.items()
        },
        settings={"shards": size.shards, "slices": size.slices, "samples_per_slice": SAMPLES_PER_SLICE},
        before=before,
    )


if __name__ == "__main__":
    main()
