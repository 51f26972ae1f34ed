"""A bad network between the agent and Kafka, and none: what the source committed is in the log once, in order, all the same.

The agent reaches Kafka through a relay; the tests look at the log past it. What depends on the source's coordinates is tried
with each kind of them: MariaDB's GTIDs, MySQL's, and files with offsets (5.5).
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from agents.capture.spool import Seen, folder_of, look, segments_in
from agents.mysql.dialects import dialect
from deploy.demo.server import DatabaseServer
from deploy.embedded import site
from deploy.embedded.ports import free_ports
from streams.settings import CaptureSettings, PostgresSettings
from tests.stack.capturing import (
    Load,
    LoggedStep,
    Protected,
    captured_steps,
    eventually,
    logged_steps,
    position,
    protect,
)
from tests.stack.servers import KafkaServer, Scratch, make_site
from tests.stand_ins.network import Network

pytestmark = pytest.mark.crash

SPOOL_BYTES = 8 << 20  # so a segment has one megabyte


@dataclass
class FarKafka:
    server: KafkaServer
    network: Network


@pytest.fixture(scope="module")
def far_kafka() -> Iterator[FarKafka]:
    scratch = Scratch("far-kafka")
    (port,) = free_ports(1)
    server = KafkaServer(scratch.path, far=port)
    try:
        server.start()
        with Network(server.far_port, listen=port, seed=3) as network:
            yield FarKafka(server, network)
    finally:
        server.stop()
        scratch.remove()


@pytest.fixture
def network(far_kafka: FarKafka) -> Iterator[Network]:
    far_kafka.network.up()
    yield far_kafka.network
    far_kafka.network.up()


@pytest.fixture
def far(
    request: pytest.FixtureRequest,
    far_kafka: FarKafka,
    network: Network,
    databases: Callable[[str], DatabaseServer],
    tmp_path: Path,
) -> Iterator[Protected]:
    """A source whose capture reaches Kafka through the network: MariaDB, unless a test says which."""
    name = getattr(request, "param", "mariadb")
    server = request.getfixturevalue("mariadb") if name == "mariadb" else databases(name)
    made = protect(far_site(far_kafka, tmp_path / "site", f"w{secrets.token_hex(4)}."), server)
    server.execute("create database if not exists load_db", "drop table if exists load_db.noise")
    server.execute("create table load_db.noise (b longblob) engine=InnoDB")
    yield made
    made.stop()


def far_site(far_kafka: FarKafka, directory: Path, prefix: str):  # type: ignore[no-untyped-def]
    """A site whose processes go through the network, and settings for tests that go past it."""
    postgres = PostgresSettings("127.0.0.1", 1, "nobody", "nothing")
    settings = make_site(directory, far_kafka.server.settings(prefix), postgres)
    through = replace(settings.kafka, bootstrap=f"127.0.0.1:{far_kafka.network.port}", compression="zstd")
    site.write_settings(replace(settings, kafka=through, capture=CaptureSettings(SPOOL_BYTES)))
    return settings


def noise(server: DatabaseServer, steps: int, size: int = 100_000) -> None:
    """Steps that nothing compresses, of rows of 100 KB."""
    with contextlib.closing(server.connect(database="load_db", autocommit=False)) as connection:
        for _ in range(steps):
            with connection.cursor() as cursor:
                for _ in range(size // 100_000):
                    cursor.execute("insert into noise values (%s)", (os.urandom(100_000),))
            connection.commit()


def spooled(far: Protected) -> Seen | None:
    return look(folder_of(far.site.data_dir, far.source))


def await_spooled(far: Protected) -> None:
    """Wait until all that the source has committed so far is in the spool."""
    steps = len(logged_steps(far.server, far.start))
    eventually(lambda: (seen := spooled(far)) is not None and seen.last >= steps, what=f"{steps} steps in the spool")


def forget_log(server: DatabaseServer) -> None:
    """The source purges all of its log but the newest file."""
    with contextlib.closing(server.connect()) as admin:
        newest = server.execute(dialect(admin).log_status)[0][0]

    def purged() -> bool:
        server.execute(f"purge binary logs to '{newest}'")
        return len(server.execute("show binary logs")) == 1

    eventually(purged, what="a purged log")


def same_as(far: Protected, wanted: list[LoggedStep]) -> None:
    has = captured_steps(far.site, far.source)
    assert [s.ordinal for s in has] == list(range(1, len(has) + 1))
    assert [s.payload for s in has] == [s.payload for s in wanted]


def capturing_some(far: Protected, failpoint: str = "") -> subprocess.Popen[bytes]:
    process = far.capture(failpoint=failpoint)
    with Load(far.server) as load:
        load.await_more(50)
    far.caught_up()
    return process


EACH = pytest.mark.parametrize("far", ["mariadb", "mysql-9", "mysql-5.5"], indirect=True)


@EACH
def test_away_for_longer_than_the_source_keeps_its_log(far: Protected, network: Network) -> None:
    process = capturing_some(far)
    network.down()
    with Load(far.server, pause_s=0.001) as load:
        load.await_more(100)
        eventually(lambda: spooled(far) is not None, what="spooling")
        load.await_more(100)
        far.server.execute(f"create user spooled{secrets.token_hex(4)}@localhost identified by 'battery staple'")
        noise(far.server, 3, 2_000_000)  # larger than a record
    far.server.execute("flush binary logs")
    await_spooled(far)
    assert len(segments_in(folder_of(far.site.data_dir, far.source))) > 2
    wanted, reached = logged_steps(far.server, far.start), position(far.server)
    forget_log(far.server)
    assert len(captured_steps(far.site, far.source)) < len(wanted)
    network.up()
    network.bytes_per_s = 500_000  # a report comes every second: it is not drained before one has

    def drain_was_reported() -> bool:
        return any(h.state == "spooling" and h.figures.get("spool_bytes", 0) > 0 for h in far.health())

    eventually(drain_was_reported, what="a report of the spool")
    network.up()
    eventually(lambda: spooled(far) is None, what="an empty spool")
    same_as(far, wanted)
    with Load(far.server) as load:
        load.await_more(20)
    far.caught_up()
    same_as(far, wanted + logged_steps(far.server, reached))
    assert process.poll() is None


@pytest.mark.parametrize(
    ("far", "where"),
    [
        ("mysql-9", "spool-frame-written:3"),
        ("mariadb", "spool-frame-durable:2"),
        ("mariadb", "spool-segment-sealed"),
        ("mysql-5.5", "spool-segment-begun:2"),
    ],
    indirect=["far"],
)
def test_killed_while_spooling(far: Protected, network: Network, where: str) -> None:
    process = capturing_some(far, where)
    network.down()
    with Load(far.server, pause_s=0.001) as load:
        load.await_more(20)
        noise(far.server, 60)
        assert process.wait(90) == -signal.SIGKILL
        load.await_more(20)
    network.up()
    far.capture()
    far.caught_up()
    far.same()
    eventually(lambda: spooled(far) is None, what="an empty spool")


@pytest.mark.parametrize(
    ("far", "where"),
    [
        ("mysql-5.5", "capture-record-sent:4"),
        ("mariadb", "spool-drained"),
        ("mysql-9", "spool-segment-deleted:2"),
        ("mariadb", "spool-all-drained"),
        ("mysql-5.5", "spool-dropped"),
    ],
    indirect=["far"],
)
def test_killed_while_draining_with_the_source_s_log_gone(far: Protected, network: Network, where: str) -> None:
    """Whatever the log does not have yet, the spool still has."""
    process = capturing_some(far)
    network.down()
    noise(far.server, 40)
    far.server.execute("flush binary logs")
    noise(far.server, 1)  # the last step: whoever starts must find it at the source again
    await_spooled(far)
    wanted = logged_steps(far.server, far.start)
    process.kill()
    process.wait()
    forget_log(far.server)
    network.up()
    assert far.capture(failpoint=where).wait(90) == -signal.SIGKILL
    far.capture()
    far.caught_up()
    same_as(far, wanted)
    eventually(lambda: spooled(far) is None, what="an empty spool")


def damage_the_middle(far: Protected) -> None:
    path = segments_in(folder_of(far.site.data_dir, far.source))[1]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("far", "source_has_it"),
    [("mariadb", True), ("mysql-9", False), ("mysql-5.5", False)],
    indirect=["far"],
)
def test_a_damaged_spool_is_read_again_from_the_source_or_said_to_be_a_gap(
    far: Protected, network: Network, source_has_it: bool
) -> None:
    process = capturing_some(far)
    network.down()
    noise(far.server, 40)
    await_spooled(far)
    wanted = logged_steps(far.server, far.start)
    process.kill()
    process.wait()
    damage_the_middle(far)
    if not source_has_it:
        far.server.execute("flush binary logs")
        forget_log(far.server)
    network.up()
    process = far.capture()
    if source_has_it:
        far.caught_up()
        same_as(far, wanted)
        assert "read again from the source" in far.words()
        return
    assert process.wait(90) == 3
    (problem,) = far.changes()[-1].problems
    assert problem.code == "capture-spool-gap"
    has = captured_steps(far.site, far.source)
    assert 0 < len(has) < len(wanted)
    assert f"steps {len(has) + 1} to " in problem.message
    assert [s.payload for s in has] == [s.payload for s in wanted[: len(has)]]


def test_a_full_spool_leaves_the_rest_at_the_source(far: Protected, network: Network) -> None:
    process = capturing_some(far)
    network.down()
    noise(far.server, 120)
    eventually(lambda: "the spool is full" in far.words(), what="a full spool")
    files = segments_in(folder_of(far.site.data_dir, far.source))
    assert SPOOL_BYTES // 2 < sum(f.stat().st_size for f in files) <= SPOOL_BYTES
    network.up()
    far.caught_up()
    far.same()
    eventually(lambda: spooled(far) is None, what="an empty spool")
    assert process.poll() is None


def test_cut_slow_and_damaged(far: Protected, network: Network) -> None:
    """In clear, where the checksums of Kafka's batches and our chain's digests tell. Short pieces, answers, are spared."""
    process = capturing_some(far)
    chance = random.Random(17)
    with Load(far.server, pause_s=0.001) as load:
        for _ in range(4):
            load.await_more(chance.randrange(10, 100))
            network.cut()
        network.delay_s = 0.05
        load.await_more(50)
        network.up()
        network.corrupt(every=400_000, direction="to-server", smallest=2000)
        noise(far.server, 40)
        eventually(lambda: network.corrupted > 2, what="damage")
        network.up()
        network.bytes_per_s = 300_000
        load.await_more(50)
        network.up()
        network.half_close()
        load.await_more(50)
        network.black_hole()
        eventually(lambda: spooled(far) is not None, what="spooling")
        network.up()
        load.await_more(20)
    far.caught_up()
    far.same()
    assert process.poll() is None


def test_what_is_damaged_on_its_way_from_kafka_is_fetched_again(
    far: Protected, far_kafka: FarKafka, network: Network
) -> None:
    capturing_some(far)
    noise(far.server, 60)
    far.caught_up()
    wanted = far.same()
    network.corrupt(every=1_000_000, direction="to-client", smallest=2000)
    through = replace(far.site, kafka=replace(far.site.kafka, bootstrap=f"127.0.0.1:{network.port}"))
    for _ in range(20):
        assert captured_steps(through, far.source) == wanted
        if network.corrupted > 2:
            break
    assert network.corrupted > 2


def test_who_was_taken_over_while_kafka_was_away_stays_out(
    far: Protected, far_kafka: FarKafka, network: Network, tmp_path: Path
) -> None:
    process = capturing_some(far)
    network.down()
    noise(far.server, 2)
    eventually(lambda: spooled(far) is not None, what="spooling")
    # Another machine, whose network is well.
    site.write_settings(replace(far.site, capture=CaptureSettings(0)))
    other = far.capture()
    far.caught_up()
    network.up()
    assert process.wait(90) == 3
    assert "another agent took over" in far.words(0)
    noise(far.server, 2)
    far.caught_up()
    assert other.poll() is None
    far.same()
    assert position(far.server)
