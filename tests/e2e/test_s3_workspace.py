"""A workspace on S3: run by one node, served by another one with an empty cache."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from reki_ray.core.downloads import cache_folder
from reki_ray.store.versions import VersionStore
from tests.conftest import TinyConfig
from tests.support import s3_server
from tests.support.s3_server import BUCKET

REKI = str(Path(sys.executable).parent / "reki")


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with s3_server.s3_server() as address:
        s3_server.use(monkeypatch, address)
        yield f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def file(tiny_config: TinyConfig, url: str, tmp_path: Path) -> Path:
    config = tiny_config().model_dump(mode="json") | {"workspace": url}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def on_node(folder: Path) -> dict[str, str]:
    """Environment of a node that has no more of its own than downloaded packages."""
    (folder / "cache").mkdir(parents=True, exist_ok=True)
    packages = folder / "cache" / "packages"
    if not packages.exists():
        packages.symlink_to(cache_folder() / "packages", target_is_directory=True)
    return {**os.environ, "REKI_CACHE": f"{folder}/cache", "REKI_STATE": f"{folder}/state"}


def reki(node: Path, file: Path, *arguments: str) -> Any:
    done = subprocess.run(
        [REKI, *arguments, "--config", str(file), "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=on_node(node),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def served_at(server: subprocess.Popen[str]) -> str:
    assert server.stderr is not None
    for line in server.stderr:
        if line.startswith("serve: v"):
            return line.split(" at ")[1].strip()
    raise AssertionError("the service did not start")


@pytest.mark.slow
@pytest.mark.timeout(900)  # eight stages and a service, each with its start of Ray
def test_a_node_with_an_empty_cache_scores_from_it(file: Path, url: str, tmp_path: Path) -> None:
    reki(tmp_path / "a", file, "run", "--until", "publish")
    assert reki(tmp_path / "b", file, "versions")["current"] == 1
    command = [REKI, "serve", "--config", str(file)]
    environment = on_node(tmp_path / "c")
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
    ) as server:
        try:
            service = httpx.Client(base_url=served_at(server), timeout=60, trust_env=False)
            body = {"user_id": "u3", "candidates": ["m1", "m2"]}
            answer = service.post("/v1/score", json=body).json()
            assert answer["store_version"] == "v1", answer
            assert not answer["degraded"]
            event = {"user_id": "u3", "item_id": "m1", "event": "click"}
            event |= {"timestamp": int(time.time())}  # type: ignore[dict-item]
            assert service.post("/v1/events", json=[event]).status_code == 200
            published = reki(tmp_path / "b", file, "update", str(new_events(tmp_path)))
            assert published["version"] == 2
            deadline = time.monotonic() + 60
            while service.get("/v1/versions").json()["current"] != 2:
                assert time.monotonic() < deadline
                time.sleep(0.2)
            assert reki(tmp_path / "a", file, "rollback")["current"] == 1
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)
    assert VersionStore(f"{url}/publish").current() == 1


def new_events(folder: Path) -> Path:
    path = folder / "new.csv"
    path.write_text("user_id,item_id,rating,timestamp\nu3,m1,5,2000000\n", encoding="utf-8")
    return path
