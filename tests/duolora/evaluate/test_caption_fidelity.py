"""What a base draws for captions, measured; and the choice of captions."""

from __future__ import annotations

import json

import torch

from duolora.evaluate.caption_fidelity import (
    APART,
    GROUNDED,
    SEEN,
    STRANGE,
    TRUTH,
    Fidelity,
    chosen_pairs,
    measure_base,
)
from duolora.evaluate.network import shipped_evaluator
from duolora.tiny.base import base_path
from duolora.tiny.captions import training_colours
from duolora.tiny.held_out import companion_subjects, held_out_combinations, held_out_subjects


def test_every_kind_of_caption_holds_what_its_name_says():
    kinds = chosen_pairs(24)
    assert all(len(pairs) == 24 for pairs in kinds.values())
    for kind in (SEEN, STRANGE, GROUNDED):
        assert all(pair.colour in training_colours(pair.style) for pair in kinds[kind])
    assert all((pair.style, pair.colour) in held_out_combinations() for pair in kinds[APART])
    assert {pair.subject for pair in kinds[STRANGE]} <= set(held_out_subjects())
    assert {pair.subject for kind in (SEEN, APART, GROUNDED) for pair in kinds[kind]} <= set(companion_subjects())
    assert chosen_pairs(24) == kinds


def test_the_truth_is_faithful_and_an_untrained_base_is_not(base):
    found = measure_base(base, shipped_evaluator(torch.device("cpu")), 1, "tiny")
    assert list(found) == [TRUTH, SEEN, APART, STRANGE, GROUNDED]
    assert found[TRUTH].hmean > 0.8
    assert found[SEEN].hmean < 0.4
    assert found[GROUNDED].ground is not None
    assert found[SEEN].ground is None


def test_the_shipped_table_says_what_the_base_knows_and_what_it_does_not():
    path = base_path().with_name("caption_fidelity.json")
    rows = {kind: Fidelity(**row) for kind, row in json.loads(path.read_text(encoding="utf-8")).items()}
    assert list(rows) == [TRUTH, SEEN, APART, STRANGE, GROUNDED]
    for kind in (SEEN, APART):  # all but what the truth itself scores
        assert rows[kind].hmean > rows[TRUTH].hmean - 0.05
    assert rows[STRANGE].content < 0.2  # what LoRAs are for
    assert rows[STRANGE].style > 0.9
    assert rows[GROUNDED].ground is not None
    assert rows[GROUNDED].ground > 0.9
