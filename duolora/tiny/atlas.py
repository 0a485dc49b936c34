"""Glyph pictures: rendering a sprite sheet from the colour emoji font (development only) and reading one back.

A sheet is an RGBA PNG of 64 px cells, row by row, with colour premultiplied by alpha. The shipped sheet holds the
held-out subjects and their companions; the sheet of the training glyphs is rebuilt from the font by
`python -m duolora.tiny.atlas FONT_TTF --training OUT_PNG` (or `--shipped`).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from duolora.tiny.captions import glyph_named, training_glyphs
from duolora.tiny.held_out import companion_subjects, held_out_subjects

CELL_PX = 64
COLUMNS = 16
FONT_SIZE = 109
"""The one bitmap size the font has."""

# Legend: G glyphs, H/W picture size; channel 4 = red, green, blue, alpha.


@dataclass(frozen=True, slots=True)
class Atlas:
    """Glyph pictures by index: `rgba_G4HW` is uint8 with colour premultiplied by alpha, `names[i]` names row i."""

    names: tuple[str, ...]
    rgba_G4HW: Tensor

    def index(self, name: str) -> int:
        """Return the row of the glyph called `name`; `KeyError` if this atlas has none."""
        if name not in self.names:
            raise KeyError(f"this atlas has no glyph called {name!r}")
        return self.names.index(name)


def shipped_names() -> tuple[str, ...]:
    """Return the names in the shipped sheet, in cell order."""
    return (*held_out_subjects(), *companion_subjects())


def training_names() -> tuple[str, ...]:
    """Return the names in the training sheet, in cell order."""
    return tuple(glyph.name for glyph in training_glyphs())


def read_sheet(path: Path, names: tuple[str, ...]) -> Atlas:
    """Read a sprite sheet whose cells are `names`, in order."""
    sheet_HW4 = np.asarray(Image.open(path).convert("RGBA"))
    rows = sheet_HW4.shape[0] // CELL_PX
    cells = sheet_HW4.reshape(rows, CELL_PX, COLUMNS, CELL_PX, 4).transpose(0, 2, 4, 1, 3)
    cells_G4HW = cells.reshape(-1, 4, CELL_PX, CELL_PX)
    if not 0 <= len(cells_G4HW) - len(names) < COLUMNS:
        raise ValueError(f"{path.name} has {len(cells_G4HW)} cells, {len(names)} names were given")
    return Atlas(names, torch.from_numpy(cells_G4HW[: len(names)].copy()))


@cache
def shipped_atlas() -> Atlas:
    """Return the atlas that comes with the package: every held-out subject and the companions."""
    return read_sheet(Path(__file__).with_name("atlas.png"), shipped_names())


def render_glyph(font: ImageFont.FreeTypeFont, codepoints: str) -> Image.Image:
    """Return one glyph, cropped to its ink and centred in a 64 px premultiplied cell (mode RGBa)."""
    text = "".join(chr(int(code, 16)) for code in codepoints.split())
    canvas = Image.new("RGBA", (4 * FONT_SIZE, 2 * FONT_SIZE))
    ImageDraw.Draw(canvas).text((FONT_SIZE, FONT_SIZE // 2), text, font=font, embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        raise ValueError(f"the font has no picture for {codepoints}")
    ink = canvas.crop(box).convert("RGBa")
    scale = CELL_PX / max(ink.size)
    size = (max(1, round(ink.width * scale)), max(1, round(ink.height * scale)))
    cell = Image.new("RGBa", (CELL_PX, CELL_PX))
    cell.paste(ink.resize(size, Image.Resampling.BOX), ((CELL_PX - size[0]) // 2, (CELL_PX - size[1]) // 2))
    return cell


def render_sheet(font_path: Path, names: tuple[str, ...], out: Path) -> None:
    """Write the sprite sheet of `names`."""
    font = ImageFont.truetype(str(font_path), FONT_SIZE)
    rows = ceil(len(names) / COLUMNS)
    sheet_HW4 = np.zeros((rows * CELL_PX, COLUMNS * CELL_PX, 4), dtype=np.uint8)
    for place, name in enumerate(names):
        top, left = place // COLUMNS * CELL_PX, place % COLUMNS * CELL_PX
        cell = render_glyph(font, glyph_named(name).codepoints)
        bytes_HW4 = np.frombuffer(cell.tobytes(), dtype=np.uint8).reshape(CELL_PX, CELL_PX, 4)
        sheet_HW4[top : top + CELL_PX, left : left + CELL_PX] = bytes_HW4
    Image.fromarray(sheet_HW4, "RGBA").save(out, optimize=True)


def main() -> None:
    """Render a sprite sheet from the font."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("font", type=Path)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--training", type=Path, metavar="OUT_PNG")
    which.add_argument("--shipped", action="store_true")
    arguments = parser.parse_args()
    if arguments.shipped:
        render_sheet(arguments.font, shipped_names(), Path(__file__).with_name("atlas.png"))
    else:
        render_sheet(arguments.font, training_names(), arguments.training)


if __name__ == "__main__":
    main()
