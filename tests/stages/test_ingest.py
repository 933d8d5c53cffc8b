"""The stage as a whole: tables, figures, and what a failure leaves behind."""

from __future__ import annotations

import json
import os
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reki_ray.config import RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import Workspace
from reki_ray.data.quarantine import FAILED_QUARANTINE
from reki_ray.errors import ConfigError, DataError, EngineError
from reki_ray.schema import (
    CUTS,
    INTERACTIONS,
    ITEMS,
    QUARANTINE,
    REASON,
    SAMPLES,
    SPLITS,
    TABLE,
    USER_ID,
    USERS,
)
from reki_ray.stages.ingest import identify_inputs, run

USER_COUNT, EVENTS = 12, 10
Edit = Callable[[Path], None]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    items = [f"m{i},Film {i},Drama|War" for i in range(20)]
    users = [f"u{u},F" for u in range(USER_COUNT)]
    events = [
        f"u{u},m{(u + 3 * step) % 20},{step % 5 + 1},{1000 * step + u}"
        for u in range(USER_COUNT)
        for step in range(EVENTS)
    ]
    (folder / "items.csv").write_text("\n".join(["item_id,title,genre", *items]) + "\n")
    (folder / "users.csv").write_text("\n".join(["user_id,gender", *users]) + "\n")
    header = "user_id,item_id,rating,timestamp"
    (folder / "events.csv").write_text("\n".join([header, *events]) + "\n")
    return folder


def make(data: Path, workspace: Workspace, *, users: bool = True, **keys: Any) -> RekiConfig:
    source = {
        "kind": "csv",
        "interactions": str(data / "events.csv"),
        "items": str(data / "items.csv"),
        "users": str(data / "users.csv") if users else None,
        "columns": {"item_attributes": ["genre"], "user_attributes": ["gender"] if users else []},
    }
    tree = {"name": "films", "workspace": workspace.root, "data": {"source": source, **keys}}
    return RekiConfig.model_validate(tree)


def append(path: Path, *lines: str) -> None:
    path.write_text(path.read_text() + "\n".join(lines) + "\n")


def test_all_tables_are_written_and_the_figures_reconcile(
    data: Path, workspace: Workspace, reporter: Reporter
) -> None:
    append(data / "events.csv", "u0,m0,9,5", "stranger,m0,3,5", "u0,m0")
    result = run(make(data, workspace, max_quarantine_share=0.05), workspace, reporter)

    assert result.rows_in == result.rows_out + result.dead == 20 + 12 + 123
    assert result.dead == workspace.read_table(QUARANTINE).num_rows == 3
    assert result.details["quarantined"] == {
        "items": {},
        "users": {},
        "interactions": {
            "wrong number of fields": 1,
            "rating is out of range": 1,
            "unknown user_id": 1,
        },
    }
    samples = {split: workspace.read_table(SAMPLES[split]).num_rows for split in SPLITS}
    assert result.details["dataset"] == {
        "name": "films",
        "users": 12,
        "items": 20,
        "interactions": 120,
        "samples": samples,
    }
    assert sum(samples.values()) == USER_COUNT * EVENTS // 2
    assert result.details["cold_items_dropped"] == 0
    for table in (INTERACTIONS, ITEMS, USERS, CUTS):
        assert workspace.read_table(table).num_rows > 0
    assert json.loads(json.dumps(result.details)) == result.details


def test_users_come_from_the_interactions_where_there_is_no_users_file(
    data: Path, workspace: Workspace, reporter: Reporter
) -> None:
    result = run(make(data, workspace, users=False), workspace, reporter)
    assert result.details["dataset"]["users"] == USER_COUNT
    assert result.rows_in == result.rows_out == 20 + 120
    users = workspace.read_table(USERS)
    assert users[USER_ID].to_pylist() == sorted(f"u{u}" for u in range(USER_COUNT))


def test_a_failure_keeps_the_old_output_and_the_bad_rows(
    data: Path, workspace: Workspace, reporter: Reporter
) -> None:
    config = make(data, workspace)
    run(config, workspace, reporter)
    before = workspace.read_table(INTERACTIONS)
    good = (data / "events.csv").read_text()
    append(data / "events.csv", *["u0,m0,3,978300760000"] * 10)

    with pytest.raises(DataError, match=r"ingest-quarantine.*max_quarantine_share") as caught:
        run(config, workspace, reporter)
    assert caught.value.exit_code == 3
    assert "looks like milliseconds" in caught.value.what
    assert caught.value.where == f"first at {data / 'events.csv'}:122"
    assert workspace.read_table(INTERACTIONS).equals(before)
    kept = workspace.read_table(FAILED_QUARANTINE)
    assert kept[TABLE].to_pylist() == ["interactions"] * 10
    assert all("milliseconds" in reason for reason in kept[REASON].to_pylist())

    (data / "events.csv").write_text(good)
    run(config, workspace, reporter)
    assert not workspace.exists(FAILED_QUARANTINE.path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: (d / "items.csv").write_text(""), "the file is empty"),
        (lambda d: (d / "items.csv").write_text("item_id,title,genre\n"), "there are no items"),
        (
            lambda d: (d / "events.csv").write_text("user_id,item_id\n"),
            "missing: timestamp, rating",
        ),
        (lambda d: (d / "users.csv").unlink(), "there is no such file"),
    ],
)
def test_unusable_files_are_named(
    data: Path, workspace: Workspace, reporter: Reporter, edit: Edit, message: str
) -> None:
    edit(data)
    with pytest.raises(DataError, match=message):
        run(make(data, workspace), workspace, reporter)
    assert not workspace.exists("ingest")


def test_the_identity_of_the_inputs_follows_their_content(data: Path, workspace: Workspace) -> None:
    config = make(data, workspace)
    before = json.dumps(identify_inputs(config))
    assert json.dumps(identify_inputs(config)) == before
    append(data / "users.csv", "u99,M")
    assert json.dumps(identify_inputs(config)) != before


@pytest.mark.parametrize(
    ("columns", "keys", "message", "todo"),
    [
        ({"rating": None}, {}, "are all 1; positive are 100.0% of train", "columns.label"),
        ({"label": "rating"}, {}, "are all 1", "both 0 and 1"),
        ({}, {"positive_above": 5.0}, "are all 0; positive are 0.0% of train", "between 1 and 5"),
        ({}, {"positive_above": 0.5}, "are all 1", "data.positive_above, 0.5"),
    ],
)
def test_labels_of_one_kind_are_refused_before_anything_is_paid_for(
    data: Path,
    workspace: Workspace,
    reporter: Reporter,
    columns: dict[str, str | None],
    keys: dict[str, Any],
    message: str,
    todo: str,
) -> None:
    config = make(data, workspace, users=True, **keys)
    if columns.get("label"):
        events = (data / "events.csv").read_text()
        (data / "events.csv").write_text(re.sub(r",[1-5],", ",1,", events))
    source = config.data.source.model_dump()
    source["columns"] |= columns
    tree = config.model_dump()
    tree["data"]["source"] = source
    with pytest.raises(DataError, match=message) as caught:
        run(RekiConfig.model_validate(tree), workspace, reporter)
    assert todo in caught.value.todo
    assert caught.value.exit_code == 3
    assert not workspace.exists("ingest")


def test_what_was_taken_otherwise_than_written_is_told(
    data: Path, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    items = (data / "items.csv").read_text().replace("m", "")
    (data / "items.csv").write_text(items.replace("ite_id", "item_id"))
    events = (data / "events.csv").read_text().replace(",m", ",")
    lines = events.splitlines()
    floats = [
        line.replace(f",{line.split(',')[1]},", f",{line.split(',')[1]}.0,") for line in lines[1:]
    ]
    (data / "events.csv").write_text("\n".join([lines[0], *floats]) + "\n")
    result = run(make(data, workspace), workspace, Reporter(workspace))
    message = capsys.readouterr().err
    assert "120 interactions have item_id as '0.0', which the catalogue has as '0'" in message
    assert result.details["notes"][0] in message
    assert result.dead == 0


def test_files_that_are_left_out_are_told(
    data: Path, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "events").mkdir()
    (data / "events.csv").rename(data / "events" / "a.csv")
    (data / "events" / "part-00001").write_text("user_id,item_id,rating,timestamp\n")
    tree = make(data, workspace).model_dump()
    tree["data"]["source"]["interactions"] = str(data / "events")
    result = run(RekiConfig.model_validate(tree), workspace, Reporter(workspace))
    note = result.details["notes"][0]
    assert note.startswith(f"interactions: skipped in {data / 'events'}")
    assert ": part-00001;" in note
    assert note in capsys.readouterr().err


def test_names_of_files_need_not_be_utf8(
    data: Path, workspace: Workspace, reporter: Reporter
) -> None:
    odd = Path(os.fsdecode(bytes(data) + b"/caf\xe9.csv"))
    (data / "events.csv").rename(odd)
    append(odd, "u0,m0,9,5", "u0,m0")
    config = make(data, workspace, max_quarantine_share=0.05)
    source = config.data.source.model_copy(update={"interactions": str(odd)})
    section = config.data.model_copy(update={"source": source})
    run(config.model_copy(update={"data": section}), workspace, reporter)
    places = workspace.read_table(QUARANTINE)["location"].to_pylist()
    assert sorted(place.rpartition("/")[2] for place in places) == [
        "caf\\udce9.csv:122",
        "caf\\udce9.csv:123",
    ]


def test_shares_of_reasons_that_do_not_exist_are_refused(
    data: Path, workspace: Workspace, reporter: Reporter
) -> None:
    config = make(data, workspace, max_quarantine_shares={"title missing": 0.1})
    with pytest.raises(ConfigError, match="nearest is 'title is missing'"):
        run(config, workspace, reporter)


def test_a_disk_that_is_full_is_an_engine_error_and_the_old_output_stays(
    data: Path, workspace: Workspace, reporter: Reporter
) -> None:
    run(make(data, workspace), workspace, reporter)
    before = workspace.read_table(INTERACTIONS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # SIGXFSZ is ignored by Python
    try:
        with pytest.raises(EngineError, match="the workspace cannot be written") as caught:
            run(make(data, workspace, earliest=1), workspace, reporter)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.exit_code == 4
    assert "Free some space" in caught.value.todo
    assert workspace.read_table(INTERACTIONS).equals(before)


def test_rerankers_without_a_positive_to_rank_are_refused_before_anything_is_paid_for(
    data: Path, workspace: Workspace, reporter: Reporter
) -> None:
    config = make(data, workspace, positive_above=1)
    run(config, workspace, reporter)
    validating = set(workspace.read_table(SAMPLES["valid"])[USER_ID].to_pylist())
    header, *lines = (data / "events.csv").read_text().splitlines()
    disliked = [
        f"{user},{item},{'1' if user in validating else rating},{time}"
        for user, item, rating, time in (line.split(",") for line in lines)
    ]
    (data / "events.csv").write_text("\n".join([header, *disliked]) + "\n")
    run(config, workspace, reporter)  # good enough without rerankers
    tree = config.model_dump()
    tree["train"]["rerankers"] = ["prm"]
    with pytest.raises(DataError, match="no valid sample is positive"):
        run(RekiConfig.model_validate(tree), workspace, reporter)
