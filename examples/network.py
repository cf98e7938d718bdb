"""A network of one's own: `recipe.model: examples.network:network`. The source of this module is part of every stage's
name, so a change makes another run."""

from __future__ import annotations

from torch import nn


def network(num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    """Two convolutions and a linear layer, for images of (H, W, C)."""
    channels = image_shape[2]
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, num_classes),
    )
