"""Who plays what in the study: images for the target, for its validation, for the attacker, and the victims.

The original's roles: the evaluation half trains the target, `small1` the attacker, `small2` are the victims. The two
small sets share 1,000 images, Greek and Latin: each set of victims says which of its own the attacker has seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ray_sisa import data
from ray_sisa.config import DataConfig
from ray_sisa.data import Dataset
from ray_sisa.digests import digest_json
from ray_sisa.location import join_run
from ray_sisa.omniglot import shrink
from ray_sisa.samples import Samples, is_among
from ray_sisa.study.samples import digest_of

ORDER_SEED = 0  # of the permutation before the split; the original's records came mixed
NUM_SHOWN = 16
CONSTANTS = {"mean": (0.0,), "std": (1.0,)}  # the original scales pixels to [0, 1] and no more


@dataclass(frozen=True, kw_only=True)
class Roles:
    """The images of a study at one resolution.

    Attributes:
        dataset: what targets are trained and validated on; labels are alphabets, subjects are drawers.
        public: what the attacker trains on.
        victims: what is attacked.
        data: the section `data` of a configuration that says where the first came from.
    """

    dataset: Dataset
    public: Samples
    victims: Samples
    data: dict[str, Any]

    @cached_property
    def seen(self) -> np.ndarray:
        """Which victims are among the public images, bool [N]."""
        return is_among(self.victims, self.public)

    @cached_property
    def shown(self) -> np.ndarray:
        """Rows of the victims whose pictures are kept: the first that the attacker has not seen, then some it has."""
        unseen, seen = np.flatnonzero(~self.seen), np.flatnonzero(self.seen)
        return np.concatenate([_spread(unseen, NUM_SHOWN), _spread(seen, NUM_SHOWN // 2)])

    @cached_property
    def digest(self) -> str:
        """Of all images."""
        assert self.dataset.test is not None  # made below
        parts = (self.dataset.train, self.dataset.test, self.public, self.victims)
        return digest_json([digest_of(part) for part in parts])


def read_roles(section: dict[str, Any], num_train: int | None, num_images: int | None) -> Roles:
    """The roles at full resolution.

    Args:
        section: `data` of a configuration of Omniglot, as by `section_of`.
        num_train: images that train the target, the rest validates; five of six by default.
        num_images: of each role, drawn at random; all by default.

    Raises:
        DataError, ConfigError: data that is not there.
    """
    everything = {name: _read(section, name, num_images) for name in ("evaluation", "small1", "small2")}
    target = everything["evaluation"].train
    count = num_train or len(target) * 5 // 6
    order = np.random.default_rng(ORDER_SEED).permutation(len(target))
    dataset = replace(
        everything["evaluation"],
        train=target.take(np.sort(order[:count])),
        test=target.take(np.sort(order[count:])),
    )
    return Roles(
        dataset=dataset,
        public=everything["small1"].train,
        victims=everything["small2"].train,
        data=_of_split(section, "evaluation"),
    )


def at_side(roles: Roles, side: int) -> Roles:
    """The same images with so many pixels a side, each the mean of those that it stands for."""
    if roles.public.shape[0] == side:
        return roles
    assert roles.dataset.test is not None  # made above
    smaller = replace(roles.dataset, train=shrink(roles.dataset.train, side), test=shrink(roles.dataset.test, side))
    return replace(roles, dataset=smaller, public=shrink(roles.public, side), victims=shrink(roles.victims, side))


def section_of(source: str) -> dict[str, Any]:
    """Section `data` of Omniglot, without `train`: a folder or URI with omniglot/*.parquet, or `torchvision`."""
    if source == "torchvision":
        columns = {"label": "alphabet"}
        return {"source": "torchvision:Omniglot", "root": "data", "download": True, "columns": columns}
    columns = {"id": "id", "image": "img", "label": "alphabet", "subject": "drawer"}
    return {"source": "parquet", "root": join_run(source, "omniglot"), "columns": columns, "num_classes": 50}


def characters(samples: Samples) -> np.ndarray:
    """The character of each image, str [N]: what the bootstrap draws."""
    return np.array([i.rpartition("/")[0] for i in samples.ids.to_pylist()])


def _read(section: dict[str, Any], name: str, num_images: int | None) -> Dataset:
    found = data.load(DataConfig.model_validate({**_of_split(section, name), **CONSTANTS}))
    if num_images is None or num_images >= len(found.train):
        return found
    rows = np.random.default_rng(ORDER_SEED).permutation(len(found.train))[:num_images]
    return replace(found, train=found.train.take(np.sort(rows)))


def _of_split(section: dict[str, Any], name: str) -> dict[str, Any]:
    """The section `data` of one split: a file of the folder, or a part of torchvision's set."""
    if section["source"] != "parquet":
        return {**section, "train": name}
    folder, others = section["root"], {field: value for field, value in section.items() if field != "root"}
    return {**others, "train": join_run(folder, f"{name}.parquet")}


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    """So many of the rows, evenly over their order."""
    count = min(count, len(rows))
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)] if count else rows
