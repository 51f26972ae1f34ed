"""Where a server is: its position in the kind of coordinates that its log is read in.

MariaDB and a MySQL with `gtid_mode=ON` say a GTID set. Any other MySQL says a file and an offset, which must be brought to
what a reader of the log can reach: after a rotation the offset stands behind the new file's head, where no step ends. Then
the position is the end of the last step in an earlier file.
"""

from __future__ import annotations

from typing import Any

import pymysql

from agents.errors import CaptureStopped
from agents.mysql import file_positions, gtid_sets
from agents.mysql import positions as domains
from agents.mysql.dialects import Dialect
from agents.mysql.file_positions import FilePosition, file_number


def numbered(cursor: Any, dialect: Dialect) -> bool:
    """Whether every transaction has a GTID."""
    if not dialect.gtid_position:
        return False
    cursor.execute(f"SELECT {dialect.gtid_mode}")
    return str(cursor.fetchone()[0]) == "ON"


def position(cursor: Any, dialect: Dialect, like: str = "") -> str:
    """Where the server is, canonically. `like`: an earlier position, whose kind of coordinates it is to be (and which says
    when its file was begun, which the server does not). Raises `CaptureStopped` when it has no log or no such coordinates."""
    by_file = file_positions.is_file_position(like) if like else not numbered(cursor, dialect)
    if by_file:
        return str(file_position(cursor, dialect, file_positions.parse(like) if like else None))
    cursor.execute(f"SELECT @@global.log_bin, {dialect.gtid_position}")
    log_bin, text = cursor.fetchone()
    if not int(log_bin):
        raise log_off()
    text = str(text or "").replace("\n", "")
    return domains.show(domains.parse(text)) if dialect.family == "MariaDB" else gtid_sets.show(gtid_sets.parse(text))


def file_position(cursor: Any, dialect: Dialect, like: FilePosition | None) -> FilePosition:
    """After the last step in the log. `created` is `like`'s where the file is, else 0."""
    cursor.execute(f"SELECT {dialect.server}")
    server = str(cursor.fetchone()[0])
    cursor.execute(dialect.log_status)
    row = cursor.fetchone()
    if row is None:
        raise log_off()
    file, offset = str(row[0]), int(row[1])
    if like is not None and (file_number(file), offset) < like.order:
        pass  # the log went back: it was reset
    elif like is not None and like.server == server and _nothing_after(cursor, like, file):
        file, offset = like.file, like.offset
    elif like is None:
        file, offset = _last_step(cursor, file, offset)
    return FilePosition(server, like.created if like is not None and like.file == file else 0, file, offset)


def _nothing_after(cursor: Any, like: FilePosition, newest: str) -> bool:
    """Whether no step came after `like`: nothing but the ends and heads of files, up to `newest`."""
    file, offset = like.file, like.offset
    while file_number(file) <= file_number(newest):
        found = _events(cursor, file, offset)
        if found is None or any(kind not in _BETWEEN for kind in found):
            return False
        stem, _, digits = file.rpartition(".")
        file, offset = f"{stem}.{file_number(file) + 1:0{len(digits)}}", 4
    return True


def _events(cursor: Any, file: str, offset: int) -> list[str] | None:
    """Types of the first events of `file` from `offset` on; None when no event begins there, or there is no such file."""
    try:
        cursor.execute(f"SHOW BINLOG EVENTS IN '{file}' FROM {offset} LIMIT 4")
    except pymysql.err.MySQLError as error:
        if not error.args or error.args[0] != _NO_EVENT:
            raise
        return None
    return [str(row[2]) for row in cursor.fetchall()]


def _last_step(cursor: Any, file: str, offset: int) -> tuple[str, int]:
    """`file` and `offset`, or, when nothing but the file's head is before them, the end of what a file before it holds.

    An account that may not list the files (5.5 wants SUPER for it) is told the former.
    """
    if not _only_head(cursor, file):
        return file, offset
    try:
        cursor.execute("SHOW BINARY LOGS")
    except pymysql.err.OperationalError:
        return file, offset
    sizes = {str(row[0]): int(row[1]) for row in cursor.fetchall()}
    for earlier in sorted((f for f in sizes if file_number(f) < file_number(file)), key=file_number, reverse=True):
        if not _only_head(cursor, earlier):
            return earlier, _without_end(cursor, earlier, sizes[earlier])
    return file, offset


def _only_head(cursor: Any, file: str) -> bool:
    return all(kind in _BETWEEN for kind in _events(cursor, file, 4) or ())


def _without_end(cursor: Any, file: str, size: int) -> int:
    """Where the last event of `file` begins, if that is a rotation or a stop; else the file's `size`."""
    stem, _, digits = file.rpartition(".")
    following = f"{stem}.{file_number(file) + 1:0{len(digits)}}"
    # A rotation is a header, an offset and a name; a stop is a header; each with a checksum or without.
    for length in (27 + len(following), 31 + len(following), 19, 23):
        found = _events(cursor, file, size - length) if size - length > 4 else None
        if found is not None and len(found) == 1 and found[0] in _BETWEEN:
            return size - length
    return size


_BETWEEN = frozenset({"Format_desc", "Previous_gtids", "Rotate", "Stop"})
_NO_EVENT = 1220  # ER_ERROR_WHEN_EXECUTING_COMMAND


def log_off() -> CaptureStopped:
    return CaptureStopped(
        "capture-position-lost",
        "the source is not where it was: it writes no binary log any more",
        "switch it on again (log_bin), then take a new baseline (a new lineage starts)",
    )
