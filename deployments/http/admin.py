"""Endpoints for operators: published versions, promotion, rollback."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from fastapi import Request, Response

from deployments.bulkhead import Bulkhead, FullError
from deployments.errors import ApiError, retry_later
from deployments.flows.version_router import VersionRouter
from deployments.http.json_route import json_response
from deployments.schemas import (
    AdminVersionsResponse,
    PromotedResponse,
    PromoteRequest,
    RollbackRequest,
    VersionInfo,
)
from reki_ray.errors import RekiError, StoreError
from reki_ray.store.versions import VersionStore

MOVE_SECONDS: Final = 300.0
"""Timeout of a promotion, which reads a whole version. One promotion runs at a time, and one
rollback beside it: a rollback must not wait for a promotion."""

READERS: Final = 4
READ_SECONDS: Final = 10.0

logger = logging.getLogger(__name__)


class Admin:
    """The endpoints, over the store and what this replica serves."""

    def __init__(self, store: VersionStore, router: VersionRouter) -> None:
        self._store = store
        self._router = router
        self._promotions = Bulkhead("promote", 1, MOVE_SECONDS)
        self._rollbacks = Bulkhead("rollback", 1, MOVE_SECONDS)
        self._reads = Bulkhead("list-versions", READERS, READ_SECONDS)

    async def versions(self) -> AdminVersionsResponse:
        """List all published versions, the newest one first."""
        try:
            return await self._reads.run(self._describe)
        except (OSError, StoreError) as error:  # TimeoutError among them
            raise _store_unavailable() from error

    async def promote(self, request: Request, body: PromoteRequest) -> Response:
        """Serve another version from now on, without a restart."""
        return await self._move(self._promotions, lambda: self._promote(body))

    async def rollback(self, request: Request, body: RollbackRequest | None = None) -> Response:
        """Serve the version that was promoted before the current one."""
        expected = None if body is None else body.expected
        return await self._move(self._rollbacks, lambda: self._store.rollback(expected=expected))

    async def _move(self, bulkhead: Bulkhead, move: Callable[[], object]) -> Response:
        def moved() -> int:
            move()
            return self._store.current()

        try:
            current = await bulkhead.run(moved)
        except FullError as error:  # each reads whole versions
            raise ApiError(
                409, "busy", "Another call of this kind is running; check its outcome first."
            ) from error
        except RekiError as error:
            # Without `where`: callers must not see paths of the machine.
            raise ApiError(409, "refused", f"{error.what}. {error.todo}") from error
        except TimeoutError as error:
            raise ApiError(
                504, "timeout", "This continues; /v1/admin/versions shows its outcome."
            ) from error
        except OSError as error:
            raise _store_unavailable() from error
        await self._router.refresh()  # other gateways follow at their next poll of CURRENT
        answer = PromotedResponse(current=current, served=self._router.number)
        return json_response(answer.model_dump())

    def _promote(self, body: PromoteRequest) -> None:
        if body.version not in self._store.versions():
            raise ApiError(
                404,
                "unknown_version",
                "There is no such version; /v1/admin/versions lists them.",
            )
        # A rollback meanwhile has priority.
        expected = self._current() if body.expected is None else body.expected
        self._store.promote(body.version, expected=expected)

    def _current(self) -> int | None:
        try:
            return self._store.current()
        except (RekiError, OSError) as error:  # the versions are still there
            logger.error("cannot read the pointer: %s", error)
            return None

    def _describe(self) -> AdminVersionsResponse:
        current = self._current()
        versions = []
        for number in reversed(self._store.versions()):
            try:
                manifest = self._store.manifest(number)
            except StoreError:  # removed or damaged: cannot be promoted
                continue
            versions.append(
                VersionInfo(
                    version=number,
                    arm=manifest.arm,
                    backbone=manifest.backbone,
                    model_version=manifest.model_fingerprint[:12],
                    users=manifest.users,
                    items=manifest.items,
                    created_at=manifest.created_at,
                    current=number == current,
                    served=number == self._router.number,
                )
            )
        return AdminVersionsResponse(versions=versions)


def _store_unavailable() -> ApiError:
    return retry_later(
        "store_unavailable",
        "The disk with the versions fails; check /v1/admin/versions before trying again.",
    )
