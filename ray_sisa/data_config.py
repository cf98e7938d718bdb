"""The section `data` of a configuration: where samples come from, and the constants that describe them.

The settings alone: `data.py` reads what they say.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from ray_sisa.section import Section

Exif = Literal["apply", "ignore"]
Count = Annotated[int, Field(ge=1)]


class Columns(Section):
    """Names of the columns of Parquet files."""

    id: str | None = None
    """Column of the sample id; without one the id is a digest of the content."""
    subject: str | None = None
    """Column of the subject; without one each sample is its own subject."""
    image: str = "img"
    """Image column: struct of `bytes` and `path`, binary, or a fixed-shape tensor."""
    features: tuple[str, ...] | None = None
    """Numeric columns to use as a feature vector, in place of an image."""
    label: str = "label"
    """Column of the label; of torchvision's Omniglot `alphabet`, the default, or `character`."""
    deletion_probability: str | None = None
    """Column of the probability that the subject will ask for deletion, floats from 0 to 1, one value a subject."""

    @model_validator(mode="after")
    def _image_or_features(self) -> Columns:
        # `img` stands in every configuration that was written out, whoever named it: only another name tells.
        if self.features is not None and self.image != "img":
            raise ValueError(f"image: {self.image!r} must not be given with features; name one of the two")
        return self


class DataConfig(Section):
    """Where samples come from, and the constants that describe them."""

    added: ClassVar[tuple[str, ...]] = ("allow_overlap", "exif", "channels", "image_size")

    source: str
    """`digits`, `parquet`, or `torchvision:NAME`."""
    train: str | tuple[str, ...] | None = None
    """Parquet files to train on: a file, a folder, a pattern, or a list of these (`parquet_sources.find`).

    Of Omniglot the split: `background` (default), `evaluation`, `small1` or `small2`.
    """
    test: str | tuple[str, ...] | None = None
    """Likewise, to test on; none by default."""
    allow_overlap: bool = False
    """Whether test samples may be training samples too; their number is told wherever the test set is used."""
    root: str | None = None
    """Folder of a torchvision set."""
    download: bool = False
    exif: Exif | None = None
    """Orientation tags of photographs: `apply`, as viewers do, or `ignore`. A run that is created without it applies.

    Fixed for the life of a run, and predictions follow it. Of TIFF files the tag is applied in any case.
    """
    channels: Count | None = None
    """Of images: 3 gives grey ones three equal channels, 1 turns coloured ones grey by their luma.

    Without it, as many as `mean` has values, and coloured images are not turned grey; else all must have the same.
    """
    image_size: Count | tuple[Count, Count] | None = None
    """Height and width of images in pixels, or one number for both; others are refused. Else all must be equal."""
    columns: Columns = Columns()
    num_classes: Count | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None

    @model_validator(mode="after")
    def _source_has_what_it_needs(self) -> DataConfig:
        kind, _, name = self.source.partition(":")
        if kind not in {"digits", "parquet", "torchvision"} or (kind == "torchvision") != bool(name):
            raise ValueError(f"source: {self.source!r} must be digits, parquet or torchvision:NAME")
        if kind != "parquet" and self.source != "torchvision:Omniglot":
            for field in ("train", "test"):
                if value := getattr(self, field):
                    raise ValueError(
                        f"{field}: {value!r} must be left out; {self.source} has its own training and test set"
                    )
        if kind == "parquet" and self.train is None:
            raise ValueError("train: missing; source parquet must name its training files (a file, folder or URI)")
        if kind == "parquet" and self.num_classes is None:
            raise ValueError("num_classes: missing; it is never computed from data that may be deleted, so give it")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean, std: one without the other; give both or neither")
        return self

    @model_validator(mode="after")
    def _only_images_have_channels(self) -> DataConfig:
        if self.columns.features is not None:
            for field in ("channels", "image_size"):
                if value := getattr(self, field):
                    raise ValueError(f"{field}: {value!r} must be left out with columns.features, no images")
        if self.channels is not None and self.mean is not None and len(self.mean) != self.channels:
            raise ValueError(f"mean: {self.mean!r} must have one value for each of the {self.channels} channels")
        return self

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width that images must have, where that is said."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size
