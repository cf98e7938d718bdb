"""The page, the pictures and the paper of the model-inversion study, from made-up records."""

from __future__ import annotations

import base64
import io
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from html_pages import Page
from inversion_records import make_pictures, make_record
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from pydantic import TypeAdapter

from ray_sisa.inversion_study import conclusions, original, page, paper
from ray_sisa.inversion_study.drawings import drawings, png
from ray_sisa.inversion_study.grids import APART, GAP, draw_grid, lay_out
from ray_sisa.inversion_study.page import main, make_page, render
from ray_sisa.inversion_study.paper import write_paper
from ray_sisa.inversion_study.pictures import PICTURES
from ray_sisa.inversion_study.results import InversionRecord

PNG = "data:image/png;base64,"
RECORDS = {
    "three seeds": make_record(),
    "one seed, one noise, one attacker": make_record((0.05,), preset="smoke", num_seeds=1, only_first=True),
    "full size": make_record((0.0, 0.0, 0.0), preset="gpu", num_seeds=2),
}
HOLES = re.compile(r"\b(?:nan|NaN|None|inf|Undefined|True|False)\b|\{\{|\}\}")


@cache
def html_of(name: str) -> Page:
    """A page without its pictures' content: these take their time."""
    record = RECORDS[name]
    return Page(render(make_page(record, {drawing.name: PNG for drawing in drawings(record)})))


@cache
def texts_of(name: str) -> dict[str, str]:
    """All words of each picture of a record."""
    record = RECORDS[name]
    pictures = make_pictures(record)
    made = {drawing.name: drawing.draw(pictures) for drawing in drawings(record)}
    return {n: words(figure) for n, figure in made.items() if figure is not None}


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))


@pytest.mark.parametrize("name", RECORDS)
def test_a_page_is_whole_and_says_nothing_that_is_not_there(name: str) -> None:
    found = html_of(name)
    assert found.problems == []
    assert HOLES.findall(found.text) == []
    assert len(found.pictures) == len(drawings(RECORDS[name]))
    for sentence in conclusions.verdict(RECORDS[name]):
        assert " ".join(sentence.split()) in found.text
    assert conclusions.LAW in found.text


def test_the_answer_is_first() -> None:
    text = html_of("three seeds").text
    answer = text.index("DP-SGD reduces this leakage beyond the accuracy that it costs")
    assert answer < text.index("All targets") < text.index("What the original got wrong")


def test_a_report_is_files_and_a_page_that_needs_none(tmp_path: Path) -> None:
    record = RECORDS["one seed, one noise, one attacker"]
    (tmp_path / page.RESULT).write_bytes(TypeAdapter(InversionRecord).dump_json(record))
    with (tmp_path / PICTURES).open("wb") as file:
        np.savez(file, **make_pictures(record))
    main([str(tmp_path)])
    found = Page((tmp_path / page.REPORT).read_text(encoding="utf-8"))
    assert found.problems == []
    assert all(reference.startswith(PNG) for reference in found.references)
    files = {(tmp_path / drawing.file).read_bytes() for drawing in drawings(record)}
    assert {base64.b64decode(uri.removeprefix(PNG)) for uri in found.pictures} == files
    for content in files:
        with Image.open(io.BytesIO(content)) as image:
            image.verify()
    with pytest.raises(SystemExit, match="usage"):
        main([])
    (tmp_path / PICTURES).unlink()
    with pytest.raises(SystemExit, match="pictures"):
        main([str(tmp_path)])


def test_pictures_name_what_they_draw() -> None:
    found = texts_of("three seeds")
    assert list(found) == [
        *("leakage", "pairs", "honest", "white-box", "training", "private-training"),
        *("faithful-105", "faithful-35", "shards", "epsilons"),
    ]
    for name in ("DP-SGD", "NoPeek", "32 principal components", "the mean image", "random weights"):
        assert name in found["leakage"]
    for noise in ("0.7", "0.5", "0.3"):
        assert f"noise multiplier {noise}" in found["pairs"]
        for title in ("DP-SGD, noise multiplier", "stopped early, as accurate as DP-SGD", "noise on activations, as"):
            assert title in found["honest"]
        for title in ("DP-SGD, noise multiplier", "as the original, not private, noise multiplier"):
            assert f"{title} {noise}" in found["faithful-35"]
            assert f"{title} {noise}" not in found["faithful-105"]
        assert f"noise multiplier {noise}" in found["private-training"]
    assert "seen by the attacker" in found["honest"]
    assert "seen by the attacker" not in found["white-box"]
    assert "the original" in found["training"]
    assert "target, 105 pixels a side" in found["training"]
    assert "35 pixels" not in found["training"]
    assert "shard 3" in found["shards"]
    assert "shard 1" in found["epsilons"]


def test_a_grid_has_every_image_in_its_place() -> None:
    images = np.arange(2 * 5 * 4 * 3, dtype=np.uint8).reshape(2, 5, 4, 3)  # 2 rows of 5 images of 4 x 3 pixels
    sheet, middles, (unseen, seen) = lay_out(list(images), 3)
    assert sheet.shape == (GAP + 2 * (4 + GAP), GAP + 5 * (3 + GAP) + APART)
    for row, top in enumerate((GAP, 2 * GAP + 4)):
        assert middles[row] == top + 2
        for column in range(5):
            left = GAP + column * (3 + GAP) + (APART if column >= 3 else 0)
            np.testing.assert_array_equal(sheet[top : top + 4, left : left + 3], images[row, column])
    assert unseen == (GAP, GAP + 3 * (3 + GAP) + APART)
    assert seen == (unseen[1], sheet.shape[1])


def test_a_drawn_grid_keeps_pixels() -> None:
    """A pixel of an image is a square of whole pixels in the file, none of them in between."""
    images = np.zeros((4, 35, 35), np.uint8)
    images[:, ::2] = 255
    figure = draw_grid([("original", images)], 4)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=figure.dpi)
    with Image.open(buffer) as drawn:
        pixels = np.asarray(drawn.convert("L"))
    column = pixels[-(35 * 2 + 2 * GAP * 2) :, -10]  # inside the last image
    assert set(np.unique(column)) <= {0, 255}
    assert (column == 0).sum() == 17 * 2


@pytest.mark.parametrize("name", RECORDS)
def test_a_paper_has_no_hole(name: str) -> None:
    record = RECORDS[name]
    written = write_paper(record, "results/a/result.json")
    assert HOLES.findall(written) == []
    tables = re.findall(r"(?:^\|.*\n)+", written, flags=re.MULTILINE)
    assert len(tables) >= 8
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1, table
    for mistake in original.MISTAKES:
        assert mistake.title in written
    assert conclusions.answer(record) in written
    assert conclusions.LAW in written
    links = re.findall(r"!\[.*?\]\((.*?)\)", written)
    assert sorted(links) == sorted(f"../results/a/{drawing.file}" for drawing in drawings(record))


def test_the_originals_numbers_stand_beside_ours() -> None:
    found = make_page(RECORDS["three seeds"], {})
    by_name = {line.what: line for line in found.lines}
    last = by_name["right on validation images, epoch 10"]
    assert last.theirs == "72.7\N{NO-BREAK SPACE}%"
    assert last.ours[0] == "72.0\N{NO-BREAK SPACE}%"
    assert len(last.ours) == len(found.columns) == 2  # networks
    error = by_name["error of the attacker, epoch 100"]
    assert (error.theirs, error.ours[0]) == ("0.0413", "0.0402")
    short = make_record(preset="smoke")
    assert {line.noise_multiplier for line in make_page(short, {}).private} == {0.7, 0.5, 0.3}


def test_the_same_record_gives_the_same_files() -> None:
    record = RECORDS["one seed, one noise, one attacker"]
    pictures = make_pictures(record)
    for drawing in drawings(record):
        if drawing.name in ("pairs", "honest"):
            one, other = (drawing.draw(pictures) for _ in range(2))
            assert one is not None
            assert other is not None
            assert png(one, is_grid=drawing.is_grid) == png(other, is_grid=drawing.is_grid)


def test_the_paper_command_writes_it(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "2026-11-22-study-inversion-cpu"
    folder.mkdir(parents=True)
    (folder / "result.json").write_bytes(TypeAdapter(InversionRecord).dump_json(RECORDS["three seeds"]))
    paper.main([str(folder / "result.json"), str(tmp_path / "paper.md")])
    written = (tmp_path / "paper.md").read_text(encoding="utf-8")
    assert written == write_paper(RECORDS["three seeds"], "results/2026-11-22-study-inversion-cpu/result.json")
    assert str(tmp_path) not in written
    with pytest.raises(SystemExit, match="usage"):
        paper.main([])
