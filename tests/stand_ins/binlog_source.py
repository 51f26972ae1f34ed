"""Makes what a MariaDB source sends: events in packets. For tests of cutting; knows the format, not the code under test."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

FULL = 0xFFFFFF
QUERY, STOP, ROTATE, FORMAT, XID, TABLE_MAP, WRITE, UPDATE, INCIDENT, HEARTBEAT = 2, 3, 4, 15, 16, 19, 23, 24, 26, 27
XA_PREPARE, ANNOTATE, CHECKPOINT, GTID, GTID_LIST, INTVAR, WRITE_COMPRESSED = 38, 160, 161, 162, 163, 5, 166
STANDALONE, COMMIT_ID, TRANSACTIONAL, DDL, PREPARED, COMPLETED = 1, 2, 4, 32, 64, 128


@dataclass
class Writer:
    """A server writing events: `checksum`, its id, the position that its next event ends at."""

    server_id: int = 1
    checksum: bool = True
    time: int = 1_700_000_000
    position: int = 4

    def event(self, kind: int, body: bytes, flags: int = 0, server_id: int | None = None) -> bytes:
        size = 19 + len(body) + (4 if self.checksum else 0)
        self.position = (self.position + size) & 0xFFFFFFFF
        who = self.server_id if server_id is None else server_id
        head = struct.pack("<IBIIIH", self.time, kind, who, size, self.position, flags)
        return self.sum(head + body)

    def sum(self, event: bytes) -> bytes:
        return event + struct.pack("<I", zlib.crc32(event)) if self.checksum else event

    def format(self, created: int = 0, version: str = "10.11.9-MariaDB-log") -> bytes:
        lengths = bytes([56, 13, 0, 8, 0, 18, 0, 4, 4, 4, 4, 18, 0]) + bytes(160)
        body = struct.pack("<H50sIB", 4, version.encode(), created, 19) + lengths + bytes([1 if self.checksum else 0])
        size = 19 + len(body) + 4
        event = struct.pack("<IBIIIH", self.time, FORMAT, self.server_id, size, 0, 0) + body
        return event + struct.pack("<I", zlib.crc32(event))

    def rotate(self, name: str, artificial: bool = False) -> bytes:
        return self.event(ROTATE, struct.pack("<Q", 4) + name.encode(), 0x20 if artificial else 0)

    def gtid(self, sequence: int, domain: int = 0, flags: int = TRANSACTIONAL, server_id: int | None = None) -> bytes:
        body = struct.pack("<QIB", sequence, domain, flags) + (bytes(8) if flags & COMMIT_ID else bytes(6))
        return self.event(GTID, body, server_id=server_id)

    def query(self, text: bytes, database: bytes = b"shop", kind: int = QUERY) -> bytes:
        status = b"\0\0\0\0\0\1"
        head = struct.pack("<IIBHH", 7, 0, len(database), 0, len(status))
        return self.event(kind, head + status + database + b"\0" + text)

    def xid(self, xid: int = 1) -> bytes:
        return self.event(XID, struct.pack("<Q", xid))


def packets(events: Iterable[bytes], full: int = FULL) -> bytes:
    """Each event in a packet of its own, or in several when it is longer than one holds."""
    out: list[bytes] = []
    sequence = 0
    for event in events:
        rest = b"\0" + event
        while True:
            part, rest = rest[:full], rest[full:]
            out.append(struct.pack("<I", len(part) | sequence << 24) + part)
            sequence = (sequence + 1) % 256
            if len(part) < full:
                break
    return b"".join(out)


def error_packet(number: int, text: str) -> bytes:
    body = b"\xff" + struct.pack("<H", number) + b"#HY000" + text.encode()
    return struct.pack("<I", len(body)) + body


END_PACKET = b"\x05\x00\x00\x01\xfe\x00\x00\x02\x00"
