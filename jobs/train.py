"""Train a run, or continue it: submitting the same job again goes on from what the run's storage holds.

    ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/train.py --config CONFIG.yaml

    python jobs/train.py --config CONFIG.yaml --runner local    # a laptop, in one process

Takes the options of `ray-sisa train` as well. `storage_path` must be what every node reaches: a URI or a shared folder.
Where another driver has the run it waits for as long as a lease lasts (`--wait`): one that died has it no longer.
"""

import argparse
import os
import sys
from pathlib import Path

# The checkout that this file is in. Workers find it as the job's working folder, or in the environment of a local Ray.
checkout = str(Path(__file__).resolve().parents[1])
sys.path.insert(0, checkout)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [checkout, os.environ.get("PYTHONPATH")]))

from ray_sisa.cli import main  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--config", required=True, help="a YAML file")

if __name__ == "__main__":
    known, others = parser.parse_known_args()
    main(["train", known.config, *others])
