"""The secret store: what is put comes back and nothing else does; nothing half written is ever there."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streams.secrets import KEY_BYTES, SecretError, SecretStore, create_site_key
from streams.settings import ApiSettings, KafkaSettings, PostgresSettings, Settings

ROOT = Path(__file__).parents[3]


def site(directory: Path, key: Path | None = None) -> Settings:
    postgres = PostgresSettings("127.0.0.1", 1, "nobody", "nothing")
    key = key or directory / "secrets" / "site.key"
    return Settings("test", directory, KafkaSettings("127.0.0.1:1"), postgres, ApiSettings(), key)


@pytest.fixture
def store(tmp_path: Path) -> SecretStore:
    create_site_key(tmp_path / "secrets" / "site.key")
    return SecretStore(site(tmp_path))


def refused(call: object, *arguments: object) -> SecretError:
    assert callable(call)
    with pytest.raises(SecretError) as caught:
        call(*arguments)
    return caught.value


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.binary(max_size=500))
def test_a_secret_comes_back(store: SecretStore, secret: bytes) -> None:
    assert store.get(store.put("sources/shop/capture", secret)) == secret


def test_each_put_is_a_new_version_and_the_earlier_ones_stay(store: SecretStore) -> None:
    references = [store.put("sources/shop/capture", b"%d" % n) for n in range(3)]
    assert references == [f"sources/shop/capture@{v}" for v in (1, 2, 3)]
    assert [store.get(r) for r in references] == [b"0", b"1", b"2"]
    assert store.versions("sources/shop/capture") == [1, 2, 3]
    assert store.versions("sources/shop/rollback") == []
    assert store.put("root", b"x") == "root@1"
    assert store.versions("root") == [1]


def test_another_store_of_the_site_reads_it_and_one_with_another_key_does_not(
    store: SecretStore, tmp_path: Path
) -> None:
    reference = store.put("sources/shop/capture", b"secret")
    assert SecretStore(site(tmp_path)).get(reference) == b"secret"

    create_site_key(tmp_path / "other.key")
    other = SecretStore(site(tmp_path, tmp_path / "other.key"))
    assert refused(other.get, reference).code == "site-key-unknown"


def test_after_a_rotation_the_new_key_seals_and_the_old_one_still_unseals(store: SecretStore, tmp_path: Path) -> None:
    key = tmp_path / "secrets" / "site.key"
    old = store.put("a", b"under the old key")
    old_sealed = store.seal("capture/shop", b"payload", b"")
    key.write_bytes(key.read_bytes() + os.urandom(KEY_BYTES))

    rotated = SecretStore(site(tmp_path))

    assert rotated.get(old) == b"under the old key"
    assert rotated.unseal("capture/shop", *old_sealed, b"") == b"payload"
    assert rotated.seal("capture/shop", b"", b"")[0] != old_sealed[0]
    assert refused(store.get, rotated.put("a", b"new")).code == "site-key-unknown"


def test_every_single_bit_changed_in_a_file_is_noticed(store: SecretStore, tmp_path: Path) -> None:
    reference = store.put("a", b"secret")
    path = tmp_path / "secrets" / reference
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        assert refused(store.get, reference).code in ("secret-damaged", "site-key-unknown")
    for size in range(len(good)):
        path.write_bytes(good[:size])
        assert refused(store.get, reference).code == "secret-damaged"
    path.write_bytes(good)
    assert store.get(reference) == b"secret"


def test_a_file_moved_to_another_name_does_not_open(store: SecretStore, tmp_path: Path) -> None:
    store.put("a", b"one")
    store.put("a", b"two")
    folder = tmp_path / "secrets"
    (folder / "a@1").replace(folder / "a@2")
    assert refused(store.get, "a@2").code == "secret-damaged"
    assert refused(store.get, "a@1").code == "secret-missing"


def test_a_purpose_and_what_it_is_bound_to_must_be_the_same_to_unseal(store: SecretStore) -> None:
    sealed = store.seal("capture/shop", b"payload", b"record 1")
    assert store.unseal("capture/shop", *sealed, b"record 1") == b"payload"
    assert refused(store.unseal, "capture/other", *sealed, b"record 1").code == "secret-damaged"
    assert refused(store.unseal, "capture/shop", *sealed, b"record 2").code == "secret-damaged"
    assert store.seal("capture/shop", b"payload", b"")[1] != store.seal("capture/shop", b"payload", b"")[1]


def test_nothing_in_the_folder_shows_the_secret_or_is_for_others_to_read(store: SecretStore, tmp_path: Path) -> None:
    store.put("sources/shop/capture", b"correct horse battery staple")
    for path in (tmp_path / "secrets").rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600)
        assert path.is_dir() or b"horse" not in path.read_bytes()


@pytest.mark.parametrize(
    "name", ["", "A", "a b", "../a", "a/../b", "a//b", "/a", "a/", "a@1", ".new-1", "a" * 65, "a\0"]
)
def test_names_that_would_lead_elsewhere_are_refused(store: SecretStore, name: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert refused(store.put, name, b"x").code == "secret-name-invalid"
    for reference in (name, f"{name}@1", f"{name}@0", f"{name}@-1", f"{name}@01"):
        assert refused(store.get, reference).code in ("secret-name-invalid", "secret-missing")
        assert refused(store.get, reference).code == "secret-name-invalid" or name == "a@1"
    assert sorted(tmp_path.rglob("*")) == before


def test_threads_and_stores_that_put_at_once_each_get_a_version_of_their_own(
    store: SecretStore, tmp_path: Path
) -> None:
    stores = [store, SecretStore(site(tmp_path))]
    got: dict[str, bytes] = {}
    lock = threading.Lock()

    def run(n: int) -> None:
        for i in range(10):
            secret = b"%d %d" % (n, i)
            reference = stores[n % 2].put("a", secret)
            with lock:
                assert reference not in got
                got[reference] = secret

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(got) == 40
    assert all(store.get(reference) == secret for reference, secret in got.items())
    assert store.versions("a") == list(range(1, 41))


def test_a_removed_version_is_gone_and_its_number_is_not_given_to_another_while_later_ones_exist(
    store: SecretStore,
) -> None:
    store.put("a", b"1")
    store.put("a", b"2")
    store.remove("a@1")
    store.remove("a@1")
    assert refused(store.get, "a@1").code == "secret-missing"
    assert store.put("a", b"3") == "a@3"


def test_a_site_key_is_created_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "site.key"
    create_site_key(path)
    key = path.read_bytes()
    assert (len(key), stat.S_IMODE(path.stat().st_mode)) == (KEY_BYTES, 0o600)
    assert refused(create_site_key, path).code == "site-key-exists"
    assert path.read_bytes() == key
    assert os.listdir(path.parent) == ["site.key"]


def test_a_site_key_that_is_missing_exposed_or_of_another_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "site.key"
    assert refused(SecretStore, site(tmp_path, path)).code == "site-key-missing"
    for size in (0, 1, 31, 33):
        path.write_bytes(bytes(size))
        path.chmod(0o600)
        assert refused(SecretStore, site(tmp_path, path)).code == "site-key-invalid"
    path.write_bytes(bytes(32))
    path.chmod(0o604)
    error = refused(SecretStore, site(tmp_path, path))
    assert (error.code, error.hint) == ("site-key-exposed", f"chmod 600 {path}")
    path.unlink()
    path.mkdir()
    assert refused(SecretStore, site(tmp_path, path)).code == "site-key-unreadable"


CRASHING = """
import os, sys
from pathlib import Path
from streams import secrets
from tests.unit.streams.test_secrets import site
at, calls = int(sys.argv[2]), 0
def dying(name):
    real = getattr(os, name)
    def call(*a, **k):
        global calls
        calls += 1
        if calls == at:
            os._exit(9)
        return real(*a, **k)
    return call
store = secrets.SecretStore(site(Path(sys.argv[1])))
for name in ("open", "fsync", "link", "unlink", "mkdir", "close"):
    setattr(os, name, dying(name))
store.put("sources/shop/capture", b"whole")
os._exit(0)
"""


def test_a_process_that_dies_at_any_call_of_a_put_leaves_a_version_whole_or_none(tmp_path: Path) -> None:
    create_site_key(tmp_path / "secrets" / "site.key")
    outcomes = set()
    for at in range(1, 100):
        process = subprocess.run(
            [sys.executable, "-c", CRASHING, str(tmp_path), str(at)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=60,
        )
        store = SecretStore(site(tmp_path))
        versions = store.versions("sources/shop/capture")
        assert all(store.get(f"sources/shop/capture@{v}") == b"whole" for v in versions)
        outcomes.add(len(versions) > 0)
        if process.returncode == 0:
            break
        assert process.returncode == 9
    else:
        pytest.fail("it never came through")
    assert at > 4
    assert outcomes == {False, True}
