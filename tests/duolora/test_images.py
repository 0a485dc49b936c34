from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from duolora.errors import InvalidImage
from duolora.images import list_pictures, load_pictures, open_pictures, to_pictures

if TYPE_CHECKING:
    from pathlib import Path


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels.astype(np.uint8)).save(path, **options)
    return path


def test_pictures_are_listed_by_name_and_other_files_left_out(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.webp", "notes.txt", "d.jpeg"):
        (tmp_path / name).touch()

    assert [path.name for path in list_pictures(tmp_path)] == ["a.JPG", "b.png", "c.webp", "d.jpeg"]


@pytest.mark.parametrize("folder", ["empty", "absent"])
def test_folder_without_pictures_is_refused_by_name(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(InvalidImage, match=folder):
        list_pictures(tmp_path / folder)


def test_picture_becomes_numbers_from_minus_one_to_one(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64, 3))
    pixels[..., 0], pixels[..., 1] = 255, 51

    rgb = load_pictures([save(tmp_path / "a.png", pixels)], 64)

    assert rgb.shape == (1, 3, 64, 64)
    assert rgb.dtype == torch.float32
    assert rgb[0, :, 0, 0].tolist() == pytest.approx([1.0, -0.6, -1.0])


@pytest.mark.parametrize("size", [(40, 120), (120, 40), (200, 300)])
def test_picture_is_cropped_to_its_centre_not_squeezed(tmp_path: Path, size: tuple[int, int]) -> None:
    height, width = size
    pixels = np.zeros((height, width, 3))
    side = min(size)
    top, left = (height - side) // 2, (width - side) // 2
    pixels[top : top + side, left : left + side] = 255

    rgb = load_pictures([save(tmp_path / "a.png", pixels)], 64)

    # Resampling lets a little of the outside bleed over the border; squeezed, the border would be black (-1).
    assert rgb.min() > 0.5


def test_picture_is_turned_upright_as_its_camera_noted(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64, 3))
    pixels[:32] = 255  # white above
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees

    rgb = load_pictures([save(tmp_path / "a.png", pixels, exif=exif)], 64)

    assert rgb[0, 0, 5, 5] < -0.9
    assert rgb[0, 0, 60, 5] > 0.9


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_turns_it(tmp_path: Path, orientation: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", pixels, exif=exif)

    with Image.open(path) as opened:
        upright = np.asarray(ImageOps.exif_transpose(opened))
    assert np.array_equal(np.asarray(to_pictures(load_pictures([path], 64))[0]), upright)
    assert np.array_equal(np.asarray(open_pictures([path])[0]), upright)


def test_odd_exif_tags_do_no_harm(tmp_path: Path) -> None:
    """A description that is a number: Pillow's own turning writes all tags anew and fails on it."""
    tags = struct.pack("<HHI", 0x010E, 11, 1) + struct.pack("<f", 0.5) + struct.pack("<HHIHH", 0x0112, 3, 1, 3, 0)
    data = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + tags + struct.pack("<I", 0)
    path = tmp_path / "odd.jpg"
    Image.new("RGB", (64, 64), "red").save(path, exif=data)

    with Image.open(path) as opened, pytest.raises(AttributeError):
        ImageOps.exif_transpose(opened)
    assert load_pictures([path], 64).shape == (1, 3, 64, 64)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16"])
def test_pictures_of_any_mode_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new(mode, (70, 70)).save(path)

    assert load_pictures([path], 64).shape == (1, 3, 64, 64)


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"not a picture at all", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_file_that_is_no_picture_is_named(tmp_path: Path, content: bytes) -> None:
    good = save(tmp_path / "good.png", np.zeros((64, 64, 3)))
    (tmp_path / "bad.png").write_bytes(content)

    with pytest.raises(InvalidImage, match=r"bad\.png"):
        load_pictures([good, tmp_path / "bad.png"], 64)


def test_truncated_picture_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3))
    path = save(tmp_path / "cut.png", noise)
    path.write_bytes(path.read_bytes()[:2000])

    with pytest.raises(InvalidImage, match=r"cut\.png"):
        load_pictures([path], 64)


def test_tensors_become_the_pictures_they_came_from(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3))

    (picture,) = to_pictures(load_pictures([save(tmp_path / "a.png", noise)], 64))

    assert np.array_equal(np.asarray(picture), noise)


def test_values_beyond_the_range_are_clamped() -> None:
    (picture,) = to_pictures(torch.tensor([-7.0, 0.0, 9.0]).view(1, 3, 1, 1))

    assert picture.getpixel((0, 0)) == (0, 128, 255)
