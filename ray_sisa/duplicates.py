"""Copies of samples: live samples of a run with the very content of others, under ids of their own.

Content is pixels or features, whatever the label; what only looks alike is another sample. Copies are found by reading
the slices, one at a time, since nothing that a store keeps tells which samples are alike.
"""

from __future__ import annotations

from ray_sisa.census import Places
from ray_sisa.keyed_ids import known_as
from ray_sisa.ledger import Ledger
from ray_sisa.lineage import Stage
from ray_sisa.live import LiveSet
from ray_sisa.samples import image_digests
from ray_sisa.store import Store

MAX_BYTES = 1 << 30  # of slices that are read only to tell how many copies there are


def find(store: Store, live: LiveSet, ledger: Ledger, named: Places) -> Places:
    """Live samples with the content of a live sample that is named, and that are not named themselves.

    Args:
        store, live: of the run.
        ledger: what it deletes is neither looked for nor found.
        named: by (shard, slice).

    Raises:
        StoreError: a slice is absent or damaged.
    """
    stages = [stage for chain in live.chains(ledger) for stage in chain.stages]
    present = store.slice_digests()
    wanted = {sample for ids in named.values() for sample in ids}

    def read(stage: Stage) -> list[tuple[str, str]]:
        """Name and content of each sample."""
        samples = live.samples(stage, ledger, present)
        return list(zip(known_as(live.run, samples.ids).to_pylist(), image_digests(samples), strict=True))

    known = {stage.key: read(stage) for stage in stages if (stage.shard, stage.slice) in named}
    content = {digest for rows in known.values() for name, digest in rows if name in wanted}
    copies: Places = {}
    for stage in stages if content else ():
        rows = known.get(stage.key) or read(stage)
        if alike := sorted(name for name, digest in rows if digest in content and name not in wanted):
            copies[stage.shard, stage.slice] = alike
    return copies


def is_quick(store: Store) -> bool:
    """Whether the slices are few enough to be read for nothing but a number."""
    return sum(store.sizes("slices").values()) <= MAX_BYTES
