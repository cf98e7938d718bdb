"""The record of a drill: what came of all its runs, as JSON. Parts of one drill are merged into one record."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import _measure
from _chaos_judge import Verdict
from _chaos_kills import Strike
from _chaos_scenario import Outcome

from ray_sisa.strict_json import finite, to_json

RECORD, PART = "chaos.json", "part-*.json"
NO_VERDICT = Verdict(divergent=(), lost=(), tainted_left=(), check_findings=())
COUNTS = ("divergent", "lost", "tainted_served", "tainted_left", "stalled", "check_findings", "unexpected")
WRONG = {*COUNTS, "broken_at_rest"}
GROUPS = ("target", "phase", "runner", "store", "nodes")


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
    stalled: int = 0
    """Commands that took longer than any may."""
    check_findings: int = 0
    unexpected: int = 0
    """Commands that failed although nobody had killed them; readers that failed; processes left."""
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
        self.stalled += len(outcome.stalled)
        self.check_findings += len(outcome.broken_at_rest) + len(verdict.check_findings)
        self.unexpected += len(outcome.unexpected)
        for name, texts in {**asdict(verdict), **asdict(outcome)}.items():
            if name in WRONG:
                self.wrong += [f"{folder.name}, {name}: {text}".replace(str(folder), "RUNS") for text in texts]


def part(
    done: Drill, *, points: Iterable[str], arguments: str, before: Mapping[str, object], seconds: int
) -> dict[str, Any]:
    """The record of one drill.

    Args:
        done: what came of it so far.
        points: the crash points that the undisturbed run passed, as `place_of` names those of drivers.
        arguments: the command line.
        before: the machine as it was at the start.
        seconds: since then.
    """
    made = {
        "command": f"python benchmarks/chaos.py {arguments}",
        "commit": _measure.commit(),
        "machine": {**before, "load_average_after": round(os.getloadavg()[0], 2)},
        "seconds": seconds,
        "kills": len(done.strikes),
        "runs": done.runs,
    }
    counts = {name: getattr(done, name) for name in COUNTS}
    found = {"wrong": done.wrong, "points": sorted(points), "seconds_to_end_without_head": done.seconds_to_end}
    return made | counts | found | {"strikes": [asdict(strike) for strike in done.strikes]}


def merged(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One record of the drills of several commands: sums, and what was struck over all of them."""
    strikes = [strike for made in parts for strike in made["strikes"]]
    points = {point for made in parts for point in made["points"]}
    struck = Counter(place_of(strike["killed"], strike["phase"], strike["point"]) for strike in strikes)
    described = ("command", "commit", "machine", "seconds", "kills", "runs")
    return {
        "parts": [{name: made[name] for name in described} for made in parts],
        **{name: sum(made[name] for made in parts) for name in ("seconds", "kills", "runs", *COUNTS)},
        "wrong": [text for made in parts for text in made["wrong"]],
        **{f"by_{name}": _counted(s[name] for s in strikes) for name in GROUPS},
        "by_place": _counted(", ".join(filter(None, map(s.get, GROUPS[2:]))) for s in strikes),
        "by_point": dict(sorted(struck.items())),
        "num_points": len(points),
        "points_not_struck": sorted(points - struck.keys()),
        "seconds_to_end_without_head": [s for made in parts for s in made["seconds_to_end_without_head"]],
        "strikes": strikes,
    }


def write(record: Mapping[str, Any], path: Path) -> None:
    """Writes a record; whoever reads meanwhile finds a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(to_json(finite(record), indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def read_parts(folder: Path) -> list[dict[str, Any]]:
    """The records of all parts in a folder, by their names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(PART))]


def summarise(record: Mapping[str, Any]) -> None:
    """Prints a merged record."""
    for name in (*(f"by_{group}" for group in GROUPS), "by_place", "by_point"):
        print(f"\n{name.replace('_', ' ')}")
        for what, number in record[name].items():
            print(f"  {number:4}  {what}")
    print(f"\n{record['kills']} kills in {record['runs']} runs, {record['seconds']} s")
    num_points = record["num_points"]
    print(f"{num_points - len(record['points_not_struck'])} of the {num_points} points of drivers struck")
    for name in COUNTS:
        print(f"  {record[name]:4}  {name.replace('_', ' ')}")
    for text in record["wrong"]:
        print(f"  {text}")


def _counted(values: Iterable[str | None]) -> dict[str, int]:
    return dict(sorted(Counter(value or "none" for value in values).items()))


def place_of(killed: str, phase: str, point: str | None) -> str:
    """Where a kill struck: in which process, under which command, at which point, without its count."""
    return f"{killed}, {phase}: {point.rpartition(' ')[0] if point else 'at a random time'}"
