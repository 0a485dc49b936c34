"""The evaluator network and its training, at a few pictures on the CPU."""

from __future__ import annotations

import json

import torch

from duolora.evaluate.distort import distort
from duolora.evaluate.network import EMBEDDING_WIDTH, Evaluator, load_evaluator, save_evaluator
from duolora.evaluate.train_evaluator import EvaluatorLesson, Plan, train
from duolora.evaluate.whole_world import PLAIN, WholeWorld, whole_atlas
from duolora.tiny.atlas import Atlas, shipped_atlas
from duolora.tiny.captions import COLOURS, STYLES
from duolora.tiny.held_out import held_out_combinations
from duolora.tiny.world import Dice

CPU = torch.device("cpu")


def part_of_the_training_sheet() -> Atlas:
    companions = shipped_atlas()
    names = ("bicycle", "apple", "dog")
    return Atlas(names, companions.rgba_G4HW[[companions.index(name) for name in names]])


def test_the_embeddings_have_unit_norm_and_the_file_stays_small(tmp_path):
    evaluator = Evaluator()
    content_BE, style_BE = evaluator(torch.rand(3, 3, 64, 64))
    assert content_BE.shape == style_BE.shape == (3, EMBEDDING_WIDTH)
    for embedding_BE in (content_BE, style_BE):
        torch.testing.assert_close(embedding_BE.norm(dim=1), torch.ones(3))
    save_evaluator(evaluator.state_dict(), tmp_path / "evaluator.safetensors")
    assert (tmp_path / "evaluator.safetensors").stat().st_size <= 4_000_000


def test_a_loaded_evaluator_judges_as_the_saved_one_but_for_rounding(tmp_path):
    evaluator = Evaluator().eval()
    save_evaluator(evaluator.state_dict(), tmp_path / "evaluator.safetensors")
    rgb_B3HW = torch.rand(2, 3, 64, 64)
    for got, expected in zip(
        load_evaluator(CPU, tmp_path / "evaluator.safetensors")(rgb_B3HW), evaluator(rgb_B3HW), strict=True
    ):
        torch.testing.assert_close(got, expected, atol=5e-3, rtol=0)


def test_every_name_stands_once_in_the_whole_atlas():
    atlas = whole_atlas(part_of_the_training_sheet())
    assert len(set(atlas.names)) == len(atlas.names) == len(atlas.rgba_G4HW) == len(shipped_atlas().names)


def test_the_whole_world_draws_held_out_combinations_too():
    world = WholeWorld(whole_atlas(part_of_the_training_sheet()), CPU)
    _, seen = world.sample(Dice(CPU, torch.Generator().manual_seed(0)), plain=5, per_style=20)
    drawn = {
        (STYLES[look // len(COLOURS)], list(COLOURS)[look % len(COLOURS)])
        for look in seen.look_B.tolist()
        if look != PLAIN
    }
    assert seen.look_B[:5].eq(PLAIN).all()
    assert drawn & held_out_combinations()


def test_distortions_are_mild_and_differ_between_pictures():
    rgb_B3HW = torch.full((2, 3, 64, 64), 0.5)
    rgb_B3HW[:, :, 16:48, 16:48] = 0.8
    got_B3HW = distort(rgb_B3HW, Dice(CPU, torch.Generator().manual_seed(1)))
    assert got_B3HW.min() >= 0
    assert got_B3HW.max() <= 1
    assert (got_B3HW - rgb_B3HW).abs().mean() < 0.1
    assert not torch.equal(got_B3HW[0], got_B3HW[1])


def test_training_lowers_the_loss_on_three_subjects():
    torch.manual_seed(0)
    plan = Plan(plain=4, per_style=1, total_steps=12)
    lesson = EvaluatorLesson(Evaluator(), WholeWorld(part_of_the_training_sheet(), CPU), CPU, plan)
    losses = []
    for step in range(12):
        lesson.trainee.set_progress(step, 12)
        losses.append(float(lesson.step()))
    assert min(losses[-3:]) < losses[0]


def test_a_run_of_two_steps_writes_weights_and_report(tmp_path):
    torch.manual_seed(0)
    plan = Plan(plain=2, per_style=1, total_steps=2, measured_batches=1, measured_batch_size=4)
    figures = train(whole_atlas(part_of_the_training_sheet()), tmp_path, plan, CPU)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["steps"] == 2
    assert {"content_top1_held_out", "style_top1_seen", "style_cosine_same_style_other_subject"} <= figures.keys()
    assert load_evaluator(CPU, tmp_path / "evaluator.safetensors")(torch.rand(1, 3, 64, 64))
