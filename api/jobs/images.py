"""Strangers' pictures: what is accepted, and how it is made harmless.

A picture is known by its first bytes, not by its name; its size is read from the header before anything is decoded; it
is decoded once and written anew from its pixels as an upright sRGB PNG, so that no metadata, no colour profile and no
appended byte of the original survives. Refusals say what to do instead.
"""

from __future__ import annotations

import hashlib
import io
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from PIL import Image, ImageCms

from duolora.orientation import upright

if TYPE_CHECKING:
    from pathlib import Path

    from api.settings import ImageLimits

CONTENT_TYPE = "image/png"
HEAD_BYTES = 32
PNG_COMPRESS_LEVEL = 3
"""A third of the time of zlib's default for a few per cent more bytes."""

_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, KeyError, TypeError)
"""What Pillow's decoders raise for damaged data."""


class ImageRefused(Exception):
    """A picture cannot be used; the message is for its owner."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanImage:
    """A picture written anew."""

    path: Path
    sha256: str
    bytes: int
    width: int
    height: int


def clean(source: BinaryIO, size: int, path: Path, limits: ImageLimits) -> CleanImage:
    """Check a picture and write it anew as PNG.

    Args:
        source: the upload, at its beginning.
        size: its length in bytes.
        path: where the PNG goes.
        limits: what is accepted.

    Raises:
        ImageRefused: it cannot be used.
    """
    if size == 0:
        raise ImageRefused("empty", "The file has 0 bytes; send the picture itself.")
    if size > limits.max_bytes:
        raise ImageRefused("too_large", f"The file has {size} bytes; at most {limits.max_bytes} are accepted.")
    head = source.read(HEAD_BYTES)
    source.seek(0)
    form = _sniff(head)
    if form == "WEBP":
        _check_size(*_webp_size(head), limits)  # its decoder allocates the canvas as soon as it is opened
    try:
        with Image.open(source, formats=[form]) as image:
            _check_size(*image.size, limits)
            if form != "JPEG" and getattr(image, "is_animated", False):
                raise ImageRefused("animated", "The picture is animated; send a still one.")
            pixels = _pixels(image, limits)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels(limits) from error
    except _UNREADABLE as error:
        raise ImageRefused("damaged", "The picture is damaged or cut off; export it again and resend.") from error
    pixels.save(path, format="PNG", compress_level=PNG_COMPRESS_LEVEL)
    data = path.read_bytes()
    return CleanImage(
        path=path, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), width=pixels.width, height=pixels.height
    )


def _sniff(head: bytes) -> str:
    """Return the format that the first bytes announce."""
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    raise ImageRefused("not_an_image", "The file is not a JPEG, PNG or WebP picture; convert it to one of these.")


def _webp_size(head: bytes) -> tuple[int, int]:
    """Return width and height from the first chunk of a WebP file."""
    chunk, body = head[12:16], head[20:]
    try:
        if chunk == b"VP8X":
            return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
        if chunk == b"VP8L":
            bits = struct.unpack_from("<I", body, 1)[0]
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        if chunk == b"VP8 ":
            width, height = struct.unpack_from("<HH", body, 6)
            return width & 0x3FFF, height & 0x3FFF
    except struct.error as error:
        raise ImageRefused("damaged", "The picture is cut off; export it again and resend.") from error
    raise ImageRefused("damaged", "The WebP file begins with an unknown chunk; export it again and resend.")


def _check_size(width: int, height: int, limits: ImageLimits) -> None:
    """Refuse by the header alone."""
    if width * height > limits.max_pixels:
        raise _too_many_pixels(limits, f"{width} x {height}")
    if min(width, height) < limits.min_side_px:
        raise ImageRefused(
            "too_small", f"The picture is {width} x {height}; each side must have at least {limits.min_side_px} pixels."
        )


def _too_many_pixels(limits: ImageLimits, size: str = "too large") -> ImageRefused:
    most = f"{limits.max_pixels / 1e6:g} megapixels"
    return ImageRefused("too_many_pixels", f"The picture is {size}; at most {most} are accepted, so scale it down.")


def _pixels(image: Image.Image, limits: ImageLimits) -> Image.Image:
    """Decode, turn upright, convert to sRGB without alpha, scale down; the result carries nothing but pixels."""
    image.load()
    profile = image.info.get("icc_profile")
    opaque = _on_white(upright(image))
    plain = _to_srgb(opaque, profile)
    shorter = min(plain.size)
    if shorter > limits.keep_side_px:
        scale = limits.keep_side_px / shorter
        size = (max(round(plain.width * scale), 1), max(round(plain.height * scale), 1))
        plain = plain.resize(size, Image.Resampling.LANCZOS)
    bare = Image.new("RGB", plain.size)
    bare.paste(plain)
    return bare


def _on_white(image: Image.Image) -> Image.Image:
    """Return the picture without transparency and with 8 bits a channel."""
    if image.mode.startswith("I"):
        # 16 bits of grey; convert() would clip instead of scaling.
        return image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if not image.has_transparency_data:
        return image
    layer = image.convert("RGBA")
    ground = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(ground, layer).convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert by the embedded colour profile; one that is broken or for other channels is ignored."""
    if profile is not None and image.mode in {"RGB", "L", "CMYK"}:
        try:
            converted = ImageCms.profileToProfile(
                image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        except (ImageCms.PyCMSError, OSError):
            converted = None
        if converted is not None:
            return converted
    return image.convert("RGB")
