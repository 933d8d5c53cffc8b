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

from deployments import launcher
from deployments.graph_args import GraphArgs
from reki_ray.config import AdapterSettings, RekiConfig
from reki_ray.config.edge import EdgeConfig
from reki_ray.config.secrets import HIDDEN, shown, without_secrets
from reki_ray.errors import ConfigError, RekiError
from reki_ray.store.redis import connect, store_errors
from reki_ray.store.versions import VersionStore
from reki_ray.tuning.sweep import _changed
from tests.support import store_factory
from tests.support.redis_server import redis_server

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
    args = launcher._graph_args(run, store)
    parsed = GraphArgs.model_validate(args)
    return {
        "report": json.dumps(shown(run.model_dump(mode="json"))),
        "json": run.model_dump_json(),
        "repr": repr(run),
        "str": str(run.store.vectors),
        "arguments": repr(args),
        "graph": repr(parsed),
        "access": repr(parsed.resolved()),
        "access as json": parsed.resolved().model_dump_json(),
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
    access = GraphArgs.model_validate(launcher._graph_args(run, store)).resolved()
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
        with (
            pytest.raises(RekiError) as caught,
            store_errors(wrong.url),
            connect(wrong, 20) as client,
        ):
            client.ping()
        assert "s3cr3t" not in str(caught.value)


PRINTABLE = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=1)


@given(password=PRINTABLE, user=st.sampled_from(["", "me"]))
def test_any_password_leaves_the_url(password: str, user: str) -> None:
    url, found = without_secrets(f"redis://{user}:{quote(password, safe='')}@h:1/0?db=2")
    assert found == {"password": password, **({"username": user} if user else {})}
    assert url == "redis://h:1/0?db=2"
    assert without_secrets(url) == (url, {})


@pytest.mark.parametrize(
    ("given_", "told_"),
    [
        ("https://me:s3cr3t@host/v1", "https://host/v1"),
        ("https://s3cr3t@host/v1", "https://host/v1"),
        ("https://me:p#s3cr3t@host:1/v1", "https://host:1/v1"),
        ("https://me:p/s3cr3t@host/v1", "https://host/v1"),
        ("  https://me:s3cr3t @host", "https://host"),
        ("//me:s3cr3t@host", "//host"),
        ("see https://a:s3cr3t@h/x for it", "see https://h/x for it"),
        ("https://h/#access_token=s3cr3t", "https://h/"),
        ("https://h/?x=1&sig=s3cr3t#access_token=s3cr3t&a=b", "https://h/?x=1#a=b"),
        ("https://h/?to=https%3A%2F%2Fa%3As3cr3t%40b&x=1", f"https://h/?to={HIDDEN}&x=1"),
        ("https://[::1]:80/a@b?q=c%20d", "https://[::1]:80/a@b?q=c%20d"),
        ("https://h:8080/a;b=c?d&e;f", "https://h:8080/a;b=c?d&e;f"),
        ("https://host/v1?api_key=s3cr3t&x=1", "https://host/v1?x=1"),
        ("https://host/path@v1", "https://host/path@v1"),
        ("s3://key:s3cr3t@bucket/a", "s3://bucket/a"),
        ("C:/data", "C:/data"),
        ("runs/a@b:c", "runs/a@b:c"),
        ({"HF_TOKEN": "s3cr3t", "OMP": "1"}, {"HF_TOKEN": HIDDEN, "OMP": "1"}),
        ({"token_env": "REKI_TOKEN"}, {"token_env": "REKI_TOKEN"}),
        ({"prompt_tokens": 5, "tokenizer": "t"}, {"prompt_tokens": 5, "tokenizer": "t"}),
        ({"api_key": None, "key": ""}, {"api_key": None, "key": ""}),
        ([{"x": ["http://a:s3cr3t@b"]}], [{"x": ["http://b"]}]),
        ({"tokens": ["s3cr3t"]}, {"tokens": [HIDDEN]}),
        ({"credentials": {"user": "s3cr3t"}}, {"credentials": {"user": HIDDEN}}),
        (
            {"zip_code": "ZIP", "bypass": "a", "keys": "b"},
            {"zip_code": "ZIP", "bypass": "a", "keys": "b"},
        ),
    ],
)
def test_secrets_of_any_section_are_not_shown(given_: Any, told_: Any) -> None:
    assert shown(given_) == told_


SECRET_NAMES = """
    apikey api_key api-key X-Api-Key OPENAI_APIKEY accessKey subscriptionkey
    Ocp-Apim-Subscription-Key account_key token access_token TOKEN_2 X-Amz-Security-Token pwd
    PGPASSWORD DB_PASS passphrase auth Authorization X-Amz-Signature sig sas client_secret
    AWS_SECRET_ACCESS_KEY bearer private_key_pem X-Amz-Credential
"""


@pytest.mark.parametrize("name", SECRET_NAMES.split())
def test_every_usual_name_of_a_secret_is_known(name: str) -> None:
    assert shown({name: "s3cr3t"}) == {name: HIDDEN}
    assert shown(f"https://h/?a=1&{name}=s3cr3t") == "https://h/?a=1"
    assert without_secrets(f"redis://h:1/0?{name}=s3cr3t") == ("redis://h:1/0", {name: "s3cr3t"})


def test_a_code_is_a_secret_of_a_query_alone() -> None:
    assert shown("https://h/?code=s3cr3t") == "https://h/"


@pytest.mark.parametrize(
    "vectors",
    [
        {"kind": "arrow", "url": "redis://:s3cr3t@h:1/0"},
        {"kind": "lmdb", "url": "redis://:s3cr3t@h:1/0"},
        {"url": "  redis://:s3cr3t@h:1/0 "},
        {"url": "redis://:p#s3cr3t@h:1/0"},
        {"url": "redis://s3cr3t@h:1/0"},
        {"url": "unix://:s3cr3t@/tmp/r.sock?db=1"},
        {"url": "rediss://h:1/0?ssl_password=s3cr3t"},
        {"url": "redis://h:1/0", "url_secrets": {"ssl_password": "s3cr3t"}},
    ],
)
def test_no_text_holds_a_secret_of_a_server(tmp_path: Path, vectors: dict[str, Any]) -> None:
    run = config(vectors)
    for name, text in texts(run, tmp_path).items():
        assert "s3cr3t" not in text, name
    store = VersionStore(tmp_path, run.store.vectors.resolved())
    access = GraphArgs.model_validate(launcher._graph_args(run, store)).resolved()
    kept = pickle.loads(pickle.dumps(access)).vectors
    found = [kept.secret({}), *(one.get_secret_value() for one in kept.url_secrets.values())]
    assert "s3cr3t" in str(found)
    again = RekiConfig.model_validate_json(run.model_dump_json()).store.vectors
    assert (again.password, again.url_secrets) == (None, {})


def test_secrets_of_a_url_reach_the_server() -> None:
    url = "rediss://me@h:1/0?ssl_password=s3cr3t&ssl_cert_reqs=none"
    with connect(AdapterSettings(kind="redis", url=url), 1) as client:
        connection = client.connection_pool.make_connection()
        assert (connection.username, connection.certificate_password) == ("me", "s3cr3t")


@pytest.mark.parametrize(
    "url", ["redis://h:xs3cr3t/0", ":s3cr3t@h:1/0", "https://s3cr3t", "redis://:p?s3cr3t@h"]
)
def test_what_is_no_url_of_a_server_is_refused_and_not_quoted(url: str) -> None:
    with pytest.raises(ValidationError, match="is none of a server") as caught:
        AdapterSettings(kind="redis", url=url)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("query", ["socket_timeout=s3cr3t", "PASSWORD=s3cr3t", "s3cr3t=1"])
def test_what_redis_py_refuses_is_an_error_that_does_not_quote_it(query: str) -> None:
    settings = AdapterSettings(kind="redis", url=f"redis://h:1/0?{query}")
    with pytest.raises(ConfigError, match="not a URL of a server") as caught:
        connect(settings, 1)
    assert "s3cr3t" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("endpoint", ["https://me:s3cr3t@h/v1", "https://h/v1?x=s3cr3t"])
def test_no_text_holds_where_traces_go(tmp_path: Path, endpoint: str) -> None:
    run = config(WAYS["key"], serve={"edge": {"otlp_endpoint": endpoint}})
    for name, text in texts(run, tmp_path).items():
        assert "s3cr3t" not in text, name
    store = VersionStore(tmp_path, run.store.vectors)
    edge = GraphArgs.model_validate(launcher._graph_args(run, store)).edge
    assert edge.otlp_endpoint is not None
    assert edge.otlp_endpoint.get_secret_value() == endpoint
    assert RekiConfig.model_validate_json(run.model_dump_json()).serve.edge.otlp_endpoint is None
    with pytest.raises(ValidationError) as caught:
        EdgeConfig.model_validate({"otlp_endpoint": "s3cr3t"})
    assert "s3cr3t" not in str(caught.value)
