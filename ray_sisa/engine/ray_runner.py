"""The runner on Ray: one actor a chain in flight, reused from chain to chain.

Actors are never restarted by Ray: a fresh one resumes from the last committed stage, and each failure is seen once.
Nothing but small records and, for `map`, one shared value passes through Ray's object store.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.autoscaler.sdk import request_resources
from ray.exceptions import ActorDiedError, RayError, RayTaskError
from ray.util import ActorPool

from ray_sisa.config import Scaling
from ray_sisa.engine.runner import Item, Result
from ray_sisa.engine.work import ChainEnded, ChainWork, EpochDone, Event, StageDone
from ray_sisa.errors import ResourcesError, TrainingError

COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # Ray's, in tracebacks


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
        self._autoscales = _autoscaler_maximum() is not None
        try:
            self._check_feasible()
        except ResourcesError:
            self.close()
            raise

    def capacity(self) -> int:
        """As many workers as the nodes hold, up to `max_concurrent_shards`."""
        fit = sum(self._fit(node) for node in _nodes())
        return max(1, min(fit, self._scaling.max_concurrent_shards or fit))

    def start(self, work: ChainWork) -> None:
        """Hands the chain to an idle actor, or to a new one."""
        actor = self._idle.pop() if self._idle else self._new_actor()
        self._flights[actor.train.remote(work)] = (work.shard, actor)

    def demand(self, num_chains: int) -> None:
        """Tells an autoscaler how many workers could be of use; it keeps them until told again."""
        if self._autoscales:
            wanted = min(num_chains, self._scaling.max_concurrent_shards or num_chains)
            request_resources(bundles=[dict(self._scaling.resources_per_worker)] * wanted)

    def poll(self, timeout_s: float) -> list[Event]:
        """The next event of each chain that has one."""
        if not self._flights:
            return []
        ready, _ = ray.wait(list(self._flights), num_returns=1, timeout=timeout_s)
        return [event for flight in ready if (event := self._next(flight))]

    def stop(self, shard: int) -> None:
        """Kills the actor of a shard: what runs in it is of no use any more."""
        for flight, (other, actor) in list(self._flights.items()):
            if other == shard:
                del self._flights[flight]
                ray.kill(actor)

    def map(self, function: Callable[[Any, Item], Result], shared: Any, items: Sequence[Item]) -> list[Result]:
        """Spreads the items over actors; `shared` is sent once."""
        reference = ray.put(shared)
        actors = [self._idle.pop() if self._idle else self._new_actor() for _ in items[: self.capacity()]]
        pool: Any = ActorPool(actors)
        try:
            results = list(pool.map(lambda actor, item: actor.call.remote(function, reference, item), items))
        except RayError as error:
            for actor in actors:
                ray.kill(actor)
            if isinstance(error, RayTaskError):
                raise error.cause from error
            raise TrainingError("worker", "", f"was lost: {error}", "Run the command again") from error
        self._idle += actors
        return results

    def close(self) -> None:
        """Kills the actors, takes back the demand, and ends the Ray that this runner started."""
        for actor in [*self._idle, *(actor for _, actor in self._flights.values())]:
            ray.kill(actor)
        self._idle, self._flights = [], {}
        if self._autoscales:
            request_resources(bundles=[])
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
            preempted = isinstance(error, ActorDiedError) and error.preempted
            ended = ChainEnded(shard=shard, ending="preemption" if preempted else "worker", message=str(error))
        del self._flights[flight]
        return ended

    def _new_actor(self) -> ActorHandle[Any]:
        resources = dict(self._scaling.resources_per_worker)
        options = {
            "num_cpus": resources.pop("CPU", 0),
            "num_gpus": resources.pop("GPU", 0),
            "resources": resources,
            "max_restarts": 0,
            "label_selector": self._scaling.label_selector or None,
        }
        remote_class: Any = ray.remote(ShardWorker)
        actor: ActorHandle[Any] = remote_class.options(**options).remote(self._scaling.num_gpus)
        return actor

    def _check_feasible(self) -> None:
        nodes = _nodes()
        if self._autoscales or any(self._fit(node) for node in nodes):
            return
        has = [{k: v for k, v in n["Resources"].items() if k in self._scaling.resources_per_worker} for n in nodes]
        labels = f" with labels {self._scaling.label_selector}" if self._scaling.label_selector else ""
        rule = f"no node{labels} has that much: the {len(nodes)} node(s) have {has}"
        remedy = "Ask for less, or add a node that has it"
        raise ResourcesError("scaling.resources_per_worker", self._scaling.resources_per_worker, rule, remedy)

    def _fit(self, node: dict[str, Any]) -> int:
        labels = node.get("Labels", {})
        if any(labels.get(name) != value for name, value in self._scaling.label_selector.items()):
            return 0
        asked = {name: amount for name, amount in self._scaling.resources_per_worker.items() if amount > 0}
        held = node["Resources"]
        return min((math.floor(held.get(name, 0) / amount + 1e-9) for name, amount in asked.items()), default=1)


def _nodes() -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]


def _autoscaler_maximum() -> dict[str, int] | None:
    """What the autoscaler may grow the cluster to, or None where nothing scales it."""
    from ray._private.state import state

    maximum: dict[str, int] | None = state.get_max_resources_from_cluster_config()
    return maximum
