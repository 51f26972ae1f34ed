"""Disks of a point as image files: each format, written and read by QEMU's own programs, holds what the point says; a folder
that is not whole says so, and the same restore goes on with it."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agents.commands import Interrupted
from agents.errors import AgentError
from agents.restore import folder, images
from tests.stand_ins.memory_host import registered
from tests.unit.agents.backup.site import Guest, closing
from tests.unit.agents.restore.site import Restores

MIB = 1 << 20
SIZES = {"vda": 12 * MIB, "vdb": 3 * MIB + 512}
QEMU = ["qcow2", "vmdk", "vhdx"]
needs_qemu = pytest.mark.skipif(
    not (shutil.which("qemu-img") and shutil.which("qemu-nbd")), reason="qemu-img and qemu-nbd are not installed"
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Restores]:
    with registered(), closing(Restores(tmp_path)) as made:
        assert isinstance(made, Restores)
        yield made


@pytest.fixture
def shop(site: Restores) -> Guest:
    guest = Guest(site, "shop", SIZES)
    guest.write("vda", 0, 2 * MIB)
    guest.write("vda", 9 * MIB + 3, 100_000)
    guest.write("vdb", MIB, MIB)
    site.discover()
    return guest


def read_by_qemu(path: Path, format: str, raw: Path) -> bytes:
    """What QEMU says is in an image."""
    subprocess.run(["qemu-img", "check", "-q", "-f", format, path], check=True)
    subprocess.run(["qemu-img", "convert", "-f", format, "-O", "raw", path, raw], check=True)
    return raw.read_bytes()


@pytest.mark.parametrize("format", ["raw", *(pytest.param(f, marks=needs_qemu) for f in QEMU)])
def test_every_format_holds_what_the_point_says(site: Restores, shop: Guest, tmp_path: Path, format: str) -> None:
    (point,) = site.backup("shop")
    to = tmp_path / "out"
    told = site.restore("files", point, to=str(to), format=format)
    assert [d["file"] for d in told["disks"]] == [f"vda.{format}", f"vdb.{format}"]
    assert [d["compared"] for d in told["disks"]] == list(SIZES.values())
    for disk in SIZES:
        path = to / f"{disk}.{format}"
        read = path.read_bytes() if format == "raw" else read_by_qemu(path, format, tmp_path / "raw")
        assert read[: SIZES[disk]] == shop.content(disk)
        assert not any(read[SIZES[disk] :])
    assert not [path for path in to.iterdir() if ".part" in path.name]
    assert (to / "companion-nvram").read_bytes() == b"variables of shop"
    assert json.loads((to / "machine.json").read_text())["name"] == "shop"
    assert json.loads((to / folder.MARKER).read_text())["whole"]
    if format != "vhdx":  # whose blocks are MiB large
        assert (to / f"vda.{format}").stat().st_blocks * 512 < 4 * MIB, "what is zero takes no room"


def test_a_folder_with_anything_else_in_it_is_refused_and_so_is_one_that_is_whole(
    site: Restores, shop: Guest, tmp_path: Path
) -> None:
    (point,) = site.backup("shop")
    shop.scatter()
    (second,) = site.backup("shop")
    to = tmp_path / "out"
    to.mkdir()
    (to / "mine").touch()
    with pytest.raises(AgentError) as refused:
        site.restore("files", point, to=str(to), format="raw")
    assert (refused.value.code, "mine" in refused.value.message) == ("path-taken", True)
    assert [path.name for path in to.iterdir()] == ["mine"]
    (to / "mine").unlink()
    planned = site.restore("files", point, to=str(to), format="raw", dry_run=True)
    assert (planned["written"], list(to.iterdir())) == (0, [])
    site.restore("files", point, to=str(to), format="raw")
    for again in (point, second):
        with pytest.raises(AgentError) as whole:
            site.restore("files", again, to=str(to), format="raw")
        assert whole.value.code == "path-taken"


@pytest.mark.parametrize("format", ["raw", pytest.param("qcow2", marks=needs_qemu)])
def test_an_interrupted_one_is_not_whole_and_is_gone_on_with_and_another_is_refused(
    site: Restores, shop: Guest, tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.repository.restoring.WINDOW", 32)
    (point,) = site.backup("shop")
    shop.scatter()
    (second,) = site.backup("shop")
    to = tmp_path / "out"

    def check() -> None:
        noted = to / f"vda.{format}.part.holdfast-restore"
        if noted.exists() and b" 2\n" in noted.read_bytes():
            raise Interrupted

    site.check = check
    with pytest.raises(Interrupted):
        site.restore("files", point, to=str(to), format=format)
    site.check = lambda: None
    assert not (to / f"vda.{format}").exists()
    assert not json.loads((to / folder.MARKER).read_text())["whole"]
    for other, its_format in ((second, format), (point, "raw" if format != "raw" else "qcow2")):
        with pytest.raises(AgentError) as refused:
            site.restore("files", other, to=str(to), format=its_format)
        assert "which did not end" in refused.value.message
    told = site.restore("files", point, to=str(to), format=format)
    assert told["disks"][0]["kept"] >= 2 * 32 * 65_536
    assert told["disks"][0]["compared"] == SIZES["vda"]
    with images.opened(to / f"vda.{format}", format, read_only=True) as image:
        found = bytearray(SIZES["vda"])
        image.read_into(0, memoryview(found))
    assert found == site.content(point, "vda")


@needs_qemu
def test_what_an_earlier_run_left_torn_is_written_anew(site: Restores, shop: Guest, tmp_path: Path) -> None:
    (point,) = site.backup("shop")
    to = tmp_path / "out"
    site.check = lambda: (_ for _ in ()).throw(Interrupted)
    with pytest.raises(Interrupted):
        site.restore("files", point, to=str(to), format="qcow2", disks=["vda"])
    site.check = lambda: None
    with (to / "vda.qcow2.part").open("r+b") as file:
        file.write(os.urandom(512))
    site.restore("files", point, to=str(to), format="qcow2", disks=["vda"])
    assert [problem.code for problem in site.warned] == ["restore-anew"]
    assert read_by_qemu(to / "vda.qcow2", "qcow2", tmp_path / "raw") == shop.content("vda")


def test_a_folder_without_room_is_refused_before_anything_is_written(
    site: Restores, shop: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (point,) = site.backup("shop")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=20 * MIB))
    site.restore("files", point, to=str(tmp_path / "fits"), format="raw")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=18 * MIB))
    with pytest.raises(AgentError) as short:
        site.restore("files", point, to=str(tmp_path / "out"), format="raw", dry_run=True)
    assert short.value.code == "space-short"


def test_what_cannot_be_done_says_the_next_step(
    site: Restores, shop: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (point,) = site.backup("shop")
    with pytest.raises(AgentError) as unknown:
        site.restore("files", point, to=str(tmp_path / "out"), format="vdi")
    assert (unknown.value.code, "qcow2" in unknown.value.hint) == ("format-unknown", True)
    with pytest.raises(AgentError) as disk:
        site.restore("files", point, to=str(tmp_path / "out"), format="raw", disks=["sdz"])
    assert (disk.value.code, "vda" in disk.value.hint) == ("disk-unknown", True)
    with pytest.raises(AgentError) as own:
        site.restore("files", point, to=str(tmp_path / "data" / "out"), format="raw")
    assert own.value.code == "path-own"
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(AgentError) as missing:
        site.restore("files", point, to=str(tmp_path / "out"), format="qcow2")
    assert (missing.value.code, "qemu-utils" in missing.value.hint) == ("qemu-missing", True)
    assert not (tmp_path / "out").exists()


@needs_qemu
def test_an_image_opens_where_there_is_nothing_but_a_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Image(images.QemuImage):
        def __init__(self, *given: Any, cache: str = "writeback", **more: Any) -> None:
            asked.append(cache)
            if cache == "none":
                raise AgentError(images.UNFIT, "file system may not support O_DIRECT")
            super().__init__(*given, cache=cache, **more)

    images.make(tmp_path / "image", "qcow2", MIB)
    monkeypatch.setattr(images, "QemuImage", Image)
    with images.opened(tmp_path / "image", "qcow2") as image:
        image.write(0, b"data")
        image.flush()
    assert asked[-1] == "writeback"
    with images.opened(tmp_path / "image", "qcow2", read_only=True) as image:
        found = bytearray(4)
        image.read_into(0, memoryview(found))
    assert found == b"data"


@needs_qemu
def test_an_image_is_written_at_random_read_at_random_and_knows_where_it_is_empty(tmp_path: Path) -> None:
    rng = random.Random(1)
    size = 5 * MIB + 512
    for format in images.FORMATS:
        path = tmp_path / f"image.{format}"
        images.make(path, format, size)
        with pytest.raises(FileExistsError):
            images.make(path, format, size)
        model = bytearray(size)
        with images.opened(path, format) as image:
            assert image.size == size
            for _ in range(40):
                offset = rng.randrange(size)
                data = rng.randbytes(rng.randrange(1, min(300_000, size - offset) + 1))
                image.write(offset, data)
                model[offset : offset + len(data)] = data
                at = rng.randrange(size)
                image.zero(at, length := rng.randrange(1, size - at + 1) // 8 + 1)
                model[at : at + length] = bytes(min(length, size - at))
            image.flush()
        with images.opened(path, format, read_only=True) as image:
            found = bytearray(size)
            image.read_into(0, memoryview(found))
            assert found == model, format
            holes = list(image.holes(0, size))
            assert not any(any(model[at : at + length]) for at, length in holes)
            with pytest.raises(OSError):
                image.write(0, b"x")
