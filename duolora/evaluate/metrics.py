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

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duolora.evaluate.network import Evaluator
    from duolora.evaluate.truth_suite import JudgePictures

# Legend: N reference pictures, M generated pictures, H/W pixels, E width of an embedding, F of a pooled feature.

FRAME_SHARE = 1 / 16
"""Width of the frame in which a background is looked for, over the picture's side; no placement fills it."""


@dataclass(frozen=True, slots=True, eq=False)
class References:
    """What the pictures of one pair are compared with.

    `content_E` and `style_E` are unit prototypes; `truth_NF` the statistics of true pictures; `bare_3` and `grounded_3`
    the mean colour of the frame of true pictures without and with the background asked for.
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


@torch.no_grad()
def references(evaluator: Evaluator, judges: JudgePictures) -> References:
    """Embed the true pictures of a pair.

    The content prototype is the normalised mean embedding of the subject, plain and in the style alike, so that neither
    look is preferred; the style prototype that of other subjects in the style.
    """
    content_NE, _ = evaluator(torch.cat([judges.plain, judges.truth]))
    _, style_NE = evaluator(judges.style)
    return References(
        content_E=functional.normalize(content_NE.mean(dim=0), dim=0),
        style_E=functional.normalize(style_NE.mean(dim=0), dim=0),
        truth_NF=trunk_statistics(evaluator, judges.truth),
        grounded_NF=trunk_statistics(evaluator, judges.grounded),
        bare_3=frame_colour(judges.truth).mean(dim=0),
        grounded_3=frame_colour(judges.grounded).mean(dim=0),
    )


@torch.no_grad()
def score(evaluator: Evaluator, rgb_M3HW: Tensor, to: References, *, grounded: bool = False) -> Score:
    """Score the pictures of one pair and seed.

    Content (style) similarity is the mean over the pictures of the cosine between the picture's content (style)
    embedding and the prototype, negative cosines counted as 0. The harmonic mean is taken of these means, once per pair
    and seed; tables average it over pairs and seeds. With `grounded` the background asked for enters it too.
    """
    content_ME, style_ME = evaluator(rgb_M3HW)
    content = float((content_ME @ to.content_E).clamp_min(0).mean())
    style = float((style_ME @ to.style_E).clamp_min(0).mean())
    truth_NF = to.grounded_NF if grounded else to.truth_NF
    distance = float(truth_distance(trunk_statistics(evaluator, rgb_M3HW), truth_NF).mean())
    if not grounded:
        return Score(content, style, harmonic_mean([content, style]), distance)
    ground = float(ground_share(frame_colour(rgb_M3HW), to.bare_3, to.grounded_3).mean())
    return Score(content, style, harmonic_mean([content, style, ground]), distance, ground)


def trunk_statistics(evaluator: Evaluator, rgb_B3HW: Tensor) -> Tensor:
    """Return what each picture is made of, not where: pooled features of the three stages, each of unit norm (B,F)."""
    return torch.cat([functional.normalize(pooled_statistics(map_), dim=1) for map_ in evaluator.maps(rgb_B3HW)], dim=1)


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
