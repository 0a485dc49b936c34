"""The picture of a merge report: how strongly each layer of the U-Net keeps either LoRA."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from duolora.method.merge_case import role_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WIDTH_PX = 1120
HALF_PX = 150
"""Height of the tallest bar."""
MARGIN_PX = 24
HEAD_PX = 64
FOOT_PX = 44
PAPER, INK, FAINT, LINE = (250, 250, 248), (28, 28, 30), (110, 110, 115), (215, 215, 212)
COLOURS = {"content": (38, 92, 150), "style": (190, 84, 48)}
"""Told apart by lightness too."""

_BLOCK = re.compile(r"^unet\.(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.")


@dataclass(frozen=True, slots=True)
class _Bar:
    """One layer: its block, and how much it keeps by role."""

    block: str
    kept: Mapping[str, float]


def merge_plot(layers: Mapping[str, Mapping[str, Any]]) -> Image.Image:
    """Draw content upwards and style downwards, a bar for each layer, in the U-Net's order.

    A bar is the mean strength of a side's ranks; several sides of one role stand on each other.

    Args:
        layers: layer name -> side -> `mean_mask`, as merge reports have them.
    """
    bars = [_Bar(_block(name), {role: _strength(layer, role) for role in COLOURS}) for name, layer in layers.items()]
    bars.sort(key=lambda bar: _order(bar.block))
    tallest = max((bar.kept[side] for bar in bars for side in COLOURS), default=0.0) or 1.0
    sheet = Image.new("RGB", (WIDTH_PX, HEAD_PX + 2 * HALF_PX + FOOT_PX), PAPER)
    draw = ImageDraw.Draw(sheet)
    _draw_head(draw, tallest)
    _draw_bars(draw, bars, tallest)
    return sheet


def _block(name: str) -> str:
    """Return the block of the U-Net that a layer is in."""
    found = _BLOCK.match(name)
    return found[1] if found else "other"


def _order(block: str) -> tuple[int, str]:
    """Sort blocks as a picture passes them."""
    kinds = ("down", "mid", "up", "other")
    return next(index for index, kind in enumerate(kinds) if block.startswith(kind)), block


def _strength(layer: Mapping[str, Any], role: str) -> float:
    """Return the mean masks of all sides of a role ("style", "style-2"), added up; 0 where a layer has none."""
    sides = [entry for side, entry in layer.items() if side != "role" and role_of(side).value == role]
    return sum(abs(float(entry["mean_mask"])) for entry in sides)


def _draw_head(draw: ImageDraw.ImageDraw, tallest: float) -> None:
    """Say what is seen, and what a full bar means."""
    draw.text((MARGIN_PX, 12), "What the merge keeps of each LoRA, layer by layer", INK, ImageFont.load_default(20))
    note = ImageFont.load_default(14)
    left = MARGIN_PX
    for side, direction in (("content", "up"), ("style", "down")):
        draw.rectangle((left, 42, left + 12, 54), COLOURS[side])
        words = f"{side} ({direction})"
        draw.text((left + 18, 39), words, INK, note)
        left += 40 + int(note.getlength(words))
    draw.text((left, 39), f"a full bar is a mean strength of {tallest:.2g}", FAINT, note)


def _draw_bars(draw: ImageDraw.ImageDraw, bars: Sequence[_Bar], tallest: float) -> None:
    """Draw all bars about the middle line, blocks apart and named."""
    middle, note = HEAD_PX + HALF_PX, ImageFont.load_default(14)
    step = (WIDTH_PX - 2 * MARGIN_PX) / max(1, len(bars))
    index = 0
    for block, of_block in groupby(bars, key=lambda bar: bar.block):
        begin = MARGIN_PX + index * step
        for bar in of_block:
            left = MARGIN_PX + index * step
            right = left + max(1.0, 0.8 * step)
            for side, up in (("content", -1), ("style", 1)):
                end = middle + up * HALF_PX * bar.kept[side] / tallest
                draw.rectangle((left, min(middle, end), right, max(middle, end)), COLOURS[side])
            index += 1
        draw.line((begin, HEAD_PX, begin, middle + HALF_PX), LINE)
        words = block.replace("_blocks.", " ").replace("_block", "")
        if note.getlength(words) < index * step + MARGIN_PX - begin:
            draw.text((begin + 4, middle + HALF_PX + 8), words, FAINT, note)
    draw.line((MARGIN_PX, middle, WIDTH_PX - MARGIN_PX, middle), INK)
