"""Cutting a network in two at a named layer: what runs on a device, and what runs on a server.

What the device part returns is what leaves the device, and so what an attacker may intercept; noise on it is added
here. Nothing here trains, attacks or opens a store.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, fx, nn

from ray_sisa.errors import ConfigError

NoiseKind = Literal["laplace", "gaussian"]
_NAMED_IN_ERRORS = 24  # layers; larger networks have hundreds


@dataclass(frozen=True, kw_only=True, slots=True)
class ActivationNoise:
    """Fresh noise on every number that leaves the device.

    Attributes:
        kind: the distribution, of mean 0.
        scale: its b (Laplace) or standard deviation (Gaussian), in units of the activations.
    """

    kind: NoiseKind
    scale: float

    def __post_init__(self) -> None:
        if self.kind not in get_args(NoiseKind):
            raise ConfigError("noise", self.kind, "is no distribution", "Choose laplace or gaussian")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ConfigError("noise", self.scale, "must have a scale above 0", "For example laplace:0.5")

    @classmethod
    def parse(cls, text: str) -> ActivationNoise:
        """Noise as written in one word, such as `laplace:0.5`.

        Raises:
            ConfigError: it is no KIND:SCALE.
        """
        kind, _, scale = text.partition(":")
        try:
            return cls(kind=cast(NoiseKind, kind), scale=float(scale))
        except ValueError:
            rule = "must be the kind of noise and its scale"
            raise ConfigError("noise", text, rule, "For example laplace:0.5") from None

    def __str__(self) -> str:
        return f"{self.kind}:{self.scale:g}"

    def draw(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Noise of the shape, type and device of `like`, drawn from a generator of the CPU."""
        if self.kind == "gaussian":
            drawn = torch.randn(like.shape, generator=generator)
        else:  # the difference of two exponential numbers is Laplace distributed
            one, two = (torch.empty(like.shape).exponential_(generator=generator) for _ in range(2))
            drawn = one - two
        return (drawn * self.scale).to(device=like.device, dtype=like.dtype)


class NoisyDevice(nn.Module):
    """A device part that adds noise to what leaves it, other noise at each call."""

    def __init__(self, part: nn.Module, noise: ActivationNoise, seed: int) -> None:
        super().__init__()
        self.part, self.noise = part, noise
        # On the CPU, so that draws are the same on every device.
        self._generator = torch.Generator().manual_seed(seed)

    def forward(self, images: Tensor) -> Tensor:
        """What the part returns, with noise."""
        activations: Tensor = self.part(images)
        return activations + self.noise.draw(activations, self._generator)


def split(
    model: nn.Module, layer: str, noise: ActivationNoise | None = None, *, seed: int = 0
) -> tuple[nn.Module, nn.Module]:
    """The device part, up to and with a layer, and the server part: what follows it.

    Both are copies in evaluation mode, where `server(device(images))` is `model(images)` in every bit unless there is
    noise. The server part has no way to the images but what the device part returns.

    Args:
        model: any network that `torch.fx` can trace.
        layer: name of a module of it, as in `named_modules`.
        noise: added by the device part.
        seed: of the noise.

    Raises:
        ConfigError: a network that cannot be traced, or a layer that is not there, is not run once, or that something
            passes around.
    """
    model = copy.deepcopy(model).eval()
    if layer not in dict(model.named_modules()) or not layer:
        raise ConfigError("layer", layer, "is no layer of the network", _remedy(model))
    trace = _trace(model, leaf=layer)
    outputs = trace.outputs.get(layer, [])
    if len(outputs) != 1:
        rule = f"is run {len(outputs)} times for one image, and a network is cut at what is run once"
        raise ConfigError("layer", layer, rule, _remedy(model))
    cut = outputs[0]
    after = _after(trace.graph, cut)
    if after is None:
        rule = "does not see all that the layers after it read: a shortcut, or another branch, passes around it"
        raise ConfigError("layer", layer, rule, _remedy(model))
    device: nn.Module = fx.GraphModule(model, _device_graph(trace.graph, cut)).eval()
    server = fx.GraphModule(model, _server_graph(trace.graph, cut, after)).eval()
    return device if noise is None else NoisyDevice(device, noise, seed).eval(), server


def layers(model: nn.Module) -> list[str]:
    """Names of the layers at which a network can be cut, in the order in which they are run.

    Raises:
        ConfigError: a network that cannot be traced.
    """
    trace = _trace(copy.deepcopy(model).eval())
    once = {name: nodes[0] for name, nodes in trace.outputs.items() if len(nodes) == 1}
    at = {node: position for position, node in enumerate(trace.graph.nodes)}
    found = [name for name, node in once.items() if _after(trace.graph, node) is not None]
    return sorted(found, key=lambda name: (at[once[name]], name))


class _Tracer(fx.Tracer):
    """Notes what each module returned, by its name, once for each time that it is run."""

    def __init__(self, leaf: str | None) -> None:
        super().__init__()
        self._leaf = leaf
        self.outputs: dict[str, list[fx.Node]] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """The layer too: what happens in it need not be traceable."""
        return module_qualified_name == self._leaf or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Traces one call."""
        returned = super().call_module(m, forward, args, kwargs)
        # An empty `Sequential` hands on what it was given: that is another layer's output.
        if isinstance(returned, fx.Proxy) and not any(returned is given for given in args):
            self.outputs.setdefault(self.path_of_module(m), []).append(returned.node)
        return returned


@dataclass(frozen=True, kw_only=True, slots=True)
class _Trace:
    graph: fx.Graph
    outputs: dict[str, list[fx.Node]]


def _trace(model: nn.Module, leaf: str | None = None) -> _Trace:
    tracer = _Tracer(leaf)
    try:
        graph = tracer.trace(model)
    except Exception as error:  # tracing runs the network's own code, which may raise anything
        rule = f"cannot be traced by torch.fx, so it cannot be cut: {type(error).__name__}: {error}"
        remedy = "Use a network without branches that depend on the values of tensors"
        raise ConfigError("recipe.model", type(model).__name__, rule, remedy) from error
    return _Trace(graph=graph, outputs=tracer.outputs)


def _after(graph: fx.Graph, cut: fx.Node) -> set[fx.Node] | None:
    """What the output needs besides the cut; None where it needs the images, other than to count them."""
    needed: set[fx.Node] = set()
    ahead = [node for node in graph.nodes if node.op == "output"]
    while ahead:
        node = ahead.pop()
        if node is cut or node in needed:
            continue
        if node.op == "placeholder":
            return None
        needed.add(node)
        if not _is_batch_size(node):
            ahead += node.all_input_nodes
    return needed


def _is_batch_size(node: fx.Node) -> bool:
    """Whether it is `t.size(0)` or `t.shape[0]`: the same of everything in a network, so that of the cut will do."""
    if node.op == "call_method":
        return node.target == "size" and node.args[1:] == (0,)
    if node.op != "call_function" or node.target is not operator.getitem or node.args[1] != 0:
        return False
    shape = node.args[0]
    return isinstance(shape, fx.Node) and shape.target is getattr and shape.args[1:] == ("shape",)


def _device_graph(graph: fx.Graph, cut: fx.Node) -> fx.Graph:
    part = fx.Graph()
    before = _before(cut)
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in before:
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(copies[cut])
    return part


def _before(cut: fx.Node) -> set[fx.Node]:
    """The cut and all that it needs."""
    needed: set[fx.Node] = set()
    ahead = [cut]
    while ahead:
        node = ahead.pop()
        if node not in needed:
            needed.add(node)
            ahead += node.all_input_nodes
    return needed


def _server_graph(graph: fx.Graph, cut: fx.Node, after: set[fx.Node]) -> fx.Graph:
    part = fx.Graph()
    copies = {cut: part.placeholder("activations")}
    for node in graph.nodes:
        if node in after and _is_batch_size(node):
            copies[node] = part.call_method("size", (copies[cut], 0))
        elif node in after:
            copies[node] = part.node_copy(node, copies.__getitem__)
    return part


def _remedy(model: nn.Module) -> str:
    names = layers(model)
    more = f", and {len(names) - _NAMED_IN_ERRORS} more" if len(names) > _NAMED_IN_ERRORS else ""
    return f"It can be cut at {', '.join(names[:_NAMED_IN_ERRORS])}{more}"
