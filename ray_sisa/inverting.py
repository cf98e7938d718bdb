"""Model inversion of a run: what its networks send from a device to a server is intercepted and turned into images.

Each target is one item of the runner. The attacker has public images and asks the device part; it never saw a weight,
unless the white-box attack is asked for. No picture goes into the run's store: numbers alone do.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from ray_sisa import heads, measurements
from ray_sisa.clock import now
from ray_sisa.config import TrainingRecipe
from ray_sisa.digests import derive_seed
from ray_sisa.engine.runner import Runner, RunnerName, device_of, open_runner
from ray_sisa.errors import ConfigError, DataError, StoreError
from ray_sisa.evaluation.accuracy import accuracy
from ray_sisa.evaluation.inversion import Reconstruction, measure
from ray_sisa.inversion.attack import AttackEpoch, DecoderConfig, decoder_epochs, reconstruct
from ray_sisa.inversion.baselines import linear_code, mean_image
from ray_sisa.inversion.cut import CutNetwork
from ray_sisa.inversion.kernel import KernelConfig, check_clusters, fit_kernel
from ray_sisa.inversion.pictures import draw_grid
from ray_sisa.inversion.white_box import SearchConfig, search
from ray_sisa.layout import RUN, UNREACHABLE
from ray_sisa.ledger import Ledger
from ray_sisa.records import Constituent, Head, RunRecord
from ray_sisa.samples import Samples, is_among
from ray_sisa.slices import read_test
from ray_sisa.splitting import ActivationNoise
from ray_sisa.stages import load_stage
from ray_sisa.store import Store
from ray_sisa.training import initial_state, load_network

if TYPE_CHECKING:
    from ray_sisa.run import Run

Targets = Literal["constituents", "ensemble"]
AttackerConfig = DecoderConfig | KernelConfig
RANDOM, CODE, MEAN = "random weights", "linear code", "mean image"
_SHOWN = 12  # victims in a picture

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Networks whose device parts see an image; an attacker intercepts what all of them send."""

    name: str
    keys: tuple[str, ...]
    """Of the stages; of random weights, what they are drawn from."""
    shard: int | None = None
    slice: int | None = None
    is_random: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What the attacks on all targets share.

    `public` and `victims` are uint8 [N, H, W, C], `public_clusters` and `clusters` of the victims [N].
    """

    store: Store
    run: RunRecord
    layer: str
    public: np.ndarray
    public_clusters: np.ndarray
    victims: np.ndarray
    clusters: np.ndarray
    noise: ActivationNoise | None
    decoder: AttackerConfig
    white_box: SearchConfig | None
    device: str

    @property
    def shown(self) -> np.ndarray:
        """Rows of the victims that are drawn, spread evenly."""
        return np.linspace(0, len(self.victims) - 1, min(_SHOWN, len(self.victims))).astype(np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Inverted:
    """What came of the attacks on one target."""

    target: Target
    activation_shape: tuple[int, ...]
    """Of what is intercepted for one image."""
    training_mse: float
    """Of a decoder on the public images, in its last epoch; of `kernel`, on public images that were left out."""
    black_box: Reconstruction
    white_box: Reconstruction | None
    accuracy: float | None
    """Of the target on the run's test set as it is attacked; None without a test set, and of random weights."""
    accuracy_without_noise: float | None
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class InversionReport:
    """Attacks on the targets of one head, and what can be had without attacking them."""

    head: int
    ensemble_digest: str
    layer: str
    noise: str | None
    decoder: AttackerConfig
    white_box: SearchConfig | None
    num_public: int
    num_victims: int
    """Those that are attacked."""
    num_left_out: int
    """Victims that were left out, since they are identical to public images."""
    targets: tuple[Inverted, ...]
    random_weights: Inverted
    """The same attack on the same network before it has learned anything."""
    linear_code: Reconstruction
    """The best linear code of the public images with as many numbers as are intercepted of the first target."""
    mean_image: Reconstruction
    """The mean of the public images, whatever the victim."""
    measured_at: str
    test_samples_in_training: int | None = None
    """Of the test samples on which accuracies are; None where they were not counted when the run was created."""
    ledger: int | None = None
    """Number of the last request that it respects; None in reports that respect what their head does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Trained:
    """An attacker that has learned from public images, and its `training_mse`."""

    decode: Callable[[np.ndarray], np.ndarray]
    mse: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answer:
    """Of one job: the numbers, and the reconstructions that are drawn."""

    inverted: Inverted
    black_box: np.ndarray
    white_box: np.ndarray | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Attacked:
    """All attacks of one head, and what is drawn of them."""

    report: InversionReport
    answers: Sequence[_Answer]
    baselines: Mapping[str, np.ndarray]


def invert(
    run: Run,
    layer: str,
    public: Samples,
    victims: Samples,
    *,
    clusters: Sequence[str] | None,
    public_clusters: Sequence[str] | None,
    targets: Targets,
    noise: ActivationNoise | None,
    decoder: AttackerConfig | None,
    white_box: bool,
    pictures: Path | None,
    runner: RunnerName | Runner,
    tell: Callable[[str, AttackEpoch], None],
) -> InversionReport:
    """Attacks the constituents in force, or all together, and keeps the numbers in the run: see `Run`."""
    check(run.record.training, layer)
    kept, named = _distinct(run.record.training, public, victims, clusters)
    of_public = public.labels if public_clusters is None else np.array(public_clusters)
    if isinstance(decoder, KernelConfig):
        check_clusters(of_public, len(public))
    plan = Plan(
        store=run.store,
        run=run.record,
        layer=layer,
        public=public.images,
        public_clusters=of_public,
        victims=victims.images[kept],
        clusters=named[kept],
        noise=noise,
        decoder=decoder or DecoderConfig(),
        white_box=SearchConfig() if white_box else None,
        device=device_of(run.record.config.scaling),
    )
    measure = functools.partial(_attack_all, run, plan, targets, len(victims) - len(kept), runner, tell)
    to_json = TypeAdapter(InversionReport).dump_json
    found = measurements.keep(run, "inversion", measure, lambda attacked: to_json(attacked.report, indent=1))
    if pictures is not None:
        _draw(pictures, plan, found.answers, {name: images[plan.shown] for name, images in found.baselines.items()})
    return found.report


def _attack_all(
    run: Run,
    plan: Plan,
    targets: Targets,
    num_left_out: int,
    runner: RunnerName | Runner,
    tell: Callable[[str, AttackEpoch], None],
    head: Head,
    ledger: Ledger,
    check_ledger: Callable[[], None],
) -> _Attacked:
    """Attacks who votes under a head and a ledger; `check_ledger` raises once that is behind."""
    constituents = run.in_force(ledger, head)
    heads.check_voters(constituents, run.live.num_samples(ledger))
    wanted = _targets(constituents, targets)
    with open_runner(runner, run.record.config.scaling) as opened:
        check_ledger()  # a runner takes its time to open
        answers = cast(list[_Answer], opened.map(attack, plan, wanted, lambda n, told: tell(wanted[n].name, told)))
    given = _baselines(plan, answers)
    made = _report(plan, run.record, head, ledger, constituents, answers, given, num_left_out)
    return _Attacked(report=made, answers=answers, baselines=given)


def _baselines(plan: Plan, answers: Sequence[_Answer]) -> dict[str, np.ndarray]:
    """What can be had without an attack: the code has as many numbers as are intercepted of the first target."""
    coded = linear_code(plan.public, plan.victims, int(np.prod(answers[0].inverted.activation_shape)))
    return {CODE: coded, MEAN: np.broadcast_to(mean_image(plan.public), plan.victims.shape)}


def _report(
    plan: Plan,
    record: RunRecord,
    head: Head,
    ledger: Ledger,
    constituents: Sequence[Constituent],
    answers: Sequence[_Answer],
    baselines: Mapping[str, np.ndarray],
    num_left_out: int,
) -> InversionReport:
    *attacked, random = (answer.inverted for answer in answers)
    return InversionReport(
        head=head.number,
        ensemble_digest=heads.ensemble_digest(constituents),
        layer=plan.layer,
        noise=None if plan.noise is None else str(plan.noise),
        decoder=plan.decoder,
        white_box=plan.white_box,
        num_public=len(plan.public),
        num_victims=len(plan.victims),
        num_left_out=num_left_out,
        targets=tuple(attacked),
        random_weights=random,
        linear_code=_measure(plan, baselines[CODE]),
        mean_image=_measure(plan, baselines[MEAN]),
        measured_at=now(),
        test_samples_in_training=record.test_samples_in_training,
        ledger=ledger.position,
    )


def check(training: TrainingRecipe, layer: str) -> None:
    """Passes if networks of a recipe can be attacked at a layer.

    Raises:
        ConfigError: they read features, cannot be cut there, or do something else in two parts than in one.
    """
    if training.is_frozen or len(training.image_shape) != 3:
        rule = "has networks that read features, and no image can be told from those by this attack"
        raise ConfigError("inversion", training.recipe.model, rule, "Attack a run that trains on images, as a whole")
    CutNetwork(load_network(training, initial_state(training, "check", None), "cpu"), training, layer)


def attack(plan: Plan, target: Target) -> Generator[AttackEpoch, None, _Answer]:
    """One job: tells each epoch of the attacker."""
    began = time.perf_counter()
    plan.store.get(RUN, UNREACHABLE)  # a node that sees another folder says so, and not that a stage is lost
    asked = _Asked(plan, target)
    noisy = plan.noise is not None
    attacker = yield from _train(plan, asked)
    intercepted = asked.query(plan.victims)
    black_box = attacker.decode(intercepted)
    white_box = None
    if plan.white_box is not None and not target.is_random:
        white_box = search(asked.activations_of, intercepted, mean_image(plan.public), plan.white_box, plan.device)
    inverted = Inverted(
        target=target,
        activation_shape=intercepted.shape[1:],
        training_mse=attacker.mse,
        black_box=_measure(plan, black_box),
        white_box=None if white_box is None else _measure(plan, white_box),
        accuracy=None if target.is_random else asked.accuracy(noisy=noisy),
        accuracy_without_noise=None if target.is_random else asked.accuracy(noisy=False),
        seconds=time.perf_counter() - began,
    )
    shown = plan.shown
    return _Answer(
        inverted=inverted,
        black_box=black_box[shown],
        white_box=None if white_box is None else white_box[shown],
    )


def _train(plan: Plan, asked: _Asked) -> Generator[AttackEpoch, None, _Trained]:
    """The attacker of a plan; one without epochs tells when it has learned."""
    if isinstance(plan.decoder, KernelConfig):
        fitted = fit_kernel(
            asked.query, plan.public, plan.public_clusters, seed=plan.decoder.seed, fresh=plan.noise is not None
        )
        yield AttackEpoch(epoch=1, epochs=1, mse=fitted.mse)
        return _Trained(decode=fitted.predict, mse=fitted.mse)
    noisy = plan.noise is not None
    decoder = yield from decoder_epochs(asked.query, plan.public, plan.decoder, fresh=noisy, device=plan.device)
    return _Trained(decode=functools.partial(reconstruct, decoder), mse=decoder.mse)


class _Asked:
    """The networks of a target, each cut in two; what all of them send is intercepted side by side."""

    def __init__(self, plan: Plan, target: Target) -> None:
        self._plan, self._networks = plan, [_cut(plan, target, key) for key in target.keys]

    def query(self, images: np.ndarray) -> np.ndarray:
        """What leaves the devices for images uint8 [N, H, W, C]: float32 [N, ...]."""
        return np.concatenate([network.activations(images) for network in self._networks], 1)

    def activations_of(self, pixels: Tensor) -> Tensor:
        """The same of pixels in 0..1, without noise, for who has the weights."""
        return torch.cat([network.activations_of(pixels) for network in self._networks], 1)

    def accuracy(self, *, noisy: bool) -> float | None:
        """On the run's test set, by mean probability where there are several networks."""
        digest = self._plan.run.test_digest
        if digest is None:
            return None
        test = read_test(self._plan.store, digest)
        votes = [torch.from_numpy(network.logits(test.images, noisy=noisy)).softmax(1) for network in self._networks]
        return accuracy(torch.stack(votes).mean(0).numpy(), test.labels).top1


def _cut(plan: Plan, target: Target, key: str) -> CutNetwork:
    training = plan.run.training
    weights = initial_state(training, key, None) if target.is_random else load_stage(plan.store, key, training)
    network, seed = load_network(training, weights, plan.device), derive_seed(key, "activation-noise")
    return CutNetwork(network, training, plan.layer, plan.noise, seed=seed, device=plan.device)


def _targets(constituents: Sequence[Constituent], kind: Targets) -> list[Target]:
    """Whom to attack; last, as many networks with random weights as one of them has."""
    if kind == "ensemble":
        found = [Target(name="ensemble", keys=tuple(c.key for c in constituents))]
    else:
        found = [Target(name=f"shard {c.shard}", keys=(c.key,), shard=c.shard, slice=c.slice) for c in constituents]
    drawn = tuple(f"{RANDOM} {number}" for number in range(len(found[0].keys)))
    return [*found, Target(name=RANDOM, keys=drawn, is_random=True)]


def _distinct(
    training: TrainingRecipe, public: Samples, victims: Samples, clusters: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the victims that are no public image, and the cluster of each victim."""
    for name, samples in (("public", public), ("victims", victims)):
        if samples.shape != training.image_shape:
            rule = f"must have the shape that the run was trained on, {list(training.image_shape)}"
            raise DataError(name, list(samples.shape), rule, "Bring the images to one size and mode")
    named = victims.labels if clusters is None else np.array(clusters)
    if named.shape != (len(victims),):
        raise DataError("clusters", list(named.shape), f"must be [{len(victims)}]", "Name one of each victim")
    kept = np.flatnonzero(~is_among(victims, public))
    if len(kept) < len(victims):
        logger.warning("%d victims are identical to public images and are left out", len(victims) - len(kept))
    if not len(kept):
        raise DataError("victims", "0", "has no image that is not public too", "Name other victims")
    return kept, named


def _measure(plan: Plan, made: np.ndarray) -> Reconstruction:
    return measure(plan.victims, made, mean_image=mean_image(plan.public), clusters=plan.clusters)


def _draw(folder: Path, plan: Plan, answers: Sequence[_Answer], baselines: Mapping[str, np.ndarray]) -> None:
    """One picture a target, into a folder of this machine."""
    *attacked, random = answers
    rows = {"original": plan.victims[plan.shown].astype(np.float32) / 255}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for answer in attacked:
            white_box = {} if answer.white_box is None else {"white box": answer.white_box}
            made = {"black box": answer.black_box, **white_box, **baselines, RANDOM: random.black_box}
            name = f"inversion-{answer.inverted.target.name.replace(' ', '-')}.png"
            (folder / name).write_bytes(draw_grid(rows | made))
    except OSError as error:
        raise StoreError("--out", str(folder), f"cannot be written: {error}", "Name another folder") from error
