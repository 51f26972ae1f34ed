"""What every store of a repository keeps (`agents.repository.stores.Store`), tried on each of them."""

from __future__ import annotations

import io
import os
import secrets
import shutil
import tempfile
import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse, HeadersDict
from urllib3 import HTTPResponse

from agents.repository import points, watch
from agents.repository import repository as repositories
from agents.repository.disk_ingest import FileSource
from agents.repository.errors import DAMAGED, RepositoryError
from agents.repository.extents import CHUNK
from agents.repository.file_targets import restore_file
from agents.repository.format import DATA, DATA_PACK
from agents.repository.ingest import Ingest
from agents.repository.keys import Keys, new_key
from agents.repository.pack_format import FRAME_BYTES
from agents.repository.packs import PackWriter, contents_of, read_frame, read_frames
from agents.repository.stores import (
    BAD_NAME,
    DENIED,
    EXISTS,
    FULL,
    IO,
    MISSING,
    SHORT,
    UNFIT,
    UNTRUSTED,
    Store,
    StoreError,
)
from agents.repository.stores.local import LocalStore
from agents.repository.stores.memory import MemoryStore
from agents.repository.stores.recorded import RecordedStore
from agents.repository.stores.s3 import Bucket, S3Store
from deploy.certificates import make
from tests.stack.gateway import Gateway, NoGateway, gateway_program
from tests.stack.servers import started
from tests.stand_ins.faulty_store import FaultyStore
from tests.stand_ins.repository_session import LoneSession


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    try:
        program = gateway_program()
    except NoGateway as reason:
        pytest.skip(str(reason))
    with started(lambda folder: Gateway(folder, program), "gateway") as server:
        yield server


# Directories on file servers (NFS, SMB), separated by colons: the whole contract is tried on each of them.
NETWORK = [path for path in os.environ.get("HOLDFAST_NETWORK_STORES", "").split(":") if path]


@pytest.fixture(params=["memory", "directory", "s3", "faulty", "recorded", *NETWORK])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made: Store
    if request.param in NETWORK:
        place = Path(request.param, secrets.token_hex(8))
        place.mkdir()
        made = LocalStore(place)
    elif request.param == "memory":
        made = MemoryStore()
    elif request.param == "faulty":
        made = FaultyStore(MemoryStore())
    elif request.param == "recorded":
        made = RecordedStore(MemoryStore(), tmp_path / "own")
    elif request.param == "directory":
        (tmp_path / "store").mkdir()
        made = LocalStore(tmp_path / "store")
    else:
        server: Gateway = request.getfixturevalue("gateway")
        made = S3Store(server.bucket(f"test-{secrets.token_hex(4)}/"), page=50)
    yield made
    made.close()
    if request.param in NETWORK:
        shutil.rmtree(place)


def names(store: Store, prefix: str = "") -> set[str]:
    return {listed.name for listed in store.list(prefix)}


def test_a_created_file_is_read_whole_and_in_part(store: Store) -> None:
    store.create("points/a.point", [b"head", bytearray(b"-"), memoryview(b"body")])
    assert store.read("points/a.point") == b"head-body"
    assert store.read("points/a.point", 5) == b"body"
    assert store.read("points/a.point", 2, 4) == b"ad-b"
    assert store.read("points/a.point", 9) == b""
    assert store.read("points/a.point", 3, 0) == b""
    assert store.size("points/a.point") == 9


def test_an_empty_file_is_a_file(store: Store) -> None:
    store.create("index/empty", [])
    assert store.size("index/empty") == 0
    assert store.read("index/empty") == b""
    assert names(store) == {"index/empty"}


def test_a_file_is_made_once(store: Store) -> None:
    store.create("keys/1.json", [b"first"])
    with pytest.raises(StoreError) as refused:
        store.create("keys/1.json", [b"second"])
    assert refused.value.code == EXISTS
    assert store.read("keys/1.json") == b"first"


def test_of_many_who_make_one_file_one_does(store: Store) -> None:
    outcomes: list[bytes | str] = []
    start = threading.Barrier(8)

    def make(content: bytes) -> None:
        start.wait()
        try:
            store.create("marks/p.1.json", [content])
            outcomes.append(content)
        except StoreError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=make, args=(b"content %d" % i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = [o for o in outcomes if isinstance(o, bytes)]
    assert len(made) == 1
    assert store.read("marks/p.1.json") == made[0]
    assert [o for o in outcomes if o != made[0]] == [EXISTS] * 7


def test_nothing_is_seen_of_a_file_whose_making_fails(store: Store) -> None:
    def parts() -> Iterator[bytes]:
        yield b"some"
        assert names(store) == set()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.create("points/b.point", parts())
    assert names(store) == set()
    with pytest.raises(StoreError, match=r"no points/b\.point"):
        store.read("points/b.point")
    store.create("points/b.point", [b"whole"])
    assert store.read("points/b.point") == b"whole"


def test_an_appended_file_holds_what_was_written_in_order(store: Store) -> None:
    growing = store.append("packs/ab/ab.pack")
    assert growing.write(b"head") == 0
    assert growing.write(b"one", memoryview(b"two")) == 4
    growing.sync()
    assert growing.write(b"", b"three") == 10
    growing.close()
    growing.close()
    assert store.read("packs/ab/ab.pack") == b"headonetwothree"
    assert store.size("packs/ab/ab.pack") == 15


def test_an_appended_file_is_made_once(store: Store) -> None:
    first = store.append("packs/ab/ab.pack")
    first.write(b"first")
    first.close()

    def again() -> None:
        second = store.append("packs/ab/ab.pack")
        second.write(b"second")
        second.close()

    with pytest.raises(StoreError) as refused:
        again()
    assert refused.value.code == EXISTS
    assert store.read("packs/ab/ab.pack") == b"first"


def test_an_abandoned_file_is_let_go(store: Store) -> None:
    growing = store.append("packs/ab/ab.pack")
    growing.write(b"some")
    growing.abandon()
    growing.abandon()
    store.delete("packs/ab/ab.pack")
    assert names(store) == set()


def test_what_is_not_there_is_missing(store: Store) -> None:
    for ask in (
        lambda: store.read("index/none"),
        lambda: store.size("index/none"),
        lambda: store.read("index/none", 4, 4),
    ):
        with pytest.raises(StoreError) as refused:
            ask()
        assert refused.value.code == MISSING


def test_a_file_that_ends_too_soon_is_short(store: Store) -> None:
    store.create("index/a", [b"12345"])
    for offset, size in ((0, 6), (3, 3), (5, 1), (100, 1)):
        with pytest.raises(StoreError) as refused:
            store.read("index/a", offset, size)
        assert refused.value.code == SHORT


def test_a_deleted_file_is_gone_and_may_be_deleted_again(store: Store) -> None:
    store.create("index/a", [b"1"])
    store.delete("index/a")
    store.delete("index/a")
    store.delete("nowhere/at/all")
    assert names(store) == set()
    store.create("index/a", [b"2"])
    assert store.read("index/a") == b"2"


def test_files_are_listed_by_the_beginning_of_their_names(store: Store) -> None:
    made = {
        "packs/ab/ab1.pack",
        "packs/ab/ab2.pack",
        "packs/ac/ac1.pack",
        "packs2",
        "points/p.point",
        "repository.json",
    }
    for name in made:
        store.create(name, [name.encode()])
    assert names(store) == made
    assert names(store, "packs/") == {"packs/ab/ab1.pack", "packs/ab/ab2.pack", "packs/ac/ac1.pack"}
    assert names(store, "packs") == {"packs/ab/ab1.pack", "packs/ab/ab2.pack", "packs/ac/ac1.pack", "packs2"}
    assert names(store, "packs/ab/ab1") == {"packs/ab/ab1.pack"}
    assert names(store, "packs/a") == {"packs/ab/ab1.pack", "packs/ab/ab2.pack", "packs/ac/ac1.pack"}
    assert names(store, "none/") == set()
    for listed in store.list():
        assert listed.size == len(listed.name)
        assert listed.mtime_us > 1_500_000_000_000_000


def test_names_that_are_none_are_refused(store: Store) -> None:
    for name in (
        "",
        "/",
        "/etc/passwd",
        "../up",
        "a/../b",
        "a//b",
        "a/",
        ".hidden",
        "a/.new-1",
        "Upper",
        "a b",
        "a\n",
        "ä",
    ):
        for call in (
            lambda n=name: store.create(n, [b""]),
            lambda n=name: store.append(n),
            lambda n=name: store.read(n),
            lambda n=name: store.size(n),
            lambda n=name: store.delete(n),
        ):
            with pytest.raises(StoreError) as refused:
                call()
            assert refused.value.code == BAD_NAME, name
    with pytest.raises(StoreError):
        list(store.list("../"))


def test_many_files_are_all_listed(store: Store) -> None:
    made = {f"marks/{i:04d}.json" for i in range(130)}
    for name in sorted(made):
        store.create(name, [b"x"])
    listed = [f.name for f in store.list("marks/")]
    assert len(listed) == len(made)
    assert set(listed) == made


def test_many_threads_read_and_write(store: Store) -> None:
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(10):
                name = f"points/{number}-{i}.point"
                content = bytes([number]) * (1000 + i)
                store.create(name, [content])
                assert store.read(name) == content
                if i % 2:
                    store.delete(name)
        except BaseException as error:  # noqa: BLE001 - a thread's failure is the test's
            failed.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(names(store)) == 30


def test_the_self_test_passes_and_leaves_nothing(store: Store) -> None:
    traits = store.check()
    assert traits.kind
    assert traits.where
    assert names(store) == set()
    store.check()


def test_closing_twice_is_once(store: Store) -> None:
    store.close()
    store.close()


# -- buckets alone


CONFLICT = b"<Error><Code>ConditionalRequestConflict</Code></Error>"
SLOW_DOWN = b"<Error><Code>SlowDown</Code></Error>"


@pytest.fixture
def bucket(gateway: Gateway) -> Iterator[S3Store]:
    store = S3Store(gateway.bucket(f"test-{secrets.token_hex(4)}/"))
    yield store
    store.close()


def test_a_server_that_ignores_the_condition_is_refused(bucket: S3Store) -> None:
    # A stand-in for such servers: the condition is taken away before the request is signed.
    bucket._client.meta.events.register(
        "before-parameter-build.s3.PutObject", lambda params, **_: params.pop("IfNoneMatch", None)
    )
    with pytest.raises(StoreError, match="ignores If-None-Match") as refused:
        bucket.check()
    assert refused.value.code == UNFIT
    assert names(bucket) == set()


def test_an_upload_whose_answer_was_lost_is_not_taken_for_anothers(bucket: S3Store, gateway: Gateway) -> None:
    other = S3Store(bucket.bucket)

    def send_it_before(params: dict[str, Any], **_: object) -> None:
        other._client.put_object(**params)

    bucket._client.meta.events.register("provide-client-params.s3.PutObject", send_it_before)
    bucket.create("points/p.point", [b"ours"])
    assert bucket.read("points/p.point") == b"ours"
    other.close()


def test_a_bucket_that_cannot_be_had_says_why(bucket: S3Store) -> None:
    def refusal(of: Bucket) -> StoreError:
        store = S3Store(of)
        with pytest.raises(StoreError) as refused:
            store.check()
        store.close()
        return refused.value

    right = bucket.bucket
    assert refusal(replace(right, secret_key="wrong")).code == DENIED
    assert "no bucket nowhere" in refusal(replace(right, bucket="nowhere")).message
    with pytest.raises(StoreError, match="not encrypted"):
        S3Store(replace(right, endpoint="http://192.0.2.1:9000"))


def test_a_certificate_that_is_refused_says_why_at_once(bucket: S3Store, gateway: Gateway, tmp_path: Path) -> None:
    def refusal(of: Bucket, code: str = UNTRUSTED) -> StoreError:
        store, sent = S3Store(of), []
        store._client.meta.events.register("before-send.s3", lambda **_: sent.append(1))
        with pytest.raises(StoreError) as refused:
            store.size("repository.json")
        store.close()
        assert refused.value.code == code
        assert len(sent) == 1, "trying again does not mend it"
        return refused.value

    right = bucket.bucket
    unknown = refusal(replace(right, ca=""))
    assert "by an authority that the agent's machine trusts" in unknown.message
    assert "--tls-ca FILE" in unknown.hint
    other = make(tmp_path, ["127.0.0.1"]).ca.read_text()
    assert "by the authority that was given" in refusal(replace(right, ca=other)).message
    S3Store(replace(right, ca=other + right.ca)).check()  # of several, one
    elsewhere = refusal(replace(right, endpoint=f"https://localhost:{gateway.port}"))
    assert "is for another name" in elsewhere.message
    assert "made for localhost as well" in elsewhere.hint
    for name in ("plain", "expired"):
        (tmp_path / name).mkdir()
    plain = Gateway(tmp_path / "plain", gateway_program(), tls=False)
    over = make(tmp_path / "tls", ["127.0.0.1"], lifetime=timedelta(hours=-1))
    expired = Gateway(tmp_path / "expired", gateway_program(), certificate=over)
    for server in (plain, expired):
        server.start()
    try:
        old = refusal(expired.bucket())
        assert "has expired" in old.message
        assert "this machine's clock" in old.hint
        no = replace(right, endpoint=f"https://127.0.0.1:{plain.port}")
        assert "does not answer with TLS" in refusal(no, IO).message
    finally:
        for server in (plain, expired):
            server.stop()


def test_what_is_no_certificate_is_refused(bucket: S3Store) -> None:
    for text in ("hello", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "é"):
        with pytest.raises(StoreError, match="is none") as refused:
            S3Store(replace(bucket.bucket, ca=text))
        assert refused.value.code == "store-ca-unreadable"


def test_secrets_of_a_bucket_are_not_shown(bucket: S3Store) -> None:
    assert bucket.bucket.secret_key not in repr(bucket.bucket)
    assert bucket.bucket.secret_key not in str(bucket.check())


def test_packs_in_a_bucket_are_read_back_and_damage_is_found(bucket: S3Store, gateway: Gateway) -> None:
    keys = Keys(secrets.token_bytes(16), new_key())
    naming = keys.naming()
    writer = PackWriter(bucket, keys, "node", 1, DATA_PACK, naming.scope, size=300_000)
    chunks = {naming.name_of(DATA, data): data for data in (secrets.token_bytes(40_000) for _ in range(20))}
    places = {name: writer.add(DATA, name, 0, len(data), data) for name, data in chunks.items()}
    files = {pack.pack: pack.name for pack in writer.flush()}
    writer.close()
    assert len(files) == 3
    for pack, file in files.items():
        wanted = [(name, place) for name, place in places.items() if place.pack == pack]
        found = dict(read_frames(bucket, file, wanted, keys))
        assert found == {name: chunks[name] for name, _ in wanted}
        assert contents_of(bucket, file).sealed

    name, place = next(iter(places.items()))
    at_rest = gateway.buckets / bucket.bucket.bucket / bucket.bucket.prefix / files[place.pack]
    data = bytearray(at_rest.read_bytes())
    data[place.offset + FRAME_BYTES + 99] ^= 1
    at_rest.write_bytes(data)
    with pytest.raises(RepositoryError) as damaged:
        read_frame(bucket, files[place.pack], place, name, keys)
    assert damaged.value.code == DAMAGED


def test_a_pack_that_was_not_closed_leaves_nothing_in_a_bucket(bucket: S3Store) -> None:
    keys = Keys(secrets.token_bytes(16), new_key())
    writer = PackWriter(bucket, keys, "node", 1, DATA_PACK, keys.naming().scope)
    writer.add(DATA, keys.naming().name_of(DATA, b"data"), 0, 4, b"data")
    writer.close()
    assert names(bucket) == set()


def test_a_server_that_is_away_is_told_and_used_again_when_it_is_back(gateway: Gateway) -> None:
    store = S3Store(gateway.bucket(f"test-{secrets.token_hex(4)}/"), attempts=2)
    store.create("points/a.point", [b"before"])
    gateway.process.kill()
    try:
        for call in (lambda: store.read("points/a.point"), lambda: store.create("points/b.point", [b"x"])):
            with pytest.raises(StoreError) as away:
                call()
            assert away.value.code == IO
        with pytest.raises(StoreError):
            list(store.list())
    finally:
        gateway.start()
    assert store.read("points/a.point") == b"before"
    store.create("points/b.point", [b"after"])
    assert names(store) == {"points/a.point", "points/b.point"}
    store.close()


def answers(store: S3Store, operation: str, *answers: AWSResponse) -> None:
    """A stand-in for a server in trouble: the first requests of a kind are answered so, the rest by the server itself."""
    left = list(answers)
    store._client.meta.events.register(
        f"before-send.s3.{operation}", lambda request, **_: left.pop(0) if left else None
    )


def answer(status: int, body: bytes, length: int | None = None) -> AWSResponse:
    headers = {"Content-Length": str(len(body) if length is None else length)}
    raw = HTTPResponse(io.BytesIO(body), headers, status, preload_content=False, enforce_content_length=False)
    return AWSResponse("https://127.0.0.1/", status, HeadersDict(headers), raw)


def test_troubles_of_a_server_that_pass_are_waited_out(bucket: S3Store) -> None:
    bucket.create("points/a.point", [b"the content"])
    answers(bucket, "GetObject", answer(503, b""), answer(200, b"the con", 11), answer(500, b"<html>no XML"))
    assert bucket.read("points/a.point") == b"the content"
    answers(bucket, "PutObject", answer(500, b""), answer(409, CONFLICT))
    bucket.create("points/b.point", [b"x"])
    answers(bucket, "ListObjectsV2", answer(503, SLOW_DOWN), answer(200, b"<not really XML"))
    assert names(bucket) == {"points/a.point", "points/b.point"}


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (507, b"", FULL),
        (403, b"<Error><Code>AccessDenied</Code></Error>", DENIED),
        (500, b"", IO),
        (418, b"what?", IO),
    ],
)
def test_troubles_that_stay_are_told_apart(gateway: Gateway, status: int, body: bytes, code: str) -> None:
    store = S3Store(gateway.bucket(f"test-{secrets.token_hex(4)}/"), attempts=1)
    answers(store, "PutObject", answer(status, body))
    with pytest.raises(StoreError) as refused:
        store.create("points/a.point", [b"x"])
    assert refused.value.code == code
    store.close()


def test_a_server_that_knows_no_ranges_is_read_all_the_same(bucket: S3Store) -> None:
    bucket.create("packs/aa/aa.pack", [b"0123456789"])
    answers(bucket, "GetObject", answer(200, b"0123456789"), answer(200, b"0123456789"), answer(200, b"0123456789"))
    assert bucket.read("packs/aa/aa.pack", 3, 4) == b"3456"
    assert bucket.read("packs/aa/aa.pack", 8) == b"89"
    with pytest.raises(StoreError) as refused:
        bucket.read("packs/aa/aa.pack", 8, 4)
    assert refused.value.code == SHORT


def test_object_lock_is_read_from_the_server_and_told(gateway: Gateway) -> None:
    there = gateway.bucket()
    client = boto3.client(
        "s3", endpoint_url=there.endpoint, region_name=there.region, verify=str(gateway.ca),
        aws_access_key_id=there.access_key, aws_secret_access_key=there.secret_key,
    )  # fmt: skip
    for mode in ("COMPLIANCE", "GOVERNANCE"):
        name = f"locked-{mode.lower()}"
        client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
        rule = {"DefaultRetention": {"Mode": mode, "Days": 3}}
        client.put_object_lock_configuration(
            Bucket=name, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
        )
        store = S3Store(replace(there, bucket=name))
        traits = store.check()
        said = "\n".join(watch.protected_from(store))
        assert traits.versioned
        assert "what is collected takes room until a lifecycle rule removes them" in said
        if mode == "COMPLIANCE":
            assert traits.locked_days == 3
            assert "yes for 3 days after being written (object lock)" in said
        else:
            assert traits.locked_days == 0
            assert "3 days in governance mode: who may bypass it can delete" in said
        store.close()
    client.close()


def test_what_goes_to_a_bucket_is_not_kept_in_memory(gateway: Gateway) -> None:
    store = S3Store(gateway.bucket(f"test-{secrets.token_hex(4)}/"))
    piece = secrets.token_bytes(1 << 20)
    grown = store.append("packs/large")
    tracemalloc.start()
    try:
        for _ in range(40):
            grown.write(piece[:100], piece[100:])
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    grown.close()
    grown.close()
    assert store.size("packs/large") == 40 << 20
    assert store.read("packs/large", 39 << 20) == piece
    other = store.append("packs/abandoned")
    other.write(piece)
    other.abandon()
    assert names(store) == {"packs/large"}
    store.close()


def test_no_room_to_gather_what_goes_to_a_bucket_is_told(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    store = S3Store(gateway.bucket(f"test-{secrets.token_hex(4)}/"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tempfile, "TemporaryFile", lambda **_: open("/dev/full", "r+b", buffering=0))  # noqa: SIM115
        grown = store.append("packs/full")
        with pytest.raises(StoreError) as refused:
            grown.write(b"something")
    assert refused.value.code == FULL
    assert "TMPDIR" in refused.value.hint
    grown.abandon()
    store.close()


def test_a_point_is_made_and_restored_on_a_file_server(tmp_path: Path) -> None:
    """Beside the contract: a repository there, opened again by a node that knows nothing of it."""
    if not NETWORK:
        known = Path("/proc/filesystems").read_text().split()
        clients = ", ".join(kind for kind in ("nfs", "nfs4", "cifs", "smb3") if kind in known) or "none"
        pytest.skip(f"no folder of a file server in HOLDFAST_NETWORK_STORES; clients of this kernel: {clients}")
    for name in NETWORK:
        place = Path(name, secrets.token_hex(8))
        place.mkdir()
        try:
            store = LocalStore(place)
            assert store.check().network, f"{name} is on no file server"
            repositories.create(store, wrap=None, pack_bytes=1 << 20)
            repository = repositories.open(store, None, tmp_path / place.name, "node_a")
            data = secrets.token_bytes(5 << 20)
            (tmp_path / "image").write_bytes(data)
            with (tmp_path / "image").open("rb") as image, Ingest(repository, LoneSession()) as ingest:
                disk = ingest.disk("sda", size=len(data))
                disk.feed(FileSource(image.fileno()), [(0, disk.blocks, CHUNK)])
                blank = points.JournalPlace(0, "")
                draft = points.Point("", "vm", "VM", "disks", 1, "", 0, "", blank, disks=(disk.finish(),))
                point = ingest.seal(draft).point
            repository.close()
            elsewhere = repositories.open(LocalStore(place), None, tmp_path / f"other-{place.name}", "node_b")
            found = elsewhere.point(point.point).disks[0]
            restore_file(elsewhere, found, tmp_path / f"back-{place.name}", point=point.point)
            elsewhere.close()
            assert (tmp_path / f"back-{place.name}").read_bytes() == data
        finally:
            shutil.rmtree(place)
