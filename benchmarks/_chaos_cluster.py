"""A Ray cluster of real processes on this machine, whose workers, nodes and head can be killed.

It misses a node after a second or two, not after ten. Only processes that it started are ever killed.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from _chaos_program import ROOT, wait_until
from ray._common.utils import reset_ray_address
from ray.cluster_utils import Cluster

HOLDER = Path(__file__).with_name("_chaos_holder.py")
NUM_NODES = 2
WORKER = "ray::ShardWorker"
TRAINING = "ray::ShardWorker.work"
GCS_TIMEOUT_S = 5
LEAVE_S = 60.0
SETTINGS = {
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    # How long nodes and drivers look for a head that is gone, before they end.
    "RAY_gcs_rpc_server_reconnect_timeout_s": str(GCS_TIMEOUT_S),
    "RAY_DISABLE_IMPORT_WARNING": "1",
}


class RayCluster:
    """A head, on which nothing is trained, and two nodes of one CPU; for the length of a `with` block."""

    def __enter__(self) -> Self:
        self._folders: list[str] = []
        self._lost: list[Any] = []
        """Nodes of clusters whose head was killed."""
        self._holder: subprocess.Popen[bytes] | None = None
        self._start()
        return self

    def __exit__(self, *error: object) -> None:
        self.let_go()
        self._cluster.shutdown()
        self.bury()
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def environment(self) -> dict[str, str]:
        """What a driver of the cluster has in its environment."""
        return SETTINGS | {"RAY_ADDRESS": self._cluster.address}

    def workers(self, title: str = WORKER) -> list[int]:
        """Process ids of the shard actors of this cluster, or of those that do something."""
        mine = [_raylet(node).pid for node in self._cluster.worker_nodes]
        return [pid for pid, command in children(mine).items() if command.startswith(title)]

    def hold(self, seed: int) -> None:
        """Has another job hold CPUs of the worker nodes for part of the time, until `let_go`."""
        self.let_go()
        command = [sys.executable, str(HOLDER), self._cluster.address, str(seed), str(NUM_NODES)]
        with Path(self._folders[-1], "holder").open("ab") as log:
            self._holder = subprocess.Popen(command, env=os.environ | SETTINGS, stdout=log, stderr=log)

    def let_go(self) -> None:
        """Ends that job, if there is one."""
        if self._holder:
            self._holder.kill()
            self._holder.wait()
            self._holder = None

    def kill_worker(self, draw: random.Random) -> bool:
        """Kills a shard actor, one that trains if any does; False where there is none."""
        alive = self.workers(TRAINING) or self.workers()
        return bool(alive) and kill(draw.choice(sorted(alive)))

    def kill_node(self, draw: random.Random) -> bool:
        """Kills the raylet of a node, one with a shard actor if any has; and a new node comes."""
        nodes = sorted(self._cluster.worker_nodes, key=lambda node: _raylet(node).pid)
        with_workers = [n for n in nodes if any(c.startswith(WORKER) for c in children([_raylet(n).pid]).values())]
        node = draw.choice(with_workers or nodes)
        below = children([_raylet(node).pid])
        kill(_raylet(node).pid)
        _raylet(node).wait()
        self._add_node()
        # A node's workers end when they miss their raylet. Until then they may write.
        wait_until(lambda: not any(map(is_alive, below)), LEAVE_S)
        self._cluster.remove_node(node, allow_graceful=False)
        return True

    def kill_head(self) -> None:
        """Kills the processes of the head; its nodes are left to themselves."""
        head = self._cluster.head_node
        for name in ("gcs_server", "raylet"):
            process = head.all_processes[name][0].process
            kill(process.pid)
            process.wait()
        self._lost += self._cluster.list_all_nodes()

    def replace(self) -> None:
        """Starts a new cluster, while nodes of the one that lost its head may still be at work."""
        was_held = self._holder is not None
        self._start()
        if was_held:
            self.hold(len(self._folders))

    def at_rest(self) -> bool:
        """Waits until no shard actor runs any more, on nodes that lost their head either; False if one stays."""
        nodes = [*self._cluster.worker_nodes, *self._lost]
        return wait_until(lambda: not any(c.startswith(WORKER) for c in _below(nodes).values()), LEAVE_S)

    def bury(self) -> bool:
        """Ends what is left of nodes that lost their head; False if a node had not ended by itself."""
        ended = wait_until(lambda: all(_raylet(node).poll() is not None for node in self._lost), LEAVE_S)
        for node in self._lost:
            node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        self._lost = []
        return ended

    def _start(self) -> None:
        self._folders.append(tempfile.mkdtemp(prefix="rs"))  # short, as the paths of sockets must be
        with _environment(SETTINGS | {"PYTHONPATH": str(ROOT)}):
            arguments = {"num_cpus": 0, "include_dashboard": False, "temp_dir": self._folders[-1]}
            self._cluster = Cluster(initialize_head=True, head_node_args=arguments)
        reset_ray_address()  # nobody else on this machine is to come upon it
        for _ in range(NUM_NODES):
            self._add_node()

    def _add_node(self) -> None:
        with _environment(SETTINGS | {"PYTHONPATH": str(ROOT)}):
            self._cluster.add_node(num_cpus=1)


def kill(pid: int) -> bool:
    """Kills a process (SIGKILL); False where it has ended."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and is not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(parents: list[int]) -> dict[int, str]:
    """Command lines of the processes right below some, by process id."""
    found = {}
    for parent in parents:
        try:
            text = " ".join(path.read_text() for path in Path(f"/proc/{parent}/task").glob("*/children"))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        found |= {int(pid): _command(int(pid)) for pid in re.findall(r"\d+", text)}
    return found


def descendants(root: int) -> dict[int, str]:
    """Command lines of all processes below one, by process id."""
    found, level = dict[int, str](), children([root])
    while level:
        found |= level
        level = children(list(level))
    return found


def _below(nodes: list[Any]) -> dict[int, str]:
    return children([_raylet(node).pid for node in nodes])


def _raylet(node: Any) -> Any:
    return node.all_processes["raylet"][0].process


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Variables of this process, and so of what it starts, for the length of the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ |= values
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
