"""Profiles are found by name and chosen by bytes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from duolora.errors import InvalidConfig
from duolora.memory import (
    GIB,
    PROFILES,
    SDXL_UNET_NUMBERS,
    SPARING,
    UNLIMITED,
    after_out_of_memory,
    choose_profile,
    named_profile,
)
from duolora.runtime import Runtime, choose_runtime

NAMES = list(PROFILES)


@pytest.mark.parametrize(
    ("card_gib", "name"),
    [(80, "80gb"), (48, "80gb"), (40, "24gb"), (24, "24gb"), (16, "16gb"), (12, "12gb"), (8, "8gb"), (6, "8gb")],
)
def test_a_card_gets_the_profile_of_its_size(card_gib: int, name: str) -> None:
    """A card never has all its bytes free: the driver keeps some, and torch's context half a GiB."""
    assert choose_profile(card_gib * GIB - 3 * GIB // 4).name == name


def test_a_profile_is_chosen_from_the_bytes_that_it_needs_on() -> None:
    for name, smaller in pairwise(NAMES):
        needed = int(PROFILES[name].needs_gib * GIB)
        assert choose_profile(needed + 1).name == name
        assert choose_profile(needed - 1).name == smaller


def test_a_small_base_has_no_limits_on_a_small_card() -> None:
    assert choose_profile(7 * GIB, SDXL_UNET_NUMBERS // 50) is UNLIMITED


def test_a_profile_never_needs_more_than_the_card_of_its_name_has_free() -> None:
    for name, profile in PROFILES.items():
        assert profile.needs_gib <= int(name.removesuffix("gb")) - 0.75


def test_nothing_spares_memory_on_a_cpu_unless_asked_to() -> None:
    cpu = choose_runtime("cpu")
    assert cpu.memory is None
    assert cpu.profile_for(SDXL_UNET_NUMBERS) is UNLIMITED
    assert choose_runtime("cpu", memory="12gb").profile_for(1).name == "12gb"


def test_a_gpu_is_asked_for_what_is_free_and_for_what_torch_keeps_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (10 * GIB, 24 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: 9 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 1 * GIB)
    card = Runtime(torch.device("cuda"), torch.bfloat16)
    assert card.profile_for(SDXL_UNET_NUMBERS).name == "24gb"
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 9 * GIB)
    assert card.profile_for(SDXL_UNET_NUMBERS).name == "12gb"


def test_an_unknown_name_is_refused_with_its_source_and_the_known_names() -> None:
    with pytest.raises(InvalidConfig, match=r"DUOLORA_MEMORY is '8 GB'.*auto, 80gb, 24gb, 16gb, 12gb, 8gb"):
        named_profile("8 GB", "DUOLORA_MEMORY")
    assert named_profile("auto") is None


@pytest.mark.parametrize(
    ("used", "then"), [("80gb", "12gb"), ("24gb", "12gb"), ("16gb", "12gb"), ("12gb", "8gb"), ("8gb", "8gb")]
)
def test_after_running_out_of_memory_weights_stay_as_they_are_if_they_can(used: str, then: str) -> None:
    assert after_out_of_memory(PROFILES[used]).name == then
    assert not SPARING.eight_bit_unet
