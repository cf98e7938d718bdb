"""How much of the hardware's speed does training a stage keep?

Three loops train ResNet-20 on 32 x 32 x 3 images of 100 classes (batch 128, SGD with Nesterov momentum), in turns:
`training.train_stage` on uint8 images with shuffling, random crop, flip and normalisation; a bare loop over random
float batches that lie ready in memory, with the optimiser that is fastest here; and the usual loop over a torchvision
dataset and a DataLoader, of which train_stage has no part.

Target: train_stage keeps at least 0.95 of the images/s of the bare loop under the same determinism (float32 and
bfloat16, 1 thread on a CPU). The bare loop without determinism and the DataLoader are told beside it, without a target;
so is the ratio per second of the processor, which others on the machine hardly move.

    python benchmarks/training_step.py
    python benchmarks/training_step.py --device cuda
    python benchmarks/training_step.py --quick --json step.json
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import _measure
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from ray_sisa import models, training
from ray_sisa.config import OptimizerConfig, Recipe, TrainingRecipe

QUESTION = "Images/s of train_stage against a bare loop over resident tensors (ResNet-20, CIFAR-100 shapes, batch 128)"
SHAPE, NUM_CLASSES, BATCH = (32, 32, 3), 100, 128
MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
KEY = "benchmark"
Loop = Callable[[int], int]
MOST_BATCHES = 391  # an epoch of 50,000 images
MOST_RESIDENT = 64  # float batches of the bare loop; more would measure memory, not training


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Where and how long to train."""

    device: str
    threads: int
    seconds: float
    repetitions: int
    workers: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """Images per second, and per second that the processor gave this process: on a busy machine they differ."""

    wall: float
    cpu: float


Speeds = dict[str, list[Speed]]


def make_recipe(precision: str, threads: int) -> TrainingRecipe:
    optimizer = OptimizerConfig(lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    recipe = Recipe(
        model="resnet20",
        optimizer=optimizer,
        epochs_per_slice=1,
        batch_size=BATCH,
        augment=("crop", "flip"),
        precision=precision,
        threads=threads,
    )
    return TrainingRecipe(
        recipe=recipe,
        model_code=None,
        initial_weights=None,
        num_classes=NUM_CLASSES,
        image_shape=SHAPE,
        mean=MEAN,
        std=STD,
        epochs=(1,),
    )


# --- the three loops: each trains about `num_batches`, is done when the device is, and returns how many it trained


def stage(recipe: TrainingRecipe, start: training.Weights, device: str, num_batches: int) -> int:
    epochs, per_epoch = split(num_batches)
    steps = training.train_stage(
        start=start, samples=random_images(per_epoch), training=recipe, key=KEY, epochs=epochs, device=device
    )
    training.to_end(steps)  # the weights come back to the CPU, so the device has ended its work
    return epochs * per_epoch


def bare(
    recipe: TrainingRecipe, start: training.Weights, device: str, num_batches: int, *, kind: str, deterministic: bool
) -> int:
    with conditions(recipe.recipe.threads, deterministic):
        step = make_step(recipe, load(recipe, start, device), kind)
        for images, labels in itertools.islice(itertools.cycle(resident_batches(device)), num_batches):
            step(images, labels)
        synchronise(device)
    return num_batches


def with_loader(
    recipe: TrainingRecipe, start: training.Weights, device: str, num_batches: int, *, kind: str, workers: int
) -> int:
    epochs, per_epoch = split(num_batches)
    with conditions(recipe.recipe.threads, deterministic=False):
        step = make_step(recipe, load(recipe, start, device), kind)
        loader = DataLoader(
            AugmentedImages(random_images(per_epoch)),
            batch_size=BATCH,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.startswith("cuda"),
            multiprocessing_context="fork" if workers else None,
        )
        for images, labels in itertools.chain.from_iterable(itertools.repeat(loader, epochs)):
            channels_last = images.to(device, non_blocking=True, memory_format=torch.channels_last)
            step(channels_last, labels.to(device, non_blocking=True))
        synchronise(device)
    return epochs * per_epoch


def split(num_batches: int) -> tuple[int, int]:
    """Epochs, and batches an epoch: a fast device sees a set of CIFAR's size several times."""
    epochs = -(-num_batches // MOST_BATCHES)
    return epochs, -(-num_batches // epochs)


class AugmentedImages(Dataset):
    """CIFAR as torchvision gives it: PIL images through the customary transforms."""

    def __init__(self, samples: training.LabelledImages) -> None:
        self._samples = samples
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(32, 4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self._samples.labels)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return self._transform(Image.fromarray(self._samples.images[row])), int(self._samples.labels[row])


def load(recipe: TrainingRecipe, start: training.Weights, device: str) -> torch.nn.Module:
    model = models.build(recipe)
    model.load_state_dict(start)
    return model.to(device=device, memory_format=torch.channels_last).train()


def make_step(
    recipe: TrainingRecipe, model: torch.nn.Module, kind: str
) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """What any loop must do with a batch, and no more: no metrics, no schedule."""
    config = recipe.recipe.optimizer
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
        **{kind: True},
    )
    autocast = recipe.recipe.precision == "bfloat16"

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def random_images(num_batches: int) -> training.LabelledImages:
    everything, rows = _random_images(), num_batches * BATCH
    return training.LabelledImages(images=everything.images[:rows], labels=everything.labels[:rows])


@functools.cache
def _random_images() -> training.LabelledImages:
    generator, rows = np.random.default_rng(0), MOST_BATCHES * BATCH
    images = generator.integers(0, 256, (rows, *SHAPE), dtype=np.uint8)
    return training.LabelledImages(images=images, labels=generator.integers(0, NUM_CLASSES, rows))


@functools.cache
def resident_batches(device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    height, width, channels = SHAPE
    return [
        (
            torch.randn(BATCH, channels, height, width, generator=generator)
            .contiguous(memory_format=torch.channels_last)
            .to(device),
            torch.randint(0, NUM_CLASSES, (BATCH,), generator=generator).to(device),
        )
        for _ in range(MOST_RESIDENT)
    ]


@contextlib.contextmanager
def conditions(threads: int, deterministic: bool) -> Iterator[None]:
    """Threads and determinism as train_stage sets them, or the defaults of PyTorch; put back after."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = torch.get_num_threads(), cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    try:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        cudnn.benchmark = not deterministic
        if deterministic:
            cudnn.allow_tf32 = matmul.allow_tf32 = False
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(before[0])
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before[1:]


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


# --- what is measured


def measure_speed(loop: Loop, num_batches: int) -> Speed:
    began, cpu_began = time.perf_counter(), time.process_time()
    images = loop(num_batches) * BATCH
    return Speed(wall=images / (time.perf_counter() - began), cpu=images / (time.process_time() - cpu_began))


def measure(precision: str, settings: Settings) -> tuple[list[_measure.Finding], Speeds, dict[str, int]]:
    """Findings, speeds by leg and repetition, and batches by leg, at one precision."""
    print(f"{precision} on {settings.device}, {settings.threads} thread(s)", file=sys.stderr)
    recipe = make_recipe(precision, settings.threads)
    arguments = (recipe, training.initial_state(recipe, KEY, None), settings.device)
    _random_images(), resident_batches(settings.device)  # made now, in nobody's time
    loops: dict[str, Loop] = {"stage": functools.partial(stage, *arguments)}
    for kind in ("fused", "foreach"):
        loops[f"bare {kind}"] = functools.partial(bare, *arguments, kind=kind, deterministic=True)
    loops["bare, not deterministic"] = functools.partial(bare, *arguments, kind="fused", deterministic=False)
    for workers in settings.workers if precision == "float32" else ():
        loops[f"DataLoader, {workers} workers"] = functools.partial(
            with_loader, *arguments, kind="fused", workers=workers
        )
    sizes = {name: batches_for(loop, settings.seconds) for name, loop in loops.items()}
    legs = {name: functools.partial(measure_speed, loop, sizes[name]) for name, loop in loops.items()}
    speeds = _measure.in_turns(legs, settings.repetitions)
    return compare(precision, speeds, settings.device), speeds, sizes


def batches_for(loop: Loop, seconds: float) -> int:
    """How many batches last `seconds`, found by training ever more of them; warms the loop up."""
    num_batches = 1
    loop(num_batches)
    while True:
        took = num_batches * BATCH / measure_speed(loop, num_batches).wall
        if took > seconds / 4:
            return max(1, round(1.1 * num_batches * seconds / took))
        num_batches *= 2


def compare(precision: str, speeds: Speeds, device: str) -> list[_measure.Finding]:
    wall = {name: [speed.wall for speed in some] for name, some in speeds.items()}
    best = max(("bare fused", "bare foreach"), key=lambda name: statistics.median(wall[name]))
    ratios = [
        _measure.ratio(
            f"{precision}: stage / {name}", wall["stage"], wall[name], **({"at_least": 0.95} if name == best else {})
        )
        for name in wall
        if name != "stage"
    ]
    if device == "cpu":
        cpu = [[speed.cpu for speed in speeds[name]] for name in ("stage", best)]
        ratios.append(_measure.ratio(f"{precision}: stage / {best}, per second of the processor", *cpu))
    return [_measure.found(f"{precision}: {name}", values, "img/s") for name, values in wall.items()] + ratios


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of every loop")
    parser.add_argument("--seconds", type=float, default=4.0, help="least time of a leg")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])


def main() -> None:
    arguments = _measure.parse_arguments(__doc__, add_options)
    quick = arguments.quick
    settings = Settings(
        device=arguments.device,
        threads=arguments.threads,
        seconds=0.2 if quick else arguments.seconds,
        repetitions=1 if quick else arguments.repetitions,
        workers=(0,) if quick else (0, 1),
    )
    before = _measure.machine()
    findings: list[_measure.Finding] = []
    raw: dict[str, object] = {}
    sizes: dict[str, object] = {}
    for precision in arguments.precisions:
        new, speeds, sizes[precision] = measure(precision, settings)
        findings += new
        raw[precision] = {name: [asdict(speed) for speed in some] for name, some in speeds.items()}
    _measure.report(
        question=QUESTION,
        findings=findings,
        arguments=arguments,
        raw={"images_per_second": raw},
        settings={
            "batches_per_leg": sizes,
            "batch_size": BATCH,
            "repetitions": settings.repetitions,
            "bare loop": "same threads and determinism as train_stage: use_deterministic_algorithms(True), no "
            "cudnn.benchmark, no TF32; 'not deterministic' has neither, and cudnn.benchmark",
        },
        before=before,
    )


if __name__ == "__main__":
    main()
