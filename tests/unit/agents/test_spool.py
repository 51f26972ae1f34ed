"""The spool on disk: what goes in comes out, once, in order; whatever is torn, damaged or moved counts for nothing."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.capture import spool as spool_module
from agents.capture.records import Standing, steps_of
from agents.capture.spool import Spool, SpoolDamaged, look, segments_in
from agents.capture.spool_format import (
    Frame,
    FrameDamaged,
    Head,
    frame_size,
    read_frame,
    read_head,
    read_standing,
    write_frame,
    write_head,
)
from agents.protocol import Piece, Steps, Taken
from streams.errors import StreamError

LINEAGE = "0192f1a0-0000-7000-8000-000000000001"
BEGIN = Standing(10, "0-1-9", "0-1-10", b"\7" * 32)
GOLDEN = Path(__file__).parents[2] / "golden" / "spool" / "000000000003.spool"


class FixedSealer:
    """Seals as the site's store does, with a key and nonces that follow from nothing but their number."""

    def __init__(self) -> None:
        self.sealed = 0
        self._cipher = AESGCM(bytes(range(32)))

    def seal(self, purpose: str, plaintext: bytes, aad: bytes) -> tuple[str, bytes, bytes]:
        self.sealed += 1
        nonce = self.sealed.to_bytes(12, "big")
        return "00112233445566aa", nonce, self._cipher.encrypt(nonce, plaintext, purpose.encode() + aad)

    def unseal(self, purpose: str, key_id: str, nonce: bytes, ciphertext: bytes, aad: bytes) -> bytes:
        try:
            return self._cipher.decrypt(nonce, ciphertext, purpose.encode() + aad)
        except Exception as error:
            raise StreamError("secret-damaged", "damaged") from error


def step(n: int, size: int = 40) -> bytes:
    return random.Random(n).randbytes(size)


def steps(first: int, count: int, size: int = 40) -> Steps:
    payloads = [step(n, size) for n in range(first, first + count)]
    ends = [size * (i + 1) for i in range(count)]
    last = first + count - 1
    return Steps(
        b"".join(payloads),
        ends,
        count,
        f"0-1-{last - 1}",
        f"0-1-{last}",
        b"fde",
        1,
        "binlog.000001",
        last * 100,
        5,
        False,
    )


def pieces(n: int, count: int, size: int = 40) -> list[Taken]:
    whole = step(n, size * count)
    at = (f"0-1-{n - 1}", f"0-1-{n}")
    return [
        Piece(
            whole[size * i : size * (i + 1)],
            i == 0,
            i == count - 1,
            1,
            *at,
            b"fde",
            1,
            "binlog.000001",
            9,
            5,
            n % 2 == 0,
        )
        for i in range(count)
    ]


def opened(folder: Path, limit: int = 1 << 30) -> Spool:
    return Spool(folder, "shop", FixedSealer(), limit, lambda payload: len(payload) // 40)


def filled(folder: Path, *taken: Taken) -> Spool:
    spool = opened(folder)
    spool.begin(LINEAGE, BEGIN)
    for each in taken:
        assert spool.append(each, 77)
    spool.sync()
    return spool


def drained(spool: Spool) -> list[Taken]:
    out: list[Taken] = []
    drain_into(out, spool)
    return out


def drain_into(out: list[Taken], spool: Spool) -> None:
    while (found := spool.next()) is not None:
        assert found[1] == 77
        out.append(found[0])


def standing_at(n: int, proof: bytes | None = None) -> Standing:
    return Standing(n, f"0-1-{n - 1}", f"0-1-{n}", proof or blake3(step(n)).digest())


SOME: list[Taken] = [steps(11, 3), steps(14, 1), *pieces(15, 4), steps(16, 2)]


@pytest.mark.parametrize("segment", [1 << 20, 200], ids=["one segment", "many"])
def test_what_goes_in_comes_out_also_after_a_restart(
    tmp_path: Path, segment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", segment)
    spool = filled(tmp_path, *SOME)
    assert len(segments_in(tmp_path)) == (1 if segment > 1000 else 7)
    assert spool.align(LINEAGE, BEGIN) == ""
    assert drained(spool) == SOME
    assert spool.end == Standing(17, "0-1-16", "0-1-17", blake3(step(17)).digest())
    spool.close()
    again = opened(tmp_path)
    assert (again.end, again.lineage) == (spool.end, LINEAGE)
    assert again.align(LINEAGE, BEGIN) == ""
    assert drained(again) == SOME
    assert again.append(steps(18, 1), 77)
    assert drained(again) == []  # not flushed, does not count
    again.sync()
    assert drained(again) == [steps(18, 1)]


def test_it_goes_on_after_the_last_step_in_the_log(tmp_path: Path) -> None:
    spool = filled(tmp_path, *SOME)
    assert spool.align(LINEAGE, standing_at(12)) == ""
    first, *rest = drained(spool)
    assert first == replace(steps(13, 1), payload=step(13), events=1)
    assert rest == SOME[1:]
    assert spool.align(LINEAGE, standing_at(15, blake3(step(15, 160)).digest())) == ""
    assert drained(spool) == SOME[-1:]
    assert spool.align(LINEAGE, standing_at(17)) == ""
    assert drained(spool) == []


def test_another_history_is_not_gone_on_with(tmp_path: Path) -> None:
    spool = filled(tmp_path, *SOME)
    for standing in (standing_at(12, b"\0" * 32), standing_at(15), replace(BEGIN, proof=b"\0" * 32)):
        assert "not what was captured" in spool.align(LINEAGE, standing)
    assert "lineage" in spool.align(LINEAGE.replace("1", "2"), BEGIN)
    assert "the log ends with 18" in spool.align(LINEAGE, standing_at(18))
    assert "the log ends with 9" in spool.align(LINEAGE, standing_at(9))
    spool.drop()
    assert spool.align(LINEAGE, BEGIN) == "there is no spool"
    assert not segments_in(tmp_path)


@pytest.mark.parametrize("segment", [1 << 20, 200], ids=["one segment", "many"])
def test_cut_off_anywhere_whole_steps_count(tmp_path: Path, segment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a crash leaves: the last segment to some byte."""
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", segment)
    spool = filled(tmp_path, *SOME)
    spool.close()
    ends = set()
    for file in reversed(segments_in(tmp_path)):
        data = file.read_bytes()
        for size in sorted({*range(len(data) - 1, 0, -23), 0}, reverse=True):
            file.write_bytes(data[:size])
            copy = tmp_path.parent / "copy"
            copy.mkdir(exist_ok=True)
            for left in copy.iterdir():
                left.unlink()
            for each in segments_in(tmp_path):
                (copy / each.name).write_bytes(each.read_bytes())
            again = opened(copy)
            if again.end is None:
                assert segment > 1000 or file.name == "000000000001.spool"
                again.close()
                continue
            ends.add(again.end.ordinal)
            assert again.align(LINEAGE, BEGIN) == ""
            found = drained(again)
            assert found == SOME[: len(found)]
            assert again.end.ordinal == 10 + sum(steps_of(t) for t in found)
            assert steps_of(found[-1]) if found else again.end == BEGIN
            again.close()
        file.unlink()
    assert ends >= {10, 13, 14, 15}


def test_pieces_without_an_end_are_cut_off_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 200)
    large = pieces(12, 5)
    spool = filled(tmp_path, steps(11, 1), *large[:3])
    assert drained(spool) == [steps(11, 1), *large[:3]]
    spool.cut()
    assert spool.end == standing_at(11)
    for each in [*large, steps(13, 1)]:
        assert spool.append(each, 77)
    spool.sync()
    assert drained(spool) == [*large, steps(13, 1)]


@pytest.mark.parametrize("segment", [1 << 20, 200], ids=["one segment", "many"])
def test_any_damaged_byte_ends_it_there(tmp_path: Path, segment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", segment)
    spool = filled(tmp_path, *SOME)
    for file in segments_in(tmp_path):
        sound = file.read_bytes()
        for at in range(read_head(sound).size, len(sound), 11):  # heads are read when a spool is opened
            broken = bytearray(sound)
            broken[at] ^= 0x10
            file.write_bytes(broken)
            assert spool.align(LINEAGE, BEGIN) == ""
            found: list[Taken] = []
            with pytest.raises(SpoolDamaged, match="steps"):
                drain_into(found, spool)
            assert found == SOME[: len(found)]
            assert len(found) < len(SOME)
        file.write_bytes(sound)
    assert spool.align(LINEAGE, BEGIN) == ""
    assert drained(spool) == SOME


def test_a_damaged_head_ends_it_when_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 200)
    filled(tmp_path, *SOME).close()
    third = segments_in(tmp_path)[2]
    data = bytearray(third.read_bytes())
    data[read_head(bytes(data)).size // 2] ^= 1
    third.write_bytes(data)
    spool = opened(tmp_path)
    assert len(segments_in(tmp_path)) == 2
    assert spool.align(LINEAGE, BEGIN) == ""
    assert drained(spool) == SOME[:2]


def test_segments_moved_lost_or_of_another_spool_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 200)
    filled(tmp_path / "a", *SOME).close()
    filled(tmp_path / "b", *SOME).close()
    files = segments_in(tmp_path / "a")
    (tmp_path / "b" / files[1].name).replace(files[1])
    spool = opened(tmp_path / "a")
    assert spool.align(LINEAGE, BEGIN) == ""
    assert drained(spool) == SOME[:1]
    spool.close()
    segments_in(tmp_path / "b")[0].unlink()
    other = opened(tmp_path / "b")  # numbers from 3 on: as if the first two had been drained
    assert "the log ends with 10" in other.align(LINEAGE, BEGIN)
    other.close()


def test_segments_go_once_the_log_has_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 200)
    spool = filled(tmp_path, *SOME)
    assert spool.align(LINEAGE, BEGIN) == ""
    left = []
    size = spool.size
    for ordinal in range(10, 18):
        while spool._read.ordinal <= ordinal and spool.next() is not None:
            pass
        spool.release(ordinal)
        left.append(len(segments_in(tmp_path)))
        # Whatever is left is enough to go on from where the log stands.
        proof = (
            BEGIN if ordinal == 10 else standing_at(ordinal, blake3(step(15, 160)).digest() if ordinal == 15 else None)
        )
        assert spool.align(LINEAGE, proof) == ""
    assert left == sorted(left, reverse=True)
    assert left[0] == 7
    assert left[-1] == 1
    assert spool.size < size / 4


def test_full_is_full_and_room_is_made_by_draining(tmp_path: Path) -> None:
    spool = opened(tmp_path, limit=60_000)
    spool.begin(LINEAGE, BEGIN)
    n = 11
    while spool.append(steps(n, 1, 2000), 77):
        n += 1
    assert 15 < n < 60
    assert sum(f.stat().st_size for f in segments_in(tmp_path)) <= 60_000
    spool.sync()
    for _ in range(n - 11):
        assert spool.next() is not None
    assert not spool.append(steps(n, 1, 2000), 77)
    spool.release(n - 1)
    assert spool.append(steps(n, 1, 2000), 77)


def test_a_disk_without_room_is_a_full_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = filled(tmp_path, *SOME)
    real = os.pwrite

    def half(fd: int, data: bytes, at: int) -> int:
        real(fd, bytes(data[: len(data) // 2]), at)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", half)
    assert not spool.append(steps(18, 1), 77)
    monkeypatch.setattr(os, "pwrite", real)
    assert spool.append(steps(18, 1), 77)
    spool.sync()
    assert spool.align(LINEAGE, BEGIN) == ""
    assert drained(spool) == [*SOME, steps(18, 1)]


def test_nothing_that_was_captured_lies_there_in_clear(tmp_path: Path) -> None:
    secret = b"CREATE USER x IDENTIFIED BY 'correct horse battery staple'" * 3
    taken = Steps(secret, [len(secret)], 1, "0-1-10", "0-1-11", b"fde", 1, "binlog.000001", 4, 5, True)
    filled(tmp_path, taken).close()
    data = b"".join(f.read_bytes() for f in segments_in(tmp_path))
    assert b"horse" not in data
    assert blake3(secret).digest() not in data
    assert (BEGIN.proof or b"-") not in data
    assert all(f.stat().st_mode & 0o077 == 0 for f in segments_in(tmp_path))


def test_anybody_may_see_how_much_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert look(tmp_path / "none") is None
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 200)
    spool = filled(tmp_path, *SOME)
    found = look(tmp_path)
    assert found is not None
    assert (found.first, found.last, found.size, found.since_us) == (11, 17, spool.size, spool.since_us)
    newest = segments_in(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    torn = look(tmp_path)
    assert torn is not None
    assert torn.last == 15


def test_one_process_has_it(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    with pytest.raises(BlockingIOError):
        opened(tmp_path)
    spool.close()
    opened(tmp_path).close()


@st.composite
def _taken(draw: st.DrawFn) -> list[Taken]:
    out: list[Taken] = []
    n = 11
    for _ in range(draw(st.integers(1, 6))):
        if draw(st.booleans()):
            count = draw(st.integers(1, 4))
            out.append(steps(n, count))
            n += count
        else:
            out += pieces(n, draw(st.integers(1, 5)))
            n += 1
    return out


@settings(max_examples=60, deadline=None)
@given(_taken(), st.integers(150, 3000), st.randoms())
def test_any_mixture_read_from_any_step_on(
    tmp_path_factory: pytest.TempPathFactory, taken: list[Taken], segment: int, chance: random.Random
) -> None:
    before, spool_module.SEGMENT_BYTES = spool_module.SEGMENT_BYTES, segment
    try:
        spool = filled(tmp_path_factory.mktemp("spool"), *taken)
        at = 10
        places = [BEGIN]
        for each in taken:
            size = 40 * sum(1 for t in taken if isinstance(t, Piece) and t.before == each.before)
            for i in range(steps_of(each)):
                whole = step(at + 1, size) if isinstance(each, Piece) else each.payload[i * 40 : i * 40 + 40]
                places.append(standing_at(at + 1, blake3(whole).digest()))
                at += 1
        place = chance.choice(places)
        assert spool.align(LINEAGE, place) == ""
        found = drained(spool)
        payload = b"".join(t.payload for t in found)
        assert b"".join(t.payload for t in taken).endswith(payload)
        assert sum(map(steps_of, found)) == at - place.ordinal
        spool.close()
    finally:
        spool_module.SEGMENT_BYTES = before


def golden() -> tuple[Head, Standing, list[Frame]]:
    head = Head(bytes(range(16)), 3, 1_700_000_000_000_000, 10, False, LINEAGE)
    frames = [
        Frame(steps(11, 2), 11, 12, 1_700_000_000_000_001, blake3(step(12)).digest()),
        *(
            Frame(p, 13, 13, 1_700_000_000_000_002, b"\5" * 32 if p.last else b"")
            for p in pieces(13, 2)
            if isinstance(p, Piece)
        ),
    ]
    return head, BEGIN, frames


def test_golden() -> None:
    """tests/golden/spool was written by `write_head` and `write_frame` with `FixedSealer`: released bytes stay readable."""
    data = GOLDEN.read_bytes()
    sealer = FixedSealer()
    head, standing, frames = golden()
    assert replace(read_head(data), size=0) == head
    assert read_standing(data, "shop", sealer) == standing
    at = read_head(data).size
    for frame in frames:
        size = frame_size(data[at : at + 8])
        found = read_frame(data[at : at + size], head, at, "shop", sealer)
        assert replace(found, size=0) == frame
        with pytest.raises(FrameDamaged):
            read_frame(data[at : at + size], head, at + 1, "shop", sealer)
        at += size
    assert at == len(data)


def test_what_is_written_is_the_golden_file() -> None:
    sealer = FixedSealer()
    head, standing, frames = golden()
    data = write_head(head, standing, "shop", sealer)
    for frame in frames:
        data += write_frame(frame, head, len(data), "shop", sealer)
    # zstd may compress otherwise in another version: the same content, then, is what counts.
    assert len(data) == pytest.approx(len(GOLDEN.read_bytes()), rel=0.1)
    assert data[: read_head(data).size] == GOLDEN.read_bytes()[: read_head(data).size]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_garbage_is_damage_and_nothing_else(data: bytes) -> None:
    head, _, _ = golden()
    for parse in (
        read_head,
        lambda d: read_standing(d, "shop", FixedSealer()),
        lambda d: read_frame(d, head, 0, "shop", FixedSealer()),
    ):
        with pytest.raises(FrameDamaged):
            parse(b"HFSPOOL\x01" + data)
        with pytest.raises(FrameDamaged):
            parse(b"HFFR" + data)
