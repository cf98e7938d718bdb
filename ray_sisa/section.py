"""What every section of a configuration is: frozen, of known fields and finite numbers alone."""

from __future__ import annotations

from typing import Any, ClassVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
)
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A part of a configuration; a field that it does not have is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    added: ClassVar[tuple[str, ...]] = ()
    """Fields that came after names had been given to what holds the section. They are written out where they differ
    from their default, so that those names stay."""

    @model_serializer(mode="wrap")
    def _leave_out_added(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = write(self)
        kind = type(self)
        same = [name for name in kind.added if getattr(self, name) == kind.model_fields[name].default]
        return {name: value for name, value in content.items() if name not in same}

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_where_a_number_is_expected(cls, value: object, info: ValidationInfo) -> object:
        # Python counts True as 1, and YAML makes True of the words yes and on.
        parts = value if isinstance(value, list | tuple) else value.values() if isinstance(value, dict) else [value]
        kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
        if bool not in kinds and kinds & {int, float} and any(isinstance(part, bool) for part in parts):
            raise PydanticCustomError("truth_value", "Input should be a number, and yes, on, no and off are none")
        return value


def _kinds(annotation: Any) -> set[type]:
    """All types that an annotation names, within others too."""
    arguments = get_args(annotation)
    return (
        set().union(*map(_kinds, arguments)) if arguments else {annotation} if isinstance(annotation, type) else set()
    )
