"""What a merge of two given LoRAs may look at: the LoRAs, each side's own pictures and captions, the joint caption."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duolora.lora.weights import LoraWeights
    from duolora.models.sdxl import LatentMoments, PromptEmbeddings


@dataclass(frozen=True, slots=True, eq=False)
class EncodedSide:
    """Latents and captions of one side's pictures, a row each."""

    moments: LatentMoments
    prompts: PromptEmbeddings


@dataclass(frozen=True, slots=True, eq=False)
class MergeCase:
    """One merge: side -> LoRA, side -> encoded pictures, the caption of the subject in the style (one row), a seed."""

    loras: Mapping[str, LoraWeights]
    encoded: Mapping[str, EncodedSide]
    joint: PromptEmbeddings
    seed: int
