"""Reconstructions as grids of pictures: a row a target, a column a victim, as the original's figures have it.

Owns no numbers: arrays of `pictures` in, figures out, drawn pixel by pixel.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ray_sisa.charts import INK, MUTED, STYLE
from ray_sisa.inversion_study.comparison import first_attacker, titles
from ray_sisa.inversion_study.pictures import Pictures, truth_of
from ray_sisa.inversion_study.results import WHITE_BOX, Attacked, Faithful, Honest
from ray_sisa.inversion_study.summary import (
    NOISY,
    NOPEEK,
    PLAIN,
    PRIVATE,
    RANDOM,
    STOPPED,
    attack_on,
    attackers,
    baseline,
    row,
    rows,
)
from ray_sisa.inversion_study.wording import baseline_title, title_of
from ray_sisa.split_convnet import WIDTH

DPI = 100
GAP = 2  # pixels between images
APART = 10  # pixels between unseen victims and seen ones
LABELS, TOP = 5.4, 0.45  # inches
TEXT_SIZE = 15  # pictures are wide, and shown smaller than they are
PAPER = 255
LEAST_SIDE = 70  # smaller images are drawn larger

GridRow = tuple[str, np.ndarray]
"""What was reconstructed from, and images uint8 [N, H, W]."""


def faithful_grid(arm: Faithful, pictures: Pictures, num_unseen: int) -> Figure:
    """The original's figures at one resolution, with what needs no attack above them."""
    found: list[GridRow] = [("original", pictures[arm.truth]), *_baselines(arm, pictures)]
    for target, name in titles(arm).items():
        attack = attack_on(arm.attacks, target, first_attacker(arm))
        if attack is not None:
            found.append((name, pictures[attack.arrays]))
    return draw_grid(found, num_unseen)


def honest_grid(honest: Honest, pictures: Pictures, num_unseen: int) -> Figure:
    """All kinds of targets under the first seed and attacker, a private one beside its controls."""
    found = rows(honest, attackers(honest)[0])
    dials = [r.dial for r in found if r.kind == PRIVATE]
    order: list[tuple[str, float | None]] = [(RANDOM, None), (PLAIN, None)]
    order += [(kind, dial) for dial in dials for kind in (PRIVATE, STOPPED, NOISY)]
    order += [(NOPEEK, r.dial) for r in found if r.kind == NOPEEK]
    shown: list[GridRow] = [("original", pictures[honest.truth]), *_baselines(honest, pictures)]
    for kind, dial in order:
        each = row(found, kind, dial)
        if each is not None:
            shown.append((title_of(each), pictures[each.attacks[0].arrays]))
    return draw_grid(shown, num_unseen)


def white_box_grid(honest: Honest, pictures: Pictures) -> Figure | None:
    """What the attacker that knows the weights found, of victims of its own; None where there was none."""
    found = rows(honest, WHITE_BOX)
    if not found:
        return None
    first: Attacked = found[0].attacks[0]
    shown = [("original", pictures[truth_of(first)])]
    shown += [(title_of(each), pictures[each.attacks[0].arrays]) for each in found]
    columns = np.linspace(0, len(shown[0][1]) - 1, min(16, len(shown[0][1]))).round().astype(int)
    return draw_grid([(name, images[columns]) for name, images in shown], len(columns))


def draw_grid(shown: Sequence[GridRow], num_unseen: int) -> Figure:
    """Rows of as many images each; those from `num_unseen` on stand apart, as seen by the attacker."""
    sheet, middles, ends = lay_out([images for _, images in shown], num_unseen)
    zoom = -(-LEAST_SIDE // shown[0][1].shape[1])
    height, width = (zoom * pixels / DPI for pixels in sheet.shape)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width + LABELS, height + TOP), dpi=DPI)
        whole = (width + LABELS, height + TOP)
        axis = figure.add_axes((LABELS / whole[0], 0, width / whole[0], height / whole[1]))
        axis.imshow(sheet, cmap="gray", vmin=0, vmax=PAPER, interpolation="nearest", aspect="auto")
        axis.set_yticks(middles, [name for name, _ in shown], color=INK)
        axis.set_xticks([])
        axis.tick_params(length=0, labelsize=TEXT_SIZE)
        axis.spines[:].set_visible(False)
        for (start, end), name in zip(ends, ("unseen victims", "seen by the attacker"), strict=False):
            if end > start:
                axis.text(start, -zoom, name, color=MUTED, va="bottom", ha="left", fontsize=TEXT_SIZE)
        return figure


def lay_out(
    shown: Sequence[np.ndarray], num_unseen: int
) -> tuple[np.ndarray, list[float], tuple[tuple[int, int], tuple[int, int]]]:
    """One sheet of all images, uint8 [H, W]; the middle of each row, and from where to where each group reaches."""
    count, height, width = shown[0].shape
    starts = [GAP + i * (width + GAP) + (APART if i >= num_unseen else 0) for i in range(count)]
    sheet = np.full((GAP + len(shown) * (height + GAP), starts[-1] + width + GAP), PAPER, np.uint8)
    middles = []
    for number, images in enumerate(shown):
        top = GAP + number * (height + GAP)
        middles.append(top + height / 2)
        for start, image in zip(starts, images, strict=True):
            sheet[top : top + height, start : start + width] = image
    edges = [*starts, sheet.shape[1]]
    split = min(num_unseen, count)
    return sheet, middles, ((edges[0], edges[split]), (edges[split], edges[-1]))


def _baselines(arm: Faithful | Honest, pictures: Pictures) -> list[GridRow]:
    return [(baseline_title(n, WIDTH), pictures[baseline(arm, n).arrays]) for n in ("mean", "pca")]
