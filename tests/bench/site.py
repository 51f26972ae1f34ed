"""A whole site beside a MariaDB, driven by the `holdfast` command: what benchmarks of rollback and timeline stand on."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agents.capture.granules import MAX_STEPS
from deploy.demo.accounts import create_accounts
from deploy.demo.mariadb import MariaDB
from deploy.demo.stage import Stage
from deploy.embedded.site import SETTINGS
from deploy.embedded.user import service_user
from projections.database import connect
from projections.views import timeline
from streams.capture_log import CaptureLog
from streams.settings import Settings, load
from tests.bench import generated, ground
from tests.bench.ground import DATABASE

SOURCE = "bench"


@dataclass(frozen=True, slots=True)
class BenchSite:
    """`holdfast` runs commands against the site; `mariadb` is the source, protected under the name `bench`."""

    folder: Path
    stage: Stage
    mariadb: MariaDB

    @property
    def settings(self) -> Settings:
        return load(self.stage.data / SETTINGS, os.environ)

    def down(self) -> None:
        self.stage.holdfast("down", show=False)

    def up(self, *services: str) -> None:
        """All of it, or these services."""
        self.stage.holdfast("up", "--detach", *(f"--service={s}" for s in services), show=False)

    def captured(self, limit: float = 600) -> int:
        """Wait until the log has everything that the source has committed; the newest step's ordinal."""
        wanted = ground.position(self.mariadb)
        deadline = time.monotonic() + limit
        with CaptureLog(self.settings.kafka, SOURCE) as log:
            while True:
                tail = log.tail()
                if tail is not None and tail.record is not None and tail.record.after == wanted:
                    return tail.ordinal
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{wanted} is not in the log after {limit:g} s")
                time.sleep(0.1)

    def indexed(self, head: int, limit: float = 600) -> None:
        """Wait until only what no granule holds yet of the steps up to `head` is not in the read model."""
        with contextlib.closing(connect(self.settings.postgres, "bench")) as conn:

            def done() -> bool:
                lineages = timeline.lineages(conn, SOURCE)
                newest = timeline.head(conn, SOURCE, lineages[0]) if lineages else None
                return head - (newest.last_ordinal if newest is not None else 0) < MAX_STEPS

            ground.until(done, limit, 0.2)


@contextlib.contextmanager
def bench_site() -> Iterator[BenchSite]:
    """A site and a source with database `bench`, protected. Both are stopped at the end."""
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)
        service_user().own(folder)
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
        site = BenchSite(folder, Stage(folder / "site", quiet=True), server)
        stack.callback(site.down)
        site.up()
        yield site


def protect(site: BenchSite) -> None:
    """Protect the source as it is now."""
    site.stage.holdfast(
        *("source", "add", SOURCE, "--kind", "mariadb", "--host", "127.0.0.1", "--port", str(site.mariadb.port)),
        *("--capture-user", "hf_capture", "--password-file", str(site.folder / "capture.password")),
        *("--rollback-user", "hf_rollback", "--rollback-password-file", str(site.folder / "rollback.password")),
        show=False,
    )


def long_log(site: BenchSite, table: str, real: int, total: int, rare: str = "") -> None:
    """Steps of `table` up to about `total`, of which the first `real` are there and captured; the rest is generated.

    `rare`: a table that one real step touched, whose step appears eight times more among them. Comes back once the site
    is up, capture has found its place and the read model has all of it.
    """
    head = site.captured()
    site.indexed(head)
    at = ground.position(site.mariadb)
    domain, server, sequence = (int(x) for x in at.split("-"))
    last = sequence + total - real
    rare_step = 0
    if rare:
        found = site.stage.json("timeline", "show", SOURCE, "--table", f"{DATABASE}.{rare}", "--limit", "1")
        rare_step = int(found["steps"][0]["ordinal"])
    site.down()
    with contextlib.closing(site.mariadb.connect(database=DATABASE)) as connection, connection.cursor() as cursor:
        cursor.execute(f"select max(id) from {table}")
        (newest,) = cursor.fetchone() or (0,)
        cursor.execute(f"set session gtid_domain_id = {domain}, server_id = {server}, gtid_seq_no = {last - 1}")
        for i in (1, 2):
            cursor.execute(f"insert into {table} values ({newest + i}, 'the last of them', {i}, now())")
    if ground.position(site.mariadb) != f"{domain}-{server}-{last}":
        raise RuntimeError(f"the source stands at {ground.position(site.mariadb)}, not at sequence {last}")
    site.up("kafka")
    made = generated.extend(site.settings, SOURCE, (last - 1, last), 2 * MAX_STEPS + 1, rare_step)
    site.down()
    site.up()
    # Capture has read the log's end again at the source, or it would not take in what comes after it.
    site.mariadb.execute(f"delete from {table} where id = {newest + 2}", database=DATABASE)
    head = site.captured()
    if head != made.head + 1:
        raise RuntimeError(f"capture went on with step {head} after {made.head}")
    site.indexed(head)
