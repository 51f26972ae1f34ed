"""Fixtures for all tests: real servers, started when first asked for, shared by the session, stopped by pid.

    kafka         KafkaServer     .bootstrap .settings(prefix) .pause() .resume() .kill() .restart()
    postgres      PostgresServer  .settings(dbname) .fresh_database() .pause() .resume() .kill() .restart()
    mariadb       MariaDB 10.11   .connect() .execute(sql…) .port .pause() .resume() .kill() .start() .restart(options)
                  another version: @pytest.mark.parametrize("mariadb", ["10.11", "11.4"], indirect=True)
    make_mariadb  function-scoped factory of servers of one's own: make_mariadb(version=…, options={…}, tls=True)
    database      one of the servers in tests.stack.servers.DATABASES, shared as `mariadb` is; the test says which:
                  @pytest.mark.parametrize("database", ["mysql-9", "mysql-5.5"], indirect=True)
    make_database function-scoped factory of the same: make_database("mysql-9", options={…}, tls=True)
    fresh_site    Settings with topics' prefix, database, directory and key of its own, on `kafka` and `postgres`;
                  its file for `--config` is tests.stack.servers.config_file(fresh_site)

A test that kills a shared server starts it again before it ends; one that shares nothing else makes its own. What an earlier
module left on a shared database is dropped before a module's first test.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from deploy.demo.mariadb import MariaDB
from deploy.demo.server import DatabaseServer
from streams.settings import Settings
from tests.stack.servers import KafkaServer, PostgresServer, Scratch, make_site, start_database, start_mariadb, started

_SHARED: dict[str, DatabaseServer] = {}
KEPT = ("HOLDFAST_CACHE", "HOLDFAST_TEST_KEEP")

# What a property says does not depend on the machine's pace.
hypothesis.settings.register_profile("holdfast", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("holdfast")


# A file's tests stay on one worker. What takes minutes begins first: a long file that begins last leaves a core with nothing to
# do. Then what waits for servers, then what does not.
LONGEST = (
    "e2e/test_rewind_matrix.py",
    "unit/agents/rollback/test_applying.py",
    "e2e/test_repository_life.py",
    "crash/test_rollback_kills.py",
    "crash/test_table_rollback.py",
    "crash/test_projections_worker.py",
    "crash/test_scratch_kills.py",
    "e2e/test_stack_up.py",
    "crash/test_capture_kills.py",
    "e2e/test_stack_cluster.py",
    "crash/test_wan_kafka.py",
    "crash/test_wan_source.py",
    "crash/test_log_publish.py",
)
ROOMS = ("e2e", "crash", "contract", "matrix", "unit")


@pytest.hookimpl(trylast=True)  # after pytest itself has put together what shares parametrised fixtures
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def turn(item: pytest.Item) -> tuple[int, int]:
        path = item.path.relative_to(Path(__file__).parent)
        name, room = path.as_posix(), path.parts[0]
        place = LONGEST.index(name) if name in LONGEST else len(LONGEST)
        return place, ROOMS.index(room) if room in ROOMS else len(ROOMS)

    items.sort(key=turn)


@pytest.fixture(scope="session", autouse=True)
def settings_of_this_shell_do_not_count() -> None:
    for name in [n for n in os.environ if n.startswith("HOLDFAST_") and n not in KEPT]:
        del os.environ[name]


@pytest.fixture(autouse=True)
def environment_is_put_back() -> Iterator[None]:
    """The command line, called within a test's process, sets HOLDFAST_DATA for its children."""
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaServer]:
    with started(KafkaServer, "kafka") as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with started(PostgresServer, "postgres") as server:
        yield server


@pytest.fixture(scope="session")
def mariadb(request: pytest.FixtureRequest) -> Iterator[MariaDB]:
    scratch = Scratch("mariadb")
    try:
        server = start_mariadb(scratch.path, version=getattr(request, "param", "10.11"))
        _SHARED["mariadb"] = server
        try:
            yield server
        finally:
            server.stop()
    finally:
        scratch.remove()


@pytest.fixture(scope="session")
def databases() -> Iterator[Callable[[str], DatabaseServer]]:
    """Servers by name, each started when first asked for."""
    scratch = Scratch("databases")

    def get(name: str) -> DatabaseServer:
        if name not in _SHARED:
            _SHARED[name] = start_database(scratch.path / name, name)
        return _SHARED[name]

    try:
        yield get
    finally:
        for name, server in _SHARED.items():
            if name != "mariadb":
                server.stop()
        scratch.remove()


@pytest.fixture
def database(request: pytest.FixtureRequest, databases: Callable[[str], DatabaseServer]) -> DatabaseServer:
    return databases(request.param)


@pytest.fixture(scope="module", autouse=True)
def nothing_of_earlier_modules_on_databases() -> None:
    for server in _SHARED.values():
        if not server.alive:
            continue
        for (name,) in server.execute("SELECT schema_name FROM information_schema.schemata"):
            if name not in ("mysql", "sys", "information_schema", "performance_schema"):
                server.execute(f"DROP DATABASE `{str(name).replace('`', '``')}`")


@pytest.fixture
def make_mariadb() -> Iterator[Callable[..., MariaDB]]:
    scratch = Scratch("mariadb")
    servers: list[MariaDB] = []

    def make(version: str = "10.11", options: dict[str, str | None] | None = None, tls: bool = False) -> MariaDB:
        server = start_mariadb(scratch.path / str(len(servers)), version, options, tls)
        servers.append(server)
        return server

    try:
        yield make
    finally:
        for server in servers:
            server.stop()
        scratch.remove()


@pytest.fixture
def make_database() -> Iterator[Callable[..., DatabaseServer]]:
    scratch = Scratch("database")
    servers: list[DatabaseServer] = []

    def make(name: str, options: dict[str, str | None] | None = None, tls: bool = False) -> DatabaseServer:
        server = start_database(scratch.path / str(len(servers)), name, options, tls, server_id=len(servers) + 1)
        servers.append(server)
        return server

    try:
        yield make
    finally:
        for server in servers:
            server.stop()
        scratch.remove()


@pytest.fixture
def fresh_site(kafka: KafkaServer, postgres: PostgresServer, tmp_path: Path) -> Iterator[Settings]:
    database = postgres.fresh_database()
    directory = tmp_path / "site"
    yield make_site(directory, kafka.settings(f"t{secrets.token_hex(4)}."), database)
    if postgres.process.alive():
        postgres.drop_database(database.dbname)
