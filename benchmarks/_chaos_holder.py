"""Another job on a cluster: for seconds at a time it holds one of its CPUs, or all, and lets go of them again.

Run as a script by `_chaos_cluster`, until it is killed:

    python _chaos_holder.py ADDRESS SEED CPUS
"""

from __future__ import annotations

import random
import sys
import time

import ray

HOLD_S, LET_GO_S = (1.0, 6.0), (0.2, 4.0)
READY_S = 30.0  # a CPU that the others do not give up is asked for again


@ray.remote(num_cpus=1, max_restarts=0)
class Holder:
    def hold(self) -> None:
        """Returns once there is one."""


def main(address: str, seed: str, num_cpus: str) -> None:
    draw = random.Random(seed)
    ray.init(address, log_to_driver=False)
    while True:
        holders = [Holder.remote() for _ in range(draw.randint(1, int(num_cpus)))]
        ray.wait([holder.hold.remote() for holder in holders], num_returns=len(holders), timeout=READY_S)
        time.sleep(draw.uniform(*HOLD_S))
        for holder in holders:
            ray.kill(holder)
        time.sleep(draw.uniform(*LET_GO_S))


if __name__ == "__main__":
    main(*sys.argv[1:])
