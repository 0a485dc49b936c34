"""Whether the fast paths compute what the plain ones do, on the embedded tiny base and the pictures shipped with it.

One training step's losses and gradients are compared as vectors, by the norm of their difference over the norm of the
reference; the reference of all is the plain path in float64. TF32 is off meanwhile: its errors are as large as those
looked for. Trained LoRAs are compared by the change they make to the base's weights; Adam makes much of little, so
their tolerance is wider. On a CPU nothing is recorded as a graph, and those rows only show that the check runs.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from duolora.adapters import RankSpaceAdapter, role_rows
from duolora.capture import CapturedPredictor
from duolora.config import LoraTrainConfig, Prompts
from duolora.images import list_pictures
from duolora.lora_task import Batch, CachedTask, LoraTask
from duolora.losses import squared_error
from duolora.memory import SPARING
from duolora.models.base import DiffusionBase
from duolora.personalize import captions
from duolora.runtime import Runtime
from duolora.tiny.base import base_path, samples_path
from duolora.train import train_loras
from tests.benchmarks.gpu.workbench import Findings, Workbench, random_lora, release_memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from duolora.lora.weights import LoraWeights

SIDES = ("content", "style")
RANK = 8
BATCH = 2
TRAINED_STEPS = 3
TWO_STEPS = 2
"""Steps of one comparison; the second one is a replay where the first one was recorded."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One training step: of every side the loss, and the gradient of all its factors as one vector in float64."""

    losses: Mapping[str, float]
    gradients: Mapping[str, Tensor]


def measure(bench: Workbench) -> Findings:
    """Compare; about 25 s on an H100, the float64 passes on the CPU included."""
    device = bench.device
    double = tiny_base(Runtime(torch.device("cpu"), torch.float64))
    single, half = (tiny_base(Runtime(device, dtype)) for dtype in (torch.float32, torch.bfloat16))
    sparing = tiny_base(Runtime(device, torch.float32, SPARING))
    with full_precision():
        exact = one_step(double, SIDES)
        eager, graphed = one_step(single, SIDES), one_step(single, SIDES, graphed=True)
        eager_half, graphed_half = one_step(half, SIDES), one_step(half, SIDES, graphed=True)
        alone = joined([one_step(single, [side]) for side in SIDES])
        rows = [
            *_compare("eager step, float32, to float64", eager, exact, 1e-4),
            *_compare("graphed step, float32, to float64", graphed, exact, 1e-4),
            *_compare("graphed step to eager step, float32", graphed, eager, 1e-5),
            *_compare("eager step, bfloat16, to float64", eager_half, exact, 5e-2),
            *_compare("graphed step to eager step, bfloat16", graphed_half, eager_half, 2e-2),
            *_compare("both roles in one pass to separate passes, float32", eager, alone, 1e-5),
            *_compare("separate passes, float32, to float64", alone, exact, 1e-4),
        ]
        reference, fast = trained(double), trained(single)
        rows += _compare_loras(f"{TRAINED_STEPS} steps by default, float32, to float64", fast, reference, 2e-2)
        rows += _compare_loras(f"{TRAINED_STEPS} sparing steps to as many by default", trained(sparing), fast, 2e-2)
    release_memory()
    passed = all(row["passed"] for row in rows)
    return Findings({"correct": passed}, rows, f"Graphs were recorded: {'yes' if device.type == 'cuda' else 'no'}.")


@contextmanager
def full_precision() -> Iterator[None]:
    """Let float32 be float32 in products and convolutions."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def tiny_task(side: str, steps: int, *, rank: int = RANK, batch_size: int = BATCH) -> LoraTask:
    """Return the training of one side on the shipped pictures, of plain losses without a warm-up."""
    paths = list_pictures(Path(samples_path()) / side)
    config = LoraTrainConfig(
        steps=steps, rank=rank, learning_rate=2e-3, batch_size=batch_size, resolution_px=64, seed=0
    )
    return LoraTask(side, paths, captions(side, Prompts(subject_class="fox"), len(paths)), config)


def tiny_base(runtime: Runtime) -> DiffusionBase:
    """Return the embedded base."""
    return DiffusionBase.load(str(base_path()), runtime)


def one_step(base: DiffusionBase, sides: Sequence[str], *, graphed: bool = False) -> Step:
    """Return the second of two training steps of some sides in shared passes, from LoRAs that change something.

    Samples are the same whatever the base's runtime and the other sides: each side's are drawn by itself, on the CPU.
    """
    loras = {side: random_lora(base, RANK, SIDES.index(side)) for side in sides}
    cached = [CachedTask(base, tiny_task(side, TWO_STEPS)) for side in sides]
    with RankSpaceAdapter(loras).inject(base.unet) as adapter:
        factors = {side: adapter.train_factors(side) for side in sides}
        adapter.assign(role_rows([(role, BATCH) for role in range(len(sides))], base.runtime.device))
        predict = CapturedPredictor(base) if graphed else base.predict_noise
        for _ in range(TWO_STEPS):
            for parameters in factors.values():
                for parameter in parameters:
                    parameter.grad = None
            batch = Batch.gather(base, cached)
            predicted_BCHW = predict(batch.noisy_BCHW, batch.timesteps_B, batch.prompts)
            losses = squared_error(predicted_BCHW, batch.noise_BCHW).view(len(sides), BATCH).mean(dim=1)
            losses.sum().backward()
        gradients = {
            side: torch.cat([_gradient(parameter).flatten() for parameter in parameters])
            for side, parameters in factors.items()
        }
    return Step(dict(zip(sides, losses.tolist(), strict=True)), gradients)


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    """Return a parameter's gradient on the CPU in float64."""
    if parameter.grad is None:
        return torch.zeros(parameter.shape, dtype=torch.float64)
    return parameter.grad.detach().to("cpu", torch.float64)


def joined(steps: Sequence[Step]) -> Step:
    """Put the sides of several steps together."""
    return Step(
        {side: loss for step in steps for side, loss in step.losses.items()},
        {side: gradient for step in steps for side, gradient in step.gradients.items()},
    )


def trained(base: DiffusionBase) -> dict[str, LoraWeights]:
    """Train both sides a few steps by the engine's own loop."""
    return train_loras(base, [tiny_task(side, TRAINED_STEPS) for side in SIDES])


def _compare(what: str, step: Step, reference: Step, tolerance: float) -> Iterator[dict[str, Any]]:
    """Compare losses and gradients of two steps, the larger error over the sides."""
    loss_errors = [abs(step.losses[side] - known) / abs(known) for side, known in reference.losses.items()]
    gradient_errors = [
        float((step.gradients[side] - known).norm() / known.norm()) for side, known in reference.gradients.items()
    ]
    yield _row(f"{what}: losses", max(loss_errors), tolerance)
    yield _row(f"{what}: gradients", max(gradient_errors), tolerance)


def _compare_loras(
    what: str, loras: Mapping[str, LoraWeights], reference: Mapping[str, LoraWeights], tolerance: float
) -> Iterator[dict[str, Any]]:
    """Compare what trained LoRAs do to the weights, the larger error over the sides."""
    yield _row(f"{what}: LoRAs", max(lora_distance(loras[side], known) for side, known in reference.items()), tolerance)


def lora_distance(lora: LoraWeights, reference: LoraWeights) -> float:
    """Return the norm of the difference between two LoRAs' changes of all weights, over the norm of the reference's."""
    apart = whole = 0.0
    for name, layer in reference.layers.items():
        known_OI = layer.delta_OI().double()
        apart += float((lora.layers[name].delta_OI().double() - known_OI).square().sum())
        whole += float(known_OI.square().sum())
    return math.sqrt(apart / whole)


def _row(check: str, error: float, tolerance: float) -> dict[str, Any]:
    """Return one line of the table; an error that is no number is not passed."""
    return {"check": check, "error": error, "tolerance": tolerance, "passed": error <= tolerance}
