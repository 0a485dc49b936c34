"""What is decided by a picture's first bytes, before anything is decoded."""

import io
import struct

import pytest
from PIL import Image, PngImagePlugin

from api.decoder import picture
from api.decoder.wire import Bounds, ImageRefused
from tests.api.factories import encode, png_header

BOUNDS = Bounds(max_pixels=1_000_000, min_side_px=32, keep_side_px=256, cpu_s=1, timeout_s=1, memory_bytes=1)


def refusal(data):
    with pytest.raises(ImageRefused) as caught:
        picture.read_pixels(io.BytesIO(data), BOUNDS)
    return caught.value


def webp_vp8x(width, height):
    """The header of an extended WebP that claims a canvas."""
    body = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunk = b"VP8X" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def test_a_bomb_is_refused_by_its_header_alone(monkeypatch):
    def explode(*_):
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", explode)
    detail = refusal(png_header(5_000, 5_000)).detail
    assert "5000 x 5000" in detail
    assert "scale it down" in detail


def test_a_webp_bomb_is_refused_before_its_decoder_is_opened(monkeypatch):
    def explode(*_, **__):
        raise AssertionError("the decoder was opened")

    monkeypatch.setattr(picture.Image, "open", explode)
    assert refusal(webp_vp8x(16_000, 16_000)).code == "too_many_pixels"


@pytest.mark.parametrize(
    ("mode", "options", "chunk"),
    [
        ("RGB", {}, b"VP8 "),
        ("RGB", {"lossless": True}, b"VP8L"),
        ("RGBA", {}, b"VP8X"),
    ],
)
def test_the_size_is_read_from_every_kind_of_webp_header(mode, options, chunk):
    head = encode(Image.new(mode, (123, 77), (10, 20, 30, 40)[: len(mode)]), "WEBP", **options)[: picture.HEAD_BYTES]
    assert head[12:16] == chunk
    assert picture._webp_size(head) == (123, 77)
