"""The picture of an attack: originals, and below each what came of it. Draws in memory, without a window."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

_INCHES = 0.9  # a side of an image
_LABEL_INCHES = 1.6


def draw_grid(rows: Mapping[str, np.ndarray]) -> bytes:
    """A PNG of one row of images for each name, float [K, H, W, C] in 0..1, with as many in each."""
    count = max(len(images) for images in rows.values())
    figure = Figure(figsize=(_LABEL_INCHES + _INCHES * count, _INCHES * len(rows)), dpi=120)
    left = _LABEL_INCHES / (_LABEL_INCHES + _INCHES * count)
    grid = figure.add_gridspec(len(rows), count, left=left, right=1, bottom=0, top=1, wspace=0.06, hspace=0.06)
    for row, (name, images) in enumerate(rows.items()):
        figure.text(left * 0.94, 1 - (row + 0.5) / len(rows), name, ha="right", va="center", fontsize=9, wrap=True)
        for column, image in enumerate(images):
            axes = figure.add_subplot(grid[row, column])
            axes.set(xticks=[], yticks=[])
            grey = image.shape[2] not in (3, 4)
            axes.imshow(image[..., 0] if grey else image, cmap="gray" if grey else None, vmin=0, vmax=1)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None})
    return drawn.getvalue()
