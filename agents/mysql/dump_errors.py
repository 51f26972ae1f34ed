"""What a binlog dump says that went wrong, as errors: damage on the way, the server's own answers, a log that is not there any
more. Which of them are worth another try is in their type: `SourceUnavailable` is, `CaptureStopped` is not.

https://mariadb.com/kb/en/err_packet/, …/mariadb-error-codes/
"""

from __future__ import annotations

from agents.errors import DAMAGED, AgentError, CaptureStopped, SourceUnavailable

TORN = "capture-source-torn"
_PURGED = (
    "have been purged",
    "purged required binary logs",
    "Could not find first log file",
    "could not find next log",
)
_LOST = ("is not in the master's binlog", "not in the master", "impossible position", "diverged")
_PASSING_ERRORS = frozenset({1053, 1317, 1927, 1040, 1203, 1159, 1161})
_DENIED = frozenset({1044, 1045, 1227})


def damaged(what: str) -> SourceUnavailable:
    """What came makes no sense, or is not what its checksum says: it may be the network's doing, so it is fetched again."""
    return SourceUnavailable(DAMAGED, f"the source sent {what}", "use TLS; check the network, then the source's log")


def xa(where: str) -> CaptureStopped:
    """Something about an XA transaction that is neither its beginning nor its outcome."""
    return CaptureStopped(
        "capture-xa",
        f"the source logged an XA statement that this version does not know: {where}",
        "upgrade Holdfast; until then keep it off this source, and take a new baseline",
    )


def ended(packet: bytes) -> AgentError:
    """What an end or error packet (without its header) means."""
    if packet[:1] == b"\xfe" and len(packet) < 9:
        return SourceUnavailable(
            "source-ended", "the source ended the dump: it shuts down, or its dump thread was killed"
        )
    if packet[:1] != b"\xff" or len(packet) < 9 or packet[3:4] != b"#":
        return damaged(f"a packet that is no event: {packet[:16].hex()}")
    number = int.from_bytes(packet[1:3], "little")
    return dump_error(number, packet[9:].decode("utf-8", "replace"))


def dump_error(number: int, text: str) -> AgentError:
    """An error that the server's dump thread answers with (1236: it cannot read its log on)."""
    if number in _PASSING_ERRORS or "same server_uuid/server_id" in text:
        return SourceUnavailable("source-ended", f"the source ended the dump: {text} ({number})")
    if number in _DENIED:
        return CaptureStopped(
            "capture-denied", f"the source refuses to send its log: {text}", "GRANT REPLICATION SLAVE"
        )
    lower = text.lower()
    if "truncated in the middle of event" in lower:
        return CaptureStopped(
            TORN,
            f"the source's log file ends within an event: {text}",
            "the source crashed while it wrote, and what follows cannot be told: take a new baseline",
        )
    if any(t.lower() in lower for t in _PURGED):
        return purged(text)
    if any(t.lower() in lower for t in _LOST):
        return position_lost(text)
    return CaptureStopped(
        "capture-source-log",
        f"the source cannot read its own log: {text} ({number})",
        "mend it, or take a new baseline",
    )


def purged(why: str) -> CaptureStopped:
    """The source's log does not reach back to where capture stands."""
    return CaptureStopped(
        "capture-purged",
        f"the source has purged log that was not captured yet: {why}",
        "take a new baseline (a new lineage starts); keep the source's log longer (binlog_expire_logs_seconds)",
    )


def position_lost(why: str) -> CaptureStopped:
    """The source does not have what was captured from it."""
    return CaptureStopped(
        "capture-position-lost",
        f"the source is not where it was: {why}",
        "its log was reset (RESET MASTER), its tail was lost in a crash (sync_binlog other than 1) or another server "
        "answers here: take a new baseline (a new lineage starts)",
    )
