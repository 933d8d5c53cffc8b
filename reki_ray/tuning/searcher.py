"""What to try next: Optuna's TPE, told of all earlier trials, that tries nothing twice."""

from __future__ import annotations

import json
import logging
from typing import Any, Final, cast

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.search import Searcher

from reki_ray.config import Domain, TrainConfig
from reki_ray.core.formats import counted
from reki_ray.core.progress import Reporter, Task
from reki_ray.core.ray_cluster import cause_of, last_line
from reki_ray.core.workspace import Workspace
from reki_ray.errors import ConfigError
from reki_ray.tuning.results import Search, Trial, measured
from reki_ray.tuning.space import Settings, Space, values
from reki_ray.tuning.trial import ERROR, QUALITY, SETTINGS


class Following(Callback):
    """Keeps every trial in the workspace as soon as it ends, and shows it.

    Args:
        search: Gets the records.
        workspace: Where they are kept.
        reporter: Shows them.
        task: Counts them.
        own: Configuration of the backbone as it is before any trial.
    """

    def __init__(
        self, search: Search, workspace: Workspace, reporter: Reporter, task: Task, own: TrainConfig
    ) -> None:
        self._search = search
        self._workspace = workspace
        self._reporter = reporter
        self._task = task
        self._own = own
        self._configured = values(own, search.space)

    def __reduce__(self) -> tuple[type[Callback], tuple[()]]:
        # Ray Tune pickles its callbacks to resume by its own means, for which we have no use.
        return Callback, ()

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Keep a trial that gave a result."""
        figures = {k: v for k, v in trial.last_result.items() if k in Trial.model_fields}
        if QUALITY not in figures:
            self._keep(trial, {"status": "failed", "error": "it reported nothing"})
            return
        if ERROR in figures:
            self._keep(trial, {"status": "diverged", "error": figures[ERROR]})
            return
        stale = figures["epochs"] - figures["best_epoch"]
        ended = stale >= self._own.patience or figures["epochs"] >= self._own.epochs
        self._keep(trial, {**figures, "status": "done" if ended else "stopped"})

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Keep why a trial failed; it does not count, and another takes its place next time."""
        error = trial.get_pickled_error() or trial.get_error()
        cause = cause_of(error) if error else None
        text = str(cause) if cause else last_line(error) if error else "unknown"
        self._keep(trial, {"status": "failed", "error": text})

    def _keep(self, trial: TuneTrial, outcome: dict[str, Any]) -> None:
        settings = trial.config[SETTINGS]
        record = Trial(
            number=len(self._search.trials),
            settings=settings,
            configured=settings == self._configured,
            **outcome,
        )
        self._search.trials.append(record)
        self._search.keep(self._workspace)
        self._task.advance()
        told = record.error or (
            f"{measured(record)} after {counted(record.epochs, 'epoch')}, {record.status}; "
            f"best {measured(self._search.best)}"
        )
        self._reporter.say(f"tune {self._search.backbone}: trial {record.number}: {told}")


_ATTEMPTS: Final = 200

"""Suggestions that were tried before, in a row, after which the space counts as searched."""


def require_optuna() -> None:
    """Refuse to search without the package.

    Raises:
        ConfigError: Optuna is not installed.
    """
    try:
        import optuna  # an extra, and not needed to import reki_ray
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
    from optuna import distributions  # as above
    from ray.tune.search.optuna import OptunaSearch

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
