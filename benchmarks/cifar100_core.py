"""The main job on all of CIFAR-100: train, forget the study's block, roll back, unlearn, vote, attack, verify.

    RAY_SISA_DATA=DATA python benchmarks/cifar100_core.py --out results/DATE-cifar100-core
    RAY_SISA_DATA=DATA python benchmarks/cifar100_core.py --out OUT --twice \
        --set scaling.resources_per_worker='{CPU: 1, GPU: 0.25}' --set scaling.max_concurrent_shards=4

DATA holds cifar100/{train,test}.parquet and cifar10_resnet20-12fca82f.th. The block is positions [20000, 30000) of the
shuffled training set: the last two slices of shard 1 and the first two of shard 2. `--twice` trains and unlearns a
second run from the start and compares its bytes with the first. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pyarrow as pa
from _measure import machine

from ray_sisa import placement
from ray_sisa.config import RunConfig
from ray_sisa.config_values import load_config
from ray_sisa.engine.runner import open_runner
from ray_sisa.engine.work import EpochDone, Event
from ray_sisa.report import write_report
from ray_sisa.run import Run
from ray_sisa.strict_json import finite, to_json

BLOCK = (20_000, 30_000)
CONFIG = Path(__file__).with_suffix(".yaml")


def main() -> None:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    runs = [measure(options, "first")] + ([measure(options, "second")] if options.twice else [])
    record = runs[0]
    if options.twice:
        names = ("ensemble_digest_trained", "ensemble_digest_unlearned")
        record["twice"] = {name: [run[name] for run in runs] for name in names}
        record["twice"]["equal"] = all(runs[0][name] == runs[1][name] for name in names)
    # Where the data lay is nobody's business who reads the record.
    text = json.dumps(finite(record), indent=1, default=str, allow_nan=False).replace(
        os.environ["RAY_SISA_DATA"], "DATA"
    )
    (options.out / "result.json").write_text(text + "\n", encoding="utf-8")
    shutil.copy(CONFIG, options.out / "config.yaml")
    shown = {k: v for k, v in json.loads(text).items() if k not in {"configuration", "evaluations"}}
    print(to_json(shown, indent=1))


def measure(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """One run from the start; only the first is evaluated and verified, the second only compared."""
    config = configuration(options, name)
    began = time.perf_counter()
    run = Run.create(config)
    record: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "machine": machine(),
        "configuration": config.model_dump(mode="json", exclude={"storage_path"}),
        "seconds_to_ingest": time.perf_counter() - began,
        "evaluations": {},
    }
    ids = block(run)
    full = name == "first"

    def evaluate(state: str, forget: int | list[str]) -> None:
        if full:
            evaluation = run.evaluate(forget=forget, runner=runner)
            record["evaluations"][state] = summary(asdict(evaluation))
            print(state, record["evaluations"][state], file=sys.stderr, flush=True)

    with open_runner("ray", config.scaling) as runner:
        trained = run.train(runner=runner, tell=tell)
        record["train"], record["ensemble_digest_trained"] = asdict(trained), trained.ensemble_digest
        evaluate("before", ids)
        record["forget"] = asdict(run.forget(samples=ids, reason="the study's block"))
        evaluate("rolled back", 1)
        unlearned = run.unlearn(runner=runner, tell=tell)
        record["unlearn"], record["ensemble_digest_unlearned"] = asdict(unlearned), unlearned.ensemble_digest
        evaluate("after", 1)
        if full:
            began = time.perf_counter()
            record["verify"] = asdict(run.verify(shards=[2], sample=options.verify, runner=runner))
            record["verify"]["seconds"] = time.perf_counter() - began
    stages = [(s.shard, s.slice, s.sample_passes, round(s.seconds, 2)) for s in run.stages()]
    record["stages (shard, slice, sample passes, seconds)"] = stages
    record["environment"] = run.stages()[0].environment.model_dump(mode="json")
    if full:
        write_report(run, options.out / "report.html")
    return record


def configuration(options: argparse.Namespace, name: str) -> RunConfig:
    data = Path(os.environ["RAY_SISA_DATA"])
    places = {
        "storage_path": str(options.storage / name),
        "data.train": str(data / "cifar100/train.parquet"),
        "data.test": str(data / "cifar100/test.parquet"),
        "recipe.weights": str(data / "cifar10_resnet20-12fca82f.th"),
    }
    return load_config(CONFIG, [f"{key}={value}" for key, value in places.items()] + options.set)


def block(run: Run) -> list[str]:
    """Ids of the samples at the positions of the block."""
    config = run.record.config
    by_shard = [run.live.index(shard).ids for shard in range(config.placement.shards)]
    ids = pa.concat_arrays(by_shard)
    position = placement.positions(config.placement, ids)
    picked: list[str] = ids.filter(pa.array((position >= BLOCK[0]) & (position < BLOCK[1]))).to_pylist()
    return picked


def summary(evaluation: dict[str, Any]) -> dict[str, Any]:
    """An evaluation without its curves."""
    for attack in [evaluation["ensemble_membership"]] + [
        m[part] for m in evaluation["shard_memberships"] for part in ("held", "whole")
    ]:
        if attack:
            attack.pop("roc")
    return evaluation


def tell(event: Event) -> None:
    if isinstance(event, EpochDone):
        stage, measured = event.stage, event.metrics
        print(
            f"shard {stage.shard} slice {stage.slice} epoch {measured.epoch + 1}: loss {measured.loss} "
            f"train {measured.train_top1:.3f} test {measured.test_top1 or np.nan:.3f}",
            file=sys.stderr,
            flush=True,
        )


def commit() -> str:
    shown = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return shown.stdout.strip()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the record")
    parser.add_argument("--storage", type=Path, default=Path("runs/cifar100-core"), help="where the runs live")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="configuration overrides")
    parser.add_argument("--twice", action="store_true", help="a second run, compared bit for bit")
    parser.add_argument("--verify", type=int, default=1, help="how many stages of shard 2 to train again")
    options = parser.parse_args()
    if "RAY_SISA_DATA" not in os.environ:
        sys.exit("RAY_SISA_DATA names no folder with cifar100/ and cifar10_resnet20-12fca82f.th")
    return options


if __name__ == "__main__":
    main()
