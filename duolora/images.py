"""Pictures to tensors and back. N pictures, 3 channels red green blue, H = W = resolution; values in [-1, 1]."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from duolora.errors import InvalidImage
from duolora.orientation import upright

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Endings of the files that a folder of pictures is searched for."""
UNREADABLE = (UnidentifiedImageError, OSError, Image.DecompressionBombError)
"""What Pillow raises of files that are no pictures."""
MOST_READ_AT_ONCE = 8
"""Pictures that are read at once, where the engine may use so many threads."""
PIXELS_AT_ONCE = 64_000_000
"""Pixels of all pictures that are read at once: each takes some bytes until its picture is cut and made smaller."""


def list_pictures(folder: Path) -> list[Path]:
    """Return the pictures of a folder in the order of their names.

    Raises:
        InvalidImage: there are none.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not paths:
        raise InvalidImage(f"{folder} holds no pictures ({', '.join(SUFFIXES)})")
    return paths


def load_pictures(paths: Sequence[Path], resolution_px: int) -> Tensor:
    """Read pictures, crop each to its central square and resize it; (N, 3, H, W) float32 in [-1, 1].

    Raises:
        InvalidImage: a file cannot be read as a picture; the message names it.
    """
    largest = max((_pixels(path) for path in paths), default=1)
    at_once = max(1, min(MOST_READ_AT_ONCE, torch.get_num_threads(), PIXELS_AT_ONCE // largest))
    with ThreadPoolExecutor(at_once) as pool:  # Pillow lets other threads run
        pictures = list(pool.map(partial(_square, resolution_px=resolution_px), paths))
    rgb_NHWC = torch.from_numpy(np.stack([np.asarray(picture, dtype=np.float32) for picture in pictures]))
    return rgb_NHWC.permute(0, 3, 1, 2).contiguous() / 127.5 - 1.0


def open_pictures(paths: Iterable[Path]) -> list[Image.Image]:
    """Read pictures for showing or judging: RGB, upright, as training takes them."""
    shown = []
    for path in paths:
        with Image.open(path) as picture:
            shown.append(upright(picture).convert("RGB"))
    return shown


def to_pictures(rgb_NCHW: Tensor) -> list[Image.Image]:
    """Turn tensors in [-1, 1] into pictures of 8 bits a channel."""
    bytes_NHWC = ((rgb_NCHW.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
    return [Image.fromarray(picture.numpy()) for picture in bytes_NHWC]


def picture_bytes(pictures: Sequence[Image.Image]) -> Tensor:
    """Return pictures of one size as their bytes, (N, H, W, 3) uint8."""
    return torch.from_numpy(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]))


def pictures_of_bytes(bytes_NHWC: Tensor) -> list[Image.Image]:
    """Return the pictures of bytes (N, H, W, 3) uint8."""
    return [Image.fromarray(picture_HWC.numpy()) for picture_HWC in bytes_NHWC]


def _pixels(path: Path) -> int:
    """Return how many pixels a picture says that it has; 1 for one that cannot be read, as reading it will tell."""
    try:
        with Image.open(path) as opened:
            return opened.width * opened.height
    except UNREADABLE:
        return 1


def _square(path: Path, resolution_px: int) -> Image.Image:
    """Central square of one picture, upright, RGB, at the given resolution."""
    try:
        with Image.open(path) as opened:
            picture = upright(opened).convert("RGB")
    except UNREADABLE as error:
        raise InvalidImage(f"{path.name} is not a readable picture: {error}") from error
    return ImageOps.fit(picture, (resolution_px, resolution_px), Image.Resampling.LANCZOS)
