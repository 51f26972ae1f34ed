"""The way back in when a site is gone: a recovery code on paper, and the drill that shows that it works.

A code is 32 random bytes, written as eight groups that are numbered by where they stand:

    B1TQ-7HZM  0D3C-99XK  …        a group: 4 bytes of the code and 1 byte of check, 8 letters of Crockford's base 32

The check byte is BLAKE3 of the group's number and bytes, so a mistyped, left out or exchanged group is named to whoever types.
I, L, O and U are no letters of it; they are read as 1, 1 and 0 where people write them. The code wraps the repository key like a
passphrase does (`agents.repository.keys`), without a slow derivation: it cannot be guessed. Splitting it among several
people is not built: see docs/adr/0019.
"""

from __future__ import annotations

import random
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from blake3 import blake3

from agents.repository import keys, packs
from agents.repository import repository as repositories
from agents.repository.errors import LOCKED, RepositoryError
from agents.repository.pack_format import parse_pack_file
from agents.repository.repository import Repository
from agents.repository.stores import Store

INVALID: Final = "recovery-code-invalid"
GROUPS: Final = 8
_LETTERS: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_READ_AS: Final = str.maketrans("ILO", "110")
_GROUP_BYTES: Final = 4
_SAMPLED: Final = 32  # chunks a drill reads


def new_code() -> str:
    """A recovery code, as it is printed."""
    return code_of(secrets.token_bytes(GROUPS * _GROUP_BYTES))


def code_of(secret: bytes) -> str:
    """How 32 bytes are written."""
    groups = []
    for number in range(GROUPS):
        part = secret[number * _GROUP_BYTES : (number + 1) * _GROUP_BYTES]
        value = int.from_bytes(part + _check(number, part))
        text = "".join(_LETTERS[value >> shift & 31] for shift in range(35, -1, -5))
        groups.append(f"{text[:4]}-{text[4:]}")
    return " ".join(groups)


def secret_of(code: str) -> bytes:
    """The 32 bytes of a code as somebody typed it: small letters, other or no separators. Raises `RepositoryError`
    (`recovery-code-invalid`), which names the groups that are wrong and nothing of what they are."""
    text = re.sub(r"[\s.,:;_-]+", "", code[:4096]).upper().translate(_READ_AS)
    wanted = GROUPS * 8
    if len(text) != wanted:
        raise _invalid(f"it has {len(text)} letters and digits instead of {wanted}")
    secret, wrong = b"", []
    for number in range(GROUPS):
        part = _group(number, text[number * 8 : number * 8 + 8])
        if part is None:
            wrong.append(str(number + 1))
        else:
            secret += part
    if wrong:
        raise _invalid(f"of its {GROUPS} groups these are not as they were printed: {', '.join(wrong)}")
    return secret


def page(code: str, repository: str, wrap: str, place: str) -> str:
    """What is printed and put into a safe. `repository`: id; `place`: where it is, without credentials."""
    groups = code.split()
    lines = [f"    {i + 1}  {groups[i]}        {i + 5}  {groups[i + 4]}" for i in range(4)]
    return "\n".join(
        [
            "HOLDFAST RECOVERY CODE",
            "",
            f"repository  {repository}",
            f"place       {place}",
            f"key         {wrap}",
            f"printed     {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            "",
            *lines,
            "",
            "Whoever has this page and the repository can read everything in it. Keep it where neither the site nor the",
            "repository is. A drill (`holdfast repository key drill`) shows that it works: do one a quarter.",
            "",
        ]
    )


def drill(
    store: Store, code: str, scratch: Path, *, samples: int = _SAMPLED, check: Callable[[], object] = lambda: None
) -> Mapping[str, int]:
    """Open the repository with the code and nothing else, in a new cache under `scratch`, and read from it: every point's record,
    and chunks chosen at random. Figures by name: `points`, `chunks`, `bytes`. The cache is removed; nothing is stored.

    Raises `RepositoryError`: `recovery-code-invalid`, `repository-locked` (no wrap is this code's), `point-damaged`,
    `chunk-damaged`, …; `StoreError`. `check` is called now and then, and may raise to end it.
    """
    secret = secret_of(code)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True, mode=0o700)
    try:
        repository = repositories.open(store, lambda s: keys.unlock(s, recovery=secret), scratch, "drill")
        try:
            if not repository.definition.encrypted:
                raise RepositoryError(
                    LOCKED, "the repository is not encrypted: anybody can open it", "there is nothing to drill"
                )
            return _read_some(repository, samples, check)
        finally:
            repository.close()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _read_some(repository: Repository, samples: int, check: Callable[[], object]) -> dict[str, int]:
    figures = {"points": 0, "chunks": 0, "bytes": 0}
    for point in repository.point_ids():
        check()
        repository.point(point)
        figures["points"] += 1
    chance = random.SystemRandom()
    files = [f.name for f in repository.store.list("packs/") if parse_pack_file(f.name)]
    for file in chance.sample(files, min(len(files), samples)):
        check()
        entries = packs.contents_of(repository.store, file).entries
        share = max(1, samples // len(files))
        chosen = chance.sample(entries, min(len(entries), share))
        for _, data in packs.read_frames(repository.store, file, ((e.name, e.place) for e in chosen), repository.keys):
            figures["chunks"] += 1
            figures["bytes"] += len(data)
    return figures


def _group(number: int, text: str) -> bytes | None:
    value = 0
    for letter in text:
        digit = _LETTERS.find(letter)
        if digit < 0:
            return None
        value = value << 5 | digit
    part, check = value.to_bytes(5)[:4], value.to_bytes(5)[4:]
    return part if _check(number, part) == check else None


def _check(number: int, part: bytes) -> bytes:
    return blake3(b"holdfast recovery code" + bytes([number]) + part).digest(length=1)


def _invalid(why: str) -> RepositoryError:
    return RepositoryError(INVALID, f"this is no recovery code: {why}", "type it again as it stands on the page")
