"""Does a run that finds one CPU of two free take longer than on a cluster of one CPU?

Six shards of four slices of the digits, trained by `Run.train` on a Ray of one CPU and, in turns with it, on a Ray of
two CPUs of which another actor holds one from start to end. Ray is started before the clock; the worker's own start
is timed on both sides. Both must give the same models.

Target: no longer, within the noise of the machine (1.05 times at most).

    python benchmarks/free_cpu.py
    python benchmarks/free_cpu.py --epochs 20 --repetitions 7
    python benchmarks/free_cpu.py --quick --json free_cpu.json
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import _measure
import ray

from ray_sisa.config_values import make_config
from ray_sisa.run import Run

QUESTION = "Wall time of a run on one free CPU of two against a cluster of one (digits, 6 shards x 4 slices)"


class Hold:
    """Another job's actor."""

    def ready(self) -> bool:
        return True


def train(folder: Path, name: str, epochs: int, num_cpus: int) -> tuple[float, str]:
    """Seconds of a run on so many CPUs, all but one of which are held; and the digest of its ensemble."""
    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        hold: Any = ray.remote(num_cpus=1)(Hold)
        held = [hold.remote() for _ in range(num_cpus - 1)]
        ray.get([one.ready.remote() for one in held])
        run = Run.create(make_config(configuration(folder, name, epochs)))
        began = time.perf_counter()
        run.train(runner="ray")
        return time.perf_counter() - began, run.status().ensemble_digest or ""
    finally:
        ray.shutdown()


def configuration(folder: Path, name: str, epochs: int) -> dict[str, Any]:
    return {
        "name": name,
        "storage_path": str(folder),
        "data": {"source": "digits"},
        "placement": {"shards": 6, "slices": 4, "key": "free"},
        "recipe": {"model": "small_cnn", "epochs_per_slice": epochs, "batch_size": 32},
        "scaling": {"resources_per_worker": {"CPU": 1}, "no_progress_timeout_s": 300},
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=int, default=10, help="a slice")
    parser.add_argument("--repetitions", type=int, default=5)


def main() -> None:
    arguments = _measure.parse_arguments(__doc__, add_options)
    epochs, repetitions = (1, 1) if arguments.quick else (arguments.epochs, arguments.repetitions)
    before = _measure.machine()
    # Workers take their path from the environment in which Ray is started.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_measure.ROOT), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as place:
        names = (f"run-{number}" for number in range(10**6))

        def leg(num_cpus: int) -> tuple[float, str]:
            return train(Path(place), next(names), epochs, num_cpus)

        measured = _measure.in_turns({"one": lambda: leg(1), "two": lambda: leg(2)}, repetitions)
    if len({digest for leg in measured.values() for _, digest in leg}) != 1:
        raise SystemExit("the two sides differ")
    one, two = ([seconds for seconds, _ in measured[name]] for name in ("one", "two"))
    _measure.report(
        question=QUESTION,
        findings=[
            _measure.found("a cluster of one CPU", one, "s"),
            _measure.found("one free CPU of two", two, "s"),
            _measure.ratio("one free of two / one", two, one, at_most=1.05),
        ],
        arguments=arguments,
        raw={"one_seconds": one, "two_seconds": two},
        settings={"epochs": epochs, "repetitions": repetitions, "digests": "equal"},
        before=before,
    )


if __name__ == "__main__":
    main()
