"""Buckets as their providers manage them: what they keep of deleted objects, and old versions of objects.

`store.py` reads and writes objects by one library for all kinds of servers, which knows nothing of versions. Here each
provider is asked by a client of its own, which is an extra: without it nothing can be found out.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from obstore.store import ObjectStore, S3Store

DAY_S = 86400
PAGE = 1000  # versions deleted with one request


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

    @abstractmethod
    def versions(self, folder: str) -> Iterator[Version]:
        """Every version of every object in a folder of the prefix."""

    @abstractmethod
    def delete(self, versions: Sequence[Version]) -> list[Version]:
        """Deletes versions for good, and returns those that it could not."""

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
    raise Unknown("versions are looked at on S3 alone")


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
        self._errors = (BotoCoreError, ClientError)
        region = config.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        style = {"addressing_style": "path"} if config.get("endpoint") else {}
        options = Config(connect_timeout=5, read_timeout=30, retries={"total_max_attempts": 5}, s3=style)
        self._client = boto3.client(
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
