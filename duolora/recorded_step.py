"""A whole step of a training recorded as one CUDA graph: thousands of launches become one, the optimiser's with them.

What a step reads besides its inputs must stay in place in memory, and what it leaves there is what the next one finds:
factors, their gradients, the optimiser's state. On a CPU every step is an ordinary call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from torch import Tensor

WARM_UPS = 1
"""Steps before a recording, so that libraries have chosen their kernels and the optimiser has its state. They count:
each is a step of the training, and takes as long as all its launches do.
"""


@dataclass(slots=True, eq=False)
class _Recording:
    """Inputs in their places, and the graph once it is there with what it returns."""

    inputs: Sequence[Tensor]
    graph: torch.cuda.CUDAGraph | None = None
    output: Tensor | None = None
    runs: int = 0


class RecordedSteps:
    """Runs steps: the first of a kind as they are, later ones by replaying a recording of that kind."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._recordings: dict[Hashable, _Recording] = {}

    def run(self, kind: Hashable, step: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Tensor:
        """Take one step and return its one output; read that before the next step, which may overwrite it.

        Args:
            kind: equal for steps that do the same with inputs of equal shapes and dtypes.
            step: takes the inputs; must not read from the device nor depend on anything else that changes.
            inputs: tensors on the device.
        """
        if self._device.type != "cuda":
            return step(*inputs)
        key = (kind, *((tensor.shape, tensor.dtype) for tensor in inputs))
        if key not in self._recordings:
            self._recordings[key] = _Recording([tensor.clone() for tensor in inputs])
        recording = self._recordings[key]
        for place, tensor in zip(recording.inputs, inputs, strict=True):
            place.copy_(tensor)
        recording.runs += 1
        if recording.runs <= WARM_UPS:
            return _aside(step, recording.inputs)
        if recording.graph is None or recording.output is None:
            recording.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(recording.graph):  # records only; the replay below is this step
                recording.output = step(*recording.inputs)
        recording.graph.replay()
        return recording.output


def _aside(step: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Tensor:
    """Run a step on a stream of its own, as torch wants it before a recording."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        output = step(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    return output
