"""Golden packs, wraps and codes: read by this release, written as it writes them, and laid out as docs/design.md says."""

from __future__ import annotations

import struct
import zlib

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from agents.repository import escrow, keys
from agents.repository.keys import Keys
from agents.repository.packs import contents_of, read_frame
from agents.repository.stores.memory import MemoryStore
from tests.golden.repository import packs as made


def golden(name: str) -> bytes:
    return (made.HERE / name).read_bytes()


@pytest.mark.parametrize("name", sorted(made.files()))
def test_what_is_written_is_what_was_written(name: str) -> None:
    assert made.files()[name] == golden(name)


@pytest.mark.parametrize("encrypted", [True, False])
def test_a_golden_pack_is_read(encrypted: bool) -> None:
    store, own = MemoryStore(), Keys(made.REPOSITORY, made.KEY, encrypted)
    file = made.pack(encrypted)[0]
    assert file == "packs/80/808182838485868788898a8b8c8d8e8f-node-1-7.pack"
    store.put(file, golden("encrypted.pack" if encrypted else "plain.pack"))
    found = contents_of(store, file)
    assert found.sealed
    chunks = [read_frame(store, file, e.place, e.name, own) for e in found.entries]
    assert chunks == [*(data for _, _, data, _ in made.CHUNKS), b"a node"]


def test_a_golden_pack_is_laid_out_as_documented() -> None:
    """Read with nothing but the layout, as somebody would who has lost this program."""
    data = golden("encrypted.pack")
    magic, version, flags, kind, pack, repository, epoch = struct.unpack("<8sHBB16s16sQ", data[:52])
    assert (magic, version, flags, kind, epoch) == (b"HFPACK1\n", 1, 1, 1, 7)
    assert (pack, repository) == (made.PACK, made.REPOSITORY)
    assert zlib.crc32(data[:52]) == int.from_bytes(data[52:56], "little")

    cipher = AESGCM(blake3(made.KEY + pack, derive_key_context="holdfast 1 pack").digest())
    at, rows = 56, b""
    for kind, codec, chunk, body in [*made.CHUNKS, (2, 0, b"a node", b"a node")]:
        head = data[at : at + 80]
        magic, stored, raw, kind_, codec_, flags, number, scope, name = struct.unpack("<4sIIBBHI8s32s", head[:60])
        assert (magic, raw, kind_, codec_, flags) == (b"HFCK", len(chunk), kind, codec, 1)
        assert zlib.crc32(head[:76]) == int.from_bytes(head[76:], "little")
        sealed = data[at + 80 : at + 80 + stored]
        assert blake3(sealed).digest(length=16) == head[60:76]
        assert cipher.decrypt(number.to_bytes(12, "little"), sealed, head[:60] + pack) == body
        name_key = blake3(made.KEY + bytes([kind]) + scope, derive_key_context="holdfast 1 chunk name").digest()
        assert blake3(chunk, key=name_key).digest() == name
        scope_key = blake3(made.KEY, derive_key_context="holdfast 1 scope").digest()
        assert scope == blake3(b"tenant" if kind == 1 else b"", key=scope_key).digest(length=8)
        rows += struct.pack("<32sQIIBBH16s", name, at, stored, raw, kind, codec, 0, head[60:76])
        at += 80 + stored
    assert data[at:] == rows + blake3(data[:56] + rows).digest() + struct.pack("<Q8s", len(rows), b"HFPACKE\n")


def test_golden_wraps_give_the_key() -> None:
    for kind, secret in (("passphrase", made.PASSPHRASE.encode()), ("site", made.SECRET), ("recovery", made.SECRET)):
        assert keys.open_wrap(keys.wrap_from_bytes(golden(f"{kind}.wrap.json")), secret) == made.KEY
    assert escrow.secret_of(golden("recovery.txt").decode()) == made.SECRET
