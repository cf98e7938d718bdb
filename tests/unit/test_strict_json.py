"""JSON as its standard has it: what is not finite is null, or refused, and never a word that readers do not know."""

from __future__ import annotations

import json
import math

import pytest
from pydantic import ValidationError

from ray_sisa.records import EpochMetrics
from ray_sisa.strict_json import finite, to_json


def test_what_is_not_finite_is_null_at_any_depth() -> None:
    value = {"a": math.nan, "b": [1.5, (math.inf, -math.inf)], "c": {"d": {"e": math.nan}}, "f": "NaN", "g": None}
    plain = {"a": None, "b": [1.5, [None, None]], "c": {"d": {"e": None}}, "f": "NaN", "g": None}
    assert json.loads(to_json(finite(value))) == plain


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"a": [value]})
    with pytest.raises(ValidationError, match="finite"):
        EpochMetrics(epoch=0, loss=0.5, train_top1=value)


def test_metrics_of_a_network_that_diverged_are_read_and_written_without_a_number() -> None:
    metrics = EpochMetrics.model_validate_json(b'{"epoch": 0, "loss": NaN, "train_top1": 0.5}')  # as it was written
    assert metrics.loss is None
    assert json.loads(metrics.model_dump_json())["loss"] is None
    assert EpochMetrics(epoch=0, loss=math.inf, train_top1=0.5) == metrics
