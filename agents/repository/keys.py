"""The repository key: 32 random bytes that never change, the keys derived from it, and the wraps it is kept in.

    repository key ── "holdfast 1 scope"       ─→ a scope's id: 8 bytes for its text
                   ├─ "holdfast 1 chunk name"  + kind + scope id ─→ key of names (BLAKE3, keyed)
                   ├─ "holdfast 1 pack"        + pack id         ─→ AES-256-GCM key of one pack
                   └─ "holdfast 1 record"                        ─→ AES-256-GCM key of point records and other small files

Derivation is BLAKE3's (`derive_key_context`). A wrap, `keys/<id>.json`, is canonical JSON:

    {"format": 1, "id", "kind": "passphrase" | "site" | "recovery", "repository": hex, "created": RFC 3339, "label",
     "kdf": {"name": "scrypt", "n", "r", "p", "salt": hex} | {"name": "blake3"}, "reference": of the site's secret or "",
     "check": hex, "nonce": hex, "sealed": hex}

`sealed` is AES-256-GCM of the repository key under what the passphrase, the site's secret or the recovery code gives;
associated data is the same JSON without `check`, `nonce` and `sealed`, and without white space. `check` tells a damaged wrap
from a wrong passphrase: the first 8 bytes of a digest of the rest. "Rotation" is a new wrap and the removal of an old one:
whoever had the key itself has it still, so a key that has leaked is answered by a new repository.

And if we die here? A wrap stands twice, `keys2/<id>.json` made first: one of them opens. A new one is made and read back
before an old one is removed: `keys2/<id>.removed` says that it is, whatever copies of it are left or come back.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from agents.failpoints import failpoint
from agents.repository.errors import DAMAGED, KEY_DAMAGED, LOCKED, RepositoryError
from agents.repository.format import FORMAT, KINDS, SCOPE_BYTES, Buffer
from agents.repository.stores import EXISTS, MISSING, Store, StoreError

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
WrapKind = Literal["passphrase", "site", "recovery"]
SecretOf = Callable[[str], bytes]
"""From a reference to the site's secret: `streams.secrets.SecretStore.get`."""

# RFC 7914; 128·n·r = 64 MiB, about 0.2 s. A wrap names its own, within these bounds: a forged one must not eat a node.
SCRYPT: Final = {"n": 1 << 16, "r": 8, "p": 1}
_SCRYPT_BYTES: Final = 256 << 20
_LARGEST_WRAP: Final = 16 << 10
FIRST, SECOND = "keys/", "keys2/"
_REMOVED: Final = ".removed"
_PACK_CIPHERS: Final = 256


def new_key() -> bytes:
    """A repository key."""
    return secrets.token_bytes(KEY_BYTES)


def scope_id(key: bytes, scope: str) -> bytes:
    """8 bytes that stand for a dedupe scope in frames. Chunks of different scopes never share a name."""
    return blake3(scope.encode(), key=_derive("holdfast 1 scope", key)).digest(length=SCOPE_BYTES)


class Naming:
    """Names of chunks in one dedupe scope. Safe to use from several threads; hashing lets go of the GIL."""

    def __init__(self, key: bytes, scope: bytes) -> None:
        self.scope: Final = scope
        self._keys = {kind: _derive("holdfast 1 chunk name", key + bytes([kind]) + scope) for kind in KINDS}

    def name_of(self, kind: int, data: Buffer) -> bytes:
        """32 bytes: keyed BLAKE3-256, so that whoever sees names learns nothing of contents."""
        return blake3(data, key=self._keys[kind]).digest()


class Keys:
    """What a repository is read and written with while it is open. Safe to use from several threads."""

    def __init__(self, repository: bytes, key: bytes, encrypted: bool = True) -> None:
        """`repository`: its id, 16 bytes. `encrypted`: whether what is written anew is; what is read says so itself."""
        if len(repository) != 16 or len(key) != KEY_BYTES:
            raise ValueError("a repository id has 16 bytes, its key 32")
        self.repository: Final = repository
        self.encrypted: Final = encrypted
        self._key = key
        self._lock = threading.Lock()
        self._namings: dict[bytes, Naming] = {}
        self._packs: OrderedDict[bytes, AESGCM] = OrderedDict()
        self._record = AESGCM(_derive("holdfast 1 record", key))

    def naming(self, scope: str = "") -> Naming:
        """How chunks are named in `scope`, a text of the repository's own choosing (an asset, a tenant; "": everybody)."""
        return self.naming_by_id(scope_id(self._key, scope))

    def naming_by_id(self, scope: bytes) -> Naming:
        """The same by the id that stands in a frame."""
        found = self._namings.get(scope)
        if found is None:
            with self._lock:
                if len(self._namings) >= 4096:
                    self._namings.clear()  # forged frames could name any number of scopes
                found = self._namings[scope] = Naming(self._key, scope)
        return found

    def pack_cipher(self, pack: bytes) -> AESGCM:
        """AES-256-GCM under the key of one pack. Nonces are frame numbers, so a pack is written by one writer, once."""
        with self._lock:
            cipher = self._packs.get(pack)
            if cipher is None:
                cipher = self._packs[pack] = AESGCM(_derive("holdfast 1 pack", self._key + pack))
                if len(self._packs) > _PACK_CIPHERS:
                    self._packs.popitem(last=False)
            else:
                self._packs.move_to_end(pack)
            return cipher

    def seal_record(self, plaintext: bytes, aad: bytes) -> bytes:
        """A small file's content: random nonce (12 bytes), ciphertext, tag; bound to `aad`."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._record.encrypt(nonce, plaintext, aad)

    def open_record(self, sealed: bytes, aad: bytes) -> bytes:
        """What `seal_record` sealed. `chunk-damaged` when it is anything else, or stands where it does not belong."""
        try:
            return self._record.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], aad)
        except (InvalidTag, ValueError):
            raise RepositoryError(DAMAGED, "a record is damaged, or not where it belongs") from None

    def derived(self, purpose: str) -> bytes:
        """A key for something else that a repository needs one for."""
        return _derive("holdfast 1 other", self._key + purpose.encode())


# -- wraps


@dataclass(frozen=True, slots=True)
class Wrap:
    """One way to unlock a repository, as it stands in `keys/<id>.json` and, the same bytes, in `keys2/`; says nothing of the key
    itself."""

    id: str
    kind: WrapKind
    repository: bytes
    created: str
    label: str
    kdf: Mapping[str, Any]
    reference: str
    nonce: bytes
    sealed: bytes

    @property
    def file(self) -> str:
        return f"{FIRST}{self.id}.json"


def add_wrap(
    store: Store,
    repository: bytes,
    key: bytes,
    kind: WrapKind,
    secret: bytes,
    *,
    label: str = "",
    reference: str = "",
    scrypt: Mapping[str, int] = SCRYPT,
) -> Wrap:
    """Keep the repository key under `secret`: a passphrase (UTF-8), the site's secret that `reference` names (32 random bytes),
    or a recovery code's bytes. Durable, and opened once, when it returns."""
    kdf: dict[str, Any] = {"name": "blake3"}
    if kind == "passphrase":
        kdf = {"name": "scrypt", **scrypt, "salt": secrets.token_hex(16)}
    created = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    wrap = Wrap(secrets.token_hex(8), kind, repository, created, label, kdf, reference, b"", b"")
    nonce = secrets.token_bytes(NONCE_BYTES)
    sealed = AESGCM(_wrapping_key(wrap, secret)).encrypt(nonce, key, _clear(wrap))
    wrap = Wrap(wrap.id, kind, repository, created, label, kdf, reference, nonce, sealed)
    data = wrap_to_bytes(wrap)
    store.create(f"{SECOND}{wrap.id}.json", [data])
    failpoint("wrap-second-made")
    store.create(wrap.file, [data])
    if open_wrap(read_wrap(store, wrap.id), secret) != key:
        raise RepositoryError(KEY_DAMAGED, f"{wrap.file} does not give back the key it was made of")
    return wrap


def open_wrap(wrap: Wrap, secret: bytes) -> bytes:
    """The repository key. `repository-locked` when `secret` is not the one it was wrapped with."""
    try:
        key = AESGCM(_wrapping_key(wrap, secret)).decrypt(wrap.nonce, wrap.sealed, _clear(wrap))
    except (InvalidTag, ValueError):
        what = {"passphrase": "passphrase", "site": "site secret", "recovery": "recovery code"}[wrap.kind]
        raise RepositoryError(LOCKED, f"this {what} does not open {wrap.file}") from None
    if len(key) != KEY_BYTES:
        raise RepositoryError(KEY_DAMAGED, f"{wrap.file} holds no repository key")
    return key


def wraps(store: Store, damaged: Callable[[str, RepositoryError], None] | None = None) -> Iterator[Wrap]:
    """Every wrap of which a copy can be read. Those that cannot are handed to `damaged` (file, error); without it the first
    raises."""
    for name in _names(store):
        try:
            yield _either(store, name)
        except RepositoryError as error:
            if damaged is None:
                raise
            damaged(f"{FIRST}{name}", error)


def read_wrap(store: Store, wrap: str) -> Wrap:
    """One wrap by its id."""
    return _either(store, f"{wrap}.json")


def mend(store: Store, damaged: Callable[[str, RepositoryError], None]) -> int:
    """Write copies of wraps anew that are gone or damaged, from their other copies; how many. What no copy of can be read is
    handed to `damaged`. Wraps of earlier releases, which stand once, get their second copy; what a removal that died has left
    goes. Raises `StoreError`."""
    for wrap in _removed(store):
        _delete(store, wrap)
    mended = 0
    for name in _names(store):
        try:
            data = wrap_to_bytes(_either(store, name))
        except RepositoryError as error:
            damaged(f"{FIRST}{name}", error)
            continue
        for folder in (FIRST, SECOND):
            try:
                _copy(store, folder, name)
            except RepositoryError:
                store.delete(folder + name)
                store.create(folder + name, [data])
                mended += 1
    return mended


def _names(store: Store) -> list[str]:
    """Names of the files of wraps that were not removed."""
    found = {listed.name.partition("/")[2] for folder in (FIRST, SECOND) for listed in store.list(folder)}
    removed = {f"{wrap}.json" for wrap in _removed(store)}
    return sorted(name for name in found - removed if not name.endswith(_REMOVED))


def _removed(store: Store) -> list[str]:
    return [n.name[len(SECOND) : -len(_REMOVED)] for n in store.list(SECOND) if n.name.endswith(_REMOVED)]


def _either(store: Store, name: str) -> Wrap:
    try:
        return _copy(store, FIRST, name)
    except RepositoryError as error:
        try:
            return _copy(store, SECOND, name)
        except RepositoryError:
            raise error from None


def _copy(store: Store, folder: str, name: str) -> Wrap:
    wrap = wrap_from_bytes(_read_small(store, folder + name), folder + name)
    if f"{wrap.id}.json" != name:
        raise RepositoryError(KEY_DAMAGED, f"{folder}{name} is wrap {wrap.id}", "use another wrap of the key")
    return wrap


def unlock(
    store: Store, *, passphrase: str | None = None, secret_of: SecretOf | None = None, recovery: bytes | None = None
) -> bytes:
    """The repository key, by the first wrap that opens. `repository-locked` when none does, naming what there is."""
    tried: list[str] = []
    damaged: list[str] = []
    for wrap in sorted(wraps(store, lambda name, _: damaged.append(name)), key=lambda w: w.kind == "passphrase"):
        tried.append(f"{wrap.kind} {wrap.id}")
        try:
            if wrap.kind == "passphrase" and passphrase is not None:
                return open_wrap(wrap, passphrase.encode())
            if wrap.kind == "recovery" and recovery is not None:
                return open_wrap(wrap, recovery)
            if wrap.kind == "site" and secret_of is not None and (secret := _secret(secret_of, wrap.reference)):
                return open_wrap(wrap, secret)
        except RepositoryError as error:
            if error.code != LOCKED:
                damaged.append(wrap.file)
    has = ", ".join(tried) or "no wrap of its key at all"
    raise RepositoryError(
        LOCKED,
        f"the repository stays locked; it has {has}" + (f"; damaged: {', '.join(damaged)}" if damaged else ""),
        "give the passphrase, the site's secret store, or the recovery code",
    )


def remove_wrap(store: Store, wrap: str, key: bytes, opens: Mapping[str, bytes]) -> None:
    """Forget a wrap, after another has been proven: `opens` maps ids of wraps to the secrets that open them, and one other than
    `wrap` must give `key`. `repository-locked` when none does: a repository is never left without a way in."""
    for other, secret in opens.items():
        if other != wrap and open_wrap(read_wrap(store, other), secret) == key:
            try:
                store.create(f"{SECOND}{wrap}{_REMOVED}", [])
            except StoreError as error:
                if error.code != EXISTS:
                    raise
            failpoint("wrap-removed")
            _delete(store, wrap)
            return
    raise RepositoryError(LOCKED, f"no other wrap than {wrap} was shown to open the repository", "add one first")


def _delete(store: Store, wrap: str) -> None:
    for folder in (FIRST, SECOND):
        store.delete(f"{folder}{wrap}.json")


def wrap_to_bytes(wrap: Wrap) -> bytes:
    return json.dumps(
        {**json.loads(_clear(wrap)), "check": _check(wrap), "nonce": wrap.nonce.hex(), "sealed": wrap.sealed.hex()},
        sort_keys=True,
        indent=1,
    ).encode()


def wrap_from_bytes(data: bytes, name: str = "a wrap") -> Wrap:
    """Raises `repository-key-damaged` for whatever is not a wrap of this format."""
    try:
        if len(data) > _LARGEST_WRAP:
            raise ValueError("too large")
        fields = json.loads(data)
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            raise ValueError("another format")
        kind, kdf = fields["kind"], fields["kdf"]
        if kind not in ("passphrase", "site", "recovery") or not isinstance(kdf, dict):
            raise ValueError("unknown kind")
        texts = [fields[f] for f in ("id", "created", "label", "reference")]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("not text")
        wrap = Wrap(
            texts[0],
            kind,
            bytes.fromhex(fields["repository"]),
            texts[1],
            texts[2],
            kdf,
            texts[3],
            bytes.fromhex(fields["nonce"]),
            bytes.fromhex(fields["sealed"]),
        )
        if fields["check"] != _check(wrap):
            raise ValueError("its digest differs")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise RepositoryError(KEY_DAMAGED, f"{name} is damaged: {error}", "use another wrap of the key") from None
    return wrap


def _read_small(store: Store, name: str) -> bytes:
    """A file of keys; a huge one is not ours and is not read whole."""
    try:
        size = store.size(name)
        if size > _LARGEST_WRAP:
            raise RepositoryError(KEY_DAMAGED, f"{name} is damaged: {size} bytes", "use another wrap of the key")
        return store.read(name)
    except StoreError as error:
        if error.code == MISSING:
            raise RepositoryError(KEY_DAMAGED, f"{name} is gone", "use another wrap of the key") from None
        raise


def _secret(secret_of: SecretOf, reference: str) -> bytes | None:
    """The site's secret, None when this site has none by that name: it may be another site's wrap."""
    from streams.secrets import SecretError

    try:
        return secret_of(reference)
    except (SecretError, KeyError):
        return None


def _clear(wrap: Wrap) -> bytes:
    """What of a wrap is not sealed: also what the sealed part is bound to."""
    return json.dumps(
        {
            "format": FORMAT,
            "id": wrap.id,
            "kind": wrap.kind,
            "repository": wrap.repository.hex(),
            "created": wrap.created,
            "label": wrap.label,
            "kdf": dict(wrap.kdf),
            "reference": wrap.reference,
        },
        sort_keys=True,
        separators=(",", ":"),
    ).encode()


def _check(wrap: Wrap) -> str:
    return str(blake3(_clear(wrap) + wrap.nonce + wrap.sealed).hexdigest()[:16])


def _wrapping_key(wrap: Wrap, secret: bytes) -> bytes:
    kdf = wrap.kdf
    if kdf.get("name") == "blake3" and wrap.kind != "passphrase":
        return _derive("holdfast 1 wrap", secret)
    if kdf.get("name") != "scrypt":
        raise RepositoryError(KEY_DAMAGED, f"{wrap.file} names a derivation this version does not know")
    try:
        n, r, p, salt = int(kdf["n"]), int(kdf["r"]), int(kdf["p"]), bytes.fromhex(kdf["salt"])
        if not (n > 0 and r > 0 and 0 < p <= 16 and 128 * n * r <= _SCRYPT_BYTES):
            raise ValueError("out of bounds")
        return hashlib.scrypt(secret, salt=salt, n=n, r=r, p=p, maxmem=2 * _SCRYPT_BYTES, dklen=KEY_BYTES)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise RepositoryError(KEY_DAMAGED, f"{wrap.file} names parameters that cannot be used: {error}") from None


def _derive(context: str, material: bytes) -> bytes:
    return blake3(material, derive_key_context=context).digest()
