"""Batches of the whole world: every glyph in every style, colour and ground, with nothing held out.

What the evaluator learns from. `duolora.tiny.world.TrainingWorld` is its sibling that keeps held-out things out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from duolora.tiny.atlas import Atlas, shipped_atlas
from duolora.tiny.captions import COLOURS, STYLES
from duolora.tiny.world import Dice, Grounds, draw_plain, draw_styled, place, sample_placement

# Legend: B pictures, C colours, G glyphs, H/W pixels.

PLAIN = len(STYLES) * len(COLOURS)
"""The look of a picture without a style; the look of style s in colour c is `s * len(COLOURS) + c`."""
GROUND_SHARE = 0.2
"""Share of the pictures on a ground of one colour, which changes no label."""


def whole_atlas(training: Atlas) -> Atlas:
    """Return the training glyphs and the shipped ones in one atlas, each name once."""
    shipped = shipped_atlas()
    missing = [name for name in shipped.names if name not in training.names]
    cells_G4HW = shipped.rgba_G4HW[[shipped.index(name) for name in missing]]
    return Atlas((*training.names, *missing), torch.cat([training.rgba_G4HW, cells_G4HW]))


@dataclass(frozen=True, slots=True)
class Seen:
    """What each picture shows: `glyph_B` into the atlas, `look_B` as `PLAIN` says."""

    glyph_B: Tensor
    look_B: Tensor


class WholeWorld:
    """Draws labelled pictures on one device with no transfer from the host, so that a CUDA graph can hold it."""

    def __init__(self, atlas: Atlas, device: torch.device) -> None:
        self.names = atlas.names
        self.device = device
        self._rgba_G4HW = atlas.rgba_G4HW.to(device)
        self._inks_C3 = torch.tensor(list(COLOURS.values()), device=device)

    def sample(self, dice: Dice, plain: int, per_style: int) -> tuple[Tensor, Seen]:
        """Return pictures (B,3,64,64) in [0,1], plain ones first, then an equal share of every style."""
        glyph_B = dice.below(len(self.names), plain + per_style * len(STYLES))
        pictures, looks = [self.draw(glyph_B[:plain], None, None, dice)], [torch.full_like(glyph_B[:plain], PLAIN)]
        for index, style in enumerate(STYLES):
            start = plain + index * per_style
            colour_B = dice.below(len(COLOURS), per_style)
            pictures.append(self.draw(glyph_B[start : start + per_style], style, colour_B, dice))
            looks.append(index * len(COLOURS) + colour_B)
        return torch.cat(pictures), Seen(glyph_B, torch.cat(looks))

    def draw(self, glyph_B: Tensor, style: str | None, colour_B: Tensor | None, dice: Dice) -> Tensor:
        """Return pictures (B,3,64,64) of glyphs, plain or in one style, each in its colour."""
        count = len(glyph_B)
        layer_B4HW = place(self._rgba_G4HW[glyph_B], sample_placement(dice, count))
        has_ground_B = (dice.uniform(count) < GROUND_SHARE).float()
        grounds = Grounds(self._rgb(dice.below(len(COLOURS), count)), has_ground_B.view(-1, 1, 1, 1))
        if style is None or colour_B is None:
            return draw_plain(layer_B4HW, dice, grounds)
        return draw_styled(style, layer_B4HW, self._rgb(colour_B), dice, grounds)

    def _rgb(self, colour_B: Tensor) -> Tensor:
        """Return colours by index as (B,3,1,1)."""
        return self._inks_C3[colour_B].view(-1, 3, 1, 1)
