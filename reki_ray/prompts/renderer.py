"""Factorization prompts for users, items and their clusters.

The shared part comes first (instruction, factors, worked example) and the subject last, so that an
engine with prefix caching computes the shared part once. Untrusted text is never a template:
prompts are joined, not formatted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from reki_ray.config import ExtractConfig, OpenAiEngine, PromptsConfig
from reki_ray.prompts.chat import DATA_NOTICE, Message, delimited
from reki_ray.prompts.output_format import instruction, worked_answer
from reki_ray.prompts.sanitize import (
    Attributes,
    attributes_text,
    rated_title,
    sanitise,
    title_text,
)
from reki_ray.prompts.scenario import Scenario, load_scenario
from reki_ray.prompts.template import PromptTemplate
from reki_ray.schema import SubjectKind

TOP_VALUES = 5
"""Values per attribute."""
Histogram = Mapping[str, Mapping[str, float]]
"""Attribute name -> value -> share of the group in [0, 1], largest first."""


def histogram(rows: Iterable[Attributes | None], top: int = TOP_VALUES) -> Histogram:
    """Compute shares of attribute values over a group, largest first, ties by name.

    Args:
        rows: Attributes of every member; a member with several values counts for each value.
        top: Largest number of values per attribute.
    """
    counts: dict[str, Counter[str]] = {}
    size = 0
    for attributes in rows:
        size += 1
        for name, values in (attributes or {}).items():
            counts.setdefault(name, Counter()).update(set(values))
    return {
        name: {
            value: count / size
            for value, count in sorted(counter.items(), key=lambda pair: (-pair[1], pair[0]))[:top]
        }
        for name, counter in sorted(counts.items())
    }


LIKED = "liked "
"""Prefix of the names of attributes of items that a group liked."""
_MEMBER_TITLES = 5
# Rarer values say little about a group, and small models dwell on whatever they see.
_MIN_SHARE = 0.1

_Values = TypeVar("_Values")


@dataclass(frozen=True, slots=True)
class Prompt:
    """Prompt about one subject; `body` is the last message of `PromptTemplate.messages`."""

    subject_kind: SubjectKind
    subject_id: str
    body: str


GroupUser = tuple[Attributes | None, Sequence[tuple[str, float | None]]]
"""A user inside a group: profile, and title and rating of some interactions."""


class Renderer:
    """Renders the prompts of one scenario.

    Args:
        limits: Section `prompts`.
        withheld: Names of user attributes that no prompt may contain; case does not matter.

    Attributes:
        scenario: Factors, wording and worked examples.
        factors: Requested factors.
        template: What all prompts share.

    Raises:
        ConfigError: `limits.factors` names a factor that the scenario does not have.
    """

    def __init__(
        self,
        scenario: Scenario,
        limits: PromptsConfig,
        withheld: frozenset[str] = frozenset(),
    ) -> None:
        self.scenario = scenario
        self._limits = limits
        self.factors = scenario.choose(limits.factors)
        self._hidden = frozenset(map(_name_key, limits.hidden_attributes))
        self._withheld = self._hidden | frozenset(map(_name_key, withheld))
        self.template = PromptTemplate(
            [factor.key for factor in self.factors],
            limits.form,
            {prompt.subject_kind: self._prefix(prompt) for prompt in self._examples()},
            min_factors=limits.min_factors,
            language=scenario.language,
            choices={factor.key: factor.choices for factor in self.factors if factor.choices},
        )

    def item(
        self, item_id: str, title: str, attributes: Attributes | None, text: str | None
    ) -> Prompt:
        """Prompt for one item (REKI-I)."""
        lines = [f"{self.scenario.nouns.item}: {title_text(title, self._limits)}"]
        known = attributes_text(_without(attributes, self._hidden), self._limits)
        description = sanitise(text or "", self._limits.max_text_chars)
        lines += [known] if known else []
        lines += [f"description: {description}"] if description else []
        return Prompt("item", item_id, delimited("\n".join(lines)))

    def user(
        self,
        user_id: str,
        attributes: Attributes | None,
        history: Sequence[tuple[str, float | None]],
    ) -> Prompt:
        """Prompt for one user (REKI-I).

        Args:
            history: Title and rating of the interactions before the cut, oldest first; the prompt
                shows the latest `max_history`.
        """
        known = attributes_text(_without(attributes, self._withheld), self._limits) or "unknown"
        nouns = self.scenario.nouns
        lines = [
            f"{nouns.user}: {known}",
            f"{nouns.items} {nouns.acted}, oldest first:",
            *self._history(history, self._limits.max_history, start="- "),
        ]
        return Prompt("user", user_id, delimited("\n".join(lines)))

    def item_cluster(
        self,
        cluster_id: str,
        size: int,
        members: Sequence[tuple[str, Attributes | None]],
        shares: Histogram,
    ) -> Prompt:
        """Prompt for a cluster of items (REKI-C).

        Args:
            members: Title and attributes of the members nearest to the centre, nearest first.
            shares: Attributes over all members.
        """
        lines = [f"group of {size} {self.scenario.nouns.items}, most typical first:"]
        for title, attributes in members[: self._limits.max_members]:
            known = attributes_text(_without(attributes, self._hidden), self._limits)
            lines.append(f"- {title_text(title, self._limits)}" + (f" ({known})" if known else ""))
        lines += self._shares(_without(shares, self._hidden) or {})
        return Prompt("item_cluster", cluster_id, delimited("\n".join(lines)))

    def user_cluster(
        self, cluster_id: str, size: int, members: Sequence[GroupUser], shares: Histogram
    ) -> Prompt:
        """Prompt for a cluster of users (REKI-C).

        Args:
            members: The members nearest to the centre, nearest first.
            shares: Profiles of all members and attributes of what they liked before their cuts.
        """
        nouns = self.scenario.nouns
        lines = [f"group of {size} {nouns.users}, most typical first:"]
        for attributes, history in members[: self._limits.max_members]:
            known = attributes_text(_without(attributes, self._withheld), self._limits) or "unknown"
            titles = "; ".join(self._history(history, _MEMBER_TITLES))
            lines.append(f"- {known}" + (f" | {nouns.acted} {titles}" if titles else ""))
        # Attributes of liked items have names of their own.
        withheld = self._withheld | {_name_key(f"{LIKED}{name}") for name in self._hidden}
        lines += self._shares(_without(shares, withheld) or {})
        return Prompt("user_cluster", cluster_id, delimited("\n".join(lines)))

    def _prefix(self, example: Prompt) -> tuple[Message, ...]:
        """Shared messages of the prompts of the example's kind."""
        wording, kind = self.scenario.wording, example.subject_kind
        keys = [factor.key for factor in self.factors]
        factors = "\n".join(f"- {factor.key}: {factor.description}" for factor in self.factors)
        system = Message(
            "system",
            f"{wording.role} {getattr(wording, kind)} {instruction(self._limits.form, keys)} "
            f"{DATA_NOTICE}\nThe factors:\n{factors}",
        )
        if not self._limits.few_shot:
            return (system,)
        answers = self.scenario.examples.answer(kind)
        answer = worked_answer(self._limits.form, {key: answers[key] for key in keys})
        return (system, Message("user", example.body), Message("assistant", answer))

    def _history(
        self, history: Sequence[tuple[str, float | None]], longest: int, start: str = ""
    ) -> list[str]:
        longest = min(longest, self._limits.max_history)
        return [
            start + rated_title(title, rating, self._limits) for title, rating in history[-longest:]
        ]

    def _shares(self, shares: Histogram) -> list[str]:
        limit = self._limits.max_title_chars
        lines = []
        for name, values in shares.items():
            top = [pair for pair in values.items() if pair[1] >= _MIN_SHARE][:TOP_VALUES]
            shown = ", ".join(f"{sanitise(value, limit)} {share:.0%}" for value, share in top)
            if shown:
                lines.append(f"{sanitise(name, limit)} in the group: {shown}")
        return lines

    def _examples(self) -> list[Prompt]:
        examples = self.scenario.examples
        item, user = examples.item, examples.user
        items, users = examples.item_cluster, examples.user_cluster
        return [
            self.item("", item.title, item.attributes, item.text),
            self.user("", user.attributes, user.rated),
            self.item_cluster("", items.size, items.titles, items.histogram),
            self.user_cluster("", users.size, users.profiles, users.histogram),
        ]


def build_renderer(prompts: PromptsConfig, extract: ExtractConfig) -> Renderer:
    """Build the renderer of a run; attributes that an endpoint must not see are withheld.

    Raises:
        ConfigError: The scenario is unknown, or lacks a factor.
    """
    withheld = extract.engine.withhold if isinstance(extract.engine, OpenAiEngine) else ()
    return Renderer(load_scenario(prompts.scenario), prompts, frozenset(withheld))


def _without(
    attributes: Mapping[str, _Values] | None, names: frozenset[str]
) -> Mapping[str, _Values] | None:
    """Attributes whose names, see `_name_key`, are not in a set."""
    if not attributes or not names:
        return attributes
    return {name: values for name, values in attributes.items() if _name_key(name) not in names}


def _name_key(name: str) -> str:
    """Name of an attribute as prompts show it, in lower case: no spelling evades withholding."""
    return sanitise(name, 2**10).casefold()
