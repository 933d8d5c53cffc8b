"""Who may call: tokens, operators, this machine alone; and how often."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deployments.graph_args import GraphArgs
from deployments.middleware.auth import PAGE, bearer, read_tokens
from deployments.middleware.rate_limiter import network_of
from reki_ray.config.edge import EdgeConfig, EdgeSettings, is_loopback
from reki_ray.core.ray_cluster import set_environment
from reki_ray.errors import ConfigError
from tests.support import edge_app, page_server
from tests.support.edge_app import ADMIN, SECOND, TOKEN, client, error

CLOSED = EdgeSettings(host="0.0.0.0")


@pytest.fixture(autouse=True)
def tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REKI_TOKEN", f"{TOKEN}, {SECOND}")
    monkeypatch.setenv("REKI_ADMIN_TOKEN", ADMIN)


@pytest.mark.parametrize("token", [TOKEN, SECOND, ADMIN])
def test_every_valid_token_is_answered(token: str) -> None:
    answer = client(edge_app.app(CLOSED), token).post("/v1/score", content=b"{}")
    assert answer.status_code == 200
    assert answer.json()["role"] == ("admin" if token == ADMIN else "user")


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN.upper()}",
        f"Bearer {TOKEN}, {SECOND}",
        f"Basic {TOKEN}",
        TOKEN,
        "Bearer \xff\xfe",
    ],
)
def test_without_a_valid_token_a_call_is_refused(header: str | None) -> None:
    headers = {} if header is None else {b"Authorization": header.encode("latin-1")}
    made = client(edge_app.app(CLOSED))
    for path in ("/v1/score", "/v1/nothing", "/metrics", "/v1/admin/versions"):
        answer = made.request("POST" if path == "/v1/score" else "GET", path, headers=headers)
        found = error(answer, 401)
        assert found["code"] == ("token_needed" if header is None else "invalid_token")
        assert answer.headers["www-authenticate"].startswith('Bearer realm="reki-ray"')
        assert TOKEN not in answer.text


def test_two_authorization_headers_are_refused() -> None:
    headers = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer other")]
    error(client(edge_app.app(CLOSED)).post("/v1/score", headers=headers), 401)


def test_probes_the_page_and_the_description_are_open() -> None:
    made = client(edge_app.app(CLOSED))
    for path in ("/healthz", "/readyz", "/openapi.json", *PAGE):
        assert made.get(path).status_code == 200, path


def test_operators_have_a_token_of_their_own() -> None:
    made = edge_app.app(CLOSED)
    assert client(made, ADMIN).get("/v1/admin/versions").status_code == 200
    assert error(client(made, TOKEN).get("/v1/admin/versions"), 403)["code"] == "admin_only"
    for path in ("/v1/admin", "/v1/admin/", "/v1/%61dmin/versions", "/v1/admin/nothing"):
        error(client(made, TOKEN).get(path), 403)


def test_without_an_operators_token_their_calls_are_off_and_say_how_to_turn_them_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("REKI_ADMIN_TOKEN")
    for settings in (CLOSED, EdgeSettings(allow_anonymous=True)):
        for token in (None, TOKEN, ADMIN):
            found = error(client(edge_app.app(settings), token).get("/v1/admin/versions"), 403)
            assert found["code"] == "admin_disabled"
            assert "REKI_ADMIN_TOKEN" in found["message"]


def test_anonymous_callers_are_answered_only_where_it_is_set() -> None:
    made = client(edge_app.app(EdgeSettings(allow_anonymous=True)))
    assert made.post("/v1/score").json()["role"] == "anonymous"
    error(made.get("/v1/admin/versions"), 401)
    error(client(edge_app.app(EdgeSettings())).post("/v1/score"), 401)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "10.0.0.1", ""])
def test_without_tokens_a_name_from_elsewhere_is_refused(host: str) -> None:
    made = client(edge_app.app(EdgeSettings(allow_anonymous=True)))
    found = error(made.post("/v1/score", headers={"Host": host}), 403)
    assert found["code"] == "foreign_host"


@pytest.mark.parametrize("host", ["localhost:8000", "LOCALHOST", "127.0.0.1:80", "[::1]:8000"])
def test_names_of_this_machine_are_answered_without_tokens(host: str) -> None:
    made = client(edge_app.app(EdgeSettings(allow_anonymous=True)))
    assert made.post("/v1/score", headers={"Host": host}).status_code == 200


def test_metrics_are_open_on_this_machine_alone() -> None:
    assert client(edge_app.app(EdgeSettings())).get("/metrics").status_code == 200
    error(client(edge_app.app(CLOSED)).get("/metrics"), 401)
    assert client(edge_app.app(CLOSED), TOKEN).get("/metrics").status_code == 200


FOREIGN = ["203.0.113.5", "10.0.0.1", "2001:db8::1", "::ffff:203.0.113.5", "testclient", ""]


@pytest.mark.parametrize("peer", FOREIGN)
@pytest.mark.parametrize("settings", [EdgeSettings(), EdgeSettings(allow_anonymous=True)])
def test_a_peer_from_elsewhere_is_no_caller_of_this_machine_whatever_host_it_names(
    settings: EdgeSettings, peer: str
) -> None:
    made = edge_app.app(settings)
    for host in ("localhost", "127.0.0.1", "[::1]"):
        caller = client(made, peer=peer, host=host)
        assert error(caller.get("/metrics"), 401)["code"] == "token_needed"
        error(caller.post("/v1/score"), 401)
        assert caller.get("/healthz").status_code == 200
    assert client(made, TOKEN, peer=peer).get("/metrics").status_code == 200


PASSED_ON = {
    "X-Forwarded-For": "203.0.113.9",
    "X-Forwarded-Host": "reki.example",
    "Forwarded": "for=203.0.113.9",
    "X-Real-IP": "203.0.113.9",
    "Via": "1.1 proxy",
    "CF-Connecting-IP": "203.0.113.9",
}


@pytest.mark.parametrize("header", PASSED_ON)
@pytest.mark.parametrize("proxies", [(), ("127.0.0.1",)])
def test_what_a_proxy_passes_on_does_not_come_from_this_machine(
    header: str, proxies: tuple[str, ...]
) -> None:
    headers = {header: PASSED_ON[header]}
    for settings in (EdgeSettings(), EdgeSettings(allow_anonymous=True)):
        made = edge_app.app(settings.model_copy(update={"trusted_proxies": proxies}))
        for host in ("127.0.0.1:8000", "localhost"):
            caller = client(made, host=host)
            assert caller.get("/metrics").status_code == 200
            assert error(caller.get("/metrics", headers=headers), 401)["code"] == "token_needed"
            error(caller.post("/v1/score", headers=headers), 401)
            assert caller.get("/healthz", headers=headers).status_code == 200
        assert client(made, TOKEN).get("/metrics", headers=headers).status_code == 200


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"])
def test_a_peer_on_this_machine_is_known_by_all_its_addresses(peer: str) -> None:
    made = edge_app.app(EdgeSettings(allow_anonymous=True))
    assert client(made, peer=peer).post("/v1/score").status_code == 200
    assert client(made, peer=peer).get("/metrics").status_code == 200


@pytest.mark.parametrize("listener", ["0.0.0.0", "::", "10.0.0.1", "host.example", ""])
def test_where_the_service_listens_counts_more_than_what_is_set(listener: str) -> None:
    settings = GraphArgs(publish_root="publish").listening_at(listener)
    made = edge_app.app(settings.edge)
    error(client(made, host="localhost").get("/metrics"), 401)
    assert client(made, TOKEN).get("/metrics").status_code == 200
    with pytest.raises(ValidationError, match="allow_anonymous"):
        GraphArgs(publish_root="publish", edge=EdgeSettings(allow_anonymous=True)).listening_at(
            listener
        )


def test_what_is_set_may_be_stricter_than_where_the_service_listens() -> None:
    for host, listener in (("0.0.0.0", "127.0.0.1"), ("10.0.0.1", "0.0.0.0")):
        settings = GraphArgs(publish_root="publish", edge=EdgeSettings(host=host))
        assert settings.listening_at(listener).edge.host == host
    assert GraphArgs(publish_root="publish").listening_at("127.0.0.1").edge.loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_anonymous_callers_are_refused_at_any_other_address(host: str) -> None:
    with pytest.raises(ValidationError, match=r"set serve\.host to 127\.0\.0\.1"):
        EdgeConfig(allow_anonymous=True).at(host)
    assert EdgeConfig().at(host).host == host


def test_loopback_is_known() -> None:
    here = ("127.0.0.1", "127.9.9.9", "::1", "localhost", "::ffff:127.0.0.1", "::ffff:7f00:1")
    assert all(is_loopback(host) for host in here)
    assert not any(is_loopback(host) for host in ("", "localhost.evil.example", "::ffff:10.0.0.1"))


def test_a_missing_token_is_told_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REKI_TOKEN")
    with pytest.raises(ConfigError, match=r"variable REKI_TOKEN.*allow_anonymous"):
        edge_app.app(EdgeSettings())


def test_one_token_for_callers_and_operators_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REKI_ADMIN_TOKEN", SECOND)
    with pytest.raises(ConfigError, match="Give operators a token of their own"):
        edge_app.app(EdgeSettings())


@pytest.mark.parametrize("bad", ["short", "with space 0123456789", "ümlaut-0123456789abcdef"])
def test_an_unusable_token_is_refused_without_being_shown(bad: str) -> None:
    with pytest.raises(ConfigError, match="token 2 is not a valid bearer token") as caught:
        read_tokens("X", {"X": f"{TOKEN},{bad}"})
    assert bad not in str(caught.value)


def test_a_program_beside_the_service_calls_it_with_the_first_token() -> None:
    assert bearer(EdgeConfig()) == {"Authorization": f"Bearer {TOKEN}"}
    assert bearer(EdgeConfig(), {}) == {}


def slow(**changes: Any) -> EdgeSettings:
    # So rare that no request of a test gains another.
    return EdgeSettings(host="0.0.0.0", rate_per_second=1e-4, rate_burst=2, **changes)


def test_a_client_above_its_rate_is_told_when_to_ask_again() -> None:
    made = edge_app.app(slow())
    first = client(made, TOKEN)
    assert [first.post("/v1/score").status_code for _ in range(2)] == [200, 200]
    answer = first.post("/v1/score")
    assert error(answer, 429)["code"] == "rate_limited"
    assert 0 < int(answer.headers["retry-after"]) <= 10_000
    # From another address the token is the same client; another token is another one.
    error(client(made, TOKEN, peer="203.0.113.9").post("/v1/score"), 429)
    assert client(made, SECOND).post("/v1/score").status_code == 200


def test_guessed_tokens_are_charged_to_their_sender() -> None:
    made = edge_app.app(slow())
    guesses = [client(made, f"guess-{n}-0123456789").post("/v1/score") for n in range(3)]
    assert [answer.status_code for answer in guesses] == [401, 401, 429]
    assert client(made, TOKEN).post("/v1/score").status_code == 200


def test_probes_are_never_limited() -> None:
    made = client(edge_app.app(slow()))
    assert {made.get("/healthz").status_code for _ in range(5)} == {200}


def test_without_a_rate_nobody_is_limited() -> None:
    made = client(edge_app.app(CLOSED.model_copy(update={"rate_per_second": None})), TOKEN)
    assert {made.post("/v1/score").status_code for _ in range(20)} == {200}


def peers(settings: EdgeSettings, peer: str, forwarded: list[str]) -> list[int]:
    made = edge_app.app(settings)
    return [
        client(made, peer=peer).get("/", headers={"X-Forwarded-For": value}).status_code
        for value in forwarded
    ]


def test_a_forwarded_address_counts_only_from_a_trusted_proxy() -> None:
    each = [f"198.51.100.{n}" for n in range(3)]
    assert peers(slow(), "10.0.0.7", each) == [200, 200, 429]
    trusting = slow(trusted_proxies=("10.0.0.0/8",))
    assert peers(trusting, "10.0.0.7", each) == [200, 200, 200]
    assert peers(trusting, "203.0.113.5", each) == [200, 200, 429]
    # What the client wrote before the proxy's own entry names nobody.
    spoofed = [f"{address}, 203.0.113.5" for address in each]
    assert peers(trusting, "10.0.0.7", spoofed) == [200, 200, 429]


def test_the_server_itself_believes_no_forwarded_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    set_environment()
    with page_server.running(edge_app.app(slow())) as url:
        codes = [
            httpx.get(
                url, headers={"X-Forwarded-For": f"198.51.100.{n}"}, trust_env=False
            ).status_code
            for n in range(3)
        ]
    assert codes == [200, 200, 429]


def test_a_proxy_at_a_listener_for_both_protocols_is_trusted_as_what_it_is() -> None:
    trusting = slow(trusted_proxies=("10.0.0.0/8",))
    each = [f"198.51.100.{n}" for n in range(3)]
    assert peers(trusting, "::ffff:10.0.0.7", each) == [200, 200, 200]
    mapped = [f"::ffff:{address}" for address in each]
    assert peers(trusting, "10.0.0.7", [each[0], mapped[0], each[0]]) == [200, 200, 429]


def test_an_inner_proxy_is_trusted_as_it_is_written() -> None:
    trusting = slow(trusted_proxies=("10.0.0.0/8", "2001:db8::/32"))
    for inner in ("10.0.0.9", "::ffff:10.0.0.9", "::ffff:a00:9", "2001:db8::9"):
        chains = [f"198.51.100.{n}, {inner}" for n in range(3)]
        assert peers(trusting, "::ffff:10.0.0.7", chains) == [200, 200, 200], inner
        chains = [f"198.51.100.{n}, 203.0.113.5, {inner}" for n in range(3)]
        assert peers(trusting, "10.0.0.7", chains) == [200, 200, 429], inner


def test_a_wrong_network_of_proxies_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"write 10\.0\.0\.7 or 10\.0\.0\.0/8"):
        EdgeConfig(trusted_proxies=("proxy.example",))


@given(st.ip_addresses(v=4), st.ip_addresses(v=4))
def test_every_ipv4_client_is_one_of_its_own_at_a_listener_for_both_protocols(
    one: IPv4Address, other: IPv4Address
) -> None:
    assert network_of(f"::ffff:{one}") == network_of(str(one)) == str(one)
    assert network_of(f"::FFFF:{int(one) >> 16:x}:{int(one) & 0xFFFF:x}") == str(one)
    assert (network_of(f"::ffff:{one}") == network_of(f"::ffff:{other}")) == (one == other)
    for translated in ("64:ff9b::", "::ffff:0:"):
        assert network_of(f"{translated}{one}") == str(one)
        assert not is_loopback(f"{translated}{one}")


def test_addresses_of_one_ipv6_network_are_one_client() -> None:
    made = edge_app.app(slow())
    codes = [client(made, peer=f"2001:db8::{n}").get("/").status_code for n in range(1, 4)]
    assert codes == [200, 200, 429]
    assert client(made, peer="2001:db8:0:1::1").get("/").status_code == 200
