"""The runner on Ray: one actor a chain in flight, reused from chain to chain.

Actors are never restarted by Ray: a fresh one resumes from the last committed stage, and each failure is seen once.
Nothing but small records and, for `map`, one shared value passes through Ray's object store.
"""

from __future__ import annotations

import inspect
import logging
import math
import os
import re
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import state
from ray.actor import ActorHandle
from ray.autoscaler.sdk import request_resources
from ray.exceptions import AuthenticationError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from ray_sisa.config import Scaling
from ray_sisa.engine.driver import TICK_S, Decision, allowed, check_progress, decide
from ray_sisa.engine.losses import killed_for_memory, lost
from ray_sisa.engine.runner import Item, Placed, Result, Tell, Told, no_one, telling
from ray_sisa.engine.work import ChainEnded, ChainWork, Ending, Event
from ray_sisa.errors import ResourcesError, TrainingError

COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # Ray's, in tracebacks
NODE_GROUP = "ray.io/node-group"  # label of the nodes of `ray up` (Ray >= 2.50) and of KubeRay (>= 1.1)
NOTICES_S = 5.0  # how often nodes are asked whether they are about to be taken away
FOUND_BY_NODES = ("memory", "accelerator_type:")  # what a node offers without being told to

logger = logging.getLogger(__name__)


class ShardWorker:
    """The process that trains a shard, or runs a mapped function."""

    def __init__(self, gpu_fraction: float) -> None:
        """Imports torch, and keeps to its part of a shared GPU."""
        import torch

        if 0 < gpu_fraction < 1:
            torch.cuda.set_per_process_memory_fraction(gpu_fraction)

    def __repr__(self) -> str:
        return "ShardWorker"

    def train(self, work: ChainWork) -> Iterator[Event | Placed]:
        """Trains a chain: where, then its events, the last of them a `ChainEnded`."""
        yield _here(work.shard)
        try:
            from ray_sisa.engine.worker import train_chain  # torch: here, and not in the driver

            yield from train_chain(work)
            yield ChainEnded(shard=work.shard, ending="finished")
        except (Exception, SystemExit):
            # As text: Ray leaves lines out of a traceback, and cannot carry every exception.
            yield ChainEnded(shard=work.shard, ending="application", message=traceback.format_exc())

    def call(
        self, function: Callable[[Any, Item], Any], shared: Any, number: int, item: Item
    ) -> Iterator[Placed | Told | Any]:
        """Where, then what `function(shared, item)` tells, then its result."""
        yield _here(number)
        result = yield from telling(function(shared, item))
        yield result


@dataclass(kw_only=True, slots=True)
class _Worker:
    actor: ActorHandle[Any]
    place: Placed | None = None
    """None until it has taken something up."""


@dataclass(kw_only=True, slots=True)
class _Flight:
    """What a worker was given: the chain of a shard, or a mapped item."""

    number: int
    worker: _Worker
    work: ChainWork | None = None
    taken_up: bool = False

    def take_up(self, place: Placed) -> None:
        self.worker.place, self.taken_up = place, True

    @property
    def place(self) -> Placed | None:
        return self.worker.place if self.taken_up else None

    @property
    def found_gone(self) -> bool:
        """Of a failed one: whether its worker died in idleness, before, for which nobody is to be charged."""
        return self.worker.place is not None and not self.taken_up


class RayRunner:
    """Trains chains in actors of a cluster: the one that RAY_ADDRESS names or that runs here, else a new local one."""

    def __init__(self, scaling: Scaling) -> None:
        self._started_ray = not ray.is_initialized()
        if self._started_ray:
            _join()
        self._scaling = scaling
        self._idle: list[_Worker] = []
        self._flights: dict[ray.ObjectRefGenerator, _Flight] = {}
        self._leaving, self._looked_at = set[str](), -math.inf
        self._autoscales = _autoscales()
        try:
            self.demand(0)  # that of a driver that was killed outlives it
            self._check_feasible()
        except Exception:
            self.close()
            raise

    def capacity(self) -> int:
        """As many workers as the nodes hold, up to `max_concurrent_shards`."""
        fit = sum(self._fit(node) for node in _nodes() if node["NodeID"] not in self._leaving)
        return max(1, min(fit, self._scaling.max_concurrent_shards or fit))

    def start(self, work: ChainWork) -> None:
        """Hands the chain to an idle actor, or to a new one."""
        worker = self._idle_worker()
        self._flights[worker.actor.train.remote(work)] = _Flight(number=work.shard, worker=worker, work=work)
        self._idle.pop()

    def demand(self, num_chains: int) -> None:
        """Tells an autoscaler how many workers could be of use; it keeps them until told again."""
        if self._autoscales:
            wanted = min(num_chains, self._scaling.max_concurrent_shards or num_chains)
            _request(self._asked, self._scaling.label_selector, wanted)

    def poll(self, timeout_s: float) -> list[Event | Placed]:
        """The next event of each chain that has one."""
        self._look_for_notices()
        if not self._flights:
            return []
        return [event for flight in _wait(list(self._flights), timeout_s) if (event := self._next(flight))]

    def stop(self, shard: int) -> None:
        """Kills the actor of a shard: what runs in it is of no use any more."""
        for stream, flight in list(self._flights.items()):
            if flight.number == shard:
                del self._flights[stream]
                ray.kill(flight.worker.actor)

    def map(
        self, function: Callable[[Any, Item], Result], shared: Any, items: Sequence[Item], tell: Tell = no_one
    ) -> list[Result]:
        """Spreads the items over actors, as many as there is room for by then; `shared` is sent once."""
        self.demand(len(items))
        mapping = _Mapping(self, function, shared, items, tell)
        try:
            while not mapping.done:
                mapping.turn()
        finally:
            mapping.stop_all()
        return [mapping.results[number] for number in range(len(items))]

    def close(self) -> None:
        """Kills the actors, takes back the demand, and ends the Ray that this runner started."""
        for worker in [*self._idle, *(flight.worker for flight in self._flights.values())]:
            ray.kill(worker.actor)
        self._idle, self._flights = [], {}
        self.demand(0)
        if self._started_ray:
            ray.shutdown()

    def _next(self, stream: ray.ObjectRefGenerator) -> Event | Placed | None:
        flight = self._flights[stream]
        try:
            event: Event | Placed = ray.get(next(stream))
        except RayTaskError as error:  # before it trained: what was sent cannot be read there, say
            event = ChainEnded(shard=flight.number, ending="application", message=COLOURS.sub("", str(error)))
        except RayError as error:
            return self._lose(stream, error)
        if isinstance(event, Placed):
            flight.take_up(event)
        elif isinstance(event, ChainEnded):
            self._idle.append(self._flights.pop(stream).worker)  # after an error too: the process lives
        return event

    def _lose(self, stream: ray.ObjectRefGenerator, error: RayError) -> ChainEnded | None:
        flight = self._flights.pop(stream)
        ray.kill(flight.worker.actor)  # it may be out of reach rather than dead: no two may train on
        if flight.found_gone and flight.work is not None:
            self.start(flight.work)
            return None
        ending, message = self._explain(error, flight)
        return ChainEnded(shard=flight.number, ending=ending, message=message)

    def _explain(self, error: RayError, flight: _Flight) -> tuple[Ending, str]:
        """The kind of a loss and its cause in words."""
        process = str(flight.place or "")
        if isinstance(error, OutOfMemoryError):
            return "worker", killed_for_memory(str(error), process, flight.place.pid if flight.place else 0)
        # Ray tells of a preemption once it knows the node to be dead: some time after it lost sight of the worker.
        self._look_for_notices(at_once=True)
        told = isinstance(error, RayActorError) and error.preempted
        preempted = told or (flight.place is not None and flight.place.node_id in self._leaving)
        return "preemption" if preempted else "worker", lost(str(error), process, preempted)

    def _look_for_notices(self, at_once: bool = False) -> None:
        """Remembers which nodes are about to be taken away: once they are dead, Ray no longer says so of all."""
        if at_once or time.monotonic() - self._looked_at > NOTICES_S:
            self._leaving |= state.get_draining_nodes().keys()
            self._looked_at = time.monotonic()

    def _idle_worker(self) -> _Worker:
        """The last of the idle; it stays among them until it has work, so that an error before that loses none."""
        leaving = [worker for worker in self._idle if worker.place and worker.place.node_id in self._leaving]
        for worker in leaving:
            self._idle.remove(worker)
            ray.kill(worker.actor)
        if not self._idle:
            self._idle.append(_Worker(actor=self._new_actor()))
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


class _Mapping:
    """A function on its way over some items."""

    def __init__(
        self, runner: RayRunner, function: Callable[..., Any], shared: Any, items: Sequence[Any], tell: Tell
    ) -> None:
        self._runner, self._function, self._tell = runner, function, tell
        self._shared, self._items = ray.put(shared), items
        self._waiting, self._failures = deque(range(len(items))), Counter[tuple[int, Ending]]()
        self._calls: dict[ray.ObjectRefGenerator, _Flight] = {}
        self._moved_at = time.monotonic()
        self.results: dict[int, Any] = {}

    @property
    def done(self) -> bool:
        return len(self.results) == len(self._items)

    def turn(self) -> None:
        while self._waiting and len(self._calls) < self._runner.capacity():
            self._hand_out(self._waiting.popleft())
        for stream in _wait(list(self._calls), TICK_S):
            self._moved_at = time.monotonic()
            self._take(stream)
        self._runner._look_for_notices()
        if any(flight.taken_up for flight in self._calls.values()):
            self._moved_at = time.monotonic()  # they run, however long: not all tell of anything
        places = {flight.number: flight.place for flight in self._calls.values()}
        check_progress(self._moved_at, self._runner._scaling, "items", places)

    def stop_all(self) -> None:
        for flight in self._calls.values():
            ray.kill(flight.worker.actor)

    def _hand_out(self, number: int) -> None:
        worker = self._runner._idle_worker()
        call: Any = worker.actor.call
        stream = call.remote(self._function, self._shared, number, self._items[number])
        self._calls[stream] = _Flight(number=number, worker=worker)
        self._runner._idle.pop()

    def _take(self, stream: ray.ObjectRefGenerator) -> None:
        flight = self._calls[stream]
        try:
            told = ray.get(next(stream))
        except RayError as error:
            del self._calls[stream]
            self._fail(error, flight)
            self._waiting.append(flight.number)
            return
        if isinstance(told, Placed):
            flight.take_up(told)
        elif isinstance(told, Told):
            self._tell(flight.number, told.what)
        else:
            self.results[flight.number] = told
            self._runner._idle.append(self._calls.pop(stream).worker)

    def _fail(self, error: RayError, flight: _Flight) -> None:
        """Returns if the item is to be tried again."""
        if isinstance(error, RayTaskError):
            self._runner._idle.append(flight.worker)
            raise error.cause from error
        ray.kill(flight.worker.actor)
        if flight.found_gone:
            return
        ending, message = self._runner._explain(error, flight)
        self._failures[flight.number, ending] += 1
        number, limit = self._failures[flight.number, ending], allowed(ending, self._runner._scaling)
        if decide(ending, number, limit) is Decision.GIVE_UP:
            rule = f"was lost {number} times ({ending}), where {limit} are allowed: {message}"
            raise TrainingError("worker", f"item {flight.number}", rule, "Run the command again") from error
        logger.warning("item %d: %s failure %d: %s", flight.number, ending, number, message.partition("\n")[0])


def _wait(references: list[Any], timeout_s: float) -> list[Any]:
    """All that are ready, having waited for the first of them."""
    ready, _ = ray.wait(references, num_returns=1, timeout=timeout_s)
    if ready:
        ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
    return ready


def _join() -> None:
    try:
        # Workers' prints would land on the driver's standard output, which belongs to --json.
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, AuthenticationError) as error:
        remedy = "Check that it runs there and, if it wants a token, RAY_AUTH_MODE and RAY_AUTH_TOKEN"
        rule = f"cannot be joined: {error}"
        raise ResourcesError("RAY_ADDRESS", os.environ.get("RAY_ADDRESS", ""), rule, remedy) from error


def _here(number: int) -> Placed:
    """This process."""
    node: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    node_id = ray.get_runtime_context().get_node_id()
    return Placed(number=number, node=node, node_id=node_id, pid=os.getpid())


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
    maximum: dict[str, int] | None = state.get_max_resources_from_cluster_config()
    return maximum


def _autoscales() -> bool:
    """Whether something may add nodes to the cluster.

    Open-source Ray reports no maximum (only a platform may); what it starts for an autoscaler has a node group.
    """
    return _autoscaler_maximum() is not None or any(NODE_GROUP in node.get("Labels", {}) for node in _nodes())
