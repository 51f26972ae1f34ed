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
from agents.mysql.connection import NONSENSE, connect, error_of
from agents.mysql.cutting import TORN, Cutter, position_lost
from agents.mysql.positions import parse, reaches
from agents.protocol import SourceSettings, Taken

HEARTBEAT_S = 1.0
SILENCE_S = 10.0
QUIET_S = 5.0
CHUNK = 1 << 18
_COM_BINLOG_DUMP = 0x12
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
        self._start(Cutter(position, limit, first_alone=proof is not None), proof or position, position, "")

    def _start(self, cutter: Cutter, proof: str, position: str, file: str) -> None:
        """Connect and ask for what is after `position`, or for `file` from its start."""
        self._cutter = cutter
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
        following = _file_after(self._settings, file)
        if following is None:
            raise error
        _log.warning("%s: %s; going on with %s", self._settings.source, error.message, following)
        self._start(Cutter(position, self._limit, whole_file=True), position, position, following)

    def _take(self, timeout: float) -> Taken | None:
        deadline = time.monotonic() + timeout
        cutter = self._cutter
        while True:
            taken = cutter.take(False)
            if taken is not None:
                return taken
            received = self._receive()
            if received:
                cutter.feed(bytes(self._view[:received]))
                continue
            # The source is silent just now: what there is goes out, however little.
            taken = cutter.take(True)
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
            with self._side.cursor() as cursor:
                cursor.execute("SELECT @@global.gtid_binlog_pos")
                row = cursor.fetchone()
                assert row is not None
                there = str(row[0] or "")
        except (pymysql.err.MySQLError, OSError, *NONSENSE) as error:
            raise error_of(error, self._settings) from error
        here = parse(self._cutter.position)
        _check(there, True, self._cutter.position)
        if self._ahead and not reaches(here, parse(self._ahead)):
            raise SourceUnavailable(
                "source-stalled", f"{self._where()} is at {there} and has sent nothing after {self._cutter.position}"
            )
        self._ahead = "" if reaches(here, parse(there)) else there

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


def _ask(connection: pymysql.Connection[Any], settings: SourceSettings, proof: str, position: str, file: str) -> None:
    """Set up the session as a replica does and start the dump."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT @@global.gtid_binlog_pos, @@global.log_bin")
            row = cursor.fetchone()
            assert row is not None
            _check(str(row[0] or ""), bool(int(row[1])), proof)
            # Events come as they stand in the log, checksums and all, or a step read again would not be the same: hence
            # no annotations, and the capability to take everything that a current server writes.
            cursor.execute("SET @master_binlog_checksum = @@global.binlog_checksum")
            cursor.execute("SET @mariadb_slave_capability = 4")
            cursor.execute(f"SET @master_heartbeat_period = {int(HEARTBEAT_S * 1e9)}")
            if not file:
                cursor.execute("SET @slave_connect_state = %s", (position,))
                cursor.execute("SET @slave_gtid_strict_mode = 1")
                cursor.execute("SET @slave_gtid_ignore_duplicates = 0")
            # Nobody reads while Kafka is away: let the server wait for longer than its usual minute.
            cursor.execute("SET SESSION net_write_timeout = 3600")
        # A replica's server id must be its own: the server ends an older dump with the same one.
        server_id = int(settings.options.get("server_id") or 0) or (1 << 30) + secrets.randbelow(1 << 30)
        body = struct.pack("<BIHI", _COM_BINLOG_DUMP, 4, 0, server_id) + file.encode()
        connection._sock.sendall(struct.pack("<I", len(body)) + body)  # type: ignore[attr-defined]
    except AgentError:
        raise
    except (pymysql.err.MySQLError, OSError, *NONSENSE) as error:
        raise error_of(error, settings) from error


def _file_after(settings: SourceSettings, file: str) -> str | None:
    """The log file that the server wrote after `file`."""
    connection = connect(settings, "capture", read_timeout=SILENCE_S)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SHOW BINARY LOGS")
            names = [str(row[0]) for row in cursor.fetchall()]
    except (pymysql.err.MySQLError, OSError, *NONSENSE) as error:
        raise error_of(error, settings) from error
    finally:
        with contextlib.suppress(pymysql.err.MySQLError, OSError):
            connection.close()
    at = names.index(file) + 1 if file in names else len(names)
    return names[at] if at < len(names) else None


def _check(now: str, log_bin: bool, wanted: str) -> None:
    if not log_bin:
        raise position_lost("it writes no binary log any more")
    if not reaches(parse(now), parse(wanted)):
        raise position_lost(f"capture stands at {wanted or 'the beginning'}, the source at {now or 'the beginning'}")
