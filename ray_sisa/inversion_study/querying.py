"""A kept target as an attacker meets it: a device part to ask, and a server part that answers what was sent."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ray_sisa.config import TrainingRecipe
from ray_sisa.inversion.attack import AttackEpoch, DecoderConfig, reconstruct, train_decoder
from ray_sisa.inversion.cut import CutNetwork
from ray_sisa.inversion.kernel import fit_kernel
from ray_sisa.inversion.white_box import SearchConfig, search
from ray_sisa.inversion_study.presets import KERNEL
from ray_sisa.inversion_study.results import Target
from ray_sisa.inversion_study.roles import characters
from ray_sisa.samples import Samples
from ray_sisa.splitting import ActivationNoise
from ray_sisa.study.steps import Steps
from ray_sisa.training import load_network


@dataclass(frozen=True, kw_only=True, slots=True)
class Attacker:
    """An attacker that has learnt, and the target that it asks."""

    decode: Callable[[np.ndarray], np.ndarray]
    ask: Callable[[np.ndarray], np.ndarray]
    mse: tuple[float, ...]
    """By epoch as it trained; of a kernel, the one error of public images that were left out."""

    def reconstruct(self, images: np.ndarray) -> np.ndarray:
        """Images float32 [N, H, W, C] in 0..1 that it makes of what is intercepted of images uint8 [N, H, W, C]."""
        return self.decode(self.ask(images))


class Queried(CutNetwork):
    """A target cut in two."""

    def __init__(
        self, network: nn.Module, training: TrainingRecipe, layer: str, noise: str | None, device: str
    ) -> None:
        """Cuts a network; `noise` is added to what leaves the device."""
        self.noise = ActivationNoise.parse(noise) if noise else None
        super().__init__(network, training, layer, self.noise, device=device)

    @classmethod
    def open(cls, steps: Steps, target: Target, layer: str, noise: str | None = None, device: str = "cpu") -> Queried:
        """The target with the weights that were kept."""
        training = TrainingRecipe.model_validate_json(target.recipe)
        tensors = {name: torch.from_numpy(array.copy()) for name, array in steps.arrays(target.arrays).items()}
        return cls(load_network(training, tensors, device), training, layer, noise, device)

    def attack(self, public: Samples, attacker: dict[str, Any]) -> Attacker:
        """An attacker that has learnt from public images: `style: kernel`, or a decoder's configuration."""
        fresh = self.noise is not None  # where answers are noisy it pays to ask again
        if attacker["style"] == KERNEL:
            fitted = fit_kernel(self.activations, public.images, characters(public), seed=attacker["seed"], fresh=fresh)
            return Attacker(decode=fitted.predict, ask=self.activations, mse=(fitted.mse,))
        config = DecoderConfig(**{"threads": self._training.recipe.threads, **attacker})
        errors: list[float] = []

        def tell(epoch: AttackEpoch) -> None:
            errors.append(epoch.mse)

        made = train_decoder(self.activations, public.images, config, fresh=fresh, device=self._where, tell=tell)
        return Attacker(decode=functools.partial(reconstruct, made), ask=self.activations, mse=tuple(errors))

    def with_noise(self, activations: np.ndarray, noise: str, seed: int) -> np.ndarray:
        """Activations float32 [N, ...] with noise drawn on them."""
        clean = torch.from_numpy(activations)
        drawn = ActivationNoise.parse(noise).draw(clean, torch.Generator().manual_seed(seed))
        noisy: np.ndarray = (clean + drawn).numpy()
        return noisy

    def search(self, victims: np.ndarray, start: np.ndarray, config: SearchConfig) -> np.ndarray:
        """Images float32 [N, H, W, C] in 0..1 whose activations are those of the victims; the weights are known."""
        return search(self.activations_of, self.activations(victims), start, config, device=self._where)
