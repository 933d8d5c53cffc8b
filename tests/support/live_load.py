"""A constant, bounded load on a live graph, by clients that ask again once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from deployments import load_check
from reki_ray.models.candidate_scorer import UserInput
from reki_ray.store.versions import STORE_FOLDER, VersionStore
from tests.support import store_factory
from tests.support.live_graph import LiveGraph, wait_until

CLIENTS = 3
MOST_REQUESTS = 5000
"""A client's; a load ends with them also where its test would not end it."""

PAUSE_SECONDS = 0.02
"""Between two requests of a client: the load is constant, not as much as there can be."""

BODY = {"user_id": "u0", "candidates": [*store_factory.ITEM_IDS, "unknown"]}


@dataclass(frozen=True)
class Answer:
    """What a client got in the end, and whether it had to ask again."""

    status: int
    body: dict[str, Any]
    repeated: bool


class Load:
    """Clients that score the same candidates again and again.

    Args:
        graph: Whom they ask.
    """

    def __init__(self, graph: LiveGraph) -> None:
        self._graph = graph
        self._stop = threading.Event()
        self.answers: list[Answer] = []

    @contextmanager
    def running(self) -> Iterator[Load]:
        """The load for the work in the block, which begins when answers come."""
        threads = [threading.Thread(target=self._ask_on) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            self.wait_for_more()
            yield self
            self.wait_for_more()
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def wait_for_more(self, count: int = 30) -> None:
        """Go on when so many further answers have come."""
        before = len(self.answers)
        wait_until(lambda: len(self.answers) >= before + count)

    def _ask_on(self) -> None:
        with self._graph.client() as client:
            for _ in range(MOST_REQUESTS):
                if self._stop.wait(PAUSE_SECONDS):
                    return
                self.answers.append(ask(client))


def ask(client: httpx.Client) -> Answer:
    """Score; ask once more, when the answer says, where the service has failed."""
    answer = _post(client)
    repeated = answer is None or answer.status_code >= 500
    if repeated:
        time.sleep(1 if answer is None else int(answer.headers.get("Retry-After", 1)))
        answer = _post(client)
    if answer is None:
        return Answer(0, {}, repeated)
    body = answer.json() if answer.is_success else {"text": answer.text}
    return Answer(answer.status_code, body, repeated)


def _post(client: httpx.Client) -> httpx.Response | None:
    try:
        return client.post("/v1/score", json=BODY)
    except httpx.TransportError:
        return None


class Truth:
    """Scores that versions have to give, computed without the service.

    Args:
        root: Folder of the run.
        numbers: The versions.
    """

    def __init__(self, root: Path, *numbers: int) -> None:
        store = VersionStore(root / STORE_FOLDER)
        self._scores: dict[tuple[str, bool], Any] = {}
        for number in numbers:
            version = store.open(number)
            assert version.users is not None
            known = load_check.user_input(version, "u0")
            users = {False: known, True: UserInput(None, [], version.users.fallback)}
            scorer = version.load_scorer()
            for degraded, user in users.items():
                found = scorer.score(user, BODY["candidates"])
                self._scores[version.name, degraded] = found

    def check(self, answers: list[Answer]) -> None:
        """Every answer is a success with the scores of the one version that it names."""
        assert {answer.status for answer in answers} == {200}, _failures(answers)
        for body in (answer.body for answer in answers):
            np.testing.assert_allclose(
                [entry["score"] for entry in body["scores"]],
                self._scores[body["store_version"], body["degraded"]],
                atol=1e-6,
            )


def _failures(answers: list[Answer]) -> list[Answer]:
    return [answer for answer in answers if answer.status != 200][:5]
