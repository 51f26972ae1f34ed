"""Recovery codes, and the drill that opens a repository with one and nothing else."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.repository import escrow, keys
from agents.repository import repository as repositories
from agents.repository.chunks import pack_body
from agents.repository.errors import LOCKED, RepositoryError
from agents.repository.escrow import code_of, drill, new_code, page, secret_of
from agents.repository.format import DATA, DATA_PACK
from agents.repository.packs import PackWriter, contents_of
from agents.repository.stores import Store
from agents.repository.stores.memory import MemoryStore

# The same examples for everybody, however busy the machine is: nothing fails here by chance.
patient = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def outcome(text: str) -> bytes | str:
    """The secret, or what is wrong with the code; any other error is the test's."""
    try:
        return secret_of(text)
    except RepositoryError as error:
        if error.code != escrow.INVALID:
            raise
        return error.message


@patient
@given(st.binary(min_size=32, max_size=32))
def test_a_code_gives_back_what_it_was_made_of(secret: bytes) -> None:
    assert secret_of(code_of(secret)) == secret


def test_a_code_may_be_typed_as_people_type() -> None:
    code = code_of(bytes(range(32)))
    secret = secret_of(code)
    assert secret_of(code.lower()) == secret
    assert secret_of(code.replace(" ", "").replace("-", "")) == secret
    assert secret_of("\n".join(code.split())) == secret
    assert secret_of(code.replace("1", "l").replace("0", "o")) == secret


def test_a_wrong_letter_is_found_in_its_group() -> None:
    secret = bytes(range(100, 132))
    right = code_of(secret).replace(" ", "").replace("-", "")
    unseen = 0
    for at in range(64):
        for letter in "0123456789ABCDEFGHJKMNPQRSTVWXYZ*":
            said = outcome(right[:at] + letter + right[at + 1 :])
            if letter == right[at]:
                assert said == secret
            elif isinstance(said, bytes):
                unseen += 1
            else:
                assert said.endswith(f"printed: {at // 8 + 1}")
    assert unseen < 64 * 32 / 100  # a check byte does not see one in 256


def test_exchanged_and_missing_groups_are_found() -> None:
    groups = code_of(bytes(range(32))).split()
    with pytest.raises(RepositoryError, match="printed: 3, 4"):
        secret_of(" ".join([*groups[:2], groups[3], groups[2], *groups[4:]]))
    with pytest.raises(RepositoryError, match="56 letters and digits instead of 64"):
        secret_of(" ".join(groups[1:]))


@patient
@given(st.text(max_size=200))
def test_any_text_is_a_code_or_is_refused(text: str) -> None:
    said = outcome(text)
    assert len(said) == 32 if isinstance(said, bytes) else said


def test_the_printed_page_holds_the_code_and_tells_two_groups_apart() -> None:
    code = new_code()
    lines = page(code, "id", "wrap", "/srv/repository").splitlines()
    groups: dict[int, str] = {}
    for line in lines:
        words = line.split()
        if len(words) == 4 and words[0].isdigit():
            groups |= {int(words[0]): words[1], int(words[2]): words[3]}
    assert [groups[i + 1] for i in range(8)] == code.split()


def made(tmp_path: Path) -> tuple[MemoryStore, bytes]:
    """A repository with a few chunks, and its key."""
    store = MemoryStore()
    kept: list[bytes] = []

    def wrap(where: Store, identity: UUID, key: bytes) -> None:
        keys.add_wrap(where, identity.bytes, key, "site", b"s" * 32, reference="repositories/r/site@1")
        kept.append(key)

    definition = repositories.create(store, wrap=wrap)
    opened = keys.Keys(definition.identity.bytes, kept[0])
    writer = PackWriter(store, opened, "n", 1, DATA_PACK, opened.naming().scope, size=9000)
    for i in range(20):
        data = bytes([i]) * 5000 + str(i).encode() * 100
        codec, body = pack_body(data)
        writer.add(DATA, opened.naming().name_of(DATA, data), codec, len(data), body)
    writer.flush()
    writer.close()
    return store, kept[0]


def test_a_drill_opens_the_repository_with_the_code_alone(tmp_path: Path) -> None:
    store, key = made(tmp_path)
    code = new_code()
    before = {f.name for f in store.list()}
    with pytest.raises(RepositoryError) as refused:
        drill(store, code, tmp_path / "drill")
    assert refused.value.code == LOCKED
    wrap = keys.add_wrap(store, repositories.define(store).identity.bytes, key, "recovery", secret_of(code))
    checks: list[int] = []
    figures = drill(store, code, tmp_path / "drill", check=lambda: checks.append(1))
    assert figures["chunks"] == 20
    assert figures["bytes"] > 100_000
    assert checks
    assert not (tmp_path / "drill").exists()
    assert {f.name for f in store.list()} == before | {wrap.file, f"keys2/{wrap.id}.json"}


def test_a_drill_finds_what_is_damaged(tmp_path: Path) -> None:
    store, key = made(tmp_path)
    code = new_code()
    keys.add_wrap(store, repositories.define(store).identity.bytes, key, "recovery", secret_of(code))
    for file in [f.name for f in store.list("packs/")]:
        data = bytearray(store.read(file))
        for entry in contents_of(store, file).entries:
            data[entry.place.offset + 90] ^= 1
        store.put(file, bytes(data))
    with pytest.raises(RepositoryError, match="was changed"):
        drill(store, code, tmp_path / "drill")
    assert not (tmp_path / "drill").exists()
