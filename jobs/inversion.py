"""Attack a run by model inversion; submitting the same job again attacks again, and adds a report to the run.

    ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/inversion.py --run RUN \
        --layer device --public s3://BUCKET/public.parquet --victims s3://BUCKET/victims.parquet

    python jobs/inversion.py --run RUN --runner local --layer device --public A.parquet --victims B.parquet

Takes the options of `ray-sisa attack inversion` as well. RUN is storage_path/name.
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
    main(["attack", "inversion", known.run, *others])
