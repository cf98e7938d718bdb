"""The runner on Ray: chains and mapped items as jobs of a pool of actors, on the cluster that this process joins.

Nothing but small records and, for `map`, one shared value passes through Ray's object store.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from typing import Any

import ray
from ray._private.services import canonicalize_bootstrap_address

from ray_sisa.config import Scaling
from ray_sisa.engine import address, ray_local
from ray_sisa.engine.mapping import JobNews, Lost, Raised, Said, map_items
from ray_sisa.engine.ray_cluster import RayCluster
from ray_sisa.engine.ray_pool import RayPool
from ray_sisa.engine.runner import Item, Result, Tell, Told, WorkerNews, no_one
from ray_sisa.engine.work import ChainEnded, ChainWork, Event, WorkerEvent


class RayRunner:
    """Trains chains in actors of a cluster: the one that RAY_ADDRESS names or that runs here, else a new local one."""

    def __init__(self, scaling: Scaling) -> None:
        self._started_ray = not ray.is_initialized()
        if self._started_ray:
            _join()
        self._scaling, self._cluster = scaling, RayCluster(scaling)
        self._pool = RayPool(cluster=self._cluster, scaling=scaling)
        try:
            self.demand(0)  # that of a driver that was killed outlives it
            self._cluster.check_feasible()
        except Exception:
            self.close()
            raise

    def capacity(self) -> int:
        """How many workers the nodes could hold were they empty, up to `max_concurrent_shards`."""
        return self._cluster.capacity()

    def demand(self, num_chains: int) -> None:
        """Tells an autoscaler how many workers could be of use; it keeps them until told again."""
        self._cluster.demand(num_chains)

    def want(self, num_waiting: int) -> None:
        """Starts workers for chains that wait, and lets those go that start for nothing."""
        self._pool.want(num_waiting)

    def free(self) -> int:
        """How many workers could take up a chain now."""
        return self._pool.free()

    def start(self, work: ChainWork) -> None:
        """Hands the chain to a free worker."""
        self._pool.submit(work.shard, train, work)

    def poll(self, timeout_s: float) -> list[Event | WorkerNews]:
        """The next event of each worker that has one."""
        return [_of_chain(news) for news in self._pool.poll(timeout_s)]

    def stop(self, shard: int) -> None:
        """Kills the worker of a shard: what runs in it is of no use any more."""
        self._pool.stop(shard)

    def map(
        self, function: Callable[..., Result], shared: object, items: Sequence[Item], tell: Tell = no_one
    ) -> list[Result]:
        """Spreads the items over workers, as many as there is room for by then; `shared` is sent once."""
        self.demand(len(items))
        return map_items(self._pool, self._scaling, function, ray.put(shared), items, tell)

    def close(self) -> None:
        """Kills the workers, takes back the demand, and ends the Ray that this runner started."""
        self._pool.close()
        self.demand(0)
        if self._started_ray:
            ray.shutdown()


def train(work: ChainWork) -> Generator[WorkerEvent, None, ChainEnded]:
    """What a worker does with a chain: tells its events, and returns how it ended."""
    try:
        from ray_sisa.engine.worker import train_chain  # torch: here, and not in the driver

        yield from train_chain(work)
        return ChainEnded(shard=work.shard, ending="finished")
    except (Exception, SystemExit) as error:
        # As text: Ray leaves lines out of a traceback, and cannot carry every exception.
        return ChainEnded.by_error(work.shard, error)


def _of_chain(news: JobNews | WorkerNews) -> Event | WorkerNews:
    if isinstance(news, Said):
        said: Event = news.what.what if isinstance(news.what, Told) else news.what
        return said
    if isinstance(news, Raised):  # before it trained: what was sent cannot be read there, say
        return ChainEnded(shard=news.number, ending="application", message=news.text)
    if isinstance(news, Lost):
        return ChainEnded(shard=news.number, ending=news.ending, message=news.message)
    return news


def _join() -> None:
    # Since Ray 2.59 each start of a cluster tells of its token: docs/security.md does so once.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    resolve: Any = canonicalize_bootstrap_address
    with (
        address.joining(os.environ.get("RAY_ADDRESS", ""), lambda: resolve(None)) as found,
        nullcontext() if found else ray_local.apart(),
    ):
        # Workers' prints would land on the driver's standard output, which belongs to --json.
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING)
