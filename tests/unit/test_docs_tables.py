"""Every table of the README and of docs/ is whole: one head, one rule, and rows of as many cells without a gap."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
RULE = re.compile(r"\|( *:?-+:? *\|)+")
EDGE = re.compile(r"(?<!\\)\|")  # between cells: a bar within one is escaped, also in code


def blocks(text: str) -> Iterator[list[str]]:
    """Lines beginning with a bar that follow each other, those of code left out."""
    block: list[str] = []
    is_code = False
    for line in [*text.splitlines(), ""]:
        is_code ^= line.lstrip().startswith("```")
        if line.startswith("|") and not is_code:
            block.append(line)
        elif block:
            yield block
            block = []


def problems(text: str) -> list[str]:
    """The lines that a reader does not see as rows of a table."""
    found = []
    for head, *rest in blocks(text):
        if not rest or not RULE.fullmatch(rest[0]):
            found.append(f"no head: {head}")
            continue
        num_edges = len(EDGE.findall(head))
        found += [f"other cells: {row}" for row in rest if len(EDGE.findall(row)) != num_edges or not row.endswith("|")]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_whole(page: Path) -> None:
    assert problems(page.read_text(encoding="utf-8")) == []


def test_a_table_with_a_gap_is_not_whole() -> None:
    whole = "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    assert problems(whole + "| 3 | `x\\|y` |\n") == []
    assert problems(whole + "\n| 3 | 4 |\n") == ["no head: | 3 | 4 |"]
    assert problems(whole + "| 3 | 4 | 5 |\n") == ["other cells: | 3 | 4 | 5 |"]
    assert problems("```\n| 3 | 4 |\n```\n") == []
