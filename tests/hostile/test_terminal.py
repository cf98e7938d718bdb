"""Text that others wrote reaches no terminal as it is: no escape sequence, no line of its own, no half character."""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_runs import all_samples, dataset, small_config
from typer.testing import CliRunner

from ray_sisa.answer import columns, table
from ray_sisa.cli import app
from ray_sisa.errors import DataError, TrainingError
from ray_sisa.findings import Finding
from ray_sisa.foreign_text import Formatter, escaped
from ray_sisa.records import LeaseRecord
from ray_sisa.run import Run

EVIL = "\x1b]0;owned\x07\x1b[2J\nerror: all is well\r\u202egnirts\x9b1m"
NOT_PRINTED = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def assert_shown(text: str, lines: int = 1) -> None:
    assert not NOT_PRINTED.search(text)
    assert "\\x1b" in text
    assert len(text.strip("\n").split("\n")) == lines


def test_one_function_shows_it() -> None:
    assert escaped("plain, é 漢 🜚 text") == "plain, é 漢 🜚 text"
    assert escaped("half \ud800") == "half \\ud800"
    assert escaped("a\nb\x1b", keep="\n") == "a\nb\\x1b"
    assert_shown(escaped(EVIL))


@pytest.mark.parametrize("place", range(4))
def test_errors_are_one_line(place: int) -> None:
    parts = ["field", "value", "rule", "remedy"]
    parts[place] = EVIL
    assert_shown(str(DataError(*parts)))
    assert getattr(DataError(*parts), ("field", "value", "rule", "remedy")[place]) == EVIL  # JSON escapes by itself


def test_tracebacks_of_workers_keep_their_lines_and_nothing_else() -> None:
    error = TrainingError("shard 0", EVIL, f"failed:\nTraceback\n  {EVIL}")
    assert_shown(str(error), lines=4)
    assert "failed:\nTraceback\n" in str(error)


def test_answers_are_as_many_lines_as_they_have_rows() -> None:
    assert_shown(table([("run", EVIL), ("head", "1")]), lines=2)
    assert_shown(columns(("input", "label"), [(EVIL, "7"), ("b", "8")]), lines=3)


def test_log_lines_are_lines(caplog: pytest.LogCaptureFixture) -> None:
    record = logging.LogRecord("ray_sisa", logging.WARNING, "", 1, "%s of s3://K:S@b", (EVIL,), None)
    shown = Formatter("%(levelname)s %(name)s: %(message)s").format(record)
    assert_shown(shown)
    assert shown.endswith("of s3://***@b")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run.create(small_config(tmp_path_factory.mktemp("run")), dataset=dataset(all_samples()))


def told(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert not isinstance(result.exception, Exception) or isinstance(result.exception, SystemExit)
    return result.stdout + result.stderr


def test_keys_lease_holders_names_in_parquet_and_objects(run: Run, tmp_path: Path) -> None:
    first, second = run.sample_ids(0, 1)[:2]
    run.forget(samples=[first], key=EVIL)
    assert_shown(told("forget", run.store.uri, "--samples", second, "--key", EVIL))

    pq.write_table(pa.table({EVIL: [1]}), tmp_path / "a.parquet")
    assert_shown(told("predict", run.store.uri, tmp_path / "a.parquet"))

    holder = LeaseRecord(number=1, holder=EVIL, expires_at=time.time() + 30)
    run.store.put("lease/00000001.json", holder.to_bytes())
    assert_shown(told("unlearn", run.store.uri, "--wait", "0", "--runner", "local"))
    shown = told("status", run.store.uri)
    assert "\\x1b" in shown
    assert not NOT_PRINTED.search(shown)
    run.store.delete(["lease/00000001.json"])


def test_findings_of_a_check() -> None:
    from ray_sisa import printing
    from ray_sisa.check import Checked

    finding = Finding(path=EVIL, problem=EVIL, meaning="m", remedy="r", repairable=False)
    answer = printing.checked(Checked(findings=(finding,), notes=(EVIL,), objects=1, bytes=1, sound=True))
    assert_shown(answer.text, lines=5)


def test_units_stand_beside_their_numbers() -> None:
    """A no-break space is no character that anybody hides behind."""
    assert escaped("98.9\N{NO-BREAK SPACE}%\x1b[2J") == "98.9\N{NO-BREAK SPACE}%\\x1b[2J"
    assert "98.9\N{NO-BREAK SPACE}%" in table([("top-1", "98.9\N{NO-BREAK SPACE}%")])
