"""What a Ray cluster holds, may grow to and is about to lose. Met by `ray_runner` and `ray_pool` alone."""

from __future__ import annotations

import inspect
import math
import time
from typing import Any

import ray
from ray._private.state import state
from ray.autoscaler.sdk import request_resources

from ray_sisa.config import Scaling
from ray_sisa.errors import ResourcesError

NODE_GROUP = "ray.io/node-group"  # label of the nodes of `ray up` (Ray >= 2.50) and of KubeRay (>= 1.1)
NOTICES_S = 5.0  # how often nodes are asked whether they are about to be taken away
FOUND_BY_NODES = ("memory", "accelerator_type:")  # what a node offers without being told to


class RayCluster:
    """The cluster that this process has joined, seen by one who wants workers of a kind."""

    def __init__(self, scaling: Scaling) -> None:
        """Looks at its nodes; nothing is asked of it yet."""
        self._scaling = scaling
        self._leaving, self._looked_at = set[str](), -math.inf
        self._autoscales = _autoscales()

    def capacity(self) -> int:
        """How many workers its nodes could hold were they empty, up to `max_concurrent_shards`; at least 1."""
        fit = sum(self._fit(node) for node in _nodes() if node["NodeID"] not in self._leaving)
        return max(1, min(fit, self._scaling.max_concurrent_shards or fit))

    def demand(self, number: int) -> None:
        """Tells an autoscaler how many workers could be of use; it keeps them until told again."""
        if self._autoscales:
            wanted = min(number, self._scaling.max_concurrent_shards or number)
            _request(self._asked, self._scaling.label_selector, wanted)

    def is_leaving(self, node_id: str) -> bool:
        """Whether notice was given that the node will be taken away."""
        return node_id in self._leaving

    def look_for_notices(self, at_once: bool = False) -> None:
        """Remembers which nodes are about to be taken away: once they are dead, Ray no longer says so of all."""
        if at_once or time.monotonic() - self._looked_at > NOTICES_S:
            self._leaving |= state.get_draining_nodes().keys()
            self._looked_at = time.monotonic()

    def check_feasible(self) -> None:
        """Passes if a node, there or to come, can hold a worker.

        Raises:
            ResourcesError: none can; it has the numbers.
        """
        nodes, maximum = _nodes(), _autoscaler_maximum()
        grows = self._autoscales and (maximum is None or self._is_within(maximum))
        if grows or any(self._fit(node) for node in nodes):
            return
        asked = self._scaling.resources_per_worker
        has = [{name: amount for name, amount in node["Resources"].items() if name in asked} for node in nodes]
        labels = f" with labels {self._scaling.label_selector}" if self._scaling.label_selector else ""
        rule = f"no node{labels} has that much: the {len(nodes)} node(s) have {has}"
        if maximum is not None:
            rule += f", and the autoscaler adds up to { ({name: maximum.get(name, 0) for name in asked}) } in all"
        raise ResourcesError("scaling.resources_per_worker", asked, rule, "Ask for less, or add a node that has it")

    def _is_within(self, maximum: dict[str, int]) -> bool:
        told = {name: amount for name, amount in self._asked.items() if not name.startswith(FOUND_BY_NODES)}
        return all(maximum.get(name, 0) >= amount for name, amount in told.items())

    @property
    def _asked(self) -> dict[str, float]:
        return {name: amount for name, amount in self._scaling.resources_per_worker.items() if amount > 0}

    def _fit(self, node: dict[str, Any]) -> int:
        labels = node.get("Labels", {})
        if not all(satisfies(labels.get(name), rule) for name, rule in self._scaling.label_selector.items()):
            return 0
        held = node["Resources"]
        return min((math.floor(held.get(name, 0) / amount + 1e-9) for name, amount in self._asked.items()), default=1)


def satisfies(label: str | None, rule: str) -> bool:
    """Whether a node with this label may be chosen; Ray's rules are `a`, `!a`, `in(a, b)` and `!in(a, b)`."""
    names = rule.removeprefix("!")
    allowed = names[3:-1].split(",") if names.startswith("in(") else [names]
    return (label in [name.strip() for name in allowed]) != rule.startswith("!")


def _request(bundle: dict[str, float], labels: dict[str, str], number: int) -> None:
    # Not every Ray that is supported has label selectors here; without them the autoscaler may add nodes in vain.
    has_labels = labels and "bundle_label_selectors" in inspect.signature(request_resources).parameters
    selectors: dict[str, Any] = {"bundle_label_selectors": [labels] * number} if has_labels else {}
    request_resources(bundles=[bundle] * number, **selectors)


def _nodes() -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]


def _autoscaler_maximum() -> dict[str, int] | None:
    """What the autoscaler may grow the cluster to, by resource, or None where none has said so."""
    maximum: dict[str, int] | None = state.get_max_resources_from_cluster_config()
    return maximum


def _autoscales() -> bool:
    """Whether something may add nodes to the cluster.

    Open-source Ray reports no maximum (only a platform may); what it starts for an autoscaler has a node group.
    """
    return _autoscaler_maximum() is not None or any(NODE_GROUP in node.get("Labels", {}) for node in _nodes())
