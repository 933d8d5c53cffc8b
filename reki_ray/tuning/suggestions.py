"""What to try next: Optuna's TPE, told of all earlier trials, that tries nothing twice."""

from __future__ import annotations

import json
import logging
from typing import Any, Final, cast

from ray.tune.search import Searcher

from reki_ray.config import Domain
from reki_ray.errors import ConfigError
from reki_ray.tuning.results import Search
from reki_ray.tuning.space import Settings, Space
from reki_ray.tuning.trial import ERROR, QUALITY, SETTINGS

_ATTEMPTS: Final = 200
"""Suggestions that were tried before, in a row, after which the space counts as searched."""


def require_optuna() -> None:
    """Refuse to search without the package.

    Raises:
        ConfigError: Optuna is not installed.
    """
    try:
        import optuna  # noqa: PLC0415  # an extra, and not needed to import reki_ray
    except ImportError as error:
        raise ConfigError(
            "reki tune needs the package optuna, which is not installed",
            where="the extra tune of reki-ray",
            todo="Install it: pip install 'reki-ray[tune]'.",
        ) from error
    # Its line a trial is not the user's news: what matters of it is told by the progress.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)


def sampler(search: Search) -> Searcher:
    """Optuna's TPE over a search's space, told of its finished trials.

    Tree-structured Parzen estimator (Bergstra et al., NIPS 2011).
    """
    from optuna import distributions  # noqa: PLC0415  # as above
    from ray.tune.search.optuna import OptunaSearch  # noqa: PLC0415

    def distribution(domain: Domain) -> Any:
        if domain.choice is not None:
            return distributions.CategoricalDistribution([json.dumps(v) for v in domain.choice])
        low, high = domain.bounds
        if domain.int is not None:
            return distributions.IntDistribution(int(low), int(high))
        return distributions.FloatDistribution(low, high, log=domain.loguniform is not None)

    # A seed of its own a call: with the first one's again, it would draw the same points again.
    seed = search.seed + len(search.trials)
    space = {key: distribution(domain) for key, domain in search.space.items()}
    made = OptunaSearch(space, metric=QUALITY, mode="max", seed=seed)
    for trial in search.finished:
        if within(search.space, trial.settings) and trial.quality is not None:
            made.add_evaluated_point(encoded(search.space, trial.settings), trial.quality)
    return made


class Suggestions(Searcher):
    """First the settings of the configuration, then what the sampler proposes and was not tried.

    Args:
        sampler: Proposes points as `encoded` writes them.
        search: What was tried before.
        configured: Settings of the configuration, if they are to be tried.
    """

    def __init__(self, sampler: Searcher, search: Search, configured: Settings | None) -> None:
        super().__init__(metric=QUALITY, mode="max")
        self._sampler = sampler
        self._space = search.space
        self._first = configured
        self._tried = {_key(trial.settings) for trial in search.settled}
        self._asked: dict[str, str] = {}  # trial to the sampler's name of it
        self._given: dict[str, Settings] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Settings of the next trial; FINISHED where the sampler has nothing new."""
        if self._first is not None:
            settings, self._first = self._first, None
            self._given[trial_id] = settings
            self._tried.add(_key(settings))
            return {SETTINGS: dict(settings)}
        for attempt in range(_ATTEMPTS):
            asked = f"{trial_id}/{attempt}"
            settings = decoded(self._space, self._sampler.suggest(asked) or {})
            if _key(settings) in self._tried:
                self._sampler.on_trial_complete(asked, error=True)  # known, or under way
                continue
            self._asked[trial_id] = asked
            self._tried.add(_key(settings))
            return {SETTINGS: settings}
        return cast(None, Searcher.FINISHED)  # a text, where Ray Tune promises none

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Tell the sampler of an epoch."""
        if trial_id in self._asked and ERROR not in result:
            self._sampler.on_trial_result(self._asked[trial_id], result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the sampler of the end of a trial."""
        diverged = ERROR in (result or {})
        if trial_id in self._asked:
            asked = self._asked.pop(trial_id)
            self._sampler.on_trial_complete(asked, result=result, error=error or diverged)
            return
        settings = self._given.pop(trial_id, None)
        if settings is None or not result or diverged or QUALITY not in result:
            return
        if within(self._space, settings):
            self._sampler.add_evaluated_point(encoded(self._space, settings), result[QUALITY])

    def save(self, checkpoint_path: str) -> None:
        """Keep the sampler's state where Ray Tune asks for it; resuming needs only the trials."""
        self._sampler.save(checkpoint_path)

    def restore(self, checkpoint_path: str) -> None:
        """Take the sampler's state from there."""
        self._sampler.restore(checkpoint_path)


def within(space: Space, settings: Settings) -> bool:
    """Whether settings are a point of a space."""
    return all(key in settings and settings[key] in domain for key, domain in space.items())


def encoded(space: Space, settings: Settings) -> dict[str, Any]:
    """A point as Optuna takes it, which wants choices to be text or numbers."""
    return {
        key: settings[key] if domain.choice is None else json.dumps(settings[key])
        for key, domain in space.items()
    }


def decoded(space: Space, point: dict[str, Any]) -> dict[str, Any]:
    """Settings of a point."""
    return {
        key: point[key] if domain.choice is None else json.loads(point[key])
        for key, domain in space.items()
    }


def _key(settings: Settings) -> str:
    return json.dumps(dict(settings), sort_keys=True)
