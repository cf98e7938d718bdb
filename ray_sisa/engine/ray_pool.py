"""Workers on Ray: actors that start, that are free and that have a job, each in one of these three at a time.

An actor gets a job only once it has come up: one that waits for what others hold has nothing that another could do.
Actors are never restarted by Ray: a fresh one resumes from the last committed stage, and each failure is seen once.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from ray_sisa import model_code
from ray_sisa.config import Scaling
from ray_sisa.engine.losses import killed_for_memory, lost
from ray_sisa.engine.mapping import JobNews, Lost, Raised, Said
from ray_sisa.engine.ray_cluster import RayCluster
from ray_sisa.engine.runner import GivenBack, Placed, Told, WorkerLost, WorkerNews, WorkerReady, telling
from ray_sisa.engine.turns import staffing
from ray_sisa.engine.work import Ending

COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # Ray's, in tracebacks
IDLE_S = 30.0  # for so long a worker that nothing waits for keeps what others could use

PoolNews = JobNews | WorkerNews


class ShardWorker:
    """The process that trains a shard, or runs a mapped function."""

    def __repr__(self) -> str:
        return "ShardWorker"

    def come_up(self) -> str:
        """Imports torch, which takes longest of a start; returns the id of the node."""
        import torch  # noqa: F401

        return _node_id()

    def work(
        self, number: int, gpu_fraction: float, models: frozenset[str], function: Callable[..., Any], *arguments: Any
    ) -> Iterator[Any]:
        """Where, then what `function(*arguments)` tells, then its result; keeps to its part of a shared GPU.

        It may import the networks by these names, which its driver may import.
        """
        model_code.allow(models)
        node: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        yield Placed(number=number, node=node, node_id=_node_id(), pid=os.getpid())
        if 0 < gpu_fraction < 1:
            import torch

            torch.cuda.set_per_process_memory_fraction(gpu_fraction)
        yield (yield from telling(function(*arguments)))


@dataclass(kw_only=True, slots=True)
class _Worker:
    actor: ActorHandle[Any]
    node_id: str = ""
    free_since: float = 0.0
    has_worked: bool = False


@dataclass(kw_only=True, slots=True)
class _Flight:
    """A job, and the worker that was given it."""

    number: int
    worker: _Worker
    place: Placed | None = None
    """None until the worker has taken it up."""


@dataclass(kw_only=True, slots=True)
class RayPool:
    """The workers of one driver on the cluster that it has joined."""

    cluster: RayCluster
    scaling: Scaling
    _starting: dict[ray.ObjectRef[Any], _Worker] = field(default_factory=dict)
    _free: list[_Worker] = field(default_factory=list)
    _flights: dict[ray.ObjectRefGenerator, _Flight] = field(default_factory=dict)

    def want(self, num_waiting: int) -> None:
        """Starts workers for what waits, and lets those go that start, or have long been free, for nothing."""
        self.cluster.look_for_notices()
        self._leave_nodes()
        more = staffing(
            num_waiting=num_waiting,
            num_free=len(self._free),
            num_starting=len(self._starting),
            num_working=len(self._flights),
            capacity=self.cluster.capacity() if num_waiting > len(self._free) else 0,
        )
        for _ in range(more):
            worker = _Worker(actor=self._new_actor())
            self._starting[worker.actor.come_up.remote()] = worker
        for reference in list(reversed(self._starting))[: max(0, -more)]:  # the newest: furthest from coming up
            ray.kill(self._starting.pop(reference).actor)
        if not num_waiting:
            self._let_go_of_idle()

    def free(self) -> int:
        """How many workers could take up a job now."""
        return len(self._free)

    def submit(self, number: int, function: Callable[..., Any], *arguments: Any) -> None:
        """Hands `function(*arguments)` to a free worker; `poll` says what it tells, and then what it returns."""
        worker = self._free[-1]  # among the free until it has work, so that an error before that loses none
        call: Any = worker.actor.work
        stream = call.remote(number, self.scaling.num_gpus, model_code.allowed(), function, *arguments)
        self._flights[stream] = _Flight(number=number, worker=worker)
        self._free.pop()

    def poll(self, timeout_s: float) -> list[PoolNews]:
        """The next news of each worker that has some."""
        self.cluster.look_for_notices()
        references = [*self._starting, *self._flights]
        if not references:
            return []
        return [self._start(one) if one in self._starting else self._next(one) for one in _wait(references, timeout_s)]

    def stop(self, number: int) -> None:
        """Kills the worker of a job: what runs in it is of no use any more."""
        for stream, flight in list(self._flights.items()):
            if flight.number == number:
                del self._flights[stream]
                ray.kill(flight.worker.actor)

    def close(self) -> None:
        """Kills all workers."""
        flying = (flight.worker for flight in self._flights.values())
        for worker in [*self._starting.values(), *self._free, *flying]:
            ray.kill(worker.actor)
        self._starting, self._free, self._flights = {}, [], {}

    def _start(self, reference: ray.ObjectRef[Any]) -> PoolNews:
        worker = self._starting.pop(reference)
        try:
            worker.node_id = ray.get(reference)
        except RayTaskError as error:
            ray.kill(worker.actor)
            return WorkerLost(ending="application", message=COLOURS.sub("", str(error)))
        except RayError as error:
            ray.kill(worker.actor)
            ending, message = self._explain(error, None)
            return WorkerLost(ending=ending, message=message)
        self._set_free(worker)
        return WorkerReady()

    def _next(self, stream: ray.ObjectRefGenerator) -> PoolNews:
        flight = self._flights[stream]
        try:
            said = ray.get(next(stream))
        except RayTaskError as error:
            self._land(stream)
            return Raised(number=flight.number, error=error.cause, text=COLOURS.sub("", str(error)))
        except RayError as error:
            return self._lose(stream, error)
        if isinstance(said, Placed):
            flight.place, flight.worker.has_worked = said, True
            return said
        if not isinstance(said, Told):
            self._land(stream)
        return Said(number=flight.number, what=said)

    def _land(self, stream: ray.ObjectRefGenerator) -> None:
        self._set_free(self._flights.pop(stream).worker)  # after an error too: the process lives

    def _set_free(self, worker: _Worker) -> None:
        worker.free_since = time.monotonic()
        self._free.append(worker)

    def _lose(self, stream: ray.ObjectRefGenerator, error: RayError) -> PoolNews:
        flight = self._flights.pop(stream)
        ray.kill(flight.worker.actor)  # it may be out of reach rather than dead: no two may work on
        if flight.place is None and flight.worker.has_worked:
            return GivenBack(number=flight.number)
        ending, message = self._explain(error, flight.place)
        return Lost(number=flight.number, ending=ending, message=message)

    def _explain(self, error: RayError, place: Placed | None) -> tuple[Ending, str]:
        """The kind of a loss and its cause in words."""
        process = str(place or "")
        if isinstance(error, OutOfMemoryError):
            return "worker", killed_for_memory(str(error), process, place.pid if place else 0)
        # Ray tells of a preemption once it knows the node to be dead: some time after it lost sight of the worker.
        self.cluster.look_for_notices(at_once=True)
        told = isinstance(error, RayActorError) and error.preempted
        preempted = told or (place is not None and self.cluster.is_leaving(place.node_id))
        return "preemption" if preempted else "worker", lost(str(error), process, preempted)

    def _leave_nodes(self) -> None:
        """Lets free workers go that would be lost with their node."""
        self._let_go([worker for worker in self._free if self.cluster.is_leaving(worker.node_id)])

    def _let_go_of_idle(self) -> None:
        since = time.monotonic() - IDLE_S
        self._let_go([worker for worker in self._free if worker.free_since < since])

    def _let_go(self, workers: list[_Worker]) -> None:
        for worker in workers:
            self._free.remove(worker)
            ray.kill(worker.actor)

    def _new_actor(self) -> ActorHandle[Any]:
        resources = dict(self.scaling.resources_per_worker)
        options = {
            "num_cpus": resources.pop("CPU", 0),
            "num_gpus": resources.pop("GPU", 0),
            "memory": resources.pop("memory", 0),  # bytes
            "resources": resources,
            "max_restarts": 0,
            "label_selector": self.scaling.label_selector or None,
        }
        remote_class: Any = ray.remote(ShardWorker)
        actor: ActorHandle[Any] = remote_class.options(**options).remote()
        return actor


def _wait(references: list[Any], timeout_s: float) -> list[Any]:
    """All that are ready, having waited for the first of them."""
    ready, _ = ray.wait(references, num_returns=1, timeout=timeout_s)
    if ready:
        ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
    return ready


def _node_id() -> str:
    node_id: str = ray.get_runtime_context().get_node_id()
    return node_id
