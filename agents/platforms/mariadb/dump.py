"""A binlog dump: the server's log over the replication protocol, read straight from the socket.

PyMySQL connects and authenticates; from COM_BINLOG_DUMP on the connection is a one-way stream of packets that this
module receives in large chunks without blocking, and `cutting` cuts. The server promises a heartbeat when it is silent
for `HEARTBEAT_S`: whoever hears nothing for much longer has a dead connection.

And if we die here? Nothing is kept: whoever starts again asks from the log's last position.

https://mariadb.com/kb/en/com_binlog_dump/, …/gtid/#using-current_pos-vs-slave_pos (the variables a replica sets)
"""

from __future__ import annotations

import contextlib
import secrets
import select
import ssl
import struct
import time
from typing import Any

import pymysql

from agents.errors import AgentError, SourceUnavailable
from agents.platforms.mariadb.connection import connect, error_of
from agents.platforms.mariadb.cutting import Cutter, position_lost
from agents.platforms.mariadb.positions import parse, reaches
from agents.protocol import SourceSettings, Taken

HEARTBEAT_S = 1.0
SILENCE_S = 10.0
CHUNK = 1 << 18
_COM_BINLOG_DUMP = 0x12
_TURN_S = 0.25  # how long one wait lasts before silence is looked at


class Dump:
    """A running dump (`agents.protocol.Stream`)."""

    def __init__(self, settings: SourceSettings, position: str, limit: int, proof: str | None) -> None:
        self._settings = settings
        self._cutter = Cutter(position, limit, first_alone=proof is not None)
        self._connection = connect(settings, "capture", read_timeout=SILENCE_S)
        try:
            _ask(self._connection, settings, position, proof)
        except BaseException:
            self.close()
            raise
        self._socket: Any = self._connection._sock  # type: ignore[attr-defined]
        self._socket.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._buffer = bytearray(CHUNK)
        self._view = memoryview(self._buffer)
        self._heard = time.monotonic()
        self._dry = False  # the last attempt to receive found nothing

    @property
    def behind(self) -> bool:
        return not self._dry

    def take(self, timeout: float) -> Taken | None:
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
            if taken is not None:
                return taken
            now = time.monotonic()
            if now - self._heard > SILENCE_S:
                raise SourceUnavailable(
                    "source-silent", f"nothing heard from {self._where()} for {SILENCE_S:g} s, not even a heartbeat"
                )
            if now >= deadline:
                return None
            self._poll.poll(min(deadline - now, _TURN_S) * 1000)

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
        with contextlib.suppress(OSError, pymysql.err.Error):
            self._connection._force_close()  # type: ignore[attr-defined]


def _ask(connection: pymysql.Connection[Any], settings: SourceSettings, position: str, proof: str | None) -> None:
    """Set up the session as a replica does and start the dump after `position`."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT @@global.gtid_binlog_pos, @@global.log_bin")
            row = cursor.fetchone()
            assert row is not None
            _check(str(row[0] or ""), bool(int(row[1])), position if proof is None else proof)
            # What the server sends must be what it will send another time, or a step read again would not be the same:
            # so the log's own checksums, no annotations, all of what a current server can write.
            cursor.execute("SET @master_binlog_checksum = @@global.binlog_checksum")
            cursor.execute("SET @mariadb_slave_capability = 4")
            cursor.execute(f"SET @master_heartbeat_period = {int(HEARTBEAT_S * 1e9)}")
            cursor.execute("SET @slave_connect_state = %s", (position,))
            cursor.execute("SET @slave_gtid_strict_mode = 1")
            cursor.execute("SET @slave_gtid_ignore_duplicates = 0")
            # Nobody reads while Kafka is away: let the server wait for longer than its usual minute.
            cursor.execute("SET SESSION net_write_timeout = 3600")
        # A replica's server id must be its own: the server ends an older dump with the same one.
        server_id = int(settings.options.get("server_id") or 0) or (1 << 30) + secrets.randbelow(1 << 30)
        body = struct.pack("<BIHI", _COM_BINLOG_DUMP, 4, 0, server_id)
        connection._sock.sendall(struct.pack("<I", len(body)) + body)  # type: ignore[attr-defined]
    except AgentError:
        raise
    except (pymysql.err.MySQLError, OSError) as error:
        raise error_of(error, settings) from error


def _check(now: str, log_bin: bool, wanted: str) -> None:
    if not log_bin:
        raise position_lost("it writes no binary log any more")
    if not reaches(parse(now), parse(wanted)):
        raise position_lost(f"capture stands at {wanted or 'the beginning'}, the source at {now or 'the beginning'}")
