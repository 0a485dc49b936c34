"""Strangers' pictures: checked and decoded in a process of their own, and written anew from nothing but pixels.

The decoder (`api.decoder`) hands back bare bytes of red, green and blue. They are encoded here, so whatever a picture
may have made of its decoder, the file that is kept is a plain PNG: no metadata, no colour profile and no appended byte
of the original survives.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from PIL import Image

from api.decoder.client import DECODER, UNREADABLE
from api.decoder.wire import BYTES_PER_PIXEL, Bounds, ImageRefused

if TYPE_CHECKING:
    from pathlib import Path

    from api.decoder.wire import Size
    from api.settings import ImageLimits

__all__ = ["CONTENT_TYPE", "CleanImage", "ImageRefused", "clean", "get_ready"]

CONTENT_TYPE = "image/png"
PNG_COMPRESS_LEVEL = 3
"""A third of the time of zlib's default for a few per cent more bytes."""
_ROWS_AT_ONCE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanImage:
    """A picture written anew."""

    path: Path
    sha256: str
    bytes: int
    width: int
    height: int


def get_ready() -> None:
    """Start what decodes, so that the first picture need not wait for it."""
    DECODER.start()


def clean(source: BinaryIO, size: int, path: Path, limits: ImageLimits) -> CleanImage:
    """Check a picture and write it anew as PNG.

    Args:
        source: the upload, at its beginning.
        size: its length in bytes.
        path: where the PNG goes.
        limits: what is accepted.

    Raises:
        ImageRefused: it cannot be used.
        Unavailable: no decoder can be started.
    """
    if size == 0:
        raise ImageRefused("empty", "The file has 0 bytes; send the picture itself.")
    if size > limits.max_bytes:
        raise ImageRefused("too_large", f"The file has {size} bytes; at most {limits.max_bytes} are accepted.")
    with tempfile.TemporaryFile(dir=path.parent) as pixels:
        extent = DECODER.decode(source, pixels.fileno(), _bounds(limits))
        _encode(pixels.fileno(), extent, path)
    data = path.read_bytes()
    return CleanImage(
        path=path, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), width=extent.width, height=extent.height
    )


def _bounds(limits: ImageLimits) -> Bounds:
    return Bounds(
        max_pixels=limits.max_pixels,
        min_side_px=limits.min_side_px,
        keep_side_px=limits.keep_side_px,
        cpu_s=limits.cpu_s,
        timeout_s=limits.timeout_s,
        memory_bytes=limits.memory_bytes,
    )


def _encode(pixels: int, extent: Size, path: Path) -> None:
    """Write PNG from a file of bare pixels.

    Its decoder may live on and write to it still. So it is read, never mapped: who touches a page that was cut off
    dies of SIGBUS.

    Raises:
        ImageRefused: the file has become shorter.
    """
    image = Image.new("RGB", (extent.width, extent.height))
    row_bytes = extent.width * BYTES_PER_PIXEL
    for top in range(0, extent.height, _ROWS_AT_ONCE):
        rows = min(_ROWS_AT_ONCE, extent.height - top)
        strip = os.pread(pixels, rows * row_bytes, top * row_bytes)
        if len(strip) < rows * row_bytes:
            raise ImageRefused("unreadable", UNREADABLE)
        image.paste(Image.frombytes("RGB", (extent.width, rows), strip), (0, top))
    image.save(path, format="PNG", compress_level=PNG_COMPRESS_LEVEL)
