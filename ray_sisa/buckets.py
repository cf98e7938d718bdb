"""Buckets as their providers manage them: what they keep of deleted objects, and old versions of objects.

`store.py` reads and writes objects by one library for all kinds of servers, which knows nothing of versions. Here each
provider is asked by a client of its own, which is an extra: without it nothing can be found out.
"""

from __future__ import annotations

import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store

from ray_sisa import location

DAY_S = 86400
PAGE = 1000  # versions deleted with one request
NUM_ATTEMPTS = 3  # a server that is away is waited for elsewhere: not knowing is no failure


class Unknown(Exception):
    """Why a provider cannot be asked, or does not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """An object as it was once; or the mark of its deletion, without which the version before it is current again."""

    path: str
    """Name in the bucket."""
    version: str
    is_mark: bool
    is_current: bool


class Bucket(ABC):
    """A bucket and a prefix in it. Every method raises `Unknown` where the provider does not answer."""

    def __init__(self, name: str, prefix: str) -> None:
        self.name, self._prefix = name, prefix.strip("/")

    @abstractmethod
    def keeps_versions(self) -> bool:
        """Whether deleted objects stay as versions, or earlier ones may have."""

    def soft_delete_s(self) -> int:
        """For how many seconds deleted objects can be restored."""
        return 0

    def versions(self, folder: str) -> Iterator[Version]:
        """Every version of every object in a folder of the prefix."""
        raise Unknown("old versions are listed and removed on S3 alone")

    def delete(self, versions: Sequence[Version]) -> list[Version]:
        """Deletes versions for good, and returns those that it could not."""
        raise Unknown("old versions are listed and removed on S3 alone")

    def old_versions(self, folders: Sequence[str]) -> list[Version]:
        """Whatever in these folders is not the content that a reader gets, marks of deletions included."""
        found = (version for folder in folders for version in self.versions(folder))
        return [version for version in found if version.is_mark or not version.is_current]

    def delete_old(self, folders: Sequence[str]) -> list[str]:
        """Deletes these, and returns the names of the objects of which some are left."""
        old = self.old_versions(folders)
        left = {version.path for version in self.delete([v for v in old if not v.is_mark])}
        # The marks last, and only of what is gone: without its mark, what is left of an object would be current again.
        left |= {version.path for version in self.delete([v for v in old if v.is_mark and v.path not in left])}
        return sorted(path.removeprefix(f"{self._prefix}/") for path in left)

    def _inside(self, folder: str) -> str:
        return f"{self._prefix}/{folder}/" if self._prefix else f"{folder}/"


def open_bucket(objects: ObjectStore) -> Bucket:
    """The bucket of an object store, asked by its provider's client.

    Raises:
        Unknown: there is no such client here, or none for this kind of store.
    """
    if isinstance(objects, S3Store):
        return S3Bucket(dict(objects.config), str(objects.prefix or ""))
    if isinstance(objects, GCSStore):
        return GoogleBucket(dict(objects.config), str(objects.prefix or ""))
    if isinstance(objects, AzureStore):
        return AzureContainer(dict(objects.config), str(objects.prefix or ""))
    raise Unknown("only S3, Google Cloud Storage and Azure are asked")


class S3Bucket(Bucket):
    """Of S3, or of a server that speaks it, by boto3."""

    def __init__(self, config: dict[str, Any], prefix: str) -> None:
        super().__init__(config["bucket"], prefix)
        try:
            import boto3
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError:
            raise Unknown("boto3 is not installed (pip install 'ray-sisa[s3]')") from None
        # Its debug logs hold whole requests, with the access key.
        logging.getLogger("botocore").setLevel(logging.INFO)
        self._errors = (BotoCoreError, ClientError)
        region = config.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        style = {"addressing_style": "path"} if config.get("endpoint") else {}
        options = Config(
            connect_timeout=location.CONNECT_S,
            read_timeout=location.STALL_S,
            retries={"total_max_attempts": NUM_ATTEMPTS},
            s3=style,
        )
        # A session of its own: the default one keeps the credentials that it met first.
        self._client = boto3.Session().client(
            "s3", endpoint_url=config.get("endpoint"), region_name=region or "us-east-1", config=options
        )

    def keeps_versions(self) -> bool:
        """Also where versioning is suspended: what was deleted before that is there still."""
        try:
            return bool(self._client.get_bucket_versioning(Bucket=self.name).get("Status"))
        except self._errors as error:
            raise Unknown(f"s3:GetBucketVersioning failed: {error}") from None

    def versions(self, folder: str) -> Iterator[Version]:
        """By pages of a listing."""
        pages = self._client.get_paginator("list_object_versions")
        try:
            for page in pages.paginate(Bucket=self.name, Prefix=self._inside(folder)):
                for kind in ("Versions", "DeleteMarkers"):
                    for each in page.get(kind, ()):
                        yield Version(
                            path=each["Key"],
                            version=each["VersionId"],
                            is_mark=kind == "DeleteMarkers",
                            is_current=each["IsLatest"],
                        )
        except self._errors as error:
            raise Unknown(f"s3:ListBucketVersions failed: {error}") from None

    def delete(self, versions: Sequence[Version]) -> list[Version]:
        """Many with one request; those under a retention or a legal hold cannot be deleted."""
        failed: set[tuple[str, str]] = set()
        for first in range(0, len(versions), PAGE):
            named = [{"Key": each.path, "VersionId": each.version} for each in versions[first : first + PAGE]]
            try:
                answer = self._client.delete_objects(Bucket=self.name, Delete={"Objects": named, "Quiet": True})
            except self._errors as error:
                raise Unknown(f"s3:DeleteObjectVersion failed: {error}") from None
            failed |= {(each["Key"], each.get("VersionId", "")) for each in answer.get("Errors", ())}
        return [each for each in versions if (each.path, each.version) in failed]


class GoogleBucket(Bucket):
    """Of Google Cloud Storage, by Google's client, with the service account that `obstore` finds, or the machine's."""

    def __init__(self, config: dict[str, Any], prefix: str) -> None:
        super().__init__(config["bucket"], prefix)
        try:
            from google.api_core.exceptions import GoogleAPIError
            from google.auth.credentials import AnonymousCredentials
            from google.auth.exceptions import GoogleAuthError
            from google.cloud import storage
        except ImportError:
            raise Unknown("google-cloud-storage is not installed (pip install 'ray-sisa[gcs]')") from None
        path = os.environ.get("GOOGLE_SERVICE_ACCOUNT") or os.environ.get("GOOGLE_SERVICE_ACCOUNT_PATH")
        errors = (GoogleAPIError, GoogleAuthError, OSError, ValueError)  # those of its HTTP client are of OSError
        try:
            key = json.loads(Path(path).read_text()) if path else {}
            server = {"api_endpoint": key["gcs_base_url"]} if "gcs_base_url" in key else None
            if key.get("disable_oauth"):  # of an emulator, as `obstore` has it
                client = storage.Client("none", AnonymousCredentials(), client_options=server)
            else:
                make = partial(storage.Client.from_service_account_info, key) if path else storage.Client
                client = make(client_options=server)
            self._bucket = client.get_bucket(self.name, timeout=location.STALL_S, retry=None)
        except errors as error:
            raise Unknown(f"storage.buckets.get failed: {error}") from None

    def keeps_versions(self) -> bool:
        """As the metadata of the bucket say."""
        return bool(self._bucket.versioning_enabled)

    def soft_delete_s(self) -> int:
        """Likewise."""
        return int(self._bucket.soft_delete_policy.retention_duration_seconds or 0)


class AzureContainer(Bucket):
    """Of Azure, by Microsoft's client, with the key of the account."""

    def __init__(self, config: dict[str, Any], prefix: str) -> None:
        super().__init__(config["container_name"], prefix)
        try:
            from azure.core.exceptions import AzureError
            from azure.storage.blob import BlobServiceClient
        except ImportError:
            raise Unknown("azure-storage-blob is not installed (pip install 'ray-sisa[azure]')") from None
        account, key = (os.environ.get(f"AZURE_STORAGE_ACCOUNT_{name}") for name in ("NAME", "KEY"))
        if not account or not key:
            raise Unknown("AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY are not set")
        is_emulator = os.environ.get("AZURE_STORAGE_USE_EMULATOR", "").lower() == "true"
        emulator = os.environ.get("AZURITE_BLOB_STORAGE_URL", "http://127.0.0.1:10000")
        server = f"{emulator}/{account}" if is_emulator else f"https://{account}.blob.core.windows.net"
        self._errors = (AzureError, ValueError)
        try:
            self._client = BlobServiceClient(
                server,
                credential=key,
                retry_total=NUM_ATTEMPTS - 1,
                connection_timeout=location.CONNECT_S,
                read_timeout=location.STALL_S,
            )
            self._properties = self._client.get_service_properties()
        except self._errors as error:
            raise Unknown(f"the properties of the account cannot be read: {error}") from None

    def keeps_versions(self) -> bool:
        """As any object of the run tells; the account's own properties do not, to those who use it for data."""
        try:
            blobs = self._client.get_container_client(self.name).list_blobs(self._prefix, include=["versions"])
            if any(blob.version_id for blob in blobs):
                return True
        except self._errors as error:
            raise Unknown(f"the container cannot be listed: {error}") from None
        raise Unknown("Azure does not tell those who only store objects whether versions are kept")

    def soft_delete_s(self) -> int:
        """As the account's properties say."""
        policy = self._properties["delete_retention_policy"]
        return int(policy.days or 0) * DAY_S if policy.enabled else 0
