"""What the endpoints for operators do: published versions, promotion, rollback."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from fastapi import Request, Response

from deployments.bulkhead import Bulkhead, FullError
from deployments.errors import RETRY_LATER, ApiError
from deployments.flows.version_router import VersionRouter
from deployments.http.json_route import json_response
from deployments.schemas import (
    AdminVersionsResponse,
    PromotedResponse,
    PromoteRequest,
    RollbackRequest,
    VersionInfo,
)
from reki_ray.errors import RekiError
from reki_ray.store.versions import MANIFEST, Manifest

MOVE_SECONDS: Final = 300.0
"""Longest time of a promotion, which reads all of a version; one is in work at a time, and one
rollback beside it: what is wrong with the served version must not wait for another one."""

READERS: Final = 4
READ_SECONDS: Final = 10.0

logger = logging.getLogger(__name__)


class Pointer(Protocol):
    """The versions, and which of them is promoted (`VersionStore`)."""

    def current(self) -> int:
        """Number of the promoted version."""

    def versions(self) -> list[int]:
        """Numbers of all versions."""

    def folder(self, version: int) -> Path:
        """Folder of a version."""

    def promote(self, number: int, /, *, expected: int | None = None) -> None:
        """Verify a version, and make it the promoted one, if the expected one still is."""

    def rollback(self, *, expected: int | None = None) -> int:
        """Make the version promoted before the promoted one again; returns its number."""


class Admin:
    """What operators may do.

    Args:
        store: The versions.
        served: What this replica serves.
    """

    def __init__(self, store: Pointer, served: VersionRouter) -> None:
        self._store = store
        self._served = served
        self._promotions = Bulkhead("promote", 1, MOVE_SECONDS)
        self._rollbacks = Bulkhead("rollback", 1, MOVE_SECONDS)
        self._reading = Bulkhead("list-versions", READERS, READ_SECONDS)

    async def versions(self) -> AdminVersionsResponse:
        """All published versions, the newest one first."""
        try:
            return await self._reading.run(self._describe)
        except OSError as error:  # TimeoutError among them
            raise _out_of_reach() from error

    async def promote(self, request: Request, body: PromoteRequest) -> Response:
        """Serve another version from now on, without a restart."""
        return await self._move(self._promotions, lambda: self._promote(body))

    async def rollback(self, request: Request, body: RollbackRequest | None = None) -> Response:
        """Serve the version that was promoted before this one."""
        expected = None if body is None else body.expected
        return await self._move(self._rollbacks, lambda: self._store.rollback(expected=expected))

    async def _move(self, bulkhead: Bulkhead, move: Callable[[], object]) -> Response:
        def moved() -> int:
            move()
            return self._store.current()

        try:
            current = await bulkhead.run(moved)
        except FullError as error:  # each reads whole versions: callers must not pile up
            raise ApiError(
                409, "busy", "Another call of this kind is in work; look at what came of it first."
            ) from error
        except RekiError as error:
            # What and what to do, but not where: paths of the machine are not the caller's.
            raise ApiError(409, "refused", f"{error.what}. {error.todo}") from error
        except TimeoutError as error:
            raise ApiError(
                504, "timeout", "This takes long and goes on; /v1/admin/versions shows its outcome."
            ) from error
        except OSError as error:
            raise _out_of_reach() from error
        await self._served.refresh()  # other gateways follow within one look at CURRENT
        answer = PromotedResponse(current=current, served=self._served.number)
        return json_response(answer.model_dump())

    def _promote(self, body: PromoteRequest) -> None:
        if body.version not in self._store.versions():
            raise ApiError(
                404,
                "unknown_version",
                "There is no such version; /v1/admin/versions lists them.",
            )
        # What is rolled back meanwhile stays so: it was meant to be the last word.
        expected = self._current() if body.expected is None else body.expected
        self._store.promote(body.version, expected=expected)

    def _current(self) -> int | None:
        try:
            return self._store.current()
        except (RekiError, OSError) as error:  # the versions are there all the same
            logger.error("the pointer cannot be read: %s", error)
            return None

    def _describe(self) -> AdminVersionsResponse:
        current = self._current()
        found = []
        for number in reversed(self._store.versions()):
            path = self._store.folder(number) / MANIFEST
            try:
                manifest = Manifest.model_validate_json(path.read_bytes())
            except (OSError, ValueError):  # removed or damaged: nothing to promote
                continue
            found.append(
                VersionInfo(
                    version=number,
                    arm=manifest.arm,
                    backbone=manifest.backbone,
                    model_version=manifest.model_fingerprint[:12],
                    users=manifest.users,
                    items=manifest.items,
                    created_at=manifest.created_at,
                    current=number == current,
                    served=number == self._served.number,
                )
            )
        return AdminVersionsResponse(versions=found)


def _out_of_reach() -> ApiError:
    return ApiError(
        503,
        "store_unavailable",
        "The disk with the versions fails; look at /v1/admin/versions before you ask again.",
        headers=RETRY_LATER,
    )
