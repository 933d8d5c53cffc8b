"""Prompts sampled for `reki plan`: drawn from a workspace, or built from a scenario's examples."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import cycle, islice

import pyarrow as pa
import pyarrow.compute as pc

from reki_ray import schema
from reki_ray.config import RekiConfig
from reki_ray.core.tables import ENTITIES, read_row_group, row_groups
from reki_ray.core.workspace import Workspace, reading
from reki_ray.errors import ConfigError
from reki_ray.extraction.shards import KINDS, Shard, load, rows_behind
from reki_ray.extraction.subjects import Subjects
from reki_ray.prompts.renderer import Renderer
from reki_ray.schema import (
    CLUSTER_ID,
    OF_CLUSTER,
    OF_ONE,
    SIDE_OF,
    Side,
    SubjectKind,
    Table,
)

_SAMPLE = 1000
_LARGE_SAMPLE = 250
"""Sample size for large tables, in which each sampled user costs a row group of its own."""
_LARGE = 20_000_000
_MAX_CLUSTERED_IDS = 1_000_000
_ROW_GROUPS = 8
_CLUSTERS = 200
_RANDOM_MEMBERS = 32
_SIZE_TO_SMALLEST = 4
"""Mean size of a cluster to the smallest allowed: 4.0 items, 4.9 users on MovieLens-100K."""


@dataclass(frozen=True)
class PromptSample:
    """Some prompts of one kind, in random order.

    Attributes:
        subjects: Number of all subjects of this kind.
        bodies: Last message of each sampled prompt.
        drawn: Whether they are drawn from the data; False if built from worked examples.
    """

    subjects: int
    bodies: list[str]
    drawn: bool

    @property
    def distinct(self) -> float:
        """Number of distinct prompts among all subjects.

        The estimator Duj1 (Haas, Naughton, Seshadri, Stokes: "Sampling-based estimation of the
        number of distinct values of an attribute", VLDB 1995): n d / (n - f + f n / N) for n
        sampled, d distinct and f seen once. A sample without duplicates means no duplicates.
        """
        size, seen = len(self.bodies), Counter(self.bodies)
        if not self.drawn or not size or not self.subjects:
            return float(self.subjects)
        if size >= self.subjects:
            return float(len(seen))
        once = sum(times == 1 for times in seen.values())
        estimated = size * len(seen) / (size - once + once * size / self.subjects)
        return min(float(self.subjects), estimated)


def sample_prompts(
    config: RekiConfig,
    workspace: Workspace | None,
    renderer: Renderer,
    assumptions: list[str],
    totals: Mapping[Side, int | None],
) -> dict[SubjectKind, PromptSample]:
    """Sample prompts of each kind. The time it takes hardly grows with the number of subjects.

    Args:
        workspace: After ingest, and perhaps after cluster; None if there are no data.
        assumptions: Gets a sentence for each assumption.
        totals: Number of users and items; None takes that of the workspace.

    Raises:
        ConfigError: A number is missing.
        DataError: A table is damaged.
    """
    subjects: dict[SubjectKind, int] = {}
    for kind in KINDS[:2]:
        side = SIDE_OF[kind]
        total = totals[side]
        if total is None:
            if workspace is None:
                raise ConfigError(
                    f"the number of {side} is unknown: no workspace is ingested",
                    where=f"--{side}",
                    todo=f"Give --users and --items, or run `reki ingest` for {config.root}.",
                )
            total = _count_rows(workspace, ENTITIES[side][0])
        subjects[kind] = total
        clusters = _count_clusters(config, workspace, side, total, assumptions)
        subjects[OF_CLUSTER[side]] = clusters
    if workspace is None:
        bodies = _example_bodies(config, renderer)
        assumptions.append(
            "There is no ingested workspace: prompts are made of the worked examples of scenario "
            f"{config.prompts.scenario}, histories of 1 to {len(bodies['user'])} titles."
        )
    else:
        bodies = _workspace_bodies(config, workspace, renderer, assumptions)
    return {
        kind: PromptSample(subjects[kind], bodies[kind], workspace is not None) for kind in KINDS
    }


def _count_rows(workspace: Workspace, table: Table) -> int:
    with reading(table, workspace.path(table.path)):
        return int(workspace.dataset(table, table.schema).count_rows())


def _count_clusters(
    config: RekiConfig, workspace: Workspace | None, side: Side, ids: int, assumptions: list[str]
) -> int:
    table = schema.CLUSTERS[side]
    if workspace is None or not workspace.has_table(table):
        smallest: int = getattr(config.cluster, side).min_cluster_size
        assumptions.append(
            f"{side.capitalize()} are not clustered yet: one cluster for each "
            f"{_SIZE_TO_SMALLEST} x cluster.{side}.min_cluster_size ({smallest}) of them, as in "
            f"MovieLens-100K; there cannot be more than {ids // smallest:,}."
        )
        return max(1, ids // (_SIZE_TO_SMALLEST * smallest))
    column = workspace.read_table(table, columns=[CLUSTER_ID])[CLUSTER_ID]
    clusters, rows = pc.count_distinct(column).as_py(), len(column)
    if rows in {0, ids}:
        return int(clusters)
    assumptions.append(
        f"The number of {side[:-1]} clusters grows with that of {side}: "
        f"{clusters:,} for {rows:,} in this workspace."
    )
    return max(1, round(int(clusters) * ids / rows))


def _workspace_bodies(
    config: RekiConfig, workspace: Workspace, renderer: Renderer, assumptions: list[str]
) -> dict[SubjectKind, list[str]]:
    generator = random.Random(0)
    large = _count_rows(workspace, schema.INTERACTIONS) > _LARGE
    size = _LARGE_SAMPLE if large else _SAMPLE
    rows = {
        kind: rows_behind(workspace, kind, _random_rows(workspace, kind, size, generator))
        for kind in KINDS[:2]
    }
    for kind in KINDS[2:]:
        table = schema.CLUSTERS[SIDE_OF[kind]]
        clusters: list[str] = []
        few = not large and workspace.has_table(table)
        if few and _count_rows(workspace, table) <= _MAX_CLUSTERED_IDS:
            column = workspace.read_table(table, columns=[CLUSTER_ID])[CLUSTER_ID]
            clusters = pc.unique(column).to_pylist()
        if clusters:
            chosen = generator.sample(clusters, min(_CLUSTERS, len(clusters)))
            rows[kind] = load(workspace, Shard(kind, clusters=tuple(chosen)))
            continue
        single = rows[OF_ONE[SIDE_OF[kind]]]
        size = min(len(single.ids), _RANDOM_MEMBERS)
        groups = {f"g{n}": generator.sample(single.ids, size) for n in range(_CLUSTERS)}
        rows[kind] = replace(single, kind=kind, members=groups if size else {})
        assumptions.append("Prompts about clusters are sampled with random members.")
    bodies: dict[SubjectKind, list[str]] = {}
    for kind in KINDS:
        bodies[kind] = [prompt.body for prompt in Subjects(rows[kind], renderer, config.prompts)]
        generator.shuffle(bodies[kind])
    return bodies


def _random_rows(
    workspace: Workspace, kind: SubjectKind, size: int, generator: random.Random
) -> pa.Table:
    """Random rows from a few random row groups."""
    table = ENTITIES[SIDE_OF[kind]][0]
    groups = row_groups(workspace, table)
    chosen = generator.sample(groups, min(_ROW_GROUPS, len(groups)))
    rows = pa.concat_tables(read_row_group(workspace, table, group) for group in chosen)
    return rows.take(generator.sample(range(rows.num_rows), min(size, rows.num_rows)))


def _example_bodies(config: RekiConfig, renderer: Renderer) -> dict[SubjectKind, list[str]]:
    examples, shown = renderer.scenario.examples, config.prompts.max_members
    item, group, crowd = examples.item, examples.item_cluster, examples.user_cluster
    members = list(islice(cycle(group.titles), shown))
    profiles = list(islice(cycle(crowd.profiles), shown))
    longest = min(config.prompts.max_history, config.split.prompt_history)
    return {
        "item": [
            renderer.item("", item.title, item.attributes, item.text).body,
            *(renderer.item("", *member, None).body for member in group.titles),
        ],
        "user": [
            renderer.user(
                "", examples.user.attributes, list(islice(cycle(examples.user.rated), length))
            ).body
            for length in range(1, longest + 1)
        ],
        "item_cluster": [renderer.item_cluster("", group.size, members, group.histogram).body],
        "user_cluster": [renderer.user_cluster("", crowd.size, profiles, crowd.histogram).body],
    }
