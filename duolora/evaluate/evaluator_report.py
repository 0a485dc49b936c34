"""Measures a trained evaluator on fresh pictures: how often it is right, and what its similarities look like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from duolora.evaluate.whole_world import Seen, WholeWorld
from duolora.tiny.captions import COLOURS, STYLES
from duolora.tiny.held_out import held_out_combinations, held_out_subjects
from duolora.tiny.world import Dice

if TYPE_CHECKING:
    from torch import Tensor, nn

    from duolora.evaluate.network import Evaluator

# Legend: B pictures, E width of an embedding.

MEASURE_SEED = 99


def measure(
    evaluator: Evaluator, subjects: nn.Module, looks: nn.Module, world: WholeWorld, *, batches: int, batch_size: int
) -> dict[str, float]:
    """Return accuracies in [0,1] and mean cosines, over `batches` x `batch_size` fresh pictures, undistorted."""
    judge = _Judge(evaluator, subjects, looks, world, batches, batch_size)
    held_out = set(held_out_subjects())
    strange = torch.tensor([index for index, name in enumerate(world.names) if name in held_out], device=world.device)
    known = torch.tensor([index for index, name in enumerate(world.names) if name not in held_out], device=world.device)
    combinations = held_out_combinations()
    pairs = [(style, colour) for style in STYLES for colour in COLOURS]
    held_out_pairs = [pair for pair in pairs if pair in combinations]
    seen_pairs = [pair for pair in pairs if pair not in combinations]
    figures = judge.accuracies("held_out", strange, held_out_pairs)
    if len(known):
        figures |= judge.accuracies("seen", known, seen_pairs)
    return figures | judge.similarities(strange, held_out_pairs)


@dataclass(frozen=True, slots=True)
class _Judge:
    """The evaluator, its classifiers, and the world it is asked about."""

    evaluator: Evaluator
    subjects: nn.Module
    looks: nn.Module
    world: WholeWorld
    batches: int
    batch_size: int

    def accuracies(self, name: str, glyphs: Tensor, pairs: list[tuple[str, str]]) -> dict[str, float]:
        """Top-1 accuracy of both heads on styled pictures of the given glyphs in the given combinations."""
        dice, right_subject, right_look = self._dice(), [], []
        for number in range(self.batches):
            rgb_B3HW, seen = self._draw(glyphs, pairs[number % len(pairs)], dice)
            content_BE, style_BE = self._embed(rgb_B3HW)
            right_subject.append((self.subjects(content_BE).argmax(dim=1) == seen.glyph_B).float().mean())
            right_look.append((self.looks(style_BE).argmax(dim=1) == seen.look_B).float().mean())
        return {f"content_top1_{name}": _mean(right_subject), f"style_top1_{name}": _mean(right_look)}

    def similarities(self, glyphs: Tensor, pairs: list[tuple[str, str]]) -> dict[str, float]:
        """Mean cosines between pictures that share a subject, a style, both or neither."""
        dice = self._dice()
        found: dict[str, list[Tensor]] = {}
        for number in range(self.batches):
            pair, other_pair = pairs[number % len(pairs)], pairs[(number + 1) % len(pairs)]
            style, colour = pair
            other_colour = list(COLOURS)[(list(COLOURS).index(colour) + 1 + number % 8) % len(COLOURS)]
            styled_B3HW, seen = self._draw(glyphs, pair, dice)
            content_BE, style_BE = self._embed(styled_B3HW)
            plain_BE, plain_style_BE = self._embed(self.world.draw(seen.glyph_B, None, None, dice))
            restyled_BE, other_style_BE = self._embed(self._redraw(seen.glyph_B, other_pair, dice))
            again_BE, same_style_BE = self._embed(self._redraw(seen.glyph_B.roll(1), pair, dice))
            _, recoloured_BE = self._embed(self._redraw(seen.glyph_B, (style, other_colour), dice))
            differs_B = seen.glyph_B.roll(1) != seen.glyph_B
            cosines = {
                "content_cosine_same_subject_plain_and_styled": (content_BE * plain_BE).sum(dim=1),
                "content_cosine_same_subject_two_styles": (content_BE * restyled_BE).sum(dim=1),
                "content_cosine_other_subject_same_style": (content_BE * again_BE).sum(dim=1)[differs_B],
                "content_cosine_other_subject_plain": (content_BE * plain_BE.roll(1, 0)).sum(dim=1)[differs_B],
                "style_cosine_same_style_other_subject": (style_BE * same_style_BE).sum(dim=1)[differs_B],
                "style_cosine_other_colour_same_style": (style_BE * recoloured_BE).sum(dim=1),
                "style_cosine_other_style_same_subject": (style_BE * other_style_BE).sum(dim=1),
                "style_cosine_plain_and_styled_same_subject": (style_BE * plain_style_BE).sum(dim=1),
            }
            for name, cosine_B in cosines.items():
                found.setdefault(name, []).append(cosine_B.mean())
        return {name: _mean(values) for name, values in found.items()}

    def _dice(self) -> Dice:
        """Random numbers of the measurement, the same in every run on one kind of device."""
        return Dice(self.world.device, torch.Generator(self.world.device).manual_seed(MEASURE_SEED))

    def _draw(self, glyphs: Tensor, pair: tuple[str, str], dice: Dice) -> tuple[Tensor, Seen]:
        """Draw glyphs at random in one combination."""
        glyph_B = glyphs[dice.below(len(glyphs), self.batch_size)]
        look = STYLES.index(pair[0]) * len(COLOURS) + list(COLOURS).index(pair[1])
        return self._redraw(glyph_B, pair, dice), Seen(glyph_B, torch.full_like(glyph_B, look))

    def _redraw(self, glyph_B: Tensor, pair: tuple[str, str], dice: Dice) -> Tensor:
        """Draw the given glyphs in one combination."""
        colour_B = torch.full_like(glyph_B, list(COLOURS).index(pair[1]))
        return self.world.draw(glyph_B, pair[0], colour_B, dice)

    @torch.no_grad()
    def _embed(self, rgb_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Embed pictures."""
        embedded: tuple[Tensor, Tensor] = self.evaluator(rgb_B3HW)
        return embedded


def _mean(values: list[Tensor]) -> float:
    """Return the mean of scalars."""
    return float(torch.stack(values).mean())
