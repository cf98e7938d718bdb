"""`docs/operations.md` has a row for each error, warning, variable, command and kind of object, and for nothing else.

What the code raises is read from its syntax trees: fields are literals, f-strings (their beginning counts), constants
of the module, or names that a table here explains.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_sisa import errors
from ray_sisa.cli import app
from ray_sisa.findings import KINDS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ray_sisa"
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
TREES = {
    path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")
}
CLASSES = {
    name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.SisaError)
} - {"SisaError"}
OBJECT, COLUMN = "PATH OF AN OBJECT", "NAME OF A COLUMN"
AS_TEXT = "kind"  # the class is passed on: RequestError, or DataError, whose fields others raise as well
# Fields that are named where a function is called.
PASSED_ON = {
    ("data.py", "ConfigError"): {"data.num_classes", "data.mean", "data.std", "data.channels", "data.image_size"},
    ("local_path.py", "ConfigError"): {"storage_path", "data.train", "data.test", "data.root", "recipe.weights"},
    ("endpoint.py", "StoreError"): {
        "AWS_ENDPOINT_URL_S3",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
    },
    ("omniglot.py", "ConfigError"): {"data.train", "data.test"},
    ("parquet_files.py", "ConfigError"): {"data.columns"},
    ("parquet_files.py", "DataError"): {"data.train", "data.test", "inputs", COLUMN},
    ("parquet_sources.py", "DataError"): {"data.train", "data.test", "inputs"},
    ("parquet.py", "DataError"): {"data.train", "data.test", "inputs", COLUMN},
    ("samples.py", "DataError"): {"id", "subject"},
    ("ids.py", "RequestError"): {"samples", "subjects", "ids", "--from", "--subjects-from", "--forget"},
    ("ids.py", AS_TEXT): {"id", "reason", "key", "requester"},
    ("uris.py", AS_TEXT): set(),  # of errors of several classes, whose fields others raise as well
    ("divergence.py", "DivergedError"): {"stage", "shard"},
    ("keyed_ids.py", "ConfigError"): {"RAY_SISA_IDS_KEY_FILE", "RAY_SISA_IDS_KEY_COMMAND", "RAY_SISA_IDS_KEY"},
    ("census.py", "RequestError"): {"unknown ids", "forget"},
    ("array_files.py", "DataError"): {"inputs"},
    ("cli.py", "RequestError"): {"--shards"},
    ("readings.py", "RequestError"): {"--samples", "--subjects", "--from", "--subjects-from", "--forget"},
    ("inverting.py", "DataError"): {"public", "victims"},
    ("evaluation/inversion.py", "DataError"): {"reconstructed", "mean_image"},
}
WITHIN_A_CHECK = ("findings.py", "StoreError")  # becomes a finding, and is never met as an error


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Class and field of each error that is made."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and ast.unparse(node).startswith(f"raise {AS_TEXT}("):
            assert isinstance(node.exc, ast.Call)
            yield AS_TEXT, node.exc.args[0]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CLASSES:
            yield node.func.id, node.args[0]


def constants(tree: ast.Module) -> dict[str, str]:
    """Text that a module has under a name."""
    found: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                names = target.elts if isinstance(target, ast.Tuple) else [target]
                values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
                pairs = zip(names, values, strict=False) if len(names) == len(values) else ()
                found |= {
                    name.id: value.value
                    for name, value in pairs
                    if isinstance(name, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str)
                }
    return found


def fields(field: ast.expr, names: dict[str, str]) -> set[str] | None:
    """What a field may be; None where it is passed on."""
    if isinstance(field, ast.Constant):
        return {str(field.value)}
    if isinstance(field, ast.IfExp):
        return (fields(field.body, names) or set()) | (fields(field.orelse, names) or set())
    if isinstance(field, ast.JoinedStr):
        beginning = field.values[0]
        return {str(beginning.value).strip()} if isinstance(beginning, ast.Constant) else {OBJECT}
    if isinstance(field, ast.Name) and field.id in names:
        return {names[field.id]}
    if isinstance(field, ast.Call) and isinstance(field.func, ast.Attribute) and field.func.attr == "where":
        return {OBJECT}
    return {OBJECT} if isinstance(field, ast.Name) and field.id == "where" else None


def raised() -> dict[str, set[str]]:
    """Fields of each class of errors."""
    found: dict[str, set[str]] = {name: set() for name in CLASSES}
    met = set()
    for path, tree in TREES.items():
        names = constants(tree)
        for kind, field in calls(tree):
            if (path, kind) == WITHIN_A_CHECK:
                continue
            known = fields(field, names)
            if known is None:
                met.add((path, kind))
            found["RequestError" if kind == AS_TEXT else kind] |= PASSED_ON[path, kind] if known is None else known
    assert met == PASSED_ON.keys()
    return found


def section(heading: str) -> str:
    """What follows a heading, up to the next of its level or above."""
    level = heading.partition(" ")[0]
    _, found, rest = PAGE.partition(f"\n{heading}\n")
    assert found, heading
    return re.split(rf"^#{{2,{len(level)}}} ", rest, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """Cells of the rows of tables, without their headings."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    rules = [i for i, row in enumerate(cells) if set(row[0]) <= set("-| ")]
    return [row for i, row in enumerate(cells) if i not in rules and i + 1 not in rules]


def told(heading: str) -> list[str]:
    """What the first cells of a section's tables name."""
    return [name for row in rows(section(heading)) for name in re.findall(r"`([^`]+)`", row[0])]


RAISED = raised()


def is_told(field: str, name: str) -> bool:
    """Whether the name in a row stands for a field, which may be but the beginning of it."""
    return name == field or name.startswith(f"{field} ")


def test_the_page_has_a_section_for_each_class() -> None:
    assert set(re.findall(r"^### (\w+Error)$", PAGE, flags=re.MULTILINE)) == CLASSES


@pytest.mark.parametrize("kind", sorted(CLASSES))
def test_each_field_has_a_row_and_each_row_a_field(kind: str) -> None:
    names = told(f"### {kind}")
    assert [field for field in sorted(RAISED[kind]) if not any(is_told(field, name) for name in names)] == []
    # What a row names beside a path, such as a folder, is no field.
    named = {name for name in names if name not in {"ledger", "stages"}}
    assert [name for name in sorted(named) if not any(is_told(field, name) for field in RAISED[kind])] == []


@pytest.mark.parametrize("kind", sorted(CLASSES))
def test_each_row_says_what_it_means_and_what_to_do(kind: str) -> None:
    found = rows(section(f"### {kind}"))
    assert found
    assert [row for row in found if len(row) != 3 or not all(row)] == []


def test_each_variable_of_the_package_is_told_and_no_other() -> None:
    variables = re.compile(r"RAY_SISA_[A-Z_]+")
    source = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    assert set(variables.findall("\n".join(told("### Environment variables")))) == set(variables.findall(source))
    assert set(variables.findall(PAGE)) <= set(variables.findall(source))


def test_each_warning_is_told() -> None:
    lines = [row[0] for row in rows(section("### Warnings in the log"))]
    templates = [
        node.args[0].value
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "logger.warning"
        if isinstance(node.args[0], ast.Constant)
    ]
    assert len(templates) == len(set(templates)) > 0
    for template in templates:
        pattern = ".+?".join(map(re.escape, re.split(r"%[a-z]", template)))
        assert [line for line in lines if re.search(pattern, line)], template
    assert len(lines) == len(templates)


def test_each_command_is_told_and_no_other() -> None:
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    commands |= {group.name for group in app.registered_groups}
    assert set(re.findall(r"ray-sisa ([a-z]+)", PAGE)) == commands


def test_each_kind_of_object_is_told_and_no_other() -> None:
    assert sorted(told("## 3. `ray-sisa check` and `--repair`")) == sorted(KINDS)
