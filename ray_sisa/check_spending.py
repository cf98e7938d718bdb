"""What a check looks at last: the charges of privacy, against the recipe and against what was trained.

It writes nothing. No charge is ever removed, so each training that is known of must have one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ray_sisa.findings import Findings, is_name, wrong
from ray_sisa.layout import SPENT, charges, kind_of, numbered, stage_record, stage_weights
from ray_sisa.ledger import Ledger
from ray_sisa.lineage import Stage
from ray_sisa.live import LiveSet
from ray_sisa.records import Charge, Head, RunRecord
from ray_sisa.spending import charge_of, ever_trained
from ray_sisa.store import Store


def look_at_charges(store: Store, live: LiveSet, ledger: Ledger, heads: Iterable[Head], found: Findings) -> None:
    """Looks at all charges, and for those that are lacking, of a run whose index, ledger and heads are sound."""
    run = live.run
    stages = {stage.key: stage for chain in live.chains(ledger) for stage in chain.stages}
    numbers: dict[str, set[int]] = {}
    for path in sorted(path for path in found.sizes if kind_of(path) == SPENT and is_name(path)):
        key, number = path.removesuffix(".json").split("/")[1:]
        numbers.setdefault(key, set()).add(int(number))
        with found.about(path):
            if run.training.recipe.dp is None:
                raise wrong("is a charge, and the run is not differentially private")
            _agree(store.read(path, Charge), run, stages)
    if run.training.recipe.dp is not None:
        _lacking(numbers, _committed(found) | ever_trained(live, ledger, heads), found)


def _agree(charge: Charge, run: RunRecord, stages: Mapping[str, Stage]) -> None:
    """Passes if a charge is what training a stage of the run writes."""
    if not (0 <= charge.shard < len(run.slices) and 1 <= charge.slice <= len(run.training.epochs)):
        raise wrong(f"is of shard {charge.shard}, slice {charge.slice}, which the run does not have")
    stage = stages.get(charge.key) or _retired(charge, run)
    expected = charge_of(stage, run.training).model_copy(
        update={"number": charge.number, "created_at": charge.created_at}
    )
    for name in Charge.model_fields:
        if getattr(charge, name) != getattr(expected, name):
            raise wrong(f"says {name} {getattr(charge, name)}, not {getattr(expected, name)}")
    if charge.noise == "reproducible" and charge.number > 1:
        raise wrong("charges a stage again whose noise is the same each time")


def _retired(charge: Charge, run: RunRecord) -> Stage:
    """A stage that is no longer wanted, as far as its charge is the only word on it."""
    return Stage(
        shard=charge.shard,
        slice=charge.slice,
        key=charge.key,
        parent="",
        slice_digest="",
        num_samples=charge.num_samples,
        epochs=run.training.epochs[charge.slice - 1],
    )


def _committed(found: Findings) -> set[str]:
    """Keys of the stages that are there."""
    keys = {path.split("/")[1] for path in found.sizes if kind_of(path) == "stages/stage"}
    return {key for key in keys if {stage_record(key), stage_weights(key)} <= found.sizes.keys()}


def _lacking(numbers: Mapping[str, set[int]], trained: Iterable[str], found: Findings) -> None:
    for key in sorted(trained):
        if not numbers.get(key):
            found.add(numbered(charges(key), 1), "is not there, and its stage was trained")
    for key, there in sorted(numbers.items()):
        for number in sorted(set(range(1, max(there))) - there):
            found.add(numbered(charges(key), number), "is not there, and a later charge is")
