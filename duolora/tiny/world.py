"""The procedural world: random placements of glyphs, single true pictures by seed, and captioned training batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from duolora.tiny.atlas import Atlas, shipped_atlas
from duolora.tiny.captions import COLOURS, STYLES, training_colours
from duolora.tiny.styles import CELLS_PER_SIDE, DRAW, Scene, blur

RESOLUTION_PX = 64
MAX_TURN_RAD = math.radians(12)
SCALE_RANGE = (0.6, 0.95)
GROUND_SHARE = 0.2
"""Share of the training pictures whose background has a colour that the caption names."""
GROUND_WASH = 0.65
"""How much of a style's own ground is covered when a caption asks for a background of one colour."""

# Legend: B batch, G glyphs, H/W pixels, L tokens; B311 is one colour per picture. Pictures are float32 in [0, 1].


@dataclass(frozen=True, slots=True)
class Placement:
    """Where glyphs stand.

    `scale_B` is side over picture side, `shift_B2` the centre (x, y; the picture is [-1,1]), `turn_B` radians, `flip_B`
    1 or -1.
    """

    scale_B: Tensor
    shift_B2: Tensor
    turn_B: Tensor
    flip_B: Tensor


class Dice:
    """Uniform numbers on one device; `generator=None` takes the device's default one, as CUDA graphs need."""

    def __init__(self, device: torch.device, generator: torch.Generator | None = None) -> None:
        self.device = device
        self.generator = generator

    def uniform(self, *shape: int) -> Tensor:
        """Return float32 numbers in [0, 1) of the given shape."""
        return torch.rand(shape, generator=self.generator, device=self.device)

    def below(self, limit: int, *shape: int) -> Tensor:
        """Return int64 numbers in [0, limit) of the given shape."""
        return (self.uniform(*shape) * limit).long().clamp_max(limit - 1)


def sample_placement(dice: Dice, count: int) -> Placement:
    """Draw `count` placements that keep the glyph inside the picture."""
    low, high = SCALE_RANGE
    scale_B = low + (high - low) * dice.uniform(count)
    room_B1 = (1 - scale_B)[:, None]
    shift_B2 = room_B1 * (2 * dice.uniform(count, 2) - 1)
    turn_B = MAX_TURN_RAD * (2 * dice.uniform(count) - 1)
    flip_B = torch.where(dice.uniform(count) < 0.5, -1.0, 1.0)
    return Placement(scale_B, shift_B2, turn_B, flip_B)


def place(rgba_B4HW: Tensor, placement: Placement) -> Tensor:
    """Return glyph cells (uint8, premultiplied) as placed float32 layers (B,4,64,64) in [0, 1]."""
    cosine, sine = torch.cos(placement.turn_B), torch.sin(placement.turn_B)
    inverse_B = 1 / placement.scale_B
    x, y = placement.shift_B2[:, 0], placement.shift_B2[:, 1]
    across_B3 = torch.stack([cosine, sine, -(cosine * x + sine * y)], dim=1) * (inverse_B * placement.flip_B)[:, None]
    down_B3 = torch.stack([-sine, cosine, sine * x - cosine * y], dim=1) * inverse_B[:, None]
    theta_B23 = torch.stack([across_B3, down_B3], dim=1)
    size = [rgba_B4HW.shape[0], 4, RESOLUTION_PX, RESOLUTION_PX]
    grid = functional.affine_grid(theta_B23, size, align_corners=False)
    return functional.grid_sample(
        rgba_B4HW.float() / 255, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )


def sample_background(dice: Dice, count: int) -> Tensor:
    """Draw `count` plain backgrounds (B,3,64,64): one random colour each, lighter or darker towards one end."""
    rgb_B311 = dice.uniform(count, 3, 1, 1)
    rgb_B311 = rgb_B311 + (1 - rgb_B311) * 0.75 * dice.uniform(count, 1, 1, 1)
    ramp_H = torch.linspace(-1, 1, RESOLUTION_PX, device=dice.device).view(1, 1, -1, 1)
    slope_B111 = 0.3 * (dice.uniform(count, 1, 1, 1) - 0.5)
    ramp_BHW = (ramp_H * slope_B111).expand(count, 3, RESOLUTION_PX, RESOLUTION_PX)
    return (rgb_B311 + ramp_BHW).clamp(0, 1)


def sample_scene(layer_B4HW: Tensor, ink_B311: Tensor, dice: Dice) -> Scene:
    """Draw the random parameters of a style for placed glyphs in the given colours."""
    count = layer_B4HW.shape[0]
    noise = dice.uniform(count, 1, RESOLUTION_PX, RESOLUTION_PX) - 0.5
    return Scene(
        rgb_B3HW=layer_B4HW[:, :3],
        alpha_B1HW=layer_B4HW[:, 3:],
        ink_B311=ink_B311,
        phase_B2=dice.uniform(count, 2),
        grain_B1HW=blur(noise, 1.2) * 14,
        jitter_BK2=dice.uniform(count, CELLS_PER_SIDE**2, 2),
        shade_BK=dice.uniform(count, CELLS_PER_SIDE**2),
    )


@dataclass(frozen=True, slots=True)
class Grounds:
    """Backgrounds in one colour: `rgb_B311`, and `share_B111`, 1 where a picture has one and 0 where not."""

    rgb_B311: Tensor
    share_B111: Tensor


def draw_plain(layer_B4HW: Tensor, dice: Dice, grounds: Grounds | None = None) -> Tensor:
    """Return placed glyphs in their own colours on plain backgrounds (B,3,64,64)."""
    alpha_B1HW = layer_B4HW[:, 3:]
    background = sample_background(dice, layer_B4HW.shape[0])
    if grounds is not None:
        background = background + grounds.share_B111 * (grounds.rgb_B311 - background)
    return layer_B4HW[:, :3] + (1 - alpha_B1HW) * background


def draw_styled(style: str, layer_B4HW: Tensor, ink_B311: Tensor, dice: Dice, grounds: Grounds | None = None) -> Tensor:
    """Return placed glyphs drawn in one style, each in its colour (B,3,64,64).

    A ground covers what lies outside the glyph, but for a rest through which the style's own ground still shows.
    """
    styled = DRAW[style](sample_scene(layer_B4HW, ink_B311, dice)).clamp(0, 1)
    if grounds is None:
        return styled
    outside = 1 - blur(layer_B4HW[:, 3:], 0.7)
    return styled + GROUND_WASH * grounds.share_B111 * outside * (grounds.rgb_B311 - styled)


def draw(
    subject: str,
    style: str | None = None,
    colour: str | None = None,
    *,
    seed: int,
    ground: str | None = None,
    atlas: Atlas | None = None,
) -> Tensor:
    """Return the true picture (3,64,64), float32 in [0,1], of a subject, plain or in a style and a colour.

    `seed` decides placement, background and texture; one seed places a subject alike in every style and on every
    ground. `ground` names the colour of the background, if the caption asks for one. `atlas` defaults to the shipped
    one, which has the held-out subjects and the companions. Runs on the CPU.
    """
    if (style is None) != (colour is None):
        raise ValueError("a style needs a colour, and a colour a style")
    glyphs = atlas or shipped_atlas()
    dice = Dice(torch.device("cpu"), torch.Generator().manual_seed(seed))
    layer_B4HW = place(glyphs.rgba_G4HW[[glyphs.index(subject)]], sample_placement(dice, 1))
    grounds = None if ground is None else Grounds(_rgb_1311(ground), torch.ones(1, 1, 1, 1))
    if style is None or colour is None:
        return draw_plain(layer_B4HW, dice, grounds)[0]
    return draw_styled(style, layer_B4HW, _rgb_1311(colour), dice, grounds)[0]


def _rgb_1311(colour: str) -> Tensor:
    """Return a named colour as (1,3,1,1)."""
    return torch.tensor(COLOURS[colour]).view(1, 3, 1, 1)


@dataclass(frozen=True, slots=True)
class Labels:
    """What each picture shows.

    `glyph_B`; `style_B` (-1 plain, else into STYLES) with its `colour_B` (into COLOURS); `ground_B` (into COLOURS, -1
    where the caption names no background).
    """

    glyph_B: Tensor
    style_B: Tensor
    colour_B: Tensor
    ground_B: Tensor


class TrainingWorld:
    """Draws training batches on one device, with no transfer from the host, so that a CUDA graph can hold the drawing.

    A batch is plain pictures first, then an equal share for every style. Held-out subjects are not in the atlas this is
    given, held-out combinations are in no style's list of colours.
    """

    def __init__(self, atlas: Atlas, device: torch.device) -> None:
        self.names = atlas.names
        self.rgba_G4HW = atlas.rgba_G4HW.to(device)
        self.inks_C3 = torch.tensor(list(COLOURS.values()), device=device)
        order = list(COLOURS)
        self.colours = [
            torch.tensor([order.index(colour) for colour in training_colours(style)], device=device) for style in STYLES
        ]

    def sample(self, dice: Dice, plain: int, per_style: int) -> tuple[Tensor, Labels]:
        """Return pictures (B,3,64,64) and their labels; B = plain + per_style * number of styles."""
        count = plain + per_style * len(STYLES)
        glyph_B = dice.below(len(self.names), count)
        layer_B4HW = place(self.rgba_G4HW[glyph_B], sample_placement(dice, count))
        ground_B = self._sample_grounds(dice, count)
        pictures = [draw_plain(layer_B4HW[:plain], dice, self._grounds(ground_B[:plain]))]
        style_B = [torch.full((plain,), -1, device=dice.device)]
        colour_B = [torch.zeros(plain, dtype=torch.long, device=dice.device)]
        for place_in_list, style in enumerate(STYLES):
            start = plain + place_in_list * per_style
            span = slice(start, start + per_style)
            choices = self.colours[place_in_list]
            colour = choices[dice.below(len(choices), per_style)]
            ink_B311 = self.inks_C3[colour].view(-1, 3, 1, 1)
            pictures.append(draw_styled(style, layer_B4HW[span], ink_B311, dice, self._grounds(ground_B[span])))
            style_B.append(torch.full((per_style,), place_in_list, device=dice.device))
            colour_B.append(colour)
        return torch.cat(pictures), Labels(glyph_B, torch.cat(style_B), torch.cat(colour_B), ground_B)

    def _sample_grounds(self, dice: Dice, count: int) -> Tensor:
        """Draw the backgrounds that captions will name, (B,) into COLOURS, -1 for most pictures."""
        named = dice.uniform(count) < GROUND_SHARE
        return torch.where(named, dice.below(len(self.inks_C3), count), -1)

    def _grounds(self, ground_B: Tensor) -> Grounds:
        """Return the colours of the named backgrounds."""
        share_B111 = (ground_B >= 0).float().view(-1, 1, 1, 1)
        return Grounds(self.inks_C3[ground_B.clamp_min(0)].view(-1, 3, 1, 1), share_B111)
