from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from duolora.adapters import RankSpaceAdapter, RankSpaceLinear
from duolora.config import LoraTrainConfig, Preservation, TargetLayers
from duolora.errors import Cancelled, InvalidConfig, InvalidImage, TrainingDiverged
from duolora.images import load_pictures
from duolora.lora.write import write_diffusers
from duolora.lora_task import Batch, CachedTask, ClassPictures, LoraTask
from duolora.train import train_loras, train_tenants
from tests.duolora.dense import assert_same_change
from tests.duolora.pico import draw_pictures
from tests.duolora.watch import Watcher

if TYPE_CHECKING:
    from pathlib import Path

    from duolora.lora.weights import LoraWeights
    from duolora.models.base import DiffusionBase


def config(**changes: Any) -> LoraTrainConfig:
    return LoraTrainConfig(**({"steps": 3, "rank": 2, "learning_rate": 1e-2, "resolution_px": 64} | changes))


def task(pictures: list[Path], side: str = "content", **changes: Any) -> LoraTask:
    return LoraTask(side, pictures, ["a sbu disc"] * len(pictures), config(**changes))


def train(base: DiffusionBase, lora_task: LoraTask) -> LoraWeights:
    return train_loras(base, [lora_task])[lora_task.side]


def assert_same_lora(one: LoraWeights, other: LoraWeights) -> None:
    assert one.layers.keys() == other.layers.keys()
    for name, layer in one.layers.items():
        assert torch.equal(layer.down_RI, other.layers[name].down_RI), name
        assert torch.equal(layer.up_OR, other.layers[name].up_OR), name


def tensor_data(path: Path) -> bytes:
    """All that follows a file's header, whose entries the safetensors library writes in no fixed order."""
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def test_same_seed_gives_the_same_bytes(base: DiffusionBase, content_pictures: list[Path], tmp_path: Path) -> None:
    torch.manual_seed(1)
    one = train(base, task(content_pictures, batch_size=2, seed=4))
    torch.manual_seed(2)  # the process's own random numbers must not matter
    other = train(base, task(content_pictures, batch_size=2, seed=4))

    assert_same_lora(one, other)
    write_diffusers(one, tmp_path / "one.safetensors")
    write_diffusers(other, tmp_path / "other.safetensors")
    assert tensor_data(tmp_path / "one.safetensors") == tensor_data(tmp_path / "other.safetensors")


def test_sides_of_one_seed_start_from_other_factors_and_draw_other_noise(
    base: DiffusionBase, content_pictures: list[Path]
) -> None:
    """Else the ranks of both LoRAs lie in the same directions (overlap .86), as those of strangers' LoRAs never do."""
    watchers = [Watcher(), Watcher()]
    one, other = (
        train_loras(base, [task(content_pictures, side, steps=1, learning_rate=1e-12, seed=4)], watcher)[side]
        for side, watcher in zip(("content", "style"), watchers, strict=True)
    )

    assert watchers[0].losses != watchers[1].losses
    for name, layer in one.layers.items():
        assert (layer.down_RI - other.layers[name].down_RI).abs().mean() > 1e-3


@pytest.mark.parametrize(
    ("change", "message"), [({"resolution_px": 96}, "one resolution_px"), ({"side": "content"}, "a side of its own")]
)
def test_tasks_that_cannot_share_a_pass_are_refused(
    base: DiffusionBase, content_pictures: list[Path], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidConfig, match=message):
        train_loras(base, [task(content_pictures), task(content_pictures, **{"side": "style", **change})])


def test_another_seed_starts_from_other_factors_and_draws_other_noise(
    base: DiffusionBase, content_pictures: list[Path]
) -> None:
    """Untrained, a LoRA changes nothing, so the first loss shows what was drawn alone."""
    watchers = [Watcher(), Watcher()]
    one, other = (
        train_loras(base, [task(content_pictures, steps=1, learning_rate=1e-12, seed=seed)], watcher)["content"]
        for seed, watcher in zip((4, 5), watchers, strict=True)
    )

    assert watchers[0].losses != watchers[1].losses
    for name, layer in one.layers.items():
        assert (layer.down_RI - other.layers[name].down_RI).abs().mean() > 1e-3


def test_training_adapts_the_chosen_layers_at_the_chosen_rank(
    base: DiffusionBase, content_pictures: list[Path]
) -> None:
    lora = train(base, task(content_pictures, rank=3, targets=TargetLayers.TRANSFORMER))

    assert set(lora.layers) == {f"unet.{path}" for path in base.target_layers(TargetLayers.TRANSFORMER)}
    assert {layer.rank for layer in lora.layers.values()} == {3}
    assert all(layer.up_OR.abs().max() > 0 for layer in lora.layers.values()), "a layer did not learn"
    assert {layer.up_OR.dtype for layer in lora.layers.values()} == {torch.float32}


def denoising_error(base: DiffusionBase, pictures: list[Path], lora: LoraWeights) -> float:
    """Error on noise, timesteps and latents that no training drew."""
    unseen = Batch.gather(base, [CachedTask(base, task(pictures, batch_size=16, seed=999))])
    with RankSpaceAdapter({"lora": lora}).inject(base.unet) as adapter, torch.no_grad():
        adapter.assign_all(0, 16)
        prediction = base.predict_noise(unseen.noisy_BCHW, unseen.timesteps_B, unseen.prompts)
    return (prediction - unseen.noise_BCHW).square().mean().item()


def test_loss_falls_on_a_task_of_one_picture(base: DiffusionBase, content_pictures: list[Path]) -> None:
    picture = content_pictures[:1]
    untouched = train(base, task(picture, steps=1, learning_rate=1e-12))
    before = denoising_error(base, picture, untouched)

    after = denoising_error(base, picture, train(base, task(picture, steps=40, batch_size=4, rank=4)))

    assert after < 0.9 * before, f"{before:.4f} -> {after:.4f}"


@pytest.mark.parametrize("steps", [(3, 3), (5, 2), (2, 5)])
def test_training_two_loras_in_one_pass_equals_training_each_alone(
    base: DiffusionBase, content_pictures: list[Path], style_pictures: list[Path], steps: tuple[int, int]
) -> None:
    """Tolerance: 1e-3 of each delta's norm in float32, since a larger batch sums in another order.

    Tasks of unequal length matter: the shorter one must stop where it would have stopped alone.
    """
    content = task(content_pictures, "content", steps=steps[0], batch_size=2, seed=1, warmup_steps=2)
    style = task(style_pictures, "style", steps=steps[1], batch_size=3, rank=3, learning_rate=3e-3, snr_gamma=5.0)

    together = train_loras(base, [content, style])

    for alone in (content, style):
        assert_same_change(together[alone.side], train(base, alone), 1e-3)


def test_tenants_trained_together_get_what_each_would_get_alone(
    base: DiffusionBase, content_pictures: list[Path], style_pictures: list[Path]
) -> None:
    """Unequal numbers of pictures and unequal seeds; both sides. Tolerance 1e-2 of a delta's norm: where a gradient is
    nearly nothing, Adam makes a whole step of its rounding, and a batched product rounds in another order.
    """
    tenants = [
        [task(content_pictures, "content", batch_size=2, seed=1), task(style_pictures, "style", batch_size=1, steps=2)],
        [task(style_pictures, "content", batch_size=2, seed=7), task(content_pictures[:1], "style", steps=2, seed=9)],
    ]

    together = train_tenants(base, tenants)

    for tasks, found in zip(tenants, together, strict=True):
        for side, lora in train_loras(base, tasks).items():
            assert_same_change(found[side], lora, 1e-2)


def test_tenants_with_other_configurations_are_refused(base: DiffusionBase, content_pictures: list[Path]) -> None:
    with pytest.raises(InvalidConfig, match="seeds apart"):
        train_tenants(base, [[task(content_pictures)], [task(content_pictures, rank=5)]])


def test_in_company_a_samples_gradient_reaches_the_loras_of_both_sides(
    base: DiffusionBase, content_pictures: list[Path], style_pictures: list[Path]
) -> None:
    content = task(content_pictures, "content", batch_size=2, steps=4)
    alone = train_loras(base, [content, task(style_pictures, "style", batch_size=2, steps=4)])
    again = train_loras(base, [content, task(style_pictures[:1], "style", batch_size=2, steps=4)])
    for name, layer in alone["content"].layers.items():  # without company no side feels the other's pictures
        torch.testing.assert_close(again["content"].layers[name].delta_OI(), layer.delta_OI(), rtol=1e-3, atol=1e-5)

    pairs = [
        train_loras(
            base,
            [
                task(content_pictures, "content", batch_size=2, steps=4, company=0.5),
                task(pictures, "style", batch_size=2, steps=4, company=0.5),
            ],
        )
        for pictures in (style_pictures, style_pictures[:1])
    ]

    changed = [
        (pairs[0]["content"].layers[name].up_OR - layer.up_OR).norm() / layer.up_OR.norm()
        for name, layer in pairs[1]["content"].layers.items()
    ]
    assert min(changed) > 1e-3


def test_company_needs_another_side(base: DiffusionBase, content_pictures: list[Path]) -> None:
    with pytest.raises(InvalidConfig, match="trained in one pass"):
        train(base, task(content_pictures, batch_size=2, company=0.5))


def preserving(
    base: DiffusionBase, lora_task: LoraTask, pictures: list[Path], *, weight: float = 1.0, caption: str = "a disc"
) -> LoraTask:
    """The task, made to preserve these pictures as if the base had drawn them."""
    moments = base.encode_pictures(load_pictures(pictures, 64))
    settings = lora_task.config.model_copy(update={"preservation": Preservation(weight=weight)})
    return replace(lora_task, config=settings, preserved=ClassPictures(caption, moments))


def test_class_pictures_count_by_their_weight_and_disturb_nothing_else(
    base: DiffusionBase, content_pictures: list[Path], style_pictures: list[Path]
) -> None:
    plain = task(content_pictures, batch_size=2)
    watchers = {weight: Watcher() for weight in (None, 0.0, 1e-9, 1.0, 2.0)}

    trained = {
        weight: train_loras(
            base, [plain if weight is None else preserving(base, plain, style_pictures, weight=weight)], watcher
        )["content"]
        for weight, watcher in watchers.items()
    }

    assert_same_lora(trained[0.0], trained[None])
    first = {weight: watcher.losses[0] for weight, watcher in watchers.items()}
    assert first[1e-9] == pytest.approx(first[None], rel=1e-4)  # the caller's pictures are drawn as without the class
    assert first[2.0] - first[1e-9] == pytest.approx(2 * (first[1.0] - first[1e-9]), rel=1e-3)
    for name, layer in trained[None].layers.items():
        assert (trained[1.0].layers[name].up_OR - layer.up_OR).norm() > 1e-2 * layer.up_OR.norm()


def test_a_preserved_class_is_drawn_as_before(
    base: DiffusionBase, content_pictures: list[Path], style_pictures: list[Path]
) -> None:
    """By how well pictures of the class are denoised after trainings on another picture, with the same caption."""
    unseen = Batch.gather(base, [CachedTask(base, task(style_pictures, batch_size=16, seed=999))])

    def error(lora: LoraWeights) -> float:
        with RankSpaceAdapter({"lora": lora}).inject(base.unet) as adapter, torch.no_grad():
            adapter.assign_all(0, 16)
            prediction = base.predict_noise(unseen.noisy_BCHW, unseen.timesteps_B, unseen.prompts)
        return (prediction - unseen.noise_BCHW).square().mean().item()

    forgot = kept = 0.0
    for seed in range(3):
        plain = task(content_pictures[:1], steps=60, batch_size=4, rank=4, learning_rate=5e-3, seed=seed)
        forgot += error(train(base, plain))
        kept += error(train(base, preserving(base, plain, style_pictures, caption="a sbu disc", weight=2.0)))

    assert kept < 0.99 * forgot


@pytest.mark.parametrize("company", [0.0, 0.5])
def test_tenants_preserve_each_its_own_class(
    base: DiffusionBase, content_pictures: list[Path], style_pictures: list[Path], company: float
) -> None:
    """Tolerance as for tenants without a class to preserve."""
    content = task(content_pictures, "content", batch_size=2, seed=1, company=company)
    style = task(style_pictures, "style", batch_size=2, steps=2, company=company)
    tenants = [
        [preserving(base, content, style_pictures), preserving(base, style, content_pictures, weight=0.5)],
        [preserving(base, content, content_pictures[:1]), preserving(base, style, style_pictures[1:], weight=0.5)],
    ]

    together = train_tenants(base, tenants)

    for tasks, found in zip(tenants, together, strict=True):
        for side, lora in train_loras(base, tasks).items():
            assert_same_change(found[side], lora, 1e-2)


def test_class_samples_reach_the_lora_of_their_own_side_only(
    base: DiffusionBase, content_pictures: list[Path], style_pictures: list[Path]
) -> None:
    content = preserving(base, task(content_pictures, "content"), content_pictures)
    style = task(style_pictures, "style")

    pairs = [
        train_loras(base, [content, preserving(base, style, pictures)])
        for pictures in (content_pictures, style_pictures)
    ]

    for name, layer in pairs[0]["content"].layers.items():
        torch.testing.assert_close(pairs[1]["content"].layers[name].delta_OI(), layer.delta_OI(), rtol=1e-3, atol=1e-5)
    assert any(
        not torch.allclose(layer.up_OR, pairs[1]["style"].layers[name].up_OR, rtol=1e-2)
        for name, layer in pairs[0]["style"].layers.items()
    )


def test_class_without_pictures_is_refused(base: DiffusionBase, content_pictures: list[Path]) -> None:
    with pytest.raises(InvalidConfig, match="content LoRA is to preserve its class, but no pictures"):
        train(base, task(content_pictures, preservation=Preservation(weight=1)))


def test_warmup_raises_the_learning_rate_from_its_first_step(base: DiffusionBase, content_pictures: list[Path]) -> None:
    """AdamW's first step moves every factor by the learning rate, so the size of the step shows the rate."""
    fast, slow = (train(base, task(content_pictures, steps=1, warmup_steps=warmup)) for warmup in (0, 10))

    for name, layer in fast.layers.items():
        assert layer.up_OR.abs().max().item() == pytest.approx(1e-2, rel=1e-2)
        assert slow.layers[name].up_OR.abs().max().item() == pytest.approx(1e-3, rel=1e-2)


def test_mirrored_pictures_are_trained_on_when_asked_for(base: DiffusionBase, content_pictures: list[Path]) -> None:
    plain, flipped = (train(base, task(content_pictures[:1], steps=6, flip=flip)) for flip in (False, True))

    assert any(not torch.equal(layer.up_OR, flipped.layers[name].up_OR) for name, layer in plain.layers.items())


def test_progress_counts_every_step_with_its_loss(base: DiffusionBase, content_pictures: list[Path]) -> None:
    watcher = Watcher()

    train_loras(base, [task(content_pictures)], watcher)

    assert [(report.step, report.total) for report in watcher.reports] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert watcher.reports[0].loss is None
    assert len(watcher.losses) == 3


def test_cancelling_stops_at_the_next_step_and_leaves_the_model_clean(
    base: DiffusionBase, content_pictures: list[Path]
) -> None:
    watcher = Watcher(stop_after=2)

    with pytest.raises(Cancelled, match="step 2 of 50"):
        train_loras(base, [task(content_pictures, steps=50)], watcher)

    assert watcher.reports[-1].step == 2
    assert not any(isinstance(module, RankSpaceLinear) for module in base.unet.modules())


def test_loss_that_is_not_finite_stops_the_training_and_leaves_the_model_clean(
    broken_base: DiffusionBase, content_pictures: list[Path]
) -> None:
    with pytest.raises(TrainingDiverged, match="step 1"):
        train(broken_base, task(content_pictures))

    assert not any(isinstance(module, RankSpaceLinear) for module in broken_base.unet.modules())


def test_captions_must_match_the_pictures(content_pictures: list[Path]) -> None:
    with pytest.raises(InvalidImage, match="style LoRA has 2 pictures but 1 captions"):
        LoraTask("style", content_pictures, ["a disc"], config())


def test_task_without_pictures_is_refused() -> None:
    with pytest.raises(InvalidImage, match="content LoRA needs at least one picture"):
        LoraTask("content", [], [], config())


def test_picture_that_cannot_be_read_is_named_and_nothing_is_attached(base: DiffusionBase, tmp_path: Path) -> None:
    pictures = draw_pictures(tmp_path, ((255, 0, 0), (0, 255, 0)))
    pictures[1].write_bytes(pictures[1].read_bytes()[:60])

    with pytest.raises(InvalidImage, match=r"001\.png"):
        train(base, task(pictures))


def test_written_lora_holds_what_was_trained(base: DiffusionBase, content_pictures: list[Path], tmp_path: Path) -> None:
    lora = train(base, task(content_pictures))
    write_diffusers(lora, tmp_path / "lora.safetensors", torch.float32)

    tensors = load_file(tmp_path / "lora.safetensors")

    assert len(tensors) == 2 * len(lora.layers)
    for name, layer in lora.layers.items():
        # The writer balances factors by powers of two, which changes no product.
        delta_OI = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
        torch.testing.assert_close(delta_OI, layer.delta_OI(), rtol=1e-5, atol=1e-9)
