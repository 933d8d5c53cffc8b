"""Base classes of the sections of the configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

OPERATIONAL: Final[dict[str, Any]] = {"operational": True}
"""Marks a field (`json_schema_extra`) that does not change the output of a stage."""


class Section(BaseModel):
    """Immutable section, strict about unknown keys and about numbers.

    A field is described by `description` or, if that takes more than its line, by a docstring.
    """

    # Errors must not quote the input: it may be a password.
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, content: Any) -> Any:
        """Refuse true for a number, which pydantic reads as 1."""
        wrong: list[InitErrorDetails] = [
            {
                "type": PydanticCustomError("number", "true and false are not numbers"),
                "loc": (name,),
                "input": content[name],
            }
            for name, field in cls.model_fields.items()
            if isinstance(content, Mapping)
            and any(isinstance(part, bool) for part in _parts(content.get(name)))
            and {int, float} & (types := set(_types(field.annotation)))
            and not {bool, Any} & types
        ]
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return content

    def identity(self) -> dict[str, Any]:
        """JSON-ready content without operational fields: equal if the output is equal."""
        content = self.model_dump(mode="json")
        identity = {}
        for name, field in type(self).model_fields.items():
            if field.json_schema_extra == OPERATIONAL:
                continue
            value = getattr(self, name)
            identity[name] = value.identity() if isinstance(value, Section) else content[name]
        return identity


class ReplicaPool(Section):
    """Replicas of a model that share a queue of work units."""

    min_replicas: int = Field(1, ge=1, json_schema_extra=OPERATIONAL)
    """Replicas that always run."""
    max_replicas: int = Field(1, ge=1, json_schema_extra=OPERATIONAL)
    """Replicas that a queue may start, one per two work units, as the cluster allows."""
    restarts: int = Field(3, ge=0, json_schema_extra=OPERATIONAL)
    """Restarts of failed replicas without progress before the stage fails."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas is below min_replicas")
        return self


def _types(annotation: Any) -> Iterator[Any]:
    """Types that an annotation allows, also inside containers."""
    if get_origin(annotation) is Literal:
        yield from map(type, get_args(annotation))
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield Any  # a section checks its own fields
    elif inner := get_args(annotation):
        for part in inner:
            yield from _types(part)
    else:
        yield annotation


def _parts(value: Any) -> Iterator[Any]:
    """Scalars of a value, also inside containers."""
    if isinstance(value, Mapping):
        value = (*value, *value.values())
    elif not isinstance(value, list | tuple | set | frozenset):
        yield value
        return
    for part in value:
        yield from _parts(part)
