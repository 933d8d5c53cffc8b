"""Writes old_workspace.tar.gz: a finished run as the release before the move of modules left it.

    python -m tests.contracts.write_old_workspace FOLDER   # a new one, whose name is in the archive

Test `test_old_workspace` opens the archive. Write it again only when a format changes on purpose:
from then on nothing checks that workspaces written before can still be opened. Takes minutes, and
starts Ray several times.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import platform
import shutil
import socket
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import numpy as np
import pyarrow as pa

from deployments.load_check import user_input
from reki_ray.cli.main import app
from reki_ray.config import load_config
from reki_ray.core.ray_cluster import set_environment
from reki_ray.core.workspace import Workspace
from reki_ray.encoding.encoders import protocol
from reki_ray.events.log import Event, EventLog
from reki_ray.events.paths import OnlineFolders
from reki_ray.experiments.experiment import Experiment, load_experiment
from reki_ray.experiments.exposures import ExposureLog
from reki_ray.experiments.user_hash import open_hasher
from reki_ray.extraction.planner import prompting
from reki_ray.retrieval.load import open_candidates
from reki_ray.schema import (
    ATTRIBUTES,
    CLUSTERS,
    INTERACTIONS_SCHEMA,
    ITEM_ID,
    ITEMS_SCHEMA,
    SIDES,
    USER_ID,
    USERS_SCHEMA,
)
from reki_ray.schema import KNOWLEDGE_SCHEMA as ANSWERS_SCHEMA
from reki_ray.stages.pipeline import fingerprints
from reki_ray.store.deltas import Delta, NewVectors
from reki_ray.store.reranker import open_reranker
from reki_ray.store.tables import catalogue_table, knowledge_table, profiles_table
from reki_ray.store.version import StoreVersion
from reki_ray.store.versions import VersionStore

ROOT: Final = Path(__file__).parents[2]
ARCHIVE: Final = Path(__file__).with_name("old_workspace.tar.gz")
CONFIG, HALF, BLEND = "config.yaml", "half.yaml", "blend.yaml"
WORKSPACE, BLEND_WORKSPACE = "workspace", "blended"
EXPECTED: Final = "expected.json"

USERS, ITEMS, EVENTS = 40, 30, 22
COLOURS = ("amber", "blue", "crimson", "green")
BEGIN, LATER = 1_600_000_000, 1_610_000_000
SHOWN_USERS = ("u00", "u07", "ü 39", "new user", "nobody")
SHOWN_ITEMS = ("i00", "i11", "i 29", "new item", "i05")

_DATA: Final = """\
data:
  source:
    kind: csv
    interactions: data/interactions.csv
    items: data/items.csv
    users: data/users.csv
    columns:
      item_attributes: [colour, weight]
      user_attributes: [team]
  positive_above: 3.0
  max_quarantine_share: 0.05
split: {prompt_history: 8}
"""
_NETWORK: Final = """\
  seeds: [0]
  batch_size: 64
  history: 8
  base_history: 4
  buckets: {weight: 3}
  network: {embedding: 4, mlp: [8], attention: [4], cross_layers: 1}
  hein: {shared_experts: 1, dedicated_experts: 1, hidden: 4, output: 4}
"""
_SERVE: Final = """\
serve:
  app: deployments.graph:build_app
  port: 0
  edge: {allow_anonymous: true, request_logs: false}
  measure_candidates: 5
  measure_requests: 10
ray: {num_cpus: 2, object_store_mib: 256}
"""
CONFIGS: Final = {
    CONFIG: f"""\
name: old
workspace: {WORKSPACE}
{_DATA}
prompts: {{scenario: movies}}
cluster:
  method: hdbscan
  dimensions: 4
  users: {{min_cluster_size: 4}}
  items: {{min_cluster_size: 4}}
extract:
  mode: collective
  engine: {{kind: scripted}}
encode: {{backend: hashing, dimension: 16, model: "packaged:all-minilm-l6-v2"}}
train:
  backbones: [din, dcnv2]
  arms: [base, fair_base, reki_c]
  rerankers: [prm]
  tuned: tuned
  epochs: 2
{_NETWORK}\
  rerank:
    epochs: 2
    list_size: 6
    network: {{hidden: 4, heads: 1, layers: 1, feed_forward: 4}}
publish:
  arm: reki_c
  reranker: auto
  retrieval: {{kind: two_tower, dimension: 4, epochs: 2}}
evaluate: {{bootstrap: 100}}
{_SERVE}""",
    BLEND: f"""\
name: blended
workspace: {BLEND_WORKSPACE}
{_DATA}
prompts: {{scenario: products, form: json}}
cluster: {{method: kmeans, dimensions: 4, users: {{clusters: 4}}, items: {{clusters: 4}}}}
extract: {{mode: blend, min_interactions: 4, engine: {{kind: scripted}}}}
encode: {{backend: hashing, dimension: 16, by_factor: true, blend_events: 5}}
train:
  backbones: [deepfm]
  arms: [fair_base, reki_blend]
  epochs: 1
{_NETWORK}\
publish: {{arm: reki_blend, retrieval: {{kind: popular}}}}
{_SERVE}""",
}
TUNED: Final = """\
# reki tune: din, arm fair_base, seed 0, best of 5 trials.
din:
  learning_rate: 0.005
  network:
    embedding: 4
    mlp:
    - 6
"""


def describe(version: StoreVersion) -> dict[str, Any]:
    """All that a version says of some ids: `facts` to be equal, `numbers` to be close."""
    facts: dict[str, Any] = {
        "profiles": {user: _values(version.profile(user)) for user in SHOWN_USERS},
        "items": {item: _values(version.catalogue.get(item)) for item in SHOWN_ITEMS},
        "sizes": [len(version.profiles), len(version.catalogue), len(version.layers)],
    }
    numbers: dict[str, list[float]] = {}
    scorer, reranker = version.load_scorer(), open_reranker(version)
    candidates = open_candidates(version)
    known = [item for item in SHOWN_ITEMS if version.catalogue.get(item)]
    for side, ids, vectors in (
        ("users", SHOWN_USERS, version.users),
        ("items", SHOWN_ITEMS, version.items),
    ):
        [named] = [one for one in SIDES if one == side]
        for key in ids:
            facts[f"knowledge of {key}"] = [
                _values(entry) for entry in version.knowledge(named, key)
            ]
            facts[f"cluster of {key}"] = version.cluster_of(named, key)
        if vectors is not None:
            found, facts[f"sources of {side}"] = vectors.lookup(ids)
            numbers |= {
                f"vector of {key}": row.tolist() for key, row in zip(ids, found, strict=True)
            }
    for user in SHOWN_USERS:
        profile, asked = version.profile(user), user_input(version, user)
        numbers[f"scores for {user}"] = scorer.score(asked, known).tolist()
        history = [(item, rating) for item, rating, _ in profile.latest(20)] if profile else []
        facts[f"candidates for {user}"] = candidates.of(user, history, 5)
        if reranker is not None and profile is not None:
            mine = reranker.user_input(user, profile, asked.augmented)
            numbers[f"list of {user}"] = reranker.scorer.score(mine, known).tolist()
    return {"facts": facts, "numbers": numbers}


def identities() -> dict[str, Any]:
    """Names of stages, answers and vectors with the demo's models, which are not needed for it."""
    config = load_config("configs/movielens-100k.yaml")
    prompt_keys = prompting(config, Workspace(WORKSPACE)).prompt_keys
    with patch.object(protocol, "resolve_model", return_value="tuned"):  # any folder
        encoder = protocol.identify(config.encode)
    return {
        "fingerprints": fingerprints(config),
        "answer": prompt_keys.of("item", "a prompt"),
        "vectors": encoder.digest,
    }


def assignments(experiment: Experiment) -> dict[str, str]:
    """Variant of every user."""
    return {user: experiment.assign(user).name for user in _user_ids()}


def main() -> None:
    """Write the archive."""
    set_environment()
    project = Path(sys.argv[1]).absolute()
    project.mkdir(parents=True)
    os.chdir(project)
    _write_inputs(np.random.default_rng(3))
    _reki("run", "-c", CONFIG)
    _reki("publish", "-c", CONFIG, "--arm", "fair_base", "--no-promote")
    _reki("publish", "-c", HALF, "--arm", "reki_c", "--no-promote")
    store = VersionStore(Path(WORKSPACE, "publish"))
    store.upsert(_delta(store))
    _reki("promote", "2", "-c", CONFIG)
    _reki("rollback", "-c", CONFIG)
    _reki("experiment", "start", "first", "base=2:0.5", "reki=1:0.5", "-c", CONFIG)
    experiment = load_experiment(store.root)
    assert experiment is not None
    _write_logs(store.root, experiment)
    _reki("update", "data/new-events.csv", "--items", "data/new-items.csv", "-c", CONFIG)
    _reki("run", "-c", BLEND, "--until", "publish")
    _write_expected(experiment)
    _pack(project)


def _values(thing: Any) -> Any:
    """Values of a dataclass, whatever it and its fields are called; None of None."""
    return None if thing is None else list(dataclasses.astuple(thing))


def _reki(*arguments: str) -> None:
    app(list(arguments), standalone_mode=False)


def _user_ids() -> list[str]:
    return [*(f"u{user:02}" for user in range(USERS - 1)), "ü 39"]


def _write_inputs(generator: np.random.Generator) -> None:
    users, items = _user_ids(), [*(f"i{item:02}" for item in range(ITEMS - 1)), "i 29"]
    colours = [COLOURS[item % 4] for item in range(ITEMS)]
    rows: list[list[object]] = []
    for number, user in enumerate(users):
        for step, item in enumerate(generator.permutation(ITEMS)[:EVENTS]):
            liked = item % 4 == number % 4 or generator.random() < 0.2
            rating = generator.integers(4, 6) if liked else generator.integers(1, 4)
            rows.append([user, items[item], int(rating), BEGIN + 1000 * step + number])
    rows.append([users[0], "", 4, BEGIN])  # one for the quarantine
    events = ["user_id", "item_id", "rating", "timestamp"]
    thing = ["item_id", "title", "colour", "weight"]
    _write_csv("data/interactions.csv", events, rows)
    _write_csv(
        "data/items.csv",
        thing,
        [[key, f"Thing {n}", colours[n], n / 2] for n, key in enumerate(items)],
    )
    teams = [[key, ("north", "south")[n % 2]] for n, key in enumerate(users)]
    _write_csv("data/users.csv", ["user_id", "team"], teams)
    _write_csv(
        "data/new-events.csv",
        events,
        [["u00", "i91", 5, LATER], ["u91", "i91", 5, LATER], ["u91", "i03", 5, LATER + 1]],
    )
    _write_csv("data/new-items.csv", thing, [["i91", "Thing 91", "green", 4]])
    for name, text in CONFIGS.items():
        Path(name).write_text(text, encoding="utf-8")
    half = CONFIGS[CONFIG].replace("  arm: reki_c\n", "  arm: reki_c\n  prestore: r\n")
    Path(HALF).write_text(half.replace("prestore: r\n", "prestore: r\n  dtype: float16\n"))
    shutil.copytree(ROOT / "configs", "configs")
    Path("tuned").mkdir()
    Path("tuned/din.yaml").write_text(TUNED, encoding="utf-8")


def _write_csv(path: str, header: list[str], rows: Sequence[Sequence[object]]) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def _delta(store: VersionStore) -> Delta:
    """A new user, a new item, and a user of whom this version says something else."""
    manifest = store.open(1).manifest
    vectors = np.linspace(-1, 1, 2 * manifest.dimension, dtype=np.float32).reshape(2, -1)
    ids = ["new user", "u07"]
    users = [{USER_ID: user, ATTRIBUTES: [("team", ["south"])]} for user in ids]
    items = [{ITEM_ID: "new item", "title": "Thing new", ATTRIBUTES: [("colour", ["blue"])]}]
    events = [
        {USER_ID: user, ITEM_ID: "i03", "timestamp": LATER, "rating": 5.0, "label": 1}
        for user in ids
    ]
    cluster = Workspace(WORKSPACE).read_table(CLUSTERS["users"])["cluster_id"][0].as_py()
    return Delta(
        **manifest.model_dump(include={"model_fingerprint", "dimension", "dtype", "prestore"}),
        vectors={
            "users": NewVectors(ids, vectors, ["cluster", "individual"]),
            "items": NewVectors(["new item"], vectors[:1], ["cluster"]),
        },
        profiles=profiles_table(
            pa.Table.from_pylist(users, schema=USERS_SCHEMA),
            pa.Table.from_pylist(events, schema=INTERACTIONS_SCHEMA),
            4,
        ),
        catalogue=catalogue_table(pa.Table.from_pylist(items, schema=ITEMS_SCHEMA)),
        knowledge=knowledge_table(ANSWERS_SCHEMA.empty_table(), {"users": {"new user": cluster}}),
    )


def _write_logs(root: Path, experiment: Experiment) -> None:
    folders = OnlineFolders.beside(root)
    exposures = ExposureLog(folders.exposures, "gateway", open_hasher(folders.key))
    clicks = []
    at = experiment.changed_at + 5
    for number, user in enumerate(_user_ids()):
        exposures.append(
            request_id=f"r{number}",
            experiment=experiment.name,
            variant=experiment.assign(user).name,
            user_id=user,
            item_ids=["i00", "i01"],
            timestamp=at,
        )
        if number % 3 == 0:
            clicks.append(Event(user, "i01", "click", at + 9, None, f"r{number}", at + 9))
    exposures.close()
    log = EventLog(folders.events, "gateway")
    log.append([*clicks, Event("ü 39", "i02", "rating", at, 4.5)])
    log.close()


def _write_expected(experiment: Experiment) -> None:
    stores = {name: VersionStore(Path(name, "publish")) for name in (WORKSPACE, BLEND_WORKSPACE)}
    expected = {
        "versions": {
            name: {str(number): describe(store.open(number)) for number in store.versions()}
            for name, store in stores.items()
        },
        "current": {name: store.current() for name, store in stores.items()},
        "assignments": assignments(experiment),
        "identities": identities(),
    }
    Path(EXPECTED).write_text(json.dumps(expected, ensure_ascii=False), encoding="utf-8")


def _pack(project: Path) -> None:
    names = {platform.release(): "release", socket.gethostname(): "host"}
    for path in project.rglob("*"):
        if path.suffix in {".json", ".html", ".jsonl"} and "publish" not in path.parts:
            text = path.read_text(encoding="utf-8")
            for ours, neutral in names.items():
                text = text.replace(ours, neutral)
            stat = path.stat()
            path.write_text(text, encoding="utf-8")
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return None if member.name.endswith(".lock") else member

    with tarfile.open(ARCHIVE, "w:gz") as archive:
        for path in sorted(project.iterdir()):
            archive.add(path, path.name, filter=anonymous)


if __name__ == "__main__":
    main()
