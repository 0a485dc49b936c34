"""Modules that learn together: optimiser, moving average, learning-rate schedule, and one step as a CUDA graph."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

WARMUP_STEPS = 300
EMA_DECAY = 0.9995
CAPTURE_WARMUPS = 4


class Trainee:
    """Named modules with one AdamW and an exponential moving average of their weights.

    Modules may be bfloat16: their optimiser and average work on float32 masters. Learning rate and averaging weight are
    tensors on the device, so that a captured step reads their current values.
    """

    def __init__(self, modules: dict[str, nn.Module], peak_lr: float, device: torch.device) -> None:
        self.device = device
        self.peak_lr = peak_lr
        self.parameters = {
            f"{module_name}.{name}": parameter
            for module_name, module in modules.items()
            for name, parameter in module.named_parameters()
        }
        self.masters = {
            name: parameter if parameter.dtype == torch.float32 else nn.Parameter(parameter.detach().float().clone())
            for name, parameter in self.parameters.items()
        }
        self._halves = [name for name in self.masters if self.masters[name] is not self.parameters[name]]
        self.average = {name: master.detach().clone() for name, master in self.masters.items()}
        self.lr = torch.tensor(0.0, device=device)
        self.average_weight = torch.tensor(0.0, device=device)
        on_cuda = device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            list(self.masters.values()),
            lr=self.lr,
            betas=(0.9, 0.99),
            weight_decay=0.01,
            fused=on_cuda,
            capturable=on_cuda,
            foreach=False if not on_cuda else None,
        )

    def set_progress(self, step: int, total_steps: int) -> None:
        """Set learning rate (linear warm-up, cosine decay to 1%) and averaging weight for step number `step`."""
        warmup = min(WARMUP_STEPS, max(1, total_steps // 10))
        decay = 0.5 * (1 + math.cos(math.pi * min(1.0, step / total_steps)))
        self.lr.fill_(self.peak_lr * min(1.0, (step + 1) / warmup) * (0.01 + 0.99 * decay))
        self.average_weight.fill_(max(1 - EMA_DECAY, 1 / (step / 10 + 1)))

    def learn(self, loss: Tensor) -> None:
        """Do one optimiser step on `loss` and update the average. No transfer to the host."""
        for parameter in (*self.parameters.values(), *self.masters.values()):
            parameter.grad = None
        loss.backward()
        for name in self._halves:
            gradient = self.parameters[name].grad
            self.masters[name].grad = None if gradient is None else gradient.float()
        masters: list[Tensor] = list(self.masters.values())
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            averages = list(self.average.values())
            change = torch._foreach_sub(masters, averages)  # noqa: SLF001 - one launch for all weights
            torch._foreach_mul_(change, self.average_weight)
            torch._foreach_add_(averages, change)
        self._refresh_halves()

    @torch.no_grad()
    def _refresh_halves(self) -> None:
        if self._halves:
            halves: list[Tensor] = [self.parameters[name] for name in self._halves]
            masters: list[Tensor] = [self.masters[name] for name in self._halves]
            torch._foreach_copy_(halves, masters)

    def state(self) -> dict[str, Tensor]:
        """Return every tensor a later process needs to go on exactly: weights, average, moments, random state."""
        tensors = {f"weight.{name}": master.detach() for name, master in self.masters.items()}
        tensors |= {f"average.{name}": average for name, average in self.average.items()}
        for name, master in self.masters.items():
            for moment, value in self.optimizer.state.get(master, {}).items():
                tensors[f"adam.{moment}.{name}"] = value
        on_cuda = self.device.type == "cuda"
        tensors["random"] = torch.cuda.get_rng_state(self.device) if on_cuda else torch.get_rng_state()
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state` returned, in another process, before the first step."""
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(tensors[f"weight.{name}"])
                self.average[name].copy_(tensors[f"average.{name}"])
                if f"adam.step.{name}" in tensors:
                    # Moments are copied into memory laid out like the parameter (channels last or not).
                    self.optimizer.state[master] = {
                        "step": tensors[f"adam.step.{name}"].to(self.device),
                        "exp_avg": torch.empty_like(master).copy_(tensors[f"adam.exp_avg.{name}"]),
                        "exp_avg_sq": torch.empty_like(master).copy_(tensors[f"adam.exp_avg_sq.{name}"]),
                    }
        self._refresh_halves()
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random"], self.device)
        else:
            torch.set_rng_state(tensors["random"])

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Begin with the given weights by full name, any float dtype; names the modules lack are buffers."""
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(weights[name])
                self.average[name].copy_(master)
        self._refresh_halves()

    def averaged(self, module_name: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Return the averaged weights of one module under its own names."""
        prefix = f"{module_name}."
        return {
            name.removeprefix(prefix): average.to(dtype)
            for name, average in self.average.items()
            if name.startswith(prefix)
        }


class Stepper:
    """Calls a training step; on CUDA it is captured once as a graph and replayed, sparing thousands of launches."""

    def __init__(self, step: Callable[[], Tensor], device: torch.device) -> None:
        self._step = step
        self._graph: torch.cuda.CUDAGraph | None = None
        self._loss: Tensor | None = None
        self._device = device
        self._warmed = 0

    def __call__(self) -> Tensor:
        """Do one step; return its loss, a scalar on the device that the next step overwrites."""
        if self._device.type != "cuda":
            return self._step()
        if self._graph is None and self._warmed < CAPTURE_WARMUPS:
            self._warmed += 1
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                loss = self._step()
            torch.cuda.current_stream().wait_stream(stream)
            return loss
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._loss = self._step()
        self._graph.replay()
        if self._loss is None:
            raise RuntimeError("the captured step left no loss")
        return self._loss
