"""Files on a host, by libvirt's storage pools: so they are made where the host is, by whom its machines run as.

A folder that is no pool is made one for as long as we need it: transient, named `holdfast-…`; nothing of the folder changes.
Of a host one thread at a time does that, or it would lose the pool that another one is about to take away.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final
from xml.sax.saxutils import escape

from agents.errors import AgentError
from agents.platforms.kvm.connection import Connection
from agents.platforms.kvm.library import libvirt

_LOCKS: Final[defaultdict[str, threading.Lock]] = defaultdict(threading.Lock)
_CHUNK: Final = 256 << 10
_LARGEST: Final = 64 << 20  # of what is kept in memory


@contextlib.contextmanager
def pool_at(connection: Connection, folder: str) -> Iterator[Any]:
    """The pool of `folder`, for as long as it is needed."""
    library = libvirt()
    conn = connection.get()
    with _LOCKS[connection.settings.url], connection.errors():
        try:
            found = conn.storagePoolLookupByTargetPath(folder)
            ours = False
        except library.libvirtError as error:
            if error.get_error_code() != library.VIR_ERR_NO_STORAGE_POOL:
                raise
            name = f"holdfast-{secrets.token_hex(6)}"
            xml = f"<pool type='dir'><name>{name}</name><target><path>{escape(folder)}</path></target></pool>"
            found, ours = conn.storagePoolCreateXML(xml, 0), True
        if not ours:
            found.refresh(0)
        try:
            yield found
        finally:
            if ours:
                found.destroy()


def folder_of(connection: Connection, storage: str) -> str:
    """Of a pool by name, or a folder by its path. Raises `AgentError` (`storage-unknown`)."""
    library = libvirt()
    if storage.startswith("/"):
        return storage.rstrip("/") or "/"
    try:
        xml = connection.get().storagePoolLookupByName(storage).XMLDesc(0)
    except library.libvirtError as error:
        raise AgentError(
            "storage-unknown", f"the host has no storage {storage}: {error}", "name a pool of it, or a folder"
        ) from error
    start, end = xml.find("<path>"), xml.find("</path>")
    if "type='dir'" not in xml.split(">", 1)[0] and "type='fs'" not in xml.split(">", 1)[0]:
        raise AgentError("storage-unsupported", f"{storage} is no pool of files", "name a pool of files, or a folder")
    return str(xml[start + len("<path>") : end])


def make(connection: Connection, path: str, size: int, format_: str) -> None:
    """An image that reads as zeros; nothing when it is there (an earlier run of the same job made it)."""
    folder, name = os.path.split(path)
    compat = "<compat>1.1</compat>" if format_ == "qcow2" else ""
    xml = (
        f"<volume><name>{escape(name)}</name><capacity unit='bytes'>{size}</capacity><allocation>0</allocation>"
        f"<target><format type='{escape(format_)}'/>{compat}</target></volume>"
    )
    with pool_at(connection, folder) as pool:
        pool.createXML(xml, 0)


def delete(connection: Connection, path: str) -> None:
    """Nothing when it is gone."""
    folder, name = os.path.split(path)
    library = libvirt()
    with pool_at(connection, folder) as pool:
        try:
            pool.storageVolLookupByName(name).delete(0)
        except library.libvirtError as error:
            if error.get_error_code() != library.VIR_ERR_NO_STORAGE_VOL:
                raise


def exists(connection: Connection, path: str) -> bool:
    folder, name = os.path.split(path)
    library = libvirt()
    with pool_at(connection, folder) as pool:
        try:
            pool.storageVolLookupByName(name)
        except library.libvirtError as error:
            if error.get_error_code() != library.VIR_ERR_NO_STORAGE_VOL:
                raise
            return False
    return True


def content_of(connection: Connection, path: str) -> bytes | None:
    """Of a small file; None when it is not there."""
    folder, name = os.path.split(path)
    library = libvirt()
    with pool_at(connection, folder) as pool:
        try:
            volume = pool.storageVolLookupByName(name)
        except library.libvirtError as error:
            if error.get_error_code() == library.VIR_ERR_NO_STORAGE_VOL:
                return None
            raise
        stream = connection.get().newStream(0)
        volume.download(stream, 0, 0, 0)
        content = bytearray()
        while len(content) <= _LARGEST and (part := stream.recv(_CHUNK)):
            content += part
        stream.finish()
        return bytes(content)


def put(connection: Connection, path: str, content: bytes) -> None:
    """A file of exactly `content`."""
    make(connection, path, len(content), "raw")
    folder, name = os.path.split(path)
    with pool_at(connection, folder) as pool:
        stream = connection.get().newStream(0)
        pool.storageVolLookupByName(name).upload(stream, 0, len(content), 0)
        at = 0
        while at < len(content):
            at += stream.send(content[at : at + _CHUNK])
        stream.finish()
