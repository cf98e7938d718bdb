"""Errors say what is wrong, and arrive whole in another process."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
import traceback

import pytest

from ray_sisa import errors
from ray_sisa.errors import ConfigError, SisaError, StoreError, TrainingError

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]


def make(kind: type[SisaError], value: object = 7) -> SisaError:
    return kind("recipe.seed", value, "must be even", "Choose 8")


def test_the_tree_is_the_one_that_is_drawn() -> None:
    assert errors.__doc__
    drawn = {word for word in errors.__doc__.replace("─", " ").split() if word.endswith("Error")}
    assert {kind.__name__ for kind in KINDS} == drawn
    assert all(issubclass(kind, SisaError) for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_it_names_field_value_rule_and_remedy(kind: type[SisaError]) -> None:
    error = make(kind)
    assert (error.field, error.value, error.rule, error.remedy) == ("recipe.seed", "7", "must be even", "Choose 8")
    assert str(error) == "recipe.seed = 7: must be even. Choose 8"


def test_what_is_not_given_leaves_no_trace() -> None:
    assert str(SisaError("run.json", "", "is not there")) == "run.json: is not there"
    assert str(SisaError("x", None, "is missing")) == "x = None: is missing"
    assert str(SisaError("x", 0, "is zero")) == "x = 0: is zero"


@pytest.mark.parametrize(
    ("value", "shown"), [("text", "text"), (["a"], "['a']"), (1.5, "1.5"), ({"a": 1}, "{'a': 1}"), (b"x", "b'x'")]
)
def test_values_are_shown_as_written(value: object, shown: str) -> None:
    assert make(ConfigError, value).value == shown


@pytest.mark.parametrize("size", [400, 401, 10**6])
def test_long_values_are_shortened(size: int) -> None:
    error = make(ConfigError, "x" * size)
    if size <= 400:
        assert error.value == "x" * size
    else:
        assert error.value.startswith("x" * 360)
        assert error.value.endswith(f"x... ({size} characters)")
        assert len(error.value) < 440
    assert len(str(make(ConfigError, list(range(10**5))))) < 600


def assert_survives(error: SisaError) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        # Twice, as from a worker to the driver and on to a job.
        copy = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(error, protocol)), protocol))
        assert type(copy) is type(error)
        assert (copy.args, vars(copy), str(copy)) == (error.args, vars(error), str(error))


@pytest.mark.parametrize("kind", KINDS)
def test_it_survives_pickling(kind: type[SisaError]) -> None:
    assert_survives(make(kind))
    assert_survives(kind("run.json", "", "is not there"))


@pytest.mark.parametrize("value", ["x" * 1000, ["long"] * 1000], ids=["text", "list"])
def test_shortened_values_survive_pickling(value: object) -> None:
    assert_survives(make(ConfigError, value))


def test_it_survives_whatever_the_value_is() -> None:
    def local() -> None: ...

    error = make(ConfigError, local)  # cannot be pickled itself
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_it_survives_as_a_cause(kind: type[SisaError]) -> None:
    """As concurrent.futures and Ray do: the traceback travels as text, and the whole chain can be printed there."""
    try:
        try:
            raise make(kind)
        except SisaError as error:
            raise TrainingError("shard 3", "", f"failed:\n{error}") from error
    except TrainingError as error:
        outer = error
    told = "".join(traceback.format_exception(outer))
    again = pickle.loads(pickle.dumps(outer))
    again.__cause__ = pickle.loads(pickle.dumps(outer.__cause__))
    assert type(again.__cause__) is kind
    assert str(again.__cause__) == "recipe.seed = 7: must be even. Choose 8"
    assert str(outer) == str(again)
    assert "recipe.seed = 7: must be even. Choose 8" in told
    group = pickle.loads(pickle.dumps(ExceptionGroup("both", [outer, make(kind)])))
    assert [str(e) for e in group.exceptions] == [str(outer), str(make(kind))]


def test_it_crosses_a_real_process() -> None:
    code = (
        "import pickle, sys\n"
        "from ray_sisa.errors import StoreError\n"
        "sys.stdout.buffer.write(pickle.dumps(StoreError('slices/x', ['a', 1], 'is gone', 'Restore it')))\n"
    )
    error = pickle.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert type(error) is StoreError
    assert str(error) == "slices/x = ['a', 1]: is gone. Restore it"


def test_it_is_caught_as_one_family() -> None:
    for kind in KINDS:
        with pytest.raises(SisaError):
            raise make(kind)
