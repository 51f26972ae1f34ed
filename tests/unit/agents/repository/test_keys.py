"""Wraps of the repository key: what opens them, what does not, and what becomes of damaged ones."""

from __future__ import annotations

import json
import secrets

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.repository import keys
from agents.repository.errors import DAMAGED, KEY_DAMAGED, LOCKED, RepositoryError
from agents.repository.keys import Keys, add_wrap, new_key, open_wrap, read_wrap, remove_wrap, unlock, wraps
from agents.repository.stores.memory import MemoryStore
from streams.secrets import SecretError

# The same examples for everybody, however busy the machine is: nothing fails here by chance.
patient = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

REPOSITORY = b"r" * 16
QUICK = {"n": 16, "r": 8, "p": 1}


def outcome(store: MemoryStore, wrap: str) -> bytes | str:
    """The key that a recovery wrap gives, or why it gives none."""
    try:
        return open_wrap(read_wrap(store, wrap), b"c" * 32)
    except RepositoryError as error:
        return error.code


def alone(store: MemoryStore, wrap: keys.Wrap) -> keys.Wrap:
    """A wrap without its second copy: what is in the first is what counts."""
    store.delete(f"keys2/{wrap.id}.json")
    return wrap


def refusal(
    store: MemoryStore,
    passphrase: str | None = None,
    secret_of: keys.SecretOf | None = None,
    recovery: bytes | None = None,
) -> str:
    with pytest.raises(RepositoryError) as refused:
        unlock(store, passphrase=passphrase, secret_of=secret_of, recovery=recovery)
    return refused.value.code


def none(_: str) -> bytes:
    raise SecretError("secret-missing", "there is none")


def test_each_kind_of_wrap_opens_with_its_own_secret() -> None:
    store, key = MemoryStore(), new_key()
    add_wrap(store, REPOSITORY, key, "passphrase", b"correct horse", scrypt=QUICK)
    add_wrap(store, REPOSITORY, key, "site", b"s" * 32, reference="repositories/a/site@1")
    add_wrap(store, REPOSITORY, key, "recovery", b"c" * 32)
    assert unlock(store, passphrase="correct horse") == key
    assert unlock(store, secret_of={"repositories/a/site@1": b"s" * 32}.__getitem__) == key
    assert unlock(store, recovery=b"c" * 32) == key
    assert refusal(store) == LOCKED
    assert refusal(store, passphrase="wrong") == LOCKED
    assert refusal(store, secret_of=none) == LOCKED
    assert refusal(store, recovery=b"d" * 32) == LOCKED
    assert refusal(MemoryStore(), passphrase="correct horse") == LOCKED


def test_a_passphrase_is_derived_as_slowly_as_is_said() -> None:
    store, key = MemoryStore(), new_key()
    wrap = add_wrap(store, REPOSITORY, key, "passphrase", b"pass")
    assert wrap.kdf["n"] == 65536
    assert open_wrap(wrap, b"pass") == key


def test_a_changed_passphrase_is_a_new_wrap_and_the_old_one_goes() -> None:
    store, key = MemoryStore(), new_key()
    old = add_wrap(store, REPOSITORY, key, "passphrase", b"old", scrypt=QUICK)
    new = add_wrap(store, REPOSITORY, key, "passphrase", b"new", scrypt=QUICK)
    remove_wrap(store, old.id, key, {new.id: b"new"})
    assert [w.id for w in wraps(store)] == [new.id]
    with pytest.raises(RepositoryError):
        unlock(store, passphrase="old")
    with pytest.raises(RepositoryError) as refused:  # the last way in stays
        remove_wrap(store, new.id, key, {new.id: b"new"})
    assert refused.value.code == LOCKED
    assert unlock(store, passphrase="new") == key


def test_one_damaged_wrap_does_not_keep_the_others_from_opening() -> None:
    store, key = MemoryStore(), new_key()
    broken = alone(store, add_wrap(store, REPOSITORY, key, "recovery", b"c" * 32))
    add_wrap(store, REPOSITORY, key, "passphrase", b"pass", scrypt=QUICK)
    store.put(broken.file, store.read(broken.file).replace(b"recovery", b"passphrase"))
    assert unlock(store, passphrase="pass") == key
    found: list[str] = []
    assert len(list(wraps(store, lambda name, _: found.append(name)))) == 1
    assert found == [broken.file]
    with pytest.raises(RepositoryError) as damaged:
        list(wraps(store))
    assert damaged.value.code == KEY_DAMAGED


def test_every_change_to_a_wrap_is_found() -> None:
    store, key = MemoryStore(), new_key()
    wrap = alone(store, add_wrap(store, REPOSITORY, key, "recovery", b"c" * 32, label="safe in Bern"))
    whole = store.read(wrap.file)
    for at in range(0, len(whole), 3):
        changed = bytearray(whole)
        changed[at] ^= 1
        store.put(wrap.file, bytes(changed))
        assert outcome(store, wrap.id) in (key, KEY_DAMAGED)  # white space may be other white space
    # A forger who makes the digest right again is stopped by what the key is bound to.
    forged = json.loads(whole) | {"label": "mine"}
    store.put(wrap.file, json.dumps(forged).encode())
    with pytest.raises(RepositoryError):
        read_wrap(store, wrap.id)
    forged["check"] = keys._check(
        keys.Wrap(wrap.id, wrap.kind, REPOSITORY, wrap.created, "mine", wrap.kdf, "", wrap.nonce, wrap.sealed)
    )
    store.put(wrap.file, json.dumps(forged).encode())
    with pytest.raises(RepositoryError) as locked:
        open_wrap(read_wrap(store, wrap.id), b"c" * 32)
    assert locked.value.code == LOCKED


@pytest.mark.parametrize(
    "kdf", [{"n": 1 << 30}, {"r": 1 << 20}, {"p": 10_000}, {"n": -1}, {"n": "many"}, {"salt": 5}, {"n": 15}]
)
def test_a_forged_wrap_cannot_make_a_node_work_for_hours(kdf: dict[str, object]) -> None:
    wrap = keys.Wrap(
        "id", "passphrase", REPOSITORY, "", "", {"name": "scrypt", **QUICK, "salt": "00", **kdf}, "", b"n" * 12, b""
    )
    with pytest.raises(RepositoryError) as refused:
        open_wrap(wrap, b"pass")
    assert refused.value.code == KEY_DAMAGED


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@patient
@given(st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_lies_in_keys_is_a_wrap_or_is_refused(data: bytes) -> None:
    with pytest.raises(RepositoryError) as refused:
        keys.wrap_from_bytes(data)
    assert refused.value.code == KEY_DAMAGED


@patient
@given(
    st.sampled_from(
        ["id", "kind", "repository", "created", "label", "kdf", "reference", "check", "nonce", "sealed", "format"]
    ),
    JSON,
)
def test_a_wrap_with_a_foreign_field_is_refused(field: str, value: object) -> None:
    store = MemoryStore()
    wrap = alone(store, add_wrap(store, REPOSITORY, b"k" * 32, "recovery", b"c" * 32))
    fields = json.loads(store.read(wrap.file))
    before, fields[field] = fields[field], value
    store.put(wrap.file, json.dumps(fields).encode())
    said = outcome(store, wrap.id)
    assert said == b"k" * 32 if value == before else said in (KEY_DAMAGED, LOCKED)


def test_records_open_in_their_place_only() -> None:
    mine = Keys(REPOSITORY, new_key())
    sealed = mine.seal_record(b"record", b"points/a")
    assert mine.open_record(sealed, b"points/a") == b"record"
    for data, aad, by in (
        (sealed, b"points/b", mine),
        (sealed[:-1], b"points/a", mine),
        (b"", b"points/a", mine),
        (sealed, b"points/a", Keys(REPOSITORY, new_key())),
    ):
        with pytest.raises(RepositoryError) as refused:
            by.open_record(data, aad)
        assert refused.value.code == DAMAGED


def test_names_tell_nothing_and_packs_have_keys_of_their_own() -> None:
    one, other = Keys(REPOSITORY, new_key()), Keys(REPOSITORY, new_key())
    assert one.naming("a").name_of(1, b"data") != other.naming("a").name_of(1, b"data")
    first, second = secrets.token_bytes(16), secrets.token_bytes(16)
    sealed = one.pack_cipher(first).encrypt(bytes(12), b"data", b"")
    assert one.pack_cipher(second).encrypt(bytes(12), b"data", b"") != sealed


def test_a_wrap_stands_twice_and_verify_mends_it() -> None:
    store, key = MemoryStore(), new_key()
    one = add_wrap(store, REPOSITORY, key, "recovery", b"c" * 32)
    other = add_wrap(store, REPOSITORY, key, "recovery", b"d" * 32)
    first, second = (f"{folder}{one.id}.json" for folder in ("keys/", "keys2/"))
    whole = store.read(first)
    assert store.read(second) == whole

    def told() -> tuple[int, list[str]]:
        lost: list[str] = []
        return keys.mend(store, lambda name, _: lost.append(name)), lost

    for name in (first, second):
        for damage in (whole[:-3], b"", whole.replace(b"recovery", b"recoverz"), store.read(other.file), None):
            store.delete(name)
            if damage is not None:
                store.create(name, [damage])
            assert unlock(store, recovery=b"c" * 32) == key
            assert told() == (1, [])
            assert (store.read(first), store.read(second)) == (whole, whole)
    assert told() == (0, [])
    for name in (first, second):
        store.put(name, whole[:-3])
    assert refusal(store, recovery=b"c" * 32) == LOCKED
    assert told() == (0, [first])
    assert unlock(store, recovery=b"d" * 32) == key


def test_a_wrap_that_was_removed_opens_nothing_whatever_comes_back_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    store, key = MemoryStore(), new_key()
    gone = add_wrap(store, REPOSITORY, key, "recovery", b"c" * 32)
    stays = add_wrap(store, REPOSITORY, key, "recovery", b"d" * 32)
    files = {name: store.read(name) for name in (gone.file, f"keys2/{gone.id}.json")}

    class Died(BaseException):
        pass

    def die(place: str) -> None:
        if place == "wrap-removed":
            raise Died

    with monkeypatch.context() as patched:
        patched.setattr(keys, "failpoint", die)
        with pytest.raises(Died):
            remove_wrap(store, gone.id, key, {stays.id: b"d" * 32})
    assert refusal(store, recovery=b"c" * 32) == LOCKED
    assert [wrap.id for wrap in wraps(store)] == [stays.id]
    assert keys.mend(store, lambda *_: None) == 0
    assert not any(name in files for name in (file.name for file in store.list("keys")))
    for name, data in files.items():  # from an old copy of the folder
        store.create(name, [data])
    assert refusal(store, recovery=b"c" * 32) == LOCKED
    remove_wrap(store, gone.id, key, {stays.id: b"d" * 32})
    assert unlock(store, recovery=b"d" * 32) == key
