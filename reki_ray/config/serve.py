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
from reki_ray.config.secrets import HIDDEN, without_secrets
from reki_ray.config.train import Arm
from reki_ray.errors import ConfigError

MAX_LIST: Final = 10_000
"""Longest list that any configuration allows in a request."""

LOOKUP_SHARE: Final = 0.4
"""Share of a request's time for the lookup; most of the rest goes to the scorer."""


class VersionSettings(Section):
    """Versions that replicas serve and keep open."""

    version: int | None = Field(None, ge=1)
    """The only version to serve; null follows what is promoted."""
    kept_versions: int = Field(3, ge=1)
    """Versions a replica keeps open: the promoted one, the one compared with it or those of an
    experiment, and one to roll back to. An experiment that needs more is refused."""


class GraphSettings(VersionSettings):
    """Versions, request limits, replicas, scaling and queues of the graph."""

    max_candidates: int = Field(1000, ge=1, le=MAX_LIST, description="Most candidates per request.")
    max_history: int = Field(200, ge=0, le=MAX_LIST, description="Most interactions per request.")
    max_recommended: int = Field(100, ge=1, le=MAX_LIST)
    """Most items per recommendation."""
    retrieved: int = Field(200, ge=1, le=MAX_LIST)
    """Items scored for one recommendation."""
    max_ongoing_requests: int = Field(64, ge=1)
    """Concurrent requests per gateway and kind (scores and recommendations, events, reads); more
    are answered 503 at once."""
    timeout_seconds: float = Field(2.0, gt=0, description="Deadline of a request, seconds.")
    gateway_replicas: int = Field(1, ge=1, description="Minimum number of gateway replicas.")
    lookup_replicas: int = Field(1, ge=1, description="Minimum number of lookup replicas.")
    scorer_replicas: int = Field(1, ge=1, description="Minimum number of scorer replicas.")
    max_replicas: int | None = Field(None, ge=1)
    """Maximum replicas per deployment under load; null: no autoscaling."""
    target_ongoing_requests: float = Field(8.0, gt=0)
    """Ongoing requests per replica that autoscaling aims at."""
    max_queued_requests: int = Field(64, ge=1)
    """Calls that wait in a gateway for a busy deployment; more are refused."""
    max_batch_size: int = Field(16, ge=1, description="Most requests per forward pass.")
    node_resource: str | None = Field(None, min_length=1, json_schema_extra=OPERATIONAL)
    """Custom resource of the nodes that have the published versions, such as vectors of `ray start
    --resources '{"vectors": 1}'`: replicas run only on these. Null: all nodes have them."""

    @model_validator(mode="after")
    def _max_is_at_least_min(self) -> Self:
        least = max(self.gateway_replicas, self.lookup_replicas, self.scorer_replicas)
        if self.max_replicas is not None and self.max_replicas < least:
            raise ValueError(f"max_replicas is {self.max_replicas}, below the minimum of {least}")
        return self

    @property
    def lookup_seconds(self) -> float:
        """Time for the first of two attempts of the lookup."""
        return LOOKUP_SHARE * self.timeout_seconds / 2


EventRule = Literal["own", "positive"] | float

"""Rating of an event without one: none, a positive one, or a number."""


class RetrievalConfig(Section):
    """How candidates of recommendations are found, and what is learned for it at publication."""

    kind: Literal["two_tower", "popular"] = "two_tower"
    """two_tower: items near the user, by vectors that are learned at publication; popular: the most
    popular ones for everybody."""
    dimension: int = Field(64, ge=2, description="Length of the vectors of users and items.")
    history: int = Field(10, ge=1)
    """Latest liked interactions that a user's vector is made of, among those that publish.history
    keeps."""
    epochs: int = Field(10, ge=1, description="Passes over the positive training samples.")
    max_samples: int = Field(3_000_000, ge=1)
    """Most samples that are shown in all epochs together; some 50,000 take a second on one core."""
    batch_size: int = Field(1024, ge=2)
    """Samples per step; each has the items of the others as negatives."""
    learning_rate: float = Field(1e-2, gt=0, description="Peak rate of Adam.")
    id_dropout: float = Field(0.05, ge=0, lt=1)
    """Share of a step's items shown without what was learned of their id, as an item is that comes
    later."""
    exact_below: int = Field(100_000, ge=0)
    """Catalogues below this size are searched whole, which is exact and takes a millisecond; larger
    ones get an approximate index (HNSW)."""


class PublishConfig(Section):
    """What a version stores."""

    arm: Arm | Literal["auto"] = "auto"
    """Arm to serve; auto takes the knowledge arm best on validation."""
    compare: Arm | None = None
    """Arm to publish as well, without promoting it, for the comparison on the service's page, such
    as fair_base; null: none."""
    history: int = Field(50, ge=1, description="Latest interactions kept per user for the scorer.")
    dtype: Literal["float32", "float16"] = "float32"
    """Stored type of vectors; float16 halves the files."""
    prestore: Literal["h", "r"] = "h"
    """h: augmented vectors; r: representations, which HEIN augments when served."""
    reranker: Reranker | Literal["auto", "none"] = "auto"
    """What orders recommendations: auto takes the reranker of train.rerankers that is best on
    validation, none keeps the order of the scores."""
    retrieval: RetrievalConfig = RetrievalConfig()


class AdapterSettings(Section):
    """Where replicas look up vectors."""

    kind: Literal["arrow", "lmdb", "redis"] = "arrow"
    """arrow: the version's own files, memory-mapped; lmdb: a folder; redis: a Redis or Valkey
    server. The last two are loaded when a version is published, or by `reki export`."""
    url: str = ""
    """Folder of lmdb, or URL of redis, such as redis://host:6379/0."""
    password: SecretStr | None = None
    """Password of redis, also if it is part of url; never shown. Null reads the variable
    password_env."""
    url_secrets: dict[str, SecretStr] = Field({}, json_schema_extra=OPERATIONAL)
    """Other secrets of redis by their names in the URL's query, such as ssl_password or username;
    also if they are part of url. Never shown."""
    password_env: str = Field("REKI_VECTORS_PASSWORD", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable with the password of redis, on every node that runs a replica; if unset,
    no password is sent."""
    namespace: str = Field("reki", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    """Prefix of every key, so that several stores can share a server."""
    timeout_seconds: float = Field(0.2, gt=0)
    """Timeout of a lookup on the server, seconds; below a fifth of serve.timeout_seconds, so that a
    server that hangs costs only the vectors."""

    @model_validator(mode="before")
    @classmethod
    def _secrets_leave_the_url(cls, content: object) -> object:
        if not isinstance(content, Mapping):
            return content
        fields = dict(content)
        if isinstance(fields.get("url"), str):
            fields["url"], secrets = without_secrets(fields["url"])
            password = secrets.pop("password", None)
            if password is not None and fields.get("password") is None:
                fields["password"] = password
            given = fields.get("url_secrets") or {}
            if isinstance(given, Mapping):
                given = {name: value for name, value in given.items() if value != HIDDEN}
                fields["url_secrets"] = {**secrets, **given}
        if fields.get("password") == HIDDEN:  # read back from shown settings
            fields["password"] = None
        return fields

    @model_validator(mode="after")
    def _url_is_given(self) -> AdapterSettings:
        if self.kind != "arrow" and not self.url:
            raise ValueError(f"kind {self.kind} needs url")
        if self.kind == "redis" and not _is_server(self.url):
            raise ValueError("url is none of a server; write it as redis://host:6379/0")
        return self

    def secret(self, environ: Mapping[str, str] = os.environ) -> str | None:
        """Return the password of the server, if any."""
        if self.password is not None:
            return self.password.get_secret_value()
        return environ.get(self.password_env) or None

    def require_in_time(self, limits: GraphSettings) -> None:
        """Raise ConfigError if the server's timeout exceeds that of the waiting lookup."""
        if self.kind == "redis" and self.timeout_seconds >= limits.lookup_seconds:
            raise ConfigError(
                f"a lookup has {limits.lookup_seconds:g} s of a request's "
                f"{limits.timeout_seconds:g} s, but its vector server may take "
                f"{self.timeout_seconds:g} s",
                where="store.vectors.timeout_seconds",
                todo=f"Set it below {limits.lookup_seconds:g}, or raise serve.timeout_seconds.",
            )

    def resolved(self) -> AdapterSettings:
        """Return settings for processes with another working directory."""
        if self.kind != "lmdb":
            return self
        return self.model_copy(update={"url": str(Path(self.url).resolve())})


def _is_server(url: str) -> bool:
    try:
        split = urlsplit(url)
        _ = split.port  # raises unless it is a number
    except ValueError:
        return False
    return split.scheme in ("redis", "rediss", "unix")


class StoreConfig(Section):
    """The store that replicas open."""

    vectors: AdapterSettings = AdapterSettings()


class ServeConfig(GraphSettings):
    """The online graph."""

    graph: Literal["composed", "fused"] = "composed"
    """composed: each part is a deployment that scales and fails by itself; fused: all parts in one
    replica, without calls between processes."""
    app: str | None = None
    """Import path of another application builder; null: the one of `graph`."""
    ingress: Literal["auto", "haproxy", "serve"] = "auto"
    """HTTP proxy: HAProxy or Ray Serve's own; auto takes HAProxy if installed."""
    host: str = Field("127.0.0.1", description="Address of the HTTP proxy.")
    port: int = Field(8000, ge=0, le=65535, description="Port of the HTTP proxy; 0: any free port.")
    edge: EdgeConfig = EdgeConfig()
    ship_seconds: float = Field(0.5, gt=0, le=60, json_schema_extra=OPERATIONAL)
    """Time between two shipments of new events and exposures to a workspace that is a URL, seconds:
    what the loss of a node's disk may cost."""
    measure_candidates: int = Field(100, ge=1, description="Candidates per measured request.")
    measure_requests: int = Field(200, ge=10, description="Measured requests in stage serve.")

    @model_validator(mode="after")
    def _is_closed_to_others(self) -> Self:
        self.edge.at(self.host)
        return self


class RefreshConfig(Section):
    """New versions from accumulated events, while the service runs."""

    enabled: bool = Field(False, description="Whether `reki serve` starts the refresher.")
    every_seconds: float = Field(3600.0, gt=0)
    """Longest time between two refreshes while events are waiting."""
    min_events: int = Field(10_000, ge=1)
    """Waiting interactions that start a refresh at once."""
    max_events: int = Field(200_000, ge=1)
    """Most interactions per refresh; they are held in memory."""
    poll_seconds: float = Field(5.0, gt=0, description="Time between two polls of the event log.")
    backoff_seconds: float = Field(30.0, gt=0)
    """Wait after a failure; doubles with each further failure."""
    max_backoff_seconds: float = Field(3600.0, gt=0, description="Longest wait after a failure.")
    keep_days: float = Field(30.0, ge=2)
    """Age at which processed events and exposures are removed from the logs, days; an experiment
    should end before."""
    events: dict[str, EventRule] = Field(
        {"click": "positive", "purchase": "positive", "rating": "own"}
    )
    """Types of events that count as interactions, and the rating of an event without one: own
    leaves it out, positive is halfway between data.positive_above and data.rating_max, a number is
    the rating itself. Prompts and histories show these like any other rating. Other types of events
    stay in the log."""
