"""The CIFAR-100 study: SISA, SISA with transfer, fine-tuning, other approximate methods and retraining, side by side.

    ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/study_cifar100.py \
        --preset gpu --data s3://BUCKET --storage s3://BUCKET/study --out /shared/study

    python jobs/study_cifar100.py --preset cpu --data DATA --storage runs/study --out results/DATE-study-cifar100-cpu

DATA is a folder with cifar100/{train,test}.parquet and the CIFAR-10 checkpoints (cifar10_resnet20-12fca82f.th), by
default RAY_SISA_DATA; `--data torchvision` downloads CIFAR-100 instead. Writes result.json and report.html into --out.
What was done is kept under --storage, so the same command goes on after an interruption, and a second run is quick.
"""

import os
import sys
from pathlib import Path

# The checkout that this file is in. Workers find it as the job's working folder, or in the environment of a local Ray.
checkout = str(Path(__file__).resolve().parents[1])
sys.path.insert(0, checkout)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [checkout, os.environ.get("PYTHONPATH")]))

from ray_sisa.study.command import main, make_parser  # noqa: E402
from ray_sisa.study.job import run_job  # noqa: E402
from ray_sisa.study.presets import PRESETS  # noqa: E402

if __name__ == "__main__":
    parser = make_parser(__doc__, "cifar100", PRESETS)
    parser.add_argument("--weights", type=Path, help="folder of the CIFAR-10 checkpoints; that of the data by default")
    main(parser, "cifar100", lambda o: run_job(o.preset, o.data, o.storage, o.out, o.gpus_per_worker, o.weights))
