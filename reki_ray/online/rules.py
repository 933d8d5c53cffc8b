"""Which events are interactions, and with what rating."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from reki_ray.config import DataConfig, EventRule, FileSource
from reki_ray.online.event_log import Event


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

    def interaction(self, event: Event) -> Event | None:
        """The event as the model's history holds it; None where it is no interaction.

        Its own rating goes before that of its rule; one out of range is no interaction. In a run
        without ratings it has none.
        """
        rating = self._rating(event)
        if rating is None:
            return None
        counted = rating if self._rated else None
        return event if counted == event.rating else dataclasses.replace(event, rating=counted)

    def positive(self, event: Event) -> bool:
        """Whether the event is an interaction that counts as positive."""
        rating = self._rating(event)
        return rating is not None and rating > self._threshold

    def _rating(self, event: Event) -> float | None:
        rule = self._rules.get(event.event)
        if rule is None:
            return None
        rating = event.rating
        if rating is None and rule != "own":
            rating = self._positive if rule == "positive" else rule
        if rating is None or not self._lowest <= rating <= self._highest:
            return None
        return rating
