"""The drawing styles of the world: how a placed glyph becomes a picture in one style and one colour.

Every style is a pure batched function of a `Scene`; all randomness (pattern phase, grain, cell seeds) is in the scene,
so equal scenes give equal pictures. Marks are kept two pixels wide or more, which the autoencoder can carry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

# Legend: B batch, H/W pixels, 3 colour channels, K cells of the stained-glass grid. Everything is float32 in [0, 1]
# unless said otherwise; B311 is one colour per picture, B111 one number per picture.

CELLS_PER_SIDE = 7
PAPER = (0.98, 0.96, 0.91)
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, slots=True)
class Scene:
    """Placed glyphs and the random parameters of their style.

    `rgb_B3HW` is premultiplied by `alpha_B1HW`; `phase_B2` in [0,1) shifts patterns; `grain_B1HW` is smooth noise
    around 0 (standard deviation near 1); `jitter_BK2` in [0,1) moves the stained-glass cells and `shade_BK` in
    [0,1) tints them.
    """

    rgb_B3HW: Tensor
    alpha_B1HW: Tensor
    ink_B311: Tensor
    phase_B2: Tensor
    grain_B1HW: Tensor
    jitter_BK2: Tensor
    shade_BK: Tensor


def _colour(like: Tensor, rgb: tuple[float, float, float]) -> Tensor:
    # Three fills, not a copy from the host: the drawing is captured in a CUDA graph.
    return torch.cat([torch.full_like(like[:1, :1, :1, :1], channel) for channel in rgb], dim=1)


def _mix(first: Tensor, second: Tensor | float, weight: Tensor | float) -> Tensor:
    return first + (second - first) * weight


def _over(scene: Scene, background: Tensor | float) -> Tensor:
    return scene.rgb_B3HW + (1 - scene.alpha_B1HW) * background


def _luma(rgb_B3HW: Tensor) -> Tensor:
    red, green, blue = rgb_B3HW.split(1, dim=1)
    luma: Tensor = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    return luma


def blur(picture_BCHW: Tensor, sigma: float) -> Tensor:
    """Return `picture_BCHW` blurred by a Gaussian of `sigma` pixels, borders repeated."""
    radius = math.ceil(2.5 * sigma)
    offset = torch.arange(-radius, radius + 1, device=picture_BCHW.device, dtype=picture_BCHW.dtype)
    kernel = torch.exp(-0.5 * (offset / sigma) ** 2)
    kernel = kernel / kernel.sum()
    channels = picture_BCHW.shape[1]
    padded = functional.pad(picture_BCHW, (radius,) * 4, mode="replicate")
    across = functional.conv2d(padded, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return functional.conv2d(across, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)


def _edges(scene: Scene) -> Tensor:
    """Return outlines and strong inner contours (B,1,H,W): 1 on a line about two pixels wide, 0 elsewhere."""
    soft = blur(torch.cat([_over(scene, 0.62), scene.alpha_B1HW], dim=1), 0.7)
    padded = functional.pad(soft, (1, 1, 1, 1), mode="replicate")
    across = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    steepness = (across**2 + down**2).sqrt().amax(dim=1, keepdim=True)
    return ((steepness - 0.18) * 3.5).clamp(0, 1)


def _tone(scene: Scene) -> Tensor:
    """Return how dark the glyph is (B,1,H,W), between 0.2 and 1 inside it, 0 outside."""
    return scene.alpha_B1HW * (0.2 + 0.8 * (1 - _luma(_over(scene, 1.0))))


def _grid(scene: Scene) -> tuple[Tensor, Tensor]:
    """Return pixel coordinates (row, column), each (1,1,H,W) or (1,1,H,1) broadcastable."""
    height, width = scene.alpha_B1HW.shape[-2:]
    device = scene.alpha_B1HW.device
    row = torch.arange(height, device=device, dtype=torch.float32).view(1, 1, -1, 1)
    column = torch.arange(width, device=device, dtype=torch.float32).view(1, 1, 1, -1)
    return row, column


def _phase(scene: Scene, axis: int) -> Tensor:
    return scene.phase_B2[:, axis].view(-1, 1, 1, 1)


def flat(scene: Scene) -> Tensor:
    """Three flat tones of the colour on a pale ground."""
    tone = 1 - _luma(scene.rgb_B3HW / scene.alpha_B1HW.clamp_min(0.05))
    shape = ((scene.alpha_B1HW - 0.5) * 4 + 0.5).clamp(0, 1)
    middle = ((tone - 0.28) * 7).clamp(0, 1)
    dark = ((tone - 0.55) * 7).clamp(0, 1)
    ink = scene.ink_B311
    body = _mix(_mix(_mix(ink, 1.0, 0.55), ink, middle), ink * 0.4, dark)
    return _mix(_mix(ink, 1.0, 0.85), body, shape)


def sketch(scene: Scene) -> Tensor:
    """Pencil lines and faint shading on grainy paper."""
    paper = _colour(scene.ink_B311, PAPER) + 0.03 * scene.grain_B1HW
    strokes = (_edges(scene) * (0.9 + 0.15 * scene.grain_B1HW) + 0.22 * _tone(scene)).clamp(0, 1)
    return _mix(paper, scene.ink_B311 * 0.8, strokes)


def neon(scene: Scene) -> Tensor:
    """Glowing outlines in the dark."""
    tube = _edges(scene)
    glow = blur(tube, 2.8)
    night = _colour(scene.ink_B311, (0.04, 0.03, 0.09))
    lit = night + 1.5 * glow * scene.ink_B311
    return _mix(lit, _mix(scene.ink_B311, 1.0, 0.45), tube)


def duotone(scene: Scene) -> Tensor:
    """Shadows in the colour, lights in its opposite."""
    shadow = scene.ink_B311 * 0.6
    light = _mix(1 - scene.ink_B311, 1.0, 0.35)
    return _mix(shadow, light, (_luma(_over(scene, 0.15)) * 1.4 - 0.2).clamp(0, 1))


def halftone(scene: Scene) -> Tensor:
    """Printed dots, larger where the glyph is darker."""
    row, column = _grid(scene)
    pitch = 5.5
    first = (row + column) / (pitch * math.sqrt(2)) + _phase(scene, 0)
    second = (row - column) / (pitch * math.sqrt(2)) + _phase(scene, 1)
    screen = 0.5 + 0.25 * (torch.cos(2 * math.pi * first) + torch.cos(2 * math.pi * second))
    dark = blur(_tone(scene), 1.0)
    dots = ((dark * 1.15 - screen) * 5 + 0.5).clamp(0, 1) * (dark > 0.04)
    return _mix(_mix(scene.ink_B311, 1.0, 0.88), scene.ink_B311 * 0.9, dots)


def mosaic(scene: Scene) -> Tensor:
    """Square tiles with pale joints."""
    row, column = _grid(scene)
    ground = _mix(scene.ink_B311, 1.0, 0.15)
    tiles = functional.interpolate(functional.avg_pool2d(_over(scene, ground), 4), scale_factor=4.0, mode="nearest")
    joint = torch.maximum((row % 4 == 3).float(), (column % 4 == 3).float())
    return _mix(_mix(tiles, scene.ink_B311, 0.2), 0.95, 0.5 * joint)


def watercolour(scene: Scene) -> Tensor:
    """A soft wash that pools at its rim, on paper."""
    wet = blur(torch.cat([scene.rgb_B3HW, scene.alpha_B1HW], dim=1), 1.6)
    rgb, wash = wet[:, :3], wet[:, 3:]
    pigment = _mix(rgb / wash.clamp_min(0.05), scene.ink_B311, 0.6)
    rim = (4 * wash * (1 - wash)) ** 2
    strength = (wash * (0.75 + 0.2 * scene.grain_B1HW) + 0.3 * rim).clamp(0, 1)
    return _mix(_colour(scene.ink_B311, PAPER) + 0.015 * scene.grain_B1HW, pigment * (1 - 0.3 * rim), strength)


def blueprint(scene: Scene) -> Tensor:
    """White lines over a ruled ground of the colour."""
    row, column = _grid(scene)
    shift_row, shift_column = (8 * _phase(scene, 0)).floor(), (8 * _phase(scene, 1)).floor()
    rule = torch.maximum(((row + shift_row) % 8 == 0).float(), ((column + shift_column) % 8 == 0).float())
    ground = _mix(scene.ink_B311 * 0.6, 1.0, 0.18 * rule)
    return _mix(ground, 0.97, (_edges(scene) + 0.12 * _tone(scene)).clamp(0, 1))


def hatching(scene: Scene) -> Tensor:
    """Diagonal pen strokes, crossed in the shadows, and an outline."""
    row, column = _grid(scene)
    tone = blur(_tone(scene), 0.8)
    rising = (1.5 * torch.sin(2 * math.pi * ((row + column) / 6 + _phase(scene, 0))) + 0.5).clamp(0, 1)
    falling = (1.5 * torch.sin(2 * math.pi * ((row - column) / 6 + _phase(scene, 1))) + 0.5).clamp(0, 1)
    once = ((tone - 0.22) * 8).clamp(0, 1) * rising
    twice = ((tone - 0.5) * 8).clamp(0, 1) * falling
    strokes = torch.maximum(torch.maximum(once, twice), _edges(scene))
    return _mix(_colour(scene.ink_B311, PAPER), scene.ink_B311 * 0.75, strokes)


def stained_glass(scene: Scene) -> Tensor:
    """Irregular panes in lead, the ground in shades of the colour."""
    row, column = _grid(scene)
    height, width = scene.alpha_B1HW.shape[-2:]
    cell = torch.arange(CELLS_PER_SIDE**2, device=row.device)
    seed_row = (cell // CELLS_PER_SIDE + scene.jitter_BK2[..., 0]) * (height / CELLS_PER_SIDE)
    seed_column = (cell % CELLS_PER_SIDE + scene.jitter_BK2[..., 1]) * (width / CELLS_PER_SIDE)
    distance_BKHW = ((row - seed_row[:, :, None, None]) ** 2 + (column - seed_column[:, :, None, None]) ** 2).sqrt()
    nearest, index = distance_BKHW.topk(2, dim=1, largest=False)
    lead = (1.3 - (nearest[:, 1:] - nearest[:, :1])).clamp(0, 1)
    shade = scene.shade_BK.gather(1, index[:, 0].flatten(1)).view(-1, 1, height, width)
    ground = scene.ink_B311 * (0.4 + 0.6 * shade)
    body = _mix(scene.rgb_B3HW / scene.alpha_B1HW.clamp_min(0.05), scene.ink_B311, 0.1) * (0.9 + 0.35 * shade)
    outline = (4 * blur(scene.alpha_B1HW, 0.9) * (1 - blur(scene.alpha_B1HW, 0.9)) * 1.6 - 0.4).clamp(0, 1)
    return _mix(_mix(ground, body, scene.alpha_B1HW), 0.06, torch.maximum(lead, outline))


def negative(scene: Scene) -> Tensor:
    """The glyph in inverted colours on the colour."""
    return 1 - _over(scene, 1 - scene.ink_B311)


def striped(scene: Scene) -> Tensor:
    """A glyph cut into level stripes of the colour and white, on upright stripes."""
    row, column = _grid(scene)
    upright = (3 * torch.sin(2 * math.pi * (column / 10 + _phase(scene, 0))) + 0.5).clamp(0, 1)
    level = (3 * torch.sin(2 * math.pi * (row / 7 + _phase(scene, 1))) + 0.5).clamp(0, 1)
    tone = 1 - _luma(scene.rgb_B3HW / scene.alpha_B1HW.clamp_min(0.05))
    body = _mix(_mix(scene.ink_B311, 1.0, 0.25), 1.0, 0.6 * level) * (1 - 0.75 * tone)
    ground = _mix(scene.ink_B311, 1.0, 0.72 + 0.2 * upright)
    return _mix(ground, body, scene.alpha_B1HW)


def silhouette(scene: Scene) -> Tensor:
    """The bare shape in the colour before a pale sky."""
    row, _ = _grid(scene)
    sky = _mix(_mix(scene.ink_B311, 1.0, 0.6), 0.97, row / scene.alpha_B1HW.shape[-2])
    shape = ((scene.alpha_B1HW - 0.5) * 3 + 0.5).clamp(0, 1)
    return _mix(sky, scene.ink_B311 * 0.7, shape)


def relief(scene: Scene) -> Tensor:
    """Embossed in a plate of the colour, lit from the upper left."""
    height = blur(_mix(_luma(_over(scene, 0.5)), 1.0, 0.45 * scene.alpha_B1HW), 0.8)
    padded = functional.pad(height, (1, 1, 1, 1), mode="replicate")
    slope = padded[:, :, 2:, 2:] - padded[:, :, :-2, :-2]
    plate = _mix(scene.ink_B311, 0.6, 0.3)
    light = 1 + 3.0 * slope + 0.04 * scene.grain_B1HW
    return _mix(plate * light.clamp(0, 1), 1.0, (light - 1).clamp(0, 1) * 0.8)


DRAW: dict[str, Callable[[Scene], Tensor]] = {
    "flat": flat,
    "sketch": sketch,
    "neon": neon,
    "duotone": duotone,
    "halftone": halftone,
    "mosaic": mosaic,
    "watercolour": watercolour,
    "blueprint": blueprint,
    "hatching": hatching,
    "stained glass": stained_glass,
    "negative": negative,
    "striped": striped,
    "silhouette": silhouette,
    "relief": relief,
}
"""Style name -> (Scene -> picture (B,3,H,W), to be clamped to [0, 1])."""
