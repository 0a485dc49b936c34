"""Measures whether a base draws what a caption says: subjects and styles by name, with no LoRA.

    python -m duolora.evaluate.caption_fidelity --out fidelity.json [--base tiny] [--captions 64]

Four kinds of caption: seen subjects in combinations that the base trained on; seen subjects in combinations it never
saw, though it saw the style and the colour apart; held-out subjects, whose names it never read; and seen subjects on
a named background. The row "truth" is what true pictures of the first kind score.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from duolora.evaluate.jobs import in_chunks
from duolora.evaluate.metrics import Score, look, references, score
from duolora.evaluate.network import shipped_evaluator
from duolora.evaluate.truth_suite import TruthPair, judge_pictures
from duolora.generate import sample_tenants
from duolora.models.registry import load_base
from duolora.recipes import resolve
from duolora.runtime import choose_runtime
from duolora.tiny.captions import COLOURS, STYLES, caption, training_colours
from duolora.tiny.held_out import companion_subjects, held_out_combinations, held_out_subjects

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from duolora.evaluate.network import Evaluator
    from duolora.models.base import DiffusionBase

log = logging.getLogger(__name__)

PICTURES = 4
CHOICE_SEED = 5
CAPTIONS_PER_PASS = 16
SEEN, APART, STRANGE, GROUNDED, TRUTH = "seen", "seen apart", "held-out subject", "on a background", "truth"


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Means over the captions of one kind; `ground` only where a background was asked for."""

    captions: int
    content: float
    style: float
    hmean: float
    truth_distance: float
    ground: float | None


def chosen_pairs(count: int) -> dict[str, list[TruthPair]]:
    """Return `count` captioned pairs of every kind, the same in every call."""
    chance = random.Random(CHOICE_SEED)
    known = [(style, colour) for style in STYLES for colour in training_colours(style)]
    apart = sorted(held_out_combinations())
    seen, strange = companion_subjects(), held_out_subjects()

    def draw(subjects: Sequence[str], looks: Sequence[tuple[str, str]]) -> list[TruthPair]:
        pairs = []
        for _ in range(count):
            style, colour = chance.choice(looks)
            ground = chance.choice([name for name in COLOURS if name != colour])
            pairs.append(TruthPair(chance.choice(subjects), style, colour, ground, ()))
        return pairs

    return {
        SEEN: draw(seen, known),
        APART: draw(seen, apart),
        STRANGE: draw(strange, known),
        GROUNDED: draw(seen, known),
    }


def measure_base(base: DiffusionBase, evaluator: Evaluator, count: int, recipe: str | None) -> dict[str, Fidelity]:
    """Draw every kind of caption with a base and score the pictures; `recipe` decides how they are sampled."""
    found = {
        kind: _summary(_score_captions(base, evaluator, pairs, recipe, grounded=kind == GROUNDED))
        for kind, pairs in chosen_pairs(count).items()
    }
    return {TRUTH: _summary(_score_truth(evaluator, chosen_pairs(count)[SEEN])), **found}


def _score_captions(
    base: DiffusionBase, evaluator: Evaluator, pairs: Sequence[TruthPair], recipe: str | None, *, grounded: bool
) -> Iterable[Score]:
    """Score the pictures of some captions, many captions a pass."""
    for number, chunk in enumerate(in_chunks(pairs, CAPTIONS_PER_PASS)):
        config = resolve(recipe, base.location, chunk[0].prompts).preview.model_copy(update={"images": PICTURES})
        captions = [caption(pair.subject, pair.style, pair.colour, pair.ground if grounded else None) for pair in chunk]
        seeds = [CAPTIONS_PER_PASS * number + index for index in range(len(chunk))]
        rgb_Jn3HW = sample_tenants(base, None, [[words] * PICTURES for words in captions], config, seeds)
        for pair, rgb_n3HW in zip(chunk, rgb_Jn3HW, strict=True):
            to = references(evaluator, judge_pictures(pair, 0, PICTURES))
            yield score(look(evaluator, (rgb_n3HW / 2 + 0.5).clamp(0, 1)), to, grounded=grounded)


def _score_truth(evaluator: Evaluator, pairs: Sequence[TruthPair]) -> Iterable[Score]:
    """Score true pictures as if the base had drawn them."""
    device = next(evaluator.parameters()).device
    for pair in pairs:
        judges = judge_pictures(pair, 0, PICTURES)
        yield score(look(evaluator, judges.rival_truth.to(device)), references(evaluator, judges))


def _summary(scores: Iterable[Score]) -> Fidelity:
    """Return the means of some scores."""
    kept = list(scores)
    grounds = [one.ground for one in kept if one.ground is not None]
    return Fidelity(
        captions=len(kept),
        content=_mean([one.content for one in kept]),
        style=_mean([one.style for one in kept]),
        hmean=_mean([one.hmean for one in kept]),
        truth_distance=_mean([one.truth_distance for one in kept]),
        ground=_mean(grounds) if grounds else None,
    )


def _mean(values: Sequence[float]) -> float:
    """Return a mean, to four digits."""
    return round(sum(values) / len(values), 4)


def main() -> None:
    """Measure a base from the command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--captions", type=int, default=64)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    base = load_base(arguments.base, choose_runtime(arguments.device))
    evaluator = shipped_evaluator(base.runtime.device)
    found = measure_base(base, evaluator, arguments.captions, arguments.recipe)
    records = {kind: {name: getattr(row, name) for name in Fidelity.__slots__} for kind, row in found.items()}
    arguments.out.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    for kind, row in found.items():
        log.info("%-18s content %.3f  style %.3f  hmean %.3f", kind, row.content, row.style, row.hmean)


if __name__ == "__main__":
    main()
