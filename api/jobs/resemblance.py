"""Which pictures look alike: a hash of 64 bits that near-duplicates share but for a few bits.

The difference hash (dHash, N. Krawetz, "Kind of Like That", 2013): of the picture in 9 x 8 grey dots, whether each dot
is darker than its right neighbour. It bears scaling, recompression and other brightness.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

WIDTH, HEIGHT = 8, 8
NEAR = 6
"""Most bits in which two pictures differ that look alike to a person."""


def dhash(path: Path) -> str:
    """Return the hash of a picture that is ours already, as 16 hexadecimal digits."""
    with Image.open(path, formats=["PNG"]) as image:
        grey = image.convert("L").resize((WIDTH + 1, HEIGHT), Image.Resampling.BOX)
    dots = grey.tobytes()
    bits = 0
    for row in range(HEIGHT):
        for column in range(WIDTH):
            place = row * (WIDTH + 1) + column
            bits = bits << 1 | (dots[place] < dots[place + 1])
    return f"{bits:016x}"


def distance(one: str, other: str) -> int:
    """Return in how many bits two hashes differ, 0 to 64."""
    return (int(one, 16) ^ int(other, 16)).bit_count()


def resemble(one: str, other: str) -> bool:
    """Whether two pictures of these hashes look alike."""
    return distance(one, other) <= NEAR
