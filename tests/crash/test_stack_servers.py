"""What the embedded servers keep when they are killed, and that the fixtures do what they say."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import psycopg
import pymysql
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.admin._resource import ResourceType
from confluent_kafka.cimpl import NewTopic

from deploy.demo.mariadb import MariaDB
from deploy.demo.server import DatabaseServer
from streams.settings import Settings, load
from tests.stack.servers import KafkaServer, PostgresServer, config_file

pytestmark = pytest.mark.crash


def create_topic(kafka: KafkaServer, name: str) -> None:
    admin = AdminClient(kafka.settings().client_config())
    admin.create_topics([NewTopic(name, 1, 1)])[name].result(30)


def produce(kafka: KafkaServer, topic: str, values: list[bytes]) -> None:
    """Returns when the broker has acknowledged each of `values`."""
    failed: list[object] = []
    producer = Producer({**kafka.settings().client_config(), "enable.idempotence": True, "linger.ms": 0})
    for value in values:
        producer.produce(topic, value, on_delivery=lambda error, _: failed.append(error) if error else None)
    assert producer.flush(60) == 0
    assert failed == []


def consume(kafka: KafkaServer, topic: str, count: int) -> list[bytes | None]:
    consumer = Consumer({**kafka.settings().client_config(), "group.id": "test", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, 0, 0)])
    with contextlib.closing(consumer):
        return [m.value() for m in consumer.consume(count, 30)]


def test_acknowledged_records_are_there_after_the_broker_is_killed(kafka: KafkaServer) -> None:
    create_topic(kafka, "killed")
    values = [b"%d" % i for i in range(500)]
    produce(kafka, "killed", values)

    kafka.kill()
    kafka.restart()

    assert consume(kafka, "killed", 500) == values


def test_a_paused_broker_acknowledges_nothing_and_goes_on_when_resumed(kafka: KafkaServer) -> None:
    create_topic(kafka, "paused")
    acknowledged: list[bytes | None] = []
    producer = Producer({**kafka.settings().client_config(), "enable.idempotence": True})
    produce(kafka, "paused", [b"before"])

    kafka.pause()
    producer.produce("paused", b"meanwhile", on_delivery=lambda error, m: acknowledged.append(m.value()))
    assert producer.flush(2) == 1
    assert acknowledged == []
    kafka.resume()

    assert producer.flush(60) == 0
    assert acknowledged == [b"meanwhile"]
    assert consume(kafka, "paused", 2) == [b"before", b"meanwhile"]


def test_what_a_single_machine_acknowledges_is_on_its_disk(kafka: KafkaServer, postgres: PostgresServer) -> None:
    """A power cut cannot be had here, so what is proved is that the running servers are told to flush before they answer."""
    broker = ConfigResource(ResourceType.BROKER, "1")
    admin = AdminClient(kafka.settings().client_config())
    flags = admin.describe_configs([broker])[broker].result(30)
    assert flags["log.flush.interval.messages"].value == "1"
    assert flags["log.retention.ms"].value == "-1"
    assert flags["unclean.leader.election.enable"].value == "false"
    with psycopg.connect(postgres.settings().conninfo()) as connection:
        for name in ("fsync", "full_page_writes", "synchronous_commit", "data_checksums"):
            assert connection.execute("SELECT current_setting(%s)", (name,)).fetchone() == ("on",), name


def test_no_topic_springs_up_by_being_named(kafka: KafkaServer) -> None:
    producer = Producer({**kafka.settings().client_config(), "message.timeout.ms": 3000})
    failed: list[object] = []
    producer.produce("mistyped", b"x", on_delivery=lambda error, _: failed.append(error))
    producer.flush(20)
    assert len(failed) == 1
    assert failed[0] is not None
    assert "mistyped" not in AdminClient(kafka.settings().client_config()).list_topics(timeout=10).topics


def test_committed_rows_are_there_after_postgresql_is_killed(postgres: PostgresServer) -> None:
    database = postgres.fresh_database()
    with psycopg.connect(database.conninfo()) as connection:
        connection.execute("CREATE TABLE t (n int PRIMARY KEY)")
        connection.execute("INSERT INTO t SELECT generate_series(1, 1000)")
    uncommitted = psycopg.connect(database.conninfo())
    uncommitted.execute("INSERT INTO t VALUES (2000)")

    postgres.kill()
    postgres.restart()

    with psycopg.connect(database.conninfo()) as connection:
        assert connection.execute("SELECT count(*), max(n) FROM t").fetchone() == (1000, 1000)
    postgres.drop_database(database.dbname)


def test_postgresql_wants_its_password(postgres: PostgresServer) -> None:
    conninfo = psycopg.conninfo.make_conninfo(postgres.settings().conninfo(), password="wrong")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(conninfo)


@pytest.mark.parametrize(
    ("name", "position"),
    [
        ("mariadb-10.11", "SELECT @@gtid_binlog_pos"),
        ("mariadb-11.4", "SELECT @@gtid_binlog_pos"),
        ("mysql-9", "SELECT @@gtid_executed"),
        ("mysql-5.5", "SELECT 1"),
    ],
)
def test_committed_transactions_and_their_binary_log_are_there_after_a_database_is_killed(
    make_database: Callable[..., DatabaseServer], name: str, position: str
) -> None:
    database = make_database(name)
    assert database.version.startswith(name.partition("-")[2] + ".")
    if "gtid" in position:  # what sets the server up is not in its log
        assert database.execute(position) == [("",)]
    database.execute("CREATE DATABASE d", "CREATE TABLE d.t (n int PRIMARY KEY) ENGINE=InnoDB")
    for n in range(20):
        database.execute(f"INSERT INTO d.t VALUES ({n})")
    before = database.execute(position)
    (log,) = database.execute("SHOW BINARY LOGS")

    database.kill()
    database.start()

    assert database.execute("SELECT COUNT(*) FROM d.t") == [(20,)]
    assert database.execute(position) == before
    assert log[:2] in [row[:2] for row in database.execute("SHOW BINARY LOGS")]


def test_a_source_is_set_up_as_capture_asks_for(mariadb: MariaDB) -> None:
    names = ("binlog_format", "binlog_row_image", "binlog_row_metadata", "sync_binlog", "gtid_strict_mode")
    row = mariadb.execute("SELECT " + ", ".join(f"@@{name}" for name in names))
    assert dict(zip(names, row[0], strict=True)) == {
        "binlog_format": "ROW",
        "binlog_row_image": "FULL",
        "binlog_row_metadata": "FULL",
        "sync_binlog": 1,
        "gtid_strict_mode": 1,
    }


def test_what_sets_a_source_up_is_not_in_its_binary_log(make_mariadb: Callable[..., MariaDB]) -> None:
    mariadb = make_mariadb(options={"server_id": "7", "max_binlog_size": "4096"})
    assert mariadb.execute("SELECT @@gtid_binlog_pos, @@max_binlog_size") == [("", 4096)]


@pytest.mark.parametrize("name", ["mariadb-10.11", "mysql-9"])
def test_a_source_with_tls_is_verified_against_its_authority(
    make_database: Callable[..., DatabaseServer], name: str
) -> None:
    database = make_database(name, tls=True, options={"require_secure_transport": "ON"})
    with contextlib.closing(database.connect(ssl={"ca": str(database.tls_ca)})) as connection, connection.cursor() as c:
        c.execute("SHOW STATUS LIKE 'Ssl_version'")
        assert c.fetchone()[1].startswith("TLSv1.")
    with pytest.raises(pymysql.err.OperationalError):
        database.connect(ssl_disabled=True)


@pytest.mark.parametrize("database", ["mysql-9", "mysql-5.5"], indirect=True)
def test_a_mysql_source_is_set_up_as_capture_asks_for(database: DatabaseServer) -> None:
    set_up = dict(database.execute("SHOW GLOBAL VARIABLES"))
    wanted = {"log_bin": "ON", "binlog_format": "ROW", "sync_binlog": "1"}
    if database.version.startswith("9."):
        wanted |= {"gtid_mode": "ON", "binlog_row_image": "FULL", "binlog_row_metadata": "FULL"}
    assert wanted.items() <= set_up.items()


def test_a_fresh_site_is_one_of_its_own(fresh_site: Settings, kafka: KafkaServer) -> None:
    assert load(config_file(fresh_site), {}) == fresh_site
    assert len(fresh_site.secret_key_file.read_bytes()) == 32
    assert fresh_site.kafka.bootstrap == kafka.bootstrap
    assert fresh_site.kafka.prefix != "holdfast."
    with psycopg.connect(fresh_site.postgres.conninfo()) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)
