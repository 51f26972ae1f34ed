"""Makes the golden files of packs, wraps of the key and recovery codes: `python -P -m tests.golden.repository.packs`.

Everything random is fixed, and what is compressed is given as it is: compressors may change, what they once made stays readable.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from agents.repository import keys
from agents.repository.escrow import code_of
from agents.repository.format import DATA, DATA_PACK, META_PACK, NODE, PLAIN, ZSTD
from agents.repository.keys import Keys, Wrap, wrap_to_bytes
from agents.repository.packs import PackWriter
from agents.repository.stores.memory import MemoryStore

HERE = Path(__file__).parent
REPOSITORY = bytes(range(16))
KEY = bytes(range(32, 64))
PACK = bytes(range(128, 144))
SECRET = bytes(range(200, 232))
CREATED = "2026-01-02T03:04:05.000006Z"
PASSPHRASE = "correct horse battery staple"

TEXT = b"what stands in this chunk is said twice; " * 20
COMPRESSED = bytes.fromhex(
    "28b52ffd603402950100940277686174207374616e647320696e2074686973206368756e6b20697320736169642074776963653b20010041c82a5506"
)
CHUNKS: list[tuple[int, int, bytes, bytes]] = [
    (DATA, PLAIN, b"a chunk as it is", b"a chunk as it is"),
    (DATA, PLAIN, b"", b""),
    (DATA, ZSTD, TEXT, COMPRESSED),
]
"""Kind, codec, chunk, body. In scope "tenant"; a node follows in the scope of everybody."""


def pack(encrypted: bool) -> tuple[str, bytes]:
    """File name and bytes of a pack."""
    own = Keys(REPOSITORY, KEY, encrypted)
    store, naming = MemoryStore(), own.naming("tenant")
    writer = PackWriter(store, own, "node-1", 7, DATA_PACK if encrypted else META_PACK, naming.scope)
    with patch("agents.repository.packs.secrets.token_bytes", lambda size: PACK[:size]):
        for kind, codec, data, body in CHUNKS:
            writer.add(kind, naming.name_of(kind, data), codec, len(data), body)
        everybody = own.naming()
        writer.add(NODE, everybody.name_of(NODE, b"a node"), PLAIN, 6, b"a node", everybody.scope)
        (sealed,) = writer.flush()
    writer.close()
    return sealed.name, store.read(sealed.name)


def wrap(kind: keys.WrapKind) -> bytes:
    """A wrap of KEY."""
    kdf = (
        {"name": "scrypt", "n": 1024, "r": 8, "p": 1, "salt": "00" * 16} if kind == "passphrase" else {"name": "blake3"}
    )
    reference = "repositories/golden/site@1" if kind == "site" else ""
    clear = Wrap("0123456789abcdef", kind, REPOSITORY, CREATED, "golden", kdf, reference, bytes(12), b"")
    secret = PASSPHRASE.encode() if kind == "passphrase" else SECRET
    sealed = AESGCM(keys._wrapping_key(clear, secret)).encrypt(clear.nonce, KEY, keys._clear(clear))
    return wrap_to_bytes(replace(clear, sealed=sealed))


def files() -> dict[str, bytes]:
    """Name and content of every golden file."""
    return {
        "encrypted.pack": pack(True)[1],
        "plain.pack": pack(False)[1],
        "passphrase.wrap.json": wrap("passphrase"),
        "site.wrap.json": wrap("site"),
        "recovery.wrap.json": wrap("recovery"),
        "recovery.txt": code_of(SECRET).encode() + b"\n",
    }


if __name__ == "__main__":
    for name, content in files().items():
        (HERE / name).write_bytes(content)
        print(f"{name}: {len(content)} bytes")
