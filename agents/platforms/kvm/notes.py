"""What Holdfast notes on a domain, so that whoever comes after a death knows what to undo (`description`, elements of the
metadata), and how it names what it makes: `holdfast-<job>-<run>`, a run being eight hex digits; behind a dot may stand more."""

from __future__ import annotations

import re
import secrets
import zlib
from collections.abc import Mapping
from typing import Any, Final
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from agents.platforms.kvm.description import namespace, restoring_title
from agents.platforms.kvm.library import libvirt

_NAME: Final = re.compile(r"holdfast-([A-Za-z0-9._-]+)-([0-9a-f]{8})")


def new_name(job: str) -> str:
    return f"holdfast-{job}-{secrets.token_hex(4)}"


def name_of(job: str, what: str) -> str:
    """The same for the same."""
    return f"holdfast-{job}-{zlib.crc32(what.encode()):08x}"


def job_of(name: str) -> str:
    """Empty for what is not ours."""
    found = _NAME.fullmatch(name)
    return found[1] if found else ""


def found_in(text: str) -> str:
    """The first name of ours in a text; empty: none."""
    found = _NAME.search(text)
    return found[0] if found else ""


def socket_of(name: str, native: str) -> str:
    """The name of the socket of a machine's snapshot: short, since a socket's path is 107 bytes at most."""
    return f"hf-{name[-8:]}-{native[:8]}.sock"


def read(domain: Any, note: str, *, live: bool) -> Element | None:
    library = libvirt()
    where = library.VIR_DOMAIN_AFFECT_LIVE if live else library.VIR_DOMAIN_AFFECT_CONFIG
    try:
        text = domain.metadata(library.VIR_DOMAIN_METADATA_ELEMENT, namespace(note), where)
    except library.libvirtError as error:
        if error.get_error_code() in (library.VIR_ERR_NO_DOMAIN_METADATA, library.VIR_ERR_OPERATION_INVALID):
            return None
        if error.get_error_code() == library.VIR_ERR_INVALID_ARG:  # a domain that has no persistent definition
            return None
        raise
    return ElementTree.fromstring(text)


def write(domain: Any, note: str, attributes: Mapping[str, str] | None, *, live: bool) -> None:
    """None: takes it away. Nothing happens to a domain that is not running (`live`), or not persistent."""
    library = libvirt()
    where = library.VIR_DOMAIN_AFFECT_LIVE if live else library.VIR_DOMAIN_AFFECT_CONFIG
    xml = None
    if attributes is not None:
        xml = ElementTree.tostring(Element(note, dict(attributes)), encoding="unicode")
    elif read(domain, note, live=live) is None:
        return
    domain.setMetadata(library.VIR_DOMAIN_METADATA_ELEMENT, xml, f"holdfast{note}", namespace(note), where)


def title(domain: Any) -> str:
    """The one that people gave it, or see."""
    library = libvirt()
    try:
        return str(domain.metadata(library.VIR_DOMAIN_METADATA_TITLE, None, library.VIR_DOMAIN_AFFECT_CONFIG))
    except library.libvirtError as error:
        if error.get_error_code() != library.VIR_ERR_NO_DOMAIN_METADATA:
            raise
        return ""


def begin_restore(domain: Any, job: str) -> Element:
    """The machine is `restoring` by `job`, durably; the note."""
    library = libvirt()
    note = read(domain, "restore", live=False)
    if note is None:
        note = Element("restore", {"job": job, "made": "no", "blank": "no", "title": title(domain)})
    elif note.get("job") == job:
        return note
    note.set("job", job)
    shown = restoring_title(note.get("title", ""))
    where = library.VIR_DOMAIN_AFFECT_CONFIG
    domain.setMetadata(library.VIR_DOMAIN_METADATA_TITLE, shown, None, None, where)
    write(domain, "restore", note.attrib, live=False)
    return note


def end_restore(domain: Any) -> None:
    library = libvirt()
    note = read(domain, "restore", live=False)
    if note is None:
        return
    # The note goes last: a death in between does this again. On a machine that runs, people see the live title.
    where = library.VIR_DOMAIN_AFFECT_CONFIG
    if domain.isActive():
        where |= library.VIR_DOMAIN_AFFECT_LIVE
    domain.setMetadata(library.VIR_DOMAIN_METADATA_TITLE, note.get("title") or None, None, None, where)
    write(domain, "restore", None, live=False)
    write(domain, "restore", None, live=True) if domain.isActive() else None
