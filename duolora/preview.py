"""The labelled picture a person looks at: what went in, what each LoRA draws alone, and their marriage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from collections.abc import Sequence

CELL_PX = 176
GAP_PX = 10
LABEL_PX = 54
PAPER = (250, 250, 248)
INK = (28, 28, 30)
FAINT = (110, 110, 115)


@dataclass(frozen=True, slots=True)
class PreviewRow:
    """One row of the picture: a title, a line that explains it (a prompt, a count), and its pictures."""

    title: str
    note: str
    pictures: Sequence[Image.Image]


def preview_grid(rows: Sequence[PreviewRow], columns: int = 4) -> Image.Image:
    """Draw rows of pictures under their labels; a row shows its first `columns` pictures.

    Small pictures are enlarged without smoothing, so that every pixel the model drew can be seen.
    """
    shown = max(1, min(columns, max(len(row.pictures) for row in rows)))
    width = GAP_PX + shown * (CELL_PX + GAP_PX)
    height = GAP_PX + len(rows) * (LABEL_PX + CELL_PX + GAP_PX)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    title_font, note_font = ImageFont.load_default(20), ImageFont.load_default(14)
    for index, row in enumerate(rows):
        top = GAP_PX + index * (LABEL_PX + CELL_PX + GAP_PX)
        draw.text((GAP_PX, top + 4), row.title, INK, title_font)
        draw.text((GAP_PX, top + 30), row.note, FAINT, note_font)
        for column, picture in enumerate(row.pictures[:shown]):
            sheet.paste(_cell(picture), (GAP_PX + column * (CELL_PX + GAP_PX), top + LABEL_PX))
    return sheet


def _cell(picture: Image.Image) -> Image.Image:
    """Fit a picture into a cell."""
    enlarges = max(picture.size) < CELL_PX
    resampling = Image.Resampling.NEAREST if enlarges else Image.Resampling.LANCZOS
    return picture.convert("RGB").resize((CELL_PX, CELL_PX), resampling)
