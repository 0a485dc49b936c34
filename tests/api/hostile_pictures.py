"""Pictures that nobody sends by accident, or that few programs write: what is refused with which code, what is taken.

All are made here, so that no file in the repository is one that a scanner would stop at.
"""

import gzip
import io
import pickle
import struct
import zipfile
import zlib

from PIL import Image, ImageCms, PngImagePlugin

from tests.api.factories import encode, png_header

NOISE = Image.effect_noise((96, 64), 80).convert("RGB")
MARK = b"<script>alert('LEFTOVER')</script>"
"""Must not be in anything that is kept."""
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
_PNG = encode(NOISE, "PNG")
_JPEG = encode(NOISE, "JPEG")
_WEBP = encode(NOISE, "WEBP")


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(*chunks):
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def png_with(kind, body):
    """A healthy PNG with one more chunk, right after its header."""
    return _PNG[:33] + chunk(kind, body) + _PNG[33:]


def png_raw(width, height, depth, colour, rows, **header):
    """A PNG of raw rows, each with its filter byte."""
    start = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, header.get("interlace", 0))
    return png_of(chunk(b"IHDR", start), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))


def segment(marker, body):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def jpeg_with(marker, body):
    """A healthy JPEG with one more segment in front."""
    return _JPEG[:2] + segment(marker, body) + _JPEG[2:]


def frames(form):
    first, *others = [Image.new("RGB", (64, 64), color) for color in ("red", "lime", "blue")]
    return encode(first, form, save_all=True, append_images=others)


def box(brand, *others):
    body = brand + bytes(4) + b"".join(others)
    return struct.pack(">I", len(body) + 8) + b"ftyp" + body + bytes(200)


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("content/0.png", _PNG)
        archive.writestr("../../escape.html", MARK)
    return buffer.getvalue()


def looping_exif():
    """EXIF whose second directory is its first."""
    entry = struct.pack(">HHII", 0x8769, 4, 1, 8)
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 1) + entry + struct.pack(">I", 8)


def endless_scans(size, times):
    """A progressive JPEG whose last scan comes again and again: little to send, much to decode."""
    whole = encode(Image.new("RGB", size, "gray"), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * times + b"\xff\xd9"


def patched(data, at, value):
    return data[:at] + value + data[at + len(value) :]


_SOF = _JPEG.index(b"\xff\xc0")

REFUSED = {
    "nothing": (b"", "empty"),
    "zeros": (bytes(5000), "not_an_image"),
    "text": (b"a picture is worth a thousand words " * 9, "not_an_image"),
    "web page": (b"<!doctype html>" + MARK, "not_an_image"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'>" + MARK + b"</svg>", "not_an_image"),
    "SVG with entities": (
        b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><svg>&e;</svg>',
        "not_an_image",
    ),
    "packed SVG": (gzip.compress(b"<svg/>"), "not_an_image"),
    "PDF": (b"%PDF-1.7\n" + bytes(200), "not_an_image"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n" + bytes(99), "not_an_image"),
    "FITS": (b"SIMPLE  =                    T" + b" " * 3000, "not_an_image"),
    "Photoshop": (b"8BPS\0\x01" + bytes(200), "not_an_image"),
    "icon": (encode(NOISE, "ICO"), "not_an_image"),
    "BMP": (encode(NOISE, "BMP"), "not_an_image"),
    "TIFF": (encode(NOISE, "TIFF"), "not_an_image"),
    "GIF": (frames("GIF"), "not_an_image"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(200), "not_an_image"),
    "zip": (zipped(), "not_an_image"),
    "program": (b"\x7fELF\x02\x01\x01" + bytes(200), "not_an_image"),
    "pickle": (pickle.dumps({"weights": list(range(99))}), "not_an_image"),
    "film": (box(b"isom", b"mp41"), "not_an_image"),
    "AVIF": (box(b"avif", b"mif1"), "not_an_image"),
    "HEIC": (box(b"heic", b"mif1"), "heic"),
    "HEIC of ten bits": (box(b"heix", b"mif1"), "heic"),
    "HEIF": (box(b"mif1", b"heic"), "heic"),
    "a line before the JPEG": (b"\n" + _JPEG, "not_an_image"),
    "a JPEG's first bytes": (b"\xff\xd8\xff\xe0", "damaged"),
    "a PNG's first bytes": (_PNG[:8], "damaged"),
    "cut PNG": (_PNG[: len(_PNG) // 2], "damaged"),
    "cut JPEG": (_JPEG[: len(_JPEG) // 2], "damaged"),
    "cut WebP": (_WEBP[: len(_WEBP) // 2], "damaged"),
    "PNG with a wrong checksum": (patched(_PNG, 29, bytes(4)), "damaged"),
    "PNG of 0 x 0": (png_raw(0, 0, 8, 2, b""), "damaged"),
    "PNG of no known depth": (png_raw(64, 64, 3, 2, bytes(9999)), "damaged"),
    "PNG without pixels": (png_of(_PNG[8:33], chunk(b"IEND", b"")), "damaged"),
    "PNG whose stream is no stream": (
        png_of(_PNG[8:33], chunk(b"IDAT", b"\x78\x9c" + bytes(99)), chunk(b"IEND", b"")),
        "damaged",
    ),
    "PNG with an endless chunk": (_PNG[:33] + b"\x7f\xff\xff\xffIDAT" + bytes(99), "unreadable"),
    "PNG whose text inflates to 300 MB": (
        png_with(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(300_000_000), 9)),
        "damaged",
    ),
    "PNG whose colour profile inflates to 300 MB": (
        png_with(b"iCCP", b"icc\0\0" + zlib.compress(bytes(300_000_000), 9)),
        "damaged",
    ),
    "PNG of 900 megapixels": (png_header(30_000, 30_000), "too_many_pixels"),
    "PNG one row too high": (png_header(10_000, 5_001), "too_many_pixels"),
    "PNG of 2^62 pixels": (png_header(2**31 - 1, 2**31 - 1), "too_many_pixels"),
    "JPEG of 65535 x 65535": (patched(_JPEG, _SOF + 5, b"\xff\xff\xff\xff"), "too_many_pixels"),
    "JPEG without height": (patched(_JPEG, _SOF + 5, b"\0\0"), "damaged"),
    "JPEG of 12 bits": (patched(_JPEG, _SOF + 4, b"\x0c"), "damaged"),
    "WebP of 16384 x 16384": (
        b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xff\x3f\0" * 2,
        "too_many_pixels",
    ),
    "sliver": (encode(Image.new("RGB", (5000, 8)), "PNG"), "too_small"),
    "moving PNG": (frames("PNG"), "animated"),
    "moving WebP": (frames("WEBP"), "animated"),
}
"""Name -> file, and the code it is refused with."""


def _exif(orientation):
    made = Image.Exif()
    made[0x0112] = orientation
    made[0x010E] = MARK.decode()
    return made


def _text():
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", MARK.decode())
    info.add_itxt("XML:com.adobe.xmp", MARK.decode())
    return info


ACCEPTED = {
    "JPEG": (_JPEG, (96, 64)),
    "PNG": (_PNG, (96, 64)),
    "WebP": (_WEBP, (96, 64)),
    "PNG and zip": (_PNG + zipped(), (96, 64)),
    "JPEG and web page": (_JPEG + MARK, (96, 64)),
    "JPEG with a web page inside": (jpeg_with(0xFE, MARK), (96, 64)),
    "WebP and program": (_WEBP + b"\x7fELF" + MARK, (96, 64)),
    "PNG with words": (encode(NOISE, "PNG", pnginfo=_text(), exif=_exif(1), icc_profile=_SRGB), (96, 64)),
    "on its side": (encode(NOISE, "JPEG", exif=_exif(6)), (64, 96)),
    "EXIF that is none": (jpeg_with(0xE1, b"Exif\0\0" + b"\xff" * 99), (96, 64)),
    "EXIF in a circle": (jpeg_with(0xE1, looping_exif()), (96, 64)),
    "EXIF with no end": (jpeg_with(0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff"), (96, 64)),
    "profile that is none": (encode(NOISE, "JPEG", icc_profile=b"\0\0\x0c\x48lcms" + bytes(900)), (96, 64)),
    "profile cut off": (encode(NOISE, "JPEG", icc_profile=_SRGB[:200]), (96, 64)),
    "grey profile on colours": (
        encode(NOISE, "JPEG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()),
        (96, 64),
    ),
    "CMYK": (encode(NOISE.convert("CMYK"), "JPEG"), (96, 64)),
    "16 bits of colour": (png_raw(64, 48, 16, 2, (b"\0" + b"\x80\x00\x40\x00\x20\x00" * 64) * 48), (64, 48)),
    "16 bits of grey": (png_raw(64, 48, 16, 0, (b"\0" + b"\x80\x00" * 64) * 48), (64, 48)),
}
MORE_ACCEPTED = {
    "PNG with too few rows": (png_raw(64, 64, 8, 2, bytes(193 * 8)), (64, 64)),  # the others are black, as in browsers
    "16 bits with alpha": (png_raw(64, 48, 16, 6, (b"\0" + b"\x80\x00" * 256) * 48), (64, 48)),
    "one bit": (encode(NOISE.convert("1"), "PNG"), (96, 64)),
    "palette with a hole": (encode(NOISE.convert("P"), "PNG", transparency=0), (96, 64)),
    "progressive": (encode(NOISE, "JPEG", progressive=True), (96, 64)),
    "two pictures in one JPEG": (encode(NOISE, "MPO", save_all=True, append_images=[NOISE]), (96, 64)),
    "49 megapixels in 6 kB": (encode(Image.new("1", (7000, 7000)), "PNG"), (2048, 2048)),
}
"""Name -> file, and the size of what is kept. Twenty a side are one submission."""

FILE_NAMES = [
    "picture.jpg.exe",
    "../../etc/passwd",
    "C:\\windows\\x.png",
    "a\x00b.png",
    "p" * 3000,
    "пейзаж.png",
    "x.svg",
    '"; rm -rf /; ".png',
]
"""What a file may be called: nobody asks."""
