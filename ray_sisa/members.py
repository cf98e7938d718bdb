"""Which samples an evaluation is about: the forget set and what is retained, or training samples of each shard."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ray_sisa import data, stored_sources
from ray_sisa.config import DataConfig
from ray_sisa.errors import RequestError
from ray_sisa.index import digest_rows
from ray_sisa.keyed_ids import key_of, known_as
from ray_sisa.ledger import Ledger
from ray_sisa.live import LiveSet
from ray_sisa.records import Constituent, RunRecord
from ray_sisa.samples import Samples, concatenate
from ray_sisa.slices import read_slice
from ray_sisa.store import Store

if TYPE_CHECKING:
    from ray_sisa.run import Run

ATTACKED_AT_LEAST = 500  # training samples of a shard that are attacked where no forget set is given


@dataclass(frozen=True, kw_only=True, slots=True)
class Members:
    """Samples whose membership is attacked, and the shard that holds or held each, int64 [N]."""

    samples: Samples
    shards: np.ndarray


def shards_to_forget(run: Run, ledger: Ledger, forget: int | Iterable[str]) -> dict[str, int]:
    """The shard of each sample of a forget set, by id: of a request, by its number, or of sample ids.

    Raises:
        RequestError: no such request, or samples that the run never had.
    """
    if isinstance(forget, int):
        if not 1 <= forget <= ledger.position:
            raise RequestError("forget", forget, f"must be a request, 1 to {ledger.position}", "See `ray-sisa status`")
        return {sample: p.shard for p in ledger.requests[forget - 1].places for sample in p.samples}
    found = run.locate(samples=forget)
    found.refuse_unknown("forget", "Correct the ids")
    return {sample: shard for (shard, _), samples in found.places.items() for sample in samples}


def select(
    run: Run,
    ledger: Ledger,
    constituents: Iterable[Constituent],
    shard_of: dict[str, int] | None,
    source: DataConfig | None,
) -> tuple[Members, Samples | None]:
    """The members of an evaluation, and what is retained: of a forget set, read from its source, or of none.

    Raises:
        RequestError: as `forget_and_retain`; or the source is one that the run's record alone names, on a server of its
            choice.
    """
    if shard_of is None:
        return training_members(run.store, run.record, run.live, ledger, constituents), None
    stored = run.record.config.data
    if source is None:
        stored_sources.check(stored, run.store.uri)
    read = source or stored.model_copy(update={"download": False})  # nothing is written where only a record says so
    exif = read.exif or stored.exif  # read as the run was
    everything = data.load_training(read.model_copy(update={"exif": exif}), run.record.training.image_shape)
    return forget_and_retain(run.record, run.live, ledger, shard_of, everything)


def training_members(
    store: Store, run: RunRecord, live: LiveSet, ledger: Ledger, constituents: Iterable[Constituent]
) -> Members:
    """Samples that each voting stage saw, drawn evenly, as many in all as the test set has where that is more.

    Args:
        store: of the run.
        run: its record.
        live: its live set.
        ledger: what is deleted.
        constituents: who votes, at least one.
    """
    each = max(ATTACKED_AT_LEAST, run.num_test_samples // len(run.slices))
    chains = {chain.shard: chain for chain in live.chains(ledger)}
    parts: dict[int, Samples] = {}
    for voter in constituents:
        seen = [stage.slice_digest for stage in chains[voter.shard].stages if stage.slice <= voter.slice]
        samples = concatenate([read_slice(store, digest) for digest in seen])
        rows = np.random.default_rng(voter.shard).permutation(len(samples))[:each]
        parts[voter.shard] = samples.take(np.sort(rows))
    shards = np.repeat(list(parts), [len(part) for part in parts.values()])
    return Members(samples=concatenate(list(parts.values())), shards=shards)


def forget_and_retain(
    run: RunRecord, live: LiveSet, ledger: Ledger, shard_of: dict[str, int], source: Samples
) -> tuple[Members, Samples]:
    """The forget set and the retained set, from where the run was made from: the store has forgotten the former.

    Args:
        run: its record.
        live: its live set.
        ledger: what is deleted is not retained.
        shard_of: the shard that holds or held each sample of the forget set, by id.
        source: samples, those of the run among them.

    Raises:
        RequestError: the source lacks a sample of the forget set, or has another content than the run was made from.
    """
    own = _own(run, live, source)
    forgotten = own.select(set(shard_of))
    ids = forgotten.ids.to_pylist()
    absent = sorted(shard_of.keys() - set(ids))
    if absent:
        _refuse(absent, f"{len(absent)} samples of the forget set are not in it")
    deleted = {sample for samples in ledger.deleted().values() for sample in samples}
    retained = own.select(set(own.ids.to_pylist()) - deleted - shard_of.keys())
    return Members(samples=forgotten, shards=np.array([shard_of[i] for i in ids])), retained


def _own(run: RunRecord, live: LiveSet, source: Samples) -> Samples:
    """Those of the samples of a source that the run was made from, their content compared, as its index names them."""
    known: dict[str, bytes] = {}
    for shard in range(len(run.slices)):
        index = live.index(shard)
        known |= zip(index.ids.to_pylist(), map(bytes, index.row_digests), strict=True)
    key = key_of(run)
    stored = key.of_samples(source) if key else source
    source = replace(stored, ids=known_as(run, stored.ids))
    ids, digests = source.ids.to_pylist(), map(bytes, digest_rows(stored))
    same = {i: known[i] == digest for i, digest in zip(ids, digests, strict=True) if i in known}
    changed = [i for i, equal in same.items() if not equal]
    if changed:
        _refuse(changed, f"has {len(changed)} samples whose content is not what the run was made from")
    return source.select(set(same))


def _refuse(ids: list[str], rule: str) -> None:
    raise RequestError("source", ", ".join(ids[:5]), rule, "Name the data they come from with --source")
