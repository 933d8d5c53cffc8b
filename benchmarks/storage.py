"""What a workspace on an object store costs.

Stage extract with the scripted engine, there and on a local disk, by turns, in one Ray.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from benchmarks import synthetic
from reki_ray.config import RayConfig, RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.ray_cluster import ray_session
from reki_ray.core.workspace import Workspace
from reki_ray.stages import extract


def run(arguments: Sequence[str] = ()) -> str:
    """Run the benchmark; returns a line for each kind of storage."""
    parser = argparse.ArgumentParser(prog="reki bench storage")
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=0.01, help="Of the engine, for an answer.")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--root", help="URL of a folder; default: an S3 server on this machine.")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        root = options.root or stack.enter_context(_server())
        local = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(ray_session(RayConfig(num_cpus=2, object_store_mib=256)))
        seconds: dict[str, list[float]] = {local: [], root: []}
        _seconds(f"{local}/warm-up", options)  # starts workers, imports
        for _ in range(options.repeat):
            for place, taken in seconds.items():
                taken.append(_seconds(f"{place.rstrip('/')}/{uuid.uuid4().hex}", options))
    here, there = (statistics.median(taken) for taken in seconds.values())
    each = "; ".join(
        f"{place}: {', '.join(f'{value:.1f}' for value in taken)} s"
        for place, taken in zip(("local", root), seconds.values(), strict=True)
    )
    return (
        f"extract, median: local {here:.1f} s, {root} {there:.1f} s, {there / here:.2f}x ({each})"
    )


def _seconds(place: str, options: argparse.Namespace) -> float:
    workspace = Workspace(place)
    synthetic.fill(workspace, options.users, options.items, events=10)
    engine = {"kind": "scripted", "seconds": options.seconds}
    config = RekiConfig.model_validate(
        {
            "name": "storage",
            "workspace": place,
            "data": {"source": {"kind": "movielens_100k"}},
            "extract": {"engine": engine, "mode": "individual"},
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
