"""The black-box attack: a decoder trained on public look-alikes and what the device part returns for them.

The attacker asks and never sees a weight: all that is known of the target is a `Query`. With the same arguments a
decoder is the same in every bit, wherever the environment is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_sisa.digests import derive_seed
from ray_sisa.errors import ConfigError, DataError
from ray_sisa.inversion.decoder import Style, build_decoder
from ray_sisa.training import deterministic

Query = Callable[[np.ndarray], np.ndarray]
"""Images uint8 [N, H, W, C] to what leaves the device for them, float32 [N, ...]."""

_KERAS_EPSILON = 1e-7  # Adam's; torch's is a tenth of it
_AT_ONCE = 256  # images reconstructed together


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """How an attacker's decoder is built and trained.

    Attributes:
        style: `study` for that of the original study, `wide` for a stronger attacker.
        epochs: passes over the public images.
        batch_size: of the public images; the last batch of an epoch may be smaller.
        lr: learning rate of Adam.
        seed: of initial weights and order.
        precision: of the arithmetic while it trains.
        threads: of the CPU; bits depend on it.
        augment: whether to ask about public images turned, mirrored and shifted, others in each epoch, so that what is
            learned holds for other images; None for what the style does: `wide` does, `study` does not.
    """

    style: Style = "wide"
    epochs: int = 100
    batch_size: int = 32
    lr: float = 1e-3
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: int = 1
    augment: bool | None = None

    @property
    def augments(self) -> bool:
        """Whether public images are changed."""
        return self.style == "wide" if self.augment is None else self.augment

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError("decoder", f"{name} {getattr(self, name)}", "must be at least 1", "Correct it")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ConfigError("decoder", f"lr {self.lr}", "must be above 0", "For example 0.001")
        if self.style not in ("study", "wide"):
            raise ConfigError("decoder", f"style {self.style}", "is no style", "Choose study or wide")


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackEpoch:
    """An epoch of a decoder that is being trained."""

    epoch: int
    """From 1."""
    epochs: int
    mse: float
    """Mean over the epoch, as it went, of the squared error of a pixel in 0..1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoder:
    """A trained attacker.

    Attributes:
        network: activations float32 [B, ...] to pixels float32 [B, C, H, W].
        config: how it was trained.
        image_shape: [H, W, C].
        activation_shape: of one image, [D] or [C, H, W].
        mse: of the last epoch.
        device: where it runs.
    """

    network: nn.Module
    config: DecoderConfig
    image_shape: tuple[int, ...]
    activation_shape: tuple[int, ...]
    mse: float
    device: str


def train_decoder(
    query: Query,
    images: np.ndarray,
    config: DecoderConfig,
    *,
    fresh: bool = False,
    device: str = "cpu",
    tell: Callable[[AttackEpoch], None] = lambda epoch: None,
) -> Decoder:
    """Trains an attacker; pixels are scaled to 0..1 for it, however the network normalises them.

    Args:
        query: asked for the activations of public images; again in each epoch where they or the answers change.
        images: public ones, uint8 [N, H, W, C].
        config: the decoder.
        fresh: whether the same image gives other activations each time, so that it pays to ask in each epoch.
        device: where the decoder trains.
        tell: hears each epoch.

    Raises:
        ConfigError: activations from which no decoder leads to an image.
        DataError: images that are none, or answers that are not one finite float32 row an image.
    """
    steps = decoder_epochs(query, images, config, fresh=fresh, device=device)
    while True:
        try:
            tell(next(steps))
        except StopIteration as end:
            decoder: Decoder = end.value
            return decoder


def decoder_epochs(
    query: Query, images: np.ndarray, config: DecoderConfig, *, fresh: bool = False, device: str = "cpu"
) -> Generator[AttackEpoch, None, Decoder]:
    """As `train_decoder`: yields each epoch, returns the attacker."""
    check_images(images)
    activations = ask(query, images)
    with deterministic(config.threads, device):
        torch.manual_seed(derive_seed(str(config.seed), "decoder"))
        network = build_decoder(activations.shape[1:], images.shape[1:], config.style)
        if config.style == "wide":
            network.standardise(torch.from_numpy(activations))
        network = network.to(device)
        optimizer = torch.optim.Adam(network.parameters(), config.lr, eps=_KERAS_EPSILON)
        mse, seen = math.nan, images
        for epoch in range(config.epochs):
            if config.augments:
                seen = changed(images, np.random.default_rng(derive_seed(str(config.seed), f"decoder-images-{epoch}")))
            if config.augments or (fresh and epoch):
                activations = ask(query, seen)
            draws = torch.Generator().manual_seed(derive_seed(str(config.seed), f"decoder-epoch-{epoch}"))
            total = torch.zeros((), dtype=torch.float64, device=device)
            order = torch.randperm(len(images), generator=draws).numpy()
            for start in range(0, len(order), config.batch_size):
                rows = order[start : start + config.batch_size]
                answers, pixels = _batch(activations, seen, rows, device)
                total += _step(network, optimizer, answers, pixels, config).double() * len(rows)
            mse = total.item() / len(images)
            yield AttackEpoch(epoch=epoch + 1, epochs=config.epochs, mse=mse)
    return Decoder(
        network=network.eval(),
        config=config,
        image_shape=images.shape[1:],
        activation_shape=activations.shape[1:],
        mse=mse,
        device=device,
    )


@torch.no_grad()
def reconstruct(decoder: Decoder, activations: np.ndarray) -> np.ndarray:
    """Images float32 [N, H, W, C] in 0..1 that an attacker makes of activations float32 [N, ...].

    Raises:
        DataError: activations of another shape than the attacker learned from.
    """
    if activations.shape[1:] != decoder.activation_shape:
        rule = f"must be of shape {list(decoder.activation_shape)}, which the attacker learned from"
        raise DataError("activations", list(activations.shape[1:]), rule, "Ask the same target")
    made = np.empty((len(activations), *decoder.image_shape), np.float32)
    with deterministic(decoder.config.threads, decoder.device):
        for start in range(0, len(made), _AT_ONCE):
            batch = torch.from_numpy(activations[start : start + _AT_ONCE]).to(decoder.device)
            pixels = decoder.network(batch).float().clamp(0, 1)
            made[start : start + _AT_ONCE] = pixels.permute(0, 2, 3, 1).cpu().numpy()
    return made


def changed(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Each image uint8 [N, H, W, C] turned by right angles, mirrored, and shifted by up to an eighth of its height.

    Images that are not square are turned upside down at most. Edges are repeated where a shift lays bare.
    """
    height, width = images.shape[1:3]
    reach = height // 8
    turns = random.integers(4, size=len(images)) if height == width else 2 * random.integers(2, size=len(images))
    mirrored = random.random(len(images)) < 0.5
    offsets = random.integers(0, 2 * reach + 1, (len(images), 2))
    made = np.empty_like(images)
    for i, image in enumerate(images):
        turned = np.rot90(image, turns[i])
        padded = np.pad(turned[:, ::-1] if mirrored[i] else turned, ((reach, reach), (reach, reach), (0, 0)), "edge")
        down, right = offsets[i]
        made[i] = padded[down : down + height, right : right + width]
    return made


def _step(
    network: nn.Module, optimizer: torch.optim.Optimizer, answers: Tensor, pixels: Tensor, config: DecoderConfig
) -> Tensor:
    with torch.autocast(answers.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        made = network(answers)
    loss = F.mse_loss(made.float(), pixels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


def _batch(activations: np.ndarray, images: np.ndarray, rows: np.ndarray, device: str) -> tuple[Tensor, Tensor]:
    answers = torch.from_numpy(activations[rows]).to(device)
    pixels = torch.from_numpy(images[rows]).to(device).float().div(255).permute(0, 3, 1, 2)
    return answers, pixels


def check_images(images: np.ndarray) -> None:
    """Passes if these are public images.

    Raises:
        DataError: no uint8 [N, H, W, C], or none.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        value = f"{images.dtype} {list(images.shape)}"
        raise DataError("public images", value, "must be uint8 [N, H, W, C], at least one", "Give images")


def ask(query: Query, images: np.ndarray) -> np.ndarray:
    """What leaves the device for images: float32 [N, ...].

    Raises:
        DataError: answers that are not one finite float32 row an image.
    """
    answers = query(images)
    if answers.dtype != np.float32 or answers.ndim < 2 or len(answers) != len(images):
        value = f"{answers.dtype} {list(answers.shape)}"
        raise DataError("activations", value, f"must be float32 [{len(images)}, ...]", "Correct the query")
    if not np.isfinite(answers).all():
        raise DataError("activations", "", "must be finite numbers", "Attack a network that did not diverge")
    return answers
