"""Scenarios: a domain of items, its factors, and the wording of its prompts.

Factorization prompting (REKI, section on knowledge extraction; KAR): an LLM describes a preference
as a whole poorly, and the factors of the preference well.
"""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from reki_ray.config import describe_problems
from reki_ray.config.files import parse_yaml
from reki_ray.errors import ConfigError
from reki_ray.prompts.languages import LANGUAGES
from reki_ray.schema import SubjectKind

SCENARIOS = ("movies", "books", "news", "music", "products")
"""Names of the bundled scenarios."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Factor(_Strict):
    """One aspect that matters in a scenario."""

    key: str = Field(pattern=r"^[a-z][a-z /&-]*$", description="Name, as answers repeat it.")
    description: str = Field(min_length=1, description="What the factor covers.")
    # Without special characters of regular expressions, from which structured output is built.
    choices: list[Annotated[str, Field(pattern=r"^[^\W_][\w '&/-]*$")]] = Field(
        [], description="Closed list from which a small model chooses: see extract.sampling."
    )


class Nouns(_Strict):
    """Words for items and users."""

    item: str
    items: str
    user: str
    users: str
    acted: str = Field(description="What users did with items, as 'rated' or 'read'.")


class Wording(_Strict):
    """Instructions, one per kind of subject."""

    role: str = Field(description="Who the LLM is to be.")
    item: str
    user: str
    item_cluster: str
    user_cluster: str


class ExampleMember(_Strict):
    """An item inside a group."""

    title: str
    attributes: dict[str, list[str]] = {}


class ExampleItem(ExampleMember):
    """Worked example: an item."""

    text: str | None = None
    answer: dict[str, str]


class RatedTitle(_Strict):
    """One interaction of an example."""

    title: str
    rating: float | None = Field(None, strict=False)


class ExampleGroupUser(_Strict):
    """A user inside a group."""

    attributes: dict[str, list[str]] = {}
    history: list[RatedTitle]

    @property
    def rated(self) -> list[tuple[str, float | None]]:
        """Title and rating of each interaction."""
        return [(event.title, event.rating) for event in self.history]


class ExampleUser(ExampleGroupUser):
    """Worked example: a user."""

    answer: dict[str, str]


class _ExampleCluster(_Strict):
    size: int
    histogram: dict[str, dict[str, float]]
    answer: dict[str, str]


class ExampleItemCluster(_ExampleCluster):
    """Worked example: a group of items."""

    members: list[ExampleMember]

    @property
    def titles(self) -> list[tuple[str, dict[str, list[str]]]]:
        """Title and attributes of each member."""
        return [(member.title, member.attributes) for member in self.members]


class ExampleUserCluster(_ExampleCluster):
    """Worked example: a group of users."""

    members: list[ExampleGroupUser]

    @property
    def profiles(self) -> list[tuple[dict[str, list[str]], list[tuple[str, float | None]]]]:
        """Attributes and rated titles of each member."""
        return [(member.attributes, member.rated) for member in self.members]


class Examples(_Strict):
    """One worked example per kind of subject."""

    item: ExampleItem
    user: ExampleUser
    item_cluster: ExampleItemCluster
    user_cluster: ExampleUserCluster

    def answer(self, kind: SubjectKind) -> dict[str, str]:
        """Worked answer for a kind of subject: factor key to text."""
        answer: dict[str, str] = getattr(self, kind).answer
        return answer


class Scenario(_Strict):
    """A domain of items, with its factors, wording and worked examples."""

    name: str
    language: str | None = Field(None, description="Language of the answers, ISO 639-1 code.")
    nouns: Nouns
    factors: list[Factor] = Field(min_length=1)
    wording: Wording
    examples: Examples

    @model_validator(mode="after")
    def _is_consistent(self) -> Scenario:
        if self.language is not None and self.language not in LANGUAGES:
            raise ValueError(
                f"language {self.language!r} cannot be detected; leave it out or use one of "
                f"{', '.join(LANGUAGES)}"
            )
        keys = [factor.key for factor in self.factors]
        if len(set(keys)) != len(keys):
            raise ValueError("two factors have the same key")
        for kind in Examples.model_fields:
            answered = list(getattr(self.examples, kind).answer)
            if answered != keys:
                raise ValueError(
                    f"the answer of example {kind} must name the factors {keys} in this order, "
                    f"not {answered}"
                )
        return self

    def choose(self, keys: tuple[str, ...] | None) -> list[Factor]:
        """Select factors, in the scenario's order; None selects all.

        Raises:
            ConfigError: A key is unknown, or no factor is left.
        """
        if keys is None:
            return list(self.factors)
        known = {factor.key for factor in self.factors}
        unknown = sorted(set(keys) - known)
        if unknown or not keys:
            raise ConfigError(
                f"unknown factors: {', '.join(unknown)}" if unknown else "no factor is selected",
                where="prompts.factors",
                todo=f"Scenario {self.name} has {', '.join(sorted(known))}.",
            )
        return [factor for factor in self.factors if factor.key in keys]


def load_scenario(name_or_path: str) -> Scenario:
    """Read one of `SCENARIOS`, or the user's own YAML file.

    Raises:
        ConfigError: There is no such scenario, or the file is not valid.
    """
    source: Traversable = Path(name_or_path).absolute()
    if name_or_path in SCENARIOS:
        source = resources.files("reki_ray.prompts") / "scenarios" / f"{name_or_path}.yaml"
    where = str(source)
    try:
        content = parse_yaml(source.read_text(encoding="utf-8"))
        return Scenario.model_validate(content)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the scenario: {error}",
            where=where,
            todo=f"Name one of {', '.join(SCENARIOS)}, or a readable YAML file.",
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(
            f"the scenario is not valid YAML: {error}",
            where=where,
            todo="Correct the line that the message names.",
        ) from error
    except ValidationError as error:
        raise ConfigError(
            describe_problems(error, Scenario),
            where=where,
            todo="Correct these keys; reki_ray/prompts/scenarios/ holds examples.",
        ) from error
