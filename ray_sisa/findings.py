"""Findings of a check: what is wrong with an object, what that means for the run, and what to do about it.

The one table of kinds of objects says both; nothing here reads a store.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ray_sisa.errors import SisaError, StoreError
from ray_sisa.layout import BACKUP, REMADE, kind_of
from ray_sisa.store import Store

REPAIR = "Run `ray-sisa check RUN --repair`"
UNLEARN = "run `ray-sisa unlearn RUN`"
LOOK = "Look what it is, and move it out of the run by hand"
_ANEW = f"{BACKUP}, or copy it from a run made anew of the same data and configuration: it has the same name there"
# Of each kind of object: what it means if one is not as it was written, and what to do.
KINDS = {
    "run.json": ("nothing of the run can be read", f"{BACKUP}; the training configuration alone does not replace it"),
    "index": ("which samples a shard has is not known: no request can be checked, and no name computed", _ANEW),
    "test": ("no evaluation is possible, and training stops where it measures", _ANEW),
    "initial": ("no shard can be trained from its beginning; with a frozen backbone, nothing be predicted", _ANEW),
    "slices": ("stages that read it cannot be trained or verified; those that are trained stand", _ANEW),
    "seals": (
        "what its slice or test set says is known to be right, and its other bytes are not compared",
        f"{REPAIR}: it is removed, and made again",
    ),
    "features": ("it is passed over, and what is in it is made again where it is needed", f"{REPAIR}: it is removed"),
    "stages/stage": (
        "its shard can neither vote with the stage nor go on from it",
        f"{REPAIR}: the stage is removed and trained again, the same to the last bit",
    ),
    "stages/weights": (
        "its shard can neither vote with the stage nor go on from it",
        f"{REPAIR}: the stage is removed and trained again, the same to the last bit",
    ),
    "stages/diverged": (
        "whether the stage is to be trained is not known: its shard does not go on",
        f"{REPAIR}: it is removed, and the stage trained again",
    ),
    "partial/record": ("the stage starts over instead of going on, to the same end", f"{REPAIR}: it is removed"),
    "partial/state": ("the stage starts over instead of going on, to the same end", f"{REPAIR}: it is removed"),
    "approximate/record": (
        "an approximate model is not there; nothing rests on it",
        f"{REPAIR}: it is removed; `ray-sisa approximate RUN` makes it again",
    ),
    "approximate/weights": (
        "an approximate model is not there; nothing rests on it",
        f"{REPAIR}: it is removed; `ray-sisa approximate RUN` makes it again",
    ),
    "ledger": (
        "which samples are deleted is not known for certain: nobody is served, nothing is trained",
        f"{BACKUP}; a ledger from before the request needs the later requests as well",
    ),
    "segments": (
        "the ledger is read request by request, which takes longer",
        f"{REPAIR}: it is removed, and made again from the requests",
    ),
    "heads": (
        "which ensemble was in force then is no longer on record; the run works",
        f"{BACKUP}; without one leave it as it is",
    ),
    "certificates": (
        "what was done for the request is not on record",
        f"{REPAIR}: it is removed, and written again with the time of the repair",
    ),
    "lease": (
        "whether somebody works on the run is not known: no work can begin",
        f"{REPAIR}: a lease that has ended takes its place",
    ),
    "activity": (
        "`status` does not say what is being done; nothing else reads it",
        f"{REPAIR}: it is removed",
    ),
    "spent": (
        "what privacy was spent is not known for certain: `status` and the report cannot say",
        f"{BACKUP}; without one no epsilon of this run can be claimed",
    ),
    # Those of attacks say another command: see `check_records`.
    "reports": ("a measurement is lost", f"{REPAIR}: it is removed; `ray-sisa evaluate RUN` measures again"),
}
_NAMES = re.compile(
    r"run\.json|initial/[0-9a-f]{64}\.safetensors|(index|test|slices)/[0-9a-f]{64}\.arrow|"
    r"features/[0-9a-f]{64}/[0-9a-f]{64}\.safetensors|"
    r"stages/[0-9a-f]{64}/(weights\.safetensors|stage\.json|diverged\.json|partial/\d{8}\.(safetensors|json)|"
    r"approximate/[0-9a-f]{64}\.(safetensors|json))|"
    r"seals/[0-9a-f]{64}/(slices|test)\.json|"
    r"spent/[0-9a-f]{64}/\d{8}\.json|"
    r"(ledger|heads|certificates|lease)/\d{8}\.json|segments/\d{8}\.jsonl|reports/[^/]+|probes/[0-9a-f]{32}|lease/activity\.json"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that is not as it must be."""

    path: str
    problem: str
    meaning: str
    remedy: str
    repairable: bool
    """Whether `repair` deletes it, since it follows from the rest or must not exist, or writes it again."""


class Findings:
    """What a check has found so far, one finding an object, and which objects it has looked at."""

    def __init__(self, store: Store, sizes: Mapping[str, int], tell: Callable[[int, int], None]) -> None:
        """Takes all objects of a run, by path, and who hears how many have been looked at, of how many."""
        self._store, self.sizes, self._tell = store, sizes, tell
        self._found: dict[str, Finding] = {}
        self._notes: dict[str, None] = {}
        self.seen: set[str] = set()
        """Objects whose place in the run is known."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """By path."""
        return tuple(finding for _, finding in sorted(self._found.items()))

    @property
    def notes(self) -> tuple[str, ...]:
        """In the order in which they were made."""
        return tuple(self._notes)

    @contextmanager
    def about(
        self, path: str, *, repairable: bool | None = None, meaning: str = "", remedy: str = ""
    ) -> Iterator[list[str]]:
        """Turns an error of the block into a finding about an object, or about the one that the error names.

        Yields what the block found, empty if nothing.
        """
        found: list[str] = []
        self.look(path)
        try:
            yield found
        except SisaError as error:
            named = self._named(error) or path
            own = error.field in ("", self._store.where(named))
            found.append(error.rule if own else f"{error.field} {error.rule}")
            self.add(named, found[0], repairable=repairable, meaning=meaning, remedy=remedy)

    def look(self, path: str) -> None:
        """Counts an object as looked at."""
        self.seen.add(path)
        self._tell(len(self.seen), len(self.sizes))

    def add(
        self, path: str, problem: str, *, repairable: bool | None = None, meaning: str = "", remedy: str = ""
    ) -> None:
        """Adds a finding, unless there is one about the object; what is not said is as for all of its kind."""
        kind = kind_of(path)
        usual = KINDS.get(kind, ("nothing reads it", LOOK))
        finding = Finding(
            path=path,
            problem=problem,
            meaning=meaning or usual[0],
            remedy=remedy or usual[1],
            repairable=kind in REMADE if repairable is None else repairable,
        )
        self._found.setdefault(path, finding)

    def numbers(self, folder: str) -> list[int]:
        """Numbers of the objects of a numbered series, ascending."""
        return sorted(int(Path(path).stem) for path in self.sizes if kind_of(path) == folder and is_name(path))

    def note(self, text: str) -> None:
        """Adds what is unfinished and no damage."""
        self._notes[text] = None

    def _named(self, error: SisaError) -> str | None:
        """The object of the run that an error names."""
        path = error.field.removeprefix(self._store.where(""))
        return path if path != error.field and is_name(path) else None


def is_name(path: str) -> bool:
    """Whether a run may have an object of this name."""
    return _NAMES.fullmatch(path) is not None


def wrong(rule: str) -> StoreError:
    """A rule that the object in question breaks: see `Findings.about`."""
    return StoreError("", "", rule)
