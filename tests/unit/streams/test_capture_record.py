"""Commit records: digest, sealing, cutting into steps."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from streams.capture_record import (
    lineage_digest,
    read_unsettled,
    record_digest,
    seal_payload,
    step_slices,
    unseal_payload,
    unsettled_header,
)
from streams.errors import StreamError
from streams.events import CommitsRecorded, Encryption, Part
from streams.secrets import SecretStore, create_site_key
from tests.stand_ins.capture_writer import CaptureWriter, payload_of
from tests.unit.streams.test_codec import instances
from tests.unit.streams.test_secrets import site

RECORDS: st.SearchStrategy[CommitsRecorded] = instances(CommitsRecorded)


@pytest.fixture
def store(tmp_path: Path) -> SecretStore:
    create_site_key(tmp_path / "secrets" / "site.key")
    return SecretStore(site(tmp_path))


def test_the_digest_is_over_the_bytes_that_the_design_names() -> None:
    record = CommitsRecorded(
        lineage="01890a5d-ac96-774b-bcce-b302099a8057", epoch=3, source="shop", first_ordinal=7, last_ordinal=7,
        part=Part("01890a5d-ac96-774b-bcce-b302099a8058", 2, True), step_ends=b"", events=5, before="0-1-6",
        after="0-1-7", last_step_digest=b"d" * 32, server_id=4, file="b.000001", offset=900, captured_us=123,
        previous_record=b"p" * 32, digest=b"", preamble=b"fde", payload=b"events", accounts=True,
        encryption=Encryption("k1", b"n" * 12),
    )  # fmt: skip

    def sized(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    by_hand = b"".join(
        [
            b"p" * 32,
            b"01890a5d-ac96-774b-bcce-b302099a8057",
            struct.pack("<qqqqqqqq", 3, 7, 7, 4, 900, 123, 5, 1),
            b"\x01" + b"01890a5d-ac96-774b-bcce-b302099a8058" + struct.pack("<qB", 2, 1),
            b"\x01" + sized(b"k1") + sized(b"n" * 12),
            *map(sized, (b"shop", b"0-1-6", b"0-1-7", b"b.000001", b"d" * 32, b"", b"fde", b"events")),
        ]
    )
    assert record_digest(record) == blake3(by_hand).digest()


@given(RECORDS, st.data())
def test_whatever_field_changes_the_digest_does(record: CommitsRecorded, data: Any) -> None:
    other = data.draw(RECORDS)
    name = data.draw(st.sampled_from([f.name for f in dataclasses.fields(record) if f.name != "digest"]))
    changed = dataclasses.replace(record, **{name: getattr(other, name)})
    same = getattr(record, name) == getattr(other, name)
    if name == "lineage":  # None and empty are the same lineage
        same = (record.lineage or "") == (other.lineage or "")
    assert (record_digest(changed) == record_digest(record)) == same


def test_a_lineages_chain_starts_at_its_name_and_its_position() -> None:
    digests = {lineage_digest("a", "1"), lineage_digest("a", "2"), lineage_digest("b", "1")}
    assert len(digests) == 3
    assert all(len(d) == 32 for d in digests)


def test_a_sealed_payload_opens_only_in_its_place(store: SecretStore) -> None:
    writer, _ = CaptureWriter.start()
    record = writer.steps(2, accounts=True)
    sealed = seal_payload(record, store)

    assert sealed.payload != record.payload
    assert record.payload not in sealed.payload
    assert unseal_payload(sealed, store) == record.payload
    assert unseal_payload(record, None) == record.payload
    for to in ({"first_ordinal": 9}, {"epoch": 9}, {"lineage": "x"}, {"source": "x"}, {"part": Part("a", 0, True)}):
        with pytest.raises(StreamError):
            unseal_payload(dataclasses.replace(sealed, **to), store)
    with pytest.raises(StreamError) as caught:
        unseal_payload(sealed, None)
    assert caught.value.code == "payload-sealed"


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20))
def test_a_record_is_cut_into_its_steps(sizes: list[int]) -> None:
    writer, _ = CaptureWriter.start()
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    payload = bytes(i % 251 for i in range(ends[-1]))
    record = dataclasses.replace(
        writer.steps(len(sizes)), payload=payload, step_ends=struct.pack(f"<{len(ends)}I", *ends)
    )
    slices = step_slices(record)
    assert [len(s) for s in slices] == sizes
    assert b"".join(slices) == payload
    assert b"".join(step_slices(record, bytes(len(payload)))) == bytes(len(payload))


def test_a_part_is_one_piece() -> None:
    writer, _ = CaptureWriter.start()
    part = writer.part("a", 0, False, 100)
    assert [bytes(s) for s in step_slices(part)] == [payload_of(1, 0, 100)]


@pytest.mark.parametrize(
    "ends", [b"", b"\0\0\0", struct.pack("<2I", 40, 81), struct.pack("<2I", 81, 80), struct.pack("<I", 80)]
)
def test_ends_that_do_not_fit_are_refused(ends: bytes) -> None:
    writer, _ = CaptureWriter.start()
    with pytest.raises(StreamError) as caught:
        step_slices(dataclasses.replace(writer.steps(2, 40), step_ends=ends))
    assert caught.value.code == "record-unreadable"


@pytest.mark.parametrize(
    ("headers", "count"),
    [({}, None), ({"hf-unsettled": b"x"}, None), ({"hf-unsettled": b"-1"}, None), ({"hf-unsettled": b"9" * 30}, None)],
)
def test_a_header_that_makes_no_sense_says_nothing(headers: dict[str, bytes], count: int | None) -> None:
    assert read_unsettled(headers) is count


def test_the_header_comes_back() -> None:
    name, value = unsettled_header(17)
    assert read_unsettled({name: value}) == 17
