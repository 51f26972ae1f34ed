"""Makes the golden files of trees, delta runs, file trees, point records and marks: `python -P -m tests.golden.repository.trees`.

They are what this release writes. A release that writes something else has another version of the format, and reads these still:
the test beside them (`tests/unit/agents/repository/test_golden_trees.py`) decodes each, and compares it with what is made here.
"""

from __future__ import annotations

from pathlib import Path

from agents.repository import delta, directories, marks, nodes, points
from agents.repository.content import DIRECTORY
from agents.repository.extents import CHUNK, FREE, LOST, SWAP, ZERO, Run, RunBuilder, omitted
from agents.repository.points import Captured, Disk, JournalPlace, Point, RecordKey, Tree
from tests.stand_ins.chunk_store import ChunkStore

HERE = Path(__file__).parent
REPOSITORY = "01900000-0000-7000-8000-000000000001"
KEYS = {
    "sealed": RecordKey(REPOSITORY, bytes(range(32)), True),
    "clear": RecordKey(REPOSITORY, bytes(range(32)), False),
}
MARK = marks.Mark(
    "01900000-0000-7000-8000-0000000000aa", "hold", "ann", 1_764_000_000_000_000, "case 7", "Überprüfung", 5
)


def name(i: int) -> bytes:
    return bytes([i]) * 32


def slots() -> nodes.Slots:
    """A node with one of each kind of entry."""
    tags, names = bytearray(64), bytearray(64 * 32)
    for slot, tag in ((0, CHUNK), (1, CHUNK), (5, omitted(FREE)), (6, LOST), (63, CHUNK)):
        tags[slot] = tag
        if tag == CHUNK:
            names[slot * 32 : (slot + 1) * 32] = name(slot + 1)
    return nodes.Slots(tags, names)


def run() -> Run:
    builder = RunBuilder()
    builder.add(3, 2, CHUNK, name(1) + name(2))
    builder.add(5, 1, ZERO)
    builder.add(100, 1 << 33, omitted(SWAP))
    builder.add(1 << 40, 1, LOST)
    builder.add(1 << 41, 1, CHUNK, name(3))
    return builder.take()


def point() -> Point:
    return Point(
        point=MARK.point,
        asset="web-1",
        asset_name="Web server, 1st",
        kind="disks",
        created_us=1_764_000_000_123_456,
        session="01900000-0000-7000-8000-0000000000bb",
        epoch=17,
        node="node_1",
        journal=JournalPlace(17, "01900000-0000-7000-8000-0000000000cc"),
        continues="01900000-0000-7000-8000-0000000000dd",
        previous_record=name(9),
        disks=(Disk("d0", "sda", 1 << 40, 1 << 18, name(4), (name(5), name(6)), {"data": 5}, {"bus": "scsi"}),),
        trees=(Tree("etc", name(7), 12345, 17, (name(8),), {"files": 17}),),
        configuration={"vm.xml": b"<domain/>"},
        attached={"large": (name(10),)},
        facts={"os": "Débian 12"},
        captured=(Captured("shop", "01900000-0000-7000-8000-0000000000ee", 4711, name(11)),),
    )


def entries() -> list[directories.Entry]:
    pieces = [directories.Piece(CHUNK, 70_000, name(1)), directories.Piece(ZERO, 5), directories.Piece(LOST, 7)]
    attributes = directories.pack_attributes({b"user.b": b"", b"user.a": b"\0\xff"})
    return [
        directories.Entry(
            b"\xff",
            directories.FILE,
            0o644,
            1,
            2,
            -3,
            4,
            5,
            70_012,
            6,
            where=b"".join(map(directories.pack_piece, pieces)),
            form=directories.PIECES,
        ),
        directories.Entry(
            b"\xff\xff",
            directories.FOLDER,
            0o1777,
            owner=b"root",
            group=b"wheel",
            form=directories.CHILDREN,
            where=name(2),
        ),
        directories.Entry(
            b"\xff\xff\xff", directories.SYMLINK, 0o777, form=directories.TARGET, where=b"../x", attributes=attributes
        ),
    ]


def content() -> tuple[ChunkStore, int, bytes, int]:
    """A content of more pieces than stand in an entry: store, form, where, size."""
    store = ChunkStore()
    writer = directories.ContentWriter(store)
    for i in range(6):
        writer.chunk(name(i), 100_000 + i)
        writer.hole(i)
    return store, *writer.finish(), writer.size


def files() -> dict[str, bytes]:
    """Every golden file with what is in it."""
    store = ChunkStore()
    directory = directories.DirectoryWriter(store)
    for entry in entries():
        directory.add(entry)
    listed, _, where, _ = content()
    full = nodes.Slots(bytearray(b"\x01" * 64), bytearray(b"".join(name(i) for i in range(64))))
    return {
        "node.bin": nodes.encode(2, *slots()),
        "node-full.bin": nodes.encode(0, *full),
        "delta.bin": delta.encode(run()),
        "directory.bin": store.get(directory.finish(), DIRECTORY),
        "content.bin": listed.get(where, DIRECTORY),
        "sealed.point": points.encode(point(), KEYS["sealed"], nonce=bytes(12)),
        "clear.point": points.encode(point(), KEYS["clear"], nonce=bytes(12)),
        "mark.json": marks.encode(MARK, 3, KEYS["sealed"]),
    }


if __name__ == "__main__":
    for file, data in files().items():
        (HERE / file).write_bytes(data)
        print(file, len(data))
