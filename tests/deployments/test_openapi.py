"""What /openapi.json promises holds: requests made from it never meet a defect."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from deployments.extensions import open_extensions
from deployments.flows.graph_client import GraphClient
from deployments.gateway import build_api
from deployments.graph_args import GraphArgs, OnlineArgs, StoreAccess
from deployments.middleware.metrics import GatewayMetrics
from deployments.parts.item_lists import Reranker, Retriever
from deployments.parts.lookup import Lookup
from deployments.parts.scorer import Scorer
from reki_ray.config.edge import EdgeSettings
from reki_ray.store.versions import VersionStore
from tests.support import page_server, store_factory
from tests.support.edge_app import ADMIN, TOKEN

pytestmark = pytest.mark.serve

EDGE = EdgeSettings(
    host="0.0.0.0",  # so that every call asks for a token; the server listens on loopback alone
    rate_per_second=None,
    request_logs=False,
)
CONFIG = """
[checks]
# A list of ids that is too long may be refused as a body that is too large.
negative_data_rejection.expected-statuses = [400, 401, 403, 404, 405, 413, 415, 422]
"""
EXAMPLES = 25
"""Random requests of an operation, beside those at the bounds of every field."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real gateway over a small version, without Ray, behind HTTP."""
    store = VersionStore(tmp_path_factory.mktemp("described") / "publish")
    store.publish(store_factory.fill)
    store.publish(partial(store_factory.fill, seed=1))
    access = StoreAccess(publish_root=str(store.root))
    lookup, scorer = Lookup(access, OnlineArgs()), Scorer(access, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REKI_TOKEN", TOKEN)
        patch.setenv("REKI_ADMIN_TOKEN", ADMIN)
        app = build_api(
            GraphClient(lookup, scorer, Retriever(access), Reranker(access)),
            GraphArgs(publish_root=str(store.root), edge=EDGE),
            GatewayMetrics("replica"),
            open_extensions(access, "replica"),
        )
    with page_server.running(app) as url:
        yield url
    lookup.close()
    scorer.close()


def test_no_request_made_from_the_description_meets_a_defect(url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"]
    command += ["--header", f"Authorization: Bearer {ADMIN}", "--checks", "all"]
    # A request may fit the description and be refused: its variant does not run, for instance.
    command += ["--exclude-checks", "positive_data_acceptance"]
    command += ["--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES)]
    command += ["--seed", "1", "--generation-deterministic"]
    command += ["--suppress-health-check", "all", "--no-color", "--request-timeout", "30"]
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
