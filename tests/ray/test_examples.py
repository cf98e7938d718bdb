"""The README's own path on a cluster: the very commands that it prints, on a real head, with data and runs on S3.

What stands for something else is put in its place: the head's address, and the bucket. Nothing is faked.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator

import pytest
from real_head import ROOT, Head, bare_checkout, started_head
from servers import SeaweedFS

from ray_sisa.run import Run

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

BUCKET = f"s3://{SeaweedFS.bucket}"


@pytest.fixture(scope="module")
def server() -> Iterator[SeaweedFS]:
    with SeaweedFS() as server:
        yield server


@pytest.fixture(scope="module")
def head(server: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head on a bare checkout with the examples and the ignore files, a Parquet file of data beside them."""
    checkout = bare_checkout(tmp_path_factory.mktemp("checkout"))
    shutil.copytree(ROOT / "examples", checkout / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, checkout)
    example = checkout / "examples" / "cluster.yaml"
    example.write_text(example.read_text().replace("s3://bucket", BUCKET))
    (checkout / "train.parquet").write_bytes(b"never uploaded")
    with started_head(checkout, server.environment) as head:
        yield head


def printed_commands(head: Head) -> list[list[str]]:
    """The commands of the README's section, but for the first, which takes a cloud."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## On a cluster\n")[2].partition("\n## ")[0]
    lines = re.findall(r"^    (\S.*)$", section, flags=re.MULTILINE)
    assert lines[0] == "ray up cluster.yaml"
    filled = [line.replace("http://HEAD:8265", head.address).replace("s3://bucket", BUCKET) for line in lines[1:]]
    return [shlex.split(line, comments=True) for line in filled]


def test_the_readmes_commands_train_forget_and_unlearn(
    head: Head, server: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = printed_commands(head)
    assert [command[0] for command in commands] == ["python", "ray", "ray-sisa", "ray"]
    environment = head.environment | {"PYTHONPATH": str(head.checkout)}  # for `ray-sisa`, which is not in the checkout
    for command in commands:
        done = head.run(*command, environment=environment)
        assert done.returncode == 0, done.stdout + done.stderr
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    run = Run.open(f"{BUCKET}/runs/digits")
    status = run.status()
    assert status.complete and (status.requests, status.live_samples) == (1, 1437)
    assert all(shard.depth == 5 for shard in status.shards)


def test_a_relative_path_is_refused_with_its_reason(head: Head) -> None:
    """As a user would have it who has the data in the checkout: the ignore files kept it from the cluster."""
    for override, field in (
        ("data.train=train.parquet", "data.train = train.parquet: does not exist"),
        ("storage_path=./runs", "storage_path = ./runs: is relative"),
    ):
        job = ["jobs/train.py", "--config", "examples/cluster.yaml", "--set", "name=other", "--set", override]
        done = head.run(*head.command(*job))
        assert done.returncode != 0
        assert field in done.stdout
        assert "Traceback" not in done.stdout
        assert (".rayignore" in done.stdout) == override.startswith("data")
