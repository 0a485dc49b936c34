"""Passes of the U-Net recorded as CUDA graphs: a small model is bound by thousands of launches, a replay is one.

A pass is recorded when its shapes come for the first time and replayed afterwards. What the pass reads besides its
inputs (adapter factors, masks, role rows) must stay in place in memory and may only change there. On a CPU, and
with a memory profile that moves the weights (`MemoryProfile.records`), every pass is an ordinary one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from duolora.models.base import DiffusionBase, PromptEmbeddings

if TYPE_CHECKING:
    from collections.abc import Callable

WARM_UPS = 3
"""Passes before a recording, so that libraries have chosen their kernels and taken their memory."""


class _UnetPass(nn.Module):
    """One noise prediction as a module of tensors in, tensor out, with the U-Net's parameters as its own."""

    def __init__(self, base: DiffusionBase) -> None:
        super().__init__()
        self.unet = base.unet
        self._predict = base.predict_noise

    def forward(self, noisy_BCHW: Tensor, timesteps_B: Tensor, hidden_BTD: Tensor, pooled_BP: Tensor) -> Tensor:
        """Predict the noise, (B, C, H, W) float32."""
        return self._predict(noisy_BCHW, timesteps_B, PromptEmbeddings(hidden_BTD, pooled_BP))


class CapturedPredictor:
    """Predicts noise as `DiffusionBase.predict_noise` does, by replaying recorded passes where there is a GPU.

    One prediction may be under way at a time: its backward pass must be done before the next pass of the same shapes,
    since both use the same memory. So do the gradients: whoever wants the sum over several passes adds them up in
    memory of its own, for torch may take a recording's memory for a parameter's `grad`. Of the inputs only the latents
    get a gradient, where they ask for one. Passes of one shape have one assignment of roles. Recordings last as long as
    the object; make it after the adapter is attached, and drop it before the adapter goes.
    """

    def __init__(self, base: DiffusionBase) -> None:
        self._base = base
        self._recorded: dict[tuple[object, ...], Callable[..., Tensor]] = {}

    def __call__(self, noisy_BCHW: Tensor, timesteps_B: Tensor, prompts: PromptEmbeddings) -> Tensor:
        """Predict the noise in noised latents, (B, C, H, W) float32."""
        if self._base.runtime.device.type != "cuda" or not self._base.memory.records:
            return self._base.predict_noise(noisy_BCHW, timesteps_B, prompts)
        inputs = (noisy_BCHW, timesteps_B, prompts.hidden_BTD, prompts.pooled_BP)
        learning = torch.is_grad_enabled()
        key = (learning, learning and noisy_BCHW.requires_grad, *((tensor.shape, tensor.dtype) for tensor in inputs))
        if key not in self._recorded:
            record = _record_learning if learning else _record
            self._recorded[key] = record(_UnetPass(self._base), inputs)
        return self._recorded[key](*inputs)


def _record_learning(unet_pass: _UnetPass, inputs: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    """Record a forward pass and its backward pass, to the latents too where they ask for it."""
    noisy_BCHW, *others = inputs
    samples = (
        noisy_BCHW.detach().clone().requires_grad_(noisy_BCHW.requires_grad),
        *(tensor.detach().clone() for tensor in others),
    )
    return cast(
        "Callable[..., Tensor]",
        torch.cuda.make_graphed_callables(unet_pass, samples, num_warmup_iters=WARM_UPS, allow_unused_input=True),
    )


def _record(unet_pass: _UnetPass, inputs: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    """Record a forward pass that nothing learns from."""
    held = tuple(tensor.detach().clone() for tensor in inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            unet_pass(*held)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = unet_pass(*held)

    def replay(*fresh: Tensor) -> Tensor:
        for place, tensor in zip(held, fresh, strict=True):
            place.copy_(tensor)
        graph.replay()
        fresh_output: Tensor = output.clone()
        return fresh_output

    return replay
