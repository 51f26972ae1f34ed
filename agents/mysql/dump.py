"""A binlog dump: the server's log over the replication protocol, read straight from the socket.

PyMySQL connects and authenticates; from COM_BINLOG_DUMP on the connection is a one-way stream of packets that this
module receives in large chunks without blocking, and `cutting` cuts. The server promises a heartbeat when it is silent
for `HEARTBEAT_S`: whoever hears nothing for much longer has a dead connection.

And if we die here? Nothing is kept: whoever starts again asks from the log's last position.

https://mariadb.com/kb/en/com_binlog_dump/, …/gtid/#using-current_pos-vs-slave_pos (the variables a replica sets)
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import select
import ssl
import struct
import time
from typing import Any

import pymysql

from agents.errors import AgentError, CaptureStopped, SourceUnavailable
from agents.mysql import file_positions, gtid_sets, whereabouts
from agents.mysql.connection import NONSENSE, connect, error_of
from agents.mysql.coordinates import covers
from agents.mysql.cutting import Cutter
from agents.mysql.cutting_mysql import MySQLCutter
from agents.mysql.dialects import Dialect, dialect
from agents.mysql.dump_errors import TORN, position_lost
from agents.mysql.parking import Parking
from agents.protocol import SourceSettings, Steps, Taken

HEARTBEAT_S = 1.0
SILENCE_S = 10.0
QUIET_S = 5.0
CHUNK = 1 << 18
_COM_BINLOG_DUMP = 0x12
_COM_BINLOG_DUMP_GTID = 0x1E
_THROUGH_GTID = 0x04
_NON_BLOCK = 1  # of a dump: it ends where the log ends
# How a server family's log is cut. Which one it is, the kind of source says.
CUTTERS = {"mariadb": Cutter, "mysql": MySQLCutter}
_log = logging.getLogger("holdfast.capture")
_TURN_S = 0.25  # how long one wait lasts before silence is looked at


class Dump:
    """A running dump (`agents.protocol.Stream`).

    A server that died while it wrote leaves a file that ends within an event, and refuses to read on there, for ever. The
    step that the event belongs to never committed. So the dump goes on with the next file, provided that file says that
    what is behind it is exactly what has been read.

    A server whose log was reset may go on sending heartbeats for a file that is no more. So while nothing comes, it is
    asked on a second connection, now and then, where it is.
    """

    def __init__(self, settings: SourceSettings, position: str, limit: int, proof: str | None) -> None:
        self._settings = settings
        self._limit = limit
        self._buffer = bytearray(CHUNK)
        self._view = memoryview(self._buffer)
        self._side: pymysql.Connection[Any] | None = None
        cutter = CUTTERS[settings.kind](position, limit, proof=proof)
        self._parking = Parking(
            cutter,
            limit,
            proof,
            covers,
            self._look_back,
            hides=settings.kind == "mysql",
            late=file_positions.is_file_position(position),
        )
        self._start(cutter, proof or position, position, "")

    def _start(self, cutter: Cutter, proof: str, position: str, file: str) -> None:
        """Connect and ask for what is after `position`, or for `file` from its start."""
        self._cutter = self._parking.cutter = cutter
        self._connection = connect(self._settings, "capture", read_timeout=SILENCE_S)
        try:
            _ask(self._connection, self._settings, proof, position, file)
        except BaseException:
            self.close()
            raise
        self._socket: Any = self._connection._sock  # type: ignore[attr-defined]
        self._socket.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._heard = self._moved = self._asked = time.monotonic()
        self._ahead = ""  # where the source was when it was asked last, if that is ahead of what it had sent
        self._dry = False  # the last attempt to receive found nothing

    @property
    def position(self) -> str:
        """After the last step that was handed over."""
        return self._cutter.position

    @property
    def behind(self) -> bool:
        return not self._dry

    def take(self, timeout: float) -> Taken | None:
        try:
            return self._take(timeout)
        except CaptureStopped as error:
            if error.code != TORN:
                raise
            self._pass_torn_end(error)
            return None

    def _pass_torn_end(self, error: CaptureStopped) -> None:
        """Go on with the file after the one being read. Raises `error` when there is none."""
        position, file = self._cutter.position, self._cutter.file
        self.close()
        following = _file_after(self._settings, file) if self._settings.kind == "mariadb" else None
        if following is None:
            raise error
        _log.warning("%s: %s; going on with %s", self._settings.source, error.message, following)
        self._start(Cutter(position, self._limit, whole_file=True), position, position, following)

    def _look_back(self, name: bytes, position: str) -> list[Taken]:
        """The group that prepared XA transaction `name`, from the log before `position`, its newest file first."""
        if self._settings.kind != "mariadb":
            return []  # where a MySQL file starts, its list of GTIDs says, which is not read
        files = _files(self._settings)
        at = files.index(self._cutter.file) + 1 if self._cutter.file in files else len(files)
        _log.info("%s: looking back for an XA transaction prepared before the lineage", self._settings.source)
        for file in reversed(files[:at]):
            found = _prepared_in(self._settings, file, name, position)
            if found:
                return found
        return []

    def _take(self, timeout: float) -> Taken | None:
        deadline = time.monotonic() + timeout
        cutter = self._cutter
        while True:
            taken = self._parking.take(False)
            if taken is not None:
                return taken
            received = self._receive()
            if received:
                cutter.feed(self._view[:received])
                continue
            # The source is silent just now: what there is goes out, however little.
            taken = self._parking.take(True)
            now = time.monotonic()
            if taken is not None:
                self._moved = now
                return taken
            if now - self._heard > SILENCE_S:
                raise SourceUnavailable(
                    "source-silent", f"nothing heard from {self._where()} for {SILENCE_S:g} s, not even a heartbeat"
                )
            if now - max(self._moved, self._asked) > QUIET_S and not cutter.open:
                self._ask_where_it_is()
            if now >= deadline:
                return None
            self._poll.poll(min(deadline - now, _TURN_S) * 1000)

    def _ask_where_it_is(self) -> None:
        """Nothing came for a while: is nothing there, or is it not sent?"""
        self._asked = time.monotonic()
        try:
            if self._side is None:
                self._side = connect(self._settings, "capture", read_timeout=SILENCE_S)
            here = self._cutter.position
            with self._side.cursor() as cursor:
                there = whereabouts.position(cursor, dialect(self._side), here)
        except (pymysql.err.MySQLError, OSError, *NONSENSE) as error:
            raise error_of(error, self._settings) from error
        _check(there, here)
        if self._ahead and not covers(here, self._ahead):
            raise SourceUnavailable(
                "source-stalled", f"{self._where()} is at {there} and has sent nothing after {self._cutter.position}"
            )
        self._ahead = "" if covers(here, there) else there

    def _receive(self) -> int:
        """Bytes received into the buffer: until it is full, or nothing more is there now (0: nothing at all)."""
        got = 0
        try:
            while got < CHUNK:
                n = self._socket.recv_into(self._view[got:])
                if n == 0:
                    if got:
                        break  # what came before the end is looked at first: it may say why
                    raise SourceUnavailable("source-closed", f"{self._where()} closed the connection")
                got += n
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError, InterruptedError):
            pass
        except (OSError, ssl.SSLError, ValueError) as error:
            if not got:
                raise SourceUnavailable("source-closed", f"the connection to {self._where()} broke: {error}") from error
        if got:
            self._heard = time.monotonic()
        self._dry = got == 0
        return got

    def _where(self) -> str:
        return f"{self._settings.host}:{self._settings.port}"

    def close(self) -> None:
        # Not `Connection.close`: that would write a goodbye into a dump.
        for connection in (self._connection, self._side):
            if connection is not None:
                with contextlib.suppress(OSError, pymysql.err.Error):
                    connection._force_close()  # type: ignore[union-attr]
        self._side = None


def _ask(
    connection: pymysql.Connection[Any], settings: SourceSettings, proof: str, position: str, file: str, flags: int = 0
) -> None:
    """Set up the session as a replica does and start the dump."""
    spoken = dialect(connection)
    try:
        with connection.cursor() as cursor:
            # Another kind of server has other coordinates; that it is one, its format description says in a moment.
            if spoken.family.lower() == settings.kind:
                _check(whereabouts.position(cursor, spoken, proof or position), proof)
            # Events come as they stand in the log, checksums and all, or a step read again would not be the same.
            for statement in spoken.replica_session:
                cursor.execute(statement)
            # A replica is known by these; the server ends an older dump with the same one.
            cursor.execute("SET @slave_uuid = UUID()")
            cursor.execute("SET @replica_uuid = @slave_uuid")
            period = int(HEARTBEAT_S * 1e9)
            cursor.execute(f"SET @master_heartbeat_period = {period}, @source_heartbeat_period = {period}")
            if spoken.family == "MariaDB" and not file:
                cursor.execute("SET @slave_connect_state = %s", (position,))
                cursor.execute("SET @slave_gtid_strict_mode = 1")
                cursor.execute("SET @slave_gtid_ignore_duplicates = 0")
            # Nobody reads while Kafka is away: let the server wait for longer than its usual minute.
            cursor.execute("SET SESSION net_write_timeout = 3600")
        # A replica's server id must be its own: the server ends an older dump with the same one.
        server_id = int(settings.options.get("server_id") or 0) or (1 << 30) + secrets.randbelow(1 << 30)
        body = _request(spoken, position, file, server_id, flags)
        connection._sock.sendall(struct.pack("<I", len(body)) + body)  # type: ignore[attr-defined]
    except AgentError:
        raise
    except (pymysql.err.MySQLError, OSError, *NONSENSE) as error:
        raise error_of(error, settings) from error


def _request(spoken: Dialect, position: str, file: str, server_id: int, flags: int) -> bytes:
    """The command that starts the dump: from `file`, else after `position`."""
    if spoken.family == "MySQL" and not file and not file_positions.is_file_position(position):
        gtids = gtid_sets.encode(gtid_sets.parse(position))
        head = struct.pack("<BHIIQI", _COM_BINLOG_DUMP_GTID, _THROUGH_GTID, server_id, 0, 4, len(gtids))
        return head + gtids
    offset = 4
    if file_positions.is_file_position(position):
        at = file_positions.parse(position)
        file, offset = at.file, at.offset
    return struct.pack("<BIHI", _COM_BINLOG_DUMP, offset, flags, server_id) + file.encode()


def file_created(settings: SourceSettings, server: str, file: str) -> int:
    """When the server began `file` (seconds): the time of its format description, which it sends to readers only."""
    reader = Dump(settings, str(file_positions.FilePosition(server, 0, file, 4)), 1 << 16, None)
    try:
        deadline = time.monotonic() + SILENCE_S
        while time.monotonic() < deadline:
            reader.take(_TURN_S)
            created = file_positions.parse(reader.position).created
            if created:
                return created
    finally:
        reader.close()
    raise SourceUnavailable("source-silent", f"the source does not send {file}")


def _prepared_in(settings: SourceSettings, file: str, name: bytes, until: str) -> list[Taken]:
    """The group that prepared XA transaction `name` in `file`, up to position `until`, if it has no outcome there."""
    cutter = Cutter(None, CHUNK, whole_file=True)
    found: list[Taken] = []
    connection = connect(settings, "capture", read_timeout=SILENCE_S)
    try:
        _ask(connection, settings, "", "", file, _NON_BLOCK)
        while data := connection._sock.recv(CHUNK):  # type: ignore[attr-defined]
            cutter.feed(data)
            while (taken := cutter.take(False)) is not None:
                if covers(taken.before, until) or taken.file != file:
                    return found
                if taken.phase is not None and taken.phase.name == name:
                    if taken.phase.kind != "prepared":
                        found = []
                    elif isinstance(taken, Steps) or taken.first:
                        found = [taken]
                    else:
                        found.append(taken)
    except SourceUnavailable as error:
        if error.code != "source-ended":
            raise
    except (pymysql.err.MySQLError, OSError) as error:
        raise error_of(error, settings) from error
    finally:
        with contextlib.suppress(OSError, pymysql.err.Error):
            connection._force_close()  # type: ignore[attr-defined]
    return found


def _file_after(settings: SourceSettings, file: str) -> str | None:
    """The log file that the server wrote after `file`."""
    names = _files(settings)
    at = names.index(file) + 1 if file in names else len(names)
    return names[at] if at < len(names) else None


def _files(settings: SourceSettings) -> list[str]:
    """The server's log files, oldest first."""
    connection = connect(settings, "capture", read_timeout=SILENCE_S)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SHOW BINARY LOGS")
            return [str(row[0]) for row in cursor.fetchall()]
    except (pymysql.err.MySQLError, OSError, *NONSENSE) as error:
        raise error_of(error, settings) from error
    finally:
        with contextlib.suppress(pymysql.err.MySQLError, OSError):
            connection.close()


def _check(now: str, wanted: str) -> None:
    if not covers(now, wanted):
        raise position_lost(f"capture stands at {wanted or 'the beginning'}, the source at {now or 'the beginning'}")
