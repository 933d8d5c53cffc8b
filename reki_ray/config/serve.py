"""Sections of the store and the online graph."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from reki_ray.config.base import OPERATIONAL, Section
from reki_ray.config.edge import EdgeConfig
from reki_ray.config.rerank import Reranker
from reki_ray.config.retrieval import RetrievalConfig
from reki_ray.config.secrets import HIDDEN, without_secrets
from reki_ray.config.train import Arm
from reki_ray.errors import ConfigError

MAX_LIST: Final = 10_000

"""No configuration may allow longer lists in a request."""


LOOKUP_SHARE: Final = 0.4

"""Share of a request's time that the lookup may take; most is left to the scorer."""


class RequestLimits(Section):
    """Limits of the HTTP interface."""

    max_candidates: int = Field(
        1000, ge=1, le=MAX_LIST, description="Candidates a request may name."
    )
    max_history: int = Field(
        200, ge=0, le=MAX_LIST, description="Interactions a request may carry."
    )
    max_recommended: int = Field(
        100, ge=1, le=MAX_LIST, description="Items that may be recommended at once."
    )
    retrieved: int = Field(
        200, ge=1, le=MAX_LIST, description="Items that are scored for one recommendation."
    )
    max_ongoing_requests: int = Field(
        64,
        ge=1,
        description="Requests of a kind that a gateway works on at once: scores and "
        "recommendations, events, and what is read; more are answered 503 at once.",
    )
    timeout_seconds: float = Field(2.0, gt=0, description="Time budget of a request, seconds.")

    @property
    def lookup_seconds(self) -> float:
        """Time of the lookup in a request, the first of two attempts."""
        return LOOKUP_SHARE * self.timeout_seconds / 2


class GraphSettings(RequestLimits):
    """Version, replicas, scaling, queues and limits of the graph."""

    version: int | None = Field(
        None, ge=1, description="The only version to serve; null follows what is promoted."
    )
    kept_versions: int = Field(
        3,
        ge=1,
        description="Opened versions kept in a replica: the promoted one, the one compared with it "
        "or those of an experiment, and one to turn to. An experiment that needs more is refused.",
    )
    gateway_replicas: int = Field(1, ge=1, description="Replicas of the gateway, at least.")
    lookup_replicas: int = Field(1, ge=1, description="Replicas of the lookup, at least.")
    scorer_replicas: int = Field(1, ge=1, description="Replicas of the scorer, at least.")
    max_replicas: int | None = Field(
        None, ge=1, description="Most replicas of a deployment under load; null: no autoscaling."
    )
    target_ongoing_requests: float = Field(
        8.0, gt=0, description="Requests in progress per replica that autoscaling aims at."
    )
    max_queued_requests: int = Field(
        64, ge=1, description="Calls that wait in a gateway for a busy part; more are refused."
    )
    max_batch_size: int = Field(16, ge=1, description="Most requests per forward pass.")
    node_resource: str | None = Field(
        None,
        min_length=1,
        description="Custom resource of the nodes that have the published versions, as vectors of "
        "`ray start --resources '{\"vectors\": 1}'`: replicas run on these alone. Null: all have.",
        json_schema_extra=OPERATIONAL,
    )

    @model_validator(mode="after")
    def _ranges_are_no_empty_ones(self) -> Self:
        least = max(self.gateway_replicas, self.lookup_replicas, self.scorer_replicas)
        if self.max_replicas is not None and self.max_replicas < least:
            raise ValueError(f"max_replicas is {self.max_replicas}, but {least} are asked for")
        return self


EventRule = Literal["own", "positive"] | float

"""Rating of an event that has none: none at all, a positive one, or a number."""


class PublishConfig(Section):
    """What is prestored."""

    arm: Arm | Literal["auto"] = Field(
        "auto", description="Arm to serve; auto takes the knowledge arm best on validation."
    )
    compare: Arm | None = Field(
        None,
        description="Arm to publish beside it, not promoted, for the comparison that the "
        "service's page shows, as fair_base; null: none.",
    )
    history: int = Field(50, ge=1, description="Latest interactions kept per user for the scorer.")
    dtype: Literal["float32", "float16"] = Field(
        "float32", description="Stored type of vectors; float16 halves the files."
    )
    prestore: Literal["h", "r"] = Field(
        "h",
        description="h: augmented vectors; r: representations, which HEIN augments when served.",
    )
    reranker: Reranker | Literal["auto", "none"] = Field(
        "auto",
        description="What puts recommendations in order: auto takes the reranker best on "
        "validation of those in train.rerankers, none keeps the order of the scores.",
    )
    retrieval: RetrievalConfig = RetrievalConfig()


class AdapterSettings(Section):
    """Where replicas look vectors up."""

    kind: Literal["arrow", "lmdb", "redis"] = Field(
        "arrow",
        description="arrow: the version's own files, memory-mapped; lmdb: a folder; redis: a Redis "
        "or Valkey server. The last two are loaded when a version is published, or by "
        "`reki export`.",
    )
    url: str = Field("", description="Folder of lmdb, or URL of redis, as redis://host:6379/0.")
    password: SecretStr | None = Field(
        None,
        description="Password of redis, also if it is in url; shown nowhere. Null takes "
        "the variable password_env.",
    )
    url_secrets: dict[str, SecretStr] = Field(
        {},
        json_schema_extra=OPERATIONAL,
        description="Other secrets of redis by the names of its URL's query, as ssl_password or "
        "username; also where they stand in url. Shown nowhere.",
    )
    password_env: str = Field(
        "REKI_VECTORS_PASSWORD",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable with the password of redis, on every node that runs a "
        "replica; not set, none is sent.",
    )
    namespace: str = Field(
        "reki",
        pattern=r"^[A-Za-z0-9_.-]{1,64}$",
        description="Begin of every key, so that several stores can share a server.",
    )
    timeout_seconds: float = Field(
        0.2,
        gt=0,
        description="Time that a lookup on the server may take, seconds; shorter than a fifth of "
        "serve.timeout_seconds, so that a server that hangs costs no more than its vectors.",
    )

    @model_validator(mode="before")
    @classmethod
    def _secrets_leave_the_url(cls, content: object) -> object:
        # Whatever the kind: the URL of a server may be left from before.
        if not isinstance(content, Mapping):
            return content
        found = dict(content)
        if isinstance(found.get("url"), str):
            found["url"], secrets = without_secrets(found["url"])
            password = secrets.pop("password", None)
            if password is not None and found.get("password") is None:
                found["password"] = password
            given = found.get("url_secrets") or {}
            if isinstance(given, Mapping):
                given = {name: value for name, value in given.items() if value != HIDDEN}
                found["url_secrets"] = {**secrets, **given}
        if found.get("password") == HIDDEN:  # out of something that was shown
            found["password"] = None
        return found

    @model_validator(mode="after")
    def _url_is_given(self) -> AdapterSettings:
        if self.kind != "arrow" and not self.url:
            raise ValueError(f"kind {self.kind} needs url")
        if self.kind == "redis" and not _is_server(self.url):
            raise ValueError("url is none of a server; write it as redis://host:6379/0")
        return self

    def secret(self, environ: Mapping[str, str] = os.environ) -> str | None:
        """Password of the server; None where none is set."""
        if self.password is not None:
            return self.password.get_secret_value()
        return environ.get(self.password_env) or None

    def require_in_time(self, limits: RequestLimits) -> None:
        """Refuse a server that may take longer than the lookup, which would then answer nothing.

        Raises:
            ConfigError: It may.
        """
        if self.kind == "redis" and self.timeout_seconds >= limits.lookup_seconds:
            raise ConfigError(
                f"a lookup may take {limits.lookup_seconds:g} s of a request's "
                f"{limits.timeout_seconds:g} s, its server of vectors alone "
                f"{self.timeout_seconds:g} s",
                where="store.vectors.timeout_seconds",
                todo=f"Set it below {limits.lookup_seconds:g}, or raise serve.timeout_seconds.",
            )

    def resolved(self) -> AdapterSettings:
        """The same for processes that work in another folder."""
        if self.kind != "lmdb":
            return self
        return self.model_copy(update={"url": str(Path(self.url).resolve())})


def _is_server(url: str) -> bool:
    try:
        split = urlsplit(url)
        _ = split.port  # raises where it is no number
    except ValueError:
        return False
    return split.scheme in ("redis", "rediss", "unix")


class StoreConfig(Section):
    """The store as replicas open it."""

    vectors: AdapterSettings = AdapterSettings()


class ServeConfig(GraphSettings):
    """The online graph."""

    graph: Literal["composed", "fused"] = Field(
        "composed",
        description="composed: each part is a deployment, which scales and fails by itself; "
        "fused: all parts in one replica, without a hop.",
    )
    app: str | None = Field(
        None, description="Import path of another application builder; null takes that of `graph`."
    )
    ingress: Literal["auto", "haproxy", "serve"] = Field(
        "auto",
        description="HTTP proxy: HAProxy, or that of Ray Serve; auto takes HAProxy where it is "
        "installed.",
    )
    host: str = Field("127.0.0.1", description="Address of the HTTP proxy.")
    port: int = Field(
        8000, ge=0, le=65535, description="Port of the HTTP proxy; 0 takes a free one."
    )
    edge: EdgeConfig = EdgeConfig()
    measure_candidates: int = Field(100, ge=1, description="Candidates per measured request.")
    measure_requests: int = Field(200, ge=10, description="Measured requests in stage serve.")

    @model_validator(mode="after")
    def _is_closed_to_others(self) -> Self:
        self.edge.at(self.host)
        return self


class RefreshConfig(Section):
    """New versions from accumulated events, while the service runs."""

    enabled: bool = Field(False, description="Whether `reki serve` starts the refresher.")
    every_seconds: float = Field(
        3600.0, gt=0, description="Waiting events are taken in this long after the last time."
    )
    min_events: int = Field(
        10_000, ge=1, description="Or at once, when so many interactions are waiting."
    )
    max_events: int = Field(
        200_000, ge=1, description="Most interactions of one batch; they are held in memory."
    )
    poll_seconds: float = Field(5.0, gt=0, description="Time between two looks at the event log.")
    backoff_seconds: float = Field(
        30.0, gt=0, description="Wait after a failure; it doubles with each further one."
    )
    max_backoff_seconds: float = Field(3600.0, gt=0, description="Longest wait after a failure.")
    keep_days: float = Field(
        30.0,
        ge=2,
        description="Age at which events that were taken in and exposures leave the logs, days; "
        "an experiment should end before.",
    )
    events: dict[str, EventRule] = Field(
        {"click": "positive", "purchase": "positive", "rating": "own"},
        description="Types of events that are interactions, and the rating of an event without "
        "one: own leaves it out, positive takes the middle between data.positive_above and "
        "data.rating_max, a number is taken as it is. Prompts and histories show these ratings "
        "as any other. Other types stay in the log and are never taken in.",
    )
