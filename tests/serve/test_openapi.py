"""What /openapi.json promises holds: requests made from it never meet a defect."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.openapi import OpenApiSchema  # type: ignore

from deployments.api import GatewaySettings
from deployments.backend import LocalBackend
from deployments.gateway import build_api
from deployments.lookup import Lookup
from deployments.metrics import GatewayMetrics
from deployments.online import OnlineArgs, open_extensions, open_recent
from deployments.scorer import Scorer
from deployments.versions import StoreAccess
from reki_ray.config.edge import EdgeSettings
from reki_ray.store.versions import VersionStore
from tests import page_server, store_factory
from tests.edge_app import ADMIN, TOKEN


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenApiSchema]:
    """The description of a real gateway over a small version, without Ray, behind HTTP."""
    store = VersionStore(tmp_path_factory.mktemp("described") / "publish")
    store.publish(store_factory.fill)
    store.publish(partial(store_factory.fill, seed=1))
    access = StoreAccess(publish_root=str(store.root))
    args = OnlineArgs()
    lookup, scorer = Lookup(access, partial(open_recent, args, access)), Scorer(access)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REKI_TOKEN", TOKEN)
        patch.setenv("REKI_ADMIN_TOKEN", ADMIN)
        app = build_api(
            LocalBackend(lookup, scorer),
            access,
            GatewaySettings(edge=EdgeSettings(rate_per_second=None, request_logs=False)),
            GatewayMetrics("replica"),
            open_extensions(args, access, "replica"),
        )
    with page_server.running(app) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")
    lookup.close()
    scorer.close()


schema = schemathesis.pytest.from_fixture("described")


@schema.parametrize()
@settings(
    max_examples=40,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_one_that_the_description_names(case: Case) -> None:
    case.call_and_validate(headers={"Authorization": f"Bearer {ADMIN}"}, timeout=30)
