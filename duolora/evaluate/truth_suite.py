"""The suite whose right answer is known: held-out subjects in held-out styles, which the world can draw.

A pair is a subject and a combination of style and colour. `full`, `quick` (its first pairs) and `wide` (the full list
and further pairs, for methods that the full list cannot tell apart) use the combinations the base never saw;
`development`, on which everything may be tuned, shares neither a subject nor a combination with them. The lists are in
truth_suite.json. All pictures follow from a seed.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from duolora.config import Prompts
from duolora.method.priors import Role
from duolora.tiny.captions import article, glyph_named, ground_phrase
from duolora.tiny.contact_sheet import to_image
from duolora.tiny.held_out import companion_subjects
from duolora.tiny.world import draw

QUICK_PAIRS = 8
CONTENT_PICTURES = 4
JUDGES = 8
"""Fresh true pictures of each kind that a generated picture is compared with; no training picture is among them."""

# Legend: N pictures, H/W pixels.


class Selection(StrEnum):
    """Which list of pairs to run."""

    FULL = "full"
    QUICK = "quick"
    WIDE = "wide"
    DEVELOPMENT = "development"


@dataclass(frozen=True, slots=True)
class TruthPair:
    """A subject to be drawn in a style and a colour, and the companions that show the style.

    `ground` is the background that the recontextualised prompt asks for; it differs from the style's own colour.
    """

    subject: str
    style: str
    colour: str
    ground: str
    companions: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the pair, fit for a folder: `motor-scooter-neon-teal`."""
        return f"{self.subject} {self.style} {self.colour}".replace(" ", "-")

    @property
    def prompts(self) -> Prompts:
        """Captions as a user would give them: the class of the subject, what each style picture shows."""
        shown = tuple(f"{article(companion)} {companion}" for companion in self.companions)
        return Prompts(subject_class=glyph_named(self.subject).noun, style_captions=shown)

    @property
    def recontext_prompt(self) -> str:
        """The joint prompt with a background that no training picture has."""
        return f"{self.prompts.joint} {ground_phrase(self.ground)}"


@dataclass(frozen=True, slots=True, eq=False)
class JudgePictures:
    """Fresh true pictures of one pair and seed, each (N,3,H,W) in [0,1].

    `plain`: the subject without the style; `truth`: in the style; `style`: other subjects in the style; `grounded`: the
    truth on the ground of the recontextualised prompt. `rival_truth` and `rival_grounded` are further true pictures, to
    be scored as if a method had made them; `style` and `plain` stand for a method that learnt one side only.
    """

    plain: Tensor
    truth: Tensor
    style: Tensor
    grounded: Tensor
    rival_truth: Tensor
    rival_grounded: Tensor


def suite_path() -> Path:
    """Return where the committed lists lie."""
    return Path(__file__).with_name("truth_suite.json")


@cache
def truth_pairs(selection: Selection) -> tuple[TruthPair, ...]:
    """Return the committed pairs of a selection, in order."""
    document = json.loads(suite_path().read_text(encoding="utf-8"))
    lists = {Selection.DEVELOPMENT: ["development"], Selection.WIDE: ["full", "further"]}
    listed = [record for name in lists.get(selection, ["full"]) for record in document[name]]
    pairs = tuple(TruthPair(**record | {"companions": tuple(record["companions"])}) for record in listed)
    return pairs[:QUICK_PAIRS] if selection is Selection.QUICK else pairs


def picture_seed(pair: TruthPair, seed: int, role: str, index: int) -> int:
    """Return the seed of one picture: stable between runs and machines, different for every picture of a run."""
    return zlib.crc32(f"{pair.name}/{seed}/{role}/{index}".encode())


def write_pictures(pair: TruthPair, seed: int, folder: Path) -> dict[str, list[Path]]:
    """Write the reference pictures as PNG files under `folder`, as a user would bring them; side -> files."""
    content = [
        _write(draw(pair.subject, seed=picture_seed(pair, seed, "content", index)), folder / f"content/{index}.png")
        for index in range(CONTENT_PICTURES)
    ]
    style = [
        _write(
            draw(companion, pair.style, pair.colour, seed=picture_seed(pair, seed, "style", index)),
            folder / f"style/{index}-{companion.replace(' ', '-')}.png",
        )
        for index, companion in enumerate(pair.companions)
    ]
    return {Role.CONTENT.value: content, Role.STYLE.value: style}


def judge_pictures(pair: TruthPair, seed: int, rivals: int) -> JudgePictures:
    """Draw the true pictures of one pair and seed; `rivals` pictures to be scored themselves."""
    others = [name for name in companion_subjects() if name not in pair.companions]
    first = picture_seed(pair, seed, "others", 0) % len(others)
    shown = [others[(first + 5 * index) % len(others)] for index in range(JUDGES)]
    styled = (pair.style, pair.colour)

    def truths(role: str, count: int, ground: str | None) -> Tensor:
        return torch.stack(
            [
                draw(pair.subject, *styled, seed=picture_seed(pair, seed, role, index), ground=ground)
                for index in range(count)
            ]
        )

    return JudgePictures(
        plain=torch.stack(
            [draw(pair.subject, seed=picture_seed(pair, seed, "plain", index)) for index in range(JUDGES)]
        ),
        truth=truths("truth", JUDGES, None),
        style=torch.stack(
            [
                draw(other, *styled, seed=picture_seed(pair, seed, "companion", index))
                for index, other in enumerate(shown)
            ]
        ),
        grounded=truths("truth", JUDGES, pair.ground),
        rival_truth=truths("rival", rivals, None),
        rival_grounded=truths("rival", rivals, pair.ground),
    )


def _write(rgb_3HW: Tensor, path: Path) -> Path:
    """Write one picture and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    to_image(rgb_3HW).save(path)
    return path
