"""How alike the pictures that a job drew are to those it was given: what its report says of each of its LoRAs.

Of a subject and of a style separately, each the mean cosine over all pairs of a drawn picture and a given one, as the
paper measures (section 5: DINO for the subject, CSD for the style). On the embedded base the evaluator of its own world
judges; on others whichever of DINO and CSD the installation has. What the given pictures have in common among
themselves says what can be reached.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from duolora.evaluate.metrics import harmonic_mean, mean_cosine
from duolora.evaluate.network import shipped_evaluator
from duolora.evaluate.perceptual import Csd, Dino
from duolora.method.merge_case import CONTENT, STYLE
from duolora.tiny.base import base_path
from duolora.tiny.world import RESOLUTION_PX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from duolora.models.base import DiffusionBase

CPU = torch.device("cpu")

# Legend: N drawn pictures, M given pictures, E width of an embedding, H/W pixels.


class Embed(Protocol):
    """Turns pictures into unit embeddings."""

    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Return embeddings (N,E) on the CPU, each of unit norm."""


@dataclass(frozen=True, slots=True)
class Judge:
    """What compares subjects, and what compares styles; None for what nobody here can."""

    name: str
    subject: Embed | None
    style: Embed | None


def judge_for(base: DiffusionBase, *, dino: str | None, csd: str | None) -> Judge | None:
    """Return who judges pictures of a base, on the CPU: a card may be full. None if nobody can.

    Args:
        base: the base that drew them.
        dino: place of a DINO for bases other than the embedded one, None for none.
        csd: likewise of a CSD.

    Raises:
        InvalidConfig: a network cannot be loaded.
    """
    return embedded_judge() if base.location == str(base_path()) else _networks(dino, csd)


@cache
def _networks(dino: str | None, csd: str | None) -> Judge | None:
    """Load networks, once."""
    found: dict[str, Embed] = {}
    if dino is not None:
        found["DINO"] = Dino(dino, CPU).pictures
    if csd is not None:
        found["CSD"] = Csd(csd, CPU).pictures
    return Judge(" and ".join(found), found.get("DINO"), found.get("CSD")) if found else None


def embedded_judge() -> Judge:
    """Return the evaluator of the embedded base's world."""
    evaluator = shipped_evaluator(CPU)

    def embed(pictures: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            embedded: tuple[Tensor, Tensor] = evaluator(_at_world_size(pictures))
        return embedded

    return Judge("evaluator of the embedded base", lambda drawn: embed(drawn)[0], lambda drawn: embed(drawn)[1])


def likeness(
    judge: Judge, drawn: Mapping[str, Sequence[Image.Image]], given: Mapping[str, Sequence[Image.Image]]
) -> dict[str, Any]:
    """Return how alike the pictures drawn with each LoRA are to those given.

    Args:
        judge: who compares.
        drawn: name of a LoRA -> the pictures drawn with it.
        given: "content" and "style" -> the job's own pictures; one may be absent.

    Returns:
        `judge`: its name. `given`: by side, the mean cosine of two different given pictures, null where there is only
        one. `loras`: by name `content` and `style`, in [-1,1], null where it cannot be told, and `hmean` of both where
        both can.
    """
    embeds = {CONTENT: judge.subject, STYLE: judge.style}
    compared = {side: (embed, embed(given[side])) for side, embed in embeds.items() if embed and given.get(side)}
    of_loras = {name: _likeness_of(compared, pictures) for name, pictures in drawn.items()}
    among = {side: among_themselves(given_ME) for side, (_, given_ME) in compared.items()}
    return {"judge": judge.name, "given": among, "loras": of_loras}


def _likeness_of(
    compared: Mapping[str, tuple[Embed, Tensor]], pictures: Sequence[Image.Image]
) -> dict[str, float | None]:
    """Return the likenesses of one LoRA's pictures."""
    found: dict[str, float | None] = dict.fromkeys((CONTENT, STYLE))
    for side, (embed, given_ME) in compared.items():
        found[side] = mean_cosine(embed(pictures), given_ME)
    both = [value for value in found.values() if value is not None]
    return found | {"hmean": harmonic_mean(both) if len(both) > 1 else None}


def among_themselves(given_ME: Tensor) -> float | None:
    """Return the mean cosine of two different rows of unit norm; None if there is but one."""
    count = len(given_ME)
    if count < 2:
        return None
    cosines_MM = given_ME @ given_ME.T
    return float((cosines_MM.sum() - cosines_MM.trace()) / (count * (count - 1)))


def _at_world_size(pictures: Sequence[Image.Image]) -> Tensor:
    """Return the central squares of pictures as the evaluator takes them, (N,3,H,W) in [0,1]."""
    squares = [
        ImageOps.fit(picture.convert("RGB"), (RESOLUTION_PX, RESOLUTION_PX), Image.Resampling.BILINEAR)
        for picture in pictures
    ]
    rgb_NHW3 = np.stack([np.asarray(square, dtype=np.float32) for square in squares])
    return torch.from_numpy(rgb_NHW3).permute(0, 3, 1, 2) / 255
