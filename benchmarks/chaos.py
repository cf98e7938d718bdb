"""Whatever is killed: do runs end in the same bytes, with every request applied once and nothing tainted left?

Each run is trained, receives three deletion requests and unlearns, under kills (SIGKILL) of the driver, of shard
actors, of the raylet of a node, and of the head with or without its driver: at the named crash points beside each
write, all of which a long drill strikes, and at random times. A command that was killed is sent again. After each kill:
is a reader served what saw samples of an acknowledged request, and, where nobody works on the run, what does `check`
find? At the end: are all stages and slices those of an undisturbed run, to the byte? Did every command end in time?

    python benchmarks/chaos.py                                   # ten kills, in this process and on a Ray cluster
    python benchmarks/chaos.py --kills 100 --runner local --seed 7
    python benchmarks/chaos.py --kills 20 --runner ray --store s3 --nodes held

A long drill is made in parts, one after another or beside each other, that are merged into one record. A part that is
cut short keeps what it has done; whoever goes on from there gives another seed.

    python benchmarks/chaos.py --kills 460 --runner local --seed 1 --out results/DATE-chaos
    python benchmarks/chaos.py --kills 380 --runner local --store s3 --seed 2 --out results/DATE-chaos
    python benchmarks/chaos.py --kills 110 --runner ray --seed 3 --out results/DATE-chaos
    python benchmarks/chaos.py --kills 50 --runner ray --store s3 --nodes held --seed 4 --out results/DATE-chaos
    python benchmarks/chaos.py --merge results/DATE-chaos

On a cluster three chains meet two CPUs, of which in every second run (`--nodes both`) another job holds one or both for
part of the time. Exits with 1 if anything went wrong; the runs concerned are kept, and their folders named.
"""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, get_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import _measure
from _chaos_cluster import RayCluster
from _chaos_commands import Undisturbed, undisturbed
from _chaos_kills import Kill, Nodes, Phase, Plan, Target, again
from _chaos_program import Program
from _chaos_record import RECORD, Drill, merged, part, place_of, read_parts, summarise, write
from _chaos_scenario import Outcome, Scenario, Stalled
from _chaos_storage import Storage, StoreKind

Runner = Literal["local", "ray", "both"]
LOCAL_SHARE = 0.6
"""Of the kills, where both runners have some."""
SHARES: dict[Target, float] = {"actor": 0.45, "driver": 0.25, "raylet": 0.2, "head": 0.1}
"""On Ray."""
MOST: dict[str, dict[Phase, int]] = {
    "local": {"train": 6, "forget": 3, "unlearn": 6},
    "ray": {"train": 4, "forget": 0, "unlearn": 3},
}
"""Kills of one run."""


def drill(
    local: int,
    ray: Mapping[Target, int],
    *,
    folder: Path,
    program: Program,
    cluster: RayCluster | None,
    storage: Storage,
    peace: Undisturbed,
    draw: random.Random,
    nodes: Nodes | Literal["both"] = "both",
    keep: Callable[[Drill], None] = lambda done: None,
) -> Drill:
    """Makes so many kills of drivers without Ray, and of each target on it; runs that ended well are removed.

    Args:
        local, ray: how many.
        folder: of the runs' logs, and on disk of the runs.
        program, cluster, storage: what they run on.
        peace: the run that nothing disturbed.
        draw: where all chances come from.
        nodes: of the cluster: whether another job holds CPUs; `both` in turns.
        keep: takes what was done so far, after each run.
    """
    plan, done = Plan(local, ray, peace.points, draw), Drill()
    for kills, where, runner in ((plan.local, None, "local"), (plan.ray, cluster, "ray")):
        most = 10 + len(kills)  # runs: kills that keep missing end there
        while kills and most:
            most -= 1
            place = _made(folder / f"{runner}-{done.runs}")
            style, held = plan.style(kills), _turn(done.runs) if nodes == "both" else nodes
            scenario = Scenario(done.runs, place, program, where, storage, peace, draw, style, held)
            outcome = _outcome(scenario, plan.take(kills, MOST[runner], style))
            kills.extendleft(again(kill) for kill in outcome.missed)
            done.add(outcome, place)
            _tell(done, outcome, kills, place)
            if outcome.ok:
                storage.remove(place)
            keep(done)
    return done


def shared_out(number: int) -> dict[Target, int]:
    """How many kills each target on Ray gets: at least one, and the first the remainder."""
    counts = {target: max(1, int(number * share)) for target, share in SHARES.items()}
    counts[next(iter(SHARES))] += number - sum(counts.values())
    return counts


def main() -> None:
    options = parse()
    if options.merge:
        parts = read_parts(options.merge)
        if not parts:
            sys.exit(f"{options.merge} holds no part of a drill")
        record = merged(parts)
        write(record, options.merge / RECORD)
        summarise(record)
        sys.exit(bool(record["wrong"]))
    sys.exit(bool(_drill(options).wrong))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, metavar="N", help="how many (10)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of what is killed, when (0)")
    parser.add_argument("--runner", choices=get_args(Runner), default="both", help="where runs are trained (both)")
    parser.add_argument("--store", choices=get_args(StoreKind), default="disk", help="where they lie (disk)")
    parser.add_argument("--nodes", choices=(*get_args(Nodes), "both"), default="both", help="of the cluster (both)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the record of this part there")
    parser.add_argument("--merge", type=Path, metavar="FOLDER", help=f"merge the parts there into {RECORD}")
    options = parser.parse_args()
    if options.kills < (1 if options.runner == "local" else 10):
        parser.error("--kills must be 10 at least, or 1 with --runner local")
    return options


def _drill(options: argparse.Namespace) -> Drill:
    logging.getLogger("ray").setLevel(logging.WARNING)
    before, began = _measure.machine(), time.monotonic()
    local = {"local": options.kills, "ray": 0, "both": round(options.kills * LOCAL_SHARE)}[options.runner]
    ray = shared_out(options.kills - local) if local < options.kills else {}
    folder = Path(tempfile.mkdtemp(prefix="ray-sisa-chaos-"))
    with ExitStack() as stack:
        program, storage = stack.enter_context(Program()), stack.enter_context(Storage(options.store))
        peace = undisturbed(program, _made(folder / "undisturbed"), storage)
        _print(f"undisturbed: {', '.join(f'{phase} {s:.1f} s' for phase, s in peace.seconds.items())}")
        points = {place_of("driver", phase, f"{point} 1") for phase, made in peace.points.items() for point in made}

        def record(done: Drill) -> dict[str, object]:
            seconds = round(time.monotonic() - began)
            return part(done, points=points, arguments=_arguments(options), before=before, seconds=seconds)

        def keep(done: Drill) -> None:
            if options.out:
                write(
                    record(done), options.out / f"part-{_arguments(options).replace('--', '').replace(' ', '-')}.json"
                )

        done = drill(
            local,
            ray,
            folder=folder,
            program=program,
            cluster=stack.enter_context(RayCluster()) if ray else None,
            storage=storage,
            peace=peace,
            draw=random.Random(options.seed),
            nodes=options.nodes,
            keep=keep,
        )
        summarise(merged([record(done)]))
    if not done.wrong:
        shutil.rmtree(folder)
    return done


def _outcome(scenario: Scenario, kills: list[Kill]) -> Outcome:
    try:
        scenario.run(kills)
    except Stalled:
        pass  # it is told in the outcome
    except Exception as error:
        scenario.outcome.unexpected.append(f"{type(error).__name__}: {error}")
    return scenario.outcome


def _arguments(options: argparse.Namespace) -> str:
    names = ("kills", "runner", "store", "nodes", "seed")
    return " ".join(f"--{name} {getattr(options, name)}" for name in names)


def _turn(number: int) -> Nodes:
    return "held" if number % 2 else "free"


def _tell(done: Drill, outcome: Outcome, left: deque[Kill], place: Path) -> None:
    points = ", ".join(f"{s.killed} {s.point or f'{s.scene.seconds} s'}" for s in outcome.strikes)
    state = "as undisturbed" if outcome.ok else f"WRONG, kept in {place}"
    kills = f"{len(outcome.strikes)} kills ({points})"
    _print(f"{place.name}: {kills}: {state}; {len(done.strikes)} so far, {len(left)} left")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
