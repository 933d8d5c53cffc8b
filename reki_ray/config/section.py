"""What every section of the configuration is."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, ConfigDict

OPERATIONAL: Final[dict[str, Any]] = {"operational": True}
"""Marks a field (`json_schema_extra`) that changes how the work is done, not what comes out."""


class Section(BaseModel):
    """Base of every section: immutable, and strict about unknown keys."""

    # An error of another tool's log must not quote what was given: it may be a password.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    def identity(self) -> dict[str, Any]:
        """JSON-ready content without operational fields: equal where the output is."""
        content = self.model_dump(mode="json")
        found = {}
        for name, field in type(self).model_fields.items():
            if field.json_schema_extra == OPERATIONAL:
                continue
            value = getattr(self, name)
            found[name] = value.identity() if isinstance(value, Section) else content[name]
        return found
