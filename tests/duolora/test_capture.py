"""Recorded passes: when one is recorded and which is replayed, on any machine; that they compute the same, on a GPU."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
import torch

from duolora import capture
from duolora.adapters import RankSpaceAdapter, role_rows
from duolora.capture import CapturedPredictor
from duolora.config import LoraTrainConfig
from duolora.lora_task import LoraTask
from duolora.models.base import DiffusionBase
from duolora.runtime import Runtime
from duolora.train import train_loras
from tests.duolora.pico import pico_pipeline, random_lora

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import Tensor

    from duolora.lora.weights import LoraWeights
    from duolora.models.base import PromptEmbeddings

SIDES = ("content", "style")
CONTENT, STYLE, MERGED = 0, 1, 2  # roles of an adapter of both sides


def draw_inputs(
    base: DiffusionBase, batch: int, seed: int = 0, latent_size: int = 8
) -> tuple[Tensor, Tensor, PromptEmbeddings]:
    generator = torch.Generator().manual_seed(seed)
    device = base.runtime.device
    noisy_BCHW = torch.randn(batch, 4, latent_size, latent_size, generator=generator).to(device)
    timesteps_B = torch.randint(1000, (batch,), generator=generator).to(device)
    return noisy_BCHW, timesteps_B, base.encode_prompts([f"picture {seed} {index}" for index in range(batch)])


def two_sides(base: DiffusionBase) -> dict[str, LoraWeights]:
    return {side: random_lora(base, seed=role + 1, ranks=(3,), scale=0.1) for role, side in enumerate(SIDES)}


def half_masks(sides: dict[str, LoraWeights]) -> dict[str, dict[str, Tensor]]:
    return {
        side: {name: torch.full((layer.rank,), 0.5) for name, layer in lora.layers.items()}
        for side, lora in sides.items()
    }


class Recorder:
    """Stands where CUDA would record: notes what it is given and runs every pass as an ordinary one."""

    def __init__(self) -> None:
        self.recorded: list[tuple[torch.Size, ...]] = []
        self.replays = 0

    def __call__(self, unet_pass: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Callable[..., Tensor]:
        self.recorded.append(tuple(tensor.shape for tensor in inputs))

        def replay(*fresh: Tensor) -> Tensor:
            self.replays += 1
            return unet_pass(*fresh)

        return replay


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> tuple[Recorder, Recorder]:
    """Recorders in place of CUDA's, for passes that learn and for passes that do not."""
    learning, resting = Recorder(), Recorder()
    monkeypatch.setattr(capture, "_record_learning", learning)
    monkeypatch.setattr(capture, "_record", resting)
    return learning, resting


def say_it_is_on_a_gpu(base: DiffusionBase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the base name a GPU as its device; its weights stay where they are, so draw the inputs before."""
    monkeypatch.setattr(base, "runtime", Runtime(torch.device("cuda"), torch.float32))


def test_on_a_cpu_every_pass_is_an_ordinary_one(base: DiffusionBase, recorders: tuple[Recorder, Recorder]) -> None:
    predict = CapturedPredictor(base)

    for seed in range(2):
        given = draw_inputs(base, 2, seed)
        with torch.no_grad():
            assert torch.equal(predict(*given), base.predict_noise(*given))
        assert torch.equal(predict(*given), base.predict_noise(*given))

    assert not any(recorder.recorded for recorder in recorders)


def test_gradients_on_a_cpu_are_those_of_an_ordinary_pass(base: DiffusionBase) -> None:
    sides, given = two_sides(base), draw_inputs(base, 2)
    gradients = []
    with RankSpaceAdapter(sides).inject(base.unet) as adapter:
        for predict in (CapturedPredictor(base), base.predict_noise):
            masks = adapter.learn_masks(half_masks(sides))
            adapter.assign_all(adapter.merged, 2)
            gradients.append(torch.autograd.grad(predict(*given).square().mean(), masks))

    assert all(mask.abs().max() > 0 for mask in gradients[0])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_pass_is_recorded_once_for_its_shapes_and_replayed_with_what_comes(
    base: DiffusionBase, recorders: tuple[Recorder, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    learning, resting = recorders
    passes = [draw_inputs(base, 2, seed) for seed in range(3)]
    say_it_is_on_a_gpu(base, monkeypatch)
    predict = CapturedPredictor(base)

    with torch.no_grad():
        found = [predict(*given) for given in passes]
        expected = [base.predict_noise(*given) for given in passes]

    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert resting.recorded == [((2, 4, 8, 8), (2,), (2, 32, 80), (2, 24))]
    assert resting.replays == 3
    assert not learning.recorded


def test_passes_that_learn_are_recorded_apart_from_those_that_do_not(
    base: DiffusionBase, recorders: tuple[Recorder, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    learning, resting = recorders
    given = draw_inputs(base, 2)
    say_it_is_on_a_gpu(base, monkeypatch)
    predict = CapturedPredictor(base)

    predict(*given)
    with torch.no_grad():
        predict(*given)
    predict(*given)

    assert (len(learning.recorded), learning.replays) == (1, 2)
    assert (len(resting.recorded), resting.replays) == (1, 1)


def test_latents_that_ask_for_a_gradient_are_recorded_apart_and_get_it(
    base: DiffusionBase, recorders: tuple[Recorder, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    learning, resting = recorders
    noisy_BCHW, *others = draw_inputs(base, 2)
    asking_BCHW = noisy_BCHW.clone().requires_grad_()
    say_it_is_on_a_gpu(base, monkeypatch)
    predict = CapturedPredictor(base)

    predict(noisy_BCHW, *others)
    predict(asking_BCHW, *others).square().mean().backward()
    with torch.no_grad():
        predict(asking_BCHW, *others)
        predict(noisy_BCHW, *others)

    assert (len(learning.recorded), len(resting.recorded)) == (2, 1)
    assert asking_BCHW.grad is not None
    assert asking_BCHW.grad.abs().max() > 0


def test_other_shapes_and_dtypes_are_other_recordings(
    base: DiffusionBase, recorders: tuple[Recorder, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, resting = recorders
    two, three, larger = draw_inputs(base, 2), draw_inputs(base, 3), draw_inputs(base, 2, latent_size=16)
    say_it_is_on_a_gpu(base, monkeypatch)
    in_double = (two[0].double(), *two[1:])
    predict = CapturedPredictor(base)

    with torch.no_grad():
        for _ in range(2):
            for given in (two, three, larger, in_double):
                predict(*given)

    assert len(resting.recorded) == 4
    assert resting.replays == 8


def test_recordings_are_of_one_predictor(
    base: DiffusionBase, recorders: tuple[Recorder, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new adapter means new memory; whoever attaches one makes a new predictor."""
    _, resting = recorders
    given = draw_inputs(base, 1)
    say_it_is_on_a_gpu(base, monkeypatch)

    with torch.no_grad():
        for _ in range(2):
            CapturedPredictor(base)(*given)

    assert len(resting.recorded) == 2


def mask_gradients(base: DiffusionBase, predict: Callable[..., Tensor], steps: int) -> list[Tensor]:
    """Train the masks of a merged role by plain gradient descent; the gradients of every step, flattened."""
    sides = two_sides(base)
    gradients = []
    with RankSpaceAdapter(sides).inject(base.unet) as adapter:
        masks = adapter.learn_masks(half_masks(sides))
        optimizer = torch.optim.SGD(masks, lr=0.1)
        for step in range(steps):
            adapter.assign_all(adapter.merged, 2)
            optimizer.zero_grad(set_to_none=True)
            predict(*draw_inputs(base, 2, seed=step)).square().mean().backward()
            gradients.append(torch.cat([mask.grad.flatten() for mask in masks]))
            optimizer.step()
    return gradients


def denoised(base: DiffusionBase, predict: Callable[..., Tensor], steps: int) -> Tensor:
    """Denoise a content, a merged and a style sample side by side, by deterministic steps."""
    sides, schedule = two_sides(base), base.schedule
    latents_BCHW, _, prompts = draw_inputs(base, 3)
    timesteps = torch.linspace(800, 0, steps + 1).long().tolist()
    with RankSpaceAdapter(sides).inject(base.unet) as adapter, torch.no_grad():
        adapter.learn_masks(half_masks(sides))
        for now, after in itertools.pairwise(timesteps):
            adapter.assign(role_rows([(CONTENT, 1), (MERGED, 1), (STYLE, 1)], base.runtime.device))
            now_B, after_B = (torch.full((3,), step, device=base.runtime.device) for step in (now, after))
            noise_BCHW = predict(latents_BCHW, now_B, prompts)
            # Bounded, so that differences of rounding are not blown up by an untrained model's wild pictures.
            clean_BCHW = schedule.predict_clean(latents_BCHW, noise_BCHW, now_B).clamp(-3, 3)
            latents_BCHW = schedule.add_noise(clean_BCHW, noise_BCHW, after_B)
    return latents_BCHW


@pytest.fixture(scope="module")
def gpu_base() -> Iterator[DiffusionBase]:
    """The pico base on the GPU, computing in full float32 with kernels that give the same each time."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield DiffusionBase(pico_pipeline(), "pico", Runtime(torch.device("cuda"), torch.float32))


@pytest.mark.gpu
def test_recorded_steps_of_masks_have_the_gradients_of_ordinary_ones(gpu_base: DiffusionBase) -> None:
    recorded = mask_gradients(gpu_base, CapturedPredictor(gpu_base), steps=4)
    ordinary = mask_gradients(gpu_base, gpu_base.predict_noise, steps=4)

    for found, expected in zip(recorded, ordinary, strict=True):
        assert expected.norm() > 0
        assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert not torch.allclose(ordinary[0], ordinary[-1], rtol=0.01)


@pytest.mark.gpu
def test_recorded_passes_give_latents_and_masks_the_gradients_of_ordinary_ones(gpu_base: DiffusionBase) -> None:
    sides = two_sides(gpu_base)
    found: list[list[Tensor]] = []
    with RankSpaceAdapter(sides).inject(gpu_base.unet) as adapter:
        masks = adapter.learn_masks(half_masks(sides))
        adapter.assign_all(adapter.merged, 2)
        for predict in (CapturedPredictor(gpu_base), gpu_base.predict_noise):
            found.append([])
            for seed in range(3):
                noisy_BCHW, *others = draw_inputs(gpu_base, 2, seed)
                noisy_BCHW.requires_grad_()
                loss = predict(noisy_BCHW, *others).square().mean()
                found[-1] += [tensor.clone() for tensor in torch.autograd.grad(loss, [noisy_BCHW, *masks])]

    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


@pytest.mark.gpu
def test_recorded_sampling_arrives_where_ordinary_sampling_does(gpu_base: DiffusionBase) -> None:
    found = denoised(gpu_base, CapturedPredictor(gpu_base), steps=6)

    torch.testing.assert_close(found, denoised(gpu_base, gpu_base.predict_noise, steps=6), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_loras_trained_by_recorded_steps_are_those_of_ordinary_ones(
    gpu_base: DiffusionBase, content_pictures: list[Path], style_pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The style task ends early, so that a second recording with another batch takes over."""
    recorded = trained(gpu_base, content_pictures, style_pictures)
    monkeypatch.setattr("duolora.recorded_step.WARM_UPS", 1000)
    ordinary = trained(gpu_base, content_pictures, style_pictures)

    assert_loras_close(recorded, ordinary, 1e-5)


def trained(base: DiffusionBase, content: list[Path], style: list[Path]) -> dict[str, dict[str, Tensor]]:
    """Side -> layer -> the change that a short training makes."""
    tasks = [
        LoraTask(
            side,
            pictures,
            [f"a disc for {side}"] * len(pictures),
            LoraTrainConfig(steps=steps, rank=2, learning_rate=1e-3, batch_size=2, resolution_px=64, seed=3),
        )
        for side, pictures, steps in (("content", content, 11), ("style", style, 6))
    ]
    return {
        side: {name: layer.delta_OI() for name, layer in lora.layers.items()}
        for side, lora in train_loras(base, tasks).items()
    }


def assert_loras_close(
    found: dict[str, dict[str, Tensor]], expected: dict[str, dict[str, Tensor]], tolerance: float
) -> None:
    """All changes together differ by a share of their size at most."""
    for side, layers in expected.items():
        size = torch.stack([delta_OI.norm() for delta_OI in layers.values()]).norm()
        error = torch.stack([(found[side][name] - delta_OI).norm() for name, delta_OI in layers.items()]).norm()
        assert size > 0
        assert error <= tolerance * size, f"{side}: {error / size:.1e}"
