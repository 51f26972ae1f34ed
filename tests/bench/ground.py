"""What benchmarks stand on: a Kafka that flushes each record, a MariaDB with `sync_binlog=1`, a site's settings, loads.

Servers are started for one benchmark and stopped after it, by pid. Generating a load turns durability of the source down (it is
not what is measured) and up again before anything is timed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymysql
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic as _NewTopic

from deploy.demo.accounts import create_accounts
from deploy.demo.mariadb import MariaDB
from deploy.embedded import kafka as kafka_server
from deploy.embedded import postgres as postgres_server
from deploy.embedded.ports import free_ports
from deploy.embedded.process import RunningProcess
from deploy.embedded.site import SETTINGS
from deploy.embedded.user import service_user
from streams.settings import KafkaSettings, PostgresSettings, Settings, load
from tests.stack.servers import make_site

DATABASE = "bench"
WIDE = "create table {name} (id int not null primary key, name varchar(64), amount decimal(12,2), ts datetime) engine=innodb"


@dataclass(frozen=True, slots=True)
class Ground:
    """The servers of one benchmark and the folder that holds everything of theirs."""

    folder: Path
    kafka: KafkaSettings
    mariadb: MariaDB
    passwords: dict[str, str]
    password_files: dict[str, Path]

    def site(self, name: str, postgres: PostgresSettings | None = None) -> Settings:
        """A site of its own on these servers, with `holdfast.toml` (`config_file`) in its directory."""
        kafka = dataclasses.replace(self.kafka, prefix=f"{name}.")
        return make_site(
            self.folder / name, kafka, postgres or PostgresSettings("127.0.0.1", 1, "nobody", "none"), name
        )

    def settings(self, name: str) -> Settings:
        """Of a site made before."""
        return load(self.folder / name / SETTINGS, os.environ)


@contextlib.contextmanager
def ground() -> Iterator[Ground]:
    """Kafka and MariaDB, accounts created, database `bench` there."""
    user = service_user()
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)
        ports = free_ports(2)
        broker = kafka_server.Broker(folder / "kafka", ports[0], ports[1], user=user)
        process = RunningProcess(kafka_server.prepare(broker))
        stack.callback(process.stop)
        settings = KafkaSettings(broker.bootstrap)
        process.wait_ready(lambda: kafka_server.ready(settings), 60)
        server = MariaDB.prepare(
            folder / "mariadb", options={"innodb_buffer_pool_size": "1G", "max_allowed_packet": "64M"}
        )
        server.start()
        stack.callback(server.stop)
        server.execute(f"create database {DATABASE}")
        with contextlib.closing(server.connect()) as admin:
            passwords = create_accounts(admin)
        files = {}
        for purpose, password in passwords.items():
            files[purpose] = folder / f"{purpose}.password"
            files[purpose].touch(0o600)
            files[purpose].write_text(password)
        yield Ground(folder, settings, server, passwords, files)


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[PostgresSettings]:
    user = service_user()
    cluster = postgres_server.Cluster(folder / "postgres", free_ports(1)[0], folder / "pg" / "postgres.password", user)
    process = RunningProcess(postgres_server.prepare(cluster))
    try:
        process.wait_ready(lambda: postgres_server.ready(cluster.settings("postgres")), 60)
        postgres_server.ensure_database(cluster, "holdfast")
        yield cluster.settings()
    finally:
        process.stop()


@contextlib.contextmanager
def fast_source(server: MariaDB) -> Iterator[pymysql.Connection[Any]]:
    """A root connection while the source does not flush; flushing is back on (and done once) at the end."""
    with contextlib.closing(server.connect(database=DATABASE)) as connection, connection.cursor() as cursor:
        cursor.execute("set global sync_binlog = 0")
        cursor.execute("set global innodb_flush_log_at_trx_commit = 0")
        try:
            yield connection
        finally:
            cursor.execute("set global sync_binlog = 1")
            cursor.execute("set global innodb_flush_log_at_trx_commit = 1")
            cursor.execute("flush logs")


def position(server: MariaDB) -> str:
    """The source's GTID position."""
    return str(server.execute("select @@gtid_binlog_pos")[0][0])


def one_row_inserts(server: MariaDB, table: str, rows: int, first: int = 1) -> None:
    """`rows` committed one-row transactions."""
    with fast_source(server) as connection, connection.cursor() as cursor:
        cursor.execute(
            f"create or replace procedure load_{table}(a int, n int) begin declare i int default a; "
            f"while i < a + n do insert into {table} values (i, concat('customer name ', i), i * 1.25, "
            "'2024-01-02 03:04:05'); set i = i + 1; end while; end"
        )
        cursor.execute(f"call load_{table}({first}, {rows})")


def hundred_row_inserts(server: MariaDB, table: str, statements: int) -> None:
    """`statements` committed transactions of one 100-row statement each."""
    with fast_source(server) as connection, connection.cursor() as cursor:
        cursor.execute(
            f"create or replace procedure load_{table}(n int) begin declare i int default 0; while i < n do "
            f"insert into {table} select i * 100 + seq, concat('customer name ', i * 100 + seq), seq * 1.25, "
            "'2024-01-02 03:04:05' from seq_1_to_100; set i = i + 1; end while; end"
        )
        cursor.execute(f"call load_{table}({statements})")


def binlogs(server: MariaDB) -> list[tuple[str, int]]:
    """The source's binlog files with their sizes in bytes."""
    return [(str(r[0]), int(r[1])) for r in server.execute("show binary logs")]


def binlog_program(server: MariaDB) -> str | None:
    """`mariadb-binlog`: the system's, or the one that came with the server."""
    bundled = Path(server.installation.server[0]).with_name("mariadb-binlog")
    return shutil.which("mariadb-binlog") or (str(bundled) if bundled.exists() else None)


def _raw_dump_command(ground: Ground, program: str, out: Path, *more: str) -> list[str]:
    defaults = ground.folder / "dump.cnf"
    defaults.touch(0o600)
    defaults.write_text(
        f"[client]\nhost=127.0.0.1\nport={ground.mariadb.port}\nuser=hf_capture\npassword={ground.passwords['capture']}\n"
    )
    options = ("--raw", "--read-from-remote-server", f"--result-file={out}/")
    return [program, f"--defaults-extra-file={defaults}", *options, *more]


def raw_dump_seconds(ground: Ground, files: list[str]) -> float:
    """How long `mariadb-binlog --raw` takes to copy `files` from the server: the ceiling of reading. NaN without it."""
    program = binlog_program(ground.mariadb)
    if program is None:
        return float("nan")
    out = ground.folder / f"raw-{secrets.token_hex(3)}"
    out.mkdir()
    started = time.perf_counter()
    subprocess.run(_raw_dump_command(ground, program, out, *files), check=True, capture_output=True, timeout=600)
    seconds = time.perf_counter() - started
    shutil.rmtree(out)
    return seconds


@contextlib.contextmanager
def raw_dump(ground: Ground, first: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """`mariadb-binlog` copying the server's log from file `first` on as it grows, and the folder it writes to."""
    program = binlog_program(ground.mariadb)
    assert program is not None
    out = ground.folder / f"raw-{secrets.token_hex(3)}"
    out.mkdir()
    server_id = str(1_000_000 + secrets.randbelow(1_000_000))
    command = _raw_dump_command(
        ground, program, out, "--stop-never", f"--stop-never-slave-server-id={server_id}", first
    )
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process, out
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(out)


def plain_producer_seconds(kafka: KafkaSettings, topic: str, total: int, size: int = 900_000) -> float:
    """How long the same bytes take through a plain idempotent producer in records of `size`: the ceiling of writing."""
    create_topic(kafka, topic)
    producer = Producer(
        {
            **kafka.client_config(),
            "enable.idempotence": True,
            "acks": "all",
            "linger.ms": 5,
            "message.max.bytes": 8_388_608,
            "queue.buffering.max.kbytes": 65_536,
        }
    )
    block = os.urandom(size)
    producer.produce(topic, b"warm")
    producer.flush()
    started = time.perf_counter()
    left = total
    while left > 0:
        try:
            producer.produce(topic, block[: min(size, left)])
            left -= size
        except BufferError:
            producer.poll(0.01)
    producer.flush()
    return time.perf_counter() - started


def create_topic(kafka: KafkaSettings, topic: str, more: Mapping[str, str] | None = None) -> None:
    """One partition, a flush for each record, as capture topics have; `more` configuration."""
    client = AdminClient(kafka.client_config())
    config = {"max.message.bytes": "8388608", "flush.messages": "1", **(more or {})}
    for done in client.create_topics([_NewTopic(topic, 1, 1, config=config)]).values():
        done.result()


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used (proc(5), `stat`)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def until(condition: Callable[[], bool], limit: float, every: float = 0.02) -> None:
    """Wait for a condition. Raises `TimeoutError`."""
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the benchmark's condition did not come true")
        time.sleep(every)
