"""A network cut in two as an attacker meets it: its device part is asked, its server part answers what was sent.

It is asked in batches, with arrays in and arrays out. Nothing here trains, attacks or opens a store.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ray_sisa.augment import Normalise
from ray_sisa.config import TrainingRecipe
from ray_sisa.errors import ConfigError
from ray_sisa.splitting import ActivationNoise, NoisyDevice, check_parts, split
from ray_sisa.training import reproducible, to_tensor

_AT_ONCE = 256  # images asked about together
_TRIED = 3  # images of noise that both parts are tried on


class CutNetwork:
    """A network of a recipe, in two parts."""

    def __init__(
        self,
        network: nn.Module,
        training: TrainingRecipe,
        layer: str,
        noise: ActivationNoise | None = None,
        *,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        """Cuts a network that reads images after a layer; noise, drawn from a seed, is added to what is sent.

        Raises:
            ConfigError: it cannot be cut there, or does something else in two parts than in one.
        """
        self._training, self._layer, self._where = training, layer, device
        self._normalise = Normalise(training, device)
        tried = torch.randint(256, (_TRIED, *training.image_shape), generator=torch.Generator().manual_seed(0))
        with reproducible(training, device):
            check_parts(network.eval(), layer, self._normalise(tried.to(torch.uint8).to(device)))
            self._device, self._server = split(network, layer, noise, seed=seed)

    def activations(self, images: np.ndarray) -> np.ndarray:
        """What leaves the device for images uint8 [N, H, W, C]: float32 [N, ...], with noise where there is some.

        Raises:
            ConfigError: neither a vector nor a map for an image.
        """
        return self._in_batches(images, lambda part: self._sent(self._device, self._normalise(part)))

    def activations_of(self, pixels: Tensor) -> Tensor:
        """The same of pixels float32 [B, H, W, C] in 0..1, without noise and with gradients: for who has the weights.

        Raises:
            ConfigError: neither a vector nor a map for an image.
        """
        return self._sent(self._noiseless, self._normalise(pixels * 255)).float()

    def answers(self, activations: np.ndarray) -> np.ndarray:
        """Logits float32 [N, K] of what was sent, float32 [N, ...]."""
        return self._in_batches(activations, self._server)

    def logits(self, images: np.ndarray, *, noisy: bool) -> np.ndarray:
        """Logits float32 [N, K] of images uint8 [N, H, W, C], whether with the noise or without it."""
        device = self._device if noisy else self._noiseless
        return self._in_batches(images, lambda part: self._server(device(self._normalise(part))))

    @property
    def _noiseless(self) -> nn.Module:
        return self._device.part if isinstance(self._device, NoisyDevice) else self._device

    def _sent(self, device: nn.Module, inputs: Tensor) -> Tensor:
        sent = device(inputs)
        if not (isinstance(sent, Tensor) and sent.ndim in (2, 4)):
            rule = "gives neither a vector nor a map for an image"
            raise ConfigError("layer", self._layer, rule, "Cut the network at another layer")
        return sent

    @torch.no_grad()
    def _in_batches(self, rows: np.ndarray, function: Callable[[Tensor], Tensor]) -> np.ndarray:
        found = []
        with reproducible(self._training, self._where):
            for start in range(0, len(rows), _AT_ONCE):
                batch = to_tensor(np.ascontiguousarray(rows[start : start + _AT_ONCE])).to(self._where)
                found.append(function(batch).float().cpu())
        return torch.cat(found).numpy()
