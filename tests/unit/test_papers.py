"""What holds of every paper on a study: it is what its newest record gives, and no number in it was typed."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import ray_sisa.inversion_study.original
import ray_sisa.study.original
from ray_sisa import inversion_study, study
from ray_sisa.inversion_study import paper as inversion_paper
from ray_sisa.inversion_study.job import read_record as read_inversion_record
from ray_sisa.study import paper as cifar100_paper
from ray_sisa.study.job import read_record as read_cifar100_record
from ray_sisa.study.rendering import shortened

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "ray_sisa" / "templates"
NAMES = re.compile(r"CIFAR-100|cifar100|top-[15]|ResNet\d+|utf-8|\.j2|small[12]|image/png;base64|\b(?:r2|top1)\b")
NUMBERS = re.compile(r"\d|\b(?:ten|twenty|thirty|forty|fifty|hundred|thousand|fifth|quarters?)\b")


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A paper, and what it is made with."""

    name: str
    package: ModuleType
    sentences: tuple[str, ...]
    """Modules that say what follows from numbers."""
    write: Callable[[Path], str]


PAPERS = (
    Paper(
        name="study-cifar100",
        package=study,
        sentences=("conclusions", "evidence", "paper", "comparison"),
        write=lambda source: cifar100_paper.write_paper(read_cifar100_record(source), shortened(source)),
    ),
    Paper(
        name="study-inversion",
        package=inversion_study,
        sentences=("conclusions", "evidence", "paper", "comparison", "limits", "wording", "drawings"),
        write=lambda source: inversion_paper.write_paper(read_inversion_record(source), shortened(source)),
    ),
)
SENTENCES = [(paper, module) for paper in PAPERS for module in paper.sentences]


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.name)
def test_a_paper_is_what_the_newest_record_gives(paper: Paper) -> None:
    found = sorted(ROOT.glob(f"results/*-{paper.name}-*/result.json"))
    if not found:
        pytest.skip("no record of the study in results/: the paper is written when there is one")
    written = (ROOT / "docs" / f"{paper.name}.md").read_text(encoding="utf-8")
    assert written == paper.write(found[-1]), "make paper"


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.name)
def test_pictures_of_a_paper_are_there(paper: Paper) -> None:
    page = ROOT / "docs" / f"{paper.name}.md"
    if not page.exists():
        pytest.skip("no record of the study in results/: the paper is written when there is one")
    for link in re.findall(r"!\[.*?\]\((.*?)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).is_file(), link


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.name)
def test_no_number_stands_in_the_words_of_a_paper(paper: Paper) -> None:
    template = (TEMPLATES / f"{paper.name}.md.j2").read_text(encoding="utf-8")
    words = re.sub(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", "", template, flags=re.DOTALL)
    assert [line for line in NAMES.sub("", words).splitlines() if NUMBERS.search(line)] == []


@pytest.mark.parametrize(("paper", "module"), SENTENCES, ids=lambda part: getattr(part, "name", part))
def test_no_number_stands_in_the_words_of_a_sentence(paper: Paper, module: str) -> None:
    tree = ast.parse((folder_of(paper.package) / f"{module}.py").read_text(encoding="utf-8"))
    assert [words for words in typed_in(tree) if NUMBERS.search(words)] == []


@pytest.mark.parametrize("original", [ray_sisa.study.original, ray_sisa.inversion_study.original])
def test_the_mistakes_hold_no_number_but_quotes(original: ModuleType) -> None:
    tree = ast.parse(Path(str(original.__file__)).read_text(encoding="utf-8"))
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "Mistake"]
    assert len(calls) == len(original.MISTAKES)
    for call, mistake in zip(calls, original.MISTAKES, strict=True):
        quotes = getattr(mistake, "quotes", ())
        assert all(quote in mistake.title + mistake.text for quote in quotes)
        for words in (w for k in call.keywords if k.arg != "quotes" for w in typed_in(k.value)):
            for quote in sorted(quotes, key=len, reverse=True):
                words = words.replace(quote, "")
            assert NUMBERS.findall(words) == [], words


def folder_of(package: ModuleType) -> Path:
    return Path(str(package.__file__)).parent


def typed_in(tree: ast.AST) -> list[str]:
    """All words of a piece of source that are neither docstrings nor say how a number is written."""
    skipped = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    for node in ast.walk(tree):
        hidden = (node.slice,) if isinstance(node, ast.Subscript) else ()
        hidden += (node.format_spec,) if isinstance(node, ast.FormattedValue) and node.format_spec else ()
        skipped |= {id(inner) for part in hidden for inner in ast.walk(part)}
    words = (n for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in skipped)
    return [NAMES.sub("", n.value) for n in words if isinstance(n.value, str)]
