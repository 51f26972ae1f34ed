"""The sealed, versioned secret store of a site: passwords of sources, keys for payloads that must not lie in clear.

One file a version, `<data_dir>/secrets/<name>@<version>`, mode 0600:

    "HFSECRET" 1 byte format (1) · 16 hex digits key id · 12 bytes nonce · AES-256-GCM ciphertext and tag

with the whole reference (`sources/shop/capture@1`) as associated data, so that a file moved to another name does not
open. Versions are never changed: a new secret is a new version. The site key file holds 32 random bytes, or several
times 32 after a rotation: the last seals, all unseal. From it comes one key for each purpose (HKDF-SHA256, RFC 5869).
Nonces are random, 96 bits (NIST SP 800-38D, 8.2.2): up to 2^32 messages a purpose.

And if we die here? A version is written beside its place, flushed, linked into place (which fails if it exists) and
its directory flushed: it is there whole or not at all. A crash may leave a file that starts with `.new-`: garbage.

Events, logs and process arguments carry references only. Knows nothing of who asks for which secret.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from streams.errors import StreamError
from streams.settings import Settings

KEY_BYTES = 32
NONCE_BYTES = 12
_MAGIC = b"HFSECRET\x01"
_KEY_ID = 16
_SALT = b"holdfast site key v1"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}(/[a-z0-9][a-z0-9._-]{0,63}){0,7}")
_REFERENCE = re.compile(rf"({_NAME.pattern})@([1-9][0-9]{{0,8}})")


class SecretError(StreamError):
    """A secret cannot be kept or read: `site-key-…`, `secret-…`. Never names a secret's value."""


def create_site_key(path: Path) -> None:
    """Write a new site key, mode 0600, flushed. Raises `SecretError` (`site-key-exists`): a key is never replaced."""
    _make_directories(path.parent)
    try:
        _write_new(path, secrets.token_bytes(KEY_BYTES))
    except FileExistsError:
        raise SecretError("site-key-exists", f"there is a site key in {path} already") from None


class SecretStore:
    """The secrets of one site. Safe to use from several threads and processes: versions are created exclusively.

    Raises `SecretError` on construction when the site key cannot be read (`site-key-missing`, `site-key-exposed`,
    `site-key-invalid`).
    """

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.data_dir / "secrets"
        self._keys = {_key_id(key): key for key in _read_keys(settings.secret_key_file)}
        self._current = list(self._keys)[-1]
        self._ciphers: dict[tuple[str, str], AESGCM] = {}

    def put(self, name: str, secret: bytes) -> str:
        """Keep `secret` as the next version of `name` (`sources/shop/capture`); durable on return: its reference."""
        if not _NAME.fullmatch(name) or name.rpartition("/")[2].startswith("."):
            raise SecretError("secret-name-invalid", f"{name!r} cannot name a secret")
        path = self._folder / name
        _make_directories(path.parent)
        version = max(self.versions(name), default=0)
        while True:
            version += 1
            reference = f"{name}@{version}"
            key_id, nonce, sealed = self.seal("secret-store", secret, reference.encode())
            try:
                _write_new(self._folder / reference, _MAGIC + key_id.encode() + nonce + sealed)
            except FileExistsError:
                continue  # somebody else took this version
            return reference

    def get(self, reference: str) -> bytes:
        """The secret that `put` named so.

        Raises `SecretError` (`secret-missing`, `secret-damaged`, `site-key-unknown`).
        """
        if not _REFERENCE.fullmatch(reference):
            raise SecretError("secret-name-invalid", f"{reference!r} does not refer to a secret")
        try:
            data = (self._folder / reference).read_bytes()
        except FileNotFoundError:
            raise SecretError(
                "secret-missing",
                f"there is no secret {reference}",
                "restore the site's secrets folder, or give it anew",
            ) from None
        head = len(_MAGIC)
        if not data.startswith(_MAGIC) or len(data) < head + _KEY_ID + NONCE_BYTES + 16:
            raise SecretError("secret-damaged", f"the file of secret {reference} is damaged")
        key_id = data[head : head + _KEY_ID].decode("ascii", "replace")
        nonce = data[head + _KEY_ID : head + _KEY_ID + NONCE_BYTES]
        return self.unseal("secret-store", key_id, nonce, data[head + _KEY_ID + NONCE_BYTES :], reference.encode())

    def versions(self, name: str) -> list[int]:
        """The versions of `name` that exist, ascending."""
        path = self._folder / name
        if not path.parent.is_dir():
            return []
        found = (_REFERENCE.fullmatch(f"{name.rpartition('/')[0]}/{f}".lstrip("/")) for f in os.listdir(path.parent))
        return sorted(int(m[3]) for m in found if m and m[1] == name)

    def remove(self, reference: str) -> None:
        """Forget one version. What names it cannot be used any more; a missing one is no error."""
        if not _REFERENCE.fullmatch(reference):
            raise SecretError("secret-name-invalid", f"{reference!r} does not refer to a secret")
        path = self._folder / reference
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            _flush_directory(path.parent)

    def seal(self, purpose: str, plaintext: bytes, aad: bytes) -> tuple[str, bytes, bytes]:
        """`(key_id, nonce, ciphertext with tag)`, under the current key for `purpose`, bound to `aad`."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return self._current, nonce, self._cipher(purpose, self._current).encrypt(nonce, plaintext, aad)

    def unseal(self, purpose: str, key_id: str, nonce: bytes, ciphertext: bytes, aad: bytes) -> bytes:
        """What was sealed. Raises `SecretError` (`site-key-unknown`, `secret-damaged`)."""
        try:
            return self._cipher(purpose, key_id).decrypt(nonce, ciphertext, aad)
        except (InvalidTag, ValueError):
            raise SecretError(
                "secret-damaged", f"something sealed for {purpose!r} is damaged or not where it belongs"
            ) from None

    def derived(self, purpose: str, key_id: str = "") -> tuple[str, bytes]:
        """`(key_id, 32 bytes)`: the key for `purpose` under the current site key, or the one named. For what is not sealed but
        hashed. Raises `SecretError` (`site-key-unknown`)."""
        key = self._keys.get(key_id or self._current)
        if key is None:
            raise SecretError(
                "site-key-unknown",
                f"this was made with site key {key_id}, which is not in the site key file",
                "add the earlier key to the site key file, before the current one",
            )
        return key_id or self._current, _derive(key, b"purpose " + purpose.encode(), KEY_BYTES)

    def key_ids(self) -> tuple[str, ...]:
        """The site keys there are, the current one last."""
        return tuple(self._keys)

    def _cipher(self, purpose: str, key_id: str) -> AESGCM:
        cipher = self._ciphers.get((purpose, key_id))
        if cipher is None:
            key = self._keys.get(key_id)
            if key is None:
                raise SecretError(
                    "site-key-unknown",
                    f"this was sealed with site key {key_id}, which is not in the site key file",
                    "add the earlier key to the site key file, before the current one",
                )
            cipher = self._ciphers[(purpose, key_id)] = AESGCM(_derive(key, b"purpose " + purpose.encode(), KEY_BYTES))
        return cipher


def _derive(key: bytes, info: bytes, size: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=size, salt=_SALT, info=info).derive(key)


def _key_id(key: bytes) -> str:
    return _derive(key, b"key id", _KEY_ID // 2).hex()


def _read_keys(path: Path) -> list[bytes]:
    try:
        mode = path.stat().st_mode
        data = path.read_bytes()
    except FileNotFoundError:
        raise SecretError("site-key-missing", f"there is no site key in {path}", "`holdfast up` makes one") from None
    except OSError as error:
        raise SecretError("site-key-unreadable", f"cannot read the site key in {path}: {error.strerror}") from error
    if mode & stat.S_IRWXO:
        raise SecretError("site-key-exposed", f"everybody can read the site key in {path}", f"chmod 600 {path}")
    if not data or len(data) % KEY_BYTES:
        raise SecretError("site-key-invalid", f"{path} holds {len(data)} bytes; a site key has {KEY_BYTES}")
    return [data[i : i + KEY_BYTES] for i in range(0, len(data), KEY_BYTES)]


def _make_directories(folder: Path) -> None:
    """Create `folder` and its parents, mode 0700, each entry flushed into the directory above."""
    if folder.is_dir():
        return
    _make_directories(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    _flush_directory(folder.parent)


def _write_new(path: Path, data: bytes) -> None:
    """Create `path` whole and durable, mode 0600; raises FileExistsError and leaves what is there."""
    scratch = path.parent / f".new-{secrets.token_hex(8)}"
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            with open(fd, "wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            os.link(scratch, path)
        finally:
            scratch.unlink()
    finally:
        _flush_directory(path.parent)


def _flush_directory(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
