"""Files that grow: what was written is there in its order, whatever the pieces, with and without the page cache."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.repository.stores import growing
from agents.repository.stores.growing import Growing, open_new

steps = st.lists(st.one_of(st.integers(0, 3 * 8192), st.none()), max_size=30)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "PIECE", 8192)


@settings(max_examples=60, deadline=None)
@given(steps=steps, seed=st.integers(0, 1000), direct=st.booleans())
def test_what_is_written_is_what_stands_there(steps: list[int | None], seed: int, direct: bool) -> None:
    """A number is so many bytes written, None a sync, after which all of it can be read."""
    rng = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        if not direct:
            patch.setattr(growing, "_DIRECT", 0)
        path = Path(folder) / "file"
        file = Growing(open_new(path))
        written = b""
        for step in steps:
            if step is None:
                file.sync()
                assert path.read_bytes() == written
            else:
                data = rng.randbytes(step)
                half = len(data) // 2
                assert file.write(data[:half], memoryview(data)[half:]) == len(written)
                written += data
                assert file.size == len(written)
        file.sync()
        file.close()
        file.close()
        assert path.read_bytes() == written


def test_a_file_system_that_refuses_direct_writes_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite

    def refusing(fd: int, data: memoryview, offset: int) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & growing._DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(fd, data[:5000], offset)

    monkeypatch.setattr(os, "pwrite", refusing)
    data = os.urandom(50_000)
    file = Growing(open_new(tmp_path / "file"))
    file.write(data)
    file.sync()
    file.close()
    assert (tmp_path / "file").read_bytes() == data


def test_an_error_of_a_write_under_way_comes_out_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    file = Growing(open_new(tmp_path / "file"))

    def write_on() -> None:
        for _ in range(100):
            file.write(bytes(5000))

    with pytest.raises(OSError, match="No space"):
        write_on()
    with pytest.raises(OSError, match="No space"):
        file.sync()
    file.close()


def test_a_file_is_made_once(tmp_path: Path) -> None:
    Growing(open_new(tmp_path / "file")).close()
    with pytest.raises(FileExistsError):
        open_new(tmp_path / "file")
