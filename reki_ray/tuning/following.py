"""What happens when a trial ends: its record is kept and told."""

from __future__ import annotations

from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial

from reki_ray.config import TrainConfig
from reki_ray.formats import counted
from reki_ray.progress import Reporter, Task
from reki_ray.runtime import cause_of, last_line
from reki_ray.tuning.results import Search, Trial, measured
from reki_ray.tuning.space import values
from reki_ray.tuning.trial import ERROR, QUALITY, SETTINGS
from reki_ray.workspace import Workspace


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
