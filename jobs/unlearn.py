"""Complete the pending deletion requests of a run; submitting the same job again continues it.

    ray-sisa forget RUN --from FILE    # first, from any machine that reaches the storage
    ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/unlearn.py --run RUN

    python jobs/unlearn.py --run RUN --runner local    # a laptop, in one process

Takes the options of `ray-sisa unlearn` as well. RUN is storage_path/name. Where another driver has the run it waits for
as long as a lease lasts (`--wait`): one that died has it no longer.
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
parser.add_argument("--run", required=True, help="storage_path/name, a folder or URI")

if __name__ == "__main__":
    known, others = parser.parse_known_args()
    main(["unlearn", known.run, *others])
