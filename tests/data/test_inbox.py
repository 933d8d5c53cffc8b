"""Batches of new events: checked, kept once, and put together with what a run began with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reki_ray import schema
from reki_ray.config import DataConfig, RefreshConfig, RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import Workspace
from reki_ray.data.inbox import INBOX, QUARANTINE, BatchFiles, Inbox, write_round
from reki_ray.data.leak_guard import before_cut
from reki_ray.data.raw_tables import TableKind
from reki_ray.errors import ConfigError, DataError
from reki_ray.events.batches import EventBatches
from reki_ray.events.event_mapping import EventRules
from reki_ray.events.log import Event
from reki_ray.stages import ingest
from tests.conftest import TinyConfig

LATER = 2_000_000


@pytest.fixture
def config(tiny_config: TinyConfig) -> RekiConfig:
    return tiny_config()


@pytest.fixture
def inbox(config: RekiConfig, workspace: Workspace, reporter: Reporter) -> Inbox:
    """Of a run whose ingest is done."""
    ingest.run(config, workspace, reporter)
    return Inbox(workspace, Workspace(workspace.local_path("live")))


def events(path: Path, *rows: tuple[str, str, int, int]) -> Path:
    """A CSV file of user, item, rating, time."""
    lines = [",".join(map(str, row)) for row in rows]
    path.write_text("\n".join(["user_id,item_id,rating,timestamp", *lines, ""]))
    return path


def test_a_batch_is_kept_once_and_its_events_join_the_history(
    inbox: Inbox, config: RekiConfig, workspace: Workspace, tmp_path: Path
) -> None:
    file = events(tmp_path / "new.csv", ("u0", "m1", 5, LATER), ("u0", "m2", 2, LATER + 1))
    first = inbox.add(BatchFiles(file), config.data)
    assert (first.is_new, first.events, first.quarantined) == (True, 2, 0)
    again = inbox.add(BatchFiles(file), config.data)
    assert (again.name, again.is_new) == (first.name, False)
    assert inbox.batches() == [first.name]
    merged = inbox.merged()
    began = workspace.read_table(schema.INTERACTIONS)
    assert merged.events == 2
    assert len(merged.history) == len(began) + 2
    assert merged.history.filter(pa.compute.equal(merged.history[schema.USER_ID], "u0"))[
        schema.ITEM_ID
    ].to_pylist()[-2:] == ["m1", "m2"]


def test_prompts_see_the_run_s_own_history_and_the_events_but_no_sample(
    inbox: Inbox, config: RekiConfig, workspace: Workspace, tmp_path: Path
) -> None:
    inbox.add(BatchFiles(events(tmp_path / "new.csv", ("u0", "m1", 5, LATER))), config.data)
    merged = inbox.merged()
    seen = before_cut(workspace.read_table(schema.INTERACTIONS), workspace.read_table(schema.CUTS))
    assert len(merged.visible) == len(seen) + 1
    current = Workspace(tmp_path / "round")
    write_round(merged, current)
    visible = before_cut(current.read_table(schema.INTERACTIONS), current.read_table(schema.CUTS))
    assert len(visible) == len(merged.visible)
    key = [schema.USER_ID, schema.ITEM_ID, schema.TIMESTAMP]
    shown = {tuple(row.values()) for row in visible.select(key).to_pylist()}
    for split in schema.SPLITS:
        samples = workspace.read_table(schema.SAMPLES[split]).select(key).to_pylist()
        assert not shown & {tuple(row.values()) for row in samples}


def test_an_event_of_two_batches_or_of_the_run_counts_once(
    inbox: Inbox, config: RekiConfig, workspace: Workspace, tmp_path: Path
) -> None:
    old = workspace.read_table(schema.INTERACTIONS).slice(0, 1).to_pylist()[0]
    known = (old["user_id"], old["item_id"], int(old["rating"]), old["timestamp"])
    new = ("u1", "m1", 5, LATER)
    inbox.add(BatchFiles(events(tmp_path / "a.csv", known, new)), config.data)
    inbox.add(BatchFiles(events(tmp_path / "b.csv", new, ("u1", "m2", 5, LATER))), config.data)
    assert inbox.merged().events == 2


def test_new_items_and_users_join_and_changed_ones_replace(
    inbox: Inbox, config: RekiConfig, workspace: Workspace, tmp_path: Path
) -> None:
    items = tmp_path / "items.csv"
    items.write_text("item_id,title,genre\nm999,A new film,Action|Drama\nm0,Renamed,Horror\n")
    users = tmp_path / "users.csv"
    users.write_text("user_id,gender\nnamed,F\n")
    file = events(tmp_path / "new.csv", ("bare", "m999", 5, LATER), ("named", "m0", 4, LATER))
    inbox.add(BatchFiles(file, items, users), config.data)
    merged = inbox.merged()
    titles = dict(
        zip(
            merged.items[schema.ITEM_ID].to_pylist(),
            merged.items[schema.TITLE].to_pylist(),
            strict=True,
        )
    )
    assert len(titles) == len(merged.items) == len(workspace.read_table(schema.ITEMS)) + 1
    assert (titles["m999"], titles["m0"]) == ("A new film", "Renamed")
    row = merged.items.filter(pa.compute.equal(merged.items[schema.ITEM_ID], "m999")).to_pylist()[0]
    assert row[schema.ATTRIBUTES] == [("genre", ["Action", "Drama"])]
    attributes = {row["user_id"]: row["attributes"] for row in merged.users.to_pylist()}
    assert attributes["named"] == [("gender", ["F"])]
    assert attributes["bare"] is None


def test_items_alone_are_a_batch(inbox: Inbox, config: RekiConfig, tmp_path: Path) -> None:
    items = tmp_path / "items.csv"
    items.write_text("item_id,title,genre\nm999,A new film,Action\n")
    batch = inbox.add(BatchFiles(items=items), config.data)
    assert (batch.is_new, batch.events) == (True, 0)
    assert inbox.batches() == [batch.name]
    assert "m999" in inbox.merged().items[schema.ITEM_ID].to_pylist()


def test_a_parquet_file_in_the_tables_own_names_needs_no_mapping(
    inbox: Inbox, tmp_path: Path
) -> None:
    file = tmp_path / "new.parquet"
    rows = {"user_id": ["u0"], "item_id": ["m1"], "timestamp": [LATER]}
    pq.write_table(pa.table(rows), file)
    items = tmp_path / "items.parquet"
    rows = {"item_id": ["m9x"], "title": ["New"], "genre": ["Action"], "shelf": ["7"]}
    pq.write_table(pa.table(rows), items)
    plain = DataConfig.model_validate({"source": {"kind": "movielens_100k"}})
    batch = inbox.add(BatchFiles(file, items), plain)
    assert batch.events == 1
    merged = inbox.merged()
    assert merged.items.to_pylist()[-1][schema.ATTRIBUTES] == [("genre", ["Action"])]


def test_unusable_rows_are_quarantined_with_their_reason(
    inbox: Inbox, config: RekiConfig, workspace: Workspace, tmp_path: Path
) -> None:
    good = [("u0", f"m{item}", 5, LATER + item) for item in range(10)]
    file = events(tmp_path / "new.csv", *good, ("u0", "unheard", 5, LATER))
    loose = config.data.model_copy(update={"max_quarantine_share": 0.2})
    batch = inbox.add(BatchFiles(file), loose)
    assert (batch.events, batch.quarantined) == (10, 1)
    live = Workspace(workspace.local_path("live"))
    (row,) = live.read_table(QUARANTINE).to_pylist()
    assert row[schema.REASON] == "unknown item_id"


def test_a_batch_with_too_much_unusable_is_refused_and_nothing_is_kept(
    inbox: Inbox, config: RekiConfig, workspace: Workspace, tmp_path: Path
) -> None:
    file = events(tmp_path / "new.csv", ("u0", "m1", 5, LATER), ("u0", "unheard", 5, LATER))
    with pytest.raises(DataError, match="1 of 2 rows of interactions are unusable"):
        inbox.add(BatchFiles(file), config.data)
    assert inbox.batches() == []
    assert not Workspace(workspace.local_path("live")).has_table(INBOX["interactions"])


@pytest.mark.parametrize(
    ("name", "content", "error", "match"),
    [
        ("new.csv", "user_id,item_id\nu0,m1\n", DataError, "columns are missing"),
        ("new.parquet", "no parquet", DataError, "cannot be read"),
        ("new.txt", "user_id", ConfigError, "neither Parquet nor CSV"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    inbox: Inbox,
    config: RekiConfig,
    tmp_path: Path,
    name: str,
    content: str,
    error: type[Exception],
    match: str,
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(error, match=match):
        inbox.add(BatchFiles(tmp_path / name), config.data)
    assert inbox.batches() == []


def test_a_batch_that_was_cut_off_in_any_of_its_files_is_kept_when_it_comes_again(
    inbox: Inbox, config: RekiConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = tmp_path / "items.csv"
    items.write_text("item_id,title,genre\nm999,A new film,Action\n")
    files = BatchFiles(events(tmp_path / "new.csv", ("u0", "m999", 5, LATER)), items)
    rename, calls = Path.replace, 0

    def killed_at(number: int) -> Callable[[Path, Path], Path]:
        def replace(self: Path, target: Path) -> Path:
            nonlocal calls
            calls += 1
            if calls == number:
                raise KeyboardInterrupt
            return rename(self, target)

        return replace

    for number in (1, 2, 3):  # quarantine, items, interactions
        calls = 0
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", killed_at(number))
            with pytest.raises(KeyboardInterrupt):
                inbox.add(files, config.data)
        assert inbox.batches() == []
        assert inbox.merged().events == 0
        assert "m999" not in inbox.known_items().to_pylist()
    assert inbox.add(files, config.data).is_new
    assert inbox.merged().events == 1
    assert not inbox.add(files, config.data).is_new


@pytest.mark.parametrize("kind", ["interactions", "items"])
def test_a_torn_file_of_an_older_release_is_told_and_mended_by_the_same_batch(
    inbox: Inbox, config: RekiConfig, workspace: Workspace, tmp_path: Path, kind: TableKind
) -> None:
    items = tmp_path / "items.csv"
    items.write_text("item_id,title,genre\nm999,A new film,Action\n")
    files = BatchFiles(events(tmp_path / "new.csv", ("u0", "m999", 5, LATER)), items)
    batch = inbox.add(files, config.data)
    other = BatchFiles(events(tmp_path / "other.csv", ("u0", "m1", 5, LATER)))
    inbox.add(other, config.data)
    live = Workspace(workspace.local_path("live"))
    path = Path(live.path(INBOX[kind].path, f"{batch.name}.parquet"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="a stored batch is damaged") as caught:
        inbox.merged()
    assert caught.value.where == str(path)
    assert "Give the same batch" in caught.value.todo
    again = inbox.add(files, config.data)
    assert (again.name, again.is_new) == (batch.name, True)
    assert inbox.merged().events == 2


def test_numbers_go_on_after_a_batch_was_removed(
    inbox: Inbox, config: RekiConfig, workspace: Workspace, tmp_path: Path
) -> None:
    for number in range(3):
        file = events(tmp_path / f"{number}.csv", ("u0", f"m{number}", 5, LATER))
        inbox.add(BatchFiles(file), config.data)
    live = Workspace(workspace.local_path("live"))
    Path(live.parts(INBOX["interactions"])[0]).unlink()
    file = events(tmp_path / "last.csv", ("u0", "m9", 5, LATER))
    assert inbox.add(BatchFiles(file), config.data).name.startswith("000004-")


@pytest.mark.parametrize("kind", ["interactions", "items"])
@pytest.mark.parametrize("place", [0.0, 0.1, 0.3, 0.5])
def test_a_batch_with_bytes_lost_in_its_middle_is_mended_by_the_same_batch(
    inbox: Inbox,
    config: RekiConfig,
    workspace: Workspace,
    tmp_path: Path,
    kind: TableKind,
    place: float,
) -> None:
    items = tmp_path / "items.csv"
    rows = "".join(f"m9{n},A new film {n},Action\n" for n in range(200, 400))
    items.write_text(f"item_id,title,genre\n{rows}")
    many = [(f"u{n % 4}", "m1", 5, LATER + n) for n in range(400)]
    files = BatchFiles(events(tmp_path / "new.csv", *many), items)
    batch = inbox.add(files, config.data)
    live = Workspace(workspace.local_path("live"))
    path = Path(live.path(INBOX[kind].path, f"{batch.name}.parquet"))
    content = bytearray(path.read_bytes())
    at = int(place * len(content)) + 4
    content[at : at + 40] = bytes(40)
    path.write_bytes(content)
    try:
        inbox.merged()
    except DataError:
        assert inbox.add(files, config.data).is_new
    assert inbox.merged().events == 400
    assert not inbox.add(files, config.data).is_new


def test_other_files_beside_the_batches_are_none(
    inbox: Inbox, config: RekiConfig, workspace: Workspace, tmp_path: Path
) -> None:
    file = events(tmp_path / "new.csv", ("u0", "m1", 5, LATER))
    first = inbox.add(BatchFiles(file), config.data)
    live = Workspace(workspace.local_path("live"))
    kept = Path(live.path(INBOX["interactions"].path, f"{first.name}.parquet"))
    for name in ("copy of it", "backup-1", f"{first.name} (1)", "000009-none"):
        kept.with_name(f"{name}.parquet").write_bytes(kept.read_bytes())
    assert inbox.batches() == [first.name]
    assert inbox.merged().events == 1
    later = events(tmp_path / "later.csv", ("u0", "m2", 5, LATER))
    assert inbox.add(BatchFiles(later), config.data).name.startswith("000002-")


@pytest.mark.parametrize(
    "order", list(permutations([("click", None), ("rating", 2.0), ("click", None)]))
)
def test_a_rating_counts_before_a_click_of_the_same_second_in_any_order_of_batches(
    inbox: Inbox,
    config: RekiConfig,
    tmp_path: Path,
    order: Sequence[tuple[str, float | None]],
) -> None:
    rules = EventRules(RefreshConfig().events, config.data)
    batches = EventBatches(rules, config.data, inbox.known_items, inbox.holds)
    for number, (kind, rating) in enumerate(order):
        path = tmp_path / f"{number}.parquet"
        if batches.write([Event("u0", "m1", kind, LATER, rating)], path):
            inbox.add(BatchFiles(path), config.data)
    merged = inbox.merged()
    assert merged.events == 1
    history = merged.history.filter(pa.compute.equal(merged.history[schema.TIMESTAMP], LATER))
    assert history["rating"].to_pylist() == [2.0]


def test_of_equal_events_the_latest_batch_counts_and_the_order_stays(
    inbox: Inbox, config: RekiConfig, tmp_path: Path
) -> None:
    first = [("u0", f"m{item}", 5, LATER) for item in range(5)]
    inbox.add(BatchFiles(events(tmp_path / "a.csv", *first)), config.data)
    inbox.add(BatchFiles(events(tmp_path / "b.csv", ("u0", "m7", 1, LATER), first[2])), config.data)
    inbox.add(BatchFiles(events(tmp_path / "c.csv", ("u0", "m0", 1, LATER))), config.data)
    merged = inbox.merged()
    rows = merged.history.filter(pa.compute.equal(merged.history[schema.TIMESTAMP], LATER))
    found = list(zip(rows[schema.ITEM_ID].to_pylist(), rows["rating"].to_pylist(), strict=True))
    assert found == [("m1", 5), ("m3", 5), ("m4", 5), ("m7", 1), ("m2", 5), ("m0", 1)]
