"""The paper on the CIFAR-100 study, written from its record: no number in it was typed.

    python -m ray_sisa.study.paper results/DATE-study-cifar100-cpu/result.json docs/study-cifar100.md

Numbers are of the record, of the original study (`original`) or of the preset; what is concluded from them follows by
conditions here and in `conclusions`. `make paper` writes it from the newest record in results/.
"""

from __future__ import annotations

import sys
from collections import Counter

from ray_sisa.approximate.methods import make_method
from ray_sisa.report import percent
from ray_sisa.study import conclusions, original
from ray_sisa.study.comparison import targets
from ray_sisa.study.conclusions import direction
from ray_sisa.study.page import Page, make_page, templates
from ray_sisa.study.pixels import RETRAIN
from ray_sisa.study.presets import PRESETS, Preset
from ray_sisa.study.rendering import write_document
from ray_sisa.study.results import StudyRecord
from ray_sisa.study.summary import TRANSFER, blocks, method_row, method_rows
from ray_sisa.study.wording import enumerated

TEMPLATE = "study-cifar100.md.j2"


def write_paper(record: StudyRecord, source: str) -> str:
    """The paper, as Markdown.

    Args:
        record: of a study.
        source: what the paper says that its numbers are from.
    """
    page: Page = make_page(record, draw=False)
    template = templates(autoescape=False).get_template(TEMPLATE)
    said: dict[str, object] = {
        "answer": answer(record),
        "open_questions": open_questions(record),
    }
    said["dials"] = dials(page.preset)
    said["settings"] = settings(page.preset)
    return template.render(page=page, record=record, source=source, conclusions=conclusions, **said) + "\n"


def dials(preset: Preset) -> str:
    """What the approximate methods were set to, other than by default."""
    said = []
    for given in preset.methods:
        changed = [f"{name} {value}" for name, value in given.items() if name != "name"]
        if changed:
            said.append(f"{make_method(str(given['name'])).title} with {enumerated(changed)}")
    return f"their default dials, but {enumerated(said)}" if said else "their default dials"


def settings(preset: Preset) -> str:
    """How many settings the approximate methods ran with, and how these were chosen."""
    counts = Counter(str(given["name"]) for given in preset.methods)
    several = [f"{make_method(name).title} with {number}" for name, number in counts.items() if number > 1]
    chosen = "Default dials follow the papers; no dial was tuned against the retrained model."
    if not several:
        return f"Each method ran with one setting. {chosen}"
    return (
        f"Methods ran with one setting each, but {enumerated(several)}, of which the further ones are stronger and "
        f"were chosen beforehand. {chosen}"
    )


def answer(record: StudyRecord) -> str:
    """The original's claim, that SISA forgets where fine-tuning does not, held against the record."""
    row = method_row(record, "fine_tune")
    if row is None or row.gap is None:
        return "Fine-tuning was not part of this study."
    found = {
        "same": "Fine-tuning cannot be told from retraining by the measures taken here, so these do not show that it "
        "fails; it has no certificate all the same.",
        "little": "Fine-tuning forgets too little: under some seed it is told from retraining, on the side of the "
        "model that saw the samples.",
        "much": "Fine-tuning is told from retraining, but on the other side: it knows the forgotten samples less well, "
        "beside test samples, than a model that never saw them.",
        "both": "Fine-tuning is told from retraining, with both signs.",
    }[direction(row)]
    judged = [(name, j) for name, j in (("its attack", row.attack), ("its gap", row.gap)) if j is not None]
    counts = enumerated(f"{name} under {j.num_inside} of {len(j.distances)} seeds" for name, j in judged)
    exact = "SISA is exact by construction, and needs no attack to say so."
    return f"{found} Inside the retrained models' range are {counts}.{conclusions.powerless(record)} {exact}"


def open_questions(record: StudyRecord) -> tuple[str, ...]:
    """What the record leaves open."""
    facts, asked = record.facts, []
    if facts.num_train < original.NUM_TRAIN:
        wanted = next(r for r in original.ROWS if (r.method, r.of, r.measure) == (original.SISA, "test set", "top-1"))
        asked.append(
            f"All of CIFAR-100. Pixels are here of {facts.num_classes} classes and {facts.num_train:,} samples; the "
            f"original's {percent(wanted.before)} before and {percent(wanted.after)} after, with transfer on "
            f"{original.NUM_TRAIN:,} samples, are neither reached nor refuted. The preset `gpu` is the whole study."
        )
    asked += [
        f"{t.what[0].upper()}{t.what[1:]}: {percent(t.found)} is short of {percent(t.wanted)}."
        for t in targets(record)
        if not t.is_met
    ]
    reference = method_row(record, RETRAIN)
    if reference:
        asked.append(_range_of(len(reference.results)))
    outside = [row.title for row in method_rows(record) if row.is_approximate and row.gap and direction(row) != "same"]
    if outside:
        asked.append(
            f"Other dials. {settings(PRESETS[facts.preset])} With others, {enumerated(outside)} may do better."
        )
    if len(blocks(record, TRANSFER)) == 1:
        asked.append("The spread of SISA with transfer: it was trained under one seed.")
    asked += [
        "Stronger attacks. This one sees losses, of single models; attacks with shadow models see more.",
        "Requests that depend on what the models answered. All forget sets here were chosen without looking at the "
        "models, except for the most memorised samples; people who ask may choose otherwise.",
        "Real subjects and real chances of deletion: those here are made up.",
    ]
    return tuple(asked)


def _range_of(seeds: int) -> str:
    if seeds == 1:
        return "More seeds. With one retrained model there is no range, only a point to be near to."
    chance = percent((seeds - 1) / (seeds + 1))
    return (
        f"More seeds. Were a further model retrained, it would lie in the range of {seeds} in {chance} of cases: "
        "inside is no proof that nothing was kept, outside in one seed no proof that something was."
    )


def main(arguments: list[str]) -> None:
    """Writes the paper: the record, then where to."""
    from ray_sisa.study.job import read_record

    write_document(arguments, "ray_sisa.study.paper", lambda source, name: write_paper(read_record(source), name))


if __name__ == "__main__":
    main(sys.argv[1:])
