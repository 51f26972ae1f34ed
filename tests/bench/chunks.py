"""What a chunk costs on its way into a pack and back, step by step: the ceiling that ingest and restore can reach.

Ours is bytes of a disk a second of processor time, one thread, in memory: zero test, name, compression, encryption, frame. The
peer is bare zstd of the same level over the same bytes, which nothing that compresses can beat: the ratio is the share of it
that is left. Figures are the steps on their own, and what two threads reach of twice one (wall clock: the GIL must not be held
where it counts).
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import zstandard

from agents.repository.chunks import LEVEL, is_zero, pack_body, unpack_body
from agents.repository.format import DATA, DATA_PACK
from agents.repository.keys import Keys, new_key
from agents.repository.packs import PackWriter, SealedPack, read_frames
from agents.repository.stores import Appender, Buffer
from agents.repository.stores.memory import MemoryStore
from tests.bench.report import Report, Skip, report

_T = TypeVar("_T")
_BLOCK: Final = 128 << 10
_BYTES: Final = 96 << 20
_PLACES: Final = ("/usr/lib", "/usr/bin", "/usr/share")


def run(rounds: int, scale: float) -> Report:
    blocks = _blocks(int(_BYTES * scale))
    keys, compressor = Keys(secrets.token_bytes(16), new_key()), zstandard.ZstdCompressor(level=LEVEL)
    naming = keys.naming()
    bodies = [pack_body(block) for block in blocks]
    names = [naming.name_of(DATA, block) for block in blocks]
    noise = [secrets.token_bytes(_BLOCK)] * max(1, len(blocks) // 8)
    zeros = [bytes(_BLOCK)] * len(blocks)
    ours, peer, figures = list[float](), list[float](), dict[str, list[float]]()
    for number in range(rounds + 1):
        taken = {
            "zero_test_of_data": _rate(blocks, is_zero),
            "zero_test_of_zeros": _rate(zeros, is_zero),
            "name": _rate(blocks, lambda b: naming.name_of(DATA, b)),
            "compress": _rate(blocks, pack_body),
            "compress_noise": _rate(noise, pack_body),
            "decompress": _sum_rate(blocks, zip(bodies, blocks, strict=True), lambda b: unpack_body(*b[0], len(b[1]))),
        }
        sealed = list(zip(names, bodies, strict=True))
        writer = _writer(keys, _NoStore())
        taken["encrypt_and_frame_of_stored"] = _sum_rate([b for _, b in bodies], iter(sealed), partial(_frame, writer))
        writer.close()
        store = MemoryStore()
        writer = _writer(keys, store)
        for chunk in sealed:
            _frame(writer, chunk)
        taken["read_back"] = _read_rate(store, writer.flush(), keys, sum(map(len, blocks)))
        writer.close()
        writer = _writer(keys, _NoStore())
        whole = _rate(blocks, partial(_ingest, writer, keys))
        writer.close()
        bare = _rate(blocks, compressor.compress)
        one, two = (_wall(keys, blocks, threads) for threads in (1, 2))
        taken["two_threads_of_twice_one_percent"] = 100 * two / (2 * one)
        if number:
            ours.append(whole)
            peer.append(bare)
            for name, value in taken.items():
                figures.setdefault(name if name.endswith("percent") else f"{name}_mb_per_cpu_s", []).append(value)
    middle = {name: sorted(values)[len(values) // 2] for name, values in figures.items()}
    return report("repository-chunks", ours, peer, f"zstd {LEVEL} alone", "MB per CPU second", "more", middle)


def _ingest(writer: PackWriter, keys: Keys, block: bytes) -> None:
    if is_zero(block):
        return
    name = keys.naming().name_of(DATA, block)
    codec, body = pack_body(block)
    writer.add(DATA, name, codec, len(block), body)


def _frame(writer: PackWriter, one: tuple[bytes, tuple[int, Buffer]]) -> None:
    name, (codec, body) = one
    writer.add(DATA, name, codec, _BLOCK, body)


def _rate(blocks: Sequence[bytes], work: Callable[[bytes], object]) -> float:
    return _sum_rate(blocks, iter(blocks), work)


def _sum_rate(counted: Sequence[Buffer], items: Iterator[_T], work: Callable[[_T], object]) -> float:
    began = time.thread_time()
    for item in items:
        work(item)
    return sum(map(len, counted)) / max(1e-9, time.thread_time() - began) / 1e6


def _read_rate(store: MemoryStore, packs: Sequence[SealedPack], keys: Keys, size: int) -> float:
    began = time.thread_time()
    for pack in packs:
        for _ in read_frames(store, pack.name, ((e.name, e.place) for e in pack.entries), keys):
            pass
    return size / (time.thread_time() - began) / 1e6


def _wall(keys: Keys, blocks: Sequence[bytes], threads: int) -> float:
    """MB a second of all threads together."""
    writer = _writer(keys, _NoStore())
    share = len(blocks) // 2

    def work(number: int) -> None:
        for block in blocks[number * share :][:share]:
            _ingest(writer, keys, block)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    took = time.perf_counter() - began
    writer.close()
    return threads * sum(map(len, blocks[:share])) / took / 1e6


class _Nowhere:
    """An appender that forgets what it is given: what a disk costs is another benchmark's."""

    def __init__(self) -> None:
        self._at = 0

    def write(self, *parts: Buffer) -> int:
        at, self._at = self._at, self._at + sum(map(len, parts))
        return at

    def sync(self) -> None: ...
    def close(self) -> None: ...
    def abandon(self) -> None: ...


class _NoStore(MemoryStore):
    def append(self, name: str) -> Appender:
        return _Nowhere()


def _writer(keys: Keys, store: MemoryStore) -> PackWriter:
    return PackWriter(store, keys, "bench", 1, DATA_PACK, keys.naming().scope)


def _blocks(size: int) -> list[bytes]:
    """Bytes of this machine's own files, programs and texts, in blocks."""
    taken, total = list[bytes](), 0
    for path in _files():
        data = path.read_bytes()[: 1 << 20]
        taken.append(data)
        total += len(data)
        if total >= size:
            break
    if total < 8 * _BLOCK:
        raise Skip("there are no files to take bytes from")
    whole = b"".join(taken)
    return [whole[at : at + _BLOCK] for at in range(0, len(whole) - _BLOCK, _BLOCK)]


def _files() -> Iterator[Path]:
    for place in _PLACES:
        for folder, _, files in os.walk(place):
            for file in sorted(files):
                path = Path(folder, file)
                if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
                    yield path
