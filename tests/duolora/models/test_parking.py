"""Parts are on the card while they work and wait elsewhere otherwise.

There is no second device here. `cpu:0` stands for the card: torch computes on it as on `cpu`, which it is, but the
order to move a part there can be told from the order to move it to the waiting room. Every pass of a part looks up the
last order that the part was given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from duolora.config import GenerateConfig
from duolora.generate import generate
from duolora.memory import PROFILES
from duolora.models.base import DiffusionBase
from duolora.models.parking import WAITING_ROOM, Parking, Part
from duolora.personalize import merge_sides, train_sides
from duolora.runtime import Runtime
from tests.duolora.pico import pico_pipeline, random_lora
from tests.duolora.test_checkpoints import job, pictures

if TYPE_CHECKING:
    from pathlib import Path

    from duolora.memory import MemoryProfile

__all__ = ["pictures"]

CARD = torch.device("cpu", 0)
SKETCH = GenerateConfig(steps=1, images=2, resolution_px=64, seed=1)
ABSENT = "a part worked while it waited"


class Watched:
    """A base whose parts' places are followed: every order to move, and who was on the card at every pass."""

    def __init__(self, memory: MemoryProfile, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place: dict[int, torch.device] = {}
        self.orders = 0
        self.at_work: list[tuple[str, frozenset[str]]] = []
        self._names: dict[str, nn.Module] = {}
        move = nn.Module.to

        def followed(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
            if args and isinstance(args[0], torch.device):
                self.place[id(module)] = args[0]
                self.orders += 1
            return move(module, *args, **kwargs)

        monkeypatch.setattr(nn.Module, "to", followed)
        pipeline = pico_pipeline()
        self._names = {
            "unet": pipeline.unet,
            "vae": pipeline.vae,
            "text_encoder": pipeline.text_encoder,
            "text_encoder_2": pipeline.text_encoder_2,
        }
        self.base = DiffusionBase(pipeline, "pico", Runtime(CARD, torch.float32, memory))
        workers = {
            "unet": [pipeline.unet],
            "vae": [pipeline.vae.encoder, pipeline.vae.decoder],
            "text_encoder": [pipeline.text_encoder],
            "text_encoder_2": [pipeline.text_encoder_2],
        }
        for name, modules in workers.items():
            for module in modules:
                module.register_forward_pre_hook(lambda *_, name=name: self.at_work.append((name, self.on_card())))

    def on_card(self) -> frozenset[str]:
        return frozenset(name for name, module in self._names.items() if self.place[id(module)] == CARD)

    def company(self, name: str) -> set[frozenset[str]]:
        """Return who was on the card when a part worked."""
        return {there for worker, there in self.at_work if worker == name}


@pytest.fixture(params=["24gb", "12gb", "8gb"])
def watched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(PROFILES[request.param], monkeypatch)


def test_nothing_ever_moves_without_a_profile_that_parks(monkeypatch: pytest.MonkeyPatch) -> None:
    all_of_it = Watched(PROFILES["80gb"], monkeypatch)
    placed = all_of_it.on_card()
    orders = all_of_it.orders
    generate(all_of_it.base, ["a disc"], SKETCH)
    assert placed == {"unet", "vae", "text_encoder", "text_encoder_2"}
    assert all_of_it.orders == orders
    assert all(there == placed for _, there in all_of_it.at_work)


def test_every_part_is_on_the_card_when_it_works_in_a_whole_job(
    watched: Watched, pictures: dict[str, list[Path]]
) -> None:
    base, config = watched.base, job()
    assert watched.on_card() == {"unet"}

    loras = {side: train_sides(base, {side: pictures[side]}, config)[side] for side in ("content", "style")}
    merged = merge_sides(base, loras, pictures, config)
    generate(base, ["a disc"], SKETCH, merged.weights)

    assert {name for name, _ in watched.at_work} == {"unet", "vae", "text_encoder", "text_encoder_2"}
    assert all(name in there for name, there in watched.at_work), ABSENT
    texts = frozenset({"unet", "text_encoder", "text_encoder_2"})
    gives_way = base.memory.unet_gives_way
    assert watched.company("unet") == {frozenset({"unet"})}
    assert watched.company("vae") == {frozenset({"vae"}) if gives_way else frozenset({"vae", "unet"})}
    assert watched.company("text_encoder") == {texts}
    assert watched.on_card() == {"unet"}


def test_text_encoders_stay_while_they_learn(watched: Watched, pictures: dict[str, list[Path]]) -> None:
    watched.at_work.clear()
    train_sides(watched.base, pictures, job(company=0.5, weight=0, text_encoder=True))
    assert any({"unet", "text_encoder", "text_encoder_2"} <= there for there in watched.company("unet"))
    assert all(name in there for name, there in watched.at_work), ABSENT
    assert watched.on_card() == {"unet"}


def test_a_part_leaves_and_the_unet_returns_when_the_work_fails(watched: Watched) -> None:
    before = watched.on_card()
    seen = []

    def break_down(*_: object) -> None:
        seen.append(watched.on_card())
        raise RuntimeError("broken")

    watched.base.vae.decoder.register_forward_pre_hook(break_down)
    with pytest.raises(RuntimeError, match="broken"):
        watched.base.decode_latents(torch.zeros(1, 4, 8, 8))
    assert "vae" in seen[0]
    assert watched.on_card() == before


def test_a_part_that_was_brought_already_is_not_taken_away_by_who_came_later(watched: Watched) -> None:
    with watched.base.on_card(Part.TEXT):
        watched.base.encode_prompts(["a disc"])
        assert "text_encoder" in watched.on_card()
    assert "text_encoder" not in watched.on_card()


def test_gradients_and_the_very_parameters_survive_the_way_to_the_waiting_room_and_back() -> None:
    unet, vae = nn.Linear(3, 3), nn.Linear(2, 2)
    parameters = list(unet.parameters())
    parking = Parking({Part.UNET: [unet], Part.VAE: [vae]}, CARD, PROFILES["8gb"])
    with parking.on_card(Part.VAE):
        pass
    assert all(one is other for one, other in zip(unet.parameters(), parameters, strict=True))
    assert WAITING_ROOM != CARD


def test_an_attached_lora_moves_with_the_unet(watched: Watched) -> None:
    """Decoding happens while the LoRA is attached: pictures of two samplings must be the same."""
    lora = random_lora(watched.base, seed=4)
    first, second = (generate(watched.base, ["a disc"], SKETCH, lora) for _ in range(2))
    assert [one.tobytes() for one in first] == [two.tobytes() for two in second]
