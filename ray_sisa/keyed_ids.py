"""Names of samples and subjects where `ids: keyed`: whoever lacks the key cannot tell whose they are.

A live sample is named by a keyed hash of its id, which lies with the sample, enters its digest, and goes with it. The
index and the ledger name it by a digest of that name, its tombstone: enough to refuse it, too little to guess it.
Whoever reads a store without the key has neither the id nor, once a sample is erased, what the digests of its content
were made with, so that no guess of the content can be confirmed.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from ray_sisa.errors import ConfigError

if TYPE_CHECKING:
    from ray_sisa.data import Dataset
    from ray_sisa.records import RunRecord
    from ray_sisa.samples import Samples

Kind = Literal["sample", "subject", "test", "key"]
SOURCES = ("RAY_SISA_IDS_KEY_FILE", "RAY_SISA_IDS_KEY_COMMAND", "RAY_SISA_IDS_KEY")
MIN_CHARACTERS = 32
_COMMAND_S = 60.0


class IdsKey:
    """The key of a run's ids. It is never written into the store."""

    def __init__(self, secret: bytes) -> None:
        # BLAKE2b takes keys of up to 64 bytes; hashing the secret first allows any length.
        self._key = blake2b(secret).digest()

    def hashed(self, kind: Kind, names: pa.StringArray) -> pa.StringArray:
        """The keyed hash of each name, string [N]: of samples, of subjects and of test samples they differ."""
        return pa.array([self._hash(kind, name) for name in names.to_pylist()], pa.string())

    @property
    def mark(self) -> str:
        """What tells this key from others, and nothing else of it."""
        return self._hash("key", "")

    def _hash(self, kind: Kind, name: str) -> str:
        return blake2b(name.encode(), key=self._key, digest_size=32, person=kind.encode()).hexdigest()

    def of_samples(self, samples: Samples, kind: Kind = "sample") -> Samples:
        """Samples under the names that the run has for them."""
        return replace(samples, ids=self.hashed(kind, samples.ids), subjects=self.hashed("subject", samples.subjects))

    def of_dataset(self, dataset: Dataset) -> Dataset:
        """A data set under these names."""
        test = self.of_samples(dataset.test, "test") if dataset.test else None
        return replace(dataset, train=self.of_samples(dataset.train), test=test)


def tombstones(names: pa.StringArray) -> pa.StringArray:
    """What index and ledger call the samples that lie in slices under these keyed names, string [N]."""
    return pa.array([blake2b(name.encode(), digest_size=32).hexdigest() for name in names.to_pylist()], pa.string())


def known_as(run: RunRecord, names: pa.StringArray) -> pa.StringArray:
    """What index and ledger call samples, by what slices call them, string [N]."""
    return tombstones(names) if run.config.ids == "keyed" else names


def key_of(run: RunRecord) -> IdsKey | None:
    """The key of a run's ids, from this process's environment; None where ids are plain.

    Raises:
        ConfigError: there is none, or it is another one than the run was made with.
    """
    if run.config.ids == "plain":
        return None
    key = read_key()
    if key.mark != run.ids_key_mark:
        rule = "is not the key that this run was made with: no id of the run can be found with it"
        raise ConfigError("ids", "keyed", rule, f"Give the key of this run in one of {', '.join(SOURCES)}")
    return key


def read_key() -> IdsKey:
    """The key that this process's environment names: in a file, as what a command prints, or itself.

    Raises:
        ConfigError: none or several are named, or it cannot be read, or is short.
    """
    given = [name for name in SOURCES if os.environ.get(name)]
    if len(given) != 1:
        rule = f"needs its key from outside the store, and {len(given)} are named"
        raise ConfigError("ids", "keyed", rule, f"Set one of {', '.join(SOURCES)}")
    (name,) = given
    secret = _read(name, os.environ[name]).strip()
    if len(secret) < MIN_CHARACTERS:
        rule = f"has a key of {len(secret)} characters, fewer than {MIN_CHARACTERS}"
        raise ConfigError(name, "(secret)", rule, "Draw one, as with `openssl rand -hex 32`, and keep it")
    return IdsKey(secret)


def _read(name: str, value: str) -> bytes:
    try:
        if name == "RAY_SISA_IDS_KEY_FILE":
            return Path(value).read_bytes()
        if name == "RAY_SISA_IDS_KEY_COMMAND":
            done = subprocess.run(shlex.split(value), capture_output=True, check=True, timeout=_COMMAND_S)
            return done.stdout
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        # Not the output of a command: it may hold part of the key.
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigError(name, value, f"gives no key: {reason}", "Correct it") from None
    return value.encode()
