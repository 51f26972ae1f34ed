"""The file of one table's rows: as the server sent them, framed and compressed. Knows no table and no database.

zstd (RFC 8878) around:

    "HFROWS1\\n"
    u32 length, JSON {"schema", "table", "columns": [names]}
    u32 length, one row    … each row a text-protocol row packet: per column a length-encoded string, 0xFB for NULL
                           (MariaDB Knowledge Base, "Resultset row")
    u32 0xFFFFFFFF, u64 number of rows

All integers little-endian. Without the trailer a file is cut off, whatever its rows say.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import zstandard
from blake3 import blake3

from agents.errors import AgentError

MAGIC = b"HFROWS1\n"
_LENGTH = struct.Struct("<I")
_TRAILER = struct.Struct("<IQ")
_END = 0xFFFFFFFF
_CHUNK = 1 << 18
_LEVEL = 3
_WIDTHS = {0xFC: 2, 0xFD: 3, 0xFE: 8}


class HashedFile:
    """A new file, mode 0600, written through BLAKE3; `finish` makes it durable."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._out: BinaryIO = open(descriptor, "wb", buffering=0)  # noqa: SIM115 - closed by finish or __exit__
        self._digest = blake3()
        self.bytes = 0

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._out.write(view) :]
        self._digest.update(data)
        self.bytes += len(data)

    def finish(self) -> str:
        """Flush to disk and close; the BLAKE3-256 in hex."""
        os.fsync(self._out.fileno())
        self._out.close()
        return self._digest.hexdigest()

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._out.close()


class RowsWriter:
    """Writes one rows file. `add` takes a row packet's bytes; memory is bounded by the largest row."""

    def __init__(self, out: HashedFile, schema: str, table: str, columns: list[str]) -> None:
        self.rows = 0
        self.raw_bytes = 0
        self._out = out
        self._zstd = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj()
        head = json.dumps({"schema": schema, "table": table, "columns": columns}).encode()
        self._pieces: list[bytes] = [MAGIC, _LENGTH.pack(len(head)), head]
        self._held = 0

    def add(self, row: bytes) -> None:
        self._pieces += (_LENGTH.pack(len(row)), row)
        self._held += len(row) + 4
        self.rows += 1
        if self._held >= _CHUNK:
            self._write()

    def _write(self) -> None:
        self.raw_bytes += self._held
        self._held = 0
        data = self._zstd.compress(b"".join(self._pieces))
        self._pieces.clear()
        if data:
            self._out.write(data)

    def finish(self) -> None:
        self._write()
        self._out.write(self._zstd.compress(_TRAILER.pack(_END, self.rows)) + self._zstd.flush())


def read_rows(path: Path) -> Iterator[bytes]:
    """The row packets of a rows file, in order. Raises `AgentError` (`baseline-damaged`)."""
    try:
        with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
            if _exactly(stream, len(MAGIC)) != MAGIC:
                raise ValueError("it is not a rows file")
            _exactly(stream, _LENGTH.unpack(_exactly(stream, 4))[0])
            count = 0
            buffer, at, wanted = b"", 0, 4
            length_of = _LENGTH.unpack_from
            while True:
                buffer, at = buffer[at:] + _more(stream, wanted), 0
                have = len(buffer)
                while have - at >= 4:
                    (length,) = length_of(buffer, at)
                    end = at + 4 + length
                    if end > have:
                        break
                    yield buffer[at + 4 : end]
                    at = end
                    count += 1
                wanted = 4
                if have - at >= 4:
                    if length == _END:
                        break
                    wanted = end - have
            while len(buffer) - at < _TRAILER.size:
                buffer, at = buffer[at:] + _more(stream), 0
            if _TRAILER.unpack_from(buffer, at)[1] != count:
                raise ValueError("its trailer names another number of rows")
    except (ValueError, OSError, zstandard.ZstdError) as error:
        raise AgentError(
            "baseline-damaged", f"{path.name} of the baseline is damaged: {error}", "make a new baseline"
        ) from error


def _more(stream: zstandard.ZstdDecompressionReader, least: int = 0) -> bytes:
    data = stream.read(max(_CHUNK, least))
    if not data:
        raise ValueError("it is cut off")
    return bytes(data)


def _exactly(stream: zstandard.ZstdDecompressionReader, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            raise ValueError("it is cut off")
        data += more
    return data


def values(row: bytes) -> list[bytes | None]:
    """The columns of a row packet. Raises ValueError on bytes that are none."""
    out: list[bytes | None] = []
    add = out.append
    at, end = 0, len(row)
    while at < end:
        length = row[at]
        at += 1
        if length >= 0xFB:
            if length == 0xFB:
                add(None)
                continue
            width = _WIDTHS.get(length)
            if width is None:
                raise ValueError("a row holds a length that is none")
            length = int.from_bytes(row[at : at + width], "little")
            at += width
        stop = at + length
        add(row[at:stop])
        at = stop
    if at > end:
        raise ValueError("a row is cut off")
    return out
