"""Checkpoints: what a disk can be asked "since". A mark is the name of a checkpoint of ours.

libvirt keeps a bitmap a checkpoint and disk; a bitmap counts from its checkpoint to the next one, and a deleted one goes into its
parent's. So whatever is deleted here, what changed since the marks that stay is still known, except where a bitmap is
broken: then it was not known before either.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any
from xml.etree import ElementTree

from agents.platforms.kvm import notes
from agents.platforms.kvm.library import libvirt

_DISK = re.compile(r"for disk '([^']+)'|backup of disk '([^']+)'")


def of(domain: Any) -> Iterator[tuple[str, Any]]:
    """Name and checkpoint of all that are ours."""
    for checkpoint in domain.listAllCheckpoints(0):
        name = checkpoint.getName()
        if notes.job_of(name):
            yield name, checkpoint


def disks_of(checkpoint: Any) -> set[str]:
    root = ElementTree.fromstring(checkpoint.getXMLDesc(libvirt().VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN))
    return {element.get("name", "") for element in root.iterfind("disks/disk") if element.get("checkpoint") == "bitmap"}


def delete(domain: Any, name: str) -> None:
    """Nothing when it is gone, and nothing of a machine that is off: libvirt merges bitmaps only through a running QEMU, and to
    forget the checkpoint alone would forget what its bitmap knows. The mark then stays until the machine runs."""
    library = libvirt()
    if not domain.isActive():
        return
    try:
        domain.checkpointLookupByName(name, 0).delete(0)
    except library.libvirtError as error:
        code = error.get_error_code()
        if code == library.VIR_ERR_NO_DOMAIN_CHECKPOINT:
            return
        # Its bitmap is not in the image: QEMU was killed before it was written for the first time, and all others are broken.
        if code != library.VIR_ERR_CHECKPOINT_INCONSISTENT and "not found in backing chain" not in str(error):
            raise
        domain.checkpointLookupByName(name, 0).delete(library.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)


def forget_all(domain: Any) -> list[str]:
    """All of ours, of a machine that is off and will be overwritten: their bitmaps are what is left of them in its images."""
    flag = libvirt().VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY
    names = []
    for name, checkpoint in list(of(domain)):
        checkpoint.delete(flag)
        names.append(name)
    return names


def keep_only(domain: Any, newest: str, disks: Collection[str], needed: Collection[str]) -> None:
    """Of our marks, `newest` and `needed` stay, and those that also speak of disks beside `disks`. Only of a machine that
    runs, or the bitmaps would be left."""
    if not domain.isActive():
        return
    for name, checkpoint in list(of(domain)):
        if name != newest and name not in needed and disks_of(checkpoint) <= set(disks):
            delete(domain, name)


def disk_in(message: str) -> str:
    """Which disk an error of libvirt's about a checkpoint names; empty: none."""
    found = _DISK.search(message)
    return (found[1] or found[2]) if found else ""
