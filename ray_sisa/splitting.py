"""Cutting a network in two at a named layer: what runs on a device, and what runs on a server.

What the device part returns is what leaves the device, and so what an attacker may intercept; noise on it is added
here. Nothing here trains, attacks or opens a store.
"""

from __future__ import annotations

import copy
import difflib
import functools
import math
import operator
from collections.abc import Callable, Mapping
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
    noise. The server part has no way to the images but what the device part returns, and does not write over that.

    Not so for a network that writes in place through a view, or whose activations have something else than images in
    their first dimension and that counts its images later: see `check_parts`.

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
        raise ConfigError("layer", layer, "is no layer of the network", _remedy(model, layer))
    trace = _trace(model, leaf=layer)
    _write_nowhere(model, trace.graph)
    outputs = trace.outputs.get(layer, [])
    if len(outputs) != 1:
        rule = f"is run {len(outputs)} times for one image, and a network is cut at what is run once"
        raise ConfigError("layer", layer, rule, _remedy(model, layer))
    cut = outputs[0]
    after = _after(trace.graph, cut)
    if after is None:
        rule = "does not see all that the layers after it read: a shortcut, or another branch, passes around it"
        raise ConfigError("layer", layer, rule, _remedy(model, layer))
    device: nn.Module = fx.GraphModule(model, _device_graph(trace.graph, cut)).eval()
    server = fx.GraphModule(model, _server_graph(trace.graph, cut, after)).eval()
    return device if noise is None else NoisyDevice(device, noise, seed).eval(), server


@torch.no_grad()
def check_parts(model: nn.Module, layer: str, inputs: Tensor) -> None:
    """Passes if the two parts of a network together give the same bits as the whole, which `split` does not try.

    Args:
        model: in evaluation mode.
        layer: where it is cut.
        inputs: what it reads, [B, ...].

    Raises:
        ConfigError: they do not, an error is raised, or what `split` raises.
    """
    device, server = split(model, layer)
    try:
        same = _are_same(server(device(inputs.clone())), model(inputs.clone()))
        problem = "give something else than the whole network"
    except Exception as error:  # the network's own code, which may raise anything
        same, problem = False, f"fail: {type(error).__name__}: {error}"
    if not same:
        remedy = "Cut it at another layer, or write the network without changes in place"
        raise ConfigError("layer", layer, f"cuts a network whose two parts, one after the other, {problem}", remedy)


def _are_same(one: Tensor, other: Tensor) -> bool:
    # A network that diverged gives what is no number, and that is not equal to itself.
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


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
    _follow_writes(model, graph)
    return _Trace(graph=graph, outputs=tracer.outputs)


def _follow_writes(model: nn.Module, graph: fx.Graph) -> None:
    """Lets what reads a tensor after a call that writes over it read what that call returns, which is the same.

    Else nothing would seem to need a call such as `x.clamp_(min=0)` on a line of its own.
    """
    at = {node: position for position, node in enumerate(graph.nodes)}
    for node in at:
        written = _written(model, node)
        if written is not None:
            written.replace_all_uses_with(node, delete_user_cb=functools.partial(_is_after, at, node))


def _write_nowhere(model: nn.Module, graph: fx.Graph) -> None:
    """Lets calls that write over what they are given return a tensor of their own: activations stay as intercepted."""
    for node in list(graph.nodes):
        written = _written(model, node)
        if written is None:
            continue
        if node.op == "call_module":
            cast(Any, model.get_submodule(str(node.target))).inplace = False
            continue
        with graph.inserting_before(node):
            node.replace_input_with(written, graph.call_method("clone", (written,)))


def _is_after(at: Mapping[fx.Node, int], node: fx.Node, other: fx.Node) -> bool:
    return at[other] > at[node]


def _written(model: nn.Module, node: fx.Node) -> fx.Node | None:
    """What a call writes over, and returns."""
    given = node.args[0] if node.args else node.kwargs.get("input")
    return given if isinstance(given, fx.Node) and _writes(model, node) else None


def _writes(model: nn.Module, node: fx.Node) -> bool:
    """Whether it is `x.relu_()`, `torch.relu_(x)`, `relu(x, inplace=True)`, or a layer of PyTorch's that does so."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        return type(module).__module__.startswith("torch.nn.") and bool(getattr(module, "inplace", False))
    if node.op == "call_method":
        return _ends_in_place(str(node.target))
    if node.op != "call_function" or getattr(node.target, "__module__", "") == operator.and_.__module__:
        return False  # `operator.and_` is named so for another reason
    return bool(node.kwargs.get("inplace")) or _ends_in_place(getattr(node.target, "__name__", ""))


def _ends_in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


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
    """Whether it is `images.size(0)` or `images.shape[0]`, for which the size of the cut will do.

    That of another tensor will not: it may be a parameter, or have its dimensions in another order.
    """
    if node.op == "call_method":
        return node.target == "size" and node.args[1:] == (0,) and _is_input(node.args[0])
    if node.op != "call_function" or node.target is not operator.getitem or node.args[1] != 0:
        return False
    shape = node.args[0]
    is_shape = isinstance(shape, fx.Node) and shape.target is getattr and shape.args[1:] == ("shape",)
    return is_shape and _is_input(cast(fx.Node, shape).args[0])


def _is_input(value: object) -> bool:
    return isinstance(value, fx.Node) and value.op == "placeholder"


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


def _remedy(model: nn.Module, layer: str) -> str:
    """Where else it can be cut: all layers of a small network; of a large one those of like names and the outermost."""
    names = layers(model)
    if len(names) <= _NAMED_IN_ERRORS:
        return f"It can be cut at {', '.join(names)}"
    near = difflib.get_close_matches(layer, names)
    outermost = sorted((name for name in names if name not in near), key=lambda name: name.count("."))
    shown = {*near, *outermost[: _NAMED_IN_ERRORS - len(near)]}
    listed = ", ".join(name for name in names if name in shown)
    nearest = f"Near are {', '.join(near)}. " if near else ""
    return f"{nearest}It can be cut at {listed}, and {len(names) - len(shown)} more"
