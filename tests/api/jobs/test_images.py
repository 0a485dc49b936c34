"""Every sort of picture that is taken or refused."""

import io
import struct
import subprocess
import sys
from types import SimpleNamespace

import pytest
from PIL import Image, ImageCms, PngImagePlugin

from api.jobs.images import ImageRefused, clean
from api.settings import ImageLimits
from tests.api.factories import encode, png, png_header

LIMITS = ImageLimits(max_bytes=200_000, max_pixels=1_000_000, min_side_px=32, keep_side_px=256)
NOISE = Image.effect_noise((120, 90), 80).convert("RGB")


def accept(data, tmp_path, limits=LIMITS):
    result = clean(io.BytesIO(data), len(data), tmp_path / "out.png", limits)
    with Image.open(result.path) as image:
        image.load()
        return SimpleNamespace(result=result, image=image.copy(), info=dict(image.info), raw=result.path.read_bytes())


def refusal(data, tmp_path, limits=LIMITS):
    path = tmp_path / "out.png"
    with pytest.raises(ImageRefused) as caught:
        clean(io.BytesIO(data), len(data), path, limits)
    assert not path.exists()
    assert caught.value.detail.endswith(".")
    return caught.value


def webp_vp8x(width, height):
    """The header of an extended WebP that claims a canvas."""
    body = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunk = b"VP8X" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def animation(form):
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    return encode(frames[0], form, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_picture_is_kept_as_a_plain_rgb_png(form, tmp_path):
    kept = accept(encode(NOISE, form), tmp_path)
    assert (kept.image.format, kept.image.mode, kept.image.size) == (None, "RGB", (120, 90))
    assert (kept.result.width, kept.result.height, kept.result.bytes) == (120, 90, len(kept.raw))
    assert kept.raw.startswith(b"\x89PNG")


def test_lossless_pixels_are_not_touched(tmp_path):
    for form, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        assert accept(encode(NOISE, form, **options), tmp_path).image.tobytes() == NOISE.tobytes()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty"),
        (b"hello, I am no picture, though I am long enough to be one", "not_an_image"),
        (b"GIF89a" + bytes(64), "not_an_image"),
        (b"%PDF-1.7" + bytes(64), "not_an_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
        (encode(NOISE, "GIF"), "not_an_image"),
        (encode(NOISE, "TIFF"), "not_an_image"),
        (encode(NOISE, "BMP"), "not_an_image"),
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1heic" + bytes(64), "heic"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1" + bytes(64), "not_an_image"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (b"\xff\xd8\xff", "damaged"),
        (b"\xff\xd8\xff\xe0" + bytes(500), "damaged"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "damaged"),
        (b"RIFF\x10\0\0\0WEBPJUNK" + bytes(40), "damaged"),
        (encode(NOISE, "PNG")[:-2000], "damaged"),
        (encode(NOISE, "JPEG")[:-1000], "damaged"),
        (encode(NOISE, "WEBP")[:-1000], "damaged"),
        (encode(NOISE, "PNG")[:40], "damaged"),
        (png_header(30_000, 30_000), "too_many_pixels"),
        (png_header(1001, 1000), "too_many_pixels"),
        (png_header(2**31 - 1, 2**31 - 1), "too_many_pixels"),
        (webp_vp8x(16_000, 16_000), "too_many_pixels"),
        (png((31, 500)), "too_small"),
        (png((500, 1)), "too_small"),
        (animation("PNG"), "animated"),
        (animation("WEBP"), "animated"),
        (bytes(200_001), "too_large"),
    ],
)
def test_what_cannot_be_used_is_refused(data, code, tmp_path):
    assert refusal(data, tmp_path).code == code


@pytest.mark.parametrize("cut", range(0, 3000, 97))
def test_a_file_cut_anywhere_is_refused_or_whole(cut, tmp_path):
    data = encode(NOISE, "PNG")
    assert refusal(data[:cut], tmp_path).code in {"empty", "not_an_image", "damaged"}


def test_the_extension_of_a_name_is_never_asked(tmp_path):
    assert accept(encode(NOISE, "JPEG"), tmp_path).image.size == (120, 90)  # written to out.png, read as JPEG


def test_orientation_is_applied_and_dropped(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    picture = Image.new("RGB", (80, 40), "black")
    picture.paste((255, 255, 255), (0, 0, 40, 40))  # left half white; upright it is the upper half
    kept = accept(encode(picture, "PNG", exif=exif), tmp_path)
    assert kept.image.size == (40, 80)
    assert kept.image.getpixel((20, 10)) == (255, 255, 255)
    assert kept.image.getpixel((20, 70)) == (0, 0, 0)
    assert not kept.image.getexif()


def upside(orientation):
    """A picture that is stored so that its EXIF turns it back to white above black, with a red top left corner."""
    upright = Image.new("RGB", (80, 120), "black")
    upright.paste((255, 255, 255), (0, 0, 80, 60))
    upright.paste((255, 0, 0), (0, 0, 20, 20))
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    return upright, encode(stored[orientation], "PNG", exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_ends_upright(orientation, tmp_path):
    upright, data = upside(orientation)
    assert accept(data, tmp_path).image.tobytes() == upright.tobytes()


def tiff(*entries):
    """EXIF of raw entries (tag, type, count, four bytes of value), the way no writer would make it."""
    body = b"".join(struct.pack(">HHI4s", *entry) for entry in entries)
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + body + bytes(12)


TURNED = (0x0112, 3, 1, b"\0\x06\0\0")
ODD_EXIF = {
    "a rational for a date": (tiff((0x0132, 5, 1, b"\0\0\0\x08"), TURNED), (90, 120)),
    "a double for a text": (tiff((0x010F, 12, 1, b"\0\0\0\x08"), TURNED), (90, 120)),
    "a text for the orientation": (tiff((0x0112, 2, 4, b"six\0")), (120, 90)),
    "an orientation that does not exist": (tiff((0x0112, 3, 1, b"\0\x63\0\0")), (120, 90)),
    "no TIFF at all": (b"Exif\0\0nonsense", (120, 90)),
    "cut off": (tiff(TURNED)[:18], (120, 90)),
    "empty": (b"Exif\0\0", (120, 90)),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
@pytest.mark.parametrize(("exif", "size"), ODD_EXIF.values(), ids=ODD_EXIF)
def test_odd_metadata_does_not_spoil_a_healthy_picture(exif, size, form, tmp_path):
    assert accept(encode(NOISE, form, exif=exif), tmp_path).image.size == size


def test_no_metadata_and_no_appended_bytes_survive(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "SECRET-PLACE"
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "SECRET-PLACE")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for data in (
        encode(NOISE, "PNG", exif=exif, pnginfo=text, icc_profile=profile) + b"SECRET-PLACE",
        encode(NOISE, "JPEG", exif=exif, comment=b"SECRET-PLACE", icc_profile=profile) + b"SECRET-PLACE",
        encode(NOISE, "WEBP", exif=exif, xmp=b"SECRET-PLACE", icc_profile=profile),
    ):
        kept = accept(data, tmp_path)
        assert b"SECRET" not in kept.raw
        assert kept.info == {}
        assert {b"eXIf", b"iCCP", b"iTXt", b"tEXt", b"zTXt"} & {
            kept.raw[at : at + 4] for at in range(len(kept.raw))
        } == set()


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (64, 64), 128), (128, 128, 128)),
        (Image.new("1", (64, 64), 1), (255, 255, 255)),
        (Image.new("P", (64, 64), 0), None),
        (Image.new("RGBA", (64, 64), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (64, 64), (255, 0, 0, 255)), (255, 0, 0)),
        (Image.new("LA", (64, 64), (0, 0)), (255, 255, 255)),
        (Image.new("I;16", (64, 64), 32896), (128, 128, 128)),
    ],
)
def test_other_modes_become_rgb_on_white(image, expected, tmp_path):
    kept = accept(encode(image, "PNG"), tmp_path)
    assert kept.image.mode == "RGB"
    if expected is not None:
        assert kept.image.getpixel((5, 5)) == expected


def test_cmyk_becomes_rgb(tmp_path):
    kept = accept(encode(Image.new("CMYK", (64, 64), (0, 0, 0, 0)), "JPEG"), tmp_path)
    assert min(kept.image.getpixel((5, 5))) > 250


def test_a_broken_colour_profile_is_ignored(tmp_path):
    kept = accept(encode(NOISE, "PNG", icc_profile=b"not a profile"), tmp_path)
    assert kept.image.tobytes() == NOISE.tobytes()


def test_a_large_picture_is_scaled_to_what_training_can_use(tmp_path):
    kept = accept(encode(Image.new("RGB", (1200, 600), "red"), "JPEG"), tmp_path)
    assert kept.image.size == (512, 256)


def test_the_limits_are_inclusive(tmp_path):
    assert accept(png((1000, 1000)), tmp_path).image.size == (256, 256)
    assert accept(png((32, 32)), tmp_path).image.size == (32, 32)
    data = png()
    exact = LIMITS.model_copy(update={"max_bytes": len(data)})
    accept(data, tmp_path, exact).result.path.unlink()
    assert refusal(data, tmp_path, LIMITS.model_copy(update={"max_bytes": len(data) - 1})).code == "too_large"


CUT_OFF = """
import io, os, sys
from pathlib import Path
from PIL import Image
from api.decoder.wire import Size
from api.jobs import images
from api.settings import ImageLimits
from tests.api.factories import png

class TakenOver:
    def decode(self, source, target, bounds):
        os.truncate(target, 64 * 2000 * 3)
        self.target = target
        return Size(64, 2000)

def cut_off_and_read(*arguments):
    os.truncate(images.DECODER.target, 0)
    return read(*arguments)

images.DECODER, read, Image.frombytes = TakenOver(), Image.frombytes, cut_off_and_read
try:
    images.clean(io.BytesIO(png()), 100, Path(sys.argv[1]), ImageLimits())
except images.ImageRefused as refusal:
    print(refusal.code)
"""


def test_pixels_that_are_cut_off_while_they_are_read_cost_their_own_picture_only(tmp_path):
    words = [sys.executable, "-c", CUT_OFF, tmp_path / "out.png"]  # a process of its own: a mapped file would end it
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "unreadable\n"), done.stderr
    assert list(tmp_path.iterdir()) == []
