"""MySQL's GTID sets: for each source (a UUID, and a tag where there is one) the numbers seen, in intervals.

    3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5:7:mytag:1-3,…

A set is compared by containment, never by its largest number: groups and replicas with several appliers leave gaps. The
text is the server's own canonical one, so what it says of itself can be compared as it stands.

https://dev.mysql.com/doc/refman/en/replication-gtids-concepts.html; wire form: `Gtid_set::encode` in the server
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from collections.abc import Mapping

from agents.errors import AgentError

Source = tuple[str, str]  # UUID, tag (or "")
# A GTID: source and number.
Gtid = tuple[Source, int]
# By source: intervals as (first, last), ascending, never touching.
GtidSet = dict[Source, list[tuple[int, int]]]

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_INTERVAL = re.compile(r"(\d{1,19})(?:-(\d{1,19}))?")
_TAG = re.compile(r"[a-z_][a-z0-9_]{0,31}")


def parse(text: str) -> GtidSet:
    """The set that `text` names. Raises `AgentError` (`position-invalid`)."""
    out: GtidSet = {}
    for entry in filter(None, (e.strip().lower() for e in text.split(","))):
        uuid, *parts = entry.split(":")
        tag = ""
        if _UUID.fullmatch(uuid) is None or not parts:
            raise _invalid(text)
        for part in parts:
            m = _INTERVAL.fullmatch(part)
            if m is None:
                if _TAG.fullmatch(part) is None:
                    raise _invalid(text)
                tag = part
                continue
            first, last = int(m[1]), int(m[2] or m[1])
            if not 0 < first <= last:
                raise _invalid(text)
            _add_interval(out.setdefault((uuid, tag), []), first, last)
    return out


def show(gtids: Mapping[Source, list[tuple[int, int]]]) -> str:
    """The canonical text."""
    parts: dict[str, list[str]] = {}
    for (uuid, tag), intervals in sorted(gtids.items()):
        into = parts.setdefault(uuid, [uuid])
        if tag:
            into.append(tag)
        into += [str(a) if a == b else f"{a}-{b}" for a, b in intervals]
    return ",".join(":".join(p) for p in parts.values())


def add(gtids: GtidSet, gtid: Gtid) -> bool:
    """Put one GTID in; False when it was there already."""
    source, number = gtid
    intervals = gtids.setdefault(source, [])
    if intervals and intervals[-1][1] + 1 == number:  # what nearly always happens
        intervals[-1] = (intervals[-1][0], number)
        return True
    if _holds(intervals, number, number):
        return False
    _add_interval(intervals, number, number)
    return True


def contains(gtids: GtidSet, other: GtidSet) -> bool:
    """Whether `gtids` holds everything in `other`."""
    return all(_holds(gtids.get(source, []), a, b) for source, intervals in other.items() for a, b in intervals)


def encode(gtids: GtidSet) -> bytes:
    """As COM_BINLOG_DUMP_GTID carries it, and Previous_gtids events hold it.

    u64 count of sources, then for each: 16 bytes UUID, u64 count of intervals, u64 first and u64 end (one after the last)
    of each. Where some source has a tag, the count stands in the middle six bytes, a 1 on either side of it, and each UUID is
    followed by its tag: length, as a byte of twice its value, and text.
    """
    tagged = any(tag for _, tag in gtids)
    out = [struct.pack("<Q", len(gtids) << 8 | 1 << 56 | 1 if tagged else len(gtids))]
    for (uuid, tag), intervals in sorted(gtids.items()):
        out.append(bytes.fromhex(uuid.replace("-", "")))
        if tagged:
            out.append(bytes([len(tag) << 1]) + tag.encode())
        out.append(struct.pack("<Q", len(intervals)))
        out += [struct.pack("<QQ", first, last + 1) for first, last in intervals]
    return b"".join(out)


def decode(raw: bytes) -> GtidSet:
    """What `encode` wrote. Raises `AgentError` (`position-invalid`)."""
    out: GtidSet = {}
    try:
        (head,) = struct.unpack_from("<Q", raw)
        tagged = bool(head >> 56)
        count, at = (head >> 8) & 0xFFFFFFFFFFFF if tagged else head, 8
        for _ in range(count):
            uuid, tag = raw[at : at + 16].hex(), ""
            at += 16
            if tagged:
                size = raw[at] >> 1
                tag, at = raw[at + 1 : at + 1 + size].decode("ascii"), at + 1 + size
            (intervals,) = struct.unpack_from("<Q", raw, at)
            at += 8
            for _ in range(intervals):
                first, end = struct.unpack_from("<QQ", raw, at)
                at += 16
                if not 0 < first < end:
                    raise ValueError
                source = "-".join((uuid[:8], uuid[8:12], uuid[12:16], uuid[16:20], uuid[20:]))
                _add_interval(out.setdefault((source, tag), []), first, end - 1)
    except (struct.error, IndexError, ValueError) as error:
        raise _invalid(raw[:64].hex()) from error
    return out


def gtid(text: str) -> Gtid:
    """One GTID, as `streams.formats.binlog.gtids.parse_gtid` writes it."""
    source, _, number = text.rpartition(":")
    uuid, _, tag = source.partition(":")
    return (uuid, tag), int(number)


def _holds(intervals: list[tuple[int, int]], first: int, last: int) -> bool:
    at = bisect_right(intervals, (first, 1 << 64)) - 1
    return at >= 0 and intervals[at][0] <= first and last <= intervals[at][1]


def _add_interval(intervals: list[tuple[int, int]], first: int, last: int) -> None:
    rest = []
    for a, b in intervals:
        if b + 1 < first or last + 1 < a:
            rest.append((a, b))
        else:
            first, last = min(a, first), max(b, last)
    intervals[:] = sorted([*rest, (first, last)])


def _invalid(text: str) -> AgentError:
    return AgentError("position-invalid", f"{text!r} is no GTID set", "a set looks like 3e11fa47-…-c80aa9429562:1-5")
