"""Positions of MySQL: GTID sets against sets of numbers, and as the server writes them; files and offsets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.errors import AgentError
from agents.mysql import coordinates, file_positions, gtid_sets
from agents.mysql.coordinates import covers

A, B = "3e11fa47-71ca-11e1-9e33-c80aa9429562", "5e90bb75-e8fc-11f1-859a-02fc00000001"
SOURCES = [(A, ""), (A, "tag"), (B, "")]
model = st.dictionaries(st.sampled_from(SOURCES), st.sets(st.integers(1, 40), min_size=1, max_size=20))
Model = dict[tuple[str, str], set[int]]


def made(numbers: Model, order: int = 0) -> gtid_sets.GtidSet:
    out: gtid_sets.GtidSet = {}
    for source, some in numbers.items():
        for n in sorted(some, key=lambda n: (n * order) % 41):
            assert gtid_sets.add(out, (source, n))
            assert not gtid_sets.add(out, (source, n))
    return out


@given(model, st.integers(1, 40))
def test_a_set_is_written_canonically_in_whatever_order_it_came_about(numbers: Model, order: int) -> None:
    text = gtid_sets.show(made(numbers, order))
    assert text == gtid_sets.show(made(numbers, 1))
    assert gtid_sets.show(gtid_sets.parse(text)) == text
    held = {source: {n for a, b in spans for n in range(a, b + 1)} for source, spans in gtid_sets.parse(text).items()}
    assert held == numbers


@given(model, model)
def test_sets_are_compared_by_containment(one: Model, other: Model) -> None:
    within = all(some <= one.get(source, set()) for source, some in other.items())
    assert gtid_sets.contains(made(one), made(other)) == within
    assert covers(gtid_sets.show(made(one)), gtid_sets.show(made(other))) == within


def test_text_as_servers_and_people_write_it() -> None:
    spelled = f" {A.upper()}:7:1-3:4-5 ,\n{B}:1:tag:2:1 "
    assert gtid_sets.show(gtid_sets.parse(spelled)) == f"{A}:1-5:7,{B}:1:tag:1-2"
    assert gtid_sets.parse("") == {}


@pytest.mark.parametrize("text", ["nonsense", A, f"{A}:", f"{A}:0", f"{A}:5-3", f"{A}:1-", f"{A}:Ä:1", "0-1-100"])
def test_what_is_no_set_is_refused(text: str) -> None:
    with pytest.raises(AgentError) as caught:
        gtid_sets.parse(text)
    assert caught.value.code == "position-invalid"


def test_the_wire_form_is_the_servers() -> None:
    """As MySQL 9.7.4 wrote them into Previous_gtids events."""
    plain = "0100000000000000" + B.replace("-", "") + "0100000000000000" + "0100000000000000" + "0d00000000000000"
    assert gtid_sets.encode(gtid_sets.parse(f"{B}:1-12")).hex() == plain
    tagged = (
        "0102000000000001"
        "5e90bb75e8fc11f1859a02fc0000000100010000000000000001000000000000000d00000000000000"
        "5e90bb75e8fc11f1859a02fc000000010a6d79746167010000000000000001000000000000000200000000000000"
    )  # fmt: skip
    assert gtid_sets.encode(gtid_sets.parse(f"{B}:1-12:mytag:1")).hex() == tagged
    assert gtid_sets.encode({}).hex() == "0000000000000000"


def test_a_place_in_a_log_is_ordered_within_one_server_only() -> None:
    here = file_positions.parse(f"{A}/1700000000/binlog.000003:1567")
    assert str(here) == f"{A}/1700000000/binlog.000003:1567"

    def at(text: str) -> bool:
        return covers(str(here), text)

    assert at(str(here))
    assert at(f"{A}/1699999999/binlog.000002:99999")
    assert not at(f"{A}/1700000000/binlog.000003:1568")
    assert not at(f"{A}/1700000009/binlog.000004:4")
    assert not at(f"{A}/1700000001/binlog.000003:4"), "another file of the same name"
    assert at(f"{A}/0/binlog.000003:4"), "when it was begun is not known"
    assert not at(f"{B}/1700000000/binlog.000003:4"), "another server"
    assert not at(f"{A}:1-5")
    assert at("")
    assert covers(f"{A}/1/b.1000000:4", f"{A}/1/b.999999:9"), "numbers outgrow their digits"


@pytest.mark.parametrize("text", ["", "x", "a/b/c:1", "1/2/c", "1/2/c:x", f"{A}:1"])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(AgentError):
        file_positions.parse(text)


def test_each_kind_of_coordinates_says_where_steps_lead() -> None:
    sources = coordinates.of_mysql(f"{A}:1-5")
    assert isinstance(sources, coordinates.Sources)
    steps = [((A, ""), 6), ((B, ""), 1), ((A, ""), 8)]
    assert sources.text(*steps) == f"{A}:1-6:8,{B}:1"
    assert sources.advance(steps, "f") == (f"{A}:1-6,{B}:1", f"{A}:1-6:8,{B}:1")
    with pytest.raises(AgentError) as caught:
        sources.advance([((A, ""), 8)], "f")
    assert caught.value.code == "capture-out-of-order"

    files = coordinates.of_mysql("55/7/b.000001:4")
    assert isinstance(files, coordinates.Files)
    marks = [files.at("b.000001", 7, 100), files.at("b.000002", 9, 200)]
    assert files.advance(marks, "f") == ("55/9/b.000002:4", "55/9/b.000002:200")  # from where that file begins
    files.began("b.000003", 11)
    with pytest.raises(AgentError) as caught:
        files.began("b.000002", 10)
    assert caught.value.code == "capture-position-lost"
