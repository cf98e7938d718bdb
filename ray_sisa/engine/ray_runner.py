"""The runner on Ray: one actor a chain in flight, reused from chain to chain.

Actors are never restarted by Ray: a fresh one resumes from the last committed stage, and each failure is seen once.
Nothing but small records and, for `map`, one shared value passes through Ray's object store.
"""

from __future__ import annotations

import inspect
import logging
import math
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayActorError, RayError, RayTaskError

from ray_sisa.config import Scaling
from ray_sisa.engine.driver import TICK_S, Decision, check_progress, decide
from ray_sisa.engine.runner import Item, Result
from ray_sisa.engine.work import ChainEnded, ChainWork, Ending, EpochDone, Event, StageDone
from ray_sisa.errors import ResourcesError, TrainingError

COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # Ray's, in tracebacks
NODE_GROUP = "ray.io/node-group"  # label of the nodes of `ray up` (Ray >= 2.50) and of KubeRay (>= 1.1)
FOUND_BY_NODES = ("memory", "accelerator_type:")  # what a node offers without being told to


class ShardWorker:
    """The process that trains a shard, or runs a mapped function."""

    def __init__(self, gpu_fraction: float) -> None:
        """Imports torch, and keeps to its part of a shared GPU."""
        import torch

        if 0 < gpu_fraction < 1:
            torch.cuda.set_per_process_memory_fraction(gpu_fraction)

    def __repr__(self) -> str:
        return "ShardWorker"

    def train(self, work: ChainWork) -> Iterator[EpochDone | StageDone]:
        """Trains a chain, streaming its events."""
        from ray_sisa.engine.worker import train_chain  # torch: here, and not in the driver

        yield from train_chain(work)

    def call(self, function: Callable[[Any, Item], Result], shared: Any, item: Item) -> Result:
        """`function(shared, item)`."""
        return function(shared, item)


class RayRunner:
    """Trains chains in actors of a cluster: the one that RAY_ADDRESS names or that runs here, else a new local one."""

    def __init__(self, scaling: Scaling) -> None:
        self._started_ray = not ray.is_initialized()
        if self._started_ray:
            # Workers' prints would land on the driver's standard output, which belongs to --json.
            ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING)
        self._scaling = scaling
        self._idle: list[ActorHandle[Any]] = []
        self._flights: dict[ray.ObjectRefGenerator, tuple[int, ActorHandle[Any]]] = {}
        self._autoscales = _autoscales()
        try:
            self.demand(0)  # that of a driver that was killed outlives it
            self._check_feasible()
        except Exception:
            self.close()
            raise

    def capacity(self) -> int:
        """As many workers as the nodes hold, up to `max_concurrent_shards`."""
        fit = sum(self._fit(node) for node in _nodes())
        return max(1, min(fit, self._scaling.max_concurrent_shards or fit))

    def start(self, work: ChainWork) -> None:
        """Hands the chain to an idle actor, or to a new one."""
        actor = self._idle_actor()
        self._flights[actor.train.remote(work)] = (work.shard, actor)
        self._idle.pop()

    def demand(self, num_chains: int) -> None:
        """Tells an autoscaler how many workers could be of use; it keeps them until told again."""
        if self._autoscales:
            wanted = min(num_chains, self._scaling.max_concurrent_shards or num_chains)
            _request(self._asked, self._scaling.label_selector, wanted)

    def poll(self, timeout_s: float) -> list[Event]:
        """The next event of each chain that has one."""
        if not self._flights:
            return []
        return [event for flight in _wait(list(self._flights), timeout_s) if (event := self._next(flight))]

    def stop(self, shard: int) -> None:
        """Kills the actor of a shard: what runs in it is of no use any more."""
        for flight, (other, actor) in list(self._flights.items()):
            if other == shard:
                del self._flights[flight]
                ray.kill(actor)

    def map(self, function: Callable[[Any, Item], Result], shared: Any, items: Sequence[Item]) -> list[Result]:
        """Spreads the items over actors, as many as there is room for by then; `shared` is sent once."""
        reference = ray.put(shared)
        self.demand(len(items))
        waiting, results, failures = deque(range(len(items))), dict[int, Result](), Counter[int]()
        calls: dict[ray.ObjectRef[Any], tuple[int, ActorHandle[Any]]] = {}
        moved_at = time.monotonic()
        try:
            while len(results) < len(items):
                while waiting and len(calls) < self.capacity():
                    number, actor = waiting.popleft(), self._idle_actor()
                    calls[actor.call.remote(function, reference, items[number])] = (number, actor)
                    self._idle.pop()
                for call in _wait(list(calls), TICK_S):
                    number, actor = calls.pop(call)
                    moved_at = time.monotonic()
                    try:
                        results[number] = ray.get(call)
                        self._idle.append(actor)
                    except RayError as error:
                        self._take_failure(error, actor, number, failures)
                        waiting.append(number)
                if any(self._fit(node) for node in _nodes()):
                    moved_at = time.monotonic()  # there is room, so they run, however long: they tell of nothing
                check_progress(moved_at, self._scaling, "items", [number for number, _ in calls.values()])
        finally:
            for _, actor in calls.values():
                ray.kill(actor)
        return [results[number] for number in range(len(items))]

    def _take_failure(self, error: RayError, actor: ActorHandle[Any], number: int, failures: Counter[int]) -> None:
        """Returns if the item is to be tried again."""
        if isinstance(error, RayTaskError):
            self._idle.append(actor)
            raise error.cause from error
        ray.kill(actor)
        ending = _ending(error)
        failures[number] += ending == "worker"
        if decide(ending, failures[number], self._scaling.max_failures) is Decision.GIVE_UP:
            rule = f"was lost {failures[number]} times: {error}"
            raise TrainingError("worker", f"item {number}", rule, "Run the command again") from error

    def close(self) -> None:
        """Kills the actors, takes back the demand, and ends the Ray that this runner started."""
        for actor in [*self._idle, *(actor for _, actor in self._flights.values())]:
            ray.kill(actor)
        self._idle, self._flights = [], {}
        self.demand(0)
        if self._started_ray:
            ray.shutdown()

    def _next(self, flight: ray.ObjectRefGenerator) -> Event | None:
        shard, actor = self._flights[flight]
        try:
            event: Event = ray.get(next(flight))
            return event
        except StopIteration:
            self._idle.append(actor)
            ended = ChainEnded(shard=shard, ending="finished")
        except RayTaskError as error:
            self._idle.append(actor)  # the process lives: only what it ran failed
            ended = ChainEnded(shard=shard, ending="application", message=COLOURS.sub("", str(error)))
        except RayError as error:
            ray.kill(actor)  # it may be out of reach rather than dead: no two may train on
            ended = ChainEnded(shard=shard, ending=_ending(error), message=str(error))
        del self._flights[flight]
        return ended

    def _idle_actor(self) -> ActorHandle[Any]:
        """The last of the idle; it stays among them until it has work, so that an error before that loses none."""
        if not self._idle:
            self._idle.append(self._new_actor())
        return self._idle[-1]

    def _new_actor(self) -> ActorHandle[Any]:
        resources = dict(self._scaling.resources_per_worker)
        options = {
            "num_cpus": resources.pop("CPU", 0),
            "num_gpus": resources.pop("GPU", 0),
            "memory": resources.pop("memory", 0),  # bytes
            "resources": resources,
            "max_restarts": 0,
            "label_selector": self._scaling.label_selector or None,
        }
        remote_class: Any = ray.remote(ShardWorker)
        actor: ActorHandle[Any] = remote_class.options(**options).remote(self._scaling.num_gpus)
        return actor

    def _check_feasible(self) -> None:
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
        if not all(_satisfies(labels.get(name), rule) for name, rule in self._scaling.label_selector.items()):
            return 0
        held = node["Resources"]
        return min((math.floor(held.get(name, 0) / amount + 1e-9) for name, amount in self._asked.items()), default=1)


def _wait(references: list[Any], timeout_s: float) -> list[Any]:
    """All that are ready, having waited for the first of them."""
    ready, _ = ray.wait(references, num_returns=1, timeout=timeout_s)
    if ready:
        ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
    return ready


def _ending(error: RayError) -> Ending:
    return "preemption" if isinstance(error, RayActorError) and error.preempted else "worker"


def _satisfies(label: str | None, rule: str) -> bool:
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
    from ray._private.state import state

    maximum: dict[str, int] | None = state.get_max_resources_from_cluster_config()
    return maximum


def _autoscales() -> bool:
    """Whether something may add nodes to the cluster.

    Open-source Ray reports no maximum (only a platform may); what it starts for an autoscaler has a node group.
    """
    return _autoscaler_maximum() is not None or any(NODE_GROUP in node.get("Labels", {}) for node in _nodes())
