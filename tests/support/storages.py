"""Fixtures: workspaces on a local disk, in memory and on an S3 server that fails as networks do."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from reki_ray.core.workspace import Workspace
from tests.support import s3_server
from tests.support.s3_server import BUCKET, FaultProxy


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    """Address of an S3 server without faults."""
    with s3_server.s3_server() as address:
        yield address


@pytest.fixture(scope="module")
def faulty_server(s3_address: str) -> Iterator[FaultProxy]:
    with FaultProxy(s3_address) as proxy, pytest.MonkeyPatch.context() as patch:
        s3_server.use(patch, proxy.address)
        yield proxy
        proxy.shutdown()


@pytest.fixture
def proxy(faulty_server: FaultProxy) -> FaultProxy:
    """The proxy before the server, without faults; this process and its children use it."""
    faulty_server.fail(0, "none")
    faulty_server.requests.clear()
    return faulty_server


@pytest.fixture(params=["local", "memory", "s3"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Root of a new workspace on each kind of storage."""
    name = uuid.uuid4().hex
    if request.param == "s3":
        request.getfixturevalue("proxy")
        return f"s3://{BUCKET}/{name}"
    return str(tmp_path / name) if request.param == "local" else f"memory://{name}"


@pytest.fixture
def stored(anywhere: str) -> Workspace:
    """A new workspace on each kind of storage."""
    return Workspace(anywhere)
