"""Whatever is killed: do runs end in the same bytes, with every request applied once and nothing tainted left?

Each run is trained, receives three deletion requests and unlearns, under kills (SIGKILL) of the driver, of shard
actors, of the raylet of a node, and of the head with or without its driver: at the named crash points beside each
write, all of which a long drill strikes, and at random times. A command that was killed is sent again. After each kill:
is a reader served what saw samples of an acknowledged request, and, where nobody works on the run, what does `check`
find? At the end: are all stages and slices those of an undisturbed run, to the byte?

    python benchmarks/chaos.py                                          # ten kills
    python benchmarks/chaos.py --kills 200 --out results/DATE-chaos     # the record
    python benchmarks/chaos.py --kills 100 --seed 7 --targets driver    # without Ray

Exits with 1 if anything went wrong; the runs concerned are kept, and their folders named.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import _measure
from _chaos_cluster import RayCluster
from _chaos_commands import Undisturbed, undisturbed
from _chaos_judge import Verdict
from _chaos_kills import Phase, Plan, Strike, Target, again
from _chaos_program import Program
from _chaos_scenario import Outcome, Scenario

SHARES: dict[Target, float] = {"driver": 0.6, "actor": 0.24, "raylet": 0.1, "head": 0.06}
MOST: dict[str, dict[Phase, int]] = {
    "local": {"train": 4, "forget": 3, "unlearn": 4},
    "ray": {"train": 4, "forget": 0, "unlearn": 3},
}
"""Kills of one run."""
NO_VERDICT = Verdict(divergent=(), lost=(), tainted_left=(), check_findings=())
COUNTS = ("divergent", "lost", "tainted_served", "tainted_left", "check_findings", "unexpected")
WRONG = {*COUNTS, "broken_at_rest"}


@dataclass(kw_only=True, slots=True)
class Drill:
    """All that came of a drill."""

    strikes: list[Strike] = field(default_factory=list)
    runs: int = 0
    divergent: int = 0
    """Runs that did not end as the undisturbed one."""
    lost: int = 0
    """Acknowledged requests that were not applied exactly once."""
    tainted_served: int = 0
    """Constituents that a reader was given although they saw samples of an acknowledged request."""
    tainted_left: int = 0
    """Objects that saw deleted samples, or that must not exist, at the end."""
    check_findings: int = 0
    unexpected: int = 0
    """Commands that failed although nobody had killed them, or hung; readers that failed; processes left."""
    wrong: list[str] = field(default_factory=list)
    """All these in words."""
    seconds_to_end: list[float] = field(default_factory=list)

    def add(self, outcome: Outcome, folder: Path) -> None:
        """Adds what came of a run; its folder is not named."""
        verdict = outcome.verdict or NO_VERDICT
        self.runs += 1
        self.strikes += outcome.strikes
        self.seconds_to_end += outcome.seconds_to_end
        self.divergent += bool(verdict.divergent)
        self.lost += len(verdict.lost)
        self.tainted_served += len(outcome.tainted_served)
        self.tainted_left += len(verdict.tainted_left)
        self.check_findings += len(outcome.broken_at_rest) + len(verdict.check_findings)
        self.unexpected += len(outcome.unexpected)
        for name, texts in {**asdict(verdict), **asdict(outcome)}.items():
            if name in WRONG:
                self.wrong += [f"{folder.name}, {name}: {text}".replace(str(folder), "RUNS") for text in texts]


def drill(
    counts: Mapping[Target, int],
    *,
    folder: Path,
    program: Program,
    cluster: RayCluster | None,
    peace: Undisturbed,
    draw: random.Random,
) -> Drill:
    """Makes so many kills of each target, in runs in this folder; those of runs that ended well are removed."""
    plan, done = Plan(counts, peace.points, draw), Drill()
    for kills, where, runner in ((plan.local, None, "local"), (plan.ray, cluster, "ray")):
        most = 10 + len(kills)  # runs: kills that keep missing end there
        while kills and most:
            most -= 1
            place = folder / f"{runner}-{done.runs}"
            place.mkdir()
            style = plan.style(kills)
            scenario = Scenario(done.runs, place, program, where, peace, draw, style)
            try:
                scenario.run(plan.take(kills, MOST[runner], style))
            except Exception as error:
                scenario.outcome.unexpected.append(f"{type(error).__name__}: {error}")
            outcome = scenario.outcome
            kills.extendleft(again(kill) for kill in outcome.missed)
            done.add(outcome, place)
            _tell(done, outcome, len(kills), place)
    return done


def shared_out(number: int, targets: Sequence[Target]) -> dict[Target, int]:
    """How many kills each target gets: at least one, and the first the remainder."""
    whole = sum(SHARES[target] for target in targets)
    counts = {target: max(1, int(number * SHARES[target] / whole)) for target in targets}
    counts[targets[0]] += number - sum(counts.values())
    return counts


def main() -> None:
    options = parse()
    targets: list[Target] = [target for target in SHARES if target in options.targets.split(",")]
    logging.getLogger("ray").setLevel(logging.WARNING)
    before, began, draw = _measure.machine(), time.monotonic(), random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="ray-sisa-chaos-"))
    with ExitStack() as stack:
        program = stack.enter_context(Program())
        peace = undisturbed(program, _made(folder / "undisturbed"))
        _print(f"undisturbed: {', '.join(f'{phase} {s:.1f} s' for phase, s in peace.seconds.items())}")
        cluster = stack.enter_context(RayCluster()) if set(targets) - {"driver"} else None
        counts = shared_out(options.kills, targets)
        done = drill(counts, folder=folder, program=program, cluster=cluster, peace=peace, draw=draw)
    record = _record(done, peace, options, before, round(time.monotonic() - began))
    _summarise(record)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "chaos.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if not done.wrong:
        shutil.rmtree(folder)
    sys.exit(bool(done.wrong))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, metavar="N", help="how many (10)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of what is killed, when (0)")
    parser.add_argument("--targets", default=",".join(SHARES), metavar="A,B", help=f"of {', '.join(SHARES)}")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the record to FOLDER/chaos.json")
    options = parser.parse_args()
    targets = options.targets.split(",")
    if not set(targets) <= set(get_args(Target)) or options.kills < len(targets):
        parser.error(f"--targets must be of {', '.join(SHARES)}, and --kills at least as many")
    return options


def _record(
    done: Drill, peace: Undisturbed, options: argparse.Namespace, before: dict[str, object], seconds: int
) -> dict[str, Any]:
    points = {f"driver, {phase}: {point}" for phase, passed in peace.points.items() for point in passed}
    arguments = f"--kills {options.kills} --seed {options.seed} --targets {options.targets}"
    return {
        "command": f"python benchmarks/chaos.py {arguments}",
        "commit": _measure.commit(),
        "machine": {**before, "load_average_after": round(os.getloadavg()[0], 2)},
        "seconds": seconds,
        "kills": len(done.strikes),
        "runs": done.runs,
        **{name: getattr(done, name) for name in COUNTS},
        "wrong": done.wrong,
        "by_target": Counter(strike.target for strike in done.strikes),
        "by_phase": Counter(strike.phase for strike in done.strikes),
        "by_runner": Counter(strike.runner for strike in done.strikes),
        "by_point": dict(sorted(Counter(map(_where, done.strikes)).items())),
        "points": len(points),
        "points_not_struck": sorted(points - set(map(_where, done.strikes))),
        "seconds_to_end_without_head": done.seconds_to_end,
        "strikes": [asdict(strike) for strike in done.strikes],
    }


def _where(strike: Strike) -> str:
    """The point of a strike without its count, and in which process."""
    point = strike.point.rpartition(" ")[0] if strike.point else "at a random time"
    return f"{strike.killed}, {strike.phase}: {point}"


def _summarise(record: dict[str, Any]) -> None:
    for name in ("by_target", "by_phase", "by_point"):
        print(f"\n{name.replace('_', ' ')}")
        for what, number in record[name].items():
            print(f"  {number:4}  {what}")
    print(f"\n{record['kills']} kills in {record['runs']} runs, {record['seconds']} s")
    print(f"{record['points'] - len(record['points_not_struck'])} of the {record['points']} points of drivers struck")
    for name in COUNTS:
        print(f"  {record[name]:4}  {name.replace('_', ' ')}")
    for text in record["wrong"]:
        print(f"  {text}")


def _tell(done: Drill, outcome: Outcome, left: int, place: Path) -> None:
    points = ", ".join(f"{s.killed} {s.point or f'{s.scene.seconds} s'}" for s in outcome.strikes)
    state = "as undisturbed" if outcome.ok else f"WRONG, kept in {place}"
    _print(f"{place.name}: {len(outcome.strikes)} kills ({points}): {state}; {len(done.strikes)} so far, {left} left")
    if outcome.ok:
        shutil.rmtree(place)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
