"""The report of the model-inversion study as one page that a person reads: answer, tables, pictures, what is open.

    python -m ray_sisa.inversion_study.page results/DATE-study-inversion-cpu

Owns what the page says and in which order; the template owns its layout. It refers to no other file, and says nothing
that does not follow from the record. The command makes page and pictures anew from result.json and pictures.npz.
"""

from __future__ import annotations

import base64
import sys
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment

from ray_sisa.errors import SisaError
from ray_sisa.inversion_study import comparison, conclusions, original
from ray_sisa.inversion_study.drawings import Drawing, drawings, write_drawings
from ray_sisa.inversion_study.evidence import evidence
from ray_sisa.inversion_study.limits import advice, limits
from ray_sisa.inversion_study.pictures import PICTURES, Pictures, read_pictures
from ray_sisa.inversion_study.presets import PRESETS, Preset
from ray_sisa.inversion_study.results import InversionRecord, Pair, SubjectAttack
from ray_sisa.inversion_study.summary import Row, Verdict, attackers, baseline, rows, value_of, verdicts
from ray_sisa.inversion_study.wording import (
    R2,
    attacker_title,
    baseline_title,
    difference_text,
    interval_text,
    number,
    shares_text,
    spread_text,
    title_of,
)
from ray_sisa.split_convnet import WIDTH
from ray_sisa.study.rendering import make_templates

RESULT, REPORT = "result.json", "report.html"
COMPARED = {
    ("private", "stopped"): "DP-SGD less stopped early",
    ("private", "noisy"): "DP-SGD less noise on activations",
    ("noisy", "stopped"): "noise on activations less stopped early",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PairRow:
    """A comparison at one noise multiplier."""

    title: str
    pair: Pair
    verdict: Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """All that the templates of page and paper show."""

    record: InversionRecord
    preset: Preset
    verdict: tuple[str, ...]
    rows: dict[str, tuple[Row, ...]]
    """By attacker, the first first."""
    pairs: tuple[PairRow, ...]
    columns: tuple[str, ...]
    lines: tuple[comparison.Line, ...]
    private: tuple[comparison.PrivateLine, ...]
    targets: tuple[comparison.TargetLine, ...]
    subjects: tuple[tuple[SubjectAttack, SubjectAttack], ...]
    """By shard: before, after."""
    drawings: tuple[Drawing, ...]
    drawn: dict[str, str]
    """Pictures as URIs, by name; one that is absent is not shown."""

    def drawing(self, name: str) -> Drawing | None:
        """One of those to be shown."""
        return next((each for each in self.drawings if each.name == name and name in self.drawn), None)


def write_report(record: InversionRecord, pictures: Pictures, folder: Path) -> None:
    """Writes the pictures as PNG files, and the page, into the folder of a record."""
    made = write_drawings(record, pictures, folder)
    (folder / REPORT).write_text(render(make_page(record, embedded(made))), encoding="utf-8")


def embedded(made: dict[str, bytes]) -> dict[str, str]:
    """PNG files as URIs that hold them."""
    return {name: f"data:image/png;base64,{base64.b64encode(content).decode()}" for name, content in made.items()}


def render(page: Page) -> str:
    """The page as HTML, with all that it shows inside."""
    return templates(autoescape=True).get_template("study-inversion.html.j2").render(page=page)


def make_page(record: InversionRecord, drawn: dict[str, str]) -> Page:
    """What a record says, with its pictures by name."""
    attacks = {(a.shard, a.state): a for a in record.sisa.attacks}
    shards = sorted({shard for shard, _ in attacks})
    return Page(
        record=record,
        preset=PRESETS[record.facts.preset],
        verdict=conclusions.verdict(record),
        rows={name: rows(record.honest, name) for name in attackers(record.honest)},
        pairs=tuple(
            PairRow(title=title, pair=pair, verdict=told)
            for (one, other), title in COMPARED.items()
            for pair, told in verdicts(record.honest, one, other)
        ),
        columns=comparison.columns(record),
        lines=comparison.lines(record),
        private=comparison.private_lines(record),
        targets=comparison.target_lines(record),
        subjects=tuple((attacks[shard, "before"], attacks[shard, "after"]) for shard in shards),
        drawings=drawings(record),
        drawn=drawn,
    )


def templates(autoescape: bool) -> Environment:
    """Templates with all that the page and the paper are written with."""
    made = make_templates(autoescape)
    made.filters |= {
        "number": number,
        "spread": spread_text,
        "shares": shares_text,
        "interval": interval_text,
        "gap": difference_text,
        "attacker": attacker_title,
        "title_of": title_of,
        "baseline_title": lambda name: baseline_title(name, WIDTH),
    }
    made.globals |= {
        "R2": R2,
        "WIDTH": WIDTH,
        "advice": advice,
        "baseline": baseline,
        "conclusions": conclusions,
        "evidence": evidence,
        "limits": limits,
        "original": original,
        "value_of": value_of,
    }
    return made


def main(arguments: list[str]) -> None:
    """Makes page and pictures of a folder anew."""
    from ray_sisa.inversion_study.job import read_record

    if len(arguments) != 1:
        sys.exit("usage: python -m ray_sisa.inversion_study.page FOLDER")
    folder = Path(arguments[0])
    try:
        record = read_record(folder / RESULT)
        write_report(record, read_pictures(folder / PICTURES, record), folder)
    except (OSError, ValueError, SisaError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
