"""Joint training: one LoRA on the pictures of both sides at once, each under its own caption.

Source: the "joint training" baseline of ZipLoRA (Shah et al. 2023, arXiv 2311.13600, section 5), a multi-concept
DreamBooth LoRA. Every step draws from all pictures alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from duolora.lora_task import LoraTask
from duolora.method.merge_case import SIDES
from duolora.train import train_tenants

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duolora.baselines.recipe_case import RecipeCase
    from duolora.config import LoraTrainConfig
    from duolora.events import Observer
    from duolora.lora.weights import LoraWeights
    from duolora.models.base import DiffusionBase

_JOINT = "joint"


def train(
    base: DiffusionBase, cases: Sequence[RecipeCase], config: LoraTrainConfig, observer: Observer | None = None
) -> list[LoraWeights]:
    """Train one LoRA per case, all cases in the same passes.

    Args:
        base: the frozen base model.
        cases: pictures and captions of both sides.
        config: of the one LoRA; its seed gives way to the case's.
        observer: receives progress.

    Raises:
        InvalidImage, TrainingDiverged, Cancelled, OutOfMemory: as in training.
    """
    tenants = [
        [
            LoraTask(
                _JOINT,
                [picture for side in SIDES for picture in case.pictures[side]],
                [caption for side in SIDES for caption in case.captions[side]],
                config.model_copy(update={"seed": case.seed}),
            )
        ]
        for case in cases
    ]
    return [loras[_JOINT] for loras in train_tenants(base, tenants, observer)]
