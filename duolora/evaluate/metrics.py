"""How near a generated picture comes to what was asked for: subject, style, the truth, and a background.

Similarities are cosines of the evaluator's embeddings, so only pictures that it judges alike score high. Nothing is
rescaled: what the truth itself scores is the ceiling, and stands in every table as the row "truth".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from duolora.evaluate.network import pooled_statistics
from duolora.tiny.world import RESOLUTION_PX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duolora.evaluate.network import Evaluator
    from duolora.evaluate.truth_suite import JudgePictures

# Legend: N reference pictures, M generated pictures, H/W pixels, E width of an embedding, F of a pooled feature.

FRAME_SHARE = 1 / 16
"""Width of the frame in which a background is looked for, over the picture's side; no placement fills it."""


def mean_cosine(drawn_NE: Tensor, given_ME: Tensor) -> float:
    """Return the mean over all pairs of a row of one and a row of the other, all of unit norm."""
    return float((drawn_NE @ given_ME.T).mean())


@dataclass(frozen=True, slots=True, eq=False)
class Sight:
    """What the evaluator sees in pictures, on the CPU: embeddings, trunk statistics, and the frame's mean colour."""

    content_ME: Tensor
    style_ME: Tensor
    trunk_MF: Tensor
    frame_M3: Tensor

    def __getitem__(self, rows: slice) -> Sight:
        """Select pictures."""
        return Sight(self.content_ME[rows], self.style_ME[rows], self.trunk_MF[rows], self.frame_M3[rows])


@dataclass(frozen=True, slots=True, eq=False)
class References:
    """What the pictures of one pair are compared with.

    `content_E` and `style_E` are unit prototypes; `truth_NF` the statistics of true pictures, `grounded_NF` of true
    pictures with the background asked for; `bare_3` and `grounded_3` the mean colours of their frames.
    """

    content_E: Tensor
    style_E: Tensor
    truth_NF: Tensor
    grounded_NF: Tensor
    bare_3: Tensor
    grounded_3: Tensor


@dataclass(frozen=True, slots=True)
class Score:
    """Scores of one method on one pair and seed, each a mean over its pictures.

    `content` and `style` in [0,1], higher is better, `hmean` their harmonic mean; `truth_distance` from 0, lower is
    better. `ground` in [0,1] says how far the background asked for is there; None where no background was asked for.
    `hmean` then is that of all three.
    """

    content: float
    style: float
    hmean: float
    truth_distance: float
    ground: float | None = None


def harmonic_mean(values: Sequence[float]) -> float:
    """Return the harmonic mean of numbers from 0; 0 if one of them is 0."""
    if min(values) <= 0:
        return 0.0
    return len(values) / sum(1 / value for value in values)


def at_evaluators_size(rgb_M3HW: Tensor) -> Tensor:
    """Return pictures as the evaluator takes them, resized where they have another size."""
    if rgb_M3HW.shape[-1] == RESOLUTION_PX:
        return rgb_M3HW
    return functional.interpolate(rgb_M3HW, (RESOLUTION_PX, RESOLUTION_PX), mode="bilinear", antialias=True)


@torch.no_grad()
def look(evaluator: Evaluator, rgb_M3HW: Tensor) -> Sight:
    """Look at pictures in [0,1], one pass; of another size than the evaluator's, they are resized first."""
    rgb_M3HW = at_evaluators_size(rgb_M3HW)
    maps = evaluator.maps(rgb_M3HW)
    content_ME, style_ME = evaluator.embed(maps)
    return Sight(content_ME.cpu(), style_ME.cpu(), trunk_statistics(maps).cpu(), frame_colour(rgb_M3HW).cpu())


def references(evaluator: Evaluator, judges: JudgePictures) -> References:
    """Look at the true pictures of a pair.

    The content prototype is the normalised mean embedding of the subject, plain and in the style alike, so that neither
    look is preferred; the style prototype that of other subjects in the style.
    """
    device = next(evaluator.parameters()).device
    kinds = [judges.plain, judges.truth, judges.style, judges.grounded]
    sight = look(evaluator, torch.cat(kinds).to(device))
    ends = torch.tensor([len(kind) for kind in kinds]).cumsum(0).tolist()
    truth, grounded = sight[slice(ends[0], ends[1])], sight[slice(ends[2], ends[3])]
    return References(
        content_E=functional.normalize(sight.content_ME[: ends[1]].mean(dim=0), dim=0),
        style_E=functional.normalize(sight.style_ME[ends[1] : ends[2]].mean(dim=0), dim=0),
        truth_NF=truth.trunk_MF,
        grounded_NF=grounded.trunk_MF,
        bare_3=truth.frame_M3.mean(dim=0),
        grounded_3=grounded.frame_M3.mean(dim=0),
    )


def score(seen: Sight, to: References, *, grounded: bool = False) -> Score:
    """Score the pictures of one pair and seed.

    Content (style) similarity is the mean over the pictures of the cosine between the picture's content (style)
    embedding and the prototype, negative cosines counted as 0. The harmonic mean is taken of these means, once per pair
    and seed; tables average it over pairs and seeds. With `grounded` the background asked for enters it too.
    """
    content = float((seen.content_ME @ to.content_E).clamp(0, 1).mean())
    style = float((seen.style_ME @ to.style_E).clamp(0, 1).mean())
    distance = float(truth_distance(seen.trunk_MF, to.grounded_NF if grounded else to.truth_NF).mean())
    if not grounded:
        return Score(content, style, harmonic_mean([content, style]), distance)
    ground = float(ground_share(seen.frame_M3, to.bare_3, to.grounded_3).mean())
    return Score(content, style, harmonic_mean([content, style, ground]), distance, ground)


def trunk_statistics(maps: Sequence[Tensor]) -> Tensor:
    """Return what each picture is made of, not where: pooled features of every stage, each of unit norm (B,F)."""
    return torch.cat([functional.normalize(pooled_statistics(map_BCHW), dim=1) for map_BCHW in maps], dim=1)


def truth_distance(got_MF: Tensor, truth_NF: Tensor) -> Tensor:
    """Return the distance of every picture to the nearest true picture (M,).

    Euclidean between trunk statistics. Two pictures of one subject in one style that differ in placement have nearly
    equal statistics, since these forget position; what is left (scale, the pattern's phase) is met by taking the
    nearest of several true placements. A pixel distance would punish every placement but one.
    """
    return torch.cdist(got_MF, truth_NF).amin(dim=1)


def frame_colour(rgb_B3HW: Tensor) -> Tensor:
    """Return the mean colour of the outermost frame (B,3), where the background is seen in every placement."""
    width = max(1, round(rgb_B3HW.shape[-1] * FRAME_SHARE))
    inner = torch.zeros(rgb_B3HW.shape[-2:], dtype=torch.bool, device=rgb_B3HW.device)
    inner[width:-width, width:-width] = True
    return rgb_B3HW[:, :, ~inner].mean(dim=2)


def ground_share(got_M3: Tensor, bare_3: Tensor, grounded_3: Tensor) -> Tensor:
    """Return how far frames have moved from the style's own colour (0) to the one asked for (1); (M,) in [0,1]."""
    way_3 = grounded_3 - bare_3
    return ((got_M3 - bare_3) @ way_3 / (way_3 @ way_3).clamp_min(1e-12)).clamp(0, 1)
