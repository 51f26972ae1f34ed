"""Keys as typed and keys as logged have one canonical form; text that a collation holds equal has one, too."""

from __future__ import annotations

import pytest

from streams.formats.binlog.keys import canonical, declared_key, fold_text, key_of_texts, key_reader
from streams.formats.binlog.rows import layout_of
from streams.formats.binlog.table_map import LONG, LONGLONG, NEWDECIMAL, STRING, VARCHAR, Column, Declared, TableMap
from streams.formats.errors import FormatError


def reader(columns: list[Column], key: tuple[int, ...] = (0,)) -> object:
    table = TableMap("s", "t", tuple(columns), key, tuple(0 for _ in key), b"")
    return key_reader(layout_of(table, bytes([(1 << len(columns)) - 1])), key)


def test_an_integer_keeps_its_form_when_it_grows() -> None:
    small = reader([Column(0, LONG, (0, 0), False, "id", False)])
    large = reader([Column(0, LONGLONG, (0, 0), False, "id", False)])
    for number in (0, 7, -1, 2**31 - 1, -(2**31)):
        form = key_of_texts([Declared("id", "int(11)")], [str(number)])
        assert small(b"\xfe" + number.to_bytes(4, "little", signed=True)) == form  # type: ignore[operator]
        assert large(b"\xfe" + number.to_bytes(8, "little", signed=True)) == form  # type: ignore[operator]
    unsigned = reader([Column(0, LONGLONG, (0, 0), False, "id", True)])
    assert unsigned(b"\xfe" + b"\xff" * 8) == key_of_texts([Declared("id", "bigint(20) unsigned")], [str(2**64 - 1)])  # type: ignore[operator]


def test_text_and_composite_keys() -> None:
    columns = [
        Column(0, VARCHAR, (40, 0), False, "code", charset="utf8mb4"),
        Column(1, VARCHAR, (44, 1), False, "long", charset="utf8mb4"),
        Column(2, NEWDECIMAL, (10, 2), False, "price", False),
        Column(3, STRING, (STRING, 4), False, "raw", charset="binary"),
    ]
    read = reader(columns, (1, 0, 2, 3))
    image = b"\xf0" + b"\x03AbC" + b"\x05\x00Zo\xc3\xab " + bytes.fromhex("8000000132") + b"\x02\x01\x02"
    declared = [
        Declared("long", "varchar(75)", "utf8mb4"),
        Declared("code", "varchar(10)", "utf8mb4"),
        Declared("price", "decimal(10,2)"),
        Declared("raw", "binary(4)"),
    ]
    form = key_of_texts(declared, ["zoe", "aBc", "1.5", "0x0102"])
    assert read(image) == form  # type: ignore[operator]
    assert form == canonical([b"zoe", b"abc", b"1.5", b"\x01\x02\0\0"])


@pytest.mark.parametrize(("one", "other"), [("A", "a"), ("é", "E"), ("x ", "x"), ("ǅ", "dž"), ("ﬁ", "FI"), ("É", "é")])
def test_what_collations_hold_equal_is_folded(one: str, other: str) -> None:
    assert fold_text(one) == fold_text(other)


def test_what_is_no_key_is_refused() -> None:
    for declared, text in (
        (Declared("id", "int"), "x"),
        (Declared("u", "uuid"), "zz"),
        (Declared("d", "decimal(5,2)"), "a"),
    ):
        with pytest.raises(FormatError, match="no value of"):
            key_of_texts([declared], [text])
    with pytest.raises(FormatError, match="has 1 columns"):
        key_of_texts([Declared("id", "int")], ["1", "2"])


def test_the_declared_key() -> None:
    def column(name: str, nullable: bool = False, generated: str | None = None) -> dict[str, object]:
        return {"name": name, "nullable": nullable, "generated": generated}

    columns = [column("a"), column("b", True), column("c", generated="virtual"), column("d")]
    base = {"columns": columns, "primary_key": [], "unique_keys": {"z": ["d"], "b": ["b"], "v": ["c"], "y": ["a", "d"]}}
    assert declared_key(base) == ("y", ("a", "d"))
    assert declared_key(base | {"primary_key": ["d", "a"]}) == ("PRIMARY", ("d", "a"))
    assert declared_key(base | {"unique_keys": {"b": ["b"]}}) is None
