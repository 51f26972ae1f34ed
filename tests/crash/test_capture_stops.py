"""Capture stops visibly where going on would skip or falsify steps, and goes on after a new baseline. Secrets stay secret."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
from confluent_kafka import Consumer, TopicPartition

from agents.capture.run import run_capture
from agents.errors import AgentError
from deploy.demo.mariadb import MariaDB
from streams.events import SourceChanged
from streams.settings import Settings
from streams.topics import topic_name
from tests.stack.capturing import Load, Protected, captured_steps, eventually, new_lineage, position, protect

pytestmark = pytest.mark.crash


@pytest.fixture
def own_server(make_mariadb: Callable[..., MariaDB]) -> MariaDB:
    return make_mariadb()


@pytest.fixture
def fragile(fresh_site: Settings, own_server: MariaDB) -> Iterator[Protected]:
    """With a source of its own, whose log a test may reset."""
    made = protect(fresh_site, own_server)
    yield made
    made.stop()


def stopped(protected: Protected) -> SourceChanged:
    """The last capture process stops for good, and says so in the log; what it said."""
    assert protected.processes[-1].wait(120) == 3
    last = protected.changes()[-1]
    assert last.state == "stopped"
    assert last.lineage == protected.lineage
    assert last.problems[0].hint
    assert last.problems[0].code in protected.words()
    return last


def some_steps(protected: Protected, count: int = 100) -> None:
    with Load(protected.server) as load:
        load.await_more(count)


def captured_and_ended(protected: Protected) -> int:
    """Capture some steps, end capture; how many there are."""
    process = protected.capture()
    some_steps(protected)
    protected.caught_up()
    process.terminate()
    assert process.wait(120) == 0
    return len(protected.same())


def goes_on_with_a_new_lineage(protected: Protected) -> None:
    old = protected.lineage
    new_lineage(protected, "reset")
    assert protected.lineage != old
    process = protected.capture()
    some_steps(protected)
    protected.caught_up()
    protected.same()
    assert process.poll() is None


def test_reset_master_while_capture_is_away(fragile: Protected) -> None:
    steps = captured_and_ended(fragile)
    fragile.server.execute("reset master")
    fragile.capture()
    assert stopped(fragile).problems[0].code == "capture-position-lost"
    assert len(captured_steps(fragile.site, fragile.source)) == steps
    goes_on_with_a_new_lineage(fragile)


def test_reset_master_and_more_steps_than_there_were(fragile: Protected) -> None:
    """GTIDs are used again: 0-1-100 is there, and is another one."""
    steps = captured_and_ended(fragile)
    fragile.server.execute("reset master")
    some_steps(fragile, steps + 100)
    fragile.capture()
    assert stopped(fragile).problems[0].code == "capture-history-changed"
    assert len(captured_steps(fragile.site, fragile.source)) == steps


@pytest.mark.parametrize(("rotations", "more"), [(0, 10), (0, 2000), (3, 10)])
def test_reset_master_under_capture(fragile: Protected, rotations: int, more: int) -> None:
    """The server goes on sending heartbeats for a file of the same name that is no more, or finds no next one."""
    for _ in range(rotations):
        fragile.server.execute("flush binary logs")
    fragile.capture()
    some_steps(fragile)
    fragile.caught_up()
    steps = len(fragile.same())
    fragile.server.execute("reset master")
    some_steps(fragile, more)
    code = stopped(fragile).problems[0].code
    assert code in ("capture-position-lost", "capture-purged", "capture-source-log", "capture-history-changed")
    assert len(captured_steps(fragile.site, fragile.source)) == steps


def test_log_purged_before_it_was_captured(fragile: Protected) -> None:
    captured_and_ended(fragile)
    some_steps(fragile)
    fragile.server.execute("flush binary logs")
    some_steps(fragile)
    fragile.server.execute("flush binary logs")
    newest = fragile.server.execute("show master status")[0][0]
    fragile.server.execute(f"purge binary logs to '{newest}'")
    fragile.capture()
    assert stopped(fragile).problems[0].code == "capture-purged"
    goes_on_with_a_new_lineage(fragile)


def test_the_end_of_the_log_lost_in_a_crash(fragile: Protected) -> None:
    """What a power cut does with sync_binlog=0: the source comes back behind what was captured."""
    captured_and_ended(fragile)
    server = fragile.server
    file = server.datadir / str(server.execute("show master status")[0][0])
    server.kill()
    cut_before_last_steps(file, 5)
    server.start()
    fragile.capture()
    change = stopped(fragile)
    assert change.problems[0].code == "capture-position-lost"
    goes_on_with_a_new_lineage(fragile)


def test_the_end_of_the_log_lost_and_written_anew(fragile: Protected) -> None:
    captured_and_ended(fragile)
    server = fragile.server
    file = server.datadir / str(server.execute("show master status")[0][0])
    server.kill()
    cut_before_last_steps(file, 5)
    server.start()
    some_steps(fragile, 20)
    fragile.capture()
    assert stopped(fragile).problems[0].code == "capture-history-changed"


def cut_before_last_steps(binlog: Path, steps: int) -> None:
    """Truncate a binlog file before its last `steps` GTID events."""
    data = binlog.read_bytes()
    at, starts = 4, []
    while at + 19 <= len(data):
        kind, size = data[at + 4], struct.unpack_from("<I", data, at + 9)[0]
        if kind == 162:
            starts.append(at)
        at += size
    with binlog.open("r+b") as f:
        f.truncate(starts[-steps])


def test_another_server_with_a_copy_of_an_older_state(fragile: Protected, make_mariadb: Callable[..., MariaDB]) -> None:
    """A failover to a restored copy: the same GTIDs lead elsewhere."""
    server = fragile.server
    some_steps(fragile)
    server.stop()
    other = make_mariadb()
    other.stop()
    shutil.rmtree(other.datadir)
    shutil.copytree(server.datadir, other.datadir)
    other.user.own_tree(other.datadir)
    server.start()
    captured_and_ended(fragile)
    server.stop()
    other.port = server.port
    other.start()
    try:
        with Load(other, table="elsewhere") as load:
            load.await_more(300)
        fragile.capture()
        assert stopped(fragile).problems[0].code == "capture-history-changed"
    finally:
        other.stop()


def test_a_transaction_prepared_before_the_lineage_and_purged_stops_capture_when_it_is_committed(
    fragile: Protected,
) -> None:
    """Its rows are neither in the baseline nor in any log."""
    fragile.server.execute(
        "create database xa", "create table xa.t (n int)", "xa start 'a'", "insert into xa.t values (1)", "xa end 'a'",
        "xa prepare 'a'",
    )  # fmt: skip
    fragile.server.execute("flush binary logs")
    newest = fragile.server.execute("show master status")[0][0]
    fragile.server.execute(f"purge binary logs to '{newest}'")
    new_lineage(fragile, "protected")
    fragile.capture()
    some_steps(fragile)
    wanted = position(fragile.server)
    fragile.server.execute("xa commit 'a'")
    change = stopped(fragile)
    assert change.problems[0].code == "capture-xa-unknown"
    assert change.position == wanted
    assert change.ordinal == len(captured_steps(fragile.site, fragile.source))


def test_xa_in_one_phase_is_a_step_like_any_other(fragile: Protected) -> None:
    fragile.capture()
    some_steps(fragile)
    with fragile.server.connect() as c, c.cursor() as cursor:
        for text in (
            "xa start 'a'",
            "insert into load_db.load_t(n) values (5)",
            "xa end 'a'",
            "xa commit 'a' one phase",
        ):
            cursor.execute(text)
    some_steps(fragile, 10)
    fragile.caught_up()
    fragile.same()


def test_an_account_that_is_refused(fragile: Protected) -> None:
    process = fragile.capture()
    some_steps(fragile)
    fragile.caught_up()
    fragile.server.execute("alter user 'hf_capture'@'127.0.0.1' identified by 'another'")
    fragile.server.restart()
    assert process.wait(120) == 3
    assert stopped(fragile).problems[0].code == "source-denied"


def test_a_certificate_that_cannot_be_trusted(fresh_site: Settings, make_mariadb: Callable[..., MariaDB]) -> None:
    server, other = make_mariadb(tls=True), make_mariadb(tls=True)
    made = protect(fresh_site, server, tls="required")
    distrusting = replace(made.settings, tls="verify", tls_ca=str(other.tls_ca))
    with pytest.raises(AgentError) as caught:
        run_capture(fresh_site, distrusting, Event())
    assert caught.value.code == "source-tls"
    assert made.changes()[-1].problems == (caught.value.problem(),)


def test_a_source_that_was_never_added(fresh_site: Settings, own_server: MariaDB) -> None:
    made = protect(fresh_site, own_server)
    made.source = "unknown"
    assert made.capture().wait(120) == 3
    assert "source-unknown" in made.words()


def test_no_lineage_nothing_to_go_on_from(fragile: Protected) -> None:
    with pytest.raises(AgentError) as caught:
        run_capture(fragile.site, replace(fragile.settings, source="other"), Event())
    assert caught.value.code == "capture-no-lineage"


SECRET = "Tr0ub4dor-and-3"


def raw_bytes(site: Settings, name: str, of: str | None = None) -> bytes:
    """Everything that stands in a topic, as it stands there."""
    topic = topic_name(site.kafka.prefix, name, of)
    consumer = Consumer({**site.kafka.client_config(), "group.id": "raw", "enable.partition.eof": True})
    out = []
    try:
        for partition in consumer.list_topics(topic, 10).topics[topic].partitions:
            consumer.assign([TopicPartition(topic, partition, 0)])
            while True:
                message = consumer.poll(10)
                assert message is not None
                if message.error() is not None:
                    break
                out += [message.key() or b"", message.value() or b"", repr(message.headers()).encode()]
    finally:
        consumer.close()
    return b"".join(out)


def test_account_statements_are_nowhere_in_clear(fragile: Protected) -> None:
    first = fragile.capture()
    server = fragile.server
    some_steps(fragile)
    server.execute(f"create user joe identified by '{SECRET}'")
    some_steps(fragile, 10)
    with server.connect() as c, c.cursor() as cursor:
        cursor.execute(f"set password for joe = password('{SECRET}x')")
        cursor.execute(f"/* hidden */ grant select on *.* to jim identified by '{SECRET}'")
        cursor.execute(f"create procedure load_db.p() create user kim identified by '{SECRET}'")
    server.execute(f"alter user joe identified by '{SECRET}'")
    fragile.caught_up()
    # The last captured step is one that must be compared on resuming, and nothing that could be tried out is in clear.
    first.kill()
    first.wait()
    fragile.capture()
    some_steps(fragile, 10)
    fragile.caught_up()
    steps = fragile.same()
    with_secret = [s for s in steps if SECRET.encode() in (s.payload or b"")]
    assert len(with_secret) >= 4
    assert all(s.accounts for s in with_secret)
    assert not any(s.accounts for s in steps if s.payload is not None and b"load_t" in s.payload)
    without_key = captured_steps(fragile.site, fragile.source, keyed=False)
    assert [s.ordinal for s in without_key if s.payload is None] == [s.ordinal for s in steps if s.accounts]
    for name, of in (("capture", fragile.source), ("inventory", None), ("health", None)):
        raw = raw_bytes(fragile.site, name, of)
        assert raw
        assert SECRET.encode() not in raw
        assert fragile.passwords["capture"].encode() not in raw
    for number in range(len(fragile.processes)):
        assert SECRET not in fragile.words(number)
        assert fragile.passwords["capture"] not in fragile.words(number)
    arguments = Path(f"/proc/{fragile.processes[-1].pid}/cmdline").read_bytes()
    assert fragile.passwords["capture"].encode() not in arguments


def test_paused_and_stopped_are_reported_while_kafka_is_up(fragile: Protected) -> None:
    fragile.capture()
    some_steps(fragile, 50)
    eventually(lambda: any(c.state == "capturing" for c in fragile.changes()), 180, "saying that capture is at it")
    fragile.server.execute("set global binlog_expire_logs_seconds = 3600")
    first = fragile.processes[0]
    first.terminate()
    first.wait(120)
    fragile.capture()
    eventually(lambda: any("purge_in_s" in h.figures for h in fragile.health()), 180, "a forecast")
    forecast = [h.figures["purge_in_s"] for h in fragile.health() if "purge_in_s" in h.figures]
    assert 3000 < forecast[-1] <= 3600
