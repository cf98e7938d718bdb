"""What is fuzzed: each parser of bytes that others may have written, and what is done with a value that it lets pass.

A target takes any bytes. Only a SisaError may come out of it; `survives` is that rule. `examples` gives valid bytes to
start from.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from ray_sisa import ids, images, parquet, plain_yaml, records, weights
from ray_sisa.config import Columns
from ray_sisa.digests import END, digest_tensors, seal
from ray_sisa.errors import SisaError
from ray_sisa.index import ShardIndex, index_from_bytes, index_to_bytes
from ray_sisa.records import StoredRecord
from ray_sisa.samples import Samples, make_samples
from ray_sisa.slices import digest_of_slice, index_shard, slice_from_bytes, slice_to_bytes, sort_by_id
from ray_sisa.store import Store

SHAPE = (2, 3, 1)
KINDS = [kind for kind in vars(records).values() if isinstance(kind, type) and issubclass(kind, StoredRecord)]
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))
STORE = Store(str(FOLDER / "no-run"))
COLUMNS = [
    Columns(id="id", subject="who"),
    Columns(image="tensor"),
    Columns(features=("x", "y"), label="who"),
    Columns(id="label", image="hub"),
]


def survives(target: str, data: bytes) -> None:
    """Raises what a target lets out that is no SisaError, or one that cannot be printed."""
    try:
        TARGETS[target](data)
    except SisaError as error:
        text = str(error)
        text.encode()
        assert len(text) < 4000, "a message is longer than anybody reads"


def parse_record(data: bytes) -> None:
    """The first byte says which kind of record the others are; they are read as they stand, and sealed."""
    kind = KINDS[data[0] % len(KINDS)] if data else KINDS[0]
    for content in (data[1:], seal(data[1:].removesuffix(END) + END)):
        try:
            STORE.parse("run.json", content, kind).to_bytes()
        except SisaError:
            continue


def parse_index(data: bytes) -> None:
    index: ShardIndex = index_from_bytes(data, "here")
    index.summaries(3, SHAPE)
    index.without({"a", "b"})
    index.sample_ids(1)


def parse_slice(data: bytes) -> None:
    samples: Samples = slice_from_bytes(data, "here")
    digest_of_slice(samples)
    sort_by_id(samples).select({"a"})


def parse_weights(data: bytes) -> None:
    digest_tensors(weights.from_bytes(data))


def parse_torch_file(data: bytes) -> None:
    digest_tensors(weights.read(str(_file("a.pt", data))))


def parse_yaml(data: bytes) -> None:
    plain_yaml.shown(plain_yaml.parse(plain_yaml.read(_file("a.yaml", data)), "here"))


def parse_ids(data: bytes) -> None:
    for name in ("a.txt", "a.jsonl"):
        try:
            for batch in ids.batches(ids.read("--from", str(_file(name, data)))):
                batch.validate(full=True)
        except SisaError:
            continue


def parse_parquet(data: bytes) -> None:
    path = str(_file("a.parquet", data))
    for columns in COLUMNS:
        try:
            samples = parquet.read(path, columns)
            digest_of_slice(sort_by_id(samples))
        except SisaError:
            continue


def parse_image(data: bytes) -> None:
    pixels = images.decode(data, "here")
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] in (1, 3)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "records": parse_record,
    "index": parse_index,
    "slices": parse_slice,
    "weights": parse_weights,
    "torch_files": parse_torch_file,
    "yaml": parse_yaml,
    "ids": parse_ids,
    "parquet": parse_parquet,
    "images": parse_image,
}


def _file(name: str, data: bytes) -> Path:
    path = FOLDER / name
    path.write_bytes(data)
    return path


# --- valid bytes to start from


def examples(target: str) -> list[bytes]:
    """Valid bytes for a target."""
    return EXAMPLES[target]()


def few_samples(count: int = 4) -> Samples:
    pixels = np.arange(count * 6, dtype=np.uint8).reshape(count, *SHAPE)
    return make_samples(ids=list("abcdefgh"[:count]), images=pixels, labels=range(count))


def record_examples() -> list[bytes]:
    text, many = "a", ["a", "b"]
    environment = dict.fromkeys(("device", "device_name", "python", "torch", "ray_sisa", "platform"), text)
    content: dict[str, dict[str, object]] = {
        "Request": {
            "number": 1,
            "idempotency_key": text,
            "reason": "\u00e9",
            "places": [{"shard": 0, "slice": 1, "samples": many}],
            "previous": None,
            "created_at": "2026-01-01T00:00:00+00:00",
        },
        "Head": {
            "number": 1,
            "ledger": 0,
            "ledger_tip": None,
            "complete": True,
            "constituents": [{"shard": 0, "key": text, "slice": 1, "num_samples": 2, "weights_digest": text}],
            "ensemble_digest": text,
            "previous": None,
            "created_at": "2026-01-01T00:00:00+00:00",
        },
        "LeaseRecord": {"number": 1, "holder": text, "expires_at": 1.5},
        "Environment": environment | {"threads": 1},
        "EpochMetrics": {"epoch": 1, "loss": 0.5, "train_top1": 0.5},
    }
    numbers = {kind.__name__: bytes([i]) for i, kind in enumerate(KINDS)}
    return [numbers[name] + json.dumps(fields, indent=1).encode() for name, fields in content.items()]


def index_examples() -> list[bytes]:
    index, _ = index_shard(few_samples(), np.array([1, 1, 2, 3], np.int32))
    return [index_to_bytes(index)]


def slice_examples() -> list[bytes]:
    features = make_samples(ids=["a", "b"], images=np.ones((2, 3), np.float32), labels=[0, 1])
    return [slice_to_bytes(few_samples()), slice_to_bytes(features)]


def weights_examples() -> list[bytes]:
    return [weights.to_bytes({"a": torch.ones(2, 2), "b": torch.tensor(3), "c": torch.ones(0, 2)})]


def torch_file_examples() -> list[bytes]:
    found = []
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        out = io.BytesIO()
        torch.save({"state_dict": {"a": torch.ones(2), "b": torch.nn.Parameter(torch.ones(1))}}, out, **options)
        found.append(out.getvalue())
    return found


def yaml_examples() -> list[bytes]:
    whole = b"""name: run
data: {source: digits, mean: [0.5], std: [0.5]}
placement: {shards: 2, slices: 2, key: k}
recipe: {model: mlp, epochs_per_slice: 1, optimizer: {lr: 1.0e-3}, augment: [crop, flip]}
scaling: {label_selector: &a {zone: b}, resources_per_worker: {CPU: 1}}
"""
    return [whole, b"a: &a [1, 2.5, 2001-01-01]\nb: [*a, *a]\nc: {<<: {d: !!str 1}}\n", b"? a\n: |\n  b\n"]


def ids_examples() -> list[bytes]:
    return [b"a\nb\r\n\n c \n", b'\xef\xbb\xbf"a"\n7\n"\\u00e9\\n"\n']


def parquet_examples() -> list[bytes]:
    samples = few_samples()
    encoded = image_examples()[:1] * 4
    table = pa.table(
        {
            "id": samples.ids,
            "who": pa.array([1, 2, 3, 4], pa.uint8()),
            "label": samples.labels,
            "img": pa.array(encoded, pa.binary()),
            "hub": pa.array([{"bytes": image, "path": "p"} for image in encoded]),
            "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(samples.images),
            "x": [0.5, 1.5, 2.5, 3.5],
            "y": pa.array([1, 2, 3, 4], pa.int16()),
        }
    )
    found = []
    for options in ({"compression": "none"}, {"compression": "zstd", "row_group_size": 3}, {"use_dictionary": False}):
        out = io.BytesIO()
        pq.write_table(table, out, **options)
        found.append(out.getvalue())
    return found


def image_examples() -> list[bytes]:
    found = []
    for kind in images.FORMATS:
        out = io.BytesIO()
        Image.fromarray(np.arange(90, dtype=np.uint8).reshape(6, 5, 3)).save(out, kind)
        found.append(out.getvalue())
    return found


EXAMPLES: dict[str, Callable[[], list[bytes]]] = {
    "records": record_examples,
    "index": index_examples,
    "slices": slice_examples,
    "weights": weights_examples,
    "torch_files": torch_file_examples,
    "yaml": yaml_examples,
    "ids": ids_examples,
    "parquet": parquet_examples,
    "images": image_examples,
}
