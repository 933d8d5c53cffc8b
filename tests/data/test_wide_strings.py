"""Columns beyond the 2 GiB of one string array give the same tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reki_ray.config import RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import Workspace
from reki_ray.data import wide_strings
from reki_ray.schema import CUTS, INTERACTIONS, ITEMS, SAMPLES, USERS
from reki_ray.stages.ingest import run
from tests.conftest import TinyConfig

TABLES = (INTERACTIONS, ITEMS, USERS, CUTS, *SAMPLES.values())


def test_wide_columns_give_the_same_tables(
    tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tiny_config()
    found = []
    for bound in (2**31 - 1, 0):
        monkeypatch.setattr(wide_strings, "_BOUND", bound)
        monkeypatch.setattr(wide_strings, "_PIECE", 100)
        workspace = Workspace(tmp_path / str(bound))
        run(config, workspace, Reporter(workspace, quiet=True))
        found.append([workspace.read_table(table) for table in TABLES])
    assert all(one.equals(other) for one, other in zip(*found, strict=True))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_more_than_2_gib_of_ids_are_ingested(tmp_path: Path) -> None:
    """Needs 20 GiB of memory: 4.5 million rows whose user ids have 500 characters."""
    users, events = 450_000, 10
    names = [f"{number:07d}{'u' * 493}" for number in range(users)]
    dictionary = pa.DictionaryArray.from_arrays(
        pa.array(np.tile(np.arange(users), events), pa.int32()), pa.array(names)
    )
    rows = np.arange(users * events)
    table = pa.table(
        {
            "user_id": dictionary,
            "item_id": rows // users,
            "rating": np.where(rows == 7, 9, rows % 5 + 1),
            "timestamp": 1_600_000_000 + rows,
        }
    )
    pq.write_table(table, tmp_path / "events.parquet")
    items = pa.table({"item_id": range(events), "title": [f"T{item}" for item in range(events)]})
    pq.write_table(items, tmp_path / "items.parquet")
    source = {
        "kind": "parquet",
        "interactions": str(tmp_path / "events.parquet"),
        "items": str(tmp_path / "items.parquet"),
    }
    config = RekiConfig.model_validate({"name": "wide", "data": {"source": source}})
    workspace = Workspace(tmp_path / "run")
    result = run(config, workspace, Reporter(workspace, quiet=True))
    assert result.rows_in == users * events + events
    assert result.details["quarantined"]["interactions"] == {"rating is out of range": 1}
    assert sum(part.num_rows for part in parts(workspace)) == users * events - 1


def parts(workspace: Workspace) -> list[pq.FileMetaData]:
    return [pq.read_metadata(part) for part in workspace.parts(INTERACTIONS)]
