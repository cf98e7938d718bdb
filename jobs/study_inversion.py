"""The model-inversion study: what a split network's activations tell of inputs, with and without DP-SGD, and on SISA.

    ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/study_inversion.py \
        --preset gpu --data s3://BUCKET --storage s3://BUCKET/study --out /shared/study

    python jobs/study_inversion.py --preset cpu --data DATA --storage runs/study --out results/DATE-study-inversion-cpu

DATA is a folder with omniglot/{evaluation,small1,small2}.parquet, by default RAY_SISA_DATA; `--data torchvision`
downloads Omniglot instead. Writes result.json, pictures and report.html into --out. What was done is kept under
--storage, so the same command goes on after an interruption, and a second run is quick.
"""

import os
import sys
from pathlib import Path

# The checkout that this file is in. Workers find it as the job's working folder, or in the environment of a local Ray.
checkout = str(Path(__file__).resolve().parents[1])
sys.path.insert(0, checkout)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [checkout, os.environ.get("PYTHONPATH")]))

from ray_sisa.inversion_study.job import run_job  # noqa: E402
from ray_sisa.inversion_study.presets import PRESETS  # noqa: E402
from ray_sisa.study.command import main, make_parser  # noqa: E402

if __name__ == "__main__":
    parser = make_parser(__doc__, "inversion", PRESETS)
    main(parser, "omniglot", lambda o: run_job(o.preset, o.data, o.storage, o.out, o.gpus_per_worker))
