"""Verifying finds every damage, mends what stands twice, says what is lost, and a later backup heals it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agents.repository import collecting, collection, collection_files, marks, packs, points, tree, verify
from agents.repository import repository as repositories
from agents.repository.contents import RepositoryContents
from agents.repository.errors import RepositoryError
from agents.repository.extents import CHUNK
from agents.repository.format import DATA, NAME_BYTES, PACK_ID_BYTES
from agents.repository.ingest import Ingest
from agents.repository.journal import MemoryJournal
from agents.repository.pack_format import FRAME_BYTES, Entry, pack_file
from agents.repository.sessions import Sessions
from agents.repository.stores import StoreError
from agents.repository.verify import Mode, Report
from tests.stand_ins.faulty_store import Fault, FaultyStore
from tests.unit.agents.repository.test_contents import BLOCK, Image, Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "cache")
    for changed in (600, 40, 40):
        made.day(changed)
    yield made
    made.contents.close()
    made.repository.close()


def look(site: Site, mode: Mode = "full") -> Report:
    standing = site.sessions.ledger().standing()
    session = site.sessions.open("verify", by="test", pins=list(standing))
    site.repository.refresh()
    report = verify.verify(
        site.contents, session, {name: state.sealed.record for name, state in standing.items()}, mode=mode
    )
    verify.conclude(site.contents, session, report)
    session.close()
    return report


def entries(site: Site, data: bool) -> list[tuple[str, Entry]]:
    """Needed frames with the files they are in."""
    needed = site.needed(set(site.kept))
    found = [(p.name, e) for p in site.contents.packs() for e in packs.contents_of(site.store, p.name).entries]
    return [(file, e) for file, e in found if (e.place.kind == DATA) == data and e.name in needed]


def flip(site: Site, file: str, entry: Entry) -> None:
    body = bytearray(site.store.read(file))
    body[entry.place.offset + FRAME_BYTES + entry.place.stored // 2] ^= 1
    site.store.put(file, bytes(body))


@pytest.mark.parametrize("mode", ["metadata", "sampled", "full"])
def test_a_whole_repository_is_found_whole(site: Site, mode: Mode) -> None:
    report = look(site, mode)
    assert (report.problems, report.points) == ([], {})
    assert sorted(report.whole) == sorted(site.kept)
    data = len({e.name for _, e in entries(site, data=True)}) * BLOCK
    read = report.figures.get("data_read", 0)
    assert {"metadata": read == 0, "full": read == data, "sampled": 0 < read < data / 4}[mode]


def test_metadata_whose_one_copy_is_damaged_stands_twice_again(site: Site) -> None:
    file, entry = entries(site, data=False)[5]
    flip(site, file, entry)

    report = look(site, "metadata")

    assert (report.figures["damaged"], report.figures["repaired"], report.figures["lost"]) == (1, 1, 0)
    assert report.points == {}
    again = look(site, "metadata")
    assert again.figures["repaired"] == 0
    site.store.delete(file)  # the pack with the damaged copy, and what else was in it, goes altogether
    final = look(site, "metadata")
    assert final.points == {}
    site.everything_restores()


def test_a_record_whose_copy_is_damaged_or_gone_is_mended(site: Site) -> None:
    first, second, _ = site.kept
    name = points.copies_of(site.store, points.FIRST)[first][0]
    site.store.put(name, b"HFPOINT1 and nothing more")
    site.store.delete(points.copies_of(site.store, points.FIRST)[second][0])

    report = look(site, "metadata")

    assert report.figures["records_mended"] == 2
    assert report.points == {}
    site.everything_restores()


def test_a_record_that_was_replaced_by_another_is_told(site: Site) -> None:
    point = site.repository.point(site.newest)
    session = site.sessions.open("verify", by="test")
    wanted = {point.point: b"x" * 32}
    report = verify.verify(site.contents, session, wanted, mode="metadata")
    assert [p.code for p in report.problems] == ["point-changed"]
    assert list(report.points) == [point.point]


def test_lost_data_is_said_by_point_and_block_and_the_next_backup_heals_it(site: Site) -> None:
    first = next(iter(site.kept))
    disk = site.repository.point(first).disks[0]
    block, name = next(
        (block, name)
        for run in tree.iterate(site.repository, disk.root)
        for block, tag, name in run.entries()
        if tag == CHUNK and bytes(site.image[block * BLOCK : (block + 1) * BLOCK]) == site.repository.get(name, DATA)
    )
    file, entry = next((f, e) for f, e in entries(site, data=True) if e.name == name)
    flip(site, file, entry)

    report = look(site)

    assert (report.figures["damaged"], report.figures["lost"]) == (1, 1)
    assert set(report.points) == set(site.kept)
    assert all(text == f"disk sda: 1 blocks are lost ({block})" for text in report.points.values())
    ledger = site.sessions.ledger()
    assert all("damaged" in ledger.points[name].marks for name in site.kept)
    with pytest.raises(RepositoryError):
        site.repository.get(name, DATA)

    session = site.sessions.open("backup", by="test", pins=[site.newest])
    before = site.repository.point(site.newest).disks[0]
    with Ingest(site.repository, session, absent=collection.absent_for(session), slug="main") as ingest:
        fed = ingest.disk("sda", size=len(site.image), continues=before)
        fed.feed(Image(site.image), [(0, fed.blocks, CHUNK)], compare=True)
        place = points.JournalPlace(0, "")
        draft = points.Point("", "vm", "VM", "disks", 1, "", 0, "", place, site.newest, disks=(fed.finish(),))
        healed = ingest.seal(draft).point.point
    session.close()
    site.kept[healed] = bytes(site.image)

    assert look(site).points == {}
    key = site.repository.record_key
    assert not any(marks.standing(*marks.of_point(site.store, name, key)).damaged for name in site.kept)
    site.everything_restores()


def test_an_index_run_that_is_damaged_is_removed_and_nothing_is_missing(site: Site) -> None:
    run = next(f.name for f in site.store.list("index/"))
    site.store.put(run, site.store.read(run)[:-1] + b"?")
    report = look(site, "metadata")
    assert report.figures["runs_removed"] == 1
    assert report.points == {}
    assert run not in {f.name for f in site.store.list("index/")}
    assert look(site, "metadata").problems == []


def test_a_pack_that_is_being_written_is_not_damaged_and_one_that_was_left_so_is_garbage(site: Site) -> None:
    whole = site.store.read(entries(site, data=True)[0][0])
    writer = site.sessions.open("backup", by="test")
    pack = bytes(range(PACK_ID_BYTES))
    site.store.put(pack_file(pack, "node_b", writer.epoch), whole[: len(whole) // 2 + 1])

    report = look(site)
    assert (report.problems, report.points) == ([], {})
    assert not list(site.store.list("damaged/"))

    writer.close("failed")
    left = look(site)
    assert (left.problems, left.figures["torn_packs"]) == ([], 1)
    assert not list(site.store.list("damaged/"))


def test_damage_in_a_pack_does_not_keep_the_rest_from_being_collected(site: Site) -> None:
    first, second, _ = site.kept
    for point in (first, second):
        site.drop(point)
    file, entry = entries(site, data=True)[0]
    flip(site, file, entry)
    before = site.stored()

    done = site.collect(collection.Rules(live_share=1.1))

    assert done is not None
    assert done["packs_deleted"] > 0
    assert file in [listed.name for listed in site.store.list("packs/")]
    assert [listed.name for listed in site.store.list("damaged/")] == [collection_files.damaged_name(entry.place.pack)]
    assert site.stored() < before
    assert site.collect(collection.Rules(live_share=0.99)) is None  # what stays is not copied anew each time
    assert look(site).figures["lost"] == 1


def test_a_collection_moves_a_chunk_whose_other_copy_is_damaged(site: Site) -> None:
    """What was stored again since a copy is damaged is not given up for that copy, noted or not."""
    file, entry = entries(site, data=True)[0]
    session = site.sessions.open("collect", by="test")
    pack = next(p for p in site.contents.packs() if p.name == file)
    held = packs.contents_of(site.store, file).entries
    site.contents.copy(session, pack, bytes(e.name == entry.name for e in held), frozenset({pack.id}))
    site.contents.copied(session)
    (copy,) = (place for place in site.repository.index.sealed_places(entry.name) if place.pack != pack.id)
    again = next(p for p in site.contents.packs() if p.id == copy.pack)
    assert site.contents.copy(session, again, b"\1", frozenset({again.id})) == 0  # the first copy is whole yet
    flip(site, file, entry)
    assert site.contents.copy(session, again, b"\1", frozenset({again.id})) > 0
    site.contents.close()
    session.close()
    collection_files.note_damage(site.store, pack)
    for point in list(site.kept)[:-1]:
        site.drop(point)

    site.collect(collection.Rules(live_share=1.1))

    assert copy.pack not in site.repository.index.packs()
    site.everything_restores()


def test_a_pack_that_vanished_is_missed(site: Site) -> None:
    file, _ = entries(site, data=True)[0]
    site.store.delete(file)
    report = look(site, "metadata")
    assert report.figures["missing"] > 0
    assert report.points


def test_a_node_that_cannot_be_read_is_blamed_on_every_point_that_needs_it(site: Site) -> None:
    shared = None
    for name in site.kept:
        root = site.repository.point(name).disks[0].root
        nodes = {
            joined[i : i + NAME_BYTES]
            for kind, joined in tree.walk(site.repository, root)
            if kind != DATA
            for i in range(0, len(joined), NAME_BYTES)
        }
        shared = nodes if shared is None else shared & nodes
    assert shared
    victim = sorted(shared)[0]
    for file, entry in entries(site, data=False):
        if entry.name == victim:
            flip(site, file, entry)

    report = look(site, "metadata")

    assert set(report.points) == set(site.kept)
    assert report.figures["lost"] == 1


def test_a_place_that_is_full_is_verified_and_a_dry_run_writes_nothing(site: Site, tmp_path: Path) -> None:
    first, second, _ = site.kept
    for point in (first, second):
        site.drop(point)
    file, entry = entries(site, data=True)[0]
    flip(site, file, entry)
    mirrored, twice = entries(site, data=False)[0]
    flip(site, mirrored, twice)
    site.store.delete(points.copies_of(site.store, points.SECOND)[site.newest][0])
    site.contents.close()
    site.repository.close()
    full = FaultyStore(site.store, Fault("create", "full", times=0), Fault("append", "full", times=0))
    site.repository = repositories.open(full, None, tmp_path / "full", "a")
    site.sessions = Sessions(MemoryJournal(site.log, "main"), full, "a")
    site.contents = RepositoryContents(site.repository)
    before = {(f.name, f.size) for f in site.store.list()}

    report = look(site)

    assert list(report.points) == [site.newest]
    assert report.figures["lost"] == 1
    assert report.figures["repaired"] == report.figures["records_mended"] == 0
    assert report.figures["unwritten"] == 5  # the record, notes of both packs, the node, the mark
    said = [p.message for p in report.problems if p.code == "store-full"]
    assert [m.partition(" could not be written")[0] for m in said] == [
        "a second copy of a point's record",
        "the note that a pack is damaged, so that no backup builds on it,",
        "a second copy of metadata",
        "the mark that a point is damaged",
    ]
    session = site.sessions.open("collect", by="test")
    held: Any = SimpleNamespace(repository=site.repository, sessions=site.sessions)
    found = collecting.carry_out(held, session, dry_run=True)
    session.close()
    assert (found["packs"], found["live"] > 0) == (0, True)
    assert {(f.name, f.size) for f in site.store.list()} == before
    with pytest.raises(StoreError, match="full"):
        site.collect()
