"""The processors on a cluster with TLS, passwords and rights, one of its three brokers killed in the middle of the log."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from projections.database import connect
from projections.rebuild import rebuild
from projections.views import VIEWS
from tests.contract.running import Worker, behind, make_topics, publish, wait_until_applied
from tests.crash.test_projections_worker import log_of, wait_for_some
from tests.stack.cluster import KafkaCluster
from tests.stack.servers import PostgresServer, Scratch, make_site

pytestmark = [pytest.mark.crash, pytest.mark.external]


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaCluster]:
    scratch = Scratch("cluster")
    made = KafkaCluster(scratch.path)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        scratch.remove()


def test_a_broker_killed_in_the_middle_of_the_log(
    cluster: KafkaCluster, postgres: PostgresServer, tmp_path: Path
) -> None:
    site = make_site(tmp_path / "site", cluster.settings(), postgres.fresh_database())
    make_topics(site)
    publish(site, log_of(1, 8000))
    with Worker(site) as worker:
        wait_for_some(site, worker, 0.05)
        with contextlib.closing(connect(site.postgres)) as conn:
            assert behind(site, conn) > 0
        cluster.kill(cluster.leader(f"{site.kafka.prefix}inventory"))
        wait_until_applied(site, worker)
        publish(site, log_of(2, 300))
        wait_until_applied(site, worker)
        for name in VIEWS:
            result = rebuild(site, name)
            assert result.equal is True, name
            assert result.before is not None
            assert sum(result.before.rows.values()) > 0
        assert worker.stop() == 0
        password = cluster.password_file.read_text().strip()
        assert password not in worker.log
