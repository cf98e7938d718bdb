"""One run from its first command to its last, under kills: train, three deletion requests, unlearn.

Every command is a process. One that is killed is sent again as it was, as a user would, until it ends with 0; only then
is a request acknowledged. What becomes of the run is for `_chaos_judge` to say, after each kill and at the end.
"""

from __future__ import annotations

import json
import math
import random
import signal
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from _chaos_cluster import TRAINING, RayCluster
from _chaos_commands import Undisturbed, forget_arguments, train_arguments, unlearn_arguments, uri_of
from _chaos_judge import Deletion, Verdict, last_object
from _chaos_kills import Kill, Nodes, Phase, Scene, Strike, Style
from _chaos_program import Process, Program
from _chaos_storage import Storage

from ray_sisa.layout import RUN
from ray_sisa.store import Store

LEASES_S = (0.5, 30.0)  # often renewed, and hardly ever; a killed driver blocks the next in no case
ATTEMPT_S = {False: 240.0, True: 420.0}  # by whether it is on Ray; a command that takes longer has stalled
MOST_ATTEMPTS = 15
SPREAD_S = 1.5
AT_ONCE = 0.2  # parts up to this count from when a shard actor is there: it may be loading libraries still


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What came of a scenario."""

    strikes: list[Strike] = field(default_factory=list)
    missed: list[Kill] = field(default_factory=list)
    """Kills whose command ended before they struck."""
    tainted_served: list[str] = field(default_factory=list)
    broken_at_rest: list[str] = field(default_factory=list)
    """What `check` found after a kill, while nobody worked on the run."""
    stalled: list[str] = field(default_factory=list)
    """Commands that took longer than any may."""
    unexpected: list[str] = field(default_factory=list)
    """Commands that ended with an error although nobody had killed them, or left processes."""
    seconds_to_end: list[float] = field(default_factory=list)
    """How long drivers took to end that had lost the head of their cluster."""
    verdict: Verdict | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing went wrong."""
        wrong = self.tainted_served or self.broken_at_rest or self.stalled or self.unexpected
        return not wrong and bool(self.verdict and self.verdict.ok)


class Stalled(Exception):
    """A command took longer than any may: its run ends there."""


class Scenario:
    """One run in a folder of its own, in this process or on a cluster."""

    def __init__(
        self,
        number: int,
        folder: Path,
        program: Program,
        cluster: RayCluster | None,
        storage: Storage,
        peace: Undisturbed,
        draw: random.Random,
        style: Style,
        nodes: Nodes,
    ) -> None:
        self._number, self._folder, self._uri = number, folder, uri_of(folder, storage)
        self._program, self._cluster, self._peace, self._draw = program, cluster, peace, draw
        self._storage, self._style, self._nodes, self._lease_s = storage, style, nodes, draw.choice(LEASES_S)
        self._unsent = deque(peace.deletions)
        self._acknowledged: list[Deletion] = []
        self._forget_kills: deque[Kill] = deque()
        self._worked_on = False
        """Whether a command runs beside the one that a kill is about."""
        self.outcome = Outcome()

    def run(self, kills: Sequence[Kill]) -> Outcome:
        """Runs all commands under these kills, in this order for each phase."""
        if self._cluster:
            self._cluster.hold(self._number) if self._nodes == "held" else self._cluster.let_go()
        by_phase = {phase: [kill for kill in kills if kill.phase == phase] for phase in ("train", "forget", "unlearn")}
        self._forget_kills = deque(by_phase["forget"])
        on_ray = self._cluster is not None
        self._command("train", train_arguments(self._folder, self._storage, on_ray), by_phase["train"])
        while self._unsent:
            self._send()
        self._command("unlearn", unlearn_arguments(self._uri, on_ray), by_phase["unlearn"])
        self.outcome.missed += self._forget_kills
        if self._cluster and not (self._cluster.at_rest() and self._cluster.bury()):
            self.outcome.unexpected.append("processes of the cluster were left")
        self.outcome.verdict = self._peace.judge.at_end(self._uri)
        return self.outcome

    def _send(self) -> None:
        """Sends the next request until it is acknowledged."""
        deletion = self._unsent.popleft()
        kills = [self._forget_kills.popleft()] if self._forget_kills else []
        if not self._unsent:
            kills, self._forget_kills = [*kills, *self._forget_kills], deque()
        self._command("forget", forget_arguments(self._uri, deletion), kills)
        self._acknowledged.append(deletion)

    def _command(self, phase: Phase, arguments: Sequence[str], kills: Sequence[Kill]) -> None:
        waiting = deque(kills)
        for _ in range(MOST_ATTEMPTS):
            if _Attempt(self, phase, arguments, waiting).succeeds():
                self.outcome.missed += waiting
                return
            if phase == "train" and self._style == "between" and Store(self._uri).find(RUN) is not None:
                while self._unsent:
                    self._send()
        raise RuntimeError(f"{phase} did not end in {MOST_ATTEMPTS} attempts; see {self._folder}")

    def start(self, phase: Phase, arguments: Sequence[str], armed: Kill | None) -> Process:
        """Starts a command, itself or its shard actors armed with a crash point."""
        environment = self._storage.environment | {"RAY_SISA_LEASE_S": str(self._lease_s)}
        if self.on_ray(phase):
            assert self._cluster
            environment |= self._cluster.environment
            if armed:
                variables = armed.environment | {"RAY_SISA_CRASH_LOG": str(self.crash_log)}
                environment["RAY_JOB_CONFIG_JSON_ENV_VAR"] = json.dumps({"runtime_env": {"env_vars": variables}})
        elif armed:
            environment |= armed.environment
        return self._program.start(*arguments, log=self._folder / "log", environment=environment)

    def on_ray(self, phase: Phase) -> bool:
        """Whether a command works on the cluster."""
        return self._cluster is not None and phase != "forget"

    @property
    def cluster(self) -> RayCluster:
        """What the run is on."""
        assert self._cluster
        return self._cluster

    @property
    def crash_log(self) -> Path:
        """Where a shard actor says that it killed itself."""
        return self._folder / "crashed"

    @property
    def draw(self) -> random.Random:
        """Where its chances come from."""
        return self._draw

    def usual_s(self, phase: Phase) -> float:
        """How long a command takes undisturbed and without Ray."""
        return self._peace.seconds[phase]

    def send_meanwhile(self) -> bool:
        """Sends a request while a command runs, if this run is one where that is done; False where there is none."""
        if self._style != "during" or not self._unsent or Store(self._uri).find(RUN) is None:
            return False
        self._worked_on = True
        self._send()
        self._worked_on = False
        return True

    def scene(self, began: float) -> Scene:
        """How things stand now, in a command that began then."""
        return Scene(
            seconds=round(time.monotonic() - began, 2),
            last_object=last_object(self._uri),
            stages=len(Store(self._uri).committed_stages()),
            acknowledged=len(self._acknowledged),
        )

    def inside(self) -> set[str]:
        """All objects of stages, partial ones too."""
        return set(Store(self._uri).sizes("stages"))

    def struck(self, kill: Kill, killed: str, scene: Scene, at_rest: bool) -> None:
        """Records a kill, and looks at what it left; all of it where what was killed leaves nobody at work."""
        strike = Strike(
            scenario=self._number,
            runner="ray" if self._cluster else "local",
            store=self._storage.kind,
            nodes=self._nodes if self._cluster else None,
            style=self._style,
            target=kill.target,
            phase=kill.phase,
            point=f"{kill.point} {kill.count}" if kill.point else None,
            killed=killed,
            scene=scene,
        )
        self.outcome.strikes.append(strike)
        judge, where = self._peace.judge, f"{killed} killed in {kill.phase} {strike.point or 'at a random time'}"
        self.outcome.tainted_served += [f"{where}: {x}" for x in judge.served_tainted(self._uri, self._acknowledged)]
        if at_rest and not self._worked_on:
            self.outcome.broken_at_rest += [f"{where}: {found}" for found in judge.at_rest(self._uri)]

    def is_unexpected(self, what: str) -> None:
        """Notes what should not have happened, with the last that was logged."""
        self.outcome.unexpected.append(f"{what}: {self._last_line()}")

    def has_stalled(self, what: str) -> Stalled:
        """Notes what took longer than it may."""
        self.outcome.stalled.append(f"{what}: {self._last_line()}")
        return Stalled(what)

    def _last_line(self) -> str:
        lines = (self._folder / "log").read_text(errors="replace").splitlines()
        return lines[-1] if lines else ""


class _Attempt:
    """A command from its start to its end, by itself or by a kill; takes the kills that strike from those waiting."""

    def __init__(self, scenario: Scenario, phase: Phase, arguments: Sequence[str], waiting: deque[Kill]) -> None:
        self._scenario, self._phase, self._waiting = scenario, phase, waiting
        self._on_ray = scenario.on_ray(phase)
        self._armed = self._next_armed()
        scenario.crash_log.unlink(missing_ok=True)
        self._began = time.monotonic()
        self._process = scenario.start(phase, arguments, self._armed)
        self._known, self._moved_at = scenario.inside(), math.inf
        self._send_at = self._began + scenario.draw.random() * scenario.usual_s(phase)
        self._ours = False
        """Whether its end is our doing."""

    def succeeds(self) -> bool:
        """Whether it ended with 0."""
        while self._process.wait(0.02) is None:
            self._look_for_strike()
            if self._is_due():
                self._kill(self._waiting.popleft())
                self._known, self._moved_at = self._scenario.inside(), math.inf
            elif self._phase == "train" and time.monotonic() > self._send_at and not self._scenario.send_meanwhile():
                self._send_at = time.monotonic() + 0.1
            if time.monotonic() - self._began > ATTEMPT_S[self._on_ray]:
                self._process.kill()
                raise self._scenario.has_stalled(f"{self._phase} took more than {ATTEMPT_S[self._on_ray]:.0f} s")
        self._look_for_strike()
        return self._judge_end(self._process.code)

    def _judge_end(self, code: int | None) -> bool:
        if code == -signal.SIGKILL and self._armed and not self._on_ray:
            self._strike(self._armed, "driver", self._scenario.scene(self._began), at_rest=True)
            return False
        if self._armed:
            self._scenario.outcome.missed.append(self._armed)
        if code != 0 and not self._ours:
            self._scenario.is_unexpected(f"{self._phase} ended with {code}")
        return code == 0

    def _next_armed(self) -> Kill | None:
        """The first kill, if it is at a named point; on Ray the first such, as others need no new process."""
        for kill in self._waiting:
            if kill.point:
                self._waiting.remove(kill)
                return kill
            if not self._on_ray:
                break
        return None

    def _look_for_strike(self) -> None:
        """Whether an armed shard actor killed itself."""
        if self._on_ray and self._armed and self._scenario.crash_log.exists():
            self._strike(self._armed, "actor", self._scenario.scene(self._began))
            self._armed = None

    def _is_due(self) -> bool:
        kill = self._waiting[0] if self._waiting else None
        if kill is None or kill.point or (self._armed and not self._on_ray):
            return False
        if not self._on_ray:
            return time.monotonic() >= self._began + kill.part * self._scenario.usual_s(self._phase)
        if not self._scenario.cluster.workers(TRAINING):
            return False
        if self._moved_at == math.inf and (kill.part <= AT_ONCE or self._scenario.inside() - self._known):
            self._moved_at = time.monotonic()
        return time.monotonic() >= self._moved_at + kill.part * SPREAD_S

    def _kill(self, kill: Kill) -> None:
        scene = self._scenario.scene(self._began)
        if kill.target == "driver":
            struck = self._kill_driver()
            rests = not self._on_ray or (struck and self._comes_to_rest())
        elif kill.target == "head":
            return self._kill_head(kill, scene)
        else:
            cluster, draw = self._scenario.cluster, self._scenario.draw
            struck = cluster.kill_worker(draw) if kill.target == "actor" else cluster.kill_node(draw)
            rests = False
        if struck:
            self._strike(kill, kill.target, scene, at_rest=rests)
        else:
            self._scenario.outcome.missed.append(kill)

    def _kill_driver(self) -> bool:
        self._process.kill()
        self._ours = self._process.code == -signal.SIGKILL
        return self._ours

    def _kill_head(self, kill: Kill, scene: Scene) -> None:
        """With the driver, as that of a submitted job is there; or without it, as it may be elsewhere."""
        self._ours, scenario = True, self._scenario
        scenario.cluster.kill_head()
        with_driver = scenario.draw.random() < 0.5
        if with_driver:
            self._process.kill()
        else:
            lost = time.monotonic()
            if self._process.wait(ATTEMPT_S[True]) is None:
                self._process.kill()
                raise scenario.has_stalled("a driver that lost its head did not end")
            scenario.outcome.seconds_to_end.append(round(time.monotonic() - lost, 1))
        self._strike(kill, "head and driver" if with_driver else "head", scene, at_rest=self._comes_to_rest())
        scenario.cluster.replace()

    def _comes_to_rest(self) -> bool:
        """Waits for the shard actors to end, or, as often, does not: they may write while the next attempt runs."""
        return self._scenario.draw.random() < 0.5 and self._scenario.cluster.at_rest()

    def _strike(self, kill: Kill, killed: str, scene: Scene, at_rest: bool = False) -> None:
        self._scenario.struck(kill, killed, scene, at_rest)
