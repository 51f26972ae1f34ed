"""From bytes to what is stored of them and back: zero test, compression. Names are `agents.repository.keys.Naming`.

Hot path: everything here that costs is one call into C that lets go of the GIL (zstd) or is a memory comparison (zeros), so that
ingest scales over threads. Compressors are kept by thread.
"""

from __future__ import annotations

import threading
from typing import Final

import zstandard

from agents.repository.errors import DAMAGED, RepositoryError
from agents.repository.format import LARGEST_CHUNK, PLAIN, ZSTD, Buffer

LEVEL: Final = 1
_SAMPLE: Final = 4096
_SAMPLED_FROM: Final = 32 << 10  # below this the sample costs as much as it saves
_GAIN: Final = 32  # what does not shrink by 1/32 is stored as it is: decoding it would cost more than its bytes

_ZEROS: Final = bytes(LARGEST_CHUNK)
_local = threading.local()


def is_zero(data: Buffer) -> bool:
    """Nothing but zero bytes. One memory comparison, which ends at the first other byte. `data`: at most LARGEST_CHUNK bytes."""
    return _ZEROS.startswith(data)


def pack_body(data: Buffer, level: int = LEVEL) -> tuple[int, Buffer]:
    """`(codec, body)`: zstd where that saves something, else `data` itself. A larger chunk that comes after one that did not
    compress is first judged by a sample, since what is not compressible is mostly so throughout, and comes in long stretches."""
    size = len(data)
    if size >= _SAMPLED_FROM and getattr(_local, "was_plain", True):
        view = memoryview(data)
        middle = size // 2
        sample = b"".join((view[middle : middle + _SAMPLE], view[size - 2 * _SAMPLE : size - _SAMPLE]))
        if not _gains(len(_compressor(level).compress(sample)), len(sample)):
            sample = bytes(view[:_SAMPLE])  # a head that compresses: a file's, before content that does not
            if not _gains(len(_compressor(level).compress(sample)), _SAMPLE):
                return PLAIN, data
    body = _compressor(level).compress(data)
    gains = _gains(len(body), size)
    _local.was_plain = not gains
    return (ZSTD, body) if gains else (PLAIN, data)


def unpack_body(codec: int, body: Buffer, raw: int) -> bytes:
    """The chunk of `raw` bytes that `pack_body` made `body` of. `chunk-damaged` when it cannot be that; never takes more memory
    than `raw` bytes, whatever the body says."""
    if not 0 <= raw <= LARGEST_CHUNK:
        raise RepositoryError(DAMAGED, f"a chunk of {raw} bytes, larger than any can be")
    if codec == PLAIN:
        data = bytes(body)
    elif codec == ZSTD:
        try:
            if zstandard.frame_content_size(body) != raw:
                raise RepositoryError(DAMAGED, f"a compressed chunk that is not of {raw} bytes")
            data = _decompressor().decompress(body, max_output_size=raw, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise RepositoryError(DAMAGED, f"a chunk does not decompress: {error}") from None
    else:
        raise RepositoryError(DAMAGED, f"a chunk stored in a way this version does not know ({codec})")
    if len(data) != raw:
        raise RepositoryError(DAMAGED, f"a chunk of {raw} bytes has {len(data)}")
    return data


def _gains(compressed: int, size: int) -> bool:
    return compressed + size // _GAIN <= size and compressed < size


def _compressor(level: int) -> zstandard.ZstdCompressor:
    kept: dict[int, zstandard.ZstdCompressor] | None = getattr(_local, "compressors", None)
    if kept is None:
        kept = _local.compressors = {}
    found = kept.get(level)
    if found is None:
        # The content's size lets the reader allocate once; GCM or the digest is the checksum.
        found = kept[level] = zstandard.ZstdCompressor(level=level, write_checksum=False, write_content_size=True)
    return found


def _decompressor() -> zstandard.ZstdDecompressor:
    kept: zstandard.ZstdDecompressor | None = getattr(_local, "decompressor", None)
    if kept is None:
        kept = _local.decompressor = zstandard.ZstdDecompressor(max_window_size=LARGEST_CHUNK)
    return kept
