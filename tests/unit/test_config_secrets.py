"""Secrets of a configuration reach those who need them, and no text."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deployments.graph import GraphArgs
from reki_ray.config import AdapterSettings, RekiConfig
from reki_ray.config.secrets import HIDDEN, shown, without_password
from reki_ray.errors import RekiError
from reki_ray.serving import instance
from reki_ray.store.redis_vectors import connect, told
from reki_ray.store.versions import VersionStore
from reki_ray.sweep import _changed
from tests import store_factory
from tests.redis_server import redis_server

PASSWORD = "s3cr3t/p@ss:wörd?"
QUOTED = quote(PASSWORD, safe="")
WAYS: dict[str, dict[str, str]] = {
    "userinfo": {"url": f"redis://:{QUOTED}@127.0.0.1:7/0"},
    "user and password": {"url": f"redis://default:{QUOTED}@127.0.0.1:7/0"},
    "not escaped": {"url": "redis://:s3cr3t/p@ss:wörd@127.0.0.1:7/0"},
    "query": {"url": f"redis://127.0.0.1:7/0?password={QUOTED}"},
    "key": {"url": "redis://127.0.0.1:7/0", "password": PASSWORD},
}


def config(vectors: dict[str, str], **sections: Any) -> RekiConfig:
    return RekiConfig.model_validate(
        {
            "name": "secret",
            "data": {"source": {"kind": "movielens_100k"}},
            "store": {"vectors": {"kind": "redis", **vectors}},
            **sections,
        }
    )


def texts(run: RekiConfig, tmp_path: Path) -> dict[str, str]:
    """Everything that a configuration is turned into, where somebody may read it."""
    store = VersionStore(tmp_path / "publish", run.store.vectors.resolved())
    args = instance._graph_args(run, store)
    parsed = GraphArgs.model_validate(args)
    return {
        "report": json.dumps(shown(run.model_dump(mode="json"))),
        "json": run.model_dump_json(),
        "repr": repr(run),
        "str": str(run.store.vectors),
        "arguments": repr(args),
        "graph": repr(parsed),
        "access": repr(parsed.access),
        "access as json": parsed.access.model_dump_json(),
        "fingerprint": json.dumps(run.store.identity()),
    }


@pytest.mark.parametrize("way", WAYS)
def test_no_text_holds_the_password(tmp_path: Path, way: str) -> None:
    run = config(WAYS[way])
    wanted = "s3cr3t/p@ss:wörd" if way == "not escaped" else PASSWORD
    assert run.store.vectors.secret({}) == wanted
    for name, text in texts(run, tmp_path).items():
        assert "s3cr3t" not in text, name
        assert "127.0.0.1:7/0" in text or name == "fingerprint", name


@pytest.mark.parametrize("way", WAYS)
def test_replicas_and_actors_get_the_password(tmp_path: Path, way: str) -> None:
    run = config(WAYS[way])
    store = VersionStore(tmp_path, run.store.vectors.resolved())
    access = GraphArgs.model_validate(instance._graph_args(run, store)).access
    for settings in (
        pickle.loads(pickle.dumps(access)).vectors,
        pickle.loads(pickle.dumps(run)).store.vectors,
        _changed(run, {"cluster.dimensions": 4}).store.vectors,
    ):
        assert settings.secret({}) == run.store.vectors.secret({})


def test_without_one_the_variable_is_taken() -> None:
    settings = config({"url": "redis://h:1/0", "password_env": "MINE"}).store.vectors
    assert settings.secret({}) is None
    assert settings.secret({"MINE": ""}) is None
    assert settings.secret({"MINE": PASSWORD}) == PASSWORD
    assert config(WAYS["userinfo"]).store.vectors.secret({"REKI_VECTORS_PASSWORD": "x"}) == PASSWORD


def test_what_was_shown_is_no_password() -> None:
    read = RekiConfig.model_validate_json(config(WAYS["userinfo"]).model_dump_json())
    assert read.store.vectors.password is None
    assert read.store.vectors.url == "redis://127.0.0.1:7/0"


@pytest.mark.parametrize(
    "wrong", [{"namespace": "a/b"}, {"pasword": "x"}, {"timeout_seconds": -1}, {"kind": "rediss"}]
)
def test_errors_of_a_wrong_section_quote_no_password(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        AdapterSettings.model_validate({"kind": "redis", **WAYS["userinfo"], **wrong})
    assert "s3cr3t" not in str(caught.value)
    with pytest.raises(ValidationError) as caught:
        GraphArgs.model_validate(
            {"publish_root": "x", "vectors": {"kind": "redis", **WAYS["key"], **wrong}}
        )
    assert "s3cr3t" not in str(caught.value)


def test_a_server_with_a_password_is_asked_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with redis_server(tmp_path, PASSWORD) as server:
        bare = server.url.removeprefix("redis://")
        ways: list[dict[str, Any]] = [
            {"url": f"redis://:{QUOTED}@{bare}"},
            {"url": f"redis://default:{QUOTED}@{bare}"},
            {"url": f"{server.url}?password={QUOTED}"},
            {"url": server.url, "password": PASSWORD},
        ]
        for way in ways:
            settings = AdapterSettings(kind="redis", timeout_seconds=20, **way)
            with connect(settings, 20) as client:
                assert client.ping()
        settings = AdapterSettings(kind="redis", url=server.url, timeout_seconds=20)
        monkeypatch.setenv(settings.password_env, PASSWORD)
        store = VersionStore(tmp_path / "publish", settings)
        assert store.publish(store_factory.fill) == 1
        assert store.open_served().users is not None
        wrong = AdapterSettings(kind="redis", url=server.url, password="s3cr3t-but-wrong")
        with pytest.raises(RekiError) as caught, told(wrong.url), connect(wrong, 20) as client:
            client.ping()
        assert "s3cr3t" not in str(caught.value)


PRINTABLE = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=1)


@given(password=PRINTABLE, user=st.sampled_from(["", "me"]))
def test_any_password_leaves_the_url(password: str, user: str) -> None:
    url, found = without_password(f"redis://{user}:{quote(password, safe='')}@h:1/0?db=2")
    assert found == password
    assert url == f"redis://{user + '@' if user else ''}h:1/0?db=2"
    assert without_password(url) == (url, None)


@pytest.mark.parametrize(
    ("given_", "told_"),
    [
        ("https://me:s3cr3t@host/v1", "https://me@host/v1"),
        ("https://host/v1?api_key=s3cr3t&x=1", "https://host/v1?x=1"),
        ("https://host/path@v1", "https://host/path@v1"),
        ("s3://key:s3cr3t@bucket/a", "s3://key@bucket/a"),
        ("C:/data", "C:/data"),
        ("runs/a@b:c", "runs/a@b:c"),
        ({"HF_TOKEN": "s3cr3t", "OMP": "1"}, {"HF_TOKEN": HIDDEN, "OMP": "1"}),
        ({"token_env": "REKI_TOKEN"}, {"token_env": "REKI_TOKEN"}),
        ({"prompt_tokens": 5, "tokenizer": "t"}, {"prompt_tokens": 5, "tokenizer": "t"}),
        ({"api_key": None, "key": ""}, {"api_key": None, "key": ""}),
        ([{"x": ["http://a:s3cr3t@b"]}], [{"x": ["http://a@b"]}]),
    ],
)
def test_secrets_of_any_section_are_not_shown(given_: Any, told_: Any) -> None:
    assert shown(given_) == told_
