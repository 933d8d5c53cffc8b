"""A backend with canned answers of the HTTP contract behind the real edge, for the page's tests."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI, Request

from deployments.errors import ApiError
from deployments.middleware.install import install_edge
from deployments.middleware.metrics import GatewayMetrics
from reki_ray.config.edge import EdgeSettings

USERS = ["u1", "ü/2", "<b>u3</b>"]
HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script>'
WRITTEN = 1_760_000_000
TITLES = {f"m{n}": f"Film {n}" for n in range(1, 31)} | {"m2": "Léon <i>(1994)</i>"}
ARMS = {1: "fair_base", 2: "reki_c", 3: "reki_c"}
UNLOADABLE = 1
"""Version whose promotion is refused."""

Json = dict[str, Any]


@dataclasses.dataclass
class FakeService:
    """What the canned answers depend on; tests change it between calls.

    Args:
        variants: Of the running experiment, with their versions; empty where none runs.
        promoted: Numbers of promoted versions, the served one last.
        retrieves: Whether there is a retriever.
        compared: Version that is kept to compare the served one with; None without.
    """

    variants: dict[str, int] = dataclasses.field(default_factory=dict)
    promoted: list[int] = dataclasses.field(default_factory=lambda: [2, 3])
    retrieves: bool = True
    compared: int | None = None

    @property
    def current(self) -> int:
        return self.promoted[-1]

    def recommend(self, body: Json) -> Json:
        if not self.retrieves:
            raise ApiError(404, "no_retrieval", "This graph has no retriever.")
        number = self._version_for(body)
        first, step = (0, 2) if ARMS[number] == "fair_base" else (6, 3)
        items = [f"m{1 + (first + step * place) % 30}" for place in range(body["k"])]
        entries = [
            {
                "item_id": item,
                "title": TITLES[item],
                "score": 0.9 - 0.02 * n,
                "source": "individual",
            }
            for n, item in enumerate(items)
        ]
        return {**self._answer(body, number), "items": entries}

    def score(self, body: Json) -> Json:
        number = self._version_for(body)
        entries = [
            {"item_id": item, "score": self._score(item, number), "source": "individual"}
            for item in body["candidates"]
        ]
        return {**self._answer(body, number), "scores": entries}

    def _score(self, item: str, number: int) -> float:
        return int(item[1:]) / 100 if ARMS[number] == "fair_base" else 0.25 + int(item[1:]) / 200

    def _version_for(self, body: Json) -> int:
        if body["user_id"] == "broken":
            raise ApiError(503, "scorer_unavailable", "No scorer can be reached; ask again.")
        name = body.get("variant")
        if name is not None and name not in self.variants:
            raise ApiError(422, "unknown_variant", "The running experiment has no such variant.")
        return self.variants[name] if name else self.open_one(body.get("store_version"))

    def open_one(self, store_version: str | None) -> int:
        if store_version is None:
            return self.current
        kept = {self.current, *self.variants.values(), self.compared} - {None}
        if store_version not in {f"v{number}" for number in kept}:
            raise ApiError(422, "version_not_open", "This version is not kept open here.")
        return int(store_version.removeprefix("v"))

    def _answer(self, body: Json, number: int) -> Json:
        return {
            "request_id": "r",
            "model_version": f"{number:012x}",
            "store_version": f"v{number}",
            "variant": body.get("variant") or ARMS[number],
            "user": {"source": "cluster" if body["user_id"] in USERS else "fallback"},
            "degraded": False,
        }

    def knowledge(self, side: str, subject_id: str, store_version: str | None) -> Json:
        number = self.open_one(store_version)
        known = subject_id in (USERS if side == "users" else TITLES)
        if not known:
            raise ApiError(404, "unknown_id", f"The store knows no such id among its {side}.")
        kind = "user_cluster" if side == "users" else "item"
        texts = {
            "genre": "Prefers slow dramas with a strong sense of place.",
            "director": f"Returns to the same few directors. {HOSTILE}",
        }
        return {
            "id": subject_id,
            "side": side,
            "title": TITLES.get(subject_id) if side == "items" else None,
            "attributes": {"gender": ["F"], "age": ["25-34"]}
            if side == "users"
            else {"genre": ["Drama", "Crime"]},
            "source": "cluster" if side == "users" else "individual",
            "cluster_id": "u0007" if side == "users" else None,
            "knowledge": [
                {
                    "subject_kind": kind,
                    "subject_id": "u0007" if side == "users" else subject_id,
                    "factor": factor,
                    "text": text,
                    "model": "a-small-model",
                    "created_at": WRITTEN,
                }
                for factor, text in texts.items()
                if ARMS[number].startswith("reki")
            ],
            "store_version": f"v{number}",
        }

    def versions(self) -> Json:
        return {
            "versions": [
                {
                    "version": number,
                    "arm": ARMS[number],
                    "backbone": "din",
                    "model_version": f"{number:012x}",
                    "users": 943,
                    "items": 1682,
                    "created_at": WRITTEN + 86_400 * number,
                    "current": number == self.current,
                    "served": number == self.current,
                }
                for number in sorted(ARMS, reverse=True)
            ],
        }

    def promote(self, number: int) -> Json:
        if number == UNLOADABLE:
            raise ApiError(409, "refused", f"v{number} is damaged. Publish it again.")
        self.promoted.append(number)
        return {"current": self.current, "served": self.current}

    def rollback(self) -> Json:
        if len(self.promoted) < 2:
            raise ApiError(409, "nothing_before", "No version was promoted before this one.")
        self.promoted.pop()
        return {"current": self.current, "served": self.current}


def build(service: FakeService, settings: EdgeSettings) -> FastAPI:
    """The application; failures have the form of the real one."""
    app = FastAPI(docs_url=None, redoc_url=None)
    install_edge(app, settings, GatewayMetrics("page-test"))

    @app.get("/v1/versions")
    async def served() -> Json:
        variants = [
            {"name": name, "version": number, "arm": ARMS[number]}
            for name, number in service.variants.items()
        ]
        compared = service.compared and {
            "name": ARMS[service.compared],
            "version": service.compared,
            "arm": ARMS[service.compared],
        }
        return {
            "current": service.current,
            "arm": ARMS[service.current],
            "variants": variants,
            "compared": compared,
        }

    @app.get("/v1/sample")
    async def sample() -> Json:
        items = [{"item_id": item, "title": title} for item, title in TITLES.items()]
        return {"users": USERS, "items": items, "store_version": f"v{service.current}"}

    @app.post("/v1/recommend")
    async def recommend(request: Request, body: Json) -> Json:
        answer = service.recommend(body)
        request.state.variant, request.state.version = answer["variant"], answer["store_version"]
        return answer

    @app.post("/v1/score")
    async def score(body: Json) -> Json:
        return service.score(body)

    @app.get("/v1/{side}/{subject_id:path}/knowledge")
    async def knowledge(side: str, subject_id: str, store_version: str | None = None) -> Json:
        return service.knowledge(side, subject_id, store_version)

    @app.get("/v1/admin/versions")
    async def versions() -> Json:
        return service.versions()

    @app.post("/v1/admin/promote")
    async def promote(body: Json) -> Json:
        return service.promote(body["version"])

    @app.post("/v1/admin/rollback")
    async def rollback() -> Json:
        return service.rollback()

    return app


@contextlib.contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """The application behind a real HTTP server on a free port; yields the base URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()
