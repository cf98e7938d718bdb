"""A run on a real Ray cluster whose storage is a real S3 server: workers have the credentials of who started them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from places import config_in, storage_on, use_keys
from servers import SeaweedFS
from small_runs import all_samples, block_over_two_shards, dataset

from ray_sisa.config import Scaling
from ray_sisa.engine.ray_runner import RayRunner
from ray_sisa.run import Run

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def on_ray(server: SeaweedFS) -> Iterator[RayRunner]:
    """A runner on a Ray of two CPUs, started with the server's credentials in its environment and no others."""
    with pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            environment.delenv(name)
        use_keys(environment, server)
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        runner = RayRunner(Scaling())
        yield runner
        runner.close()
        ray.shutdown()


def test_workers_reach_the_store(server: SeaweedFS, on_ray: RayRunner, expected: tuple[str, str]) -> None:
    run = Run.create(config_in(storage_on(server)), dataset=dataset(all_samples()))
    assert run.train(runner=on_ray).ensemble_digest == expected[0]
    run.forget(samples=block_over_two_shards(run))
    assert run.unlearn(runner=on_ray).ensemble_digest == expected[1]
    assert run.verify(runner=on_ray, sample=3).ok
    assert run.evaluate(runner=on_ray).complete
    assert run.check().ok
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    written = b"".join(path.read_bytes() for path in (session / "logs").rglob("*") if path.is_file())
    assert written
    assert server.secret_key.encode() not in written
