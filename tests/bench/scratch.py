"""`scratch`: a baseline of 1 GiB and a million one-row transactions after it, made into a copy.

Ours: `holdfast scratch create` as a user types it, from start to end: a private server made from nothing, the baseline
loaded, the log replayed from Kafka by the server's own replication, the server started anew. The peer: a server that is there
already and flushes as little as ours does while it is filled; `mariadb < dump`, then `mariadb-binlog … | mariadb` of
the source's own log files. Both end with the source's rows: checksums are compared.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import time
from pathlib import Path

import pymysql

from deploy.demo.mariadb import MariaDB
from tests.bench import ground
from tests.bench.report import Report, Skip, report
from tests.bench.site import SOURCE, BenchSite, bench_site, protect

_ROWS = 4_000_000  # of about 270 bytes: 1 GiB
_STEPS = 1_000_000
_LOAD = (
    "create or replace procedure step(n int, top int) begin declare i int default 1; while i <= n do "
    "case i % 4 when 0 then insert into filled values (10000000 + i, repeat(md5(i), 8), i); "
    "when 1 then update filled set n = n + 1 where id = 1 + i * 7919 % (top div 2); "
    "when 2 then update filled set t = repeat(md5(i), 7) where id = 1 + i * 6151 % (top div 2); "
    "else delete from filled where id = top - i div 4; end case; set i = i + 1; end while; end"
)
# As `agents.mysql.private` has it while a copy is filled.
_FAST = {
    "innodb_flush_log_at_trx_commit": "0",
    "innodb_doublewrite": "0",
    "innodb_flush_method": "fsync",
    "debug_no_sync": None,
    "sync_binlog": "0",
    "skip_log_bin": None,
    "log_bin": "OFF",
    "innodb_log_file_size": "256M",
    "max_allowed_packet": "1G",
}


def run(rounds: int, scale: float) -> Report:
    rows, steps = int(_ROWS * scale), int(_STEPS * scale)
    ours: list[float] = []
    peer: list[float] = []
    loads: list[float] = []
    with bench_site() as site:
        program = ground.binlog_program(site.mariadb)
        if program is None:
            raise Skip("there is no mariadb-binlog here")
        dump = _dump_program(site.mariadb)
        site.mariadb.execute(
            "create table filled (id int primary key, t varchar(300), n int)",
            f"insert into filled select seq, repeat(md5(seq), 8), seq from seq_1_to_{rows}",
            _LOAD,
            database=ground.DATABASE,
        )
        protect(site)
        file = site.folder / "dump.sql"
        with file.open("wb") as out:
            arguments = site.mariadb.client_command().split()[1:]
            subprocess.run(
                [dump, *arguments, "--single-transaction", "--databases", ground.DATABASE], stdout=out, check=True
            )
        site.mariadb.execute("flush binary logs")
        first = ground.binlogs(site.mariadb)[-1][0]
        with ground.fast_source(site.mariadb) as connection, connection.cursor() as cursor:
            cursor.execute(f"call step({steps}, {rows})")
        head = site.captured(3600)
        site.mariadb.execute("flush binary logs")
        logs = [str(site.mariadb.datadir / name) for name, _ in ground.binlogs(site.mariadb)[:-1] if name >= first]
        wanted = _checksum(site.mariadb)
        for number in range(rounds):
            ours.append(_ours(site, f"copy-{number}", head, wanted))
            load, seconds = _peer(site, site.folder / f"peer-{number}", program, file, logs, wanted)
            loads.append(load)
            peer.append(seconds)
    figures = {"rows": rows, "steps": head, "peer_load_s": statistics.median(loads)}
    return report("scratch", ours, peer, "mariadb < dump, mariadb-binlog | mariadb", "s", "less", figures)


def _ours(site: BenchSite, name: str, head: int, wanted: int) -> float:
    started = time.perf_counter()
    made = site.stage.json("scratch", "create", name, "--source", SOURCE, "--at", str(head))["scratch"]
    seconds = time.perf_counter() - started
    password = Path(made["password_file"]).read_text().strip()
    conn = pymysql.connect(host=made["host"], port=made["port"], user=made["account"], password=password)
    with contextlib.closing(conn), conn.cursor() as cursor:
        cursor.execute(f"checksum table {ground.DATABASE}.filled extended")
        row = cursor.fetchone()
    _same(wanted, int(row[1]) if row else 0, "ours")
    site.stage.holdfast("scratch", "drop", name, show=False)
    return seconds


def _peer(site: BenchSite, folder: Path, program: str, dump: Path, logs: list[str], wanted: int) -> tuple[float, float]:
    """Seconds for the dump alone, and for all of it."""
    server = MariaDB.prepare(folder, options=_FAST)
    server.start()
    try:
        client = server.client_command().split()
        started = time.perf_counter()
        with dump.open("rb") as source:
            subprocess.run(client, stdin=source, check=True)
        load = time.perf_counter() - started
        with subprocess.Popen([program, *logs], stdout=subprocess.PIPE) as reading:
            subprocess.run(client, stdin=reading.stdout, check=True)
        if reading.returncode:
            raise RuntimeError("mariadb-binlog failed")
        seconds = time.perf_counter() - started
        _same(wanted, _checksum(server), "the peer")
        return load, seconds
    finally:
        server.stop()


def _dump_program(server: MariaDB) -> str:
    client = Path(server.client_command().split()[0])
    program = client.with_name("mariadb-dump")
    if not program.exists():
        raise Skip("there is no mariadb-dump here")
    return str(program)


def _checksum(server: MariaDB) -> int:
    return int(server.execute("checksum table filled extended", database=ground.DATABASE)[0][1])


def _same(before: int, after: int, who: str) -> None:
    if before != after:
        raise RuntimeError(f"{who}: the rows are not the source's")
