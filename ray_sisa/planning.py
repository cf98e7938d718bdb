"""What training or a deletion would cost, computed before it is done. Nothing here trains or writes.

Costs of stages that are known by name are exact; those of random deletions are expected values, equal slices assumed.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from ray_sisa import data, local_path, privacy, private_recipe
from ray_sisa.config import DataConfig, RunConfig, TrainingRecipe
from ray_sisa.errors import RequestError
from ray_sisa.ids import Ids
from ray_sisa.lineage import Chain, Stage, expected_cost, full_cost
from ray_sisa.placement import require_probabilities
from ray_sisa.run import Run
from ray_sisa.spending import account, read_charges

EQUAL_SLICES = "if all slices were equal; hash placement gives somewhat more"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What something costs."""

    sample_passes: int
    full_training_sample_passes: int
    """What training everything from scratch costs."""
    fraction: float
    """The first over the second."""
    stages: float
    """Stages to train; not whole where it is an expected number."""
    storage_bytes: int
    """Samples, features and weights of a complete run, to which test set, indexes and records add little."""
    epsilon: float | None = None
    """Largest that a live sample has afterwards; None without differential privacy, and where it depends on chance."""
    epsilon_note: str | None = None
    """What `epsilon` assumes, where the slices are not known yet."""


def training_plan(
    num_samples: int, num_shards: int, epochs: Sequence[int], storage_bytes: int, epsilon: float | None = None
) -> Plan:
    """Training everything, equal slices assumed.

    Args:
        num_samples: training samples.
        num_shards: S.
        epochs: of the stage of each slice 1..R.
        storage_bytes: of the complete run.
        epsilon: of what is trained.
    """
    passes = full_cost(num_samples, epochs)
    found = _plan(passes, passes, num_shards * len(epochs), storage_bytes, epsilon)
    return found if epsilon is None else replace(found, epsilon_note=EQUAL_SLICES)


def deletion_plan(
    num_samples: int, num_shards: int, epochs: Sequence[int], num_requests: int, storage_bytes: int
) -> Plan:
    """What `num_requests` random deletions in one batch are expected to cost; see `lineage.expected_cost`.

    Raises:
        RequestError: fewer than 1 deletion, or more than there are samples.
    """
    if not 1 <= num_requests <= num_samples:
        rule = f"must be from 1 to the number of samples, {num_samples}"
        raise RequestError("requests", num_requests, rule, "Correct the number")
    num_places = num_shards * len(epochs)
    hit = (1 - (1 - number / num_places) ** num_requests for number in range(1, len(epochs) + 1))
    passes = expected_cost(num_samples, num_shards, epochs, num_requests)
    return _plan(passes, full_cost(num_samples, epochs), num_shards * math.fsum(hit), storage_bytes)


def stages_plan(stages: Iterable[Stage], full: int, storage_bytes: int, epsilon: float | None = None) -> Plan:
    """Training these stages, where training everything costs `full` sample passes."""
    stages = list(stages)
    return _plan(sum(stage.sample_passes for stage in stages), full, len(stages), storage_bytes, epsilon)


def new_stages(before: Iterable[Chain], after: Iterable[Chain]) -> list[Stage]:
    """The stages that a change of the live set asks for and that no chain had before."""
    known = {key for chain in before for key in chain.keys}
    return [stage for chain in after for stage in chain.stages if stage.key not in known]


def plan_config(config: RunConfig, num_requests: int | None = None) -> Plan:
    """Training a run that need not exist yet; or, where their number is given, random deletions from it.

    Samples are counted, and one is read for its shape.

    Raises:
        ConfigError, DataError: a configuration that cannot be run.
        RequestError: a number of deletions that is out of range, or shards that are unequal on purpose.
    """
    from ray_sisa.ingest import resolve_recipe

    if num_requests is not None:
        _check_equal_slices(config, num_requests)
    local_path.check_written_out(config)
    data.check_apart(config.data)
    num_samples = data.count(config.data)
    with tempfile.TemporaryDirectory() as folder:
        dataset = data.load(_one_sample(config.data, Path(folder)))
    require_probabilities(config.placement, dataset.deletion_probabilities)
    training = resolve_recipe(None, config, dataset)
    shards = config.placement.shards
    storage = _storage_bytes(training, num_samples, shards * config.placement.slices)
    if num_requests is None:
        epsilon = _epsilon_of_equal_slices(config, training, num_samples)
        return training_plan(num_samples, shards, training.epochs, storage, epsilon)
    return deletion_plan(num_samples, shards, training.epochs, num_requests, storage)


def plan_next(run: Run) -> Plan:
    """What `train` or `unlearn` would do now."""
    missing = missing_stages(run)
    num_samples = run.live.num_samples(run.ledger())
    spent = run.privacy()
    epsilon = spent.epsilon_at_end if spent else None
    return stages_plan(missing, run.live.full_sample_passes, _run_bytes(run, num_samples), epsilon)


def plan_random_deletions(run: Run, num_requests: int) -> Plan:
    """What random deletions from a run's live samples are expected to cost in one batch.

    Raises:
        RequestError: a number of deletions that is out of range, or shards that are unequal on purpose.
    """
    _check_equal_slices(run.record.config, num_requests)
    num_samples = run.live.num_samples(run.ledger())
    storage = _run_bytes(run, num_samples)
    return deletion_plan(num_samples, len(run.record.slices), run.record.training.epochs, num_requests, storage)


def plan_forgetting(run: Run, *, samples: Ids = (), subjects: Ids = ()) -> Plan:
    """What forgetting these samples would cost, were it asked for now; exact.

    Raises:
        RequestError: nothing is named, or names are unknown.
    """
    found = run.locate(samples=samples, subjects=subjects)
    found.refuse_unknown("unknown ids", "Correct the ids")
    if not found.places:
        raise RequestError("request", "", "names no sample of this run", "Name samples or subjects")
    ledger = run.ledger()
    deleted = ledger.deleted()
    shards = sorted({shard for shard, _ in found.places})
    before = [run.live.chain(shard, deleted.get(shard, set())) for shard in shards]
    num_live = run.live.num_samples(ledger)
    for (shard, _), ids in found.places.items():
        num_live -= len(set(ids) - deleted.get(shard, set()))
        deleted.setdefault(shard, set()).update(ids)
    after = [run.live.chain(shard, deleted[shard]) for shard in shards]
    epsilon = _epsilon_under(run, deleted)
    return stages_plan(new_stages(before, after), run.live.full_sample_passes, _run_bytes(run, num_live), epsilon)


def missing_stages(run: Run) -> list[Stage]:
    """The stages that should exist and do not; none that diverged and is passed over."""
    present = run.store.committed_stages()
    passed = run.store.diverged_stages() if run.record.config.recipe.on_divergence == "exclude" else frozenset()
    chains = [chain.before(passed) for chain in run.live.chains(run.ledger())]
    return [stage for chain in chains for stage in chain.missing(present)]


def _check_equal_slices(config: RunConfig, num_requests: int) -> None:
    if config.placement.strategy == "distribution_aware":
        rule = "is for random deletions from shards of equal size, which distribution_aware placement does not make"
        raise RequestError("requests", num_requests, rule, "Name samples, or use simulation.simulate_requests (Python)")


def _epsilon_of_equal_slices(config: RunConfig, training: TrainingRecipe, num_samples: int) -> float | None:
    """Epsilon of a sample of a first slice, which spends most, if all slices are equal.

    Raises:
        ConfigError: a batch or a delta that training would refuse of such slices.
    """
    num_shards = config.placement.shards
    dp, batch_size = training.recipe.dp, training.recipe.batch_size
    if dp is None:
        return None
    private_recipe.check_sizes(config, _equal_sizes(num_samples, num_shards, len(training.epochs)))
    in_slice = num_samples / (num_shards * len(training.epochs))
    stages = [(max(1, math.floor(number * in_slice)), epochs) for number, epochs in enumerate(training.epochs, start=1)]
    noise = training.noise_multiplier
    if noise is None:
        assert dp.target_epsilon is not None  # a rule of DpConfig
        noise = privacy.solve_noise_multiplier(dp.target_epsilon, [stages], batch_size, dp.delta, dp.accountant)
    mechanisms = [
        privacy.stage_mechanism(num_samples=n, epochs=epochs, batch_size=batch_size, noise_multiplier=noise)
        for n, epochs in stages
    ]
    return privacy.epsilon(mechanisms, dp.delta, dp.accountant).epsilon


def _equal_sizes(num_samples: int, num_shards: int, num_slices: int) -> list[list[int]]:
    """Sizes of slices that differ by one at most, by shard."""
    each, rest = divmod(num_samples, num_shards * num_slices)
    flat = [each + (place < rest) for place in range(num_shards * num_slices)]
    return [flat[shard::num_shards] for shard in range(num_shards)]


def _epsilon_under(run: Run, deleted: Mapping[int, Set[str]]) -> float | None:
    """Epsilon once the run is as it should be without these samples, by shard."""
    if run.record.training.recipe.dp is None:
        return None
    chains = [run.live.chain(shard, deleted.get(shard, set())) for shard in range(len(run.record.slices))]
    present = run.store.committed_stages()
    spent = account(run.record, chains, present, read_charges(run.store))
    return spent.epsilon_at_end if spent else None


def _plan(passes: float, full: float, stages: float, storage_bytes: int, epsilon: float | None = None) -> Plan:
    return Plan(
        sample_passes=round(passes),
        full_training_sample_passes=round(full),
        fraction=passes / full if full else 0.0,
        stages=stages,
        storage_bytes=storage_bytes,
        epsilon=epsilon,
    )


def _run_bytes(run: Run, num_samples: int) -> int:
    return _storage_bytes(run.record.training, num_samples, sum(len(slices) for slices in run.record.slices))


def _storage_bytes(training: TrainingRecipe, num_samples: int, num_stages: int) -> int:
    from ray_sisa import models
    from ray_sisa.backbone import trained_part

    trained = trained_part(training)
    tensors = models.build(trained).state_dict().values()
    weights: int = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    # Images are uint8 [H, W, C], features float32 [D].
    sample = math.prod(training.image_shape) * (1 if len(training.image_shape) == 3 else 4)
    # Float16 [D], beside each sample that a frozen backbone has seen.
    sample += 2 * trained.image_shape[0] if training.is_frozen else 0
    return num_stages * weights + num_samples * sample


def _one_sample(config: DataConfig, folder: Path) -> DataConfig:
    """A source that is quick to load and says all that is fixed for every sample: of Parquet files, the first row."""
    if config.source != "parquet":
        return config
    import pyarrow.parquet

    from ray_sisa import parquet

    assert config.train is not None  # a rule of DataConfig
    pyarrow.parquet.write_table(parquet.first_row(config.train, config.columns), folder / "first.parquet")
    return config.model_copy(update={"train": str(folder / "first.parquet"), "test": None})
