"""Similarities, the distance to the truth, and the share of a background."""

from __future__ import annotations

import pytest
import torch

from duolora.evaluate.metrics import (
    frame_colour,
    ground_share,
    harmonic_mean,
    look,
    references,
    score,
    truth_distance,
)
from duolora.evaluate.network import Evaluator
from duolora.evaluate.truth_suite import JudgePictures, Selection, judge_pictures, truth_pairs


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    """Random weights: what is tested is the arithmetic."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return Evaluator().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def judges() -> JudgePictures:
    return judge_pictures(truth_pairs(Selection.QUICK)[0], 0, rivals=3)


def test_pictures_equal_to_their_only_reference_score_one(evaluator, judges):
    one = judges.truth[:1]
    alone = JudgePictures(one, one, one, judges.grounded[:1], one, judges.grounded[:1])
    got = score(look(evaluator, one.repeat(3, 1, 1, 1)), references(evaluator, alone))
    assert got.content == pytest.approx(1, abs=1e-5)
    assert got.style == pytest.approx(1, abs=1e-5)
    assert got.hmean == pytest.approx(1, abs=1e-5)
    assert got.truth_distance == pytest.approx(0, abs=1e-2)
    assert got.ground is None


def test_the_harmonic_mean_is_that_of_the_mean_similarities(evaluator, judges):
    to = references(evaluator, judges)
    got = score(look(evaluator, judges.rival_truth), to)
    content_ME, style_ME = evaluator(judges.rival_truth)
    content = (content_ME @ to.content_E).clamp_min(0).mean().item()
    style = (style_ME @ to.style_E).clamp_min(0).mean().item()
    assert got.content == pytest.approx(content)
    assert got.style == pytest.approx(style)
    assert got.hmean == pytest.approx(2 * content * style / (content + style))


@pytest.mark.parametrize(
    ("values", "mean"), [([0.5, 0.5], 0.5), ([1.0, 0.5], 2 / 3), ([0.9, 0.0], 0.0), ([1.0, 0.5, 0.25], 3 / 7)]
)
def test_a_harmonic_mean_punishes_what_is_lost(values, mean):
    assert harmonic_mean(values) == pytest.approx(mean)


def test_a_placement_costs_less_than_another_subject(evaluator, judges):
    truth_NF = look(evaluator, judges.truth).trunk_MF
    placed = truth_distance(look(evaluator, judges.rival_truth).trunk_MF, truth_NF).mean()
    plain = truth_distance(look(evaluator, judges.plain).trunk_MF, truth_NF).mean()
    noise = truth_distance(look(evaluator, torch.rand(3, 3, 64, 64)).trunk_MF, truth_NF).mean()
    assert placed < 0.5 * plain
    assert placed < 0.5 * noise


def test_distances_are_to_the_nearest_truth():
    got_MF, truth_NF = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 1.0], [3.0, 0.0]])
    assert truth_distance(got_MF, truth_NF).tolist() == pytest.approx([1, 4])


def test_the_truth_has_the_background_and_the_truth_without_it_has_not(evaluator, judges):
    to = references(evaluator, judges)
    asked = score(look(evaluator, judges.rival_grounded), to, grounded=True)
    ignored = score(look(evaluator, judges.rival_truth), to, grounded=True)
    assert asked.ground > 0.9
    assert ignored.ground < 0.1
    assert asked.hmean > ignored.hmean
    assert asked.truth_distance < ignored.truth_distance


def test_the_frame_is_the_outermost_ring():
    rgb_B3HW = torch.zeros(1, 3, 64, 64)
    rgb_B3HW[:, 0, 4:-4, 4:-4] = 1.0
    assert frame_colour(rgb_B3HW).tolist() == [[0, 0, 0]]
    assert ground_share(torch.tensor([[0.5, 0, 0], [2.0, 0, 0]]), torch.zeros(3), torch.eye(3)[0]).tolist() == [0.5, 1]


def test_pictures_of_another_size_are_judged_like_small_ones(evaluator, judges):
    small = look(evaluator, judges.truth)
    large = look(evaluator, judges.truth.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
    assert (small.content_ME * large.content_ME).sum(dim=1).min() > 0.99
