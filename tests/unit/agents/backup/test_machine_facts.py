"""What a point says of its machine comes back as it was, and nothing else is taken for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from blake3 import blake3

from agents.backup.machine_facts import MACHINE, attach, configuration_of, machine_of, marks_of
from agents.machines import DiskSeen, MachineSeen, NicSeen
from agents.repository.errors import RepositoryError
from agents.repository.points import JournalPlace, Point, RecordKey, decode, encode


class Chunks:
    """A repository in memory."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, bytes], bytes] = {}

    def put(self, kind: int, data: bytes) -> bytes:
        name: bytes = blake3(data).digest()
        self.kept[kind, name] = data
        return name

    def get(self, name: bytes, kind: int) -> bytes:
        return self.kept[kind, name]

    def get_many(self, names: Sequence[bytes], kind: int) -> Iterator[tuple[bytes, bytes]]:
        return ((name, self.get(name, kind)) for name in names)


SEEN = MachineSeen(
    native="7e0f…",
    name="Shop ä",
    power="running",
    cpus=2,
    memory=1 << 30,
    firmware="uefi",
    folder="prod",
    tags=("gold", "eu"),
    disks=(
        DiskSeen("vda", 10 << 30, "qcow2", "virtio", "pool", "/pool/a.qcow2", tracked=True),
        DiskSeen("vdb", 1 << 20, "raw", left_out="it is shared"),
    ),
    nics=(NicSeen("52:54:00:00:00:01", "default", "virtio"),),
    description=b"<domain/>",
    companions={"nvram": bytes(range(256)) * 8192, "empty": b""},
)


def point(chunks: Chunks) -> Point:
    return Point(
        point="0198c0de-0000-7000-8000-000000000001",
        asset="shop",
        asset_name="Shop",
        kind="disks",
        created_us=1,
        session="0198c0de-0000-7000-8000-000000000002",
        epoch=1,
        node="node",
        journal=JournalPlace(1, "event"),
        configuration=configuration_of(SEEN),
        attached=attach(chunks, SEEN.companions),
        facts={"platform": "kvm", "host": "h1", "native": SEEN.native, "taken_us": "5", "mark/vda": "job-vda"},
    )


def test_a_machine_comes_back_from_its_points_record() -> None:
    chunks = Chunks()
    key = RecordKey("repository", bytes(32), True)
    kept = machine_of(chunks, decode(encode(point(chunks), key), key))
    assert kept.seen == SEEN
    assert (kept.platform, kept.host, kept.taken_us, kept.consistency) == ("kvm", "h1", 5, "crash")
    assert len(chunks.kept) == 1  # both halves of the companion are the same MiB
    assert marks_of(point(chunks).facts) == {"vda": "job-vda"}


@pytest.mark.parametrize("said", [b"", b"[]", b"{}", b'{"format":2}', b'{"format":1,"disks":[],"nics":[],"tags":[]}'])
def test_a_description_that_makes_no_sense_is_damage(said: bytes) -> None:
    chunks = Chunks()
    broken = replace(point(chunks), configuration={MACHINE: said})
    with pytest.raises(RepositoryError) as refused:
        machine_of(chunks, broken)
    assert refused.value.code == "point-damaged"


def test_an_image_is_no_machine() -> None:
    chunks = Chunks()
    with pytest.raises(RepositoryError) as refused:
        machine_of(chunks, replace(point(chunks), configuration={}))
    assert refused.value.code == "point-unfit"
