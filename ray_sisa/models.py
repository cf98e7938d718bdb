"""Networks by name: the registered ones, torchvision's classifiers, and functions of the user's.

Every network takes normalised float32 images [B, C, H, W] or features [B, D] and returns logits [B, num_classes].
Nothing here reads weights, moves a network to a device or seeds a generator. The registered networks use only
operations that are deterministic on CUDA.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sisa import model_code
from ray_sisa.config import TrainingRecipe
from ray_sisa.errors import ConfigError
from ray_sisa.private_network import make_private
from ray_sisa.split_convnet import SPLIT_CONVNETS

_FIELD = "recipe.model"


def build(training: TrainingRecipe) -> nn.Module:
    """The network that a recipe names, float32 on the CPU, randomly initialised from torch's default generator.

    A function of the user's is called as `function(num_classes=..., image_shape=...)`, with the shape (H, W, C) or (D,)
    that reaches the network, after any resizing to `input_size`. For differentially private training its BatchNorm
    layers are replaced: see `private_network`.

    Raises:
        ConfigError: an unknown name, data that the network does not take, a function that fails, one that the caller
            has not allowed, or one whose source is not what the run was created with.
    """
    model = _build(training, _network_shape(training))
    # A frozen backbone sees samples one by one, and only its head trains.
    return make_private(model) if training.recipe.dp and not training.is_frozen else model


def _build(training: TrainingRecipe, shape: tuple[int, ...]) -> nn.Module:
    name, num_classes = training.recipe.model, training.num_classes
    if model_code.is_own(name):
        return _build_custom(name, training.model_code, shape, num_classes)
    _, colon, of_torchvision = name.partition(":")
    if colon:
        return _build_torchvision(of_torchvision, shape, num_classes)
    return _build_registered(name, shape, num_classes)


def head(model: nn.Module) -> str:
    """Name of the last layer, the last `nn.Linear` in module order: the prefix of its tensors, without the dot.

    Asked for only where the last layer is treated apart: by `backbone_lr`, and by weights for other classes.

    Raises:
        ConfigError: a network without such a layer.
    """
    names: list[str] = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        rule = "has no linear layer, so its last layer, which has to be told apart, is unknown"
        remedy = "Leave out backbone_lr and give weights for as many classes, or choose a network that ends in one"
        raise ConfigError(_FIELD, type(model).__name__, rule, remedy)
    return names[-1]


def _network_shape(training: TrainingRecipe) -> tuple[int, ...]:
    side = training.recipe.input_size
    if side is None or _is_features(training.image_shape):
        return training.image_shape
    return (side, side, training.image_shape[2])


def _is_features(shape: tuple[int, ...]) -> bool:
    return len(shape) == 1


def _require_image(name: str, shape: tuple[int, ...]) -> None:
    if _is_features(shape):
        rule = f"takes images, and the data are feature vectors of length {shape[0]}"
        raise ConfigError(_FIELD, name, rule, "Use mlp")


# --- registered networks


def _build_registered(name: str, shape: tuple[int, ...], num_classes: int) -> nn.Module:
    if name in _VECTOR_NETWORKS:
        return _VECTOR_NETWORKS[name](shape, num_classes)
    if name not in {*_IMAGE_NETWORKS, *SPLIT_CONVNETS, "efficientnet_lite0"}:
        names = ", ".join([*_VECTOR_NETWORKS, *_IMAGE_NETWORKS, *SPLIT_CONVNETS, "efficientnet_lite0"])
        remedy = f"Choose one of {names}, or give torchvision:NAME or package.module:function"
        raise ConfigError(_FIELD, name, "is no registered network", remedy)
    _require_image(name, shape)
    if name == "efficientnet_lite0":
        return _build_efficientnet_lite0(name, shape, num_classes)
    if name in SPLIT_CONVNETS:
        return SPLIT_CONVNETS[name](shape, num_classes)
    return _IMAGE_NETWORKS[name](shape[2], num_classes)


def _build_efficientnet_lite0(name: str, shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """EfficientNet-Lite0 (Tan and Le 2019; the Lite variant of 2020), with dropout and stochastic depth of 0.2."""
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        rule = f"needs the package efficientnet-lite-pytorch: {error}"
        remedy = "pip install 'ray-sisa[efficientnet]' wherever the run works"
        raise ConfigError(_FIELD, name, rule, remedy) from None
    height, width, channels = shape
    # Its convolutions are padded for one size of images, so it has to be told the size.
    options = {"image_size": (height, width), "num_classes": num_classes}
    model: nn.Module = EfficientNet.from_name("efficientnet-lite0", in_channels=channels, **options)
    return model


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A of He et al. 2016)."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        # A wider block also halves the resolution; `_added` is the number of channels that its shortcut lacks.
        self._stride, self._added = (1, 0) if in_width == width else (2, width - in_width)
        self.conv1 = _conv3x3(in_width, width, self._stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, images: Tensor) -> Tensor:
        """Activations [B, in_width, H, W] to [B, width, H', W']."""
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(images)))))
        return F.relu(residual + self._shortcut(images))

    def _shortcut(self, images: Tensor) -> Tensor:
        if not self._added:
            return images
        each_side = self._added // 2
        return F.pad(images[:, :, :: self._stride, :: self._stride], (0, 0, 0, 0, each_side, each_side))


class CifarResNet(nn.Module):
    """ResNet of depth 6n + 2 for small images (He et al. 2016, section 4.2).

    Tensors are named as in the CIFAR-10 weights that Y. Idelbayev published (akamaster/pytorch_resnet_cifar10).
    """

    def __init__(self, num_blocks: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, num_blocks)
        self.layer2 = _stage(16, 32, num_blocks)
        self.layer3 = _stage(32, 64, num_blocks)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] to logits [B, num_classes]."""
        maps = F.relu(self.bn1(self.conv1(images)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        logits: Tensor = self.linear(maps.mean((2, 3)))
        return logits


class SmallCnn(nn.Module):
    """Three convolutions and a linear layer, for images from 8x8 up."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv3x3(channels, 32), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = _conv3x3(32, 64), nn.BatchNorm2d(64)
        self.conv3, self.bn3 = _conv3x3(64, 64), nn.BatchNorm2d(64)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] to logits [B, num_classes]."""
        maps = F.relu(self.bn1(self.conv1(images)))
        maps = F.max_pool2d(F.relu(self.bn2(self.conv2(maps))), 2)
        maps = F.relu(self.bn3(self.conv3(maps)))
        logits: Tensor = self.linear(maps.mean((2, 3)))
        return logits


class MultilayerPerceptron(nn.Module):
    """Two hidden layers of 64, for feature vectors and flattened images."""

    def __init__(self, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(torch.Size(shape).numel(), 64)
        self.hidden2 = nn.Linear(64, 64)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Features [B, D] or images [B, C, H, W] to logits [B, num_classes]."""
        hidden = F.relu(self.hidden2(F.relu(self.hidden1(inputs.flatten(1)))))
        logits: Tensor = self.linear(hidden)
        return logits


class LinearClassifier(nn.Module):
    """One linear layer, for feature vectors and flattened images: the head over a frozen backbone."""

    def __init__(self, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(torch.Size(shape).numel(), num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Features [B, D] or images [B, C, H, W] to logits [B, num_classes]."""
        logits: Tensor = self.linear(inputs.flatten(1))
        return logits


def _conv3x3(in_width: int, width: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_width, width, 3, stride=stride, padding=1, bias=False)


def _stage(in_width: int, width: int, num_blocks: int) -> nn.Sequential:
    return nn.Sequential(*(BasicBlock(width if i else in_width, width) for i in range(num_blocks)))


def _resnet(num_blocks: int) -> Callable[[int, int], nn.Module]:
    return lambda channels, num_classes: CifarResNet(num_blocks, channels, num_classes)


_VECTOR_NETWORKS: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {
    "linear": LinearClassifier,
    "mlp": MultilayerPerceptron,
}
_IMAGE_NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "small_cnn": SmallCnn,
    "resnet20": _resnet(3),
    "resnet32": _resnet(5),
    "resnet44": _resnet(7),
    "resnet56": _resnet(9),
    "resnet110": _resnet(18),
}


# --- torchvision's networks


def _build_torchvision(name: str, shape: tuple[int, ...], num_classes: int) -> nn.Module:
    given = f"torchvision:{name}"
    models = _torchvision_models(given)
    names = models.list_models(module=models)  # classifiers only: detectors and the like live in submodules
    if name not in names:
        near = difflib.get_close_matches(name.lower(), names)
        remedy = f"Did you mean {', '.join(near)}" if near else "See torchvision.models.list_models()"
        raise ConfigError(_FIELD, given, "is no classifier of torchvision", remedy)
    _require_image(given, shape)
    if shape[2] != 3:
        rule = f"takes images of 3 channels, and these have {shape[2]}"
        raise ConfigError(_FIELD, given, rule, "Convert to RGB, or use a registered network")
    # These two would return auxiliary logits as well while training, and warn about their way of initialising.
    extra = {"aux_logits": False, "init_weights": True} if name in {"googlenet", "inception_v3"} else {}
    model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **extra)
    return model


def _torchvision_models(given: str) -> Any:
    try:
        import torchvision
    except ImportError as error:
        raise ConfigError(_FIELD, given, f"needs torchvision: {error}", "Install torchvision") from None
    return torchvision.models


# --- networks of the user's


def _build_custom(name: str, digest: str | None, shape: tuple[int, ...], num_classes: int) -> nn.Module:
    module_name, _, function_name = name.partition(":")
    function = getattr(model_code.load(name, digest), function_name, None)
    if not callable(function):
        rule = f"module {module_name} has no function {function_name!r}"
        raise ConfigError(_FIELD, name, rule, "Name it as package.module:function")
    call = f"{function_name}(num_classes={num_classes}, image_shape={shape})"
    try:
        model = function(num_classes=num_classes, image_shape=shape)
    except Exception as error:  # the user's code may raise anything; the cause stays attached for its traceback
        raise ConfigError(_FIELD, name, f"{call} failed: {type(error).__name__}: {error}", "Correct it") from error
    if not isinstance(model, nn.Module):
        rule = f"{call} returned {type(model).__name__}"
        raise ConfigError(_FIELD, name, rule, "It must return a torch.nn.Module")
    return model
