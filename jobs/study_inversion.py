"""The model-inversion study: what a split network's activations tell of inputs, with and without DP-SGD, and on SISA.

    ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/study_inversion.py \
        --preset gpu --data s3://BUCKET --storage s3://BUCKET/study --out /shared/study

    python jobs/study_inversion.py --preset cpu --data DATA --storage runs/study --out results/DATE-study-inversion-cpu

DATA is a folder with omniglot/{evaluation,small1,small2}.parquet, by default RAY_SISA_DATA; `--data torchvision`
downloads Omniglot instead. Writes result.json, pictures and report.html into --out. What was done is kept under
--storage, so the same command goes on after an interruption, and a second run is quick.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

# The checkout that this file is in. Workers find it as the job's working folder, or in the environment of a local Ray.
checkout = str(Path(__file__).resolve().parents[1])
sys.path.insert(0, checkout)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [checkout, os.environ.get("PYTHONPATH")]))

from ray_sisa.errors import SisaError  # noqa: E402
from ray_sisa.inversion_study.job import run_job  # noqa: E402
from ray_sisa.inversion_study.presets import PRESETS  # noqa: E402


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, required=True, help="how large")
    parser.add_argument("--data", default=os.environ.get("RAY_SISA_DATA"), help="folder of the data, or torchvision")
    parser.add_argument(
        "--storage", default="runs/study-inversion", help="folder or URI of its runs; nodes must reach it"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the record")
    parser.add_argument("--gpus-per-worker", type=float, help="in place of the preset's; 0 for the CPU")
    options = parser.parse_args()
    if not options.data:
        parser.error("--data: missing; name a folder with omniglot/, or torchvision (or set RAY_SISA_DATA)")
    return options


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    given = parse()
    try:
        run_job(given.preset, given.data, given.storage, given.out, given.gpus_per_worker)
    except SisaError as error:
        sys.exit(f"error: {error}")
