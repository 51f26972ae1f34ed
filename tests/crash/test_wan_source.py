"""A bad network between the agent and the source: every committed step is in the log once, in order, or capture says so."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator

import pytest

from deploy.demo.mariadb import MariaDB
from deploy.demo.server import DatabaseServer
from streams.settings import Settings
from tests.stack.capturing import Load, Protected, eventually, protect
from tests.stand_ins.network import Network

pytestmark = pytest.mark.crash


@pytest.fixture
def network(mariadb: MariaDB) -> Iterator[Network]:
    with Network(mariadb.port, seed=7) as made:
        yield made


@pytest.fixture
def far(fresh_site: Settings, mariadb: MariaDB, network: Network) -> Iterator[Protected]:
    """A source on the other side of `network`, in clear."""
    made = protect(fresh_site, mariadb, port=network.port)
    yield made
    made.stop()


def large_rows(server: DatabaseServer, table: str, steps: int) -> None:
    """Steps of about 20 kB each."""
    server.execute("create database if not exists load_db", f"create or replace table load_db.{table} (b longblob)")
    with server.connect(database="load_db", autocommit=True) as connection, connection.cursor() as cursor:
        for n in range(steps):
            cursor.execute(f"insert into {table} values (repeat(char(65 + %s), 20000))", (n % 26,))


def noticed(far: Protected, *signs: str) -> None:
    """Wait until capture says one of `signs` once more than it has."""
    before = len(far.words())
    eventually(lambda: any(s in far.words()[before:] for s in signs), what=f"one of {signs}")


def test_cut_delayed_halved_and_silent(far: Protected, network: Network) -> None:
    far.capture()
    chance = random.Random(11)
    with Load(far.server, pause_s=0.001) as load:
        load.await_more(50)
        for _ in range(4):
            before = network.connections
            network.cut()
            load.await_more(chance.randrange(20, 200))
            eventually(lambda before=before: network.connections > before, what="another connection")  # type: ignore[misc]
        network.delay_s = 0.05
        load.await_more(50)
        network.half_close()
        load.await_more(50)
        network.up()
        network.bytes_per_s = 100_000
        load.await_more(50)
        network.up()
        network.black_hole()
        # Nobody closes anything: that the source is gone is noticed by its silence, on whichever connection.
        noticed(far, "source-silent", "timed out")
        network.up()
        load.await_more(50)
        network.down()
        noticed(far, "source-unreachable", "source-closed")
        load.await_more(50)
        network.up()
        load.await_more(50)
    far.caught_up()
    far.same()
    assert far.processes[-1].poll() is None


def test_what_was_damaged_on_the_way_is_fetched_again_and_never_recorded(far: Protected, network: Network) -> None:
    """In clear, where nothing but the events' own checksums tells. Connecting is spared: its packets are short."""
    process = far.capture()
    network.corrupt(every=400_000, direction="to-client", smallest=400)
    large_rows(far.server, "damaged", 150)
    with Load(far.server) as load:
        load.await_more(500)
    far.caught_up()
    assert network.corrupted > 0
    assert "source-damaged" in far.words()
    network.up()
    far.same()
    assert process.poll() is None


def test_damage_that_does_not_end_stops_capture_which_can_be_resumed(far: Protected, network: Network) -> None:
    far.capture()
    with Load(far.server) as load:
        load.await_more(20)
    far.caught_up()
    network.corrupt(every=500, direction="to-client", smallest=1000)
    large_rows(far.server, "hopeless", 5)
    assert far.processes[-1].wait(90) == 3
    last = far.changes()[-1]
    assert last.state == "stopped"
    assert [p.code for p in last.problems] == ["capture-log-damaged"]
    assert "network" in last.problems[0].hint
    network.up()
    far.capture()
    far.caught_up()
    far.same()


def test_killed_while_damage_is_fetched_again(far: Protected, network: Network) -> None:
    far.capture()
    network.corrupt(every=300_000, direction="to-client", smallest=400)
    large_rows(far.server, "killed", 60)
    for where in ("capture-proved:2", "capture-record-sent:2"):
        far.processes[-1].kill()
        far.processes[-1].wait()
        far.capture(failpoint=where)
        large_rows(far.server, "killed", 60)
        assert far.processes[-1].wait(90) == -signal.SIGKILL
    far.capture()
    far.caught_up()
    network.up()
    far.same()


def test_tls_tells_any_damage(fresh_site: Settings, make_mariadb: Callable[..., MariaDB]) -> None:
    """Any piece of what the source sends may be hit, also while connecting."""
    server = make_mariadb(tls=True)
    assert server.tls_ca is not None
    with Network(server.port, seed=5) as network:
        made = protect(fresh_site, server, port=network.port, tls="verify", tls_ca=server.tls_ca.read_text())
        try:
            process = made.capture()
            network.corrupt(every=500_000, direction="to-client")
            large_rows(server, "t", 60)
            with Load(server, pause_s=0.001) as load:
                load.await_more(200)
            made.caught_up(150)
            assert network.corrupted > 0
            network.up()
            made.same()
            assert process.poll() is None
        finally:
            made.stop()
