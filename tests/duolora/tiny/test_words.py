"""The world's words: what may be said, what is held out, and how it becomes tokens."""

import pytest
import transformers

from duolora.tiny.base import base_path
from duolora.tiny.captions import COLOURS, STYLES, caption, class_nouns, glyphs, training_colours, training_glyphs
from duolora.tiny.held_out import companion_subjects, held_out_combinations, held_out_subjects, mentions_held_out
from duolora.tiny.tokenizer import WordEncoder


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.CLIPTokenizer.from_pretrained(base_path() / "tokenizer")


def test_enough_subjects_and_combinations_are_held_out_and_all_exist():
    names = {glyph.name for glyph in glyphs()}
    assert len(held_out_subjects()) >= 40
    assert set(held_out_subjects()) <= names
    assert len(held_out_combinations()) == 12
    assert all(style in STYLES and colour in COLOURS for style, colour in held_out_combinations())


def test_no_training_caption_can_name_a_held_out_subject():
    spoken = [*(glyph.name for glyph in training_glyphs()), *class_nouns(), *STYLES, *COLOURS]
    assert not [phrase for phrase in spoken if mentions_held_out(phrase)]


def test_every_style_and_every_colour_is_seen_but_no_held_out_combination():
    seen = {(style, colour) for style in STYLES for colour in training_colours(style)}
    assert not seen & held_out_combinations()
    assert {style for style, _ in seen} == set(STYLES)
    assert {colour for _, colour in seen} == set(COLOURS)


def test_companions_are_training_subjects():
    assert set(companion_subjects()) <= {glyph.name for glyph in training_glyphs()}


@pytest.mark.parametrize("text", ["", "a fox", "Zürich, 漢字 🦊 «x»!", "sbu" * 40, "\x00\ud7ff\t", "a <|odd|> one"])
def test_any_text_becomes_tokens_of_the_vocabulary(tokenizer, text):
    ids = tokenizer(text, padding="max_length", truncation=True).input_ids
    assert len(ids) == tokenizer.model_max_length == 32
    assert all(0 <= token < len(tokenizer) for token in ids)


def test_captions_round_trip_with_one_token_a_word(tokenizer):
    for glyph in training_glyphs()[::7]:
        text = caption(glyph.name, STYLES[len(glyph.name) % len(STYLES)], "teal")
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert len(ids) == len(text.split()) + 2


def test_pretraining_tokenizes_as_the_shipped_tokenizer_does(tokenizer):
    encoder = WordEncoder()
    for text in ("a qhz tiger face in lime stained glass style", "an fox in szn style"):
        assert encoder.encode(text) == tokenizer(text).input_ids[1:-1]
