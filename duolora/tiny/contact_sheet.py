"""Contact sheets: many pictures as one, to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from pathlib import Path


def to_image(rgb_3HW: Tensor) -> Image.Image:
    """Return a picture in [0, 1] as an 8-bit image."""
    rgb_HW3 = (rgb_3HW.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(rgb_HW3))


def write_contact_sheet(rgb_B3HW: Tensor, path: Path, columns: int, zoom: int = 1) -> None:
    """Write pictures in [0, 1] row by row, `columns` to a row, each pixel `zoom` wide, with a gap of two pixels."""
    missing = -rgb_B3HW.shape[0] % columns
    padded = functional.pad(
        torch.cat([rgb_B3HW.float().cpu(), torch.ones(missing, *rgb_B3HW.shape[1:])]), (1, 1, 1, 1), value=1.0
    )
    rows, (height, width) = padded.shape[0] // columns, padded.shape[2:]
    grid = (
        padded.view(rows, columns, 3, height, width).permute(2, 0, 3, 1, 4).reshape(3, rows * height, columns * width)
    )
    image = to_image(grid)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(path)
