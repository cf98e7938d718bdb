"""How large a run can be planned on one machine?

Placement of all samples, grouping by shard, order within a shard, digests of all slices, stage keys and plan, as
`ingest` and `reconcile` do them, in a process of its own whose peak memory is read at the end. Digests of rows are
made up, since taking them is reading the data.

Target: 10 million samples on 1,000 shards x 20 slices in under 30 s and 4 GB; of that, the chains and the plan of
20,000 stages in under 1 s.

    python benchmarks/planning.py
    python benchmarks/planning.py --samples 50000000 --shards 5000
    python benchmarks/planning.py --quick --json planning.json
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import _measure
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_sisa.config import PlacementConfig, Recipe, TrainingRecipe
from ray_sisa.index import ROW_BYTES, ShardIndex, SliceSummary
from ray_sisa.lineage import make_chain, plan, recipe_digest
from ray_sisa.placement import group_by_shard, place
from ray_sisa.slices import order_in_shard

QUESTION = "Time and memory to plan a run: placement, slice digests, stage keys, plan"
SHAPE = (32, 32, 3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """What is planned."""

    samples: int
    shards: int
    slices: int


@dataclass(kw_only=True, slots=True)
class Planned:
    """Seconds by step, and what came of it."""

    seconds: dict[str, float] = field(default_factory=dict)
    cpu_seconds: float = 0.0
    num_stages: int = 0
    peak_bytes: int = 0

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began, cpu_began = time.perf_counter(), time.process_time()
        yield
        self.cpu_seconds += time.process_time() - cpu_began
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


def plan_run(size: Size, answer: Connection) -> None:
    """Plans a run and answers with what it took; in a process of its own, for its peak memory."""
    placement = PlacementConfig(shards=size.shards, slices=size.slices, key="benchmark")
    ids = make_ids(size.samples)
    row_digests = np.random.default_rng(0).integers(0, 256, (size.samples, ROW_BYTES), dtype=np.uint8)
    planned = Planned()
    with planned.step("placement"):
        places = place(placement, ids)
    with planned.step("grouping by shard"):
        rows_of_shard = group_by_shard(placement, places)
    slices = places % size.slices + 1
    summaries = [summarise(planned, size, ids, row_digests, slices, rows) for rows in rows_of_shard]
    planned.num_stages = plan_stages(planned, size, summaries)
    planned.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    answer.send(planned)


def summarise(
    planned: Planned, size: Size, ids: pa.StringArray, row_digests: np.ndarray, slices: np.ndarray, rows: np.ndarray
) -> tuple[SliceSummary, ...]:
    """Slices 1..R of a shard, as `ingest` finds them."""
    with planned.step("order in shards"):
        rows = rows[order_in_shard(ids.take(pa.array(rows)), slices[rows])]
        ordered_ids = ids.take(pa.array(rows))
        index = ShardIndex(slices=slices[rows], ids=ordered_ids, subjects=ordered_ids, row_digests=row_digests[rows])
    with planned.step("slice digests"):
        return index.summaries(size.slices, SHAPE)


def plan_stages(planned: Planned, size: Size, summaries: Sequence[tuple[SliceSummary, ...]]) -> int:
    """How many stages are missing from an empty store."""
    training = make_training(size.slices)
    recipe = recipe_digest(training)
    with planned.step("stage keys"):
        chains = [make_chain(training, recipe, shard, slices) for shard, slices in enumerate(summaries)]
    with planned.step("plan"):
        missing = plan(chains, frozenset())
    return sum(len(chain.stages) for chain in missing)


def make_ids(num_samples: int) -> pa.StringArray:
    """sample-00000000 and on, without ever holding them as Python strings."""
    numbers = pc.utf8_lpad(pa.array(np.arange(num_samples)).cast(pa.string()), 8, "0")
    return pc.binary_join_element_wise("sample-", numbers, "")


def make_training(num_slices: int) -> TrainingRecipe:
    return TrainingRecipe(
        recipe=Recipe(model="resnet20", epochs_per_slice=1),
        model_code=None,
        initial_weights=None,
        num_classes=100,
        image_shape=SHAPE,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        epochs=(1,) * num_slices,
    )


def in_own_process(size: Size) -> Planned:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=plan_run, args=(size, theirs))
    process.start()
    theirs.close()  # so that a process that dies ends the wait
    planned: Planned = ours.recv()
    process.join()
    return planned


def compare(planned: Planned) -> list[_measure.Finding]:
    steps = [_measure.Finding(name=name, value=seconds, unit="s") for name, seconds in planned.seconds.items()]
    keys_and_plan = planned.seconds["stage keys"] + planned.seconds["plan"]
    return [
        *steps,
        _measure.Finding(name="all", value=sum(planned.seconds.values()), unit="s", at_most=30),
        _measure.Finding(name="all, time of the processor", value=planned.cpu_seconds, unit="s"),
        _measure.Finding(name="stage keys and plan", value=keys_and_plan, unit="s", at_most=1),
        _measure.Finding(name="peak memory of the process", value=planned.peak_bytes / 1e9, unit="GB", at_most=4),
    ]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--shards", type=int, default=1_000)
    parser.add_argument("--slices", type=int, default=20)


def main() -> None:
    arguments = _measure.parse_arguments(__doc__, add_options)
    size = Size(samples=arguments.samples, shards=arguments.shards, slices=arguments.slices)
    if arguments.quick:
        size = Size(samples=100_000, shards=50, slices=20)
    before = _measure.machine()
    planned = in_own_process(size)
    print(f"{size.samples:,} samples, {size.shards:,} shards x {size.slices} slices: {planned.num_stages:,} stages")
    _measure.report(
        question=QUESTION,
        findings=compare(planned),
        arguments=arguments,
        raw={
            "seconds": planned.seconds,
            "cpu_seconds": planned.cpu_seconds,
            "peak_bytes": planned.peak_bytes,
            "stages": planned.num_stages,
        },
        settings={"samples": size.samples, "shards": size.shards, "slices": size.slices},
        before=before,
    )


if __name__ == "__main__":
    main()
