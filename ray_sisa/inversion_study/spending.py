"""What a run of the study has spent, as a value of its record."""

from __future__ import annotations

from ray_sisa.inversion_study.results import Spending
from ray_sisa.run import Run


def spending_of(run: Run) -> Spending | None:
    """None for a run that is not private."""
    spent = run.privacy()
    if spent is None:
        return None
    placement = run.record.config.placement
    by_place = {(each.shard, each.slice): each.epsilon for each in spent.slices}
    return Spending(
        epsilon=spent.epsilon,
        by_slice=tuple(
            tuple(by_place.get((shard, number), 0.0) for number in range(1, placement.slices + 1))
            for shard in range(placement.shards)
        ),
        delta=spent.delta,
        accountant=spent.accountant,
        noise_multiplier=spent.noise_multiplier,
        label=spent.label,
    )
