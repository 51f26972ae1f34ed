"""An API for the tests of one module, with a captured MariaDB in its log."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from deploy.demo.mariadb import MariaDB
from streams.settings import Settings
from tests.stack.running_api import CapturedLog, RunningApi
from tests.stack.servers import KafkaServer, PostgresServer, Scratch, make_site


@pytest.fixture(scope="module")
def settings(kafka: KafkaServer, postgres: PostgresServer) -> Iterator[Settings]:
    scratch = Scratch("api")
    database = postgres.fresh_database()
    yield make_site(scratch.path / "site", kafka.settings(f"t{secrets.token_hex(4)}."), database)
    if postgres.process.alive():
        postgres.drop_database(database.dbname)
    scratch.remove()


@pytest.fixture(scope="module")
def api(settings: Settings) -> Iterator[RunningApi]:
    running = RunningApi(settings)
    try:
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module")
def shop(api: RunningApi, mariadb: MariaDB) -> Iterator[CapturedLog]:
    log = CapturedLog(api, mariadb)
    api.apply()
    try:
        yield log
    finally:
        log.close()
