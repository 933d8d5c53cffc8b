"""The HTTP contract, against the composed graph on a real Ray Serve."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema

import deployments
from deployments import launcher, load_check
from deployments.graph import build_app, build_fused_app
from deployments.graph_args import GraphArgs
from deployments.parts.item_lists import VersionOrder
from deployments.parts.lookup import add_vector, read_profile
from reki_ray.config import RekiConfig
from reki_ray.core.workspace import Workspace
from reki_ray.errors import EngineError, StoreError
from reki_ray.models.candidate_scorer import HistoryEvent, UserInput
from reki_ray.retrieval.load import open_candidates
from reki_ray.store.versions import VersionStore
from tests.support import store_factory

pytestmark = pytest.mark.serve

MAX_CANDIDATES, MAX_HISTORY = 20, 6
NAN_RATING = b"""{"user_id": "u0", "candidates": ["m1"],
                  "history": [{"item_id": "m1", "rating": NaN}]}"""


def _config(root: Path, **serve: Any) -> RekiConfig:
    limits = {"max_candidates": MAX_CANDIDATES, "max_history": MAX_HISTORY, "timeout_seconds": 20}
    return RekiConfig.model_validate(
        {
            "name": "tiny",
            "workspace": str(root),
            "data": {"source": {"kind": "movielens_100k"}},
            "publish": {"compare": "fair_base"},
            "serve": {
                "port": 0,
                "edge": {"allow_anonymous": True, "request_logs": False},
                "measure_requests": 10,
                **limits,
                **serve,
            },
            "ray": {"num_cpus": 2, "object_store_mib": 256},
        }
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    store = VersionStore(folder / "publish")
    store.publish(partial(store_factory.fill, retrieval=True, reranker=True))
    store.publish(partial(store_factory.fill, seed=1), promote=False)
    store.publish(partial(store_factory.fill, knowledge=False, retrieval=True), promote=False)
    return folder


@pytest.fixture(scope="module", params=["composed", "fused"])
def client(root: Path, ray_local: None, request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    with (
        launcher.start(_config(root, graph=request.param), Workspace(root)) as url,
        httpx.Client(base_url=url, timeout=30, trust_env=False) as client,
    ):
        yield client


def score(client: httpx.Client, **body: Any) -> Any:
    response = client.post("/v1/score", json={"user_id": "u0", "candidates": ["m1"], **body})
    assert response.status_code == 200, response.text
    return response.json()


def operator() -> dict[str, str]:
    return {"Authorization": f"Bearer {os.environ['REKI_ADMIN_TOKEN']}"}


def error(response: httpx.Response, status: int) -> Any:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"code", "message", "details"}
    assert "Traceback" not in response.text
    return body["error"]


def test_a_score_has_the_form_of_the_contract(client: httpx.Client, root: Path) -> None:
    answer = score(client, candidates=["m3", "m1", "m3"], request_id="r-1")
    manifest = VersionStore(root / "publish").open().manifest
    assert answer.keys() == {
        *("request_id", "model_version", "store_version", "variant", "user", "scores"),
        "degraded",
    }
    assert answer["request_id"] == "r-1"
    assert answer["model_version"] == manifest.model_fingerprint[:12]
    assert answer["store_version"] == "v1"
    assert answer["variant"] == "reki_c"
    assert answer["user"] == {"source": "cluster"}
    assert answer["degraded"] is False
    assert [entry["item_id"] for entry in answer["scores"]] == ["m3", "m1", "m3"]
    assert all(entry.keys() == {"item_id", "score", "source"} for entry in answer["scores"])
    first, _, again = [entry["score"] for entry in answer["scores"]]
    assert first == pytest.approx(again, abs=1e-6)  # rows of a matrix product may round unlike
    assert all(0 < entry["score"] < 1 for entry in answer["scores"])


def test_scores_over_http_are_those_of_the_model(client: httpx.Client, root: Path) -> None:
    version = VersionStore(root / "publish").open()
    scorer = version.load_scorer()
    candidates = [*reversed(store_factory.ITEM_IDS), "unknown"]
    for user in [*store_factory.USER_IDS, "nobody"]:
        expected = scorer.score(load_check.user_input(version, user), candidates)
        served = [
            entry["score"] for entry in score(client, user_id=user, candidates=candidates)["scores"]
        ]
        np.testing.assert_allclose(served, expected, atol=1e-6)
        assert len(set(served)) > 5


def test_an_unknown_user_is_scored_with_the_fallback(client: httpx.Client) -> None:
    answer = score(client, user_id="nobody")
    assert answer["user"] == {"source": "fallback"}
    assert answer["degraded"] is False
    assert answer["request_id"]
    assert answer["request_id"] != score(client, user_id="nobody")["request_id"]


def test_unknown_items_are_scored_with_the_fallback(client: httpx.Client) -> None:
    answer = score(client, candidates=["x", "m1", "y"])
    assert [entry["source"] for entry in answer["scores"]] == ["fallback", "cluster", "fallback"]
    assert answer["scores"][0]["score"] == pytest.approx(answer["scores"][2]["score"])


def test_a_history_in_the_request_is_used_for_a_new_user(client: httpx.Client, root: Path) -> None:
    history = [{"item_id": "m2", "rating": 5.0, "timestamp": 10}, {"item_id": "m5"}]
    candidates = ["m1", "m7"]
    served = score(client, user_id="new", candidates=candidates, history=history)
    version = VersionStore(root / "publish").open()
    assert version.users is not None
    user = UserInput(None, [HistoryEvent("m2", 5.0), HistoryEvent("m5")], version.users.fallback)
    np.testing.assert_allclose(
        [entry["score"] for entry in served["scores"]],
        version.load_scorer().score(user, candidates),
        atol=1e-5,
    )
    without = score(client, user_id="new", candidates=candidates)
    assert without["scores"] != served["scores"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"user_id": ""}, "user_id"),
        ({"user_id": 5}, "user_id"),
        ({"user_id": None}, "user_id"),
        ({"user_id": "x" * 513}, "user_id"),
        ({"candidates": []}, "candidates"),
        ({"candidates": "m1"}, "candidates"),
        ({"candidates": ["m1", 2]}, "candidates.1"),
        ({"history": [{"rating": 3.0}]}, "history.0.item_id"),
        ({"history": [{"item_id": "m1", "timestamp": -1}]}, "history.0.timestamp"),
        ({"history": [{"item_id": "m1", "timestamp": 2**70}]}, "history.0.timestamp"),
        ({"histroy": []}, "histroy"),
        ({"request_id": "x" * 129}, "request_id"),
    ],
)
def test_wrong_requests_are_told_which_field(
    client: httpx.Client, change: dict[str, Any], field: str
) -> None:
    body = {"user_id": "u0", "candidates": ["m1"], **change}
    found = error(client.post("/v1/score", json=body), 422)
    assert found["code"] == "invalid_request"
    assert field in [problem["field"] for problem in found["details"]["problems"]]


def test_limits_of_the_configuration_hold(client: httpx.Client) -> None:
    assert len(score(client, candidates=["m1"] * MAX_CANDIDATES)["scores"]) == MAX_CANDIDATES
    too_many = {"user_id": "u0", "candidates": ["m1"] * (MAX_CANDIDATES + 1)}
    found = error(client.post("/v1/score", json=too_many), 422)
    assert found["code"] == "too_many_candidates"
    assert found["details"] == {"count": MAX_CANDIDATES + 1, "max": MAX_CANDIDATES}
    long = {
        "user_id": "u0",
        "candidates": ["m1"],
        "history": [{"item_id": "m1"}] * (MAX_HISTORY + 1),
    }
    assert error(client.post("/v1/score", json=long), 422)["code"] == "too_many_history"


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_beyond_the_limit_is_refused(client: httpx.Client, announced: bool) -> None:
    body = b" " * (1_048_576 + 1)
    content = body if announced else iter([body[:1000], body[1000:]])
    assert error(client.post("/v1/score", content=content), 413)["code"] == "body_too_large"


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"", 422),
        (b"[]", 422),
        (b"null", 422),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b'{"user_id": "\\ud800", "candidates": ["m1"]}', 400),
        (NAN_RATING, 422),
    ],
)
def test_what_is_no_request_is_refused(client: httpx.Client, content: bytes, status: int) -> None:
    headers = {"Content-Type": "application/json"}
    error(client.post("/v1/score", content=content, headers=headers), status)


def test_a_body_without_its_type_is_told_what_to_send(client: httpx.Client) -> None:
    content = b'{"user_id": "u0", "candidates": ["m1"]}'
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    found = error(client.post("/v1/score", content=content, headers=form), 415)
    assert found["code"] == "unsupported_media_type"
    assert "Content-Type: application/json" in found["message"]


def test_other_paths_and_methods_answer_in_the_same_form(client: httpx.Client) -> None:
    assert error(client.get("/v1/nothing"), 404)["code"] == "not_found"
    assert error(client.get("/v1/score"), 405)["code"] == "method_not_allowed"
    assert error(client.get("/v1/sample?users=1000"), 422)["code"] == "invalid_request"


def test_the_knowledge_behind_a_user_and_an_item(client: httpx.Client) -> None:
    answer = client.get("/v1/users/ü%2F2/knowledge")
    assert answer.status_code == 200, answer.text
    user = answer.json()
    assert (user["id"], user["source"], user["cluster_id"]) == ("ü/2", "cluster", "u0000")
    assert [entry["text"] for entry in user["knowledge"]] == ["They like action."]
    item = client.get("/v1/items/m4/knowledge").json()
    assert (item["title"], item["attributes"]) == ("Film 4", {"genre": ["Comedy"]})
    assert [entry["subject_kind"] for entry in item["knowledge"]] == ["item_cluster"]
    assert client.get("/v1/items/m11/knowledge").json()["knowledge"] == []
    for path in ("/v1/users/nobody/knowledge", "/v1/items/x/knowledge"):
        assert error(client.get(path), 404)["code"] == "unknown_id"


def test_sampled_ids_are_of_the_store(client: httpx.Client) -> None:
    answer = client.get("/v1/sample?users=2&items=3").json()
    assert len(answer["users"]) == 2
    assert set(answer["users"]) <= set(store_factory.USER_IDS)
    assert {item["item_id"] for item in answer["items"]} <= set(store_factory.ITEM_IDS)


def test_health_and_readiness(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    for path in ("/healthz", "/readyz", "/metrics", "/", "/v1/versions", "/openapi.json"):
        head = client.head(path)
        assert (head.status_code, head.content) == (200, b""), path


@pytest.mark.parametrize("sent", ["r-1", None])
def test_every_answer_has_one_request_id(client: httpx.Client, sent: str | None) -> None:
    headers = {} if sent is None else {"X-Request-ID": sent}
    body = {"user_id": "u0", "candidates": ["m1"]}
    for answer in (
        client.post("/v1/score", json=body, headers=headers),
        client.get("/v1/nothing", headers=headers),
        client.get("/v1/admin/versions", headers=headers),
        client.get("/", headers=headers),
    ):
        (found,) = answer.headers.get_list("x-request-id")
        assert found == (sent or found)
        if answer.is_success and "request_id" in answer.text:
            assert answer.json()["request_id"] == found


def test_the_interface_describes_itself(client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()
    assert {"/v1/score", "/v1/users/{user_id}/knowledge", "/v1/items/{item_id}/knowledge"} <= set(
        described["paths"]
    )
    operation = described["paths"]["/v1/score"]["post"]
    assert operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith(
        "ScoreRequest"
    )
    assert "4XX" in operation["responses"]


def test_metrics_count_requests_by_route(client: httpx.Client) -> None:
    score(client)
    client.get("/v1/items/m4/knowledge")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    samples = [
        sample
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    ]
    counted = {
        (sample.labels["route"], sample.labels["status"]): sample.value
        for sample in samples
        if sample.name == "reki_requests_total"
    }
    assert counted["/v1/score", "200"] >= 1
    assert counted["/v1/items/{item_id:path}/knowledge", "200"] >= 1
    assert any(sample.name == "reki_request_seconds_bucket" for sample in samples)


def test_the_page_needs_nothing_from_elsewhere(client: httpx.Client) -> None:
    answer = client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "://" not in answer.text
    assert '<html lang="en">' in answer.text


@pytest.mark.parametrize(
    ("file", "builder"), [("serve.yaml", build_app), ("serve-fused.yaml", build_fused_app)]
)
def test_the_deployment_files_are_valid(
    root: Path, file: str, builder: Callable[[GraphArgs], Application]
) -> None:
    folder = Path(deployments.__file__).parent
    content = yaml.safe_load((folder / file).read_text(encoding="utf-8"))
    schema = ServeDeploySchema.model_validate(content)
    assert content["http_options"]["host"] == "127.0.0.1"
    (application,) = schema.applications
    assert application.import_path == f"deployments.graph:{builder.__name__}"
    args = GraphArgs.model_validate(
        {**(application.args or {}), "publish_root": str(root / "publish")}
    )
    ingress = builder(args)._bound_deployment
    assert ingress.max_ongoing_requests > 3 * args.max_ongoing_requests


def test_autoscaling_reaches_every_deployment(root: Path) -> None:
    args = GraphArgs(publish_root=str(root / "publish"), max_replicas=4)
    bound = build_app(args)._bound_deployment
    parts = [part._bound_deployment for part in bound.init_args if isinstance(part, Application)]
    for deployment in (bound, *parts):
        scaling = deployment._deployment_config.autoscaling_config
        assert scaling is not None
        assert (scaling.min_replicas, scaling.max_replicas) == (1, 4)
    with pytest.raises(ValidationError, match="max_replicas is 1"):
        GraphArgs(publish_root="x", scorer_replicas=2, max_replicas=1)


def test_replicas_run_where_the_versions_are(root: Path) -> None:
    for resource, wanted in ((None, {}), ("vectors", {"vectors": 0.001})):
        args = GraphArgs(publish_root=str(root / "publish"), node_resource=resource)
        for built in (build_app(args), build_fused_app(args)):
            bound = built._bound_deployment
            parts = [p._bound_deployment for p in bound.init_args if isinstance(p, Application)]
            for deployment in (bound, *parts):
                assert (deployment.ray_actor_options or {})["resources"] == wanted


def recommended(client: httpx.Client, user: str, k: int, **body: Any) -> Any:
    answer = client.post("/v1/recommend", json={"user_id": user, "k": k, **body})
    assert answer.status_code == 200, answer.text
    content = answer.json()
    assert (content["degraded"], content["store_version"]) == (False, "v1")
    assert all(item["title"] == f"Film {item['item_id'][1:]}" for item in content["items"])
    return [item["item_id"] for item in content["items"]]


def test_recommendations_are_unseen_items_as_the_version_puts_them_in_order(
    client: httpx.Client, root: Path
) -> None:
    version = VersionStore(root / "publish").open()
    for name in ("u0", "u3", "nobody"):
        user = add_vector(version, name, read_profile(version, name))
        user = dataclasses.replace(user, user_id=name)
        history = list(zip(user.profile.item_ids, user.profile.ratings, strict=True))
        found = open_candidates(version).of(name, history, 100)
        scores = version.load_scorer().score(load_check.user_input(version, name), found)
        best = [found[place] for place in np.argsort(-scores, kind="stable")]
        expected = [best[place] for place in VersionOrder(version).order(user, best)]
        assert recommended(client, name, 5) == expected[:5]
        assert len(found) == (6 if name == "u0" else 12)


def test_a_history_and_what_is_excluded_are_not_recommended(client: httpx.Client) -> None:
    history = [{"item_id": "m7", "rating": 5.0}]
    found = recommended(client, "u0", 12, history=history, exclude=["m8", "unknown"])
    assert sorted(found) == ["m10", "m11", "m6", "m9"]  # nor what the store knows to be seen
    assert recommended(client, "u0", 5, exclude=store_factory.ITEM_IDS) == []


def test_an_event_is_in_the_history_of_the_next_request(client: httpx.Client) -> None:
    visitor = {"user_id": f"visitor {client.base_url.port}", "candidates": store_factory.ITEM_IDS}
    before = score(client, **visitor)
    liked = [{"item_id": item, "rating": 5.0, "timestamp": 10 + k} for k, item in enumerate("ab")]
    expected = score(client, history=liked, **visitor)["scores"]
    event = {"user_id": visitor["user_id"], "event": "rating"}
    answer = client.post("/v1/events", json=[{**event, **one} for one in liked])
    assert answer.json() == {"accepted": 2}, answer.text
    for _ in range(200):
        after = score(client, **visitor)
        if after["scores"] != before["scores"]:
            break
        time.sleep(0.05)
    found, wanted = ([entry["score"] for entry in part] for part in (after["scores"], expected))
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_an_event_that_is_none_is_refused(client: httpx.Client) -> None:
    event = {"user_id": "u0", "item_id": "m1", "event": "click", "timestamp": 10}
    wrong = {**event, "event": "Click!"}
    found = error(client.post("/v1/events", json=[wrong]), 422)
    assert found["details"]["problems"][0]["field"] == "0.event"
    assert error(client.post("/v1/events", json=[]), 422)["code"] == "invalid_request"


def test_the_version_that_is_kept_to_compare_with_answers_who_names_it(
    client: httpx.Client, root: Path
) -> None:
    for _ in range(200):  # it is opened after the service is ready
        compared = client.get("/v1/versions").json()["compared"]
        if compared is not None:
            break
        time.sleep(0.05)
    assert compared == {"name": "fair_base", "version": 3, "arm": "fair_base"}
    body = {"candidates": ["m1", "m2", "m7"]}
    found = score(client, **body, store_version="v3")
    assert (found["store_version"], found["variant"]) == ("v3", "fair_base")
    version = VersionStore(root / "publish").open(3)
    difference = load_check.score_difference(version, [{"user_id": "u0", **body}], [found])
    assert difference <= load_check.MAX_SCORE_DIFFERENCE
    served = score(client, **body, store_version="v1")
    assert served["scores"] == score(client, **body)["scores"] != found["scores"]
    answer = client.post("/v1/recommend", json={"user_id": "u0", "k": 3, "store_version": "v3"})
    assert answer.json()["store_version"] == "v3"
    assert len(answer.json()["items"]) == 3
    explain = "/v1/items/m1/knowledge"
    assert client.get(explain).json()["knowledge"]
    without = client.get(explain, params={"store_version": "v3"}).json()
    assert (without["store_version"], without["knowledge"]) == ("v3", [])


@pytest.mark.parametrize("store_version", ["v2", "v9"])
def test_versions_that_are_not_kept_open_are_not_loaded_for_a_request(
    client: httpx.Client, store_version: str
) -> None:
    body = {"user_id": "u0", "candidates": ["m1"], "store_version": store_version}
    refused = error(client.post("/v1/score", json=body), 422)
    assert refused["code"] == "version_not_open"
    assert "v1" in refused["details"]["versions"]
    assert store_version not in refused["details"]["versions"]
    for side, subject in (("users", "u0"), ("items", "m1")):
        path = f"/v1/{side}/{subject}/knowledge?store_version={store_version}"
        assert error(client.get(path), 422)["code"] == "version_not_open"


@pytest.mark.parametrize(
    "keys",
    [
        {"store_version": "3"},
        {"store_version": "v0"},
        {"store_version": 3},
        {"store_version": "v1", "variant": "base"},
    ],
)
def test_a_version_is_named_as_answers_name_it_and_not_beside_a_variant(
    client: httpx.Client, keys: dict[str, Any]
) -> None:
    for endpoint, body in (("score", {"candidates": ["m1"]}), ("recommend", {"k": 1})):
        refused = client.post(f"/v1/{endpoint}", json={"user_id": "u0", **body, **keys})
        assert error(refused, 422)["code"] == "invalid_request"


def test_versions_are_listed_for_operators(client: httpx.Client) -> None:
    served_now = client.get("/v1/versions").json()
    assert (served_now["current"], served_now["arm"]) == (1, "reki_c")
    assert served_now["variants"] == []
    assert error(client.get("/v1/admin/versions"), 401)["code"] == "token_needed"
    newest, _, served = client.get("/v1/admin/versions", headers=operator()).json()["versions"]
    assert (newest["version"], newest["current"], newest["served"]) == (3, False, False)
    assert (served["version"], served["current"], served["served"]) == (1, True, True)
    unknown = client.post("/v1/admin/promote", json={"version": 9}, headers=operator())
    assert error(unknown, 404)["code"] == "unknown_version"


def test_promotion_and_rollback_are_followed_under_load(client: httpx.Client, root: Path) -> None:
    store = VersionStore(root / "publish")
    expected = {
        f"v{number}": store.open(number)
        .load_scorer()
        .score(load_check.user_input(store.open(number), "u0"), store_factory.ITEM_IDS)
        for number in (1, 2)
    }
    answers: list[httpx.Response] = []
    stop = threading.Event()

    def ask() -> None:
        body = {"user_id": "u0", "candidates": store_factory.ITEM_IDS}
        with httpx.Client(base_url=client.base_url, timeout=30, trust_env=False) as own:
            while not stop.is_set():
                answers.append(own.post("/v1/score", json=body))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        moved = client.post("/v1/admin/promote", json={"version": 2}, headers=operator())
        assert moved.json() == {"current": 2, "served": 2}, moved.text
        assert score(client)["store_version"] == "v2"
        back = client.post("/v1/admin/rollback", headers=operator())
        assert back.json() == {"current": 1, "served": 1}, back.text
        assert score(client)["store_version"] == "v1"
    finally:
        stop.set()
        thread.join()
        if store.current() != 1:
            store.promote(1)
    assert {answer.status_code for answer in answers} == {200}
    for body in (answer.json() for answer in answers):
        scores = [entry["score"] for entry in body["scores"]]
        np.testing.assert_allclose(scores, expected[body["store_version"]], atol=1e-6)


def test_a_taken_port_is_told(client: httpx.Client) -> None:
    port = client.base_url.port
    assert port is not None
    with pytest.raises(EngineError, match=f"port {port}"):
        launcher.claim_port("127.0.0.1", port)


def test_a_second_service_on_the_cluster_is_refused(client: httpx.Client, root: Path) -> None:
    with (
        pytest.raises(EngineError, match="already running on this cluster"),
        launcher.start(_config(root), Workspace(root)),
    ):
        pass
    assert client.get("/readyz").status_code == 200


def test_nothing_published_is_told_before_anything_starts(tmp_path: Path) -> None:
    with (
        pytest.raises(StoreError, match="nothing is published"),
        launcher.start(_config(tmp_path), Workspace(tmp_path)),
    ):
        pass
