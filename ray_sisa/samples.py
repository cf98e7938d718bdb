"""A batch of training records in memory: the one form in which data passes between modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_sisa.digests import digest_bytes
from ray_sisa.errors import DataError
from ray_sisa.ids import MAX_BYTES, as_text, shown


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """N records.

    Attributes:
        ids: sample ids, unique, string [N].
        subjects: whom each sample belongs to, string [N]; equal to `ids` where nobody else is named.
        images: uint8 [N, H, W, C], or feature vectors float32 [N, D].
        labels: int64 [N].
    """

    ids: pa.StringArray
    subjects: pa.StringArray
    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one record: (H, W, C) or (D,)."""
        return tuple(self.images.shape[1:])

    def take(self, rows: np.ndarray) -> Samples:
        """The records at `rows` (int64 [M]), in that order."""
        picked = pa.array(rows)
        return Samples(
            ids=self.ids.take(picked),
            subjects=self.subjects.take(picked),
            images=self.images[rows],
            labels=self.labels[rows],
        )

    def select(self, ids: Sequence[str] | set[str]) -> Samples:
        """The records with these ids, in the order in which they stand here."""
        wanted = set(ids)
        return self.take(np.flatnonzero([i in wanted for i in self.ids.to_pylist()]))


def make_samples(
    *,
    ids: Sequence[str | int] | pa.StringArray,
    images: np.ndarray,
    labels: np.ndarray | Sequence[int],
    subjects: Sequence[str | int] | pa.StringArray | None = None,
) -> Samples:
    """Samples from plain arrays, checked.

    Raises:
        DataError: ids that repeat or are none, lengths that differ, an image array of another kind than
            uint8 [N, H, W, C] or float32 [N, D], or features that are not finite.
    """
    id_array = _names("id", ids)
    subject_array = id_array if subjects is None else _names("subject", subjects)
    label_array = np.asarray(labels, dtype=np.int64)
    counts = {"ids": len(id_array), "subjects": len(subject_array), "images": len(images), "labels": len(label_array)}
    if len(set(counts.values())) > 1:
        raise DataError("samples", counts, "must have one id, subject, image and label each", "Check the columns")
    kind = (str(images.dtype), images.ndim)
    if kind not in {("uint8", 4), ("float32", 2)}:
        rule = "must be uint8 [N, H, W, C] images or float32 [N, D] features"
        raise DataError("images", f"{images.dtype} {list(images.shape)}", rule, "Convert them before they are given")
    for name, column in (("id", id_array), ("subject", subject_array)):
        if column.null_count:
            raise DataError(name, f"{column.null_count} nulls", "must be given for every sample", "Fill the column")
    if len(id_array.unique()) != len(id_array):
        counted = id_array.value_counts()
        repeated = counted.field("values").filter(pc.greater(counted.field("counts"), 1))
        some = ", ".join(map(shown, repeated[:5].to_pylist()))
        rule = f"must be unique; {len(repeated)} id(s) stand at several samples"
        raise DataError("id", some, rule, "Give each sample its own id, or leave the id column out")
    check_finite(images, "images", lambda row: shown(id_array[row].as_py()))
    return Samples(ids=id_array, subjects=subject_array, images=images, labels=label_array)


def check_finite(features: np.ndarray, field: str, name: Callable[[int], str]) -> None:
    """Passes unless feature vectors float32 [N, D] hold a NaN or an infinity; images uint8 cannot.

    Args:
        features: or images.
        field: what the error calls them.
        name: of a row, for the error.

    Raises:
        DataError: some do; the first row is named.
    """
    if features.dtype.kind != "f":
        return
    bad = np.argwhere(~np.isfinite(features))
    if len(bad):
        row, column = map(int, bad[0][:2])
        num_rows = len(np.unique(bad[:, 0]))
        rule = f"must be finite numbers; {features[row, column]} is number {column} of the first of {num_rows} row(s)"
        raise DataError(field, name(row), rule, "Correct these rows, or leave them out")


def _names(field: str, names: Sequence[str | int] | pa.StringArray) -> pa.StringArray:
    """Ids or subjects as one array; integers become decimal."""
    if not isinstance(names, pa.Array):
        names = [as_text(name, field, DataError) for name in names]
    array = pa.array(names, pa.string())
    sizes = pc.binary_length(array)
    longest = pc.max(sizes).as_py() or 0
    if longest > MAX_BYTES:
        where = shown(array[pc.index(sizes, longest).as_py()].as_py())
        raise DataError(field, where, f"takes {longest} bytes in UTF-8, more than {MAX_BYTES}", "Use a shorter one")
    return array


def concatenate(parts: Sequence[Samples]) -> Samples:
    """All records of `parts` (at least one), in order."""
    if len(parts) == 1:
        return parts[0]
    return Samples(
        ids=pa.concat_arrays([p.ids for p in parts]),
        subjects=pa.concat_arrays([p.subjects for p in parts]),
        images=np.concatenate([p.images for p in parts]),
        labels=np.concatenate([p.labels for p in parts]),
    )


def image_digests(samples: Samples) -> list[str]:
    """A digest of the pixels of each image, whatever its id and label."""
    return [digest_bytes(image.tobytes()) for image in samples.images]


def is_among(samples: Samples, others: Samples) -> np.ndarray:
    """Which images are among others, pixel by pixel, bool [N]; the images of both must have one shape."""
    known = frozenset(image_digests(others))
    return np.array([digest in known for digest in image_digests(samples)], dtype=bool)
