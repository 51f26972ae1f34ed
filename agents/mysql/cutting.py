"""Network packets of a binlog dump to steps: framing, and cutting at commit boundaries. Bytes in, steps out.

A packet is a 3-byte length, a sequence number, a status byte (0: an event follows, 0xfe: end, 0xff: error) and an event.
An event is 19 bytes of header (u32 time, u8 type, u32 server id, u32 length, u32 next position, u16 flags), a body and,
where the format description says so, a CRC32. A packet of 2^24-1 bytes goes on in the next, without a status byte.

    GTID … XID                         a transaction
    GTID … QUERY COMMIT | ROLLBACK     one that touched tables without transactions
    GTID(standalone) … QUERY           a definition or account statement; ends at its first event that stands for itself
    GTID(prepared XA) … XA_PREPARE     a transaction in two phases, and much later its outcome:
    GTID(completed XA) QUERY XA COMMIT | XA ROLLBACK
    GTID(start alter) QUERY            an ALTER in two phases, which its second group repeats whole (or takes back)

The groups of what has two phases are handed over by themselves, with a `Phase`; `parking` makes steps of them.

Between steps come rotations, format descriptions, checkpoints, GTID lists and heartbeats. Whatever else comes stops
capture: an event that is not understood might end a step, or be one.

These are MariaDB's rules; what differs in MySQL's logs is in `cutting_mysql`.

Where the source sends checksums every event's is verified before anything of the event counts: what a network did to it is
`source-damaged`, for whoever reads to fetch again. Of an event larger than `WHOLE` pieces are handed over before its end
has come; the last piece, without which they do not count, is not.

`feed` is where the time goes. Its loop knows the events that nearly all of a log is made of, and leaves the rest to
`_event`, which knows all of them; tests hold both to the same result. Knows nothing of sockets.

https://mariadb.com/kb/en/2-binlog-event-header/, …/gtid_event/, …/com_binlog_dump/; server: `is_part_of_group`
"""

from __future__ import annotations

import zlib
from collections import deque
from struct import Struct
from typing import ClassVar

from agents.errors import AgentError, CaptureStopped
from agents.mysql.coordinates import Coordinates, Domains, Files, Mark, covers
from agents.mysql.dump_errors import damaged, ended
from agents.protocol import Phase, Piece, Steps, Taken
from streams.errors import StreamError
from streams.formats.binlog import events as ev
from streams.formats.binlog.compressed import decompress
from streams.formats.binlog.gtids import parse_gtid, parse_gtid_list
from streams.formats.binlog.statements import is_account_statement

HEADER = 19
PACKET = 5  # what stands before an event: length, sequence number, status
FULL_PACKET = 0xFFFFFF
# An event up to this size is waited for and kept whole; a larger one passes through in fragments as it arrives.
WHOLE = 4 << 20

SOUND = 0x2144DF1C  # CRC32 of whatever ends in its own CRC32
_packet = Struct("<IB4xB4xI").unpack_from  # length and sequence number, status, event type, event length
_gtid = Struct("<I10xQIB").unpack_from  # from offset 5 of the event: server id, sequence, domain, flags
_times = Struct("<I9xI").unpack_from  # of an event: time, next position
_query = Struct("<8xB2xH").unpack_from  # of a query's body: length of the database's name, of the status variables
_CREATED = slice(HEADER + 52, HEADER + 56)  # of a format description: when the server was started, or zero

# UNHEARD: no format description yet. FIRST, CLOSED: no step is open (FIRST: the next is to be handed over by itself).
# STANDALONE, OPEN, MARKED: a step is open (MARKED: its end needs care).
UNHEARD, FIRST, CLOSED, STANDALONE, OPEN, MARKED = range(6)

ROWS = frozenset({
    ev.WRITE_ROWS_V1, ev.UPDATE_ROWS_V1, ev.DELETE_ROWS_V1, ev.WRITE_ROWS, ev.UPDATE_ROWS, ev.DELETE_ROWS,
    ev.WRITE_ROWS_COMPRESSED_V1, ev.UPDATE_ROWS_COMPRESSED_V1, ev.DELETE_ROWS_COMPRESSED_V1,
    ev.WRITE_ROWS_COMPRESSED, ev.UPDATE_ROWS_COMPRESSED, ev.DELETE_ROWS_COMPRESSED, ev.PARTIAL_UPDATE_ROWS,
})  # fmt: skip
# Belong to the event after them: a standalone step does not end with one.
LEADING = frozenset({ev.INTVAR, ev.RAND, ev.USER_VAR, ev.TABLE_MAP, ev.ANNOTATE_ROWS, ev.ROWS_QUERY})
LOADING = frozenset({ev.BEGIN_LOAD_QUERY, ev.APPEND_BLOCK, ev.EXECUTE_LOAD_QUERY, ev.DELETE_FILE})
# Never end a transaction, and hold nothing that capture looks at.
INSIDE = ROWS | LEADING | LOADING
STATEMENTS = frozenset({ev.QUERY, ev.QUERY_COMPRESSED})
# May come between steps and say nothing that capture keeps; the first three also while a step is open.
PASSING = (ev.HEARTBEAT, ev.BINLOG_CHECKPOINT, ev.GTID_LIST, ev.START_ENCRYPTION, ev.STOP)
_NOT_PLAIN = ev.GTID_STANDALONE | ev.GTID_DDL | ev.GTID_PREPARED_XA | ev.GTID_COMPLETED_XA
_XA = ev.GTID_PREPARED_XA | ev.GTID_COMPLETED_XA
_ANNOUNCED = Phase("announced")


class Cutter:
    """State between packets. `feed` it what was received, in any cuts; `take` what has come of it.

    `position`: the GTID set that the dump started after. `limit`: bytes of payload handed over at a time (a whole event
    may exceed it, up to `WHOLE`). `proof`: each step up to this position is handed over by itself, and at least the first.
    `whole_file`: the dump starts with a file, not with the position, which must be where that file starts; where position
    is None it is what the file says. Memory: about `limit` + `WHOLE` + what one call of `feed` is given.
    """

    # What writes such a log, and how it is known from a format description.
    server: ClassVar[str] = "MariaDB"
    _inside: ClassVar[frozenset[int]] = INSIDE | STATEMENTS | {ev.XID}
    _passing: ClassVar[tuple[int, ...]] = PASSING

    def __init__(self, position: str | None, limit: int, *, proof: str | None = None, whole_file: bool = False) -> None:
        self._at: Coordinates = self._coordinates(position or "")
        self._anywhere = position is None
        self._proof = proof or ""
        self._whole_file = whole_file
        self._limit = limit
        self._first_alone = proof is not None
        self._rest = b""
        self._ready: deque[Taken] = deque()
        self._failure: AgentError | None = None
        # The run being gathered: slices of complete steps, then of the open one.
        self._out: list[bytes] = []
        self._total = 0
        self._ends: list[int] = []
        self._marks: list[Mark] = []
        self._done = 0  # slices that belong to complete steps
        self._state = UNHEARD
        self._mark: Mark = None  # of the open step
        self._pieces = 0  # of the open step that were handed over
        self._accounts = False  # the open step holds an account statement
        self._phase: Phase | None = None  # what is open is one group of two
        # A long event passing through: its type, bytes of it to come in all and in its packet, whether another follows.
        self._long_type = 0
        self._long = self._long_packet = 0
        self._long_more = self._long_begun = False
        self._long_crc = 0
        self._fragments: set[int] = set()  # slices that do not begin an event
        self._preamble = b""
        self._server_id = 0
        self._checksum = 0  # bytes of it at the end of every event
        self._file = ""

    # -- in

    def feed(self, data: ev.Buffer) -> None:
        """Take in what was received. What is wrong with it is raised by `take`, after the steps before it."""
        if self._failure is not None:
            return
        try:
            self._feed(data)
        except AgentError as error:
            self._failure = error
        except StreamError as error:
            if self._checksum:  # that is how the source wrote it
                self._failure = CaptureStopped("capture-log-damaged", f"{error.message} at {self._where()}", error.hint)
            else:
                self._failure = damaged(f"{error.message} at {self._where()}")

    def _feed(self, data: ev.Buffer) -> None:
        d = b"".join((self._rest, data))  # a copy of its own, once
        self._rest = b""
        n = len(d)
        p = self._pass_long(d, 0) if self._long_type else 0
        out, ends, marks = self._out, self._ends, self._marks
        total, state, mark, limit = self._total, self._state, self._mark, self._limit
        add, packet, read_gtid, inside = out.append, _packet, _gtid, INSIDE
        checked, crc32 = self._checksum > 0, zlib.crc32
        while p + 18 <= n:
            head, status, kind, size = packet(d, p)
            e = p + 4 + (head & 0xFFFFFF)
            event = d[p + 5 : e]
            if e > n or status or size + 5 != e - p or (checked and crc32(event) != SOUND):
                pass
            elif kind in inside and state >= OPEN:
                add(event)
                total += size
                p = e
                continue
            elif kind == 16 and state == OPEN and total + size <= limit:
                add(event)
                total += size
                ends.append(total)
                marks.append(mark)
                self._done = len(out)
                state = CLOSED
                p = e
                continue
            elif kind == 162 and state == CLOSED and size >= 38:
                mark = read_gtid(d, p + 10)
                if not mark[3] & _NOT_PLAIN:
                    add(event)
                    total += size
                    state = OPEN
                    p = e
                    continue
            self._total, self._state, self._mark = total, state, mark
            after = self._rare(d, p, n)
            out, ends, marks, add = self._out, self._ends, self._marks, self._out.append
            total, state, mark, checked = self._total, self._state, self._mark, self._checksum > 0
            if after == p:
                break
            p = after
        else:
            self._total, self._state, self._mark = total, state, mark
            self._look_for_end(d, p, n)
        if p < n:
            self._rest = d[p:] if p else d
        if self._total > limit:
            self._overflow()

    def _look_for_end(self, d: bytes, p: int, n: int) -> None:
        """`d[p:]` is too short for an event: is it the end of the dump, or just not whole yet?"""
        if n - p >= PACKET and (length := int.from_bytes(d[p : p + 3], "little")) < HEADER and n - p >= 4 + length:
            raise ended(d[p + 4 : p + 4 + length])

    def _rare(self, d: bytes, p: int, n: int) -> int:
        """One packet by the full rules: where it ends, or `p` when it has not come whole."""
        length = int.from_bytes(d[p : p + 3], "little")
        e = p + 4 + length
        size = int.from_bytes(d[p + 14 : p + 18], "little")
        plain = d[p + 4] == 0 and length > HEADER
        if plain and length < FULL_PACKET and size + 1 != length:
            raise damaged(f"an event of {size} bytes in a packet of {length}")
        if plain and (length == FULL_PACKET or length > WHOLE):
            self._begin_long(d[p + 9], size, length, int.from_bytes(d[p + 18 : p + 22], "little"))
            return self._pass_long(d, p + PACKET)
        if e > n:
            return p
        if not plain:
            raise ended(d[p + 4 : e])
        event = d[p + PACKET : e]
        if self._checksum and zlib.crc32(event) != SOUND and event[4] != ev.FORMAT_DESCRIPTION:
            raise damaged(f"a {ev.event_name(event[4])} event that is not what its checksum says, in {self._where()}")
        self._event(event)
        return e

    # -- long events

    def _begin_long(self, kind: int, size: int, length: int, next_position: int) -> None:
        if self._state < STANDALONE or (
            kind not in INSIDE and kind not in STATEMENTS and kind != ev.TRANSACTION_PAYLOAD
        ):
            raise _unexpected(kind, self._state, self._where())
        if kind in STATEMENTS:
            self._mark_accounts()  # not looked into, so kept as if it held a secret
        self._take_care()
        self._long_type, self._long, self._long_begun = kind, size, False
        self._long_packet, self._long_more = length - 1, length == FULL_PACKET
        self._long_crc = 0

    def _pass_long(self, d: bytes, p: int) -> int:
        """Pass on what is in `d` of a long event, from `p`; where that ends."""
        while self._long_packet or self._long_more:
            if not self._long_packet:
                if len(d) - p < 4:
                    return p
                self._long_packet = int.from_bytes(d[p : p + 3], "little")
                self._long_more = self._long_packet == FULL_PACKET
                p += 4
                continue
            got = d[p : p + min(self._long_packet, self._limit)]
            if not got:
                return p
            if self._long_begun:
                self._fragments.add(len(self._out))
            if self._checksum:
                self._long_crc = zlib.crc32(got, self._long_crc)
            self._append(got)
            self._long_begun = True
            self._long -= len(got)
            self._long_packet -= len(got)
            p += len(got)
            if self._total > self._limit:
                self._overflow()
        if self._long:
            raise damaged("an event of another length than it says")
        if self._checksum and self._long_crc != SOUND:
            raise damaged(f"a long event that is not what its checksum says, in {self._where()}")
        kind, self._long_type = self._long_type, 0
        self._end_of_event(kind, False)
        return p

    # -- single events, all rules

    def _event(self, event: bytes) -> None:
        """Any event, whole."""
        kind = event[4]
        if self._state > CLOSED:
            if kind in self._inside or (kind == ev.XA_PREPARE and self._preparing):
                self._event_inside(kind, event)
                return
            if kind in self._passing[:3]:
                return
            self._cut_off(kind, event)
        if kind == ev.FORMAT_DESCRIPTION:
            self._format(event)
        elif kind == ev.ROTATE:
            self._rotate(event)
        elif self._state in (FIRST, CLOSED) and self._begin(kind, event):
            pass
        elif kind == ev.GTID_LIST and self._whole_file:
            self._start_of_file(event)
        elif kind not in self._passing and not event[17] & ev.FLAG_IGNORABLE:
            raise _unexpected(kind, self._state, self._where())

    @staticmethod
    def _coordinates(position: str) -> Coordinates:
        return Domains(position)

    def _begin(self, kind: int, event: bytes) -> bool:
        """Open a step with `event`, if it is one that opens steps."""
        if kind != ev.GTID:
            return False
        if len(event) < HEADER + 19:
            raise damaged("a GTID event that is too short")
        if self._whole_file:
            raise damaged("a file that does not say what is behind it")
        gtid = _gtid(event, 5)
        self._phase = self._phase_of(event, gtid[3])
        if self._phase is not None:
            self._seal()
        alone = self._first_alone or self._phase is not None
        self._mark = gtid
        self._state = STANDALONE if gtid[3] & ev.GTID_STANDALONE else MARKED if alone else OPEN
        self._append(event)
        return True

    def _phase_of(self, event: bytes, flags: int) -> Phase | None:
        """Whether the group that this GTID event opens is one of two. Of an outcome, its statement says which it is."""
        if not flags & (_XA | ev.GTID_DDL):
            return None
        gtid = parse_gtid(ev.GTID, 0, event[HEADER : len(event) - self._checksum])
        if gtid.xa is not None:
            name = b"%d %b %b" % (gtid.xa.format_id, gtid.xa.gtrid.hex().encode(), gtid.xa.bqual.hex().encode())
            return Phase("prepared" if gtid.prepared_xa else "rolled back", name)
        # START ALTER says nothing that COMMIT ALTER does not say again; ROLLBACK ALTER says that nothing came of it.
        return _ANNOUNCED if gtid.flags_extra & (ev.GTID_START_ALTER | ev.GTID_ROLLBACK_ALTER) else None

    @property
    def _preparing(self) -> bool:
        return self._phase is not None and self._phase.kind == "prepared"

    def _event_inside(self, kind: int, event: bytes) -> None:
        ends = kind in (ev.XID, ev.XA_PREPARE)
        if kind in STATEMENTS:
            text = statement(event, self._checksum)
            ends = text in (b"COMMIT", b"ROLLBACK")
            if self._phase is not None and self._phase.name and text.startswith(b"XA COMMIT"):
                self._phase = Phase("committed", self._phase.name)
            if not ends and text != b"BEGIN" and is_account_statement(text):
                self._mark_accounts()
        self._append(event)
        self._end_of_event(kind, ends)

    def _end_of_event(self, kind: int, ends: bool) -> None:
        if ends or (self._state == STANDALONE and kind not in LEADING):
            self._end()

    def _append(self, event: bytes) -> None:
        self._out.append(event)
        self._total += len(event)

    def _take_care(self) -> None:
        """From now on the end of the open step needs care."""
        if self._state == OPEN:
            self._state = MARKED

    def _mark_accounts(self) -> None:
        """The open step holds an account statement, or may: it goes into a record of its own."""
        if not self._accounts:
            self._seal()
            self._accounts = True
            self._take_care()

    def _end(self) -> None:
        """The open step is complete."""
        if self._total > self._limit:
            self._overflow()
        if self._pieces:
            self._hand_over(last=True)
        else:
            self._ends.append(self._total)
            self._marks.append(self._mark)
            self._done = len(self._out)
            if self._accounts or self._first_alone or self._phase is not None:
                self._seal(accounts=self._accounts, phase=self._phase)
        self._first_alone = self._first_alone and not covers(self.position, self._proof)
        self._close()

    def _close(self) -> None:
        self._state = FIRST if self._first_alone else CLOSED
        self._accounts = False
        self._phase = None
        self._pieces = 0

    def _cut_off(self, kind: int, event: bytes) -> None:
        """A step is open, and something came that cannot be inside one.

        Right only when the source died while it wrote that step: then comes the format description of the file that it
        began when it was started again, with the time of that. The step never committed; what came of it does not count.
        """
        if kind == ev.ROTATE and event[17] & ev.FLAG_ARTIFICIAL:
            return
        if kind != ev.FORMAT_DESCRIPTION or event[_CREATED] in (b"", bytes(4)):
            raise _unexpected(kind, self._state, self._where())
        del self._out[self._done :]
        self._fragments.clear()
        self._total = self._ends[-1] if self._ends else 0
        self._close()

    def _format(self, event: bytes) -> None:
        # It says itself whether events end in a checksum, and the file before may have been written otherwise. It must not
        # be one that lost that word on its way: so it is tried out with the word as well.
        says = event[-5] == ev.CHECKSUM_CRC32
        sound = zlib.crc32(event[:-5] + b"\1" + event[-4:]) == SOUND
        if says and not sound:
            raise damaged("a format description that is not what its checksum says")
        description = ev.parse_format_description(event)
        if not says == sound == description.has_checksum:
            raise damaged("a format description that is not what its checksum says")
        if description.mariadb != (self.server == "MariaDB"):
            raise CaptureStopped(
                "capture-other-server",
                f"the log is written by {description.server_version}, not by {self.server}",
                "define this source with the kind that it is",
            )
        self._close()
        self._server_id = int.from_bytes(event[5:9], "little")
        self._checksum = 4 if description.has_checksum else 0
        if event != self._preamble:
            self._seal()
            self._preamble = event

    def _rotate(self, event: bytes) -> None:
        name = event[HEADER + 8 :]
        # Before the first format description nothing says whether there is a checksum: look whether it fits.
        if len(event) > HEADER + 12 and zlib.crc32(event[:-4]) == int.from_bytes(event[-4:], "little"):
            name = name[:-4]
        self._seal()
        self._file = name.decode("utf-8", "replace")

    def _start_of_file(self, event: bytes) -> None:
        """The list at the start of a file says what is behind it, a domain's newest last."""
        assert isinstance(self._at, Domains)
        body = event[HEADER : len(event) - self._checksum]
        behind = {g.domain: (g.server_id, g.sequence) for g in parse_gtid_list(body).entries}
        if self._anywhere:
            self._at = Domains(
                ",".join(f"{domain}-{server}-{sequence}" for domain, (server, sequence) in behind.items())
            )
        here = {domain: (g[0], g[1]) for domain, g in self._at.position.items()}
        if behind != here:
            raise CaptureStopped(
                "capture-step-lost",
                f"the source's log before {self._file} ended at {self._at.text() or 'the beginning'}, "
                f"but the file says that more is behind it",
                "steps were lost with the damaged end of a log file: take a new baseline",
            )
        self._whole_file = False

    @property
    def position(self) -> str:
        """After the last step that is complete and was handed over."""
        return self._at.text()

    @property
    def open(self) -> bool:
        """Part of a step has come."""
        return self._state > CLOSED

    @property
    def file(self) -> str:
        """The source's log file that is being read; empty before it was named."""
        return self._file

    def _where(self) -> str:
        return f"{self._file or 'the first file'} after {self._at.text(*self._marks) or 'the beginning'}"

    # -- out

    def take(self, everything: bool) -> Taken | None:
        """The next that is ready: a full run or a piece; with `everything` also a run that is not full.

        Raises what `feed` met, once all steps before it are taken.
        """
        if not self._ready and self._ends and (everything or self._failure is not None):
            try:
                self._seal()
            except AgentError as error:
                self._failure, self._ends = error, []
        if self._ready:
            return self._ready.popleft()
        if self._failure is not None:
            raise self._failure
        return None

    def _seal(self, accounts: bool = False, phase: Phase | None = None) -> None:
        """Complete steps become ready; the open one stays."""
        if not self._ends:
            return
        before, after = self._at.advance(self._marks, self._file)
        payload = b"".join(self._out[: self._done])
        time, offset = _times(self._out[self._done - 1], 0)
        self._ready.append(
            Steps(
                payload=payload,
                ends=self._ends,
                events=self._done,
                before=before,
                after=after,
                preamble=self._preamble,
                server_id=self._server_id,
                file=self._file,
                offset=offset,
                step_time_us=time * 1_000_000,
                accounts=accounts,
                phase=phase,
            )
        )
        self._out = self._out[self._done :]
        self._fragments.clear()
        self._total -= len(payload)
        self._ends, self._marks, self._done = [], [], 0

    def _overflow(self) -> None:
        """More than `limit` is gathered: hand over complete steps, and pieces of one that alone is larger."""
        self._seal()
        if self._total > self._limit:
            self._hand_over(last=False)

    def _hand_over(self, last: bool) -> None:
        """Pieces of the open step, which is alone in the run; `last`: all of it. Whole events as far as that goes."""
        self._take_care()
        first = 0
        size = 0
        for i, piece in enumerate(self._out):
            if i > first and size + len(piece) > self._limit:
                self._piece(first, i, False)
                first, size = i, 0
            size += len(piece)
        if last:
            self._piece(first, len(self._out), True)
            first, size = len(self._out), 0
        del self._out[:first]
        self._fragments = {i - first for i in self._fragments if i >= first}
        self._total = size

    def _piece(self, first: int, end: int, last: bool) -> None:
        self._at.check(self._mark, self._file)
        before = after = self._at.text()
        if not isinstance(self._at, Files):
            after = self._at.text(self._mark)
        if last:
            before, after = self._at.advance([self._mark], self._file)
        time, offset = _times(self._out[end - 1], 0) if last else (0, 0)
        self._ready.append(
            Piece(
                payload=b"".join(self._out[first:end]),
                first=self._pieces == 0,
                last=last,
                events=end - first - sum(first <= i < end for i in self._fragments),
                before=before,
                after=after,
                preamble=self._preamble,
                server_id=self._server_id,
                file=self._file,
                offset=offset,
                step_time_us=time * 1_000_000,
                accounts=self._accounts,
                phase=self._phase,
            )
        )
        self._pieces += 1


def statement(event: bytes, checksum: int) -> bytes:
    """The text of a QUERY or QUERY_COMPRESSED event that ends in `checksum` bytes of checksum."""
    body = event[HEADER : len(event) - checksum]
    if len(body) < 13:
        raise damaged("a query event that is too short")
    database, status = _query(body, 0)
    text = body[13 + status + database + 1 :]
    return decompress(text) if event[4] == ev.QUERY_COMPRESSED else text


def _unexpected(kind: int, state: int, where: str) -> AgentError:
    name = ev.event_name(kind)
    if state == UNHEARD:
        return damaged(f"a {name} event before any format description")
    if kind == ev.INCIDENT:
        return CaptureStopped(
            "capture-incident",
            f"the source says that its log is incomplete (incident event) in {where}",
            "changes were made that the log does not hold: take a new baseline",
        )
    if state > CLOSED:
        return CaptureStopped(
            "capture-step-open",
            f"a {name} event inside a step, in {where}",
            "this version does not know what that means, or the source's log is damaged: take a new baseline",
        )
    if kind in INSIDE or kind in STATEMENTS or kind == ev.XID:
        return CaptureStopped(
            "capture-no-gtid",
            f"a {name} event outside any GTID group, in {where}",
            "this part of the log was written by a server without GTIDs: take a new baseline",
        )
    return CaptureStopped(
        "capture-event-unknown",
        f"a {name} event, which this version does not know, in {where}",
        "upgrade Holdfast; until then take a new baseline after each such event",
    )
