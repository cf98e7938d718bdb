"""The paper on the model-inversion study, written from its record: no number in it was typed.

    python -m ray_sisa.inversion_study.paper results/DATE-study-inversion-cpu/result.json docs/study-inversion.md

Numbers are of the record, of the original study (`original`) or of the preset; what is concluded from them follows by
conditions in `conclusions`. Pictures lie beside the record. `make paper` writes it from the newest record in results/.
"""

from __future__ import annotations

import sys

from ray_sisa.inversion_study.drawings import drawings
from ray_sisa.inversion_study.page import make_page, templates
from ray_sisa.inversion_study.presets import PLAIN, PRIVATE
from ray_sisa.inversion_study.results import InversionRecord
from ray_sisa.study.rendering import write_document

TEMPLATE = "study-inversion.md.j2"


def write_paper(record: InversionRecord, source: str) -> str:
    """The paper, as Markdown.

    Args:
        record: of a study.
        source: the record's file inside the checkout; pictures are looked for beside it, from a folder in the checkout.
    """
    folder = source.rpartition("/")[0]
    page = make_page(record, {drawing.name: f"../{folder}/{drawing.file}" for drawing in drawings(record)})
    rates = {"rate": PLAIN["optimizer"]["lr"], "private_rate": PRIVATE["optimizer"]["lr"]}
    batch = PLAIN["batch_size"]
    template = templates(autoescape=False).get_template(TEMPLATE)
    return template.render(page=page, record=record, source=source, folder=folder, batch=batch, **rates) + "\n"


def main(arguments: list[str]) -> None:
    """Writes the paper: the record, then where to."""
    from ray_sisa.inversion_study.job import read_record

    write_document(
        arguments, "ray_sisa.inversion_study.paper", lambda source, name: write_paper(read_record(source), name)
    )


if __name__ == "__main__":
    main(sys.argv[1:])
