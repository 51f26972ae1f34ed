"""Stores on real file servers, in trouble. Run inside the machine of `tests.stack.file_servers` by `test_file_servers.py`, which
runs the contract of all stores (`test_stores.py`) there too, on the same mounts."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agents.repository import index, points
from agents.repository import repository as repositories
from agents.repository.disk_ingest import FileSource
from agents.repository.extents import CHUNK
from agents.repository.file_targets import restore_file
from agents.repository.format import DATA, DATA_PACK
from agents.repository.ingest import Ingest
from agents.repository.keys import Keys, new_key
from agents.repository.packs import PackWriter, contents_of
from agents.repository.repository import Repository
from agents.repository.stores import DENIED, EXISTS, FULL, IO, MISSING, READ_ONLY, StoreError
from agents.repository.stores.local import SCRATCH, LocalStore
from deploy.embedded.process import wait_until
from tests.stack import served
from tests.stack.served import KINDS, MOUNTED, SERVED, Loses, asks
from tests.stand_ins.repository_session import LoneSession

served.keeper()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder() -> str:
    """A new one, of all shares."""
    name = secrets.token_hex(6)
    for share in ("main", "small"):
        (SERVED / share / name).mkdir()
    return name


@pytest.fixture
def here(kind: str, folder: str) -> LocalStore:
    return LocalStore(MOUNTED / f"a-main-{kind}" / folder)


@pytest.fixture
def there(kind: str, folder: str) -> LocalStore:
    """The same, on another machine."""
    return LocalStore(MOUNTED / f"b-main-{kind}" / folder)


def names(store: LocalStore) -> set[str]:
    return {listed.name for listed in store.list()}


def refusal(*codes: str) -> pytest.RaisesExc[StoreError]:
    return pytest.raises(StoreError, check=lambda error: error.code in codes)


def scratch_files(folder: str, share: str = "main") -> list[str]:
    return [path.name for path in (SERVED / share / folder).rglob(f"{SCRATCH}*")]


# -- two machines


def test_of_two_machines_that_make_one_file_one_does(here: LocalStore, there: LocalStore, folder: str) -> None:
    start = threading.Barrier(2)

    def make(store: LocalStore, name: str, content: bytes) -> bytes:
        start.wait()
        try:
            store.create(name, [content])
        except StoreError as error:
            return error.code.encode()
        return content

    with ThreadPoolExecutor(2) as pool:
        for number in range(15):
            name = f"marks/{number}.json"
            running = [pool.submit(make, *one) for one in ((here, name, b"here" * 900), (there, name, b"there"))]
            made = [content for one in running if (content := one.result()) != EXISTS.encode()]
            assert made == [here.read(name)] == [there.read(name)]
    assert not scratch_files(folder)


def test_what_another_machine_made_is_there_at_once(here: LocalStore, there: LocalStore) -> None:
    for name in ("points/read", "points/size", "packs/aa/delete"):
        with refusal(MISSING):
            there.read(name)
        with refusal(MISSING):
            there.size(name)
        there.delete(name)
    assert names(there) == set()
    here.create("points/read", [b"read"])
    assert there.read("points/read") == b"read"
    assert names(there) == {"points/read"}
    here.create("points/size", [b"size"])
    assert there.size("points/size") == 4
    here.create("packs/aa/delete", [b"delete"])
    there.delete("packs/aa/delete")
    assert names(here) == names(there) == {"points/read", "points/size"}
    here.create("packs/ab/another", [b"one"])
    assert "packs/ab/another" in names(there)


def test_what_another_machine_deleted_is_gone(here: LocalStore, there: LocalStore, kind: str) -> None:
    here.create("points/a", [b"first"])
    here.create("points/b", [b"other"])
    assert there.read("points/a") == b"first"
    assert names(there) == {"points/a", "points/b"}
    here.delete("points/a")
    here.delete("points/b")
    assert names(there) == set()
    with refusal(MISSING):
        there.read("points/a")
    with refusal(MISSING):
        there.size("points/a")
    if kind.startswith("smb"):
        return  # for a second, what is made anew under the same name is said to be there already; nothing here does that
    there.create("points/b", [b"anew"])
    assert here.read("points/b") == b"anew"


def test_a_file_that_grows_elsewhere_is_as_long_as_it_is(here: LocalStore, there: LocalStore) -> None:
    grown = here.append("packs/aa/aa")
    for length in (1000, 2000, 3000):
        grown.write(b"x" * 1000)
        grown.sync()
        assert there.size("packs/aa/aa") == length
        assert [f.size for f in there.list()] == [length]
        assert len(there.read("packs/aa/aa")) == length
    grown.close()
    with refusal(EXISTS):
        there.append("packs/aa/aa").close()


def test_a_pack_that_another_machine_sealed_a_moment_ago_is_seen_whole(here: LocalStore, there: LocalStore) -> None:
    """Collections count on it: a pack of which only the beginning is seen seems to hold nothing that is needed."""
    keys = Keys(secrets.token_bytes(16), new_key())
    naming = keys.naming()
    writer = PackWriter(here, keys, "node", 1, DATA_PACK, naming.scope)
    chunks = {naming.name_of(DATA, data): data for data in (secrets.token_bytes(100_000) for _ in range(50))}
    for name, data in chunks.items():
        writer.add(DATA, name, 0, len(data), data)
    deadline = time.monotonic() + 60
    while not (seen := list(there.list("packs/"))) or not seen[0].size:
        assert time.monotonic() < deadline
    file = seen[0].name
    assert not contents_of(there, file).sealed
    writer.flush()
    writer.close()
    found = contents_of(there, file)
    assert found.sealed
    assert {entry.name for entry in found.entries} == set(chunks)
    assert [one.size for one in there.list("packs/")] == [here.size(file)]


def make_point(repository: Repository, image: Path, data: bytes) -> str:
    image.write_bytes(data)
    with image.open("rb") as file, Ingest(repository, LoneSession()) as ingest:
        disk = ingest.disk("sda", size=len(data))
        disk.feed(FileSource(file.fileno()), [(0, disk.blocks, CHUNK)])
        blank = points.JournalPlace(0, "")
        draft = points.Point("", "vm", "VM", "disks", 1, "", 0, "", blank, disks=(disk.finish(),))
        return ingest.seal(draft).point.point


def test_two_nodes_that_know_nothing_of_each_other_restore_each_others_points(
    here: LocalStore, there: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_MAP_SIZE", 1 << 30)  # this kernel's processes have little address space
    repositories.create(here, wrap=None, pack_bytes=1 << 20)
    nodes = [
        repositories.open(store, None, tmp_path / node, node) for store, node in ((here, "node_a"), (there, "node_b"))
    ]
    for turn in range(4):
        data = secrets.token_bytes(3 << 20)
        point = make_point(nodes[turn % 2], tmp_path / "image", data)
        other = nodes[(turn + 1) % 2]
        other.refresh()
        assert point in set(points.ids(other.store))
        restore_file(other, other.point(point).disks[0], tmp_path / f"back{turn}", point=point)
        assert (tmp_path / f"back{turn}").read_bytes() == data
    for node in nodes:
        node.close()


# -- answers that are lost, servers that are


@pytest.fixture
def losing(kind: str, folder: str) -> Iterator[tuple[Loses, LocalStore]]:
    """A store behind a proxy. With NFS 4 the server is restarted while the answer is lost: otherwise it remembers what it did."""

    def restart() -> None:
        served.stop(kind)
        served.start(kind, grace=False)

    proxy = Loses(served.port_of(kind), restart if kind == "nfs4.2" else lambda: None)
    at = served.mount(kind, "p", port=proxy.port, name=f"p-{folder}")
    try:
        yield proxy, LocalStore(at / folder)
    finally:
        served.unmount(at)
        proxy.close()


def test_what_was_done_although_nobody_said_so_is_done(
    losing: tuple[Loses, LocalStore], kind: str, folder: str
) -> None:
    proxy, store = losing
    for number, what in enumerate(("folder", "make", "link"), 1):
        proxy.arm(asks(kind, what))
        name = f"keys{number}/1.json"
        store.create(name, [b"ours"])
        assert proxy.lost == number, what
        assert store.read(name) == b"ours"
        with refusal(EXISTS):
            store.create(name, [b"another"])
        assert store.read(name) == b"ours"
    proxy.arm(asks(kind, "make"))
    if kind.startswith("smb"):
        # Nobody can tell then whose it is: a pack gets another name.
        with refusal(IO):
            store.append("packs/aa")
        store.delete("packs/aa")
        grown = store.append("packs/aa")
    else:
        grown = store.append("packs/aa")
    assert proxy.lost == 4
    grown.write(b"grown")
    grown.close()
    assert store.read("packs/aa") == b"grown"
    proxy.arm(asks(kind, "remove"))
    store.delete("packs/aa")
    assert proxy.lost == 5
    assert names(store) == {f"keys{number}/1.json" for number in (1, 2, 3)}
    assert not scratch_files(folder)


def test_a_server_that_goes_and_comes_back_loses_nothing(here: LocalStore, kind: str) -> None:
    pieces = [secrets.token_bytes(3 << 19) for _ in range(16)]
    half = threading.Event()
    failed: list[StoreError] = []

    def write() -> None:
        try:
            grown = here.append("packs/aa/aa")
            for number, piece in enumerate(pieces):
                grown.write(piece)
                if number % 3 == 0:
                    grown.sync()
                if number == len(pieces) // 2:
                    half.set()
                    here.create("points/meanwhile", [b"made"])
            grown.close()
        except StoreError as error:
            failed.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    assert half.wait(60)
    served.stop(kind)
    writer.join(1)
    served.start(kind)
    writer.join(100)
    assert not writer.is_alive()
    assert not failed
    assert here.read("packs/aa/aa") == b"".join(pieces)
    assert here.read("points/meanwhile") == b"made"


# -- servers that do not want


def test_a_full_server_is_told_and_used_again_when_there_is_room(kind: str, folder: str) -> None:
    store = LocalStore(MOUNTED / f"a-small-{kind}" / folder)
    store.create("points/before", [b"before"])
    grown = store.append("packs/aa/large")
    with refusal(FULL):
        for _ in range(100):
            grown.write(secrets.token_bytes(1 << 20))
        grown.close()
    grown.abandon()
    with refusal(FULL):
        store.create("index/large", [secrets.token_bytes(1 << 20)] * 60)
    assert names(store) == {"points/before", "packs/aa/large"}
    assert not scratch_files(folder, "small")
    store.delete("packs/aa/large")
    room = store.free_bytes
    assert wait_until(lambda: (room() or 0) > 30 << 20, 60)  # an NFS server holds on to files for a while
    store.create("index/small", [b"x" * 100_000])
    assert store.read("index/small") == b"x" * 100_000
    assert store.read("points/before") == b"before"


def test_a_server_that_lets_nothing_be_written_is_read(here: LocalStore, kind: str, folder: str) -> None:
    here.create("points/a", [b"a"])
    store = LocalStore(MOUNTED / f"a-fixed-{kind}" / folder)
    assert store.read("points/a") == b"a"
    assert names(store) == {"points/a"}
    for write in (
        lambda: store.create("points/b", [b"b"]),
        lambda: store.append("points/b").close(),
        lambda: store.delete("points/a"),
        store.check,
    ):
        with refusal(READ_ONLY, DENIED):
            write()
    assert names(here) == {"points/a"}


def test_a_folder_that_the_server_knows_no_more_is_told(kind: str, folder: str) -> None:
    if kind.startswith("smb"):
        pytest.skip("SMB has no handles that outlive a connection")
    store = LocalStore(MOUNTED / f"a-small-{kind}" / folder)
    store.create("points/a", [b"a"])
    exports = Path("/etc/exports")
    before = exports.read_text()
    exports.write_text(before.replace("fsid=2", "fsid=22"))
    try:
        served.run("exportfs", "-ra")
        for call in (lambda: store.create("points/b", [b"b"]), lambda: store.read("points/a"), lambda: names(store)):
            with refusal(IO) as refused:
                call()
            assert "mount it again" in refused.value.hint
    finally:
        exports.write_text(before)
        served.run("exportfs", "-ra")
    assert store.read("points/a") == b"a"


# -- what the self-test says


def test_a_mount_that_gives_up_is_noted(kind: str, folder: str) -> None:
    at = served.mount(kind, "b", options="soft" if kind.startswith("smb") else "soft,nosharecache", name=f"b-{folder}")
    try:
        traits = LocalStore(at / folder).check()
    finally:
        served.unmount(at)
    assert traits.network
    assert any("soft" in note for note in traits.notes)


def test_a_mount_as_it_should_be_is_noted_for_nothing(here: LocalStore) -> None:
    traits = here.check()
    assert traits.network
    assert traits.notes == ()
