"""The three sizes of the model-inversion study: `smoke` for tests, `cpu` for two cores, `gpu` for the whole of it.

The arms are the same in all; sizes, seeds and epochs differ. Recipes are the original's where it is said so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray_sisa.inversion.white_box import SearchConfig

PLAIN: dict[str, Any] = {
    "schedule": "constant",
    "batch_size": 32,
    "optimizer": {"name": "adam", "lr": 1e-3},
    "precision": "bfloat16",
}
"""The original's way to train a target: Adam at Keras' rate, batches of 32."""
PRIVATE: dict[str, Any] = {**PLAIN, "optimizer": {"name": "adam", "lr": 5e-3}}
"""The original's way to train one with DP-SGD, but for its noise."""
MAX_GRAD_NORM = 1.0
"""What it clips to."""
KERNEL = "kernel"
STUDY: dict[str, Any] = {"style": "study", "epochs": 100}
"""The original's attacker."""
SEARCH = SearchConfig()
"""Of an attacker that knows the weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A size of the study."""

    name: str
    num_train: int | None = 11_000
    """Images of the evaluation set that targets are trained on, the rest validates; None for five of six."""
    num_images: int | None = None
    """How many images of each role are used, drawn at random; all by default."""
    noise_multipliers: tuple[float, ...] = (0.7, 0.5, 0.3)
    faithful_side: int = 105
    """Pixels a side of the faithful arm's targets without privacy; the original has 105."""
    faithful_private_side: int = 105
    """Of its targets with DP-SGD, and of those trained as the original trained its private ones."""
    faithful_epochs: int = 10
    faithful_private_epochs: int = 24
    """The original's 20 epochs of 13,180 / 32 steps, in epochs of the 11,000 images that they were drawn from."""
    side: int = 105
    """Pixels a side in the honest arm and on SISA."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    honest_noise_multipliers: tuple[float, ...] = (0.7, 0.5, 0.3)
    precision: str = "bfloat16"
    """Of the honest arm and on SISA; on a CPU small maps are faster in float32."""
    epochs: int = 10
    private_epochs: int = 20
    faithful_attackers: tuple[dict[str, Any], ...]
    """The original's first."""
    attackers: tuple[dict[str, Any], ...]
    """Of the honest arm. What is concluded is of the first, which attacks under every seed, and on SISA; the others
    attack some targets of the first seed."""
    check_every: int = 16
    """Steps between two looks at the accuracy of an encoder that is stopped early."""
    nopeek: tuple[float, ...] = (1.0, 5.0)
    """Weights of the NoPeek penalty."""
    white_box_images: int = 64
    white_box: SearchConfig = SEARCH
    shards: int = 4
    slices: int = 3
    sisa_epochs: int = 6
    num_subjects: int = 16
    """Drawers who ask to be forgotten."""
    private_slices: int = 5
    private_shards: int = 2
    sisa_noise_multiplier: float = 1.0
    sisa_private_epochs: int = 4
    gpus_per_worker: float = 0


SMOKE = Preset(
    name="smoke",
    num_train=None,
    num_images=120,
    noise_multipliers=(0.5,),
    faithful_private_side=35,
    faithful_epochs=1,
    faithful_private_epochs=1,
    side=35,
    seeds=(0,),
    honest_noise_multipliers=(0.5,),
    precision="float32",
    epochs=1,
    private_epochs=1,
    faithful_attackers=({"style": "study", "epochs": 2}, {"style": KERNEL}),
    attackers=({"style": KERNEL}, {"style": "study", "epochs": 2}),
    check_every=1,
    nopeek=(1.0,),
    white_box_images=4,
    white_box=SearchConfig(steps=5),
    shards=2,
    slices=2,
    sisa_epochs=1,
    num_subjects=4,
    private_shards=1,
    private_slices=2,
    sisa_private_epochs=1,
)

CPU = Preset(
    name="cpu",
    faithful_private_side=35,
    side=35,
    seeds=(0, 1, 2),
    honest_noise_multipliers=(0.7, 0.3),
    precision="float32",
    private_epochs=10,
    nopeek=(5.0,),
    faithful_attackers=(STUDY, {"style": KERNEL}),
    attackers=({"style": KERNEL}, STUDY),
)

GPU = Preset(
    name="gpu",
    faithful_attackers=(STUDY, {"style": KERNEL}),
    attackers=({"style": KERNEL}, STUDY, {"style": "wide"}),
    gpus_per_worker=0.25,
)

PRESETS = {preset.name: preset for preset in (SMOKE, CPU, GPU)}


def without_privacy(model: str, epochs: int, precision: str = PLAIN["precision"]) -> dict[str, Any]:
    """The recipe of a target that is trained without privacy."""
    return {**PLAIN, "precision": precision, "model": model, "epochs_per_slice": epochs}


def as_original(epochs: int) -> dict[str, Any]:
    """The recipe of a target that is trained as the original trained its private ones, but for clipping and noise."""
    return {**PRIVATE, "model": "split_convnet_no_dropout", "epochs_per_slice": epochs}


def with_dp_sgd(
    model: str, epochs: int, noise_multiplier: float, precision: str = PLAIN["precision"]
) -> dict[str, Any]:
    """The recipe of a target that is trained with DP-SGD, at the original's rate, clipping and delta."""
    return {
        **PRIVATE,
        "precision": precision,
        "model": model,
        "epochs_per_slice": epochs,
        "dp": {"noise_multiplier": noise_multiplier, "max_grad_norm": MAX_GRAD_NORM, "delta": 1e-5},
    }
