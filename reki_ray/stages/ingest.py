"""Stage ingest: raw files to checked tables, leak-free splits and samples.

Plain Arrow in one process: a million interactions take seconds, and checks need all ids of a table
at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reki_ray.config import DataConfig, FileSource, RekiConfig
from reki_ray.core.progress import Reporter, Task
from reki_ray.core.stage import StageResult
from reki_ray.core.workspace import Workspace
from reki_ray.data.quarantine import (
    FAILED_QUARANTINE,
    CheckedTable,
    enforce_threshold,
    require_reasons,
    save_quarantine,
)
from reki_ray.data.raw_tables import DataSource, TableKind
from reki_ray.data.samples import SampleTables, build_samples, sort_interactions
from reki_ray.data.sources import open_source
from reki_ray.data.validation import bare_users, check_interactions, check_items, check_users
from reki_ray.data.wide_strings import wide
from reki_ray.errors import DataError
from reki_ray.schema import (
    CUTS,
    INTERACTIONS,
    ITEM_ID,
    ITEMS,
    LABEL,
    QUARANTINE,
    RATING,
    SAMPLES,
    SPLITS,
    USER_ID,
    USERS,
    Split,
)


def identify_inputs(config: RekiConfig) -> object:
    """Identity of the input files: equal if their content is; of remote ones, their metadata."""
    return open_source(config.data).identity()


def run(config: RekiConfig, workspace: Workspace, reporter: Reporter) -> StageResult:
    """Read, check, divide and write the data set.

    Raises:
        DataError: Files are missing or damaged, or too many rows are unusable; these are then in
            ingest-quarantine/, and an earlier output of ingest is kept.
        EngineError: The bundled data set, or a remote file, cannot be fetched.
    """
    source = open_source(config.data, reporter.say)
    with reporter.task("ingest: reading, checking, writing", total=5, unit="steps") as task:
        tables = read_tables(source, config.data, task)
        require_reasons(tables, config.data.max_quarantine_shares)
        enforce_threshold(workspace, tables, config.data)
        for note in (note for checked in tables.values() for note in checked.notes):
            reporter.say(f"ingest: {note}")
        interactions = sort_interactions(tables["interactions"].rows)
        items = tables["items"].rows
        users = (
            tables["users"].rows
            if "users" in tables
            else bare_users(pc.unique(wide(interactions[USER_ID])))
        )
        divided = build_samples(
            interactions, users.column(USER_ID), items.column(ITEM_ID), config.split
        )
        require_both_labels(divided.samples, interactions, config.data)
        if config.train.rerankers:
            require_positives(divided.samples)
        task.advance()
        with workspace.replacing("ingest") as scratch:
            scratch.write_table(INTERACTIONS, interactions)
            scratch.write_table(ITEMS, items)
            scratch.write_table(USERS, users)
            scratch.write_table(CUTS, divided.cuts)
            for split in SPLITS:
                scratch.write_table(SAMPLES[split], divided.samples[split])
            save_quarantine(scratch, tables, QUARANTINE)
        workspace.remove(FAILED_QUARANTINE.path)  # from an earlier failure
        task.advance()
    return StageResult(
        rows_in=sum(checked.rows_in for checked in tables.values()),
        rows_out=sum(len(checked.rows) for checked in tables.values()),
        dead=sum(len(checked.rejected) for checked in tables.values()),
        details=_details(config.name, tables, len(users), divided),
    )


def read_tables(
    source: DataSource, config: DataConfig, task: Task
) -> dict[TableKind, CheckedTable]:
    """Read and check all tables of a source, catalogues first, one step of `task` per table."""
    tables: dict[TableKind, CheckedTable] = {"items": check_items(source.items())}
    task.advance()
    mapped = source.users()
    if mapped is not None:
        tables["users"] = check_users(mapped)
    task.advance()
    tables["interactions"] = check_interactions(
        source.interactions(),
        config,
        source.timestamp_unit,
        users=tables["users"].rows[USER_ID] if "users" in tables else None,
        items=tables["items"].rows[ITEM_ID],
    )
    task.advance()
    return tables


def require_both_labels(
    samples: Mapping[Split, pa.Table], interactions: pa.Table, config: DataConfig
) -> None:
    """Reject training samples that are all positive or all negative."""
    shares = {split: _positive_share(rows) for split, rows in samples.items()}
    if shares["train"] not in (0.0, 1.0):
        return
    positive = ", ".join(f"{share:.1%} of {split}" for split, share in shares.items())
    ratings = pc.min_max(interactions[RATING]).as_py()
    if isinstance(config.source, FileSource) and config.source.columns.label is not None:
        todo = "Set data.source.columns.label to a column with both 0 and 1."
    elif ratings["max"] is None:
        todo = (
            "Clicks alone do not show what was not liked: set data.source.columns.label to a "
            "column of 0 and 1 (impressions without a click are 0), or columns.rating to explicit "
            "ratings."
        )
    else:
        todo = (
            f"Ratings are between {ratings['min']:g} and {ratings['max']:g}, and those above "
            f"data.positive_above, {config.positive_above:g}, count as positive: choose another "
            "threshold."
        )
    raise DataError(
        f"the labels of the training samples are all {'1' if shares['train'] else '0'}; "
        f"positive are {positive}, and {_positive_share(interactions):.1%} of all interactions",
        where="data",
        todo=todo,
    )


def require_positives(samples: Mapping[Split, pa.Table]) -> None:
    """Reject a split without positive samples: rerankers would have no lists."""
    for split, rows in samples.items():
        if not _positive_share(rows):
            raise DataError(
                f"no {split} sample is positive: train.rerankers would have no lists",
                where="data",
                todo="Give more data, lower data.positive_above, or leave train.rerankers empty.",
            )


def _positive_share(rows: pa.Table) -> float:
    return float(np.mean(rows[LABEL].to_numpy()))


def _details(
    name: str, tables: dict[TableKind, CheckedTable], users: int, divided: SampleTables
) -> dict[str, Any]:
    return {
        "dataset": {
            "name": name,
            "users": users,
            "items": len(tables["items"].rows),
            "interactions": len(tables["interactions"].rows),
            "samples": {split: len(rows) for split, rows in divided.samples.items()},
        },
        "tables": {
            kind: {
                "rows_in": checked.rows_in,
                "rows_out": len(checked.rows),
                "quarantined": len(checked.rejected),
            }
            for kind, checked in tables.items()
        },
        "quarantined": {kind: checked.reasons() for kind, checked in tables.items()},
        "notes": [note for checked in tables.values() for note in checked.notes],
        "cold_items_dropped": divided.cold_dropped,
    }
