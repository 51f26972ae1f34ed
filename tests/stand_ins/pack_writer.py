"""A process that writes packs and small files into a folder until it is killed, and says what it was told is durable.

    python -P -m tests.stand_ins.pack_writer FOLDER EPOCH ROUNDS [LARGEST FILE]

A line each: `pack <file> <name of each chunk>`, `file <name>`, `deleting <name>`, `deleted <name>`, `error <code>`.
Contents follow from their number alone (`content`), so that whoever reads them later knows what they must be.
"""

from __future__ import annotations

import random
import resource
import sys
from pathlib import Path

from agents.repository.chunks import pack_body
from agents.repository.format import DATA, DATA_PACK
from agents.repository.keys import Keys
from agents.repository.packs import PackWriter
from agents.repository.stores import StoreError
from agents.repository.stores.local import LocalStore

KEYS = Keys(b"r" * 16, b"k" * 32)
CHUNKS, PACK = 6, 12_000


def content(number: int) -> bytes:
    """Chunk `number`, or the content of the file of that number."""
    noise = random.Random(number)
    return noise.randbytes(noise.randrange(1, 6000)) + bytes(noise.randrange(2000))


def main(root: Path, epoch: int, rounds: int, largest: int) -> None:
    if largest:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    store, naming = LocalStore(root), KEYS.naming()
    writer = PackWriter(store, KEYS, "child", epoch, DATA_PACK, naming.scope, PACK)
    try:
        for number in range(rounds):
            for i in range(CHUNKS):
                data = content(epoch * 1_000_000 + number * CHUNKS + i)
                codec, body = pack_body(data)
                writer.add(DATA, naming.name_of(DATA, data), codec, len(data), body)
            for pack in writer.flush():
                names = " ".join(e.name.hex() for e in pack.entries)
                print(f"pack {pack.name} {names}", flush=True)
            name = f"points/{epoch}-{number}.point"
            store.create(name, [content(number)[:1000], content(number)[1000:]])
            print(f"file {name}", flush=True)
            if number:
                name = f"points/{epoch}-{number - 1}.point"
                print(f"deleting {name}", flush=True)
                store.delete(name)
                print(f"deleted {name}", flush=True)
    except StoreError as error:
        print(f"error {error.code}", flush=True)
    finally:
        writer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 0)
