from __future__ import annotations

import pytest

from duolora.errors import InvalidLora
from duolora.lora.factors import Factor, pair_up, parse_factor


@pytest.mark.parametrize(
    ("key", "stem", "is_down"),
    [
        ("unet.a.to_q.lora_A.weight", "unet.a.to_q", True),
        ("unet.a.to_q.lora_B.weight", "unet.a.to_q", False),
        ("unet.a.to_q.lora_A.default.weight", "unet.a.to_q", True),
        ("unet.a.to_q.lora_B.default_0.weight", "unet.a.to_q", False),
        ("unet.a.to_q.lora.down.weight", "unet.a.to_q", True),
        ("unet.a.to_q.lora.up.weight", "unet.a.to_q", False),
        ("unet.a.processor.to_q_lora.down.weight", "unet.a.processor.to_q", True),
        ("text_encoder.a.q_proj.lora_linear_layer.up.weight", "text_encoder.a.q_proj", False),
        ("lora_unet_a_to_q.lora_down.weight", "lora_unet_a_to_q", True),
        ("lora_unet_a_to_q.lora_up.weight", "lora_unet_a_to_q", False),
    ],
)
def test_factors_are_recognised_in_every_format(key: str, stem: str, is_down: bool) -> None:
    assert parse_factor(key) == Factor(stem, is_down)


@pytest.mark.parametrize("key", ["a.alpha", "a.weight", "lora_A.weight", "a.lora_A.bias", "a.hada_w1_a", ""])
def test_other_keys_are_no_factors(key: str) -> None:
    assert parse_factor(key) is None


def test_a_file_is_sorted_into_pairs_and_the_rest() -> None:
    pairs = pair_up(["b.lora_up.weight", "a.lora_A.weight", "a.lora_B.weight", "b.lora_down.weight", "b.alpha"])

    assert pairs.downs == {"a": "a.lora_A.weight", "b": "b.lora_down.weight"}
    assert pairs.ups == {"a": "a.lora_B.weight", "b": "b.lora_up.weight"}
    assert pairs.others == ("b.alpha",)


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        (["a.lora_A.weight"], "no matching up factor"),
        (["a.lora_up.weight"], "no matching down factor"),
        (["a.lora_A.weight", "a.lora_down.weight"], "the same factor of one layer"),
    ],
)
def test_what_is_no_pair_is_refused(keys: list[str], complaint: str) -> None:
    with pytest.raises(InvalidLora, match=complaint):
        pair_up(keys)
