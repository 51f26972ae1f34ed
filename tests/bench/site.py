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
from tests.bench import ground
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
        stage = Stage(folder / "site", quiet=True)
        stage.holdfast("up", "--detach", show=False)
        stack.callback(stage.holdfast, "down", show=False)
        yield BenchSite(folder, stage, server)


def protect(site: BenchSite) -> None:
    """Protect the source as it is now."""
    site.stage.holdfast(
        *("source", "add", SOURCE, "--kind", "mariadb", "--host", "127.0.0.1", "--port", str(site.mariadb.port)),
        *("--capture-user", "hf_capture", "--password-file", str(site.folder / "capture.password")),
        *("--rollback-user", "hf_rollback", "--rollback-password-file", str(site.folder / "rollback.password")),
        show=False,
    )
