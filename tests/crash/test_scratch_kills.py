"""Scratch copies made by a real agent: what was remembered of a step is what the copy holds; a kill at any boundary leaves
a whole copy or nothing of one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pymysql
import pytest

from agents.scratch import folder as folders
from deploy.demo.server import DatabaseServer
from streams.capture_log import CaptureLog
from streams.events import ScratchChanged, SourceDefined
from streams.secrets import SecretStore
from streams.settings import Settings
from tests.stack.agent import (
    AgentProcess,
    await_it,
    await_job,
    await_state,
    events,
    grant_capture,
    send,
    source_parameters,
)
from tests.stack.capturing import await_captured
from tests.stack.contents import everything
from tests.stack.publishing import publisher_of
from tests.stack.servers import program_of

pytestmark = pytest.mark.crash

ROLLBACK = "SELECT, INSERT, CREATE, ALTER, DROP, TRIGGER, REFERENCES"
PLACES = (
    "scratch.created",
    "scratch.loaded",
    "scratch.replayed",
    "scratch.settled",
    "scratch.whole",
    "scratch.adopted",
)


@dataclass
class Scene:
    """A protected source, its agent, and what was in it after which step."""

    site: Settings
    server: DatabaseServer
    agent: AgentProcess
    lineage: str
    states: dict[int, dict[str, Any]]

    def head(self) -> int:
        with CaptureLog(self.site.kafka, "shop") as log:
            tail = log.tail()
            assert tail is not None
            return tail.ordinal

    def commit(self, *statements: str) -> int:
        """Each a step; the ordinal of the last, once it is captured."""
        wanted = self.head() + len(statements)
        self.server.execute(*statements)
        await_it(lambda: self.head() >= wanted, f"capture of step {wanted}")
        with contextlib.closing(self.server.connect()) as conn:
            self.states[wanted] = everything(conn, "shop")
        return wanted

    def settled(self) -> int:
        """Wait until all that was committed is captured; the newest step, which is remembered."""
        await_captured(self.site, "shop", self.server)
        with contextlib.closing(self.server.connect()) as conn:
            self.states[self.head()] = everything(conn, "shop")
        return self.head()

    def exists(self, table: str) -> bool:
        return bool(self.server.execute(
            f"SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'shop' AND TABLE_NAME = '{table}'"
        ))  # fmt: skip

    def create(self, name: str, ordinal: int, **more: Any) -> str:
        return send(
            self.site, "scratch.create", f"scratch/{name}", name=name, source="shop", lineage=self.lineage, ordinal=ordinal,
            **more,
        )  # fmt: skip

    def said(self, name: str) -> list[ScratchChanged]:
        return [e for e in events(self.site, "inventory", ScratchChanged) if e.scratch == name]

    def ready(self, name: str) -> ScratchChanged:
        last = self.said(name)[-1]
        assert last.state == "ready", last
        return last

    def holds(self, name: str) -> dict[str, Any]:
        """What is in the copy, asked as a user would: by the port and the password in the file."""

        def connected() -> pymysql.Connection[Any] | None:
            there = self.ready(name)
            password = Path(there.password_file).read_text().strip()
            with contextlib.suppress(pymysql.err.OperationalError):
                return pymysql.connect(
                    host=there.host, port=there.port, user=there.account, password=password, autocommit=True
                )
            return None

        conn = await_it(connected, f"an answer of {name}")
        with contextlib.closing(conn):
            return everything(conn, "shop")

    def require_approval(self) -> None:
        """The source as it would be had it been added with `approval=required`."""
        defined = events(self.site, "inventory", SourceDefined)[-1]
        publisher_of(self.site).sent_and_durable(replace(defined, options={**defined.options, "approval": "required"}))

    def folders(self) -> list[str]:
        there = folders.parent(self.site.data_dir)
        return sorted(e.name for e in there.iterdir()) if there.is_dir() else []


@pytest.fixture(params=["mariadb-10.11"])
def scene(
    request: pytest.FixtureRequest, fresh_site: Settings, make_database: Callable[..., DatabaseServer], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Scene]:  # fmt: skip
    server = make_database(request.param)
    server.execute(
        "CREATE DATABASE shop",
        "USE shop",
        "CREATE TABLE shop.item (id INT PRIMARY KEY AUTO_INCREMENT, name VARCHAR(30), price DECIMAL(9,2))",
        "INSERT INTO shop.item (name, price) VALUES " + ", ".join(f"('item {i}', {i})" for i in range(1, 501)),
    )
    grant_capture(server)
    admin = "READ_ONLY ADMIN, SET USER, BINLOG REPLAY, BINLOG ADMIN"
    if server.kind == "mysql":
        admin = "CONNECTION_ADMIN, SYSTEM_VARIABLES_ADMIN, SET_ANY_DEFINER, SYSTEM_USER, BINLOG_ADMIN"
        monkeypatch.setenv("HOLDFAST_MYSQLD", program_of(server, tmp_path))
    server.execute(
        "CREATE USER roll@'127.0.0.1' IDENTIFIED BY 'rollback secret'",
        f"GRANT {ROLLBACK} ON *.* TO roll@'127.0.0.1'",
        "SET GLOBAL log_bin_trust_function_creators = 1",
        f"GRANT {admin} ON *.* TO roll@'127.0.0.1'",
    )
    agent = AgentProcess(fresh_site)
    agent.start()
    try:
        parameters = source_parameters(fresh_site, server)
        parameters["accounts"]["rollback"] = "roll"
        parameters["secrets"]["rollback"] = SecretStore(fresh_site).put("sources/shop/rollback", b"rollback secret")
        command = send(fresh_site, "source.add", **parameters)
        await_job(fresh_site, command)
        lineage = await_state(fresh_site, "capturing").lineage or ""
        found = Scene(fresh_site, server, agent, lineage, {})
        with contextlib.closing(server.connect()) as conn:
            found.states[0] = everything(conn, "shop")
        yield found
    finally:
        agent.end()


def write(scene: Scene) -> list[int]:
    """Steps of every kind; ordinals to choose from."""
    return [
        scene.commit("UPDATE shop.item SET price = price + 1 WHERE id % 3 = 0"),
        scene.commit("CREATE TABLE shop.note (id INT PRIMARY KEY, t TEXT)", "INSERT INTO shop.note VALUES (1, 'ü')"),
        scene.commit("CREATE VIEW shop.dear AS SELECT * FROM shop.item WHERE price > 400"),
        scene.commit("CREATE USER someone IDENTIFIED BY 'a secret'", "INSERT INTO shop.note VALUES (2, 'b')"),
        scene.commit("ALTER TABLE shop.item ADD COLUMN stock INT DEFAULT 7 AFTER id"),
        scene.commit("TRUNCATE TABLE shop.note"),
        scene.commit("DROP TABLE shop.item"),
    ]


def test_copies_of_any_step_are_made_listed_expire_and_outlive_the_agent(scene: Scene) -> None:
    steps = write(scene)
    for name, ordinal in (("base", 0), ("mid", steps[3]), ("end", steps[-1])):
        job = await_job(scene.site, scene.create(name, ordinal))
        assert job.state == "finished", job
        assert scene.holds(name) == scene.states[ordinal]
    assert "a secret" not in scene.agent.log.read_text()
    assert await_job(scene.site, scene.create("alone", steps[5], tables=["shop.note"])).state == "finished"
    assert scene.ready("alone").tables == ("shop.note",)
    assert scene.holds("alone") == {k: v for k, v in scene.states[steps[5]].items() if k.startswith("note")}
    assert await_job(scene.site, send(scene.site, "scratch.drop", "scratch/alone", name="alone")).state == "finished"
    gone = await_job(scene.site, scene.create("alone", steps[-1], tables=["shop.item"]))
    assert [p.code for p in gone.problems] == ["table-unknown"]
    refused = await_job(scene.site, scene.create("mid", 0))
    assert [p.code for p in refused.problems] == ["scratch-exists"]
    scene.agent.kill()
    scene.agent.start()
    assert scene.holds("mid") == scene.states[steps[3]]
    assert await_job(scene.site, send(scene.site, "scratch.drop", "scratch/mid", name="mid")).state == "finished"
    assert scene.said("mid")[-1].state == "ended"
    assert await_job(scene.site, scene.create("soon", steps[0], expires_s=1)).state == "finished"
    await_it(lambda: scene.said("soon")[-1].state == "ended", "the end of a copy that expires")
    assert scene.folders() == ["base", "end"]
    assert scene.agent.stop() == 0
    scene.agent.start()
    assert scene.holds("end") == scene.states[steps[-1]]


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of its own at `folder`. Skips the test where none may be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        pytest.skip(f"no small file system can be had: {error}")
    if done.returncode:
        pytest.skip(f"no small file system can be had: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def out_of_room(scene: Scene) -> None:
    """The disk fills up while a copy is made: it is said, nothing is left running or lying about, and room made is used."""
    there = folders.parent(scene.site.data_dir)
    scene.commit("CREATE TABLE shop.large (id INT PRIMARY KEY, b LONGBLOB)")
    ordinal = scene.commit(*[f"INSERT INTO shop.large VALUES ({i}, REPEAT('x', 8000000))" for i in range(5)])
    before = scene.agent.children()
    with small_disk(there, "600M"):
        ballast(there, 200 << 20)
        refused = await_job(scene.site, scene.create("larger", ordinal), 120)
        assert [p.code for p in refused.problems] == ["disk-full"]
        (there / "ballast").unlink()
        job = scene.create("large", ordinal)
        await_it(lambda: (folders.making(scene.site.data_dir, "large") / "data/s.sock").exists() or None, "a server")
        ballast(there)
        failed = await_job(scene.site, job, 180)
        assert [p.code for p in failed.problems] == ["disk-full"], failed
        assert [p.code for p in scene.said("large")[-1].problems] == ["disk-full"]
        assert scene.folders() == ["ballast"]
        await_it(lambda: scene.agent.children() == before or None, "the end of the copy's server")
        (there / "ballast").unlink()
        assert await_job(scene.site, scene.create("large", ordinal), 180).state == "finished"
        assert scene.holds("large") == scene.states[ordinal]
        assert (
            await_job(scene.site, send(scene.site, "scratch.drop", "scratch/large", name="large")).state == "finished"
        )


def ballast(folder: Path, size: int | None = None) -> None:
    """A file of that many bytes, or one that leaves twelve MiB."""
    at = 0
    with (folder / "ballast").open("wb") as out:
        while at < size if size is not None else shutil.disk_usage(folder).free > (13 << 20):
            os.posix_fallocate(out.fileno(), at, 1 << 20)
            at += 1 << 20


@pytest.mark.parametrize("scene", ["mysql-9"], indirect=True)
def test_copies_of_mysql_killed_or_out_of_room(scene: Scene) -> None:
    killed(scene, scene.commit("UPDATE shop.item SET price = price + 1 WHERE id % 3 = 0"), PLACES[2:3])
    out_of_room(scene)


def test_killed_anywhere_there_is_a_whole_copy_or_none(scene: Scene) -> None:
    killed(scene, write(scene)[4], PLACES)
    out_of_room(scene)


def killed(scene: Scene, ordinal: int, places: Sequence[str]) -> None:
    """One copy, and an agent that dies at one place after the other: each finds what the one before it left."""
    scene.agent.end()
    job = ""
    for place in places:
        scene.agent.start(failpoint=place)
        job = job or scene.create("tried", ordinal)
        assert scene.agent.wait() == -signal.SIGKILL, place
        for entry in scene.folders():
            if not entry.startswith(".making-"):
                assert folders.read(folders.parent(scene.site.data_dir) / entry).name == "tried"
    scene.agent.start()
    assert await_job(scene.site, job).state == "finished"
    assert scene.holds("tried") == scene.states[ordinal]
    await_job(scene.site, send(scene.site, "scratch.drop", "scratch/tried", name="tried"))
    assert scene.folders() == []
