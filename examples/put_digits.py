"""Puts the data of examples/cluster.yaml where every node reads it: train.parquet and test.parquet, with the digits.

    python examples/put_digits.py s3://bucket/digits
    python examples/put_digits.py /mnt/digits               # a folder that all nodes mount

Credentials come from the environment, as those of runs do: AWS_ACCESS_KEY_ID and so on, a profile, or a role.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem, LocalFileSystem

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout that this file is in

from ray_sisa.config import DataConfig
from ray_sisa.data import load

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", help="a URI or an absolute path")

if __name__ == "__main__":
    base, mark, options = parser.parse_args().folder.partition("?")
    digits = load(DataConfig(source="digits"))
    for name, samples in (("train", digits.train), ("test", digits.test)):
        to = f"{base.rstrip('/')}/{name}.parquet"
        if "://" in to:
            files, path = FileSystem.from_uri(to + mark + options)
        else:
            files, path = LocalFileSystem(), str(Path(to).resolve())
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        images = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(samples.images))
        pq.write_table(pa.table({"id": samples.ids, "img": images, "label": samples.labels}), path, filesystem=files)
        print(f"{to}: {len(samples):,} samples")
