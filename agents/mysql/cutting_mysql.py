"""Cutting MySQL's log into steps: what is different from MariaDB's (`cutting`).

    GTID  QUERY BEGIN … XID                   a transaction
    GTID  QUERY BEGIN … QUERY COMMIT|ROLLBACK one that touched tables without transactions
    GTID  QUERY                               a definition or account statement: no BEGIN, so it ends itself
    GTID  TRANSACTION_PAYLOAD                 a compressed transaction, whole in one event
    GTID  QUERY XA START … XA_PREPARE         XA: in one phase (a flag of its last event says so), or prepared, and then
    GTID  QUERY XA COMMIT | XA ROLLBACK       its outcome

The GTID event is missing altogether before 5.6, and is an anonymous one with `gtid_mode=OFF`: then positions are files and
offsets (`coordinates.Files`), and a step begins with whatever comes first. A log may change from one to the other only at a
new baseline.

https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_replication_binlog_event.html
"""

from __future__ import annotations

from typing import ClassVar, Literal

from agents.errors import CaptureStopped
from agents.mysql import gtid_sets
from agents.mysql.coordinates import Coordinates, Files, of_mysql
from agents.mysql.cutting import (
    HEADER,
    INSIDE,
    LEADING,
    MARKED,
    OPEN,
    PASSING,
    STANDALONE,
    STATEMENTS,
    Cutter,
    statement,
)
from agents.mysql.dump_errors import xa
from agents.protocol import Phase
from streams.formats.binlog import events as ev
from streams.formats.binlog.gtids import parse_gtid
from streams.formats.binlog.statements import is_account_statement

_NUMBERED = frozenset({ev.MYSQL_GTID, ev.MYSQL_GTID_TAGGED})
_GROUP = frozenset({ev.TRANSACTION_CONTEXT, ev.VIEW_CHANGE, ev.IGNORABLE})


class MySQLCutter(Cutter):
    """See `Cutter`. `position`: a GTID set or a file position; which of them decides how steps are told apart."""

    server: ClassVar[str] = "MySQL"
    _inside: ClassVar[frozenset[int]] = Cutter._inside | {ev.XA_PREPARE, ev.TRANSACTION_PAYLOAD} | _GROUP
    _passing: ClassVar[tuple[int, ...]] = (*PASSING, ev.MYSQL_PREVIOUS_GTIDS, ev.HEARTBEAT_V2)

    @staticmethod
    def _coordinates(position: str) -> Coordinates:
        return of_mysql(position)

    _created = 0  # when the file being read was begun
    _offset = 0  # after the last event of the open step

    def _begin(self, kind: int, event: bytes) -> bool:
        at = self._at
        if isinstance(at, Files):
            if kind not in ev.GTIDS and kind not in INSIDE and kind not in STATEMENTS:
                return False
            self._state = STANDALONE
            if kind in ev.GTIDS:
                self._append(event)
            else:
                self._event_inside(kind, event)
            return True
        if kind == ev.MYSQL_ANONYMOUS_GTID:
            raise CaptureStopped(
                "capture-no-gtid",
                f"a transaction without GTID, in {self._where()}",
                "gtid_mode was switched off: switch it on again and take a new baseline, or take one as it is",
            )
        if kind not in _NUMBERED:
            return False
        body = event[HEADER : len(event) - self._checksum]
        self._mark = gtid_sets.gtid(parse_gtid(kind, 0, body).text)
        self._state = STANDALONE
        self._append(event)
        return True

    def _event_inside(self, kind: int, event: bytes) -> None:
        self._offset = int.from_bytes(event[13:17], "little")
        ends = kind in (ev.XID, ev.TRANSACTION_PAYLOAD)
        begins = False
        if kind in STATEMENTS:
            text = statement(event, self._checksum)
            begins = self._state == STANDALONE and (text == b"BEGIN" or text.startswith(b"XA START"))
            ends = text in (b"COMMIT", b"ROLLBACK")
            if self._state == STANDALONE and text.startswith(b"XA "):
                self._xa_statement(text)
            if not ends and not begins and is_account_statement(text):
                self._mark_accounts()
        elif kind == ev.XA_PREPARE:
            if ev.parse_xa_prepare(event[HEADER : len(event) - self._checksum]).one_phase:
                self._phase = None
            ends = True
        self._append(event)
        if begins:
            alone = self._first_alone or self._phase is not None
            self._state = MARKED if alone or isinstance(self._at, Files) else OPEN
        else:
            self._end_of_event(kind, ends)

    def _xa_statement(self, text: bytes) -> None:
        """What opens the group of an XA transaction, or is its outcome."""
        verb, _, name = text[3:].partition(b" ")
        kinds: dict[bytes, Literal["prepared", "committed", "rolled back"]] = {
            b"START": "prepared", b"COMMIT": "committed", b"ROLLBACK": "rolled back",
        }  # fmt: skip
        if verb not in kinds:
            raise xa(f"{text[:80].decode('utf-8', 'replace')} at {self._where()}")
        self._seal()
        self._phase = Phase(kinds[verb], name.strip())

    def _begin_long(self, kind: int, size: int, length: int, next_position: int) -> None:
        if isinstance(self._at, Files) and self._state < STANDALONE and kind in STATEMENTS:
            self._state = STANDALONE  # a long statement that no GTID and no BEGIN comes before
        super()._begin_long(kind, size, length, next_position)
        self._offset = next_position

    def _end_of_event(self, kind: int, ends: bool) -> None:
        if ends or (self._state == STANDALONE and kind not in LEADING and kind not in _GROUP):
            self._end()

    def _end(self) -> None:
        if isinstance(self._at, Files):
            self._mark = self._at.at(self._file, self._created, self._offset)
        super()._end()

    def _format(self, event: bytes) -> None:
        super()._format(event)
        self._created = int.from_bytes(event[:4], "little")
        if isinstance(self._at, Files):
            self._at.began(self._file, self._created)
