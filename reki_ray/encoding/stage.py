"""Stage encode: knowledge and source texts to representations r, one row for every id."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reki_ray import schema
from reki_ray.config import RekiConfig
from reki_ray.encoding.encoders import EncoderIdentity, identify
from reki_ray.encoding.ledger import VectorLedger
from reki_ray.encoding.planning import TextPlan, plan_texts, read_rows
from reki_ray.encoding.pool import encode_units
from reki_ray.encoding.tables import metadata_of, write_tables
from reki_ray.errors import DataError
from reki_ray.pipeline import StageResult
from reki_ray.progress import Reporter
from reki_ray.runtime import ray_session
from reki_ray.schema import REPRESENTATIONS, SIDES, TEXT_REPRESENTATIONS, Side
from reki_ray.workspace import Workspace


@dataclass(frozen=True)
class EncodedSide:
    """Encoded source texts of one side.

    Attributes:
        ids: N ids, in the order of their table.
        vectors: (N, d) float32, rows of unit length.
        encoder: Which encoder they are from, as `vectors_table` keeps it.
    """

    ids: list[str]
    vectors: np.ndarray
    encoder: dict[str, str]


def run(config: RekiConfig, workspace: Workspace, reporter: Reporter) -> StageResult:
    """Write `REPRESENTATIONS` and `TEXT_REPRESENTATIONS` of both sides."""
    for table in (schema.CLUSTERS["users"], schema.CLUSTERS["items"], schema.KNOWLEDGE):
        workspace.read_table(table, columns=[])  # a missing table is told before Ray starts
    identity = identify(config.encode, say=reporter.say)
    ledger = VectorLedger(workspace, identity)
    tables = [*REPRESENTATIONS.values(), *TEXT_REPRESENTATIONS.values()]
    with (
        ray_session(config.ray),
        plan_texts(config, workspace, ledger.index(), SIDES, reporter, with_knowledge=True) as plan,
    ):
        for side in SIDES:
            _require_some(side, plan, workspace)
        encode_units(
            plan.units, workspace, identity, config.encode, reporter, "encode: encoding texts"
        )
        index = ledger.index()
        # The ledger lies in the same folder and stays.
        with workspace.replacing("encode", tables) as scratch:
            write_tables(plan, index, identity, workspace, scratch, reporter)
    total = sum(sum(plan.sources(side).values()) for side in SIDES)
    return StageResult(
        rows_in=total,
        rows_out=total,
        details=_details(plan, identity, ledger.dimension(index)),
    )


def encode_source_texts(
    config: RekiConfig, workspace: Workspace, side: Side, reporter: Reporter, label: str
) -> EncodedSide:
    """Encode the source texts of one side, on the Ray cluster that is initialised.

    They go into the same ledger as those of stage encode: each text is encoded once a workspace.

    Args:
        config: The run.
        workspace: Holds the tables of stage ingest; gets the ledger.
        side: Users or items; at least one id.
        reporter: Shows progress.
        label: What is being encoded, as `cluster: encoding items`.

    Raises:
        DataError: A table or the ledger is damaged, or a text is blank.
        EngineError: The model cannot be loaded, or the cluster is too small.
    """
    identity = identify(config.encode, say=reporter.say)
    ledger = VectorLedger(workspace, identity)
    with plan_texts(
        config, workspace, ledger.index(), [side], reporter, with_knowledge=False
    ) as plan:
        encode_units(plan.units, workspace, identity, config.encode, reporter, label)
        rows = [read_rows(workspace, shard) for shard in plan.shards]
    hashes = np.concatenate([one.texts for one in rows])
    return EncodedSide(
        ids=[key for one in rows for key in one.ids],
        vectors=ledger.vectors(ledger.index(), hashes),
        encoder=metadata_of(identity),
    )


def _details(plan: TextPlan, identity: EncoderIdentity, dimension: int) -> dict[str, object]:
    return {
        **metadata_of(identity),
        "dimension": dimension,
        "texts": plan.total,
        "texts_encoded": plan.new,
        "texts_found": plan.total - plan.new,
        "sources": {side: plan.sources(side) for side in SIDES},
    }


def _require_some(side: Side, plan: TextPlan, workspace: Workspace) -> None:
    sources = plan.sources(side)
    total = sum(sources.values())
    if sources.get("fallback", 0) == total:
        raise DataError(
            f"there is no knowledge about any of the {total} {side}",
            where=workspace.path(schema.KNOWLEDGE.path),
            todo="Read the reasons in extract/dead, correct the engine, run `reki extract` again.",
        )
