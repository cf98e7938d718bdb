"""Buckets that keep versions: what is deleted is gone from them too, or it is said that it is not.

On a real S3 server with versioning on. What is there is looked at through boto3: every version of every object.
"""

from __future__ import annotations

import logging
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import programs
import pytest
from azure.storage.blob import BlobServiceClient, RetentionPolicy
from botocore.config import Config
from clouds import Azurite, FakeGCS
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from places import config_in
from servers import SeaweedFS
from small_runs import all_samples, dataset, small_config

from ray_sisa import retention
from ray_sisa.config import PurgeConfig
from ray_sisa.digests import seal
from ray_sisa.errors import StoreError
from ray_sisa.location import join_run
from ray_sisa.records import Certificate
from ray_sisa.run import Run
from ray_sisa.store import Store

KEEPS = "the bucket keeps deleted objects as versions"


class Versions:
    """A bucket with versioning on, as boto3 shows it."""

    def __init__(self, server: SeaweedFS, *, lock: bool = False) -> None:
        keys = {"aws_access_key_id": server.access_key, "aws_secret_access_key": server.secret_key}
        path = Config(s3={"addressing_style": "path"})
        self.client = boto3.client("s3", endpoint_url=server.endpoint, region_name="us-east-1", config=path, **keys)
        self.bucket = f"kept-{secrets.token_hex(4)}"
        self.client.create_bucket(Bucket=self.bucket, ObjectLockEnabledForBucket=lock)
        self.set("Enabled")
        address = server.endpoint.removeprefix("http://")
        self.storage_path = f"s3://{self.bucket}/prefix?endpoint_override={address}&scheme=http"

    def set(self, status: str) -> None:
        self.client.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration={"Status": status})

    def all(self, kind: str = "Versions") -> list[dict[str, Any]]:
        pages = self.client.get_paginator("list_object_versions").paginate(Bucket=self.bucket)
        return [each for page in pages for each in page.get(kind, ())]

    def contents(self) -> dict[tuple[str, str], bytes]:
        """Every version of every object, whole, by path in the run and version."""
        found = {}
        for each in self.all():
            got = self.client.get_object(Bucket=self.bucket, Key=each["Key"], VersionId=each["VersionId"])
            found[each["Key"].removeprefix("prefix/run/"), each["VersionId"]] = got["Body"].read()
        return found


@pytest.fixture
def versions(server: SeaweedFS, keys: None) -> Versions:
    return Versions(server)


def make(versions: Versions, policy: str = "warn") -> Run:
    config = config_in(versions.storage_path)
    purge = small_config(Path(), purge={"versions": policy}).purge
    return Run.create(config.model_copy(update={"purge": purge}), dataset=dataset(all_samples()))


def traces(versions: Versions, run: Run, deleted: list[str], retired: set[str]) -> set[str]:
    """Objects, whatever their version, in which a deleted image is, or that are of a retired stage or measure one."""
    samples = all_samples()
    images = [bytes(samples.images[row]) for row, name in enumerate(samples.ids.to_pylist()) if name in set(deleted)]
    assert len(images) == len(deleted)
    inside = {path for (path, _), data in versions.contents().items() if any(image in data for image in images)}
    return inside | {
        path
        for path, _ in versions.contents()
        if path.startswith("reports/evaluation-") or (path.startswith("stages/") and path.split("/")[1] in retired)
    }


def forget_and_unlearn(run: Run) -> tuple[list[str], Certificate]:
    deleted = run.sample_ids(0, 1)[:1] + run.sample_ids(1, 3)[:2]
    run.forget(samples=deleted)
    run.unlearn(runner="local")
    return deleted, run.certificates()[-1]


@pytest.mark.parametrize("policy", ["warn", "delete"])
def test_no_version_holds_a_deleted_sample(versions: Versions, policy: str) -> None:
    run = make(versions, policy)
    run.train(runner="local")
    run.evaluate(runner="local")
    deleted, certificate = forget_and_unlearn(run)
    left = traces(versions, run, deleted, set(certificate.retired_stages))
    assert certificate.retired_stages
    if policy == "warn":  # that is what a look at current objects does not show, and what must be said
        assert {path.split("/")[0] for path in left} == {"reports", "slices", "stages"}
        assert (certificate.deleted_objects, certificate.retention) == ("kept", KEEPS)
        assert certificate.claim.endswith(f"But {KEEPS}.")
    else:
        assert left == set()
        assert versions.all("DeleteMarkers") == [] or {
            each["Key"].split("/")[2] for each in versions.all("DeleteMarkers")
        } <= {"lease", "probes"}
        assert (certificate.deleted_objects, certificate.kept_objects) == ("gone", ())
        assert "But" not in certificate.claim
    assert run.check().findings == ()
    assert run.verify(runner="local").ok


def test_what_was_deleted_before_goes_too(versions: Versions) -> None:
    """Under `warn` it stayed; the next command that is told to delete versions removes that as well."""
    run = make(versions)
    run.train(runner="local")
    deleted, certificate = forget_and_unlearn(run)
    assert traces(versions, run, deleted, set(certificate.retired_stages))
    ended = programs.ray_sisa("unlearn", run.store.uri, "--set", "purge.versions=delete", "--runner", "local").wait()
    assert ended.code == 0, ended.err
    assert traces(versions, run, deleted, set(certificate.retired_stages)) == set()


def test_a_kill_between_delete_and_removal_is_made_good(versions: Versions) -> None:
    run = make(versions, "delete")
    run.train(runner="local")
    deleted = run.sample_ids(0, 1)[:1]
    run.forget(samples=deleted)
    crash = {"RAY_SISA_CRASH_AT": "after delete stages/weights", "RAY_SISA_LEASE_S": "1"}
    killed = programs.ray_sisa("unlearn", run.store.uri, "--runner", "local", environment=crash).wait()
    assert killed.code == -9
    assert traces(versions, run, deleted, set())
    run.unlearn(runner="local", wait_s=60)
    assert traces(versions, run, deleted, set(run.certificates()[0].retired_stages)) == set()


def test_it_is_said_wherever_one_looks(versions: Versions, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        run = make(versions)
        run.train(runner="local")
    assert [r.getMessage() for r in caplog.records if "may stay" in r.getMessage()] == [
        f"what a run deletes may stay: {KEEPS} (purge.versions: warn)"
    ]
    assert run.status().retention.sentence == KEEPS
    asked = programs.ray_sisa("status", run.store.uri).wait()
    assert KEEPS in asked.out
    assert run.check().notes == (f"{KEEPS}: 0 of samples, features, stages and measurements",)
    _, certificate = forget_and_unlearn(run)
    assert int(run.check().notes[0].rpartition(": ")[2].split()[0]) > len(certificate.retired_stages)
    assert run.check().ok


def test_refused(versions: Versions) -> None:
    with pytest.raises(
        StoreError, match=f"purge.versions = refuse, s3://{versions.bucket}/prefix/run: {KEEPS}"
    ) as caught:
        make(versions, "refuse")
    assert "Turn versioning and soft delete off" in caught.value.remedy
    assert versions.all() == []
    versions.set("Suspended")
    with pytest.raises(StoreError, match=KEEPS):  # what was deleted before is there still
        make(versions, "refuse")
    run = make(versions)
    run.train(runner="local")
    run.forget(samples=run.sample_ids(0, 1)[:1])
    ended = programs.ray_sisa("unlearn", run.store.uri, "--set", "purge.versions=refuse", "--json").wait()
    assert ended.code == 1
    assert ended.answer["error"]["field"] == "purge.versions"
    assert run.certificates() == []


def test_versions_that_may_not_go_are_listed_and_never_come_back(server: SeaweedFS, keys: None) -> None:
    """Under a legal hold an old version stays. Its mark of deletion must stay too, or it would be current again."""
    versions = Versions(server, lock=True)
    run = make(versions, "delete")
    run.train(runner="local")
    held = next(path for path in run.store.sizes("slices") if run.record.slices[0][0].digest in path)
    versions.client.put_object_legal_hold(Bucket=versions.bucket, Key=f"prefix/run/{held}", LegalHold={"Status": "ON"})
    run.forget(samples=run.sample_ids(0, 1)[:1])
    run.unlearn(runner="local")
    certificate = run.certificates()[0]
    assert (certificate.deleted_objects, certificate.kept_objects) == ("kept", (held,))
    assert "versions of 1 deleted object(s) could not be removed" in certificate.claim
    assert run.store.find(held) is None
    assert {path for path, _ in versions.contents() if path.startswith("slices/")} == {held, *run.store.sizes("slices")}
    assert run.check().ok


def test_without_a_client_nothing_is_claimed(versions: Versions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    run = make(versions)
    unknown = run.status().retention
    assert unknown.unknown == "boto3 is not installed (pip install 'ray-sisa[s3]')"
    assert unknown.sentence in run.check().notes
    run.train(runner="local")
    assert forget_and_unlearn(run)[1].deleted_objects == "unknown"
    for policy in ("refuse", "delete"):
        with pytest.raises(StoreError, match="it could not be found out"):
            Run.open(run.store.uri, purge=small_config(Path(), purge={"versions": policy}).purge).unlearn(
                runner="local"
            )


def test_a_bucket_without_versions(s3: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for storage_path in (s3, str(tmp_path)):
        run = Run.create(config_in(storage_path), dataset=dataset(all_samples()))
        assert run.status().retention == retention.Retention()
        run.train(runner="local")
        assert forget_and_unlearn(run)[1].deleted_objects == "gone"
        assert run.check().notes == ()
    assert "may stay" not in caplog.text


def test_a_certificate_of_before_nobody_asked(s3: str) -> None:
    run = Run.create(config_in(s3), dataset=dataset(all_samples()))
    run.train(runner="local")
    _, certificate = forget_and_unlearn(run)
    new = ("deleted_objects", "retention", "kept_objects")
    old = Certificate.model_validate(certificate.model_dump(exclude=set(new)))
    run.store.delete([certificate.path])
    run.store.put(certificate.path, seal_of(old, new))
    assert run.certificates()[0].deleted_objects is None
    assert run.check().ok


def seal_of(certificate: Certificate, without: tuple[str, ...]) -> bytes:
    return seal(certificate.model_dump_json(indent=1, exclude=set(without)).encode())


@pytest.mark.cloud
def test_versions_of_google_cloud_storage(gcs_server: FakeGCS, cloud: Callable[[str], str]) -> None:
    """Found out, and said. What soft delete keeps the emulator cannot say."""
    plain = Store(join_run(cloud("gcs"), "run"))
    assert retention.retention_of(plain) == retention.Retention()
    client = storage.Client("none", AnonymousCredentials(), client_options={"api_endpoint": gcs_server.endpoint})
    bucket = client.bucket("kept")
    bucket.versioning_enabled = True
    client.create_bucket(bucket)
    kept = Store(plain.uri.replace(gcs_server.bucket, "kept"))
    assert retention.retention_of(kept).sentence == KEEPS
    with pytest.raises(StoreError, match=r"purge\.versions = delete, .* on S3 alone"):
        retention.look(kept, PurgeConfig(versions="delete"))
    missing = Store(plain.uri.replace(gcs_server.bucket, "none"))
    assert "storage.buckets.get failed" in retention.retention_of(missing).unknown


@pytest.mark.cloud
def test_soft_delete_of_azure(azure_server: Azurite, cloud: Callable[[str], str]) -> None:
    """Found out, and said. Of versions the emulator knows nothing."""
    store = Store(join_run(cloud("azure"), "run"))
    assert "Azure does not tell" in retention.retention_of(store).unknown
    client = BlobServiceClient(f"{azure_server.endpoint}/{azure_server.account}", credential=azure_server.key)
    client.set_service_properties(delete_retention_policy=RetentionPolicy(enabled=True, days=5))
    try:
        found = retention.look(store, PurgeConfig(versions="warn"))
        assert found.sentence == "the bucket keeps deleted objects for 5 days, by soft delete"
        with pytest.raises(StoreError, match="on S3 alone: the bucket keeps deleted objects for 5 days"):
            retention.look(store, PurgeConfig(versions="delete"))
    finally:
        client.set_service_properties(delete_retention_policy=RetentionPolicy(enabled=False))
