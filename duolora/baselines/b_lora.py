"""B-LoRA: two transformer blocks are enough, one for content and one for style (Frenkel et al. 2024, arXiv 2403.14572).

Section 4: of SDXL's blocks, `W_0^4` (here `up_blocks.0.attentions.0`) decides what a picture shows and `W_0^5`
(`up_blocks.0.attentions.1`) how it looks. Both blocks are trained together on each side's pictures; then the content
block is taken from the content training and the style block from the style training, and joined. The join needs no
merge: the blocks do not overlap. The paper trains 1000 steps at rank 64 and 5e-5, on one picture.

The same names exist in every base whose first up-block attends, as SDXL's and the tiny base's do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from duolora.errors import LayerGroupEmpty
from duolora.lora.weights import LoraWeights
from duolora.lora_task import LoraTask
from duolora.method.merge_case import CONTENT, SIDES, STYLE
from duolora.models.base import DiffusionBase
from duolora.train import train_tenants

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from duolora.baselines.recipe_case import RecipeCase
    from duolora.config import LoraTrainConfig, TargetLayers
    from duolora.events import Observer

CONTENT_BLOCK = "up_blocks.0.attentions.0"
STYLE_BLOCK = "up_blocks.0.attentions.1"


def train(
    base: DiffusionBase,
    cases: Sequence[RecipeCase],
    config: LoraTrainConfig,
    observer: Observer | None = None,
    *,
    content_block: str = CONTENT_BLOCK,
    style_block: str = STYLE_BLOCK,
) -> list[LoraWeights]:
    """Train both blocks on either side's pictures, all cases in the same passes, and join the halves.

    Args:
        base: the frozen base model.
        cases: pictures and captions of both sides.
        config: of both trainings; its seed gives way to the case's.
        observer: receives progress.
        content_block: path of the block that carries content.
        style_block: path of the block that carries style.

    Raises:
        LayerGroupEmpty: the base has no such block.
        InvalidImage, TrainingDiverged, Cancelled, OutOfMemory: as in training.
    """
    blocks = {CONTENT: content_block, STYLE: style_block}
    tenants = [
        [
            LoraTask(side, case.pictures[side], case.captions[side], config.model_copy(update={"seed": case.seed}))
            for side in SIDES
        ]
        for case in cases
    ]
    narrowed = _OnlyBlocks(base, tuple(blocks.values()))
    return [_join(loras, blocks) for loras in train_tenants(narrowed, tenants, observer)]


def trained_numbers(joined: LoraWeights) -> int:
    """Count what was trained for a joined LoRA: both blocks on either side, of which one half each is thrown away."""
    return len(SIDES) * joined.trainable_numbers


class _OnlyBlocks(DiffusionBase):
    """A base that offers only the layers of some blocks for adapting; model and encoders are the given base's own."""

    def __init__(self, base: DiffusionBase, blocks: tuple[str, ...]) -> None:
        self.__dict__.update(base.__dict__)
        self._blocks = blocks

    def target_layers(self, targets: TargetLayers) -> list[str]:
        """Return the paths inside the blocks that a LoRA adapts.

        Raises:
            LayerGroupEmpty: one of the blocks has none.
        """
        paths = super().target_layers(targets)
        for block in self._blocks:
            if not any(path.startswith(f"{block}.") for path in paths):
                raise LayerGroupEmpty(f"{self.location} has no {targets} layers in {block}; name the block that has")
        return [path for path in paths if path.startswith(tuple(f"{block}." for block in self._blocks))]


def _join(loras: Mapping[str, LoraWeights], blocks: Mapping[str, str]) -> LoraWeights:
    """Take each side's block from that side's LoRA."""
    return LoraWeights(
        {
            name: layer
            for side in SIDES
            for name, layer in loras[side].layers.items()
            if name.startswith(f"unet.{blocks[side]}.")
        }
    )
