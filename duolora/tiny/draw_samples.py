"""Draws the sample pictures that come with the base: the user's own images of the demo.

`python -m duolora.tiny.draw_samples` rewrites them. A held-out subject in its own colours, and seen subjects in a
held-out combination of style and colour: the base knows neither, which is what the two LoRAs are for.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from duolora.tiny.base import samples_path
from duolora.tiny.captions import article, glyph_named
from duolora.tiny.contact_sheet import to_image
from duolora.tiny.world import draw

if TYPE_CHECKING:
    from torch import Tensor

SUBJECT = "fox"
CONTENT_SEEDS = (2, 3, 7, 10, 12)
STYLE, COLOUR = "neon", "teal"
STYLE_SUBJECTS = {"bicycle": 24, "house": 23, "dog": 23}
"""Seen subject -> seed of its picture."""


def _write(rgb_3HW: Tensor, file: str) -> None:
    path = samples_path() / file
    path.parent.mkdir(parents=True, exist_ok=True)
    to_image(rgb_3HW).save(path, optimize=True)


def main() -> None:
    """Write the pictures and samples.json."""
    noun = glyph_named(SUBJECT).noun
    content_images = []
    for number, seed in enumerate(CONTENT_SEEDS, start=1):
        file = f"content/{SUBJECT}-{number}.png"
        _write(draw(SUBJECT, seed=seed), file)
        content_images.append({"file": file, "caption": f"{article(noun)} {noun}"})
    style_images = []
    for subject, seed in STYLE_SUBJECTS.items():
        file = f"style/{subject}.png"
        _write(draw(subject, STYLE, COLOUR, seed=seed), file)
        style_images.append({"file": file, "subject": subject, "caption": f"{article(subject)} {subject}"})
    document = {
        "content": {"subject": SUBJECT, "noun": noun, "images": content_images},
        "style": {"style": STYLE, "colour": COLOUR, "images": style_images},
    }
    (samples_path() / "samples.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
