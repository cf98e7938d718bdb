"""A head with Ray's token authentication: jobs run with the token, and not at all without it or with another.

Real are the head and the submissions. Clients without a token have a home of their own, since Ray looks there for one.
"""

from __future__ import annotations

import secrets
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from real_head import Head, answer_of, bare_checkout, started_head

from ray_sisa.run import Run

pytestmark = [pytest.mark.ray, pytest.mark.slow]

AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, runs: Path) -> Iterator[Head]:
    checkout = bare_checkout(tmp_path_factory.mktemp("checkout"))
    content = {
        "name": "job",
        "storage_path": str(runs),
        "data": {"source": "digits"},
        "placement": {"shards": 1, "slices": 2},
        "recipe": {"model": "mlp", "epochs_per_slice": 1},
    }
    (checkout / "config.yaml").write_text(yaml.safe_dump(content))
    (checkout / "others.yaml").write_text(yaml.safe_dump(content | {"name": "others"}))
    with started_head(checkout) as head:
        yield head


@pytest.fixture(params=["no token", "a wrong token"])
def stranger(request: pytest.FixtureRequest, head: Head, tmp_path: Path) -> dict[str, str]:
    """The environment of a client that the head does not know."""
    environment = {name: value for name, value in head.environment.items() if name not in AUTHENTICATION}
    environment["HOME"] = str(tmp_path)
    if request.param == "a wrong token":
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return environment


def test_jobs_run_with_the_token(head: Head, runs: Path, tmp_path: Path) -> None:
    """Given in a file, as a service would have it; `test_jobs.py` gives it in the environment."""
    file = tmp_path / "token"
    file.write_text(head.environment["RAY_AUTH_TOKEN"])
    environment = {name: value for name, value in head.environment.items() if name != "RAY_AUTH_TOKEN"}
    environment["RAY_AUTH_TOKEN_PATH"] = str(file)
    uri = str(runs / "job")
    for job in (
        ["jobs/train.py", "--config", "config.yaml"],
        ["jobs/unlearn.py", "--run", uri],
        ["jobs/evaluate.py", "--run", uri],
    ):
        done = head.run(*head.command(*job, "--json"), environment=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        answer = answer_of(done.stdout)
        if job[0] == "jobs/train.py":
            assert answer["stages_trained"] == 2
            run = Run.open(uri)
            run.forget(samples=run.sample_ids(0, 2)[:1])
    assert run.status().complete
    assert len(run.evaluations()) == 1


def test_a_stranger_submits_nothing(head: Head, runs: Path, stranger: dict[str, str]) -> None:
    before = sorted(runs.rglob("*"))
    for job in (
        ["jobs/train.py", "--config", "others.yaml"],
        ["jobs/unlearn.py", "--run", str(runs / "job")],
        ["jobs/evaluate.py", "--run", str(runs / "job")],
    ):
        done = head.run(*head.command(*job), environment=stranger)
        assert done.returncode != 0
        said = done.stdout + done.stderr
        assert "401" in said or "403" in said or "Unauthenticated" in said or "AuthenticationError" in said
        assert "submitted successfully" not in said
    assert sorted(runs.rglob("*")) == before
    assert not (runs / "others").exists()


def test_a_strangers_driver_cannot_join(head: Head, runs: Path, stranger: dict[str, str]) -> None:
    """A script that is not submitted, but names the cluster by RAY_ADDRESS: refused before anything is trained."""
    environment = stranger | {"RAY_ADDRESS": head.gcs_address, "RAY_NUM_REDIS_GET_RETRIES": "2"}  # else 20 s
    done = head.run("python", "jobs/train.py", "--config", "others.yaml", environment=environment)
    assert done.returncode != 0
    assert f"error: RAY_ADDRESS = {head.gcs_address}: cannot be joined: " in done.stderr
    assert "RAY_AUTH_TOKEN" in done.stderr
    assert not list((runs / "others").glob("stages/*"))
    shutil.rmtree(runs / "others", ignore_errors=True)


def test_a_stranger_is_refused_by_the_job_interface_itself(head: Head) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{head.address}/api/jobs/", timeout=30)
    refused.value.close()
    assert refused.value.code in (401, 403)
