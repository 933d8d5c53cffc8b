"""Stage ingest: raw files to checked tables, leak-free splits and samples.

Plain Arrow in one process: a million interactions take seconds, and the checks need all
ids of a table at once.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from reki_ray.config import DataConfig, RekiConfig
from reki_ray.data.quarantine import (
    FAILED_QUARANTINE,
    Checked,
    enforce_threshold,
    quarantine_counts,
    save_quarantine,
)
from reki_ray.data.raw import Kind, Source
from reki_ray.data.samples import SampleTables, build_samples, sort_interactions
from reki_ray.data.sources import open_source
from reki_ray.data.validation import check_interactions, check_items, check_users
from reki_ray.pipeline import StageResult
from reki_ray.progress import Reporter, Task
from reki_ray.schema import (
    CUTS,
    INTERACTIONS,
    ITEM_ID,
    ITEMS,
    QUARANTINE,
    SAMPLES,
    SPLITS,
    USER_ID,
    USERS,
    USERS_SCHEMA,
)
from reki_ray.workspace import Workspace


def identify_inputs(config: RekiConfig) -> object:
    """Identity of the files that ingest reads: equal where their content is.

    Args:
        config: The run.

    Returns:
        JSON-ready; needs no network.

    Raises:
        DataError: A file cannot be read.
    """
    return open_source(config.data).identity()


def run(config: RekiConfig, workspace: Workspace, reporter: Reporter) -> StageResult:
    """Read, check, divide and write the data set.

    Args:
        config: The run; sections `data` and `split` count.
        workspace: Where the tables go.
        reporter: Shows progress.

    Raises:
        DataError: Files are missing or damaged, or too many rows are unusable; those then lie
            in ingest-quarantine/, and an earlier output of ingest stays as it was.
        EngineError: The packaged data set cannot be fetched.
    """
    source = open_source(config.data, reporter.say)
    with reporter.task("ingest: reading, checking, writing", total=5, unit="steps") as task:
        tables = read_tables(source, config.data, task)
        enforce_threshold(workspace, tables, config.data.max_quarantine_share)
        interactions = sort_interactions(tables["interactions"].rows)
        items = tables["items"].rows
        users = (
            tables["users"].rows
            if "users" in tables
            else bare_users(interactions[USER_ID].unique())
        )
        divided = build_samples(
            interactions, users.column(USER_ID), items.column(ITEM_ID), config.split
        )
        task.advance()
        with workspace.replacing("ingest") as scratch:
            scratch.write_table(INTERACTIONS, interactions)
            scratch.write_table(ITEMS, items)
            scratch.write_table(USERS, users)
            scratch.write_table(CUTS, divided.cuts)
            for split in SPLITS:
                scratch.write_table(SAMPLES[split], divided.samples[split])
            save_quarantine(scratch, tables, QUARANTINE)
        _clear_failed(workspace)
        task.advance()
    return StageResult(
        rows_in=sum(checked.rows_in for checked in tables.values()),
        rows_out=sum(len(checked.rows) for checked in tables.values()),
        dead=sum(len(checked.rejected) for checked in tables.values()),
        details=_details(config.name, tables, len(users), divided),
    )


def read_tables(source: Source, config: DataConfig, task: Task) -> dict[Kind, Checked]:
    """Read and check all tables of a source, catalogues first.

    Args:
        source: The data set.
        config: Valid ranges.
        task: Advanced once a table.

    Returns:
        Checked tables; without "users" where the source has no such table.

    Raises:
        DataError: A file is missing or damaged, or a column has an unusable type.
    """
    tables: dict[Kind, Checked] = {"items": check_items(source.items())}
    task.advance()
    draft = source.users()
    if draft is not None:
        tables["users"] = check_users(draft)
    task.advance()
    tables["interactions"] = check_interactions(
        source.interactions(),
        config,
        source.timestamp_unit,
        users=_ids(tables["users"].rows, USER_ID) if "users" in tables else None,
        items=_ids(tables["items"].rows, ITEM_ID),
    )
    task.advance()
    return tables


def _ids(rows: pa.Table, name: str) -> pa.Array:
    return pa.concat_arrays(rows.column(name).chunks or [pa.array([], pa.string())])


def bare_users(ids: pa.Array) -> pa.Table:
    """Rows of users of whom nothing but their interactions is known."""
    columns = {field.name: pa.nulls(len(ids), field.type) for field in USERS_SCHEMA}
    return pa.table({**columns, USER_ID: ids}, schema=USERS_SCHEMA)


def _clear_failed(workspace: Workspace) -> None:
    """What an earlier failure kept speaks of data that have since passed."""
    folder = workspace.path(FAILED_QUARANTINE.path)
    if workspace.filesystem.exists(folder):
        workspace.filesystem.rm(folder, recursive=True)


def _details(
    name: str, tables: dict[Kind, Checked], users: int, divided: SampleTables
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
        "quarantined": quarantine_counts(tables),
        "cold_items_dropped": divided.cold_dropped,
    }
