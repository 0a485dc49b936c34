"""Which parts of a base are on the card: parts that are not at work may wait on the CPU, where memory is plenty."""

from __future__ import annotations

from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

    from duolora.memory import MemoryProfile

WAITING_ROOM = torch.device("cpu")


class Part(StrEnum):
    """What moves as one."""

    UNET = "unet"
    VAE = "vae"
    TEXT = "text encoders"


class Parking:
    """Brings parts to the card while they work, and takes them away again, as far as a profile asks for it."""

    def __init__(self, parts: Mapping[Part, Sequence[nn.Module]], card: torch.device, profile: MemoryProfile) -> None:
        """Place every part where it waits: the U-Net on the card, the others too if the profile parks none."""
        self._parts = parts
        self._card = card
        self._profile = profile
        self._present = {Part.UNET} if profile.parks_encoders else set(parts)
        for part in parts:
            self._move(part, card if part in self._present else WAITING_ROOM)

    @contextmanager
    def on_card(self, part: Part) -> Iterator[None]:
        """Let a part be on the card inside the `with`; one inside another of the same part changes nothing.

        A pass whose gradient is wanted needs its part there until the gradient is taken.
        """
        if part in self._present:
            yield
            return
        gives_way = self._profile.unet_gives_way and part is Part.VAE and Part.UNET in self._present
        if gives_way:
            self._take(Part.UNET)
        try:
            self._bring(part)
            yield
        finally:
            self._take(part)
            if gives_way:
                self._bring(Part.UNET)

    def _bring(self, part: Part) -> None:
        self._move(part, self._card)
        self._present.add(part)

    def _take(self, part: Part) -> None:
        self._move(part, WAITING_ROOM)
        self._present.discard(part)
        if self._card.type == "cuda":
            # What comes next must find whole stretches of memory, not what the last work cut it into.
            torch.cuda.empty_cache()

    def _move(self, part: Part, device: torch.device) -> None:
        for module in self._parts[part]:
            module.to(device)
