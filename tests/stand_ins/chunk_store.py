"""Chunks in a dictionary: a sink and a source for what is built of chunks, without packs. Names are keyed digests, as
everywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from blake3 import blake3

from agents.repository.content import DATA
from agents.repository.errors import RepositoryError

_KEY = b"a key of thirty-two bytes, fixed"


class ChunkStore:
    """Everything that was put, by name. `gets` counts what was read, `put_new` what was not known before."""

    def __init__(self) -> None:
        self.chunks: dict[bytes, tuple[int, bytes]] = {}
        self.gets = 0
        self.put_new = 0

    def put(self, kind: int, data: bytes) -> bytes:
        name = blake3(bytes([kind]) + data, key=_KEY).digest()
        if name not in self.chunks:
            self.chunks[name] = (kind, bytes(data))
            self.put_new += 1
        return name

    def put_many(self, kind: int, many: Sequence[bytes]) -> list[bytes]:
        return [self.put(kind, data) for data in many]

    def same(self, name: bytes, data: bytes | bytearray) -> bool:
        """Whether a block has a name (`agents.repository.comparing`)."""
        return bool(blake3(bytes([DATA]) + data, key=_KEY).digest() == name)

    def get(self, name: bytes, kind: int) -> bytes:
        self.gets += 1
        found = self.chunks.get(name)
        if found is None:
            raise RepositoryError("chunk-missing", f"no chunk has the name {name.hex()}")
        assert found[0] == kind, f"asked for kind {kind}, is {found[0]}"
        return found[1]

    def get_many(self, names: Sequence[bytes], kind: int) -> Iterator[tuple[bytes, bytes]]:
        assert len(set(names)) == len(names), "a name is asked for once"
        # Not in the order asked for: where chunks lie decides that.
        for name in sorted(names):
            yield name, self.get(name, kind)
