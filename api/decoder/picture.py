"""From a stranger's file to pixels: upright, sRGB, without transparency. Runs in the decoder only.

A picture is known by its first bytes, not by its name; its size is read from the header before anything is decoded.
Refusals say what to do instead.
"""

from __future__ import annotations

import io
import struct
import warnings
from typing import TYPE_CHECKING, BinaryIO

from PIL import Image, ImageCms

from api.decoder.wire import ImageRefused
from duolora.orientation import upright

if TYPE_CHECKING:
    from api.decoder.wire import Bounds

HEAD_BYTES = 32
FORMATS = ("JPEG", "PNG", "WEBP")

HEIC_REMEDY = (
    "HEIC pictures are not read; export the picture as JPEG and resend. An iPhone takes JPEG pictures after Settings > "
    "Camera > Formats > Most Compatible."
)
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
"""ISO/IEC 23008-12, annex B: major brands of HEIF files with HEVC in them, and the general ones."""

_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, KeyError, TypeError)
"""What Pillow's decoders raise for damaged data."""


def read_pixels(source: BinaryIO, bounds: Bounds) -> Image.Image:
    """Return a file's picture as RGB.

    Raises:
        ImageRefused: it cannot be used.
    """
    head = source.read(HEAD_BYTES)
    source.seek(0)
    form = _sniff(head)
    if form == "WEBP":
        _check_size(*_webp_size(head), bounds)  # its decoder allocates the canvas as soon as it is opened
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=[form]) as image:
                _check_size(*image.size, bounds)
                if form != "JPEG" and getattr(image, "is_animated", False):
                    raise ImageRefused("animated", "The picture is animated; send a still one.")
                return _pixels(image, bounds)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels(bounds) from error
    except _UNREADABLE as error:
        raise ImageRefused("damaged", "The picture is damaged or cut off; export it again and resend.") from error


def _sniff(head: bytes) -> str:
    """Return the format that the first bytes announce."""
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS:
        raise ImageRefused("heic", HEIC_REMEDY)
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


def _check_size(width: int, height: int, bounds: Bounds) -> None:
    """Refuse by the header alone."""
    if width * height > bounds.max_pixels:
        raise _too_many_pixels(bounds, f"{width} x {height}")
    if min(width, height) < bounds.min_side_px:
        raise ImageRefused(
            "too_small", f"The picture is {width} x {height}; each side must have at least {bounds.min_side_px} pixels."
        )


def _too_many_pixels(bounds: Bounds, size: str = "too large") -> ImageRefused:
    most = f"{bounds.max_pixels / 1e6:g} megapixels"
    return ImageRefused("too_many_pixels", f"The picture is {size}; at most {most} are accepted, so scale it down.")


def _pixels(image: Image.Image, bounds: Bounds) -> Image.Image:
    """Decode, turn upright, convert to sRGB without alpha, scale down."""
    image.load()
    profile = image.info.get("icc_profile")
    opaque = _on_white(upright(image))
    plain = _to_srgb(opaque, profile)
    shorter = min(plain.size)
    if shorter > bounds.keep_side_px:
        scale = bounds.keep_side_px / shorter
        size = (max(round(plain.width * scale), 1), max(round(plain.height * scale), 1))
        plain = plain.resize(size, Image.Resampling.LANCZOS)
    return plain


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
