"""Captions of training batches as token ids, put together on the device from a table of phrases."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from duolora.tiny.captions import (
    COLOURS,
    STYLES,
    article,
    class_nouns,
    glyph_named,
    ground_phrase,
    style_phrase,
    vocabulary_words,
)
from duolora.tiny.tokenizer import END_TOKEN, MAX_TOKENS, START_TOKEN, WordEncoder

if TYPE_CHECKING:
    from duolora.tiny.world import Dice, Labels

EMPTY_SHARE = 0.10
CLASS_NOUN_SHARE = 0.15
MADE_UP_NOUN_SHARE = 0.10
MADE_UP_STYLE_SHARE = 0.05
MADE_UP_WORDS = 512

# Legend: B batch, L tokens of a caption, P phrases of a table, S tokens of the longest phrase.


def made_up_words(count: int = MADE_UP_WORDS) -> tuple[str, ...]:
    """Return `count` nonsense words: the usual triggers `sbu` and `szn` many times, the rest random letters."""
    dice = random.Random(0)
    known = set(vocabulary_words())
    words = ["sbu", "szn"] * (count // 16)
    while len(words) < count:
        word = dice.choice("bcdfghjklmnpqrstvwxz") + "".join(
            dice.choices("abcdefghijklmnopqrstuvwxyz", k=dice.choice((2, 3)))
        )
        if word not in known:
            words.append(word)
    return tuple(words)


class PhraseTable:
    """Phrases as rows of token ids `ids_PS` (zero padded) with their lengths `length_P`."""

    def __init__(self, encoder: WordEncoder, phrases: list[str], device: torch.device) -> None:
        rows = [encoder.encode(phrase) for phrase in phrases]
        longest = max(len(row) for row in rows)
        self.ids_PS = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
        self.length_P = torch.tensor([len(row) for row in rows], device=device)


def join_segments(segments: list[tuple[Tensor, Tensor]], end_id: int) -> Tensor:
    """Return ids (B,L): the first `length_B` ids of each segment `(ids_BS, length_B)` in a row, then end tokens."""
    count, device = segments[0][0].shape[0], segments[0][0].device
    spare = MAX_TOKENS
    joined = torch.full((count, MAX_TOKENS + 1), end_id, device=device)
    offset_B = torch.zeros(count, dtype=torch.long, device=device)
    for ids_BS, length_B in segments:
        step_S = torch.arange(ids_BS.shape[1], device=device)
        position_BS = torch.where(step_S < length_B[:, None], offset_B[:, None] + step_S, spare)
        joined.scatter_(1, position_BS.clamp_max(spare), ids_BS)
        offset_B = offset_B + length_B
    joined[:, MAX_TOKENS - 1 :] = end_id
    return joined[:, :MAX_TOKENS]


class CaptionWriter:
    """Writes the captions of a batch from its labels, with the dropouts that make unknown words harmless.

    10% empty; 15% name the class instead of the subject; 10% have a made-up word before the noun; of the styled ones 5%
    have a made-up word for the style and the colour.
    """

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        encoder = WordEncoder()
        nouns = class_nouns()
        self.vocabulary = encoder.vocabulary
        self.start_id, self.end_id = encoder.vocabulary[START_TOKEN], encoder.vocabulary[END_TOKEN]
        self.nouns = PhraseTable(encoder, [*names, *nouns], device)
        self.made_up = PhraseTable(encoder, list(made_up_words()), device)
        styles = [style_phrase(style, colour) for style in STYLES for colour in COLOURS]
        self.styles = PhraseTable(encoder, [*styles, *(f"in {word} style" for word in made_up_words())], device)
        self.grounds = PhraseTable(encoder, [ground_phrase(colour) for colour in COLOURS], device)
        self.class_of_glyph = torch.tensor(
            [len(names) + nouns.index(glyph_named(name).noun) for name in names], device=device
        )
        articles = [encoder.encode(article(phrase))[0] for phrase in (*names, *nouns)]
        self.article_ids = torch.tensor(articles, device=device)
        self.plain_article = encoder.encode("a")[0]

    def write(self, labels: Labels, dice: Dice) -> Tensor:
        """Return the token ids (B,L), int64, of one caption per picture."""
        count = labels.glyph_B.shape[0]
        said = dice.uniform(count) >= EMPTY_SHARE
        by_class = dice.uniform(count) < CLASS_NOUN_SHARE
        tagged = said & (dice.uniform(count) < MADE_UP_NOUN_SHARE)
        noun_B = torch.where(by_class, self.class_of_glyph[labels.glyph_B], labels.glyph_B)
        article_B = torch.where(tagged, self.plain_article, self.article_ids[noun_B])
        word_B = dice.below(MADE_UP_WORDS, count)
        known_style_B = labels.style_B.clamp_min(0) * len(COLOURS) + labels.colour_B
        odd_style_B = len(STYLES) * len(COLOURS) + dice.below(MADE_UP_WORDS, count)
        style_B = torch.where(dice.uniform(count) < MADE_UP_STYLE_SHARE, odd_style_B, known_style_B)
        styled = said & (labels.style_B >= 0)
        grounded = said & (labels.ground_B >= 0)
        ground_B = labels.ground_B.clamp_min(0)
        one_B = torch.ones_like(noun_B)
        segments = [
            (torch.full_like(noun_B, self.start_id)[:, None], one_B),
            (article_B[:, None], one_B * said),
            (self.made_up.ids_PS[word_B], self.made_up.length_P[word_B] * tagged),
            (self.nouns.ids_PS[noun_B], self.nouns.length_P[noun_B] * said),
            (self.styles.ids_PS[style_B], self.styles.length_P[style_B] * styled),
            (self.grounds.ids_PS[ground_B], self.grounds.length_P[ground_B] * grounded),
        ]
        return join_segments(segments, self.end_id)
