"""Golden logs decode to what the server that wrote them says of the same rows."""

from __future__ import annotations

import pytest

from streams.formats.binlog.events import iter_events, verify_checksums
from streams.formats.binlog.step import Change, decode_step, summarise
from streams.formats.binlog.table_map import Declared, TableMap, with_declared
from streams.formats.binlog.values import Undecoded
from streams.formats.errors import FormatError
from tests.unit.streams.formats.recorded import golden, golden_names, golden_rows, shown


def declared_by(name: str):  # type: ignore[no-untyped-def]
    """Fills table maps in from the recorded column types, as `schema.<source>` would."""
    tables = golden_rows(name)

    def describe(table_map: TableMap) -> TableMap:
        columns = tables[table_map.table]["columns"] if table_map.table in tables else None
        if columns is None or len(columns) != len(table_map.columns):
            return table_map
        return with_declared(table_map, [Declared(*column) for column in columns])

    return describe


def final_rows(name: str, describe) -> dict[str, list[list[object]]]:  # type: ignore[no-untyped-def]
    """Rows left in each table after all changes in the log, in the server's notation."""
    log = golden(name)
    tables: dict[str, list[list[object]]] = {}
    for step in log.steps:
        for change in decode_step(log.fde, step, describe=describe):
            rows = tables.setdefault(change.table, [])
            if change.before is not None:
                rows.remove(in_notation(change, change.before))
            if change.after is not None:
                rows.append(in_notation(change, change.after))
    return {table: sorted(rows, key=repr) for table, rows in tables.items()}


def in_notation(change: Change, values: tuple) -> list[object]:  # type: ignore[type-arg]
    return [shown(value, column) for value, column in zip(values, change.columns, strict=True)]


@pytest.mark.parametrize("name", [n for n in golden_names() if n not in ("groups", "old_temporal")])
def test_every_value_is_what_the_server_selects(name: str) -> None:
    expected = golden_rows(name)
    rows = final_rows(name, declared_by(name))
    assert set(rows) == set(expected)
    for table, said in expected.items():
        columns = [column for column, *_ in said["columns"]]
        for ours, theirs in zip(rows[table], sorted(said["rows"], key=repr), strict=True):
            different = [
                (column, mine, other)
                for column, mine, other in zip(columns, ours, theirs, strict=True)
                if (isinstance(mine, float) and isinstance(other, float) and mine != pytest.approx(other, rel=1e-15))
                or (not isinstance(mine, float) and mine != other)
            ]
            assert not different, (table, different)


@pytest.mark.parametrize("name", [name for name in golden_names() if golden(name).fde.has_checksum])
def test_checksums_hold_and_damage_is_noticed(name: str) -> None:
    events = golden(name).events
    assert verify_checksums(events) == len(list(iter_events(events, checksum=True))) > 3
    damaged = bytearray(events)
    damaged[len(events) // 2] ^= 1
    with pytest.raises(FormatError):
        verify_checksums(damaged)


def test_columns_are_described_as_declared() -> None:
    """Names, and types as far as the log tells them, are those of information_schema."""
    log, tables = golden("zoo"), golden_rows("zoo")
    seen = set()
    for step in log.steps:
        for change in decode_step(log.fde, step, limit=1):
            seen.add(change.table)
            for column, (name, declared, _) in zip(change.columns, tables[change.table]["columns"], strict=True):
                assert column.name == name
                bare = declared.split("(")[0].split(" ")[0]
                ours = column.type_name.split("(")[0].split(" ")[0]
                same = {"uuid": "binary", "inet4": "binary", "inet6": "binary"}
                assert ours == same.get(bare, bare), (change.table, name, column)
                if "unsigned" in declared:
                    assert column.unsigned
                if bare in ("varchar", "char", "decimal", "bit", "enum", "set"):
                    assert column.type_name.removesuffix(" unsigned") == declared.split(" /*")[0].removesuffix(
                        " unsigned"
                    )
    assert seen == set(tables)


def test_a_log_without_metadata_says_so_instead_of_guessing() -> None:
    log = golden("bare")
    change = decode_step(log.fde, log.steps[1])[0]
    assert [column.name for column in change.columns] == [None] * 7
    assert change.primary_key is None
    assert change.after is not None
    assert change.after[0] == -1  # unsigned, had the log said so
    assert change.after[1] == Undecoded("ümlaut".encode("latin-1"), None)
    assert change.columns[3].members is None


def test_tagged_and_plain_gtids_and_steps_without_any() -> None:
    steps = [[step.partition(":")[2] for step in gtids(name)] for name in ("mysql9_compressed", "mysql9_partial")]
    assert steps[0] == ["1", "2", "3", "4", "nightly_job:1", "nightly_job:2", "5"]
    assert steps[1] == [str(i) for i in range(1, 13)]
    assert len({gtid.partition(":")[0] for gtid in gtids("mysql9_compressed")}) == 1
    assert set(gtids("mysql9_anonymous")) == set(gtids("mysql55")) == {""}


def gtids(name: str) -> list[str]:
    log = golden(name)
    return [summarise(log.fde, step).gtid for step in log.steps]


def test_a_compressed_transaction_is_the_rows_in_it() -> None:
    log = golden("mysql9_compressed")
    summaries = [summarise(log.fde, step) for step in log.steps]
    assert [tuple(s.changes.get(("golden", "t"), ())) for s in summaries] == [
        (), (), (3, 0, 0), (1, 4, 1), (0, 1, 0), (1, 0, 0), (1, 0, 0)
    ]  # fmt: skip
    assert all(s.complete for s in summaries)
    assert [s.kind for s in summaries] == ["ddl", "ddl", *["rows"] * 5]


def test_steps_of_a_server_without_gtids_are_told_apart() -> None:
    log = golden("mysql55")
    summaries = [summarise(log.fde, step) for step in log.steps]
    assert all(s.complete for s in summaries)
    zoo, flat, copied = ("golden", "zoo"), ("golden", "flat"), ("golden", "copied")
    assert [(s.kind, {table: tuple(change) for table, change in s.changes.items()}) for s in summaries] == [
        ("ddl", {}), ("ddl", {}), ("rows", {zoo: (3, 0, 0)}), ("rows", {zoo: (1, 1, 1)}), ("ddl", {}),
        ("rows", {flat: (2, 0, 0)}), ("ddl", {copied: (2, 0, 0)}), ("rows", {zoo: (1, 0, 0)}),
    ]  # fmt: skip


def test_partial_images_are_told_from_whole_ones() -> None:
    log = golden("groups")
    partial = [summarise(log.fde, step) for step in log.steps]
    assert [s.changes for s in partial if s.partial] == [{("golden", "t"): (0, 1, 0)}]


def test_old_temporal_columns_decode_and_their_fractions_are_refused() -> None:
    log, said = golden("old_temporal"), golden_rows("old_temporal")
    whole, fractions = log.steps[1], log.steps[3]
    changes = decode_step(log.fde, whole)
    assert sorted((in_notation(c, c.after or ()) for c in changes), key=repr) == said["whole"]["rows"]
    with pytest.raises(FormatError) as caught:
        decode_step(log.fde, fractions)
    assert "mysql56_temporal_format" in caught.value.hint


def test_pages_of_a_step_are_the_step() -> None:
    log = golden("zoo")
    step = max(log.steps, key=lambda step: len(decode_step(log.fde, step)))
    whole = decode_step(log.fde, step)
    assert len(whole) > 3
    pages = [decode_step(log.fde, step, offset=at, limit=2) for at in range(0, len(whole) + 2, 2)]
    assert [change for page in pages for change in page] == whole
    assert decode_step(log.fde, step, limit=0) == []
