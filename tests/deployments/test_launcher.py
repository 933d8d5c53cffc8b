"""What `reki serve` refuses before Ray starts, with what to do."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from deployments import launcher
from reki_ray.config import RekiConfig
from reki_ray.core.workspace import Workspace
from reki_ray.errors import ConfigError, RekiError
from reki_ray.experiments.experiment import EXPERIMENT, start_experiment
from reki_ray.store.versions import VersionStore
from tests.support import store_factory


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("instance")
    for seed in range(3):
        VersionStore(folder / "publish").publish(partial(store_factory.fill, seed=seed))
    return folder


def config(root: Path, **sections: Any) -> RekiConfig:
    serve = {"port": 0, "edge": {"allow_anonymous": True}, **sections.pop("serve", {})}
    return RekiConfig.model_validate(
        {
            "name": "tiny",
            "workspace": str(root),
            "data": {"source": {"kind": "movielens_100k"}},
            "serve": serve,
            **sections,
        }
    )


class RayStartsError(Exception):
    """All checks have passed."""


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: object) -> None:
        raise RayStartsError

    monkeypatch.setattr(launcher, "ray_session", start)


def refused(run: RekiConfig, said: list[str] | None = None) -> RekiError:
    told = [] if said is None else said
    with (
        pytest.raises(RekiError) as caught,
        launcher.start(run, Workspace(run.workspace), say=told.append),
    ):
        pass
    return caught.value


def starts(run: RekiConfig) -> list[str]:
    said: list[str] = []
    with (
        pytest.raises(RayStartsError),
        launcher.start(run, Workspace(run.workspace), say=said.append),
    ):
        pass
    return said


def test_an_experiment_of_more_versions_than_replicas_keep(root: Path) -> None:
    start_experiment(root / "publish", "wide", {"a": (1, 0.5), "b": (2, 0.5)})
    error = refused(config(root, serve={"kept_versions": 2}))
    assert isinstance(error, ConfigError)
    assert (error.where, "Set it to 3" in error.todo) == ("serve.kept_versions", True)
    starts(config(root, serve={"kept_versions": 3}))


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff"])
def test_a_damaged_experiment_is_told_and_stops_nothing(root: Path, content: bytes) -> None:
    path = root / "publish" / EXPERIMENT
    path.write_bytes(content)
    try:
        assert "without the experiment" in "".join(starts(config(root)))
    finally:
        path.unlink()


def test_a_server_of_vectors_that_may_take_longer_than_the_lookup(root: Path) -> None:
    vectors = {"kind": "redis", "url": "redis://127.0.0.1:1/0", "timeout_seconds": 0.5}
    error = refused(config(root, store={"vectors": vectors}))
    assert isinstance(error, ConfigError)
    assert error.where == "store.vectors.timeout_seconds"
    assert "below 0.4" in error.todo
