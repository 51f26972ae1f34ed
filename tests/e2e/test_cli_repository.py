"""The command line against a whole site: a repository is made, points are made, marked, compared, restored, expired,
collected; keys are added and proven; and an agent that dies while it backs up does it when it is there again.

Tests share a site and its repository `vault`, and nothing else: each has files and assets of its own, in any order or alone."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agents.repository.stores.s3 import Bucket
from tests.stack.gateway import Gateway, NoGateway, gateway_program
from tests.stack.running_api import eventually
from tests.stack.running_site import RunningSite, running_site
from tests.stack.servers import KafkaServer, PostgresServer, started
from tests.stand_ins.changing import scan
from tests.stand_ins.s3_trouble import trouble

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]
PASSPHRASE = "correct horse battery staple"


@pytest.fixture(scope="module")
def site(kafka: KafkaServer, postgres: PostgresServer) -> Iterator[RunningSite]:
    with running_site(kafka, postgres, "cli-repository") as running:
        yield running


@pytest.fixture
def elsewhere(kafka: KafkaServer, postgres: PostgresServer) -> Iterator[RunningSite]:
    """Another installation, which has nothing."""
    with running_site(kafka, postgres, "cli-adopts") as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def repositories(site: RunningSite) -> list[str]:
    return [r["name"] for r in site.json("repository", "list")["repositories"]]


@pytest.fixture(scope="module")
def vault(site: RunningSite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's place; the passphrase on standard input."""
    place = tmp_path_factory.mktemp("repository") / "vault"
    # The API is up before the processors have made the read models.
    eventually(lambda: site.run("repository", "list").returncode == 0)
    assert "repository-unknown" in site.cli("repository", "show", "nothing", expect=10)
    missing = site.cli("repository", "add", "vault", str(place), "--secrets-stdin", stdin=PASSPHRASE, expect=11)
    assert "store-missing" in missing, "a place that is not there may be a file system that is not mounted"
    place.mkdir()
    (place / "lost").touch()
    occupied = site.cli("repository", "add", "vault", str(place), "--dry-run", expect=11)
    assert "store-not-empty" in occupied, "a repository is nobody else's place"
    (place / "lost").unlink()
    tried = site.cli("repository", "add", "vault", str(place), "--dry-run")
    assert "can be a repository" in tried
    assert "vault" not in repositories(site)
    added = site.cli(
        "repository", "add", "vault", str(place), "--secrets-stdin", "--keep", "7d,4w", stdin=PASSPHRASE + "\n"
    )
    assert "vault is there" in added
    assert "loss of this machine or its disks: no" in added, "what it is not protected from is said"
    return place


@pytest.fixture
def tree(folder: Path) -> Path:
    root = folder / "www"
    (root / "sub").mkdir(parents=True)
    for number in range(5):
        (root / f"file-{number}").write_bytes(random.Random(number).randbytes(100_000))
    (root / "sub" / "text").write_text("one\n")
    os.symlink("sub/text", root / "link")
    return root


@contextlib.contextmanager
def gateway(*, tls: bool) -> Iterator[Gateway]:
    try:
        program = gateway_program()
    except NoGateway as reason:
        pytest.skip(str(reason))
    with started(lambda folder: Gateway(folder, program, tls=tls), "cli-gateway") as server:
        yield server


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    """Of a server without TLS on this machine, so that something can be put in between."""
    with gateway(tls=False) as server:
        yield server.bucket()


@pytest.fixture
def private() -> Iterator[Gateway]:
    """A server whose certificate is signed by an authority that nobody knows."""
    with gateway(tls=True) as server:
        yield server


def backed_up(site: RunningSite, *words: str) -> dict[str, Any]:
    made: dict[str, Any] = site.json("backup", *words, "--to", "vault")["point"]
    return made


def test_files_come_back_as_they_were_and_what_differs_is_told(
    site: RunningSite, vault: Path, tree: Path, folder: Path
) -> None:
    first = backed_up(site, "files", str(tree), "--asset", "web")
    was = scan(tree)
    assert first["size"] >= 500_000
    (tree / "sub" / "text").write_text("two\n")
    (tree / "file-1").unlink()
    (tree / "new").write_text("new")
    second = backed_up(site, "files", str(tree), "--asset", "web")
    assert second["continues"] == first["point"]
    assert second["stored"] < 10_000, "what has not changed is not stored again"
    told = site.json("point", "diff", first["point"], second["point"])["files"]
    assert {"path": "new", "change": "added"} in told
    assert {"path": "file-1", "change": "removed"} in told
    assert {"path": "sub/text", "change": "changed"} in told
    proven = site.json("point", "prove", second["point"])
    assert [(k["point"], set(k["by"])) for k in proven["links"]] == [
        (second["point"], {"file", "log"}),
        (first["point"], {"file", "log", "next"}),
    ]
    assert (proven["whole"], proven["problems"]) == (True, [])
    restored = site.cli("point", "restore", first["point"], "--to", str(folder / "back"))
    assert "Read back, the same:" in restored
    assert scan(folder / "back") == was
    proven = site.cli("point", "prove", first["point"], "--against", str(folder / "back"))
    assert "back is what the point has:" in proven
    another = site.json("point", "prove", first["point"], "--against", str(tree), expect=4)["compared"]
    assert {("new", "extra"), ("file-1", "missing"), ("sub/text", "content")} <= {
        (entry["path"], entry["what"]) for entry in another["entries"]
    }
    site.cli("point", "restore", second["point"], "--to", str(folder / "text"), "--path", "sub/text")
    assert (folder / "text").read_text() == "two\n"
    refused = site.cli("point", "restore", first["point"], "--to", str(folder / "back"), expect=11)
    assert "path-taken" in refused
    own = site.cli("backup", "files", str(site.settings.data_dir), "--to", "vault", "--asset", "own", expect=11)
    assert "path-own" in own, "the site's secrets are not read"
    assert "path-own" in site.cli("point", "restore", first["point"], "--to", str(vault / "x"), expect=11)


def test_an_image_is_stored_by_what_differs_and_comes_back(site: RunningSite, vault: Path, folder: Path) -> None:
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(64 << 20)
        os.pwrite(file.fileno(), random.Random(1).randbytes(3 << 20), 10 << 20)
    backed_up(site, "image", str(image), "--asset", "disk")
    with image.open("r+b") as file:
        os.pwrite(file.fileno(), b"changed", 11 << 20)
    second = backed_up(site, "image", str(image), "--asset", "disk")
    assert second["stored"] < 400_000
    listed = site.json("point", "list", "--asset", "disk")["points"]
    assert [p["point"] for p in listed] == [second["point"], listed[1]["point"]]
    (disk,) = site.json("point", "diff", listed[1]["point"], second["point"])["disks"]
    assert (disk["ranges"], disk["bytes"]) == (1, 131_072)
    site.cli("point", "restore", second["point"], "--to", str(folder / "restored.img"))
    assert (folder / "restored.img").read_bytes() == image.read_bytes()
    assert (folder / "restored.img").stat().st_blocks < (16 << 20) // 512, "holes stay holes"
    proven = site.cli("point", "prove", second["point"], "--against", str(folder / "restored.img"))
    assert "is what disk 0 was: 64.0 MiB compared" in proven
    with (folder / "restored.img").open("r+b") as file:
        os.pwrite(file.fileno(), b"!", 40 << 20)
    another = site.json("point", "prove", second["point"], "--against", str(folder / "restored.img"), expect=4)
    assert another["compared"]["ranges"] == [{"offset": 40 << 20, "length": 131_072}]
    planned = site.json(
        "restore", "files", second["point"], "--to", str(folder / "images"), "--format", "raw", "--dry-run"
    )
    assert planned["result"]["disks"][0]["differed"] <= 4 << 20
    restored = site.cli("restore", "files", second["point"], "--to", str(folder / "images"), "--format", "raw")
    assert "READ BACK, THE SAME" in restored
    assert (folder / "images" / "disk.img.raw").read_bytes() == image.read_bytes()
    again = site.cli("restore", "files", second["point"], "--to", str(folder / "images"), "--format", "raw", expect=11)
    assert "path-taken" in again
    assert "point-unfit" in site.cli("restore", "original", second["point"], "--yes", expect=11)
    os.truncate(image, 10 << 20)
    shorter = backed_up(site, "image", str(image), "--asset", "disk")
    assert site.json("point", "diff", second["point"], shorter["point"])["disks"] == [], (
        "what was cut off was zero or is gone"
    )
    unfit = site.cli("point", "restore", second["point"], "--to", str(folder / ("x" * 250)), expect=11)
    assert "path-unwritable" in unfit, "what the target cannot take is no defect of the agent"
    os.mkfifo(folder / "pipe")
    assert "path-unfit" in site.cli(
        "backup", "image", str(folder / "pipe"), "--to", "vault", "--asset", "pipe", expect=11
    )


def test_points_are_marked_and_expire_by_what_was_shown(site: RunningSite, vault: Path, tree: Path) -> None:
    point = backed_up(site, "files", str(tree), "--asset", "marked")["point"]
    site.cli("point", "star", point, "--note", "before the move")
    site.cli("point", "hold", point, "--name", "case-7")
    shown = eventually(lambda: (p := site.json("point", "show", point))["held"] and p) or {}
    assert (shown["starred"], [m["mark"] for m in shown["marks"]]) == (True, ["star", "hold"])
    assert "hold-unknown" in site.cli("point", "release", point, "--name", "case-8", expect=11)
    site.cli("point", "release", point, "--name", "case-7")
    site.cli("point", "unstar", point)
    judged = site.json("point", "expire", "vault", "--dry-run", "--keep", "1d")
    assert judged["drop"] == 0
    assert all(any("younger" in why for why in v["why"]) for v in judged["points"])
    assert "0 go" in site.cli("point", "expire", "vault")
    site.cli("point", "drop", point, "--note", "holds what it should not")
    alone = site.cli("point", "agree", point, "--yes", expect=11)
    assert "cannot agree with himself" in alone
    token = site.settings.data_dir / "other.token"
    site.cli("token", "issue", "grace", "--role", "admin", "-o", str(token))
    fresh = site.run("point", "agree", point, "--yes", HOLDFAST_TOKEN_FILE=str(token))
    assert fresh.returncode == 11
    assert "has the right only since" in fresh.stderr, "a second account made for the purpose is not enough"


def test_keys_are_added_proven_and_removed(site: RunningSite, vault: Path, tree: Path) -> None:
    backed_up(site, "files", str(tree), "--asset", "drilled")
    added = site.json("repository", "key", "add", "vault", "--recovery")
    drilled = site.json("repository", "key", "drill", "vault", "--secrets-stdin", stdin=added["code"] + "\n")
    assert drilled["result"]["chunks"] > 0
    wrong = site.cli("repository", "key", "drill", "vault", "--secrets-stdin", stdin="AAAA\n", expect=11)
    assert "recovery-code-invalid" in wrong
    listed = {k["key"]: k["kind"] for k in site.json("repository", "key", "list", "vault")["keys"]}
    assert sorted(listed.values()) == ["passphrase", "recovery", "site"]
    site.cli("repository", "key", "remove", "vault", added["key"], "--yes")
    gone = site.cli("repository", "key", "drill", "vault", "--secrets-stdin", stdin=added["code"] + "\n", expect=11)
    assert "repository-locked" in gone
    own = next(key for key, kind in listed.items() if kind == "site")
    assert "repository-locked" in site.cli("repository", "key", "remove", "vault", own, "--yes", expect=11)
    for file in site.settings.data_dir.rglob("*"):
        if file.is_file():
            assert added["code"].encode() not in file.read_bytes(), f"{file} holds a recovery code"
            assert PASSPHRASE.encode() not in file.read_bytes()


def test_what_an_agent_that_died_left_in_a_bucket_behind_a_private_authority_is_collected(
    site: RunningSite, private: Gateway, tree: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when the record is there and the log does not know: that point does not count, and is made. What it had stored of
    a file that is another one by then is garbage."""
    bucket = private.bucket()
    assert private.ca is not None
    place = ("s3://repository/own", "--endpoint", bucket.endpoint, "--access-key", bucket.access_key, "--secrets-stdin")
    given = f"{PASSPHRASE}\n{bucket.secret_key}\n"
    unknown = site.cli("repository", "add", "private", *place, "--dry-run", expect=11, stdin=f"{bucket.secret_key}\n")
    assert "store-untrusted" in unknown
    assert "--tls-ca FILE" in unknown
    both = folder / "authority.pem"  # as such files are often kept
    both.write_text((private.ca.parent / "ca.key").read_text() + private.ca.read_text())
    assert "private is there" in site.cli("repository", "add", "private", *place, "--tls-ca", str(both), stdin=given)
    assert "authorities     Holdfast " in site.cli("repository", "show", "private")
    kept = site.json("repository", "show", "private")["options"]["tls_ca"]
    assert kept == private.ca.read_text(), "the certificate, and not the key that stood before it"

    site.processes["agent"].stop()
    monkeypatch.setenv("HOLDFAST_FAILPOINT", "ingest-record-durable")
    site.start("agent")
    monkeypatch.delenv("HOLDFAST_FAILPOINT")
    (tree / "large").write_bytes(os.urandom(3 << 20))
    job = site.json("backup", "files", str(tree), "--to", "private", "--asset", "killed", "--no-wait")["job"]
    eventually(lambda: not site.processes["agent"].alive())
    assert site.json("point", "list", "--asset", "killed")["points"] == []
    (tree / "large").write_bytes(os.urandom(100_000))
    site.start("agent")
    site.cli("job", "watch", job)
    (point,) = eventually(lambda: site.json("point", "list", "--asset", "killed")["points"])
    assert site.json("repository", "show", "private")["sessions"] == []

    before = site.json("repository", "usage", "private")
    dry = site.json("repository", "collect", "private", "--dry-run")["result"]
    assert site.json("repository", "usage", "private")["packs"] == before["packs"]
    done = site.json("repository", "collect", "private")["result"]
    assert (done["waiting"], done["packs"] >= dry["packs"]) == ([], True)
    assert done["freed"] - done["copied"] > 3_000_000
    after = site.json("repository", "usage", "private")
    assert before["packs"] - after["packs"] > 3_000_000
    assert after["points"] == before["points"] == 1
    assert site.json("repository", "show", "private")["stored"] == after["packs"], "as found by the collection"
    assert site.json("repository", "verify", "private", "--level", "full")["result"]["points"] == []
    site.cli("point", "restore", point["point"], "--to", str(folder / "killed"))
    assert scan(folder / "killed") == scan(tree)

    untrusted = site.cli("repository", "set", "private", "--system-authorities", expect=11)
    assert "store-untrusted" in untrusted
    site.cli("repository", "set", "private", "--tls-ca", str(private.ca))
    site.cli("repository", "remove", "private", "--yes")


def test_damage_is_found_put_right_where_there_is_a_second_copy_and_told_where_not(
    site: RunningSite, vault: Path, folder: Path
) -> None:
    image = folder / "precious.img"
    image.write_bytes(random.Random(7).randbytes(1 << 20))
    before = set(vault.glob("packs/*/*"))
    point = backed_up(site, "image", str(image), "--asset", "precious")["point"]
    data, *described = sorted(set(vault.glob("packs/*/*")) - before, key=lambda pack: -pack.stat().st_size)
    os.truncate(described[0], described[0].stat().st_size // 2)
    os.truncate(next(vault.glob("keys/*.json")), 10)
    mended = site.json("repository", "verify", "vault", "--level", "metadata")["result"]
    assert mended["points"] == []
    assert mended["figures"]["repaired"] > 0
    assert mended["figures"]["keys_mended"] == 1
    with data.open("r+b") as file:
        os.pwrite(file.fileno(), b"flipped", data.stat().st_size // 2)
    told = site.json("repository", "verify", "vault", "--level", "full", expect=4)["result"]
    assert [p["point"] for p in told["points"]] == [point]
    assert eventually(lambda: site.json("point", "show", point)["suspect"])
    refused = site.cli("point", "restore", point, "--to", str(folder / "lost.img"), expect=11)
    assert "chunk-damaged" in refused
    assert "--skip-lost" in refused
    rest = site.json("point", "restore", point, "--to", str(folder / "rest.img"), "--skip-lost", expect=4)["result"]
    assert rest["lost"]
    wanted = bytearray(image.read_bytes())
    for part in rest["lost"]:
        wanted[part["offset"] : part["offset"] + part["length"]] = bytes(part["length"])
    assert (folder / "rest.img").read_bytes() == wanted
    assert 0 < rest["lost_bytes"] < len(wanted)
    healed = backed_up(site, "image", str(image), "--asset", "precious")["point"]
    assert site.json("repository", "verify", "vault", "--level", "full")["result"]["points"] == []
    assert site.json("repository", "collect", "vault")["result"]["waiting"] == []
    site.cli("point", "restore", point, "--to", str(folder / "healed.img"))
    assert (folder / "healed.img").read_bytes() == image.read_bytes()
    assert healed != point


def test_a_repository_moves_is_removed_and_taken_back(site: RunningSite, vault: Path, tree: Path, folder: Path) -> None:
    attic = folder / "attic"
    attic.mkdir()
    site.cli("repository", "add", "attic", str(attic), "--no-encryption")
    point = site.json("backup", "files", str(tree), "--to", "attic", "--asset", "stowed")["point"]["point"]
    was = scan(tree)
    refused = site.cli("point", "restore", point, "--to", str(vault / "into"), expect=11)
    assert "path-own" in refused, "not into another repository's folder either"
    for words in (
        ("backup", "files", "www", "--to", "attic"),
        ("point", "restore", point, "--to", "back"),
        ("repository", "add", "other", "attic"),
        ("repository", "set", "attic", "--place", "attic"),
    ):
        assert "absolute path" in site.cli(*words, expect=2), f"relative to what? {words}"
    hinted = site.cli("backup", "files", str(tree / "file-0"), "--to", "attic", "--asset", "x", expect=11)
    assert "path-unfit" in hinted
    assert "holdfast backup image" in hinted
    assert "path-unfit" in site.cli("backup", "files", "/proc/self", "--to", "attic", "--asset", "x", expect=11)

    moved = folder / "moved"
    attic.rename(moved)
    exchanged = site.cli("repository", "set", "attic", "--place", str(vault), expect=11)
    assert "repository-exchanged" in exchanged
    changed = site.json("repository", "set", "attic", "--place", str(moved), "--dedupe", "asset")["job"]["result"]
    assert changed["options"]["dedupe"] == "asset"
    site.cli("point", "restore", point, "--to", str(folder / "from-moved"))
    assert scan(folder / "from-moved") == was

    files = {path for path in moved.rglob("*") if path.is_file()}
    site.cli("repository", "remove", "attic", "--yes")
    assert {path for path in moved.rglob("*") if path.is_file()} >= files, "nothing of it is deleted"
    assert eventually(lambda: "attic" not in repositories(site))
    assert not [p for p in site.json("point", "list")["points"] if p["repository"] == "attic"]
    (folder / "empty").mkdir()
    assert "repository-name-used" in site.cli("repository", "add", "attic", str(folder / "empty"), "--no-encryption",
                                              expect=11)  # fmt: skip
    nothing = folder / "nothing"
    nothing.touch()
    site.cli("repository", "adopt", "attic", str(moved), "--passphrase-file", str(nothing))
    assert [p["point"] for p in site.json("point", "list", "--repository", "attic")["points"]] == [point]
    site.cli("point", "restore", point, "--to", str(folder / "from-adopted"))
    assert scan(folder / "from-adopted") == was
    site.cli("repository", "remove", "attic", "--yes")


def test_a_repository_in_a_bucket_lives_through_a_bad_day_of_its_server(
    site: RunningSite, tree: Path, folder: Path, bucket: Bucket
) -> None:
    """A real S3 server, of which answers are lost, broken off, errors or slow."""
    far = tree
    port = int(bucket.endpoint.rpartition(":")[2])
    there = ("s3://repository/deep/er", "--region", bucket.region, "--access-key", bucket.access_key)
    with trouble(port) as between:
        place = (*there, "--endpoint", f"http://127.0.0.1:{between.port}", "--secrets-stdin")
        secrets_given = f"{PASSPHRASE}\n{bucket.secret_key}\n"
        wrong = site.cli("repository", "add", "cloud", *place, "--dry-run", expect=11, stdin="not the secret\n")
        assert "store-denied" in wrong
        between.set(
            2,
            PUT=("503", "lost", "cut"),
            GET=("half", "500"),
            HEAD=("503",),
            LIST=("slow", "500"),
            DELETE=("cut", "503"),
        )
        added = site.cli("repository", "add", "cloud", *place, stdin=secrets_given)
        assert "administrators of the S3 server: no" in added
        first = site.json("backup", "files", str(far), "--to", "cloud", "--asset", "far")["point"]
        was = scan(far)
        (far / "more").write_bytes(os.urandom(300_000))
        second = site.json("backup", "files", str(far), "--to", "cloud", "--asset", "far")["point"]
        assert second["continues"] == first["point"]
        assert site.json("repository", "verify", "cloud", "--level", "full")["result"]["points"] == []
        site.cli("point", "restore", first["point"], "--to", str(folder / "far-first"))
        assert scan(folder / "far-first") == was
        assert site.json("repository", "collect", "cloud")["result"]["waiting"] == []
        site.cli("repository", "remove", "cloud", "--yes")
        site.cli("repository", "adopt", "cloud", *place, stdin=secrets_given)
        site.cli("point", "restore", second["point"], "--to", str(folder / "far-second"))
        assert scan(folder / "far-second") == scan(far)
        assert {method for method, _ in between.met} == {"PUT", "GET", "HEAD", "LIST", "DELETE"}
        assert {what for method, what in between.met if method == "PUT"} == {"503", "lost", "cut"}
        between.set()
        site.cli("repository", "remove", "cloud", "--yes")


def test_another_installation_adopts_the_repository_and_the_first_one_is_refused(
    site: RunningSite, elsewhere: RunningSite, vault: Path, tree: Path, folder: Path
) -> None:
    lent = folder / "lent"
    lent.mkdir()
    passphrase = ("--secrets-stdin",)
    site.cli("repository", "add", "lent", str(lent), "--keep", "7d,4w", *passphrase, stdin=PASSPHRASE + "\n")
    web = site.json("backup", "files", str(tree), "--to", "lent", "--asset", "lent-web")["point"]["point"]
    starred = site.json("backup", "files", str(tree / "sub"), "--to", "lent", "--asset", "lent-sub")["point"]["point"]
    site.cli("point", "star", starred, "--note", "kept")
    was = {p["point"]: (p["asset"], p["created"], p["stored"]) for p in points(site, "lent")}
    assert was.keys() == {web, starred}
    named = site.cli("repository", "adopt", "again", str(lent), *passphrase, stdin=PASSPHRASE + "\n", expect=11)
    assert "this repository is lent here" in named
    eventually(lambda: elsewhere.run("repository", "list").returncode == 0)
    locked = elsewhere.cli("repository", "adopt", "old", str(lent), *passphrase, stdin="wrong\n", expect=11)
    assert "repository-locked" in locked
    told = elsewhere.cli("repository", "adopt", "old", str(lent), *passphrase, stdin=PASSPHRASE + "\n")
    assert "2 points" in told
    found = {p["point"]: p for p in points(elsewhere, "old")}
    assert {name: (p["asset"], p["created"], p["stored"]) for name, p in found.items()} == was
    assert [name for name, p in found.items() if p["starred"]] == [starred]
    shown = elsewhere.json("repository", "show", "old")
    assert shown["keep"] == "7d,4w", "what was decided comes from the repository"
    assert shown["stored"] == elsewhere.json("repository", "usage", "old")["packs"] > 500_000
    elsewhere.cli("point", "restore", web, "--to", str(folder / "elsewhere"))
    assert scan(folder / "elsewhere") == scan(tree)
    backed = elsewhere.json("backup", "files", str(tree), "--to", "old", "--asset", "lent-web")["point"]
    assert backed["continues"] == web
    refused = site.cli("backup", "files", str(tree), "--to", "lent", "--asset", "lent-web", expect=11)
    assert "journal-behind" in refused, "it is another log's now"
    for words in (("repository", "collect", "lent"), ("repository", "verify", "lent"), ("point", "star", web)):
        assert "journal-behind" in site.cli(*words, expect=11)


def points(site: RunningSite, repository: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = site.json("point", "list", "--repository", repository)["points"]
    return found
