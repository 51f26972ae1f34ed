"""What trees, runs and directories need of a repository: somewhere to put chunks, somewhere to get them. Knows no
packs.

A chunk is named by the keyed digest of what it holds, so putting the same bytes twice stores them once, and what was
got by its name has been verified.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Protocol, runtime_checkable

DATA: Final = 1  # a block of a disk, a piece of a file or stream
NODE: Final = 2  # of a tree (agents.repository.tree)
DELTA: Final = 3  # a segment of a delta run (agents.repository.delta)
DIRECTORY: Final = 4  # of a file tree (agents.repository.files)
MANIFEST: Final = 5  # what else a point needs and is too large for its record

NAME_SIZE: Final = 32


class ChunkSink(Protocol):
    """Where chunks are stored. Several threads may use one; nothing is durable before its owner has said so."""

    def put(self, kind: int, data: bytes) -> bytes:
        """The name of `data`, which is stored unless it is known. Raises `RepositoryError`, `StoreError`."""
        ...


class BulkSink(ChunkSink, Protocol):
    """A sink that takes many small chunks at once for much less than one by one."""

    def put_many(self, kind: int, many: Sequence[bytes]) -> list[bytes]:
        """The name of each, in their order; otherwise as `put`."""
        ...


class ChunkSource(Protocol):
    """Where chunks are read, each verified against its name. Several threads may use one."""

    def get(self, name: bytes, kind: int) -> bytes:
        """Raises `RepositoryError`: `chunk-missing`, `chunk-damaged`; `StoreError`."""
        ...

    def get_many(self, names: Sequence[bytes], kind: int) -> Iterator[tuple[bytes, bytes]]:
        """Each of `names` (which repeats none) with what it names, in the order that is cheapest to read. Raises as
        `get`."""
        ...


@runtime_checkable
class Ordering(Protocol):
    """A source that knows where chunks lie. What is read in this order, a slice at a time, is read once and in
    passing."""

    def read_order(self, names: Sequence[bytes], kind: int) -> list[bytes]:
        """`names` in the order in which they are stored (pack by pack, by offset). Raises `chunk-missing`."""
        ...
