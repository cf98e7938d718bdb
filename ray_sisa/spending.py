"""The ledger of privacy spent: a charge before each training of a stage, and what they come to, slice by slice.

Charges are kept when their stage is purged: its models were out. What is said of them carries all that it assumes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from ray_sisa.clock import now
from ray_sisa.composition import Mechanism, Spent, compose
from ray_sisa.config import TrainingRecipe
from ray_sisa.defences import DpConfig
from ray_sisa.heads import readable
from ray_sisa.layout import SPENT, charges, kind_of
from ray_sisa.ledger import Ledger
from ray_sisa.lineage import Chain, Stage
from ray_sisa.live import LiveSet
from ray_sisa.privacy import delta_too_large, stage_mechanism
from ray_sisa.private_recipe import seed_too_short
from ray_sisa.records import Charge, Head, RunRecord
from ray_sisa.store import Store

UNIT = "one sample; of a subject with k samples it is k times epsilon, at delta times k exp((k-1) epsilon)"
ADJACENCY = "one sample added or removed, all others placed as they are; how many samples a stage has is public"
SAMPLER = "Poisson: each sample is in each batch with the sampling rate, independently"
SECRETS = {
    "reproducible": "the noise follows from seed and stage key: it holds against those who do not know the seed",
    "secure": "the noise came from the operating system and was not kept",
}
NOT_COVERED = (
    "ids, subjects, placement and numbers of samples",
    "losses and accuracies on training samples, in records and reports",
    "approximate models, which are made without noise",
    "what public weights were trained on",
    "inputs that a model is asked about",
    "requests chosen by what the models said",
    "settings chosen by training several times",
    "digests of data that reports print",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceSpent:
    """What has been spent of each live sample of one slice."""

    shard: int
    slice: int
    epsilon: float
    epsilon_at_end: float
    """With the stages that are still to be trained."""
    charges: int
    """That it was composed of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSpent:
    """Charges of stages that are one mechanism: slice r of a shard, of so many samples, trained so many times."""

    shard: int
    slice: int
    num_samples: int
    sampling_rate: float
    steps: int
    times: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivacySpent:
    """What a run has spent of its live samples, and all that the figure assumes.

    Shards have no sample in common, so the figure of the run is the largest of all, and not the sum.
    """

    epsilon: float
    epsilon_at_end: float
    """With the stages that are still to be trained."""
    delta: float
    accountant: str
    """As configured."""
    method: str
    """By which the largest epsilon was found; see `composition.Spent`."""
    detail: str
    order: float | None
    noise_multiplier: float
    max_grad_norm: float
    noise: str
    batch_size: int
    """Expected samples in a batch."""
    slices: tuple[SliceSpent, ...]
    """By shard and slice; those that have live samples."""
    stages: tuple[StageSpent, ...]
    """What was charged, by shard and slice."""
    doubts: tuple[str, ...]
    """Why the figure is no guarantee; empty where it is one."""
    unit: str = UNIT
    adjacency: str = ADJACENCY
    sampler: str = SAMPLER
    not_covered: tuple[str, ...] = NOT_COVERED

    @property
    def label(self) -> str:
        """The largest epsilon with all that it assumes, in one paragraph."""
        order = f", order {self.order:g}" if self.order else ""
        doubts = f"; NO GUARANTEE: {'; '.join(self.doubts)}" if self.doubts else ""
        return (
            f"epsilon {self.epsilon:.2f} at delta {self.delta:g}{doubts}; unit: {self.unit}; adjacency: "
            f"{self.adjacency}; sampler: {self.sampler}; {self._mechanisms()}; noise multiplier "
            f"{self.noise_multiplier:g}, clipped to {self.max_grad_norm:g}; accountant {self.method}: {self.detail}"
            f"{order}; {self.noise} noise: {SECRETS[self.noise]}; not covered: {', '.join(self.not_covered)}"
        )

    def _mechanisms(self) -> str:
        """Samples, rates and steps of the stages that were charged, as ranges."""
        if not self.stages:
            return "no stage charged"
        samples = _range([stage.num_samples for stage in self.stages])
        rates = _range([stage.sampling_rate for stage in self.stages])
        steps = _range([stage.steps for stage in self.stages])
        times = sum(stage.times for stage in self.stages)
        trainings = "1 training of a stage" if times == 1 else f"{times:,} trainings of stages"
        return f"{trainings} charged, n {samples}, q {rates}, steps {steps}"


def charge(store: Store, stage: Stage, training: TrainingRecipe) -> None:
    """Records what training a stage spends, where the recipe has differential privacy; to be called before.

    With reproducible noise the same stage draws the same noise each time, so it is charged once. With secure noise each
    attempt is another charge, also one that goes on from a saved state: a store that was restored from a backup cannot
    tell whether that state was gone on from before, and another model released.

    A crash right after it leaves a charge for nothing, which is safe.
    """
    dp = training.recipe.dp
    if dp is None:
        return
    numbers = store.numbers(charges(stage.key))
    if numbers and dp.noise == "reproducible":
        return
    record = _charge(stage, training, dp, max(numbers, default=0) + 1)
    # Of two workers with one stage, each draws secure noise of its own; reproducible noise is the same.
    while not store.create(record.path, record.to_bytes()) and dp.noise == "secure":
        record = record.model_copy(update={"number": record.number + 1})


def read_charges(store: Store) -> tuple[Charge, ...]:
    """All charges of a run.

    Raises:
        StoreError: one is damaged.
    """
    paths = sorted(path for path in store.sizes(SPENT) if kind_of(path) == SPENT)
    found = zip(paths, store.find_all(paths), strict=True)
    return tuple(store.parse(path, data, Charge) for path, data in found if data is not None)


def privacy_spent(store: Store, run: RunRecord, live: LiveSet, ledger: Ledger) -> PrivacySpent | None:
    """What a run has spent; None where it is not trained with differential privacy.

    Raises:
        StoreError: a charge is damaged.
    """
    if run.training.recipe.dp is None:
        return None
    # Stages and heads before charges: a charge comes before its stage.
    present, trained = store.committed_stages(), ever_trained(live, ledger, readable(store))
    return account(run, live.chains(ledger), present, read_charges(store), trained)


def ever_trained(live: LiveSet, ledger: Ledger, heads: Iterable[Head]) -> set[str]:
    """Keys of the stages that heads name, and of all stages before them in their chains, purged ones among them.

    A head names the last stage of a shard alone; those before it follow from the requests that the head respects. Not
    among them are stages that a request retired before any head named them or what was trained from them.
    """
    found: set[str] = set()
    for head in heads:
        new = [each for each in head.constituents if each.key not in found]
        deleted = ledger.deleted(head.ledger) if new else {}
        for each in new:
            keys = live.chain(each.shard, deleted.get(each.shard, set())).keys
            found |= {each.key, *keys[: keys.index(each.key)]} if each.key in keys else {each.key}
    return found


def account(
    run: RunRecord,
    chains: Sequence[Chain],
    present: set[str],
    spent: Iterable[Charge],
    trained: Set[str] = frozenset(),
) -> PrivacySpent | None:
    """What charges come to for the samples of chains: pure.

    Args:
        run: whose recipe says delta and accountant.
        chains: of all shards, as they should be.
        present: keys of committed stages; one without a charge is taken to have been charged once.
        spent: all charges.
        trained: keys of stages known to have been trained; one without a charge is a doubt, since it may be gone.
    """
    dp = run.training.recipe.dp
    if dp is None:
        return None
    known = tuple(spent)
    stages = {stage.key: stage for chain in chains for stage in chain.stages}
    charged = {each.key for each in known}
    lost = [stages[key] for key in sorted((present & stages.keys()) - charged)]
    # One that is charged and not there was cut short: secure noise is drawn anew, and charged again.
    settled = present | charged if dp.noise == "reproducible" else present
    planned = [stage for key, stage in stages.items() if key not in settled]
    so_far = [*known, *(charge_of(stage, run.training) for stage in lost)]
    at_end = [*so_far, *(charge_of(stage, run.training) for stage in planned)]
    now_by_place, end_by_place = (_by_place(each, chains, dp) for each in (so_far, at_end))
    worst = max(now_by_place.values(), key=lambda s: s.epsilon, default=_nothing(dp))
    return PrivacySpent(
        epsilon=worst.epsilon,
        epsilon_at_end=max((s.epsilon for s in end_by_place.values()), default=0.0),
        delta=dp.delta,
        accountant=dp.accountant,
        method=worst.method,
        detail=worst.detail,
        order=worst.order,
        noise_multiplier=run.training.noise_multiplier or 0.0,
        max_grad_norm=dp.max_grad_norm,
        noise=dp.noise,
        batch_size=run.training.recipe.batch_size,
        slices=tuple(
            SliceSpent(
                shard=shard,
                slice=number,
                epsilon=found.epsilon,
                epsilon_at_end=end_by_place[shard, number].epsilon,
                charges=sum(each.shard == shard and each.slice >= number for each in so_far),
            )
            for (shard, number), found in now_by_place.items()
        ),
        stages=_stages(so_far),
        doubts=(
            *delta_too_large(dp.delta, sum(c.stages[-1].num_samples for c in chains if c.stages)),
            *seed_too_short(run.training.recipe),
            *_lost(known, present | trained),
        ),
    )


def _lost(known: Sequence[Charge], trained: Set[str]) -> tuple[str, ...]:
    """Says that trainings have no charge left, if any: of stages, and between the numbers of those that are there."""
    numbers: dict[str, set[int]] = {}
    for each in known:
        numbers.setdefault(each.key, set()).add(each.number)
    lost = len(trained - numbers.keys()) + sum(max(there) - len(there) for there in numbers.values())
    if not lost:
        return ()
    has = "training has" if lost == 1 else "trainings have"
    return (f"{lost} {has} no charge left, so more may have been spent: run `ray-sisa check`",)


def charge_of(stage: Stage, training: TrainingRecipe) -> Charge:
    """The first charge of a stage as training it writes it."""
    dp = training.recipe.dp
    assert dp is not None  # else nothing is charged
    return _charge(stage, training, dp, 1)


def mechanism_of(each: Charge) -> Mechanism:
    """What was charged."""
    return Mechanism(sampling_rate=each.sampling_rate, noise_multiplier=each.noise_multiplier, steps=each.steps)


def _charge(stage: Stage, training: TrainingRecipe, dp: DpConfig, number: int) -> Charge:
    batch_size, noise = training.recipe.batch_size, training.noise_multiplier
    assert noise is not None  # resolved when the run was created
    spent = stage_mechanism(
        num_samples=stage.num_samples, epochs=stage.epochs, batch_size=batch_size, noise_multiplier=noise
    )
    return Charge(
        key=stage.key,
        number=number,
        shard=stage.shard,
        slice=stage.slice,
        num_samples=stage.num_samples,
        epochs=stage.epochs,
        batch_size=batch_size,
        sampling_rate=spent.sampling_rate,
        steps=spent.steps,
        noise_multiplier=noise,
        max_grad_norm=dp.max_grad_norm,
        noise=dp.noise,
        created_at=now(),
    )


def _by_place(spent: Sequence[Charge], chains: Sequence[Chain], dp: DpConfig) -> dict[tuple[int, int], Spent]:
    """What is spent of a sample first seen in each slice that has live ones: the charges of its slice and all later."""
    found: dict[tuple[int, int], Spent] = {}
    for chain in chains:
        by_slice: dict[int, list[Mechanism]] = {}
        for each in spent:
            if each.shard == chain.shard:
                by_slice.setdefault(each.slice, []).append(mechanism_of(each))
        found |= _of_a_shard(chain, by_slice, dp)
    return found


def _of_a_shard(
    chain: Chain, by_slice: Mapping[int, Sequence[Mechanism]], dp: DpConfig
) -> dict[tuple[int, int], Spent]:
    numbers = sorted({*by_slice, *(stage.slice for stage in chain.stages)}, reverse=True)
    groups = tuple(tuple(by_slice.get(number, ())) for number in numbers)
    composed = dict(zip(numbers, compose(groups, dp.delta, dp.accountant), strict=True))
    return {(chain.shard, stage.slice): composed[stage.slice] for stage in chain.stages}


def _stages(spent: Iterable[Charge]) -> tuple[StageSpent, ...]:
    times: dict[tuple[int, int, int, float, int], int] = {}
    for each in spent:
        place = (each.shard, each.slice, each.num_samples, each.sampling_rate, each.steps)
        times[place] = times.get(place, 0) + 1
    return tuple(
        StageSpent(shard=shard, slice=number, num_samples=samples, sampling_rate=rate, steps=steps, times=times[place])
        for place in sorted(times)
        for shard, number, samples, rate, steps in [place]
    )


def _nothing(dp: DpConfig) -> Spent:
    return compose([()], dp.delta, dp.accountant)[0]


def _range(numbers: Sequence[float]) -> str:
    low, high = min(numbers), max(numbers)
    return _figure(low) if low == high else f"{_figure(low)} to {_figure(high)}"


def _figure(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:.4g}"
