"""Benchmark of a workspace on an object store.

local_seconds   stage extract with the scripted engine, workspace on a local disk
remote_seconds  the same on an S3 server of this machine, or below `--root`
remote_ratio    the second over the first

Both by turns, in one Ray; the first run, which starts its workers, does not count.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from benchmarks import harness, synthetic
from benchmarks.harness import Figures, Found, Part
from reki_ray.config import RayConfig, RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.ray_cluster import ray_session
from reki_ray.core.workspace import Workspace

NAME = "storage"


def run(arguments: Sequence[str] = ()) -> Path:
    """Measure both kinds of storage and write the figures; returns the file."""
    parser = argparse.ArgumentParser(prog="reki bench storage")
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=0.01, help="Of the engine, per answer.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--root", help="URL of a folder; default: an S3 server on this machine.")
    options = parser.parse_args(arguments)
    parts = {"extract": Part(partial(_measure, options), _figures)}
    return harness.run_parts(NAME, parts, vars(options))


def _measure(options: argparse.Namespace) -> Iterator[Found]:
    with ExitStack() as stack:
        remote = options.root or stack.enter_context(_server())
        local = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(ray_session(RayConfig(num_cpus=2, object_store_mib=256)))
        found: dict[str, list[float]] = {"local": [], "remote": []}
        _seconds(f"{local}/first", options)
        for _ in range(options.repeats):
            for place, root in (("local", local), ("remote", remote.rstrip("/"))):
                found[place].append(_seconds(f"{root}/{uuid.uuid4().hex}", options))
            yield found


def _figures(found: Found) -> Figures:
    pairs = zip(found["local"], found["remote"], strict=True)
    return {
        "local_seconds": harness.figure(found["local"]),
        "remote_seconds": harness.figure(found["remote"]),
        "remote_ratio": harness.figure([remote / local for local, remote in pairs]),
    }


def _seconds(place: str, options: argparse.Namespace) -> float:
    from reki_ray.stages import extract  # imports Ray

    workspace = Workspace(place)
    synthetic.fill(workspace, options.users, options.items, events=10)
    config = RekiConfig.model_validate(
        {
            "name": NAME,
            "workspace": place,
            "data": {"source": {"kind": "movielens_100k"}},
            "extract": {
                "engine": {"kind": "scripted", "seconds": options.seconds},
                "mode": "individual",
            },
            "train": {"arms": ["fair_base", "reki_i"]},
        }
    )
    started = time.monotonic()
    extract.run(config, workspace, Reporter(workspace, quiet=True))
    return time.monotonic() - started


@contextmanager
def _server() -> Iterator[str]:
    """A bucket on this machine, of the tools that the tests use."""
    import pytest  # not for `--root`

    from tests.support import s3_server

    with s3_server.s3_server() as address, pytest.MonkeyPatch.context() as patch:
        s3_server.use(patch, address)
        yield f"s3://{s3_server.BUCKET}"
