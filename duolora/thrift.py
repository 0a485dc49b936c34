"""Sparing memory at the cost of time: activations of the U-Net's blocks are computed again instead of kept.

What a block computes depends on the roles assigned at the moment, and other roles may be assigned by the time its
gradient is wanted: every block is computed again in the roles that it had.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from duolora.models.base import DiffusionBase


class _Assigned(Protocol):
    """An adapter: several roles, one chosen per sample."""

    def present_rows(self) -> Tensor:
        """Return the roles assigned last."""

    def assign(self, rows_B: Tensor) -> None:
        """Choose the roles of the next passes."""


@contextmanager
def recomputed_activations(base: DiffusionBase, adapter: _Assigned) -> Iterator[None]:
    """Let passes of the U-Net that learn keep the inputs of its blocks only. The numbers are the same."""

    def run(block: nn.Module, *inputs: Any) -> Any:  # noqa: ANN401 - as diffusers calls its blocks
        rows_B = adapter.present_rows()

        def in_its_roles(*again: Any) -> Any:  # noqa: ANN401
            present_B = adapter.present_rows()
            adapter.assign(rows_B)
            try:
                return block(*again)
            finally:
                adapter.assign(present_B)

        return checkpoint(in_its_roles, *inputs, use_reentrant=False, preserve_rng_state=False)

    base.pipeline.unet.enable_gradient_checkpointing(gradient_checkpointing_func=run)
    try:
        yield
    finally:
        base.pipeline.unet.disable_gradient_checkpointing()
