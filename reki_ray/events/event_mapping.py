"""Which events are interactions, with what rating, and which of several in one second counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from reki_ray.config import DataConfig, EventRule, FileSource
from reki_ray.events.log import Event


class Interaction(NamedTuple):
    """An event as histories hold it.

    Attributes:
        item_id: With what.
        rating: On the scale of training; None in a run without ratings.
        time: When it counts, seconds since the epoch.
        sent: When, as its sender says: interactions of a user with the same item and this time
            are one.
        own: Whether the event brought a rating itself.
        value: Its rating, also in a run without ratings, where it decides on the label.
    """

    item_id: str
    rating: float | None
    time: int
    sent: int
    own: bool
    value: float


def combine(first: Interaction, second: Interaction) -> Interaction:
    """The one that counts of two with the same item in the same second, whichever came first.

    A rating of an event's own goes before that of a rule, then the higher one: the log has no
    order across its segments that all readers would share.
    """
    counts = max(first, second, key=lambda one: (one.own, one.value))
    return counts._replace(time=min(first.time, second.time))


def as_it_is(event: Event) -> Interaction:
    """The interaction of a graph that knows no rules: every event is one."""
    own = event.rating is not None
    return Interaction(
        event.item_id, event.rating, event.time, event.timestamp, own, event.rating or 0.0
    )


class EventRules:
    """Turns events into interactions, for the history of the next request and for the refresher.

    Args:
        rules: Rule of each type of event that is an interaction; other types are none.
        data: Range of ratings, threshold of positive ones, and whether the run has ratings.
    """

    def __init__(self, rules: Mapping[str, EventRule], data: DataConfig) -> None:
        self._rules = dict(rules)
        self._lowest, self._highest = data.rating_min, data.rating_max
        self._threshold = data.positive_above
        self._positive = (max(data.positive_above, data.rating_min) + data.rating_max) / 2
        source = data.source
        self._rated = not isinstance(source, FileSource) or source.columns.rating is not None

    def interaction(self, event: Event) -> Interaction | None:
        """The event as the model's history holds it; None where it is no interaction.

        Its own rating goes before that of its rule; one out of range is no interaction. In a run
        without ratings it has none.
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
