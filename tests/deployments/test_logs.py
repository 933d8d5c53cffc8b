"""One JSON line a request; nobody's ids, items, bodies or tokens in it."""

from __future__ import annotations

import io
import json
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deployments.middleware import logs
from reki_ray.config.edge import EdgeSettings
from reki_ray.core import run_log
from reki_ray.errors import StoreError
from tests.support import edge_app
from tests.support.edge_app import TOKEN, client

Written = Callable[[], str]

SETTINGS = EdgeSettings(host="0.0.0.0")


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("REKI_TOKEN", TOKEN)
    yield
    for name in logs.LOGGERS:
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Written:
    return lambda: capsys.readouterr().err


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_request_writes_one_line(written: Written) -> None:
    made = client(edge_app.app(SETTINGS), TOKEN)
    made.post("/v1/score?user=u17", content=b'{"user_id": "u17"}', headers={"X-Request-ID": "r-1"})
    [line] = lines(written())
    assert line.pop("milliseconds") > 0
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "INFO",
        "logger": "deployments.middleware.request_context",
        "message": "request",
        "request_id": "r-1",
        "replica": "replica-1",
        "node": socket.gethostname(),
        "run_id": run_log.run_id(),
        "method": "POST",
        "route": "/v1/score",
        "status": 200,
        "variant": "reki_c",
        "version": "v3",
        "caller": "user",
    }


def test_no_line_holds_ids_bodies_tokens_or_addresses(written: Written) -> None:
    made = edge_app.app(SETTINGS)
    for token in (TOKEN, "wrong-0123456789abcdef"):
        asking = client(made, token)
        asking.get("/v1/users/u17/knowledge")
        asking.get("/v1/nothing/u17?q=u17")
        asking.post("/v1/score", content=b"u17", headers={"X-Request-ID": "u17 forged"})
    text = written()
    assert len(lines(text)) == 7  # the defect has a line of its own
    for secret in ("u17", TOKEN, "wrong", "203.0.113.5"):
        assert secret not in text


def test_refused_requests_are_told_by_their_route(written: Written) -> None:
    client(edge_app.app(SETTINGS)).get("/v1/users/u17/knowledge")
    [line] = lines(written())
    assert (line["status"], line["route"]) == (401, "/v1/users/{user_id:path}/knowledge")
    assert "variant" not in line


def test_a_defect_is_told_by_type_and_place(written: Written) -> None:
    answer = client(edge_app.app(SETTINGS), TOKEN).get("/v1/users/u17/knowledge")
    defect, request = lines(written())
    assert defect["level"] == "ERROR"
    assert defect["request_id"] == request["request_id"] == answer.headers["x-request-id"]
    [told] = defect["errors"]
    assert told["type"] == "KeyError"
    assert any("edge_app.py" in line for line in told["lines"])
    assert (request["level"], request["status"]) == ("WARNING", 500)


def test_lines_of_the_code_below_carry_the_request_id(written: Written) -> None:
    made = edge_app.app(SETTINGS)

    @made.get("/v1/warns")
    async def warns() -> dict[str, str]:
        logging.getLogger("reki_ray.store").warning("slow disk")
        return {}

    client(made, TOKEN).get("/v1/warns", headers={"X-Request-ID": "r-2"})
    logging.getLogger("reki_ray.store").warning("between requests")
    found = {line["message"]: line["request_id"] for line in lines(written())}
    assert found == {"slow disk": "r-2", "request": "r-2", "between requests": None}


def test_errors_for_operators_keep_their_message() -> None:
    stream = io.StringIO()
    logger = logging.Logger("deployments.x")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonFormatter("replica-1"))
    logger.addHandler(handler)
    try:
        try:
            raise KeyError("u17")
        except KeyError as error:
            raise StoreError("v3 is damaged", where="v3/items", todo="Publish again.") from error
    except StoreError:
        logger.exception("a version\nis refused")
    [line] = lines(stream.getvalue())
    assert line["message"] == "a version\nis refused"
    assert [told["type"] for told in line["errors"]] == ["StoreError", "KeyError"]
    assert "Publish again." in line["errors"][0]["message"]
    assert "u17" not in stream.getvalue()


def test_request_lines_can_be_left_out(written: Written) -> None:
    quiet = SETTINGS.model_copy(update={"request_logs": False})
    client(edge_app.app(quiet), TOKEN).post("/v1/score")
    assert written() == ""


def test_a_second_installation_does_not_double_the_lines(written: Written) -> None:
    edge_app.app(SETTINGS)
    client(edge_app.app(SETTINGS), TOKEN).post("/v1/score")
    assert len(lines(written())) == 1
