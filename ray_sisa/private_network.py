"""Networks made fit for DP-SGD: no sample may change what the network makes of another.

Batch normalisation becomes group normalisation (Wu and He 2018) of the same tensor names, and nothing works in place.
It trains nothing and needs no Opacus.
"""

from __future__ import annotations

from torch import nn

MOST_GROUPS, LEAST_CHANNELS = 8, 4
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Buffers of batch normalisation that group normalisation does not have."""
_REPLACED = "replaced_batch_norms"
_KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def make_private(model: nn.Module) -> nn.Module:
    """The network, changed: each BatchNorm is a GroupNorm, and no activation works in place.

    Kinds derived from BatchNorm, `SyncBatchNorm` among them, stay as they are, and are refused before anything trains.
    """
    made: dict[nn.Module, nn.GroupNorm] = {}
    names = tuple(name for name, module in model.named_modules() if type(module) in _KINDS)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and type(child) in _KINDS:
                made.setdefault(child, group_norm(child))
                setattr(parent, name, made[child])
            elif getattr(child, "inplace", False) is True:
                child.inplace = False  # type: ignore[union-attr]
    setattr(model, _REPLACED, names)
    return model


def replaced(model: nn.Module) -> tuple[str, ...]:
    """Names of the layers that `make_private` made of BatchNorm."""
    names: tuple[str, ...] = getattr(model, _REPLACED, ())
    return names


def group_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> nn.GroupNorm:
    """A GroupNorm for as many channels, freshly initialised."""
    return nn.GroupNorm(num_groups(layer.num_features), layer.num_features, eps=layer.eps, affine=layer.affine)


def num_groups(channels: int) -> int:
    """The most groups, up to 8, that divide the channels and have 4 or more each; else one.

    One channel a group would leave nothing of a small map: it normalises away what the map says (Opacus #567).
    """
    fitting = (n for n in range(MOST_GROUPS, 1, -1) if channels % n == 0 and channels // n >= LEAST_CHANNELS)
    return next(fitting, 1)
