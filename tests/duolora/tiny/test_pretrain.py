"""Pretraining, at a batch of a few pictures on the CPU."""

import pytest
import torch
from torch import nn

from duolora.tiny.architecture import build_vae
from duolora.tiny.atlas import Atlas, shipped_atlas
from duolora.tiny.caption_tokens import CaptionWriter
from duolora.tiny.captions import COLOURS, STYLES
from duolora.tiny.checkpoint import MAX_PIECE_BYTES, load_pieces, save_pieces
from duolora.tiny.held_out import companion_subjects, held_out_subjects
from duolora.tiny.pretrain import Plan, Pretraining
from duolora.tiny.trainee import Stepper, Trainee
from duolora.tiny.world import Dice, Labels

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def companions():
    return Atlas(companion_subjects(), shipped_atlas().rgba_G4HW[len(held_out_subjects()) :])


def small_trainee():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
    trainee = Trainee({"net": module}, 1e-2, CPU)

    def step():
        given = torch.randn(16, 4)
        loss = ((module(given) - given) ** 2).mean()
        trainee.learn(loss)
        return loss.detach()

    return trainee, Stepper(step, CPU)


def learn(trainee, stepper, steps):
    for step in steps:
        trainee.set_progress(step, 20)
        stepper()


def test_training_resumed_from_a_checkpoint_equals_training_uninterrupted(tmp_path):
    trainee, stepper = small_trainee()
    learn(trainee, stepper, range(10))
    save_pieces(trainee.state(), {"step": 10}, tmp_path / "state")
    learn(trainee, stepper, range(10, 20))
    uninterrupted = trainee.state()

    fresh, fresh_stepper = small_trainee()
    tensors, counters = load_pieces(tmp_path / "state")
    fresh.load_state(tensors)
    learn(fresh, fresh_stepper, range(counters["step"], 20))
    resumed = fresh.state()
    assert uninterrupted.keys() == resumed.keys()
    assert all(torch.equal(uninterrupted[name], resumed[name]) for name in uninterrupted)


def test_checkpoint_pieces_are_small_enough_to_travel(tmp_path):
    tensors = {str(i): torch.randn(1_000_000) for i in range(6)}
    save_pieces(tensors, {"step": 1}, tmp_path / "state")
    pieces = list((tmp_path / "state").glob("*.safetensors"))
    assert len(pieces) == 2
    assert all(piece.stat().st_size < MAX_PIECE_BYTES + 100_000 for piece in pieces)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in load_pieces(tmp_path / "state")[0].items())


def test_a_pretraining_step_moves_every_module_and_its_average(companions):
    torch.manual_seed(0)
    plan = Plan(plain=1, per_style=1, total_steps=4)
    pretraining = Pretraining(companions, build_vae(), None, plan, device=CPU)
    before = {name: master.detach().clone() for name, master in pretraining.trainee.masters.items()}
    pretraining.trainee.set_progress(3, 4)
    assert torch.isfinite(pretraining.stepper())
    moved = {name for name, master in pretraining.trainee.masters.items() if not torch.equal(master, before[name])}
    assert {name.split(".")[0] for name in moved} == {"unet", "text_encoder", "text_encoder_2"}
    assert any(not torch.equal(average, before[name]) for name, average in pretraining.trainee.average.items())


def test_captions_written_on_the_device_say_what_is_drawn_and_keep_their_shares(companions):
    writer = CaptionWriter(companions.names, CPU)
    piece_of = {token: piece.replace("</w>", " ") for piece, token in writer.vocabulary.items()}
    count = 4000
    labels = Labels(
        torch.full((count,), companions.names.index("lion")),
        torch.full((count,), STYLES.index("neon")),
        torch.zeros(count, dtype=torch.long),
        torch.where(torch.arange(count) < count // 4, list(COLOURS).index("yellow"), -1),
    )
    ids = writer.write(labels, Dice(CPU, torch.Generator().manual_seed(0)))
    assert ids.shape == (count, 32)
    texts = ["".join(piece_of[token] for token in row if token < writer.start_id).strip() for row in ids.tolist()]
    shares = {
        "a lion in red neon style": 0.75 * 0.9 * 0.85 * 0.9 * 0.95,
        "a lion in red neon style on yellow background": 0.25 * 0.9 * 0.85 * 0.9 * 0.95,
        "": 0.1,
        "an animal in red neon style": 0.75 * 0.9 * 0.15 * 0.9 * 0.95,
    }
    for text, share in shares.items():
        assert texts.count(text) / count == pytest.approx(share, abs=0.03)
