"""Maps events to interactions, and picks one of several in the same second."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from reki_ray.config import DataConfig, EventRule, FileSource
from reki_ray.events.log import Event


class Interaction(NamedTuple):
    """An event as an entry of a user's history.

    Attributes:
        rating: On the training scale; None in a run without ratings.
        sent: Time given by the sender; interactions of a user with the same item and this time
            are one.
        own: Whether the event itself had a rating.
        value: Its rating, even in a run without ratings, where it decides on the label.
    """

    item_id: str
    rating: float | None
    time: int
    sent: int
    own: bool
    value: float


def combine(first: Interaction, second: Interaction) -> Interaction:
    """Pick one of two interactions with the same item in the same second, in any order.

    An event's own rating precedes that of a rule, then the higher one wins: the log has no order
    across its segments that all readers share.
    """
    chosen = max(first, second, key=lambda interaction: (interaction.own, interaction.value))
    return chosen._replace(time=min(first.time, second.time))


def as_it_is(event: Event) -> Interaction:
    """Map any event to an interaction, for a graph without rules."""
    own = event.rating is not None
    return Interaction(
        event.item_id, event.rating, event.time, event.timestamp, own, event.rating or 0.0
    )


class EventRules:
    """Maps events to interactions, for the history of the next request and for the refresher.

    Args:
        rules: Rule of each type of event that is an interaction; other types are ignored.
    """

    def __init__(self, rules: Mapping[str, EventRule], data: DataConfig) -> None:
        self._rules = dict(rules)
        self._lowest, self._highest = data.rating_min, data.rating_max
        self._threshold = data.positive_above
        self._positive = (max(data.positive_above, data.rating_min) + data.rating_max) / 2
        source = data.source
        self._rated = not isinstance(source, FileSource) or source.columns.rating is not None

    def interaction(self, event: Event) -> Interaction | None:
        """The event as an interaction, or None.

        Its own rating precedes that of its rule; a rating out of range makes it None.
        """
        rule = self._rules.get(event.event)
        item = event.item_id.strip()  # as tables hold ids
        if rule is None or not item:
            return None
        rating = event.rating
        if rating is None and rule != "own":
            rating = self._positive if rule == "positive" else rule
        if rating is None or not self._lowest <= rating <= self._highest:
            return None
        return Interaction(
            item,
            rating if self._rated else None,
            event.time,
            event.timestamp,
            event.rating is not None,
            rating,
        )

    def positive(self, interaction: Interaction) -> bool:
        """Whether an interaction counts as positive."""
        return interaction.value > self._threshold
