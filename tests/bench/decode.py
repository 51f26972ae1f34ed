"""`decode`: rows a second out of a source's binlog, every value of every row, beside mysql-replication.

Both read the same log from the same server, one after the other in the same round, from its first event to its last: ours
as capture does (`agents.mysql.dump`) and then through `streams.formats.binlog`, as the timeline does. Two loads, a table
each: 100,000 one-row transactions, and 400,000 rows in 100-row statements, half of them inserts and half updates. `ours`
and `peer` are rows a second over both loads together; `figures` has each load's, and what our decoder alone does with bytes
that are in memory already.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from pymysqlreplication import BinLogStreamReader
from pymysqlreplication.row_event import DeleteRowsEvent, UpdateRowsEvent, WriteRowsEvent

from agents import registry
from agents.protocol import SourceSettings, Steps
from deploy.demo.accounts import create_accounts
from deploy.demo.mariadb import MariaDB
from streams.formats.binlog.step import iter_changes
from tests.bench import ground
from tests.bench.ground import DATABASE
from tests.bench.report import Report, report

ONE_ROW = 100_000
HUNDREDS = 2_000
_CHUNK = 4 << 20
_PEER = "mysql-replication"


@dataclass(frozen=True, slots=True)
class Load:
    """A stretch of the server's log: where it starts (GTID set) and how many rows are in it."""

    start: str
    rows: int


def run(rounds: int, scale: float) -> Report:
    with _source() as (settings, server):
        loads = {"1row": _one_row(server, int(ONE_ROW * scale)), "100row": _hundreds(server, int(HUNDREDS * scale))}
        rates: dict[str, list[float]] = {}
        both: dict[str, list[float]] = {"ours": [], "peer": []}
        readers: dict[str, Callable[[SourceSettings, Load], float]] = {"ours": _ours, "peer": _peer, "memory": _memory}
        for turn in range(rounds + 1):
            took = {(who, name): read(settings, load) for name, load in loads.items() for who, read in readers.items()}
            if not turn:
                continue
            for (who, name), seconds in took.items():
                rates.setdefault(f"{who}_{name}_rows_s", []).append(loads[name].rows / seconds)
            for who, rate in both.items():
                rate.append(sum(load.rows for load in loads.values()) / sum(took[who, name] for name in loads))
        figures = {key: sorted(found)[len(found) // 2] for key, found in rates.items()}
        for name in loads:
            figures[f"ratio_{name}"] = figures[f"ours_{name}_rows_s"] / figures[f"peer_{name}_rows_s"]
        return report("decode", both["ours"], both["peer"], _PEER, "rows/s", "more", figures)


@contextlib.contextmanager
def _source() -> Iterator[tuple[SourceSettings, MariaDB]]:
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        server = MariaDB.prepare(folder / "mariadb")
        server.start()
        try:
            server.execute(f"create database {DATABASE}")
            with contextlib.closing(server.connect()) as admin:
                passwords = create_accounts(admin)
            settings = SourceSettings(
                "bench", "mariadb", server.host, server.port, accounts={"capture": "hf_capture"}, passwords=passwords
            )
            yield settings, server
        finally:
            server.stop()


# No value of a row recurs in another: what is equal is decoded once by us, and that is not what is measured.
_ROW = "{id}, concat('customer name ', {id}), {id} * 1.25, from_unixtime(1700000000 + {id} * 7)"


def _one_row(server: MariaDB, rows: int) -> Load:
    server.execute(ground.WIDE.format(name="ones"), database=DATABASE)
    start = ground.position(server)
    _loop(server, "ones", rows, f"insert into ones values ({_ROW.format(id='i')})")
    return Load(start, rows)


def _hundreds(server: MariaDB, statements: int) -> Load:
    """As many inserts of 100 rows as updates of 100 rows."""
    server.execute(ground.WIDE.format(name="hundreds"), database=DATABASE)
    start = ground.position(server)
    row = _ROW.format(id="(i * 100 + seq)")
    _loop(server, "fill", statements, f"insert into hundreds select {row} from seq_1_to_100")
    _loop(
        server,
        "change",
        statements,
        "update hundreds set amount = amount + 0.5, name = concat(name, '.') where id > i * 100 and id <= i * 100 + 100",
    )
    return Load(start, 200 * statements)


def _loop(server: MariaDB, name: str, times: int, statement: str) -> None:
    """Run a statement, a transaction each, with `i` = 0, 1, 2 …"""
    with ground.fast_source(server) as connection, connection.cursor() as cursor:
        cursor.execute(
            f"create or replace procedure {name}_loop(n int) begin declare i int default 0; "
            f"while i < n do {statement}; set i = i + 1; end while; end"
        )
        cursor.execute(f"call {name}_loop({times})")


def _payloads(settings: SourceSettings, load: Load) -> Generator[tuple[bytes, bytes], None, None]:
    """(format description, whole steps) as capture is given them."""
    stream = registry.source(settings).open(load.start, _CHUNK)
    try:
        while True:
            taken = stream.take(60)
            if isinstance(taken, Steps):
                yield taken.preamble, taken.payload
    finally:
        stream.close()


def _decode(payloads: Iterator[tuple[bytes, bytes]], rows: int) -> float:
    started, seen = time.perf_counter(), 0
    for preamble, payload in payloads:
        for _ in iter_changes(preamble, payload):
            seen += 1
        if seen >= rows:
            break
    return time.perf_counter() - started


def _ours(settings: SourceSettings, load: Load) -> float:
    with contextlib.closing(_payloads(settings, load)) as payloads:
        return _decode(payloads, load.rows)


def _memory(settings: SourceSettings, load: Load) -> float:
    held, seen = [], 0
    with contextlib.closing(_payloads(settings, load)) as payloads:
        for preamble, payload in payloads:
            held.append((preamble, payload))
            seen += sum(1 for _ in iter_changes(preamble, payload))
            if seen >= load.rows:
                break
    return _decode(iter(held), load.rows)


def _peer(settings: SourceSettings, load: Load) -> float:
    reader = BinLogStreamReader(
        connection_settings={
            "host": settings.host,
            "port": settings.port,
            "user": settings.accounts["capture"],
            "password": settings.passwords["capture"],
        },
        server_id=4711,
        is_mariadb=True,
        auto_position=load.start,
        only_events=[WriteRowsEvent, UpdateRowsEvent, DeleteRowsEvent],
        blocking=True,
    )
    started, seen = time.perf_counter(), 0
    with contextlib.closing(reader):
        for event in reader:
            seen += len(event.rows)
            if seen >= load.rows:
                break
        return time.perf_counter() - started
