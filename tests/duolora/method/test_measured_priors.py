from __future__ import annotations

import pytest
import torch
from torch import nn

from duolora.config import TargetLayers
from duolora.lora.canonical import canonical_layer
from duolora.method.measured_priors import SidePrior, layer_group, measured_priors
from duolora.method.priors import Role
from duolora.models.base import TARGET_PATTERNS
from duolora.tiny.architecture import build_unet
from tests.duolora.pico import random_layer


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("unet.up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_out.0", "up_blocks.0.cross.vo"),
        ("unet.up_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q", "up_blocks.1.self.qk"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_v", "mid_block.self.vo"),
        ("unet.down_blocks.2.attentions.0.transformer_blocks.9.attn2.to_k", "down_blocks.2.cross.qk"),
        ("unet.down_blocks.2.attentions.0.transformer_blocks.9.ff.net.0.proj", "down_blocks.2.rest"),
        ("unet.time_embedding.linear_1", "elsewhere.rest"),
    ],
)
def test_a_layers_group_is_its_block_kind_and_part(name: str, group: str) -> None:
    assert layer_group(name) == group


def test_every_layer_that_a_recipe_may_train_is_in_a_measured_group() -> None:
    with torch.device("meta"):
        names = [name for name, module in build_unet().named_modules() if isinstance(module, nn.Linear)]
    groups = {layer_group(f"unet.{name}") for name in names if TARGET_PATTERNS[TargetLayers.TRANSFORMER].search(name)}
    assert len(groups) == 25

    for role, prior in measured_priors().items():
        assert groups <= set(prior.strengths), role
        assert all(0 <= strength < 3 for strength in prior.strengths.values())


def test_a_group_that_was_not_measured_gets_the_mean_of_its_block() -> None:
    prior = SidePrior({"up_blocks.1.self.qk": 1.0, "up_blocks.1.cross.vo": 0.5, "up_blocks.10.self.qk": 9.0}, 0.0)

    assert prior.strength("up_blocks.1.rest") == pytest.approx(0.75)
    assert prior.strength("up_blocks.1.self.qk") == 1.0
    assert prior.strength("mid_block.rest") == pytest.approx(10.5 / 3)


@pytest.mark.parametrize("tail", [0.0, 0.5, -0.2])
def test_a_mask_is_the_strength_times_a_power_of_the_singular_values(tail: float) -> None:
    layer = canonical_layer(random_layer(24, 20, 5))
    singular_R = torch.linalg.svdvals(layer.delta_OI())[:5]

    mask_R = SidePrior({"up_blocks.1.self.qk": 0.7}, tail).mask("unet.up_blocks.1.attentions.0.attn1.to_q", layer)

    torch.testing.assert_close(mask_R, 0.7 * (singular_R / singular_R[0]) ** tail, rtol=1e-4, atol=1e-6)


def test_measured_strengths_say_what_the_paper_says() -> None:
    """Content acts at low resolution more than at high resolution; style is not so bound (paper, section 4.2)."""

    def mean(role: Role, block: str) -> float:
        values = [value for group, value in measured_priors()[role].strengths.items() if group.startswith(block)]
        return sum(values) / len(values)

    content, style = Role.CONTENT, Role.STYLE
    assert mean(content, "up_blocks.0") > 1.5 * mean(content, "up_blocks.1")
    assert mean(content, "up_blocks.1") < 0.6 * mean(style, "up_blocks.1")


@pytest.mark.parametrize(
    ("name", "role", "group"),
    [
        ("unet.down_blocks.0.attentions.0.attn1.to_q", Role.STYLE, "down_blocks.1.self.qk"),  # SD 1.5, 64 x 64
        ("unet.down_blocks.2.attentions.0.attn1.to_q", Role.CONTENT, "down_blocks.2.self.qk"),
        ("unet.up_blocks.1.attentions.0.attn2.to_v", Role.CONTENT, "up_blocks.0.cross.vo"),  # SD 1.5, 16 x 16
        ("unet.up_blocks.3.attentions.0.attn2.to_v", Role.STYLE, "up_blocks.1.cross.vo"),
        ("unet.mid_block.attentions.0.ff.net.2", Role.CONTENT, "mid_block.rest"),
    ],
)
def test_a_layer_of_another_layout_is_told_by_where_it_stands(name: str, role: Role, group: str) -> None:
    assert layer_group(name, role) == group


def test_in_sdxls_layout_names_and_standing_agree() -> None:
    base = {"down_blocks.1": Role.STYLE, "down_blocks.2": Role.CONTENT, "mid_block": Role.CONTENT}
    for block, role in (base | {"up_blocks.0": Role.CONTENT, "up_blocks.1": Role.STYLE}).items():
        name = f"unet.{block}.attentions.0.transformer_blocks.0.attn1.to_q"
        assert layer_group(name, role) == layer_group(name)
