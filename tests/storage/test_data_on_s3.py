"""Parquet files on an object store, named by folder, pattern and list; and a test source within the training source."""

from __future__ import annotations

import secrets
from pathlib import Path

import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from servers import SeaweedFS
from small_runs import digits, write_parquet

from ray_sisa import parquet, parquet_sources
from ray_sisa.config import Columns
from ray_sisa.errors import DataError


def test_folders_patterns_and_lists(server: SeaweedFS, keys: None, tmp_path: Path) -> None:
    address, folder = server.endpoint.removeprefix("http://"), f"{server.bucket}/{secrets.token_hex(4)}"
    options = f"?endpoint_override={address}&scheme=http"
    bucket, _ = pyarrow.fs.FileSystem.from_uri(f"s3://{folder}{options}")
    names = ("data/train-0.parquet", "data/train-1.parquet", "data/test-0.parquet", "keyed/part=7/a.parquet")
    for number, name in enumerate(names):
        table = pq.read_table(write_parquet(tmp_path / "one.parquet", digits(10 * number, 10)))
        bucket.create_dir(f"{folder}/{name}".rpartition("/")[0])
        pq.write_table(table, f"{folder}/{name}", filesystem=bucket)

    def uri(place: str) -> str:
        return f"s3://{folder}/{place}{options}"

    def found(*places: str) -> list[str]:
        return [
            f.name.removeprefix(f"s3://{folder}/") for f in parquet_sources.find(list(map(uri, places)), "data.train")
        ]

    assert found("data") == sorted(names[:3])
    assert found("data/train-*.parquet") == list(names[:2])
    assert found("data/test-[0-9].parquet", "data/train-1.parquet") == [names[2], names[1]]
    assert found("**/*.parquet") == sorted(names)
    assert found("keyed") == [names[3]]
    columns = Columns(id="id", subject="person", features=("part", "label"))
    assert parquet.read(uri("keyed"), columns).images[:, 0].tolist() == [7.0] * 10
    with pytest.raises(DataError, match=r"data.test = .*shares 1 of its 1 file\(s\)"):
        parquet_sources.check_apart(uri("data"), uri("data/test-*.parquet"))
    with pytest.raises(DataError, match="stands twice"):
        parquet_sources.check_apart([uri("data"), uri("data/train-0.parquet")], None)
    parquet_sources.check_apart(uri("data/train-*.parquet"), uri("data/test-0.parquet"))
    with pytest.raises(DataError, match="is a pattern that no file matches"):
        parquet_sources.find(uri("data/absent-*"), "data.train")
