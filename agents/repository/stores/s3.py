"""A store in a bucket of an S3 server. boto3 is imported on use: the extra `s3`.

A file is one object, made by one PUT with `If-None-Match: *`, which a server carries out or refuses with 412. Servers that
ignore the condition (older ones do) overwrite, and so are refused by `check`. A PUT whose answer was lost is sent again by the
SDK and then meets its own object: the random `writer` in the object's metadata tells. An appended file is kept in an
unnamed file of this machine until it is closed: nothing of it is durable before, and nothing is left of it by a crash.

The body's MD5 goes along, so that a server keeps what was sent or says so; what comes back is proven by whoever reads (digests,
tags). Plain HTTP is refused for anything but this machine. A certificate that is refused is told at once, with the reason:
trying again does not mend it.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import ipaddress
import os
import secrets
import ssl
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO as IO_
from typing import Any, Final
from urllib.parse import urlsplit

from agents.repository.stores import (
    DENIED,
    EXISTS,
    FULL,
    IO,
    UNFIT,
    UNTRUSTED,
    Buffer,
    Listed,
    StoreError,
    Traits,
    checked_name,
    checked_prefix,
    exists,
    may_delete,
    missing,
    short,
)

_WRITER: Final = "hf-writer"
_SPOOL_BUFFER: Final = 1 << 20
_TRIES: Final = 4  # of a body that breaks off, and of a conflict; the SDK tries requests again itself
_EXPIRED, _NOT_YET, _WRONG_NAMES = 10, 9, (62, 64)  # X509_V_ERR_…: of a name, of an address
_CODES: Final = {
    "AccessDenied": DENIED,
    "InvalidAccessKeyId": DENIED,
    "SignatureDoesNotMatch": DENIED,
    "ObjectLocked": DENIED,
    "QuotaExceeded": FULL,
    "XMinioStorageFull": FULL,
    "InsufficientStorage": FULL,
    "NoSpaceLeftOnDevice": FULL,
    "EntityTooLarge": FULL,
}


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where the objects are. `prefix`: "" or text that ends with "/". `ca`: the certificates (PEM) of the authorities to trust,
    and no others; "" for the system's. The two keys are secrets: from the secret store, never from a command line."""

    endpoint: str
    bucket: str
    access_key: str
    secret_key: str
    region: str = "us-east-1"
    prefix: str = ""
    ca: str = ""

    def __repr__(self) -> str:
        return f"Bucket({self.endpoint}/{self.bucket}/{self.prefix})"


class S3Store:
    """Implements `Store`. `store-unfit` when boto3 is missing or the address is not encrypted, `store-ca-unreadable`."""

    def __init__(self, bucket: Bucket, page: int = 1000, attempts: int = 5) -> None:
        """`page`: how many objects a listing asks for at once; a server may give fewer. `attempts`: at a request that fails in
        a way that may pass, with growing pauses (SDK mode "standard")."""
        _refuse_clear_text(bucket.endpoint)
        if bucket.prefix and not bucket.prefix.endswith("/"):
            raise StoreError(UNFIT, f"the prefix {bucket.prefix!r} does not end with a slash")
        self.bucket: Final = bucket
        self._page = page
        self._sdk = _Sdk()
        self._trusted = _Trusted(bucket.ca)
        try:
            self._client = self._sdk.client(bucket, self._trusted.path, attempts)
        except BaseException:
            self._trusted.close()
            raise

    def create(self, name: str, parts: Iterable[Buffer]) -> None:
        data = b"".join(parts)
        self._put(checked_name(name), data, hashlib.md5(data, usedforsecurity=False).digest())

    def append(self, name: str) -> _Growing:
        checked_name(name)
        try:
            self.size(name)
        except StoreError as error:
            if error.code != "store-missing":
                raise
        else:
            raise exists(name)
        return _Growing(self, name)

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        if size == 0:  # no range is empty
            self.size(name)
            return b""
        for attempt in range(_TRIES):
            try:
                data = self._get(name, offset, size)
            except StoreError as error:
                if error.code == "store-range":  # nothing is there from `offset` on
                    there = self.size(name)
                    if size is None and offset >= there:
                        return b""
                    raise short(name, offset, size or 0, max(0, there - offset)) from None
                if error.code != "store-broken-off":
                    raise
                if attempt == _TRIES - 1:
                    raise StoreError(IO, error.message) from error
            else:
                if size is not None and len(data) < size:
                    raise short(name, offset, size, len(data))
                return data
        raise AssertionError("a loop ended that does not end")

    def _get(self, name: str, offset: int, size: int | None) -> bytes:
        extra = {} if size is None and not offset else {"Range": _range(offset, size)}
        with self._named(name):
            answer = self._client.get_object(Bucket=self.bucket.bucket, Key=self._key(name), **extra)
        try:
            with self._named(name), contextlib.closing(answer["Body"]) as body:
                data: bytes = body.read()
        except StoreError as error:
            raise StoreError("store-broken-off", error.message) from error
        if extra and answer["ResponseMetadata"]["HTTPStatusCode"] == 200:  # it does not know ranges
            data = data[offset : None if size is None else offset + size]
        return data

    def size(self, name: str) -> int:
        key = self._key(name)
        with self._named(name):
            return int(self._client.head_object(Bucket=self.bucket.bucket, Key=key)["ContentLength"])

    def list(self, prefix: str = "") -> Iterator[Listed]:
        start = len(self.bucket.prefix)
        asked = {
            "Bucket": self.bucket.bucket,
            "Prefix": self.bucket.prefix + checked_prefix(prefix),
            "MaxKeys": self._page,
        }
        more: dict[str, Any] = {}
        while True:
            with self._named(prefix):
                page = self._client.list_objects_v2(**asked, **more)
            for found in page.get("Contents", ()):
                if not found["Key"].endswith("/"):  # what consoles make for folders
                    mtime_us = int(found["LastModified"].timestamp() * 1_000_000)
                    yield Listed(found["Key"][start:], found["Size"], mtime_us)
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, name: str) -> None:
        key = self._key(name)
        try:
            with self._named(name):
                self._client.delete_object(Bucket=self.bucket.bucket, Key=key)
        except StoreError as error:
            if error.code != "store-missing":
                raise

    def check(self) -> Traits:
        probe, notes = f"check/{secrets.token_hex(8)}", list[str]()
        try:
            self.create(probe, [b"one ", b"file"])
            try:
                self.create(probe, [b"another"])
            except StoreError as error:
                if error.code != EXISTS:
                    raise
            else:
                raise self._unfit("it ignores If-None-Match: an object can be made over one that is there")
            if self.read(probe) != b"one file" or self.read(probe, 4, 4) != b"file":
                raise self._unfit("what was written is not what is read")
            if [f.name for f in self.list(probe)] != [probe]:
                raise self._unfit("a new object is not listed at once")
            deletable = may_delete(self, probe, notes)
            if deletable and list(self.list(probe)):
                raise self._unfit("a deleted object is still listed")
        finally:
            with contextlib.suppress(StoreError):
                self.delete(probe)
        where = f"{self.bucket.endpoint}/{self.bucket.bucket}/{self.bucket.prefix}"
        mode, days = self._locked()
        versioned = self._versioned()
        if mode == "GOVERNANCE":
            notes.append(f"object lock of {days} days in governance mode: who may bypass it can delete")
        if versioned:
            notes.append("the bucket keeps versions: what is collected takes room until a lifecycle rule removes them")
        return Traits("s3", where, "s3", True, deletable, days if mode == "COMPLIANCE" else 0, versioned, tuple(notes))

    def free_bytes(self) -> int | None:
        return None

    def sweep(self, older_than_s: float) -> int:
        return 0  # a crash leaves nothing

    def close(self) -> None:
        self._client.close()
        self._trusted.close()

    def _put(self, name: str, data: bytes | IO_[bytes], md5: bytes) -> None:
        """`data`: a file is read from where it stands, again for each try (the SDK rewinds it)."""
        key, writer = self._key(name), secrets.token_hex(16)
        for attempt in range(_TRIES):
            if not isinstance(data, bytes):
                data.seek(0)
            try:
                with self._named(name):
                    self._client.put_object(
                        Bucket=self.bucket.bucket,
                        Key=key,
                        Body=data,
                        IfNoneMatch="*",
                        ContentMD5=base64.b64encode(md5).decode(),
                        Metadata={_WRITER: writer},
                    )
                return
            except StoreError as error:
                if error.code == EXISTS and self._writer_of(name) == writer:
                    return  # ours: the answer to it was lost
                if error.code != "store-conflict":
                    raise
                if attempt == _TRIES - 1:
                    raise StoreError(IO, f"{name}: others write it at the same time") from error

    def _writer_of(self, name: str) -> str:
        with self._named(name):
            found = self._client.head_object(Bucket=self.bucket.bucket, Key=self._key(name))
        return str(found.get("Metadata", {}).get(_WRITER, ""))

    def _locked(self) -> tuple[str, int]:
        """Mode and days for which every new object is locked; in mode COMPLIANCE against everybody, root included."""
        with contextlib.suppress(StoreError, KeyError, TypeError), self._named("the bucket"):
            found = self._client.get_object_lock_configuration(Bucket=self.bucket.bucket)
            rule = found["ObjectLockConfiguration"]["Rule"]["DefaultRetention"]
            return str(rule.get("Mode", "")), int(rule.get("Days") or 365 * rule.get("Years", 0))
        return "", 0

    def _versioned(self) -> bool:
        with contextlib.suppress(StoreError), self._named("the bucket"):
            return bool(self._client.get_bucket_versioning(Bucket=self.bucket.bucket).get("Status") == "Enabled")
        return False

    def _key(self, name: str) -> str:
        return self.bucket.prefix + checked_name(name)

    def _unfit(self, why: str) -> StoreError:
        return StoreError(
            UNFIT, f"{self.bucket.endpoint} cannot hold a repository: {why}", "use a newer or another S3 server"
        )

    @contextlib.contextmanager
    def _named(self, name: str) -> Iterator[None]:
        """What server and SDK say, in our words."""
        try:
            yield
        except self._sdk.refused as error:
            answer: dict[str, Any] = getattr(error, "response", {})
            code = str(answer.get("Error", {}).get("Code", ""))
            status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            if code == "NoSuchBucket":
                raise StoreError(
                    IO,
                    f"there is no bucket {self.bucket.bucket} at {self.bucket.endpoint}",
                    "make it there, or name another",
                ) from None
            if code in ("NoSuchKey", "404") or status == 404:
                raise missing(name) from None
            if status == 412:
                raise exists(name) from None
            if status == 409 and code in ("ConditionalRequestConflict", "OperationAborted"):
                raise StoreError("store-conflict", name) from None
            if status == 416:
                raise StoreError("store-range", name) from None
            kind = _CODES.get(code) or {401: DENIED, 403: DENIED, 507: FULL}.get(status, IO)
            denied = "the key, its secret or its rights are wrong; `repository set NAME --access-key ID` changes them"
            hint = denied if kind == DENIED else "the log of the server says why"
            raise StoreError(kind, f"{self.bucket.endpoint} refused {name}: {code or status}", hint) from None
        except self._sdk.no_tls as error:
            raise _untrusted(self.bucket, error) from error
        except self._sdk.failed as error:
            hint = "see that the server runs and is reached from the agent's machine; then ask again"
            raise StoreError(IO, f"{self.bucket.endpoint}, {name}: {error}", hint) from error


class _Growing:
    """An `Appender` that keeps what it is given, in an unnamed file of this machine, until it is closed: several packs are open
    at once, and memory is for other things."""

    def __init__(self, store: S3Store, name: str) -> None:
        self._store, self._name = store, name
        self._size = 0
        self._digest = hashlib.md5(usedforsecurity=False)
        with _spooling():
            # Buffered, for frames are small; unnamed, so a death leaves nothing.
            self._file: IO_[bytes] | None = tempfile.TemporaryFile(buffering=_SPOOL_BUFFER)  # noqa: SIM115

    def write(self, *parts: Buffer) -> int:
        if self._file is None:
            raise ValueError("written to after close")
        at = self._size
        with _spooling():
            for part in parts:
                self._file.write(part)
                self._digest.update(part)
                self._size += memoryview(part).nbytes
        return at

    def sync(self) -> None:
        """An object is made at once or not at all."""

    def close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with file:
                with _spooling():
                    file.flush()
                    file.seek(0)
                self._store._put(self._name, file, self._digest.digest())

    def abandon(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


@contextlib.contextmanager
def _spooling() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        code = FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else IO
        raise StoreError(
            code,
            f"{tempfile.gettempdir()}, where what goes to a bucket is gathered: {error.strerror or error}",
            "give the agent's temporary folder (TMPDIR) a gigabyte of room",
        ) from error


class _Trusted:
    """Authorities' certificates as the file that the SDK wants, which opens it for every connection. It is in memory, and
    nothing is left of it by a crash."""

    def __init__(self, ca: str) -> None:
        self._fd = -1
        if not ca:
            return
        try:
            ssl.create_default_context(cadata=ca)
        except (ssl.SSLError, ValueError, TypeError) as error:  # the last: not ASCII
            raise StoreError(
                "store-ca-unreadable",
                f"what was given as the authority's certificate is none: {error}",
                "give a file of certificates in PEM: `-----BEGIN CERTIFICATE-----` …",
            ) from error
        self._fd = os.memfd_create("authorities", os.MFD_CLOEXEC)
        with open(self._fd, "wb", closefd=False) as file:
            file.write(ca.encode("ascii"))

    @property
    def path(self) -> str:
        return f"/proc/self/fd/{self._fd}" if self._fd >= 0 else ""

    def close(self) -> None:
        """May be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _untrusted(bucket: Bucket, error: BaseException) -> StoreError:
    """Why no TLS came about, from within what three libraries made of it."""
    found: BaseException = error
    while (inner := found.__cause__ or found.__context__) is not None:
        found = inner
    code, why = 0, str(found)
    if isinstance(found, ssl.SSLCertVerificationError):
        code, why = found.verify_code, found.verify_message
    host = urlsplit(bucket.endpoint).hostname or ""
    whose = f"the certificate of {bucket.endpoint}"
    if code in (_EXPIRED, _NOT_YET):
        return StoreError(
            UNTRUSTED,
            f"{whose} {'has expired' if code == _EXPIRED else 'is not valid yet'}, by this machine's clock",
            "have the server's certificate renewed; and see whether this machine's clock is right",
        )
    if code in _WRONG_NAMES or (not code and isinstance(found, ValueError)):  # urllib3 compares names itself
        return StoreError(
            UNTRUSTED,
            f"{whose} is for another name: {why}",
            f"say --endpoint with the name that it is for, or have it made for {host} as well",
        )
    if not code:
        return StoreError(
            IO, f"{bucket.endpoint} does not answer with TLS: {why}", "see whether that is the right port, and https"
        )
    known = "the authority that was given" if bucket.ca else "an authority that the agent's machine trusts"
    return StoreError(
        UNTRUSTED,
        f"{whose} is not vouched for by {known}: {why}",
        "give the certificate of the authority that signed it, with those above it: `--tls-ca FILE` of"
        " `holdfast repository add`, `adopt` and `set`",
    )


class _Sdk:
    """boto3 and what it raises, imported when a bucket is opened."""

    _making = threading.Lock()  # making a client is not safe on several threads; using it is

    def __init__(self) -> None:
        try:
            import boto3
            import botocore.config
            import botocore.exceptions
            import urllib3.exceptions
        except ImportError as error:
            raise StoreError(
                UNFIT, f"buckets need boto3, which is not installed ({error})", "pip install 'holdfast[s3]'"
            ) from None
        self._boto3, self._config = boto3, botocore.config.Config
        self.refused: type[Exception] = botocore.exceptions.ClientError
        self.no_tls: type[Exception] = botocore.exceptions.SSLError
        self.failed: tuple[type[Exception], ...] = (
            botocore.exceptions.BotoCoreError,
            botocore.exceptions.HTTPClientError,
            urllib3.exceptions.HTTPError,
            OSError,
        )

    def client(self, bucket: Bucket, ca: str, attempts: int) -> Any:
        """`ca`: a file, "" for the system's."""
        with self._making:
            client = self._boto3.session.Session().client(
                "s3",
                endpoint_url=bucket.endpoint,
                region_name=bucket.region,
                aws_access_key_id=bucket.access_key,
                aws_secret_access_key=bucket.secret_key,
                verify=ca or None,
                config=self._config(
                    signature_version="s3v4",
                    s3={"addressing_style": "path"},
                    retries={"mode": "standard", "total_max_attempts": attempts},
                    connect_timeout=15,
                    read_timeout=120,
                    max_pool_connections=16,
                    # Not every server takes the SDK's own trailing checksums; MD5 every one does.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )
        client.meta.events.register_first("needs-retry.s3", self._refuse)
        return client

    def _refuse(self, caught_exception: Exception | None = None, **_: object) -> None:
        """Asked before the SDK decides whether to try again."""
        if isinstance(caught_exception, self.no_tls):
            raise caught_exception


def _range(offset: int, size: int | None) -> str:
    return f"bytes={offset}-" if size is None else f"bytes={offset}-{offset + size - 1}"


def _refuse_clear_text(endpoint: str) -> None:
    parts = urlsplit(endpoint)
    if parts.scheme == "https":
        return
    host = parts.hostname or ""
    with contextlib.suppress(ValueError):
        if parts.scheme == "http" and (host == "localhost" or ipaddress.ip_address(host).is_loopback):
            return
    raise StoreError(UNFIT, f"{endpoint} is not encrypted", "use https; plain http is for this machine alone")
