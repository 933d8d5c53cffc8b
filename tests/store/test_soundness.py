"""What holds no finite numbers is neither published nor promoted nor served, nor gets into JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from deployments.flows.graph_client import GraphClient
from deployments.graph_args import StoreAccess
from deployments.http.json_route import json_response
from deployments.parts.item_lists import Reranker, Retriever
from deployments.parts.lookup import Lookup
from deployments.parts.scorer import Scorer
from reki_ray.cli.options import show
from reki_ray.core.strict_json import strict_json
from reki_ray.core.workspace import Workspace
from reki_ray.errors import NotFiniteError, StoreError
from reki_ray.models import artifact as bundles
from reki_ray.store import soundness, versions
from reki_ray.store.manifest import MODEL_FOLDER, VECTOR_FILES, Description
from reki_ray.store.promotions import CURRENT
from reki_ray.store.vectors import write_vectors
from reki_ray.store.versions import VersionStore
from tests.support import gateway_app, store_factory
from tests.support.store_factory import ITEM_IDS, USER_IDS

pytestmark = pytest.mark.usefixtures("one_thread")

whole = partial(store_factory.fill, retrieval=True, reranker=True)


def poison(path: Path, value: float) -> None:
    """One bad number in the first floating tensor."""
    weights = load_file(path)
    name = next(name for name, found in weights.items() if found.is_floating_point())
    weights[name].view(-1)[0] = value
    save_file(weights, path)


def bad_model(folder: Path, value: float) -> Description:
    described = whole(folder)
    poison(folder / MODEL_FOLDER / bundles.WEIGHTS, value)
    fingerprint = bundles.fingerprint(folder / MODEL_FOLDER)
    return described.model_copy(update={"model_fingerprint": fingerprint})


def bad_reranker(folder: Path, value: float) -> Description:
    described = whole(folder)
    poison(folder / "reranker" / bundles.WEIGHTS, value)
    return described


def bad_towers(folder: Path, value: float) -> Description:
    described = whole(folder)
    poison(folder / "retrieval" / "towers.safetensors", value)
    return described


def bad_vector(folder: Path, value: float, side: Any = "items") -> Description:
    described = whole(folder)
    ids = ITEM_IDS if side == "items" else USER_IDS
    vectors = np.zeros((len(ids), described.dimension), np.float32)
    vectors[-1, 3] = value
    write_vectors(folder / VECTOR_FILES[side], ids, vectors, ["cluster"] * len(ids))
    return described


def bad_fallback(folder: Path, value: float) -> Description:
    described = whole(folder)
    return described.model_copy(
        update={"fallback": {side: [value] * 8 for side in described.fallback}}
    )


def too_large_for_half(folder: Path, value: float) -> Description:
    described = store_factory.fill(folder, dtype="float16")
    vectors = np.full((len(USER_IDS), described.dimension), 1e5, np.float32)
    with np.errstate(over="ignore"):
        write_vectors(
            folder / VECTOR_FILES["users"],
            USER_IDS,
            vectors,
            ["cluster"] * len(USER_IDS),
            dtype="float16",
        )
    return described


MAKERS: list[Callable[[Path, float], Description]] = [
    bad_model,
    bad_reranker,
    bad_towers,
    bad_vector,
    partial(bad_vector, side="users"),
    bad_fallback,
    too_large_for_half,
]


@pytest.mark.parametrize(
    ("make", "value"),
    [*((make, math.nan) for make in MAKERS), (bad_model, math.inf), (bad_vector, math.inf)],
)
def test_what_holds_no_numbers_is_not_published(
    tmp_path: Path, make: Callable[[Path, float], Description], value: float
) -> None:
    store = VersionStore(tmp_path)
    with pytest.raises(NotFiniteError, match="not all finite numbers") as caught:
        store.publish(lambda folder: make(folder, value), promote=False)
    assert "Train again" in caught.value.todo
    assert store.versions() == []


@pytest.fixture
def unchecked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VersionStore:
    """Version 2 was published with a bad model, as older releases would have it."""
    store = VersionStore(tmp_path / "publish")
    store.publish(whole)
    with monkeypatch.context() as patch:
        patch.setattr(versions, "require_sound", lambda _: None)
        store.publish(lambda folder: bad_model(folder, math.nan), promote=False)
    return store


def test_what_holds_no_numbers_is_not_promoted(unchecked: VersionStore) -> None:
    with pytest.raises(NotFiniteError):
        unchecked.promote(2)
    assert unchecked.current() == 1


@contextmanager
def graph(root: Path) -> Iterator[tuple[TestClient, Scorer]]:
    """The whole graph in this process."""
    access = StoreAccess(publish_root=str(root), poll_seconds=0.01)
    lookup, scorer = Lookup(access), Scorer(access, 4)
    backend = GraphClient(lookup, scorer, Retriever(access), Reranker(access))
    with ExitStack() as stack:
        stack.callback(lookup.close)
        stack.callback(scorer.close)
        app = gateway_app.make(backend, access)
        yield stack.enter_context(gateway_app.client(app)), scorer


def refuse(constant: str) -> float:
    raise AssertionError(f"{constant} is no JSON")


def ask(client: TestClient, path: str, **body: Any) -> tuple[int, Any]:
    answer = client.post(path, json={"user_id": "u0", **body})
    return answer.status_code, json.loads(answer.text, parse_constant=refuse)


def test_a_pointer_set_by_hand_to_what_holds_no_numbers_is_not_followed(
    unchecked: VersionStore,
) -> None:
    with graph(unchecked.root) as (client, _):
        (unchecked.root / CURRENT).write_text("2\n")
        while 'reki_versions_refused_total{replica="replica"} 1' not in client.get("/metrics").text:
            pass
        status, found = ask(client, "/v1/score", candidates=ITEM_IDS)
        assert (status, found["store_version"]) == (200, "v1")
        operator = {"Authorization": f"Bearer {os.environ['REKI_ADMIN_TOKEN']}"}
        refused = client.post("/v1/admin/promote", json={"version": 2}, headers=operator)
        assert refused.status_code == 409


def test_an_item_without_a_finite_score_fails_its_own_request_alone(tmp_path: Path) -> None:
    VersionStore(tmp_path).publish(whole)
    with graph(tmp_path) as (client, scorer):
        assert ask(client, "/v1/score", candidates=ITEM_IDS)[0] == 200
        (opened,) = scorer._opened.values()
        inputs = opened._scorer
        assert inputs.augmented is not None
        inputs.augmented[inputs.rows(["m7"])[0]] = torch.nan
        for path, body in (
            ("/v1/score", {"candidates": ["m1", "m7"]}),
            ("/v1/recommend", {"k": 5}),
        ):
            status, found = ask(client, path, **body)
            assert (status, found["error"]["code"]) == (503, "no_scores")
        assert ask(client, "/v1/score", candidates=["m1", "unknown"])[0] == 200


def test_a_reranker_without_finite_scores_leaves_the_order_of_the_scores(tmp_path: Path) -> None:
    VersionStore(tmp_path).publish(whole)
    with graph(tmp_path) as (client, _), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "reki_ray.models.list_scorer.ListScorer.score",
            lambda *_: np.full(6, np.nan, np.float32),
        )
        status, found = ask(client, "/v1/recommend", k=5)
        assert (status, found["degraded"]) == (200, True)
        scores = [entry["score"] for entry in found["items"]]
        assert scores == sorted(scores, reverse=True)


FLOATS = st.floats() | st.integers() | st.text() | st.none()
TREES = st.recursive(
    FLOATS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(), TREES))
def test_no_float_makes_json_that_others_refuse(content: dict[str, Any]) -> None:
    text = strict_json(content)
    assert json.loads(text, parse_constant=refuse).keys() == content.keys()
    try:
        json.dumps(content, allow_nan=False)
    except ValueError:
        with pytest.raises(ValueError, match="not JSON compliant"):
            json_response(content)
    else:
        assert json.loads(text) == content
        assert json.loads(bytes(json_response(content).body), parse_constant=refuse) is not None


def test_documents_and_results_of_commands_hold_no_nan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {"auc": math.nan, "ci": [math.inf, 0.5], "name": "NaN"}
    Workspace(tmp_path).write_json("report.json", content)
    show("", content, as_json=True)
    for text in ((tmp_path / "report.json").read_text(), capsys.readouterr().out):
        found = json.loads(text, parse_constant=refuse)
        assert found == {"auc": None, "ci": [None, 0.5], "name": "NaN"}


def test_a_sound_version_is_sound(tmp_path: Path) -> None:
    for kind in ({}, {"prestore": "r"}, {"knowledge": False}, {"dtype": "float16"}):
        store = VersionStore(tmp_path / str(len(kind)) / str(kind))
        store.publish(partial(store_factory.fill, **kind))
        soundness.require_sound(store.open())
        with pytest.raises(StoreError):
            store.promote(9)


def saturate(folder: Path, name: str, value: float) -> Description:
    """All weights of a file are one bad number."""
    described = whole(folder)
    path = folder / name
    weights = load_file(path)
    for key, found in weights.items():
        if found.is_floating_point():
            weights[key] = torch.full_like(found, value)
    save_file(weights, path)
    if name.startswith(MODEL_FOLDER):
        fingerprint = bundles.fingerprint(path.parent)
        return described.model_copy(update={"model_fingerprint": fingerprint})
    if name.startswith("reranker"):
        assert described.reranker is not None
        fingerprint = bundles.fingerprint(path.parent)
        own = described.reranker.model_copy(update={"fingerprint": fingerprint})
        return described.model_copy(update={"reranker": own})
    return described


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38, -3e38])
@pytest.mark.parametrize(
    "name",
    [
        f"{MODEL_FOLDER}/{bundles.WEIGHTS}",
        f"reranker/{bundles.WEIGHTS}",
        "retrieval/towers.safetensors",
    ],
)
def test_weights_of_which_nothing_finite_can_be_made_are_not_published(
    tmp_path: Path, name: str, value: float
) -> None:
    store = VersionStore(tmp_path)
    with pytest.raises(StoreError, match="finite"):
        store.publish(lambda folder: saturate(folder, name, value), promote=False)
    assert store.versions() == []
