"""Bits that flip, one at a time."""

import os
import random
from collections.abc import Iterator
from pathlib import Path


def flips(path: Path, count: int, *, start: int = 0, end: int | None = None, seed: int = 0) -> Iterator[int]:
    """Flips one seeded bit of a file, yields its byte's place, puts it right again; `count` times."""
    data, chooser = path.read_bytes(), random.Random(seed)
    descriptor = os.open(path, os.O_RDWR)
    try:
        for _ in range(count):
            place = chooser.randrange(start, len(data) if end is None else end)
            os.pwrite(descriptor, bytes([data[place] ^ 1 << chooser.randrange(8)]), place)
            yield place
            os.pwrite(descriptor, data[place : place + 1], place)
    finally:
        os.close(descriptor)
    assert path.read_bytes() == data
