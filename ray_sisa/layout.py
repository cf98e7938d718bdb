"""The layout of a run: where in its store each object lies. Nothing else joins paths.

    run.json                            configuration in full, placement, data fingerprint; created once
    initial/<digest>.safetensors        initial weights, where the recipe names a file
    index/<digest>.arrow                who is in a shard: ids, subjects, row digests
    test/<digest>.arrow                 the test set
    slices/<digest>.arrow               samples of one (shard, slice) as they are live
    seals/<digest>/{slices,test}.json   digest of the bytes of that slice, or of the test set
    features/<digest>/<content digest>.safetensors    what a frozen backbone makes of that slice, or of the test set
    stages/<key>/weights.safetensors    the result of a stage
    stages/<key>/stage.json             its commit record, written last
    stages/<key>/diverged.json          record of a stage that diverged and is passed over; in place of the two
    stages/<key>/partial/<n>.*          state inside a stage, and its record; removed at commit
    stages/<key>/approximate/<key>.*    a model that an approximate method made from the stage, and its record
    ledger/<n>.json                     deletion request n, from 1
    segments/<n>.jsonl                  the requests up to n that no earlier segment has, in one object
    heads/<n>.json                      ensemble n in force, from 1
    certificates/<n>.json               what was done for request n
    lease/<n>.json                      who reconciles
    lease/activity.json                 what the holder of the lease is doing; overwritten, and removed at the end
    spent/<stage key>/<n>.json          privacy that training the stage spends, its n-th charge; never removed
    reports/<kind>-<head>-<digest>.json what was measured of a head; removed once a request taints it
    reports/removed-<name>              that it was removed, and for which requests
    reports/report.html                 the page of the run
    probes/<random>                     made twice to see whether the store refuses that; removed at once

Paths only: nothing here reads or writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ray_sisa.digests import digest_bytes

RUN = "run.json"
LEDGER, SEGMENTS, HEADS, CERTIFICATES = "ledger", "segments", "heads", "certificates"
LEASES, REPORTS, FEATURES, SPENT, SEALS = "lease", "reports", "features", "spent", "seals"
PROBES = "probes"
FOLDERS = (
    *(LEDGER, SEGMENTS, HEADS, CERTIFICATES, LEASES, REPORTS, FEATURES, SPENT, SEALS, PROBES),
    *("index", "initial", "slices", "stages", "test"),
)
PAGE = "report.html"  # among the reports
ACTIVITY = f"{LEASES}/activity.json"
DIGITS = 8  # numbered objects sort by name
NUMBERED = re.compile(r"(\d+)\.jsonl?")
BACKUP = "Restore it from a backup"
NO_RUN = "Check the path, where the name goes before any options; `ray-sisa train CONFIG` makes a run"
UNREACHABLE = "storage_path must be reachable from every node: use an object store or a folder that all of them mount"
# What follows from other objects, and is made anew once it is gone.
REMADE = {
    "features",
    "seals",
    "stages/weights",
    "stages/stage",
    "stages/diverged",
    "partial/state",
    "partial/record",
    "approximate/weights",
    "approximate/record",
    "segments",
    "certificates",
    "lease",
    "activity",
    "reports",
}


def stage_record(key: str) -> str:
    """Commit record of a stage."""
    return f"stages/{key}/stage.json"


def stage_weights(key: str) -> str:
    """Weights of a stage."""
    return f"stages/{key}/weights.safetensors"


def divergence_record(key: str) -> str:
    """Record that a stage diverged, and is not to be trained again."""
    return f"stages/{key}/diverged.json"


def partials(key: str) -> str:
    """Folder of the states inside a stage."""
    return f"stages/{key}/partial"


def partial_state(key: str, number: int) -> str:
    """State inside a stage."""
    return f"{partials(key)}/{number:0{DIGITS}d}.safetensors"


def partial_record(key: str, number: int) -> str:
    """Record of a state inside a stage, written after it."""
    return numbered(partials(key), number)


def approximation_weights(stage: str, key: str) -> str:
    """Weights that an approximate method made from a stage."""
    return f"stages/{stage}/approximate/{key}.safetensors"


def approximation_record(stage: str, key: str) -> str:
    """Record of these weights, written after them."""
    return f"stages/{stage}/approximate/{key}.json"


def whole_approximations(paths: Iterable[str]) -> dict[str, str]:
    """Those of these objects that are records of approximations whose weights are there too, and these weights."""
    there = set(paths)
    records = (path for path in there if kind_of(path) == "approximate/record")
    pairs = {record: f"{record.removesuffix('.json')}.safetensors" for record in records}
    return {record: weights for record, weights in sorted(pairs.items()) if weights in there}


def slice_object(digest: str) -> str:
    """Samples of a slice."""
    return f"slices/{digest}.arrow"


def test_object(digest: str) -> str:
    """The test set."""
    return f"test/{digest}.arrow"


def seal_of(path: str) -> str:
    """Seal of a slice object or of the test set."""
    return f"{SEALS}/{samples_of(path)}/{kind_of(path)}.json"


def sealed_by(path: str) -> str:
    """The slice object or test set that a seal is of."""
    return f"{Path(path).stem}/{samples_of(path)}.arrow"


def features(digest: str) -> str:
    """Folder of the features of a slice, or of the test set, by the digest of its samples."""
    return f"{FEATURES}/{digest}"


def feature_object(digest: str, content: str) -> str:
    """Features of the slice, or test set, `digest`; `content` is the digest of the object itself."""
    return f"{features(digest)}/{content}.safetensors"


def samples_of(path: str) -> str:
    """Digest of the samples that a slice object, the test set, a seal, or an object of features is of."""
    return Path(path.split("/")[1]).stem


def shard_index(digest: str) -> str:
    """Index of a shard."""
    return f"index/{digest}.arrow"


def initial_weights(digest: str) -> str:
    """Weights that all shards start from."""
    return f"initial/{digest}.safetensors"


def numbered(folder: str, number: int) -> str:
    """Object `number` of a numbered series: ledger, heads, certificates or lease."""
    return f"{folder}/{number:0{DIGITS}d}.json"


def segment(number: int) -> str:
    """The requests up to `number` that no earlier segment has."""
    return f"{SEGMENTS}/{number:0{DIGITS}d}.jsonl"


def report(name: str) -> str:
    """A report by its file name."""
    return f"{REPORTS}/{name}"


def measurement(kind: str, head: int, content: bytes) -> str:
    """A report of what was measured of a head, `evaluation` or `inversion`: its name follows from its content."""
    return report(f"{kind}-{head:08d}-{digest_bytes(content)[:12]}.json")


def charges(key: str) -> str:
    """Folder of the charges of a stage: not in the stage's own, since they outlive it."""
    return f"{SPENT}/{key}"


def probe(name: str) -> str:
    """What a process makes twice: see `probe.py`."""
    return f"{PROBES}/{name}"


def kind_of(path: str) -> str:
    """What an object is, without what makes its name unique: `heads`, `stages/weights`, `partial/record` and so on."""
    folder, *inner = path.split("/")
    if path == ACTIVITY:
        return "activity"
    if folder != "stages" or len(inner) < 2:
        return folder
    if inner[1] == "partial":
        return "partial/record" if path.endswith(".json") else "partial/state"
    if inner[1] == "approximate":
        return "approximate/record" if path.endswith(".json") else "approximate/weights"
    return f"stages/{Path(inner[1]).stem}"


def damaged(path: str) -> str:
    """What to do about an object that is not what was written."""
    if kind_of(path) in REMADE:
        return "Run `ray-sisa check RUN --repair`: what follows from other objects is made again"
    return f"{BACKUP}, then run `ray-sisa check RUN`"
