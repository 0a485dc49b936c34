"""The words of the world: glyph names, class nouns, styles, colours, and the captions made of them. Torch-free."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from duolora.tiny.held_out import held_out_combinations, mentions_held_out

STYLES: tuple[str, ...] = (
    "flat",
    "sketch",
    "neon",
    "duotone",
    "halftone",
    "mosaic",
    "watercolour",
    "blueprint",
    "hatching",
    "stained glass",
    "negative",
    "striped",
    "silhouette",
    "relief",
)

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.12, 0.14),
    "orange": (0.96, 0.50, 0.06),
    "yellow": (0.95, 0.82, 0.10),
    "lime": (0.62, 0.88, 0.12),
    "green": (0.08, 0.56, 0.20),
    "teal": (0.00, 0.62, 0.62),
    "blue": (0.10, 0.32, 0.88),
    "purple": (0.50, 0.14, 0.72),
    "pink": (0.96, 0.42, 0.70),
    "brown": (0.48, 0.28, 0.12),
}
"""Colour name -> sRGB in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Glyph:
    """One subject of the world: its Unicode code points (hex, space separated), its name and its class noun."""

    codepoints: str
    name: str
    noun: str


@cache
def glyphs() -> tuple[Glyph, ...]:
    """Return every glyph of the world, held-out ones included, in Unicode order."""
    records = json.loads(Path(__file__).with_name("glyphs.json").read_text(encoding="utf-8"))
    return tuple(Glyph(**record) for record in records)


@cache
def training_glyphs() -> tuple[Glyph, ...]:
    """Return the glyphs pretraining may draw: those whose name mentions no held-out subject."""
    return tuple(glyph for glyph in glyphs() if not mentions_held_out(glyph.name))


@cache
def training_colours(style: str) -> tuple[str, ...]:
    """Return the colours pretraining may draw `style` in."""
    return tuple(colour for colour in COLOURS if (style, colour) not in held_out_combinations())


def glyph_named(name: str) -> Glyph:
    """Return the glyph called `name`; `KeyError` if the world has none."""
    for glyph in glyphs():
        if glyph.name == name:
            return glyph
    raise KeyError(f"no glyph is called {name!r}")


def class_nouns() -> tuple[str, ...]:
    """Return every class noun, sorted."""
    return tuple(sorted({glyph.noun for glyph in glyphs()}))


def article(noun_phrase: str) -> str:
    """Return `a` or `an`, by the first letter."""
    return "an" if noun_phrase[0] in "aeiou" else "a"


def style_phrase(style: str, colour: str) -> str:
    """Return the words of a style, e.g. `in teal neon style`."""
    return f"in {colour} {style} style"


def ground_phrase(ground: str) -> str:
    """Return the words of a background in one colour, e.g. `on yellow background`."""
    return f"on {ground} background"


def caption(noun_phrase: str, style: str | None = None, colour: str | None = None, ground: str | None = None) -> str:
    """Return the caption of a picture: `a fox`, `a fox in red neon style`, `a fox on yellow background`, or all."""
    words = [f"{article(noun_phrase)} {noun_phrase}"]
    if style is not None and colour is not None:
        words.append(style_phrase(style, colour))
    if ground is not None:
        words.append(ground_phrase(ground))
    return " ".join(words)


def vocabulary_words() -> tuple[str, ...]:
    """Return the words that are one token each, in a stable order, no repeats; all others are spelt in pieces."""
    words: dict[str, None] = dict.fromkeys(["a", "an", "in", "style", "sbu", "szn"])
    for phrase in (*STYLES, *COLOURS, *class_nouns(), *(glyph.name for glyph in training_glyphs())):
        words.update(dict.fromkeys(phrase.split()))
    return tuple(words)
