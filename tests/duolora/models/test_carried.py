from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from duolora.errors import InvalidLora
from duolora.lora.weights import LoraWeights
from duolora.models.carried import applied
from tests.duolora.pico import random_layer, random_lora_on

if TYPE_CHECKING:
    from duolora.models.base import DiffusionBase

ENDS = ("conv1", "time_emb_proj", "q_proj")


def tensors(base: DiffusionBase) -> dict[tuple[str, str], torch.Tensor]:
    return {
        (component, name): parameter
        for component in base.family.components
        for name, parameter in base.component(component).named_parameters()
    }


def carried_lora(base: DiffusionBase) -> LoraWeights:
    return random_lora_on(base, [name for name in base.layers().shapes if name.endswith(ENDS)])


@pytest.mark.parametrize("fails", [False, True])
def test_weights_change_inside_and_the_very_same_tensors_come_back(base: DiffusionBase, fails: bool) -> None:
    lora, before = carried_lora(base), tensors(base)
    values = {name: tensor.clone() for name, tensor in before.items()}

    def use() -> None:
        with applied(base, lora):
            for name, layer in lora.layers.items():
                weight = base.module(name).weight
                assert not weight.requires_grad
                component, _, path = name.partition(".")
                original = next(
                    value
                    for (owner, key), value in values.items()
                    if owner == component and key.endswith(f"{path.removeprefix('text_model.')}.weight")
                )
                torch.testing.assert_close(weight, original + layer.delta_weight())
            if fails:
                raise RuntimeError("sampling failed")

    if fails:
        with pytest.raises(RuntimeError, match="sampling failed"):
            use()
    else:
        use()

    after = tensors(base)
    assert all(after[name] is tensor for name, tensor in before.items())
    assert all(torch.equal(tensor, values[name]) for name, tensor in after.items())


def test_nothing_carried_changes_nothing(base: DiffusionBase) -> None:
    before = tensors(base)

    with applied(base, None):
        assert all(tensors(base)[name] is tensor for name, tensor in before.items())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unet.mid_block.nowhere", "no layer unet.mid_block.nowhere"),
        ("unet.conv_in", r"\(4, 3\).*\(32, 4, 3, 3\)"),
        ("unet.conv_norm_out", "GroupNorm"),
    ],
)
def test_layer_that_does_not_fit_is_refused_and_nothing_changes(base: DiffusionBase, name: str, message: str) -> None:
    before = tensors(base)
    lora = LoraWeights({**carried_lora(base).layers, name: random_layer(4, 3, 2)})

    with pytest.raises(InvalidLora, match=message), applied(base, lora):
        pass

    assert all(tensors(base)[key] is tensor for key, tensor in before.items())
