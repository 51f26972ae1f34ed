"""A whole site beside a MariaDB, driven by the `holdfast` command: what benchmarks of rollback and timeline stand on."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.demo.accounts import create_accounts
from deploy.demo.mariadb import MariaDB
from deploy.demo.stage import Stage
from deploy.embedded.user import service_user
from tests.bench.ground import DATABASE

SOURCE = "bench"


@dataclass(frozen=True, slots=True)
class BenchSite:
    """`holdfast` runs commands against the site; `mariadb` is the source, protected under the name `bench`."""

    folder: Path
    stage: Stage
    mariadb: MariaDB

    def captured(self, ordinal: int, limit: float = 600) -> None:
        """Wait until the timeline shows step `ordinal`."""
        deadline = time.monotonic() + limit
        while self.head() < ordinal:
            if time.monotonic() > deadline:
                raise TimeoutError(f"step {ordinal} is not in the timeline after {limit:g} s")
            time.sleep(0.2)

    def head(self) -> int:
        """The newest step's ordinal."""
        steps: list[dict[str, Any]] = self.stage.json("timeline", "show", SOURCE, "--limit", "1")["steps"]
        return int(steps[0]["ordinal"]) if steps else 0


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
