"""Section `tune`: search for the best training settings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from reki_ray.config.base import OPERATIONAL, Section
from reki_ray.config.keys import check_keys, nested
from reki_ray.config.train import TrainConfig, tunable_keys

Whole = int
"""The built-in int, which the field `int` hides."""


class Domain(Section):
    """Values of a setting; give exactly one key."""

    choice: tuple[Any, ...] | None = Field(None, description="One of these values.")
    uniform: tuple[float, float] | None = Field(None, description="Between two numbers.")
    loguniform: tuple[float, float] | None = None
    """Between two positive numbers, uniform in the logarithm."""
    int: tuple[Whole, Whole] | None = Field(None, description="An integer, bounds included.")

    @model_validator(mode="after")
    def _is_one_range(self) -> Domain:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                "give one of choice: [a, b, ...], uniform: [low, high], loguniform: [low, high] "
                f"and int: [low, high], not {', '.join(given) or 'none'}"
            )
        if self.choice is not None:
            if not self.choice:
                raise ValueError("choice is empty: name at least one value")
            return self
        low, high = self.bounds
        if not low < high:
            raise ValueError(f"{given[0]}: [{low}, {high}] is empty: give the lower bound first")
        if self.loguniform and low <= 0:
            raise ValueError(f"loguniform: [{low}, {high}] needs bounds above 0")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value; not for choices."""
        return self.uniform or self.loguniform or self.int or (0.0, 0.0)

    @property
    def size(self) -> Whole | None:
        """Number of values; None if continuous."""
        if self.choice is not None:
            return len(self.choice)
        return None if self.int is None else self.int[1] - self.int[0] + 1

    def probes(self) -> Iterator[Any]:
        """Values to validate: all choices, or the bounds and a value between."""
        if self.choice is not None:
            yield from self.choice
            return
        low, high = self.bounds
        yield from (low, high)
        if self.int is None:
            yield low + (high - low) / math.pi  # not a whole number, for settings that require one

    def __contains__(self, value: Any) -> bool:
        if self.choice is not None:
            return value in self.choice
        low, high = self.bounds
        return isinstance(value, int | float) and low <= value <= high


class TuneConfig(Section):
    """Search for the best settings of `train` on the validation split, see `reki tune`."""

    trials: Whole = Field(20, ge=1, json_schema_extra=OPERATIONAL)
    """Settings to try per backbone, those of `train` first."""
    concurrency: Whole = Field(1, ge=1, json_schema_extra=OPERATIONAL)
    """Trials that run at the same time."""
    seed: Whole = Field(0, ge=0, description="Seed of the search and of every trial.")
    stopper: Literal["asha", "median", "none"] = "asha"
    """What ends a trial early: asha, if it is among the worse two thirds of the trials at an epoch;
    median, if it is worse than their median."""
    grace_epochs: Whole = Field(1, ge=1, description="Epochs before a trial may be ended early.")
    space: dict[str, Domain | None] = Field({})
    """Additions to and changes of the default space: a dotted key of `train`, as network.dropout,
    to choice: [a, b], uniform: [low, high], loguniform: [low, high] or int: [low, high]; null does
    not search the setting."""
    only: tuple[str, ...] = ()
    """Search only these keys, with * as in hein.*; empty: the whole space."""

    @field_validator("space")
    @classmethod
    def _settings_are_possible(cls, space: dict[str, Domain | None]) -> dict[str, Domain | None]:
        check_keys(space, tunable_keys(), where="train")
        for key, domain in space.items():
            for value in domain.probes() if domain else ():
                try:
                    TrainConfig.model_validate(nested({key: value}))
                except ValidationError as error:
                    raise ValueError(
                        f"{key} cannot be {value!r}: {error.errors()[0]['msg']}"
                    ) from error
        return space
