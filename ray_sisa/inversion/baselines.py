"""What can be had without what is attacked: numbers to hold an attack against.

Learned from public images alone, as the attacker does. A third baseline, the same attack on a network with random
weights, needs nothing of its own here.
"""

from __future__ import annotations

import numpy as np
from threadpoolctl import threadpool_limits


def mean_image(public: np.ndarray) -> np.ndarray:
    """The mean float32 [H, W, C], in 0..1, of images uint8 [N, H, W, C]: the best guess of who sees nothing."""
    mean: np.ndarray = (public.mean(0, dtype=np.float64) / 255).astype(np.float32)
    return mean


def linear_code(public: np.ndarray, images: np.ndarray, width: int, *, seed: int = 0) -> np.ndarray:
    """Images uint8 [M, H, W, C] through a linear code of `width` numbers that fits the public ones best (PCA).

    As wide as what is intercepted, it says what so many numbers could tell; it is no bound on an attack.

    Args:
        public: uint8 [N, H, W, C].
        images: to be coded and decoded.
        width: numbers of the code; at most as many as pixels, and public images, are used.
        seed: of the solver, where it draws.

    Returns:
        float32 [M, H, W, C] in 0..1.
    """
    from sklearn.decomposition import PCA

    known, coded = (part.reshape(len(part), -1).astype(np.float32) / 255 for part in (public, images))
    pca = PCA(min(width, *known.shape), random_state=seed)
    with threadpool_limits(1):  # sums in one order, so that the same images give the same numbers
        made = pca.fit(known).inverse_transform(pca.transform(coded))
    clipped: np.ndarray = np.clip(made, 0, 1).astype(np.float32).reshape(images.shape)
    return clipped
