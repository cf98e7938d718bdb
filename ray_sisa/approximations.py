"""Approximations in the store: models made from a stage by approximate methods, each under a name that says by what.

They lie in the folder of their stage, and go with it: a deletion that retires the stage removes them. From that instant
none of them is found any more. Nothing here trains; `approximating` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ray_sisa.approximate.methods import METHODS, AnyMethod
from ray_sisa.census import Places
from ray_sisa.config import TrainingRecipe
from ray_sisa.digests import digest_bytes, digest_json
from ray_sisa.errors import ConfigError, RequestError, StoreError
from ray_sisa.heads import check_voters
from ray_sisa.layout import (
    approximation_record,
    approximation_weights,
    damaged,
    stage_record,
    stage_weights,
    whole_approximations,
)
from ray_sisa.ledger import Ledger
from ray_sisa.lineage import Chain, Stage, recipe_digest
from ray_sisa.live import LiveSet
from ray_sisa.records import Approximation, RunRecord, StageRecord
from ray_sisa.store import Store

if TYPE_CHECKING:
    from torch import Tensor

SEMANTICS = 1  # raised when the same name would give other weights by a change of this package
SHORTEST_PREFIX = 4  # characters of a key


def digest_of_ids(ids: Iterable[str]) -> str:
    """The digest of a forget set, whatever its order."""
    return digest_json(sorted(set(ids)))


def approximation_key(stage: StageRecord, forget_digest: str, method: AnyMethod, training: TrainingRecipe) -> str:
    """The name of what a method makes of a stage, by all that determines it; all its randomness comes from it.

    The stage counts by its weights too: trained again in another environment, it may have others under its own key.
    """
    cause = [stage.key, stage.weights_digest, forget_digest, method.model_dump(mode="json"), recipe_digest(training)]
    return digest_json([*cause, SEMANTICS])


def the_one_stage(store: Store, run: RunRecord, live: LiveSet, ledger: Ledger) -> Stage:
    """The stage of a run that has one shard of one slice, trained and clean.

    Raises:
        ConfigError: it is trained with differential privacy.
        DataError: all its samples are deleted.
        RequestError: a run of more.
        StoreError: it is not trained.
    """
    if run.config.recipe.dp:
        rule = "has no approximation that would be private: approximate methods read samples without noise"
        raise ConfigError("recipe.dp", run.config.name, rule, "Make a run without dp; `unlearn` makes this one forget")
    num_shards, num_slices = len(run.slices), len(run.training.epochs)
    if num_shards > 1 or num_slices > 1:
        rule = f"has {num_shards} shard(s) of {num_slices} slice(s), and approximate methods are for one whole model"
        remedy = "Make a run with placement.shards=1 and placement.slices=1; `unlearn` makes this one forget, exactly"
        raise RequestError("run", run.config.name, rule, remedy)
    (chain,) = live.chains(ledger)
    check_voters(chain.stages, live.num_samples(ledger))
    if not chain.keys or chain.keys[-1] not in store.committed_stages():
        rule = "has no model of its live samples: its training has not ended, or a request is pending"
        raise StoreError("run", store.uri, rule, "Run `ray-sisa unlearn RUN`, which trains too")
    return chain.stages[-1]


def check_live(places: Places, deleted: Mapping[int, set[str]]) -> list[str]:
    """Ids at these places, if there are any and none of them is deleted.

    Raises:
        RequestError: there is none, or some are deleted already.
    """
    ids = sorted(sample for samples in places.values() for sample in samples)
    gone = [i for (shard, _), samples in sorted(places.items()) for i in samples if i in deleted.get(shard, ())]
    if gone:
        rule = f"{len(gone)} of them are deleted already, and no model has seen them since"
        raise RequestError("forget", ", ".join(gone[:5]), rule, "Name live samples")
    if not ids:
        raise RequestError("forget", "", "names no sample", "Name what is to be forgotten")
    return ids


def find(store: Store, stage: str, key: str) -> Approximation | None:
    """The approximation of a name, if it is there with its weights."""
    record = store.find_record(approximation_record(stage, key), Approximation)
    return record if record and approximation_weights(stage, key) in store.sizes(f"stages/{stage}") else None


def find_all(store: Store, chains: Iterable[Chain], training: TrainingRecipe) -> tuple[Approximation, ...]:
    """The approximations made from stages that should exist, in the order in which they were made.

    Raises:
        StoreError: a record is damaged.
    """
    files = store.stage_files()
    found: list[Approximation] = []
    for key in (key for chain in chains for key in chain.keys):
        records = whole_approximations(files.get(key, ()))
        if records and {stage_record(key), stage_weights(key)} <= set(files[key]):
            stage = store.read(stage_record(key), StageRecord)
            each = [store.read(path, Approximation) for path in records]
            found += [one for one in each if is_of(one, stage, training)]
    return tuple(sorted(found, key=lambda one: (one.committed_at, one.key)))


def is_of(approximation: Approximation, stage: StageRecord, training: TrainingRecipe) -> bool:
    """Whether an approximation was made from a stage as it is now, by what its name says."""
    forget, method = approximation.forget_digest, approximation.method
    return approximation_key(stage, forget, method, training) == approximation.key


def choose(found: Sequence[Approximation], wanted: str, forget_digest: str | None) -> Approximation:
    """The one approximation of a key, the beginning of one, or the name of a method.

    Args:
        found: those that there are.
        wanted: which.
        forget_digest: of the forget set that it must have been made for, if one is given.

    Raises:
        RequestError: there is none, or more than one.
    """
    is_key = wanted not in METHODS and len(wanted) >= SHORTEST_PREFIX
    named = [a for a in found if (a.key.startswith(wanted) if is_key else a.method.name == wanted)]
    fitting = [a for a in named if forget_digest in (None, a.forget_digest)]
    if len(fitting) == 1:
        return fitting[0]
    remedy = "Make it with `ray-sisa approximate RUN`; a request that retires its stage removes it"
    if not named:
        raise RequestError("--approximation", wanted, f"is none of the {len(found)} that this run has", remedy)
    keys = ", ".join(f"{a.key[:12]} ({a.method.name})" for a in fitting or named)
    if not fitting:
        raise RequestError("--approximation", wanted, f"was made to forget other samples: {keys}", remedy)
    raise RequestError("--approximation", wanted, f"could be any of {keys}", "Give more of its key, or --forget")


def load(store: Store, approximation: Approximation) -> dict[str, Tensor]:
    """The weights of an approximation, every byte checked against its record.

    Raises:
        StoreError: they are absent, or not what was committed.
    """
    from ray_sisa import weights  # needs torch

    path = approximation_weights(approximation.stage, approximation.key)
    data = store.get(path, damaged(path))
    if digest_bytes(data) != approximation.weights_file_digest:
        rule = f"is not what was committed ({len(data)} bytes, {approximation.weights_bytes} expected)"
        raise StoreError(store.where(path), "", rule, damaged(path))
    return weights.from_bytes(data)
