"""Packs written and read back: whole, torn, damaged, moved."""

from __future__ import annotations

import random
import secrets
import threading

import pytest

from agents.repository import pack_format, packs
from agents.repository.chunks import is_zero, pack_body
from agents.repository.errors import CHUNK_MISSING, DAMAGED, RepositoryError
from agents.repository.format import DATA, DATA_PACK, META_PACK, NODE, Place
from agents.repository.keys import Keys, Naming, new_key
from agents.repository.pack_format import FRAME_BYTES, HEADER_BYTES, TRAILER_BYTES, parse_pack_file
from agents.repository.packs import (
    Damage,
    PackWriter,
    SealedPack,
    contents_of,
    find_pack,
    frames_of,
    read_body,
    read_frame,
    read_frames,
    rows_of,
)
from agents.repository.stores import Buffer
from agents.repository.stores.memory import MemoryStore


@pytest.fixture(params=[True, False], ids=["encrypted", "plain"])
def keys(request: pytest.FixtureRequest) -> Keys:
    return Keys(secrets.token_bytes(16), new_key(), encrypted=request.param)


def chunk(number: int, size: int = 3000) -> bytes:
    """Half of it compresses."""
    noise = random.Random(number).randbytes(size // 2)
    return noise + bytes([number % 251]) * (size - len(noise))


def add(writer: PackWriter, naming: Naming, data: bytes, kind: int = DATA) -> tuple[bytes, Place]:
    codec, body = pack_body(data)
    name = naming.name_of(kind, data)
    return name, writer.add(kind, name, codec, len(data), body)


def collect(names: list[bytes]) -> Damage:
    return lambda name, _place, _error: names.append(name)


def written(
    store: MemoryStore, keys: Keys, count: int, size: int = 1 << 30, scope: str = "", kind: int = DATA_PACK
) -> tuple[list[SealedPack], dict[bytes, tuple[Place, bytes]]]:
    naming = keys.naming(scope)
    writer = PackWriter(store, keys, "node-1", 7, kind, naming.scope, size)
    out = {}
    for i in range(count):
        name, place = add(writer, naming, chunk(i), NODE if kind == META_PACK else DATA)
        out[name] = place, chunk(i)
    sealed = writer.flush()
    writer.close()
    return sealed, out


def test_what_was_added_is_read_back(keys: Keys) -> None:
    store = MemoryStore()
    (pack,), chunks = written(store, keys, 20)
    assert parse_pack_file(pack.name) == (pack.pack, "node-1", 7)
    assert find_pack(store, pack.pack) == pack.name
    assert store.size(pack.name) == pack.size
    for name, (place, data) in chunks.items():
        assert read_frame(store, pack.name, place, name, keys) == data
    wanted = [(name, place) for name, (place, _) in chunks.items()]
    random.Random(1).shuffle(wanted)
    assert list(read_frames(store, pack.name, wanted, keys)) == [(n, d) for n, (_, d) in chunks.items()]


def test_a_footer_lists_what_walking_finds(keys: Keys) -> None:
    store = MemoryStore()
    (pack,), chunks = written(store, keys, 50)
    by_footer = contents_of(store, pack.name)
    assert by_footer.sealed
    assert by_footer.entries == pack.entries
    assert {e.name: e.place for e in by_footer.entries} == {n: p for n, (p, _) in chunks.items()}
    assert by_footer.header is not None
    assert (by_footer.header.epoch, by_footer.header.repository) == (7, keys.repository)
    store.put(pack.name, store.read(pack.name)[:-1])
    walked = contents_of(store, pack.name)
    assert not walked.sealed
    assert walked.entries == by_footer.entries
    assert rows_of(store, pack.name) is None


def test_packs_are_full_at_their_size_and_never_shared(keys: Keys) -> None:
    store = MemoryStore()
    sealed, chunks = written(store, keys, 60, size=20_000)
    assert len(sealed) > 3
    assert all(p.size < 30_000 for p in sealed)
    assert sum(len(p.entries) for p in sealed) == 60
    for pack in sealed:
        for entry in frames_of(store, pack.name):
            assert read_frame(store, pack.name, entry.place, entry.name, keys) == chunks[entry.name][1]


def test_no_pack_has_more_frames_than_a_footer_holds_however_many_are_under_way(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "_MOST_FRAMES", 4)
    together = threading.Barrier(12)

    def digest_of(body: Buffer) -> bytes:
        together.wait(60)  # all of them have their frame's number, and none is written
        return pack_format.digest_of(body)

    monkeypatch.setattr(packs, "digest_of", digest_of)
    store, naming = MemoryStore(), keys.naming()
    writer = PackWriter(store, keys, "n", 1, DATA_PACK, naming.scope)
    threads = [threading.Thread(target=add, args=(writer, naming, chunk(i))) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(pack.entries) for pack in writer.flush()) == [4, 4, 4]
    writer.close()


def test_many_threads_add_to_one_writer(keys: Keys) -> None:
    store = MemoryStore()
    naming = keys.naming()
    writer = PackWriter(store, keys, "n", 1, DATA_PACK, naming.scope, size=50_000)
    found: dict[bytes, tuple[Place, bytes]] = {}

    def work(part: int) -> None:
        for i in range(part, 400, 4):
            name, place = add(writer, naming, chunk(i))
            found[name] = place, chunk(i)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sealed = {p.pack: p for p in writer.flush()}
    writer.close()
    assert len(found) == 400
    assert sum(len(p.entries) for p in sealed.values()) == 400
    for name, (place, data) in found.items():
        assert read_frame(store, sealed[place.pack].name, place, name, keys) == data


def test_what_was_in_vain_takes_no_room(keys: Keys) -> None:
    store = MemoryStore()
    (sealed,), _ = written(store, keys, 3)
    naming = keys.naming()
    writer = PackWriter(store, keys, "n", 1, DATA_PACK, naming.scope)
    writer.add(DATA, naming.name_of(DATA, b"one"), 0, 3, b"one")
    assert len(list(store.list("packs/"))) == 2
    writer.close()
    assert [listed.name for listed in store.list("packs/")] == [sealed.name], "a place that is full gets its room back"


def test_flushing_nothing_makes_nothing(keys: Keys) -> None:
    store = MemoryStore()
    assert written(store, keys, 0)[0] == []
    assert list(store.list()) == []


def test_a_writer_goes_on_after_a_flush_in_another_pack(keys: Keys) -> None:
    store = MemoryStore()
    naming = keys.naming()
    writer = PackWriter(store, keys, "n", 1, DATA_PACK, naming.scope)
    first = add(writer, naming, b"first")
    (one,) = writer.flush()
    second = add(writer, naming, b"second")
    (two,) = writer.flush()
    writer.close()
    assert one.pack != two.pack
    assert read_frame(store, one.name, first[1], first[0], keys) == b"first"
    assert read_frame(store, two.name, second[1], second[0], keys) == b"second"


@pytest.mark.parametrize("cut", ["trailer", "footer", "between", "body", "head", "header"])
def test_a_torn_pack_gives_every_whole_frame(keys: Keys, cut: str) -> None:
    store = MemoryStore()
    (pack,), chunks = written(store, keys, 12)
    data = store.read(pack.name)
    sixth, last = pack.entries[6].place, pack.entries[-1].place
    at, whole = {
        "trailer": (len(data) - 5, 12),
        "footer": (last.offset + FRAME_BYTES + last.stored + 100, 12),
        "between": (sixth.offset, 6),
        "body": (sixth.offset + FRAME_BYTES + 10, 6),
        "head": (sixth.offset + 30, 6),
        "header": (20, 0),
    }[cut]
    store.put(pack.name, data[:at])
    found = contents_of(store, pack.name)
    assert not found.sealed
    assert found.entries == pack.entries[:whole]
    for entry in found.entries:
        assert read_frame(store, pack.name, entry.place, entry.name, keys) == chunks[entry.name][1]


def test_damage_in_the_middle_costs_what_it_hit(keys: Keys) -> None:
    store = MemoryStore()
    (pack,), _ = written(store, keys, 12)
    whole = store.read(pack.name)
    for at, lost in ((pack.entries[3].place.offset + 5, 3), (pack.entries[5].place.offset + FRAME_BYTES + 7, 5)):
        data = bytearray(whole)
        data[at] ^= 0x40
        data[-1] ^= 1  # and no footer
        store.put(pack.name, bytes(data))
        found = contents_of(store, pack.name)
        assert [e.name for e in found.entries] == [e.name for i, e in enumerate(pack.entries) if i != lost]
        hit = pack.entries[lost].place
        assert found.damaged[0] == (hit.offset, FRAME_BYTES + hit.stored)


def test_zeros_where_a_crash_lost_pages_are_no_frames(keys: Keys) -> None:
    store = MemoryStore()
    (pack,), _ = written(store, keys, 12)
    data = bytearray(store.read(pack.name))
    third = pack.entries[3].place.offset
    data[third:] = bytes(len(data) - third)
    store.put(pack.name, bytes(data))
    assert contents_of(store, pack.name).entries == pack.entries[:3]


def test_every_flipped_byte_of_a_frame_is_found(keys: Keys) -> None:
    store = MemoryStore()
    (pack,), chunks = written(store, keys, 3)
    entry = pack.entries[1]
    whole = store.read(pack.name)
    for at in range(entry.place.offset, entry.place.offset + FRAME_BYTES + entry.place.stored, 13):
        data = bytearray(whole)
        data[at] ^= 1 << at % 8
        store.put(pack.name, bytes(data))
        with pytest.raises(RepositoryError) as damaged:
            read_frame(store, pack.name, entry.place, entry.name, keys)
        assert damaged.value.code == DAMAGED
        lost: list[bytes] = []
        wanted = [(e.name, e.place) for e in pack.entries]
        rest = dict(read_frames(store, pack.name, wanted, keys, collect(lost)))
        assert lost == [entry.name]
        assert rest == {n: d for n, (_, d) in chunks.items() if n != entry.name}


def test_a_chunk_counts_under_its_own_name_and_in_its_own_pack_only(keys: Keys) -> None:
    store = MemoryStore()
    (pack,), _ = written(store, keys, 3)
    (other,), _ = written(store, keys, 3)
    first, second = pack.entries[:2]
    with pytest.raises(RepositoryError):
        read_frame(store, pack.name, second.place, first.name, keys)
    if keys.encrypted:  # a frame moved bytewise into another pack does not open
        data = bytearray(store.read(other.name))
        start, end = first.place.offset, first.place.offset + FRAME_BYTES + first.place.stored
        data[start:end] = store.read(pack.name)[start:end]
        store.put(other.name, bytes(data))
        with pytest.raises(RepositoryError) as refused:
            read_frame(store, other.name, other.entries[0].place, first.name, keys)
        assert refused.value.code == DAMAGED


def test_a_pack_that_is_gone_or_cut_is_told_apart(keys: Keys) -> None:
    store = MemoryStore()
    (pack,), _ = written(store, keys, 3)
    last = pack.entries[-1]
    store.put(pack.name, store.read(pack.name)[: last.place.offset + 10])
    with pytest.raises(RepositoryError) as cut:
        read_frame(store, pack.name, last.place, last.name, keys)
    store.delete(pack.name)
    with pytest.raises(RepositoryError) as gone:
        read_frame(store, pack.name, last.place, last.name, keys)
    assert (cut.value.code, gone.value.code) == (DAMAGED, CHUNK_MISSING)
    lost: list[str] = []
    wanted = [(e.name, e.place) for e in pack.entries]
    assert list(read_frames(store, pack.name, wanted, keys, lambda n, p, error: lost.append(error.code))) == []
    assert lost == [CHUNK_MISSING] * 3


def test_another_repositorys_key_opens_nothing() -> None:
    store = MemoryStore()
    keys = Keys(secrets.token_bytes(16), new_key())
    (pack,), _ = written(store, keys, 1)
    other = Keys(keys.repository, new_key())
    with pytest.raises(RepositoryError, match="does not open with this repository's key"):
        read_frame(store, pack.name, pack.entries[0].place, pack.entries[0].name, other)


def test_a_chunk_is_moved_with_its_scope(keys: Keys) -> None:
    store = MemoryStore()
    (pack,), chunks = written(store, keys, 5, scope="tenant-a")
    writer = PackWriter(store, keys, "n", 8, DATA_PACK, keys.naming("").scope)
    places = {}
    for entry in pack.entries:
        frame = read_body(store, pack.name, entry.place, entry.name, keys)
        places[frame.name] = writer.add(frame.kind, frame.name, frame.codec, frame.raw, frame.body, frame.scope)
    (moved,) = writer.flush()
    writer.close()
    store.delete(pack.name)
    for name, place in places.items():
        assert read_frame(store, moved.name, place, name, keys) == chunks[name][1]


def test_scopes_and_kinds_name_the_same_bytes_differently(keys: Keys) -> None:
    names = {keys.naming(scope).name_of(kind, b"same") for scope in ("", "a", "b") for kind in (DATA, NODE)}
    assert len(names) == 6


def test_nothing_readable_is_in_an_encrypted_pack() -> None:
    store = MemoryStore()
    keys = Keys(secrets.token_bytes(16), new_key())
    naming = keys.naming()
    writer = PackWriter(store, keys, "n", 1, DATA_PACK, naming.scope)
    secret = b"patient records of the year"
    writer.add(DATA, naming.name_of(DATA, secret), 0, len(secret), secret)
    (pack,) = writer.flush()
    writer.close()
    data = store.read(pack.name)
    assert b"patient" not in data
    assert len(data) == HEADER_BYTES + FRAME_BYTES + len(secret) + 16 + 68 + TRAILER_BYTES


def test_zeros_are_told_from_everything_else() -> None:
    assert is_zero(b"")
    assert is_zero(bytes(1 << 18))
    assert is_zero(memoryview(bytearray(4096)))
    for at in (0, 1, 4095, 4096, (1 << 18) - 1):
        data = bytearray(1 << 18)
        data[at] = 1
        assert not is_zero(data)
        assert not is_zero(memoryview(data))
