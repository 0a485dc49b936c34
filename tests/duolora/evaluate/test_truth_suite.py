"""The lists of the suite and the pictures they stand for."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from duolora.evaluate.truth_suite import (
    CONTENT_PICTURES,
    Selection,
    judge_pictures,
    picture_seed,
    truth_pairs,
    write_pictures,
)
from duolora.tiny.captions import COLOURS, STYLES, glyph_named
from duolora.tiny.contact_sheet import to_image
from duolora.tiny.held_out import companion_subjects, held_out_combinations, held_out_subjects
from duolora.tiny.world import draw

FULL, QUICK, WIDE, DEVELOPMENT = (truth_pairs(selection) for selection in Selection)


def test_the_full_list_covers_every_held_out_combination_eight_times():
    assert len(FULL) == 96
    assert len({pair.subject for pair in FULL}) >= 40
    assert {pair.subject for pair in FULL} <= set(held_out_subjects())
    uses = Counter((pair.style, pair.colour) for pair in FULL)
    assert uses == dict.fromkeys(held_out_combinations(), 8)


def test_the_quick_list_is_part_of_the_full_one():
    assert len(QUICK) == 8
    assert FULL[:8] == QUICK
    assert len({(pair.style, pair.colour) for pair in QUICK}) == 8


def test_the_wide_list_begins_with_the_full_one_and_has_every_combination_equally_often():
    assert len(WIDE) == 384
    assert WIDE[: len(FULL)] == FULL
    uses = Counter((pair.style, pair.colour) for pair in WIDE)
    assert uses == dict.fromkeys(held_out_combinations(), 32)
    of_subject = Counter(pair.subject for pair in WIDE)
    assert set(of_subject) <= set(held_out_subjects())
    assert max(of_subject.values()) - min(of_subject.values()) <= 1


def test_what_is_tuned_on_shares_neither_subject_nor_combination_with_what_is_reported():
    assert len(DEVELOPMENT) >= 24
    assert not {pair.subject for pair in DEVELOPMENT} & {pair.subject for pair in WIDE}
    assert not {(pair.style, pair.colour) for pair in DEVELOPMENT} & held_out_combinations()
    assert {pair.subject for pair in DEVELOPMENT} <= set(held_out_subjects())
    assert {pair.style for pair in DEVELOPMENT} == set(STYLES)


@pytest.mark.parametrize("pairs", [WIDE, DEVELOPMENT])
def test_pairs_are_distinct_and_drawable(pairs):
    assert len({pair.name for pair in pairs}) == len(pairs)
    for pair in pairs:
        assert pair.style in STYLES
        assert pair.colour in COLOURS
        assert pair.ground in COLOURS
        assert pair.ground != pair.colour
        assert len(set(pair.companions)) == 3
        assert set(pair.companions) <= set(companion_subjects())
        assert pair.subject not in pair.companions


def test_prompts_call_the_pair_by_its_triggers_only():
    for pair in (*WIDE, *DEVELOPMENT):
        prompts = pair.prompts
        assert prompts.joint == f"a sbu {glyph_named(pair.subject).noun} in szn style"
        assert pair.recontext_prompt == f"{prompts.joint} on {pair.ground} background"
        for caption in (prompts.joint, prompts.content, *(prompts.style(index) for index in range(3))):
            assert f" {pair.style} " not in f" {caption} "
            assert f" {pair.subject} " not in f" {caption} ".replace(f" {glyph_named(pair.subject).noun} ", " ")


def test_pictures_are_those_of_the_world(tmp_path):
    pair = FULL[0]
    pictures = write_pictures(pair, 1, tmp_path)
    assert len(pictures["content"]) == CONTENT_PICTURES
    assert len(pictures["style"]) == 3
    expected = to_image(draw(pair.subject, seed=picture_seed(pair, 1, "content", 2)))
    assert np.array_equal(np.asarray(Image.open(pictures["content"][2])), np.asarray(expected))
    styled = draw(pair.companions[1], pair.style, pair.colour, seed=picture_seed(pair, 1, "style", 1))
    assert np.array_equal(np.asarray(Image.open(pictures["style"][1])), np.asarray(to_image(styled)))


def test_a_seed_gives_pictures_of_its_own():
    seeds = [
        picture_seed(pair, seed, role, index)
        for pair in FULL[:4]
        for seed in range(3)
        for role in ("content", "style", "truth", "rival")
        for index in range(4)
    ]
    assert len(set(seeds)) == len(seeds)


def test_judges_are_fresh_true_pictures():
    pair = FULL[3]
    judges = judge_pictures(pair, 0, rivals=2)
    truth = draw(pair.subject, pair.style, pair.colour, seed=picture_seed(pair, 0, "truth", 0))
    assert torch.equal(judges.truth[0], truth)
    assert len(judges.rival_truth) == len(judges.rival_grounded) == 2
    assert not any(torch.equal(rival, true) for rival in judges.rival_truth for true in judges.truth)
    assert not torch.equal(judges.grounded, judges.truth)
