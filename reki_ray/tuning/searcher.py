"""The Optuna study behind a search: its journal in the workspace, its sampler, its trials."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.search import Searcher
from typing_extensions import override

from reki_ray.config import Domain, TrainConfig
from reki_ray.core.formats import counted
from reki_ray.core.progress import Reporter, Task
from reki_ray.core.ray_cluster import cause_of, last_line
from reki_ray.core.workspace import Workspace
from reki_ray.errors import ConfigError
from reki_ray.tuning.results import FOLDER, Search, Trial
from reki_ray.tuning.space import Settings, Space, values
from reki_ray.tuning.trial import ERROR, QUALITY, SETTINGS

_RECORD: Final = "record"
"""User attribute of an Optuna trial that holds our `Trial`."""

_ATTEMPTS: Final = 200
"""Known suggestions in a row after which the space counts as searched."""


class Study(Searcher):
    """An Optuna study of a search; every trial is in the workspace as soon as it ends.

    Lets Ray Tune try `configured`, then samples by the tree-structured Parzen estimator (Bergstra
    et al., NIPS 2011).

    Args:
        search: Its trials are replaced by those of the journal.
        workspace: Holds the journal `tune/<search>.journal`, in Optuna's format.
        folder: Empty local folder for the open journal: that of the workspace may be remote.

    Attributes:
        configured: Settings of the configuration, if they are to be tried first.

    Raises:
        ConfigError: The journal cannot be read.
    """

    def __init__(self, search: Search, workspace: Workspace, folder: Path) -> None:
        import optuna  # an extra, and not needed to import reki_ray
        from optuna.storages.journal import JournalFileBackend, JournalStorage

        super().__init__(metric=QUALITY, mode="max")
        self.configured: Settings | None = None
        self._search = search
        self._workspace = workspace
        self._path = f"{FOLDER}/{search.name}.journal"
        self._journal = folder / "journal"
        self._distributions = {key: _distribution(domain) for key, domain in search.space.items()}
        self._running: dict[str, optuna.Trial] = {}
        self._tried: set[str] = set()
        if workspace.exists(self._path):
            self._journal.write_bytes(workspace.filesystem.cat_file(workspace.path(self._path)))
        try:
            self.optuna_study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(self._journal))),
                study_name=search.name,
                direction="maximize",
                load_if_exists=True,
            )
            attributes = [trial.user_attrs for trial in self.optuna_study.trials]
            records = [content[_RECORD] for content in attributes if _RECORD in content]
            search.trials = [Trial.model_validate(record) for record in records]
            if not records:
                self._import()
        except (ValueError, KeyError, AssertionError) as error:  # a damaged journal: any of these
            raise ConfigError(
                f"the trials of this search cannot be read: {error}",
                where=workspace.path(self._path),
                todo="Delete the file; its trials are then repeated.",
            ) from error
        search.trials.sort(key=lambda trial: trial.number)
        # A seed per call: with the first one's, the sampler would draw the same points again.
        seed = search.seed + len(search.trials)
        self.optuna_study.sampler = optuna.samplers.TPESampler(seed=seed)
        self._tried = {_key(trial.settings) for trial in search.tried}

    def start(self, trial_id: str, settings: Settings | None = None) -> Settings | None:
        """Start a trial of these settings, inside the space or not, or of sampled ones.

        Returns:
            The settings to try; None once the space is searched.
        """
        if settings is not None:
            inside = within(self._search.space, settings)
            if inside:
                self.optuna_study.enqueue_trial(encoded(self._search.space, settings))
            self._running[trial_id] = self.optuna_study.ask(self._distributions if inside else None)
            self._tried.add(_key(settings))
            return settings
        for _ in range(_ATTEMPTS):
            trial = self.optuna_study.ask(self._distributions)
            settings = decoded(self._search.space, trial.params)
            if _key(settings) not in self._tried:
                self._running[trial_id] = trial
                self._tried.add(_key(settings))
                return settings
            self._tell(trial, None)
        return None

    @override
    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        settings, self.configured = self.start(trial_id, self.configured), None
        if settings is None:
            return cast(None, Searcher.FINISHED)  # a string, against Ray Tune's own annotation
        return {SETTINGS: dict(settings)}

    @override
    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        pass  # `TrialRecorder` also sees the error

    @override
    def save(self, checkpoint_path: str) -> None:
        pass  # resuming only needs the journal

    @override
    def restore(self, checkpoint_path: str) -> None:
        pass

    def finish(self, trial_id: str, record: Trial) -> None:
        """Add a trial to the search, and save the journal."""
        trial = self._running.pop(trial_id)
        trial.set_user_attr(_RECORD, record.model_dump(mode="json"))
        self._tell(trial, record.quality if within(self._search.space, record.settings) else None)
        self._search.trials.append(record)
        self._workspace.write_text(self._path, self._journal.read_text(encoding="utf-8"))

    def _tell(self, trial: Any, quality: float | None) -> None:
        from optuna.trial import TrialState

        state = TrialState.FAIL if quality is None else TrialState.COMPLETE
        self.optuna_study.tell(trial, quality, state=state)

    def _import(self) -> None:
        """Take over the trials of an earlier release, which kept them in a JSON file."""
        old = f"{FOLDER}/{self._search.name}.json"
        if not self._workspace.exists(old):
            return
        for record in Search.model_validate(self._workspace.read_json(old)).trials:
            name = f"old-{record.number}"
            self.start(name, record.settings)
            self.finish(name, record)


@contextlib.contextmanager
def open_study(search: Search, workspace: Workspace) -> Iterator[Study]:
    """Open the study of a search, see `Study`."""
    with tempfile.TemporaryDirectory(prefix="reki-tune-") as folder:
        yield Study(search, workspace, Path(folder))


class TrialRecorder(Callback):
    """Records every trial as soon as it ends, and reports it.

    Args:
        train: Configuration of the backbone without the settings of a trial.
    """

    def __init__(
        self, study: Study, search: Search, reporter: Reporter, task: Task, train: TrainConfig
    ) -> None:
        self._study = study
        self._search = search
        self._reporter = reporter
        self._task = task
        self._train = train
        self._configured = values(train, search.space)

    @override
    def __reduce__(self) -> tuple[type[Callback], tuple[()]]:
        return Callback, ()  # Ray Tune pickles its callbacks for a resume that we do not use

    @override
    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        outcome = {k: v for k, v in trial.last_result.items() if k in Trial.model_fields}
        if QUALITY not in outcome:
            outcome = {"status": "failed", "error": "it reported nothing"}
        elif ERROR in outcome:
            outcome = {"status": "diverged", "error": outcome[ERROR]}
        else:
            stale = outcome["epochs"] - outcome["best_epoch"]
            ended = stale >= self._train.patience or outcome["epochs"] >= self._train.epochs
            outcome["status"] = "done" if ended else "stopped"
        self._record(trial, outcome)

    @override
    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        error = trial.get_pickled_error() or trial.get_error()
        cause = cause_of(error) if error else None
        message = str(cause) if cause else last_line(error) if error else "unknown"
        self._record(trial, {"status": "failed", "error": message})

    def _record(self, trial: TuneTrial, outcome: dict[str, Any]) -> None:
        settings = trial.config[SETTINGS]
        record = Trial(
            number=len(self._search.trials),
            settings=settings,
            configured=settings == self._configured,
            **outcome,
        )
        self._study.finish(trial.trial_id, record)
        self._task.advance()
        message = record.error or (
            f"{record.score} after {counted(record.epochs, 'epoch')}, {record.status}; "
            f"best {self._search.best.score}"
        )
        self._reporter.say(f"tune {self._search.backbone}: trial {record.number}: {message}")


def within(space: Space, settings: Settings) -> bool:
    """Whether settings are a point of a space."""
    return all(key in settings and settings[key] in domain for key, domain in space.items())


def encoded(space: Space, settings: Settings) -> dict[str, Any]:
    """Point of a space for Optuna, whose choices must be strings or numbers."""
    return {
        key: settings[key] if domain.choice is None else json.dumps(settings[key])
        for key, domain in space.items()
    }


def decoded(space: Space, point: dict[str, Any]) -> dict[str, Any]:
    """Settings of a point of Optuna."""
    return {
        key: point[key] if domain.choice is None else json.loads(point[key])
        for key, domain in space.items()
    }


def _distribution(domain: Domain) -> Any:
    from optuna import distributions  # as above

    if domain.choice is not None:
        return distributions.CategoricalDistribution([json.dumps(v) for v in domain.choice])
    low, high = domain.bounds
    if domain.int is not None:
        return distributions.IntDistribution(int(low), int(high))
    return distributions.FloatDistribution(low, high, log=domain.loguniform is not None)


def _key(settings: Settings) -> str:
    return json.dumps(dict(settings), sort_keys=True)
