"""Gateways before a server on loopback, which pass requests on in other words; see `FaultProxy` in `servers.py`."""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Iterable
from urllib.parse import unquote

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from servers import FaultProxy, Reply, SeaweedFS, error


class Gateway(FaultProxy):
    """A relay that signs each request anew with the server's keys, as gateways do, and drops or refuses some headers.

    A client signs `If-None-Match` with the rest, so it could not be dropped from a request that keeps its signature.

    Attributes:
        dropped: headers dropped, by name in lower case.
    """

    def __init__(self, server: SeaweedFS, *, drops: Iterable[str] = (), refuses: Iterable[str] = ()) -> None:
        super().__init__(server.address)
        self._keys = Credentials(server.access_key, server.secret_key)
        self._drops, self._refuses, self.dropped = frozenset(drops), frozenset(refuses), Counter[str]()

    def exchange(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> Reply:
        given = {name.lower(): value for name, value in headers}
        if not self._refuses.isdisjoint(given):
            return error(501)
        self.dropped.update(self._drops & given.keys())
        gone = self._drops | {"authorization", "x-amz-date", "x-amz-content-sha256"}
        kept = {name: value for name, value in given.items() if name not in gone}
        request = AWSRequest(method, f"http://{kept['host']}{path}", kept, body)
        S3SigV4Auth(self._keys, "s3", "us-east-1").add_auth(request)
        return super().exchange(method, path, list(request.headers.items()), body)


class UploadsAsJson(FaultProxy):
    """A relay that turns uploads of Google's XML interface, which fake-gcs-server lacks, into those of the JSON one.

    The condition passes with them, and it is the server that decides.
    """

    def exchange(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> Reply:
        given = {name.lower(): value for name, value in headers}
        host = ("Host", "{}:{}".format(*self.address))  # by which the server tells this interface from others
        if method != "PUT":
            others = [(name, value) for name, value in headers if name.lower() != "host"]
            return super().exchange(method, path, [host, *others], body)
        bucket, _, name = path.removeprefix("/").partition("/")
        upload = f"/upload/storage/v1/b/{bucket}/o?uploadType=multipart"  # the only kind whose conditions it looks at
        if condition := given.get("x-goog-if-generation-match"):
            upload += f"&ifGenerationMatch={condition}"
        boundary = secrets.token_hex(16)
        parts = [("application/json", json.dumps({"name": unquote(name)}).encode()), ("application/octet-stream", body)]
        form = b"".join(
            b"--%s\r\nContent-Type: %s\r\n\r\n%s\r\n" % (boundary.encode(), t.encode(), c) for t, c in parts
        )
        form += f"--{boundary}--".encode()
        kind = f"multipart/related; boundary={boundary}"
        kept = [host, ("Content-Type", kind), ("Content-Length", str(len(form)))]
        reply = super().exchange("POST", upload, kept, form)
        if reply.status >= 300:
            return reply
        made = json.loads(reply.content)
        return Reply(
            200, [("ETag", made["etag"]), ("x-goog-generation", made["generation"]), ("Content-Length", "0")], b""
        )
