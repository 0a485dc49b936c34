"""Drawing: deterministic, in range, different in every style, and never what is held out."""

import pytest
import torch

from duolora.tiny.atlas import Atlas, shipped_atlas
from duolora.tiny.captions import COLOURS, STYLES
from duolora.tiny.held_out import companion_subjects, held_out_combinations, held_out_subjects
from duolora.tiny.world import GROUND_WASH, Dice, TrainingWorld, draw


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def companions():
    atlas = shipped_atlas()
    return Atlas(companion_subjects(), atlas.rgba_G4HW[len(held_out_subjects()) :])


def test_the_shipped_atlas_has_a_picture_of_every_held_out_subject_and_companion():
    atlas = shipped_atlas()
    assert atlas.names == (*held_out_subjects(), *companion_subjects())
    inked = (atlas.rgba_G4HW[:, 3] > 127).float().mean(dim=(1, 2))
    assert inked.min() > 0.1


def test_draw_is_decided_by_its_seed():
    assert torch.equal(draw("fox", "neon", "teal", seed=3), draw("fox", "neon", "teal", seed=3))
    assert not torch.equal(draw("fox", seed=3), draw("fox", seed=4))


@pytest.mark.parametrize("style", [None, *STYLES])
def test_a_picture_is_64_px_of_numbers_between_0_and_1(style):
    picture = draw("castle", style, None if style is None else "pink", seed=1)
    assert picture.shape == (3, 64, 64)
    assert picture.dtype == torch.float32
    assert torch.isfinite(picture).all()
    assert picture.min() >= 0
    assert picture.max() <= 1
    assert picture.std() > 0.02


def test_every_style_changes_the_picture_and_no_two_agree():
    pictures = [draw("owl", seed=2), *(draw("owl", style, "blue", seed=2) for style in STYLES)]
    for i, first in enumerate(pictures):
        for second in pictures[i + 1 :]:
            assert (first - second).abs().mean() > 0.02


@pytest.mark.parametrize("style", STYLES)
def test_every_style_shows_its_colour_and_its_subject(style):
    assert (draw("owl", style, "red", seed=2) - draw("owl", style, "blue", seed=2)).abs().mean() > 0.02
    assert (draw("owl", style, "red", seed=2) - draw("rocket", style, "red", seed=2)).abs().mean() > 0.01


def test_a_style_without_a_colour_and_an_unknown_subject_are_refused():
    with pytest.raises(ValueError, match="colour"):
        draw("fox", "neon", seed=0)
    with pytest.raises(KeyError, match="gryphon"):
        draw("gryphon", seed=0)


def test_training_batches_never_hold_a_held_out_combination(companions):
    device = torch.device("cpu")
    world = TrainingWorld(companions, device)
    dice = Dice(device, torch.Generator().manual_seed(0))
    seen = set()
    for _ in range(4):
        pictures, labels = world.sample(dice, plain=2, per_style=12)
        assert pictures.shape == (2 + 12 * len(STYLES), 3, 64, 64)
        styled = zip(labels.style_B.tolist(), labels.colour_B.tolist(), strict=True)
        seen |= {(STYLES[style], list(COLOURS)[colour]) for style, colour in styled if style >= 0}
    assert not seen & held_out_combinations()
    assert len(seen) > 100


@pytest.mark.parametrize(("style", "share"), [(None, 1.0), ("sketch", GROUND_WASH), ("neon", GROUND_WASH)])
def test_a_ground_colours_what_lies_outside_the_subject_and_nothing_else(style, share):
    colour = None if style is None else "teal"
    without, with_ground = (draw("fox", style, colour, seed=3, ground=ground) for ground in (None, "yellow"))
    yellow = torch.tensor(COLOURS["yellow"]).view(3, 1, 1)
    changed = (with_ground - without).abs().amax(dim=0) > 1e-6
    # The corner is outside the glyph: exactly that share of the way to yellow.
    expected = without[:, :3, -3:] + share * (yellow - without[:, :3, -3:])
    assert torch.allclose(with_ground[:, :3, -3:], expected, atol=1e-5)
    assert 0.2 < changed.float().mean() < 0.95
