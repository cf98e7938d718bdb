"""cluster.yaml is what `ray up` accepts, and keeps its promises: read by Ray's own code, with no cloud behind it."""

from __future__ import annotations

import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def _as_ray_up_reads(path: Path) -> dict[str, Any]:
    """The file with Ray's defaults filled in, checked against Ray's schema. Private to Ray: there is no public way."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load(path.read_text()))
    validate_config(config)
    return config


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return _as_ray_up_reads(ROOT / "cluster.yaml")


@pytest.fixture(scope="module")
def gpu_pools(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: pool for name, pool in cluster["available_node_types"].items() if pool["resources"].get("GPU")}


@pytest.fixture(scope="module")
def requirements() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {r.name: r for r in map(Requirement, project["dependencies"])}


def test_no_work_lands_on_the_head(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0


def test_gpu_workers_scale_from_none_to_the_sum_of_their_pools(
    cluster: dict[str, Any], gpu_pools: dict[str, dict[str, Any]]
) -> None:
    assert len(gpu_pools) >= 2
    assert all(pool["min_workers"] == 0 < pool["max_workers"] for pool in gpu_pools.values())
    assert cluster["max_workers"] == sum(pool["max_workers"] for pool in gpu_pools.values())


def test_spot_workers_come_before_on_demand_ones(gpu_pools: dict[str, dict[str, Any]]) -> None:
    priorities = {pool["labels"]["market"]: pool["priority"] for pool in gpu_pools.values()}
    assert priorities["spot"] > priorities["on-demand"]
    for pool in gpu_pools.values():
        is_spot = pool["node_config"].get("InstanceMarketOptions") == {"MarketType": "spot"}
        assert is_spot == (pool["labels"]["market"] == "spot")


def test_pools_are_interchangeable(gpu_pools: dict[str, dict[str, Any]]) -> None:
    # The autoscaler weighs what fits first and priority after it, so a fallback must offer the same.
    assert len({str(pool["resources"]) for pool in gpu_pools.values()}) == 1


def test_images_hold_one_ray_that_the_package_accepts(
    cluster: dict[str, Any], requirements: dict[str, Requirement]
) -> None:
    tags = [cluster["docker"][image].partition(":")[2] for image in ("head_image", "worker_image")]
    (version,) = {tag.split("-")[0] for tag in tags}
    assert requirements["ray"].specifier.contains(version)
    assert len({tag.split("-")[1] for tag in tags}) == 1


OF_OTHERS = {"opt-einsum"}
"""Packages that the package does not name, but that bits depend on: Opacus contracts gradients of samples with it."""


def installed(cluster: dict[str, Any]) -> dict[str, Requirement]:
    arguments = [word for command in cluster["setup_commands"] for word in shlex.split(command)]
    found = [Requirement(word) for word in arguments if word not in {"pip", "install"} and word[0] != "-"]
    return {requirement.name: requirement for requirement in found}


def test_nodes_install_what_the_package_requires(cluster: dict[str, Any], requirements: dict[str, Requirement]) -> None:
    assert installed(cluster).keys() == (requirements.keys() - {"ray"}) | OF_OTHERS


def test_nodes_that_boot_on_different_days_install_the_same(
    cluster: dict[str, Any], requirements: dict[str, Requirement]
) -> None:
    for name, requirement in installed(cluster).items():
        (pin,) = requirement.specifier
        assert pin.operator == "==" and "*" not in pin.version, requirement
        if name not in OF_OTHERS:
            assert requirements[name].specifier.contains(pin.version), (requirement, requirements[name])


def test_every_container_asks_for_the_token_and_has_it(cluster: dict[str, Any]) -> None:
    docker = cluster["docker"]
    assert "--env RAY_AUTH_MODE=token" in docker["run_options"]
    assert "RAY_AUTH_MODE" not in str([docker.get(f"{kind}_run_options") for kind in ("head", "worker")])
    assert cluster["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
