"""Readers of packs and chunks fed with anything: they read it, or raise our errors and no other, in bounded memory."""

from __future__ import annotations

import random
import struct
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.repository.chunks import pack_body, unpack_body
from agents.repository.errors import DAMAGED, PACK_DAMAGED, RepositoryError
from agents.repository.format import DATA, DATA_PACK, KINDS, PLAIN, ZSTD, Place
from agents.repository.keys import Keys
from agents.repository.pack_format import (
    END_MAGIC,
    FRAME_BYTES,
    FRAME_MAGIC,
    HEADER_BYTES,
    PACK_MAGIC,
    entries_in,
    finish_frame_head,
    pack_file,
    parse_pack_file,
    read_frame_head,
    read_header,
    rows_length,
    write_frame_head,
)
from agents.repository.packs import Damage, PackWriter, contents_of, read_frame, read_frames
from agents.repository.stores.local import LocalStore
from agents.repository.stores.memory import MemoryStore
from tests.golden.repository import packs as golden

# The same examples for everybody, however busy the machine is: nothing fails here by chance.
patient = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

KEYS = Keys(golden.REPOSITORY, golden.KEY)
FILE, WHOLE = golden.pack(True)
_store = MemoryStore()
_store.put(FILE, WHOLE)
ENTRIES = contents_of(_store, FILE).entries
CONTENT = {e.name: read_frame(_store, FILE, e.place, e.name, KEYS) for e in ENTRIES}

pieces = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([PACK_MAGIC, FRAME_MAGIC, END_MAGIC, WHOLE[:HEADER_BYTES], WHOLE[-48:], bytes(100)]),
    st.tuples(st.integers(0, len(WHOLE)), st.integers(0, 400)).map(lambda cut: WHOLE[cut[0] : cut[0] + cut[1]]),
)


def collect(errors: list[str]) -> Damage:
    return lambda _name, _place, error: errors.append(error.code)


def readable(data: bytes) -> None:
    """Whatever is listed of a pack of these bytes is one of the chunks that were written, or cannot be read."""
    store = MemoryStore()
    store.put(FILE, data)
    try:
        found = contents_of(store, FILE)
    except RepositoryError as error:
        assert error.code == PACK_DAMAGED  # noqa: PT017 - any other error is the test's
        return
    for entry in found.entries:
        lost: list[str] = []
        wanted = [(entry.name, entry.place)]
        for name, chunk in read_frames(store, FILE, wanted, KEYS, collect(lost)):
            assert CONTENT.get(name) == chunk
        assert set(lost) <= {DAMAGED}
    assert all(at >= 0 and size > 0 and at + size <= max(len(data), HEADER_BYTES) for at, size in found.damaged)


@settings(patient, max_examples=300)
@given(st.lists(pieces, max_size=8).map(b"".join))
def test_any_bytes_are_a_pack_or_are_refused(data: bytes) -> None:
    readable(data)


@settings(patient, max_examples=300)
@given(st.data())
def test_a_pack_that_was_changed_gives_what_was_written_or_nothing(data: st.DataObject) -> None:
    changed = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed)))
        what = data.draw(st.sampled_from(["flip", "cut", "insert", "drop", "zero", "swap"]))
        if what == "flip" and at < len(changed):
            changed[at] ^= data.draw(st.integers(1, 255))
        elif what == "cut":
            del changed[at:]
        elif what == "insert":
            changed[at:at] = data.draw(pieces)
        elif what == "drop":
            del changed[at : at + data.draw(st.integers(1, 100))]
        elif what == "zero":
            size = min(data.draw(st.integers(1, 300)), len(changed) - at)
            changed[at : at + size] = bytes(size)
        else:
            other = data.draw(st.integers(0, len(changed)))
            changed[at : at + 50], changed[other : other + 50] = changed[other : other + 50], changed[at : at + 50]
    readable(bytes(changed))


@settings(patient, max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.binary(max_size=3000)), max_size=12), st.booleans())
def test_what_was_written_is_read(chunks: list[tuple[int, bytes]], encrypted: bool) -> None:
    store, own = MemoryStore(), Keys(golden.REPOSITORY, golden.KEY, encrypted)
    writer = PackWriter(store, own, "n", 1, DATA_PACK, own.naming().scope, size=4000)
    written = {}
    for kind, data in chunks:
        codec, body = pack_body(data)
        name = own.naming().name_of(kind, data)
        writer.add(kind, name, codec, len(data), body)
        written[name] = data
    found: dict[bytes, bytes] = {}
    for pack in writer.flush():
        assert contents_of(store, pack.name).entries == pack.entries
        found |= read_frames(store, pack.name, ((e.name, e.place) for e in pack.entries), own)
    writer.close()
    assert found == written


@patient
@given(st.binary(max_size=200))
def test_heads_are_parsed_or_refused(data: bytes) -> None:
    with pytest.raises(RepositoryError):
        read_header(data)
    assert read_frame_head(data) is None
    assert rows_length(data[-48:], len(data)) is None
    assert parse_pack_file(data.decode("latin-1")) is None


@patient
@given(st.binary(max_size=3).flatmap(lambda _: st.lists(st.binary(min_size=68, max_size=68), max_size=4)))
def test_rows_of_a_footer_are_possible_or_refused(rows: list[bytes]) -> None:
    try:
        for entry in entries_in(b"p" * 16, b"".join(rows), 1000):
            assert entry.place.offset + entry.place.stored <= 1000
    except RepositoryError as error:
        assert error.code == PACK_DAMAGED  # noqa: PT017 - any other error is the test's


def test_a_forged_footer_is_not_believed() -> None:
    """Whoever can write to the store can make a footer that fits its digest."""
    entry = ENTRIES[0]
    body = WHOLE[: ENTRIES[-1].place.offset + FRAME_BYTES + ENTRIES[-1].place.stored]
    for offset, stored, raw, kind in (
        (1 << 60, 10, 10, 1),
        (56, 0xFFFFFFFF, 10, 1),
        (56, 32, 0xFFFFFFFF, 1),
        (56, 32, 16, 77),
        (0, 32, 16, 1),
        (ENTRIES[1].place.offset, ENTRIES[1].place.stored, 16, 1),
    ):
        rows = struct.pack("<32sQIIBBH16s", entry.name, offset, stored, raw, kind, 0, 0, entry.digest)
        trailer = blake3(body[:HEADER_BYTES] + rows).digest() + struct.pack("<Q8s", len(rows), END_MAGIC)
        readable(body + rows + trailer)


def test_a_place_from_a_damaged_index_is_not_believed(tmp_path: Path) -> None:
    entry, on_disk = ENTRIES[0], LocalStore(tmp_path)
    on_disk.create(FILE, [WHOLE])
    for offset, stored in ((0, 32), (57, 32), (56, 31), (1 << 62, 32), ((1 << 64) - 1, 32), (56, 0xFFFFFFFF)):
        wrong = Place(entry.place.pack, offset, stored, 16, DATA, PLAIN)
        with pytest.raises(RepositoryError) as refused:
            read_frame(_store, FILE, wrong, entry.name, KEYS)
        assert refused.value.code == DAMAGED
        with pytest.raises(RepositoryError):
            list(read_frames(_store, FILE, [(entry.name, wrong), (ENTRIES[1].name, ENTRIES[1].place)], KEYS))
        with pytest.raises(RepositoryError):
            read_frame(on_disk, FILE, wrong, entry.name, KEYS)


@patient
@given(st.integers(-1, 300), st.binary(max_size=300), st.integers(0, 1 << 32))
def test_any_body_is_a_chunk_of_its_size_or_is_refused(codec: int, body: bytes, raw: int) -> None:
    try:
        assert len(unpack_body(codec, body, raw)) == raw
    except RepositoryError as error:
        assert error.code == DAMAGED  # noqa: PT017 - any other error is the test's


@patient
@given(st.binary(max_size=500), st.integers(1, 300))
def test_bodies_come_back(piece: bytes, times: int) -> None:
    data = piece * times
    codec, body = pack_body(data)
    assert unpack_body(codec, body, len(data)) == data
    assert len(body) <= len(data)


def test_noise_is_stored_as_it_is_and_text_is_not() -> None:
    noise = random.Random(1).randbytes(1 << 17)
    for data, expected in ((noise, PLAIN), (b"text, text and text. " * 6000, ZSTD), (b"t" * 70_000 + noise, ZSTD)):
        codec, body = pack_body(data)
        assert codec == expected
        assert unpack_body(codec, body, len(data)) == data


def test_a_body_that_would_swell_takes_no_memory() -> None:
    swollen = zstandard.ZstdCompressor().compress(bytes(256 << 20))
    unsaid = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(256 << 20))
    lying = bytearray(zstandard.ZstdCompressor().compress(bytes(1000)))
    tracemalloc.start()
    try:
        for body in (swollen, unsaid, bytes(lying), swollen[:9] + unsaid[9:]):
            with pytest.raises(RepositoryError):
                unpack_body(ZSTD, body, 999)
        with pytest.raises(RepositoryError):
            unpack_body(ZSTD, swollen, 256 << 20)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_large_file_of_anything_is_walked_in_little_memory(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    path = tmp_path / FILE
    path.parent.mkdir(parents=True)
    frames = WHOLE[: ENTRIES[-1].place.offset + FRAME_BYTES + ENTRIES[-1].place.stored]
    huge = finish_frame_head(write_frame_head(16 << 20, 16 << 20, 1, 0, False, 0, bytes(8), bytes(32)), bytes(16))
    with path.open("wb") as file:
        file.write(frames)
        file.seek(40 << 20)  # a hole, as a crash leaves it
        file.write(huge + FRAME_MAGIC * (1 << 18))
        file.seek(120 << 20)
        file.write(frames[HEADER_BYTES:] + b"end")
    tracemalloc.start()
    try:
        found = contents_of(store, FILE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [e.name for e in found.entries] == [e.name for e in ENTRIES] * 2
    assert peak < 64 << 20


def test_packs_are_called_as_they_must_be() -> None:
    assert parse_pack_file(pack_file(b"\xab" * 16, "node-1", 2**64 - 1)) == (b"\xab" * 16, "node-1", 2**64 - 1)
    for node in ("", "UP", "a/b", "-x", "x" * 65, "ä"):
        with pytest.raises(ValueError, match="no pack can be called"):
            pack_file(bytes(16), node, 1)
    for name in ("packs/ab/" + "cd" * 16 + "-n-1.pack", "packs/ab/" + "ab" * 15 + "-n-1.pack", "points/x.point"):
        assert parse_pack_file(name) is None
