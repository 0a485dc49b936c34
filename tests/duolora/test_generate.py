from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pytest
import torch

from duolora.adapters import RankSpaceLinear
from duolora.config import GenerateConfig
from duolora.errors import Cancelled, InvalidConfig, InvalidLora
from duolora.generate import generate, sample_tenants, starting_noise
from duolora.lora.weights import LoraWeights
from tests.duolora.pico import random_layer, random_lora, random_lora_on
from tests.duolora.watch import Watcher

if TYPE_CHECKING:
    from torch import Tensor

    from duolora.events import Progress
    from duolora.models.base import DiffusionBase, PromptEmbeddings


def config(**changes: Any) -> GenerateConfig:
    return GenerateConfig(**({"steps": 2, "images": 2, "resolution_px": 64, "guidance_scale": 4.0} | changes))


def draw(base: DiffusionBase, prompts: list[str], lora: LoraWeights | None = None, **changes: Any) -> np.ndarray:
    pictures = generate(base, prompts, config(**changes), lora)
    return np.stack([np.asarray(picture) for picture in pictures]).astype(np.int64)


def test_seed_decides_the_pictures(base: DiffusionBase) -> None:
    torch.manual_seed(1)
    one = draw(base, ["a dog"], seed=3)
    torch.manual_seed(2)  # the process's own random numbers must not matter

    assert np.array_equal(one, draw(base, ["a dog"], seed=3))
    assert np.abs(one - draw(base, ["a dog"], seed=4)).mean() > 10


def test_starting_noise_is_standard_normal_and_of_the_bases_size(base: DiffusionBase) -> None:
    noise = starting_noise(base, config(images=16, resolution_px=128))

    assert noise.shape == (16, 4, 16, 16)
    assert noise.mean().item() == pytest.approx(0, abs=0.05)
    assert noise.std().item() == pytest.approx(1, abs=0.05)


def test_prompts_are_used_in_turn(base: DiffusionBase) -> None:
    both = draw(base, ["a dog", "zebra crossing"], images=3, guidance_scale=9.0)

    dogs = draw(base, ["a dog"], images=3, guidance_scale=9.0)
    zebras = draw(base, ["zebra crossing"], images=3, guidance_scale=9.0)
    assert np.abs(both[[0, 2]] - dogs[[0, 2]]).max() <= 1
    assert np.abs(both[1] - zebras[1]).max() <= 1
    assert np.abs(dogs - zebras).max() > 1


def test_guidance_pushes_away_from_the_empty_prompt(base: DiffusionBase) -> None:
    assert np.abs(draw(base, ["a dog"], guidance_scale=9.0) - draw(base, ["a dog"], guidance_scale=1.0)).max() > 1


def test_pictures_have_the_size_asked_for(base: DiffusionBase) -> None:
    pictures = generate(base, ["a dog"], config(images=3, resolution_px=96))

    assert [picture.size for picture in pictures] == [(96, 96)] * 3
    assert {picture.mode for picture in pictures} == {"RGB"}


def test_lora_changes_the_pictures_and_the_base_is_restored(base: DiffusionBase) -> None:
    before = draw(base, ["a dog"])

    changed = draw(base, ["a dog"], random_lora(base))

    assert np.abs(changed - before).mean() > 10
    assert np.array_equal(draw(base, ["a dog"]), before)


class Surgeon:
    """Looks how many adapted layers the U-Net has while it draws."""

    def __init__(self, base: DiffusionBase) -> None:
        self._base = base
        self.attached: set[int] = set()

    def on_progress(self, _: Progress) -> None:
        self.attached.add(sum(isinstance(module, RankSpaceLinear) for module in self._base.unet.modules()))

    def should_stop(self) -> bool:
        return False


def test_one_lora_is_added_to_the_weights_unless_they_move(base: DiffusionBase) -> None:
    lora, in_weights, beside = random_lora(base), Surgeon(base), Surgeon(base)
    whole = np.stack(generate(base, ["a dog"], config(), lora, in_weights))
    moving = replace(base.memory, name="moving", unet_gives_way=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "memory", moving)
        adapted = np.stack(generate(base, ["a dog"], config(), lora, beside))

    assert (in_weights.attached, beside.attached) == ({0}, {len(lora.layers)})
    assert np.abs(whole.astype(int) - adapted).max() <= 1


def test_lora_of_another_base_is_refused_and_nothing_stays_attached(base: DiffusionBase) -> None:
    name = f"unet.{base.target_layers('attention')[0]}"

    with pytest.raises(InvalidLora, match=name):
        draw(base, ["a dog"], LoraWeights({name: random_layer(3, 3, 1)}))

    assert not any(isinstance(module, RankSpaceLinear) for module in base.unet.modules())


def test_progress_counts_every_step_and_cancelling_stops(base: DiffusionBase) -> None:
    whole, stopped = Watcher(), Watcher(stop_after=1)

    generate(base, ["a dog"], config(steps=3), observer=whole)
    with pytest.raises(Cancelled):
        generate(base, ["a dog"], config(steps=3), random_lora(base), observer=stopped)

    assert [(report.step, report.total) for report in whole.reports] == [(1, 3), (2, 3), (3, 3)]
    assert stopped.reports[-1].step == 1
    assert not any(isinstance(module, RankSpaceLinear) for module in base.unet.modules())


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_tenants_sampled_together_get_the_pictures_each_would_get_alone(base: DiffusionBase, guidance: float) -> None:
    loras = [random_lora(base, seed=1), random_lora(base, seed=2, ranks=(5,))]
    prompts = [["a dog", "zebra crossing"], ["zebra crossing", "a teapot"]]
    settings = config(guidance_scale=guidance)

    together = sample_tenants(base, loras, prompts, settings, seeds=[3, 4])

    assert together.shape == (2, 2, 3, 64, 64)
    for tenant, lora in enumerate(loras):
        alone = draw(base, prompts[tenant], lora, guidance_scale=guidance, seed=3 + tenant)
        shown = ((together[tenant].clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
        assert np.abs(shown - alone).max() <= 1
    assert (together[0] - together[1]).abs().mean() > 0.01


def test_attached_change_hears_of_every_step_and_is_taken_out(base: DiffusionBase) -> None:
    heard: list[tuple[int, int] | str] = []

    class Listener:
        def __enter__(self) -> Self:
            heard.append("in")
            return self

        def __exit__(self, *exception: object) -> None:
            heard.append("out")

        def before_step(self, step: int, total: int) -> None:
            heard.append((step, total))

    sample_tenants(base, Listener(), [["a dog", "a cat"]], config(), seeds=[0])

    assert heard == ["in", (0, 2), (1, 2), "out"]


def test_attached_change_that_predicts_runs_every_pass_itself(base: DiffusionBase) -> None:
    class Still:
        """Stays attached between samplings."""

        passes = 0

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *exception: object) -> None:
            pass

        def before_step(self, step: int, total: int) -> None:
            pass

        def predict_noise(self, noisy_BCHW: Tensor, timesteps_B: Tensor, prompts: PromptEmbeddings) -> Tensor:
            self.passes += 1
            assert len(noisy_BCHW) == len(timesteps_B) == len(prompts.hidden_BTD) == 4
            return base.predict_noise(noisy_BCHW, timesteps_B, prompts)

    change = Still()

    pictures = sample_tenants(base, change, [["a dog", "a cat"]], config(steps=3), seeds=[0])

    assert change.passes == 3
    assert torch.equal(pictures, sample_tenants(base, None, [["a dog", "a cat"]], config(steps=3), seeds=[0]))


def test_tenant_with_another_number_of_prompts_is_refused(base: DiffusionBase) -> None:
    with pytest.raises(InvalidConfig, match="2 prompts"):
        sample_tenants(base, None, [["a dog"]], config(), seeds=[0])


def test_convolutions_and_text_encoders_of_a_lora_are_drawn_with_and_the_base_is_restored(base: DiffusionBase) -> None:
    ends = ("conv1", "q_proj")
    carried = random_lora_on(base, [name for name in base.layers().shapes if name.endswith(ends)])
    whole = LoraWeights({**random_lora(base, seed=1).layers, **carried.layers})
    bare = draw(base, ["a dog"])

    assert np.abs(draw(base, ["a dog"], whole) - draw(base, ["a dog"], random_lora(base, seed=1))).mean() > 1
    assert np.abs(draw(base, ["a dog"], carried) - bare).mean() > 1
    assert np.array_equal(draw(base, ["a dog"]), bare)
    with pytest.raises(InvalidLora, match="sampled together"):
        sample_tenants(base, [whole, whole], [["a dog"] * 2] * 2, config(), seeds=[0, 0])
