"""What differs from one family of base models to the next, as a record; no model code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Family:
    """One family of base models with a U-Net.

    Attributes:
        title: what people call it.
        pipeline: name of its text-to-image pipeline in diffusers, also found in `model_index.json`.
        checkpoint_key: start of a key that only single-file checkpoints of this family have.
        architecture: ModelSpec's word for a LoRA of it.
        kohya_base_version: kohya's word for it (`ss_base_model_version`).
        kohya_prefixes: component of the pipeline -> prefix of a kohya key.
        prompt_width: inputs of the U-Net's cross-attention in the published models; tells families' files apart.
        foreign_prompt_widths: such widths of other families that share the pipeline.
        published_blocks: residual blocks in each down block, by which the original release numbers its blocks through.
        added_conditions: (pooled_BP, side of the picture in pixels) -> what the U-Net is told beside the prompt.
    """

    title: str
    pipeline: str
    checkpoint_key: str
    architecture: str
    kohya_base_version: str
    kohya_prefixes: Mapping[str, str]
    prompt_width: int
    foreign_prompt_widths: tuple[int, ...]
    published_blocks: int
    added_conditions: Callable[[Tensor, int], dict[str, Tensor] | None]

    @property
    def components(self) -> tuple[str, ...]:
        """Parts of the pipeline that a LoRA may change."""
        return tuple(self.kohya_prefixes)
