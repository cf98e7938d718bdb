"""All pictures of the model-inversion study with the words around them, and as PNG files beside the record.

Owns their names and captions; what they look like is in `grids` and `figures`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from ray_sisa.inversion_study import figures, grids, original
from ray_sisa.inversion_study.comparison import private_lines
from ray_sisa.inversion_study.pictures import Pictures
from ray_sisa.inversion_study.results import WHITE_BOX, InversionRecord
from ray_sisa.inversion_study.summary import attackers
from ray_sisa.inversion_study.wording import R2, confidence

DPI = 110
LEVELS = 64  # of grey in the file of a grid


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """A picture that follows from a record and its arrays."""

    name: str
    title: str
    text: str
    draw: Callable[[Pictures], Figure | None]
    is_grid: bool = False
    """Whether it is grey alone, so that a few levels will do."""

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{self.name}.png"


def drawings(record: InversionRecord) -> tuple[Drawing, ...]:
    """All of them, in the order of the page."""
    return tuple(_drawings(record))


def png(figure: Figure, *, is_grid: bool = False) -> bytes:
    """A figure as a file's content: the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=figure.dpi if is_grid else DPI, metadata={"Software": None})
    if not is_grid:
        return buffer.getvalue()
    smaller = io.BytesIO()
    with Image.open(buffer) as image:
        image.convert("L").quantize(LEVELS).save(smaller, format="png", optimize=True)
    return smaller.getvalue()


def write_drawings(record: InversionRecord, pictures: Pictures, folder: Path) -> dict[str, bytes]:
    """Writes each picture into a folder; returns the content of each by name."""
    made: dict[str, bytes] = {}
    for drawing in drawings(record):
        figure = drawing.draw(pictures)
        if figure is not None:
            made[drawing.name] = png(figure, is_grid=drawing.is_grid)
            (folder / drawing.file).write_bytes(made[drawing.name])
    return made


def _drawings(record: InversionRecord) -> Iterator[Drawing]:
    honest, sisa, num_unseen = record.honest, record.sisa, record.facts.shown
    yield Drawing(
        name="leakage",
        title="What is leaked, against accuracy",
        text=f"{R2} on unseen victims: zero is the mean image, one the image itself. A point is a target under one "
        "seed; numbers stand at noise multipliers of DP-SGD. A defence is worth its accuracy where it lies below "
        "networks without privacy of the same accuracy.",
        draw=lambda _: figures.leakage(honest),
    )
    yield Drawing(
        name="pairs",
        title="Differences at equal accuracy",
        text=f"Large points with their {confidence()} interval over characters are over all seeds, small ones single "
        "seeds.",
        draw=lambda _: figures.pairs(honest),
    )
    yield Drawing(
        name="honest",
        title="Reconstructions, honest arm",
        text="Under the first seed and the first attacker. Rows of one noise multiplier stand together: a private "
        "network and its controls of the same accuracy.",
        draw=lambda pictures: grids.honest_grid(honest, pictures, num_unseen),
        is_grid=True,
    )
    if WHITE_BOX in attackers(honest):
        yield Drawing(
            name="white-box",
            title="Reconstructions by an attacker that knows the weights",
            text="Inputs are searched whose activations are those intercepted. The victims are others than above, all "
            "unseen.",
            draw=lambda pictures: grids.white_box_grid(honest, pictures),
            is_grid=True,
        )
    yield Drawing(
        name="training",
        title="The original's training, and this one's",
        text="Accuracy of targets without privacy, and error of the attacker on the images that it trains on.",
        draw=lambda _: figures.training([arm for arm in record.faithful if arm.plain]),
    )
    yield Drawing(
        name="private-training",
        title="Clipping and noise, as the original had them and as DP-SGD has them",
        text="With batch normalisation and shuffled batches, which are not private, and with groups and Poisson "
        f"batches, at {record.faithful[-1].side} pixels a side. The original reports accuracies of training images, at "
        f"the end alone, and has {original.SIDE}.",
        draw=lambda _: figures.private_training(private_lines(record)),
    )
    for arm in record.faithful:
        yield Drawing(
            name=f"faithful-{arm.side}",
            title=f"The original's figures, at {arm.side} pixels a side",
            text="Its targets and its attacker, on the same victims as above.",
            draw=partial(grids.faithful_grid, arm, num_unseen=num_unseen),
            is_grid=True,
        )
    yield Drawing(
        name="shards",
        title="The attack on constituents of SISA",
        text=f"Images of subjects that asked to be forgotten, by who held them, with {confidence()} intervals over "
        "characters.",
        draw=lambda _: figures.shards(sisa),
    )
    yield Drawing(
        name="epsilons",
        title="Epsilon by slice, before and after a deletion",
        text="A record of an early slice is in every later stage of its shard; a deletion trains stages again, which "
        "spends again.",
        draw=lambda _: figures.epsilons(sisa.private),
    )
