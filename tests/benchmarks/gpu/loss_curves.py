"""Whether speed is bought with quality: losses and LoRAs of diffusers' loop beside ours, on the trained tiny base.

The rival is given the very samples that ours draws (pictures, latents, noise and timesteps of each side's pool), the
same starting factors, learning rate and rank; neither warm-up nor min-SNR weighting nor weight decay nor clipping is
on, so that arithmetic is all that differs. It trains the sides one after the other, ours both in one pass; what is
compared is the mean loss of the two. Ours in bfloat16 is compared with ours in float32 likewise.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch

from duolora.adapters import fresh_lora
from duolora.config import TargetLayers
from duolora.lora.weights import LoraLayer, LoraWeights
from duolora.lora_task import Batch, CachedTask
from duolora.runtime import Runtime
from duolora.train import train_loras
from tests.benchmarks.gpu.correctness import SIDES, lora_distance, tiny_base, tiny_task
from tests.benchmarks.gpu.diffusers_loop import DreamBoothLoop
from tests.benchmarks.gpu.timing import Stamps
from tests.benchmarks.gpu.workbench import Findings, Workbench, release_memory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from duolora.lora_task import LoraTask
    from duolora.models.base import DiffusionBase

MEAN_TOLERANCE = 0.01
"""Of the mean relative difference of smoothed losses; 0.0003 between bfloat16 and float32 on a CPU, 100 steps."""
MAX_TOLERANCE = 0.03
"""Of the largest; 0.0006 there."""
LORA_TOLERANCE = 0.3
"""Of the distance of the final LoRAs, over the norm of one; 0.12 there: two paths of Adam part by rounding alone."""
WORSE_THAN_RIVALS = 1.1
"""How much farther half precision may take our LoRAs from single precision than it takes those of diffusers' loop."""

Curve = dict[int, float]
"""Step, from 1, -> loss."""


def measure(bench: Workbench) -> Findings:
    """Train five times; about 130 s on an H100, nearly all of it the rival's launches."""
    fast = Runtime(bench.device, torch.bfloat16 if bench.device.type == "cuda" else torch.float32)
    plain = Runtime(bench.device, torch.float32)
    tasks = [tiny_task(side, bench.scale.curve_steps, rank=bench.scale.curve_rank, batch_size=4) for side in SIDES]
    ours_curve, ours = our_training(fast, tasks)
    rival_curve, rival = rival_training(fast, tasks)
    release_memory()
    window = bench.scale.curve_window
    rows = _rows(f"diffusers' loop and ours, {_name(fast)}", window, (rival_curve, rival), (ours_curve, ours))
    if fast.dtype is not plain.dtype:
        rival_apart = max(lora_distance(rival[side], lora) for side, lora in rival_training(plain, tasks)[1].items())
        release_memory()
        pair = f"{_name(fast)} and {_name(plain)}"
        known = our_training(plain, tasks)
        rows += _rows(f"ours, {pair}", window, (ours_curve, ours), known, WORSE_THAN_RIVALS * rival_apart)
        rows[-1]["check"] += f", diffusers' own being {rival_apart:.3f}"
    last = {"ours": _last(ours_curve, window), "diffusers": _last(rival_curve, window)}
    figures = {"loss_curves_agree": all(row["passed"] for row in rows), "loss_curve_ends": last}
    note = (
        f"{bench.scale.curve_steps} steps, rank {bench.scale.curve_rank}, batch 4, losses smoothed over {window} steps."
    )
    return Findings(figures, rows, note)


def our_training(runtime: Runtime, tasks: Sequence[LoraTask]) -> tuple[Curve, dict[str, LoraWeights]]:
    """Train both sides by the engine; return the mean loss of each step, and the LoRAs."""
    heard = Stamps(runtime.device, "training", every=max(task.config.steps for task in tasks))
    loras = train_loras(tiny_base(runtime), tasks, heard)
    return heard.losses, loras


def rival_training(runtime: Runtime, tasks: Sequence[LoraTask]) -> tuple[Curve, dict[str, LoraWeights]]:
    """Train each side by diffusers' loop on the samples that the engine would draw; return what `our_training` does."""
    base = tiny_base(runtime)
    curves: list[list[float]] = []
    loras: dict[str, LoraWeights] = {}
    for task in tasks:
        config = task.config
        cached = CachedTask(base, task)
        start = _start(base, task)
        loop = DreamBoothLoop(
            base, rank=config.rank, learning_rate=config.learning_rate, weight_decay=0.0, max_grad_norm=None
        )
        _set_factors(loop, start)
        curves.append([_rival_step(base, loop, cached) for _ in range(config.steps)])
        loras[task.side] = _factors(loop, start)
    return {step: mean(losses) for step, losses in enumerate(zip(*curves, strict=True), start=1)}, loras


def _start(base: DiffusionBase, task: LoraTask) -> LoraWeights:
    """Return the factors that the engine begins one side's training with."""
    generator = base.runtime.generator(task.seed("start"))
    return fresh_lora(base.unet, base.target_layers(TargetLayers.ATTENTION), task.config.rank, generator)


def _rival_step(base: DiffusionBase, loop: DreamBoothLoop, cached: CachedTask) -> float:
    """Take one step of diffusers' loop on what the engine would draw."""
    batch = Batch.gather(base, [cached])
    added = base.family.added_conditions(batch.prompts.pooled_BP, cached.config.resolution_px)
    return loop.learn(batch.noisy_BCHW, batch.noise_BCHW, batch.timesteps_B, batch.prompts.hidden_BTD, added)


def _peft_factors(loop: DreamBoothLoop, name: str) -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    """Return the down and up factors that PEFT trains in a layer."""
    layer: Any = loop.unet.get_submodule(name.removeprefix("unet."))
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


@torch.no_grad()
def _set_factors(loop: DreamBoothLoop, start: LoraWeights) -> None:
    """Give PEFT's layers the factors of a LoRA."""
    for name, layer in start.layers.items():
        down_RI, up_OR = _peft_factors(loop, name)
        down_RI.copy_(layer.down_RI)
        up_OR.copy_(layer.up_OR)


def _factors(loop: DreamBoothLoop, like: LoraWeights) -> LoraWeights:
    """Return what PEFT's layers have learnt, on the CPU."""
    layers: dict[str, LoraLayer] = {}
    for name, layer in like.layers.items():
        down_RI, up_OR = (factor.detach().cpu().clone() for factor in _peft_factors(loop, name))
        layers[name] = replace(layer, down_RI=down_RI, up_OR=up_OR)
    return LoraWeights(layers)


def smoothed(curve: Mapping[int, float], window: int) -> dict[int, float]:
    """Return the mean loss of every full window of steps, by the window's number; missing steps are left out."""
    windows: dict[int, list[float]] = {}
    for step, loss in curve.items():
        windows.setdefault((step - 1) // window, []).append(loss)
    return {number: mean(losses) for number, losses in windows.items()}


def _last(curve: Mapping[int, float], window: int) -> float:
    """Return the smoothed loss at the end."""
    means = smoothed(curve, window)
    return means[max(means)]


def _rows(
    pair: str,
    window: int,
    first: tuple[Curve, Mapping[str, LoraWeights]],
    second: tuple[Curve, Mapping[str, LoraWeights]],
    lora_tolerance: float = LORA_TOLERANCE,
) -> list[dict[str, Any]]:
    """Compare two trainings, the second being the measure."""
    steps = first[0].keys() & second[0].keys()
    left, right = (smoothed({step: curve[step] for step in steps}, window) for curve, _ in (first, second))
    apart = [abs(left[number] - known) / abs(known) for number, known in right.items()]
    distance = max(lora_distance(first[1][side], known) for side, known in second[1].items())
    return [
        _row(f"{pair}: mean difference of losses", mean(apart), MEAN_TOLERANCE),
        _row(f"{pair}: largest difference of losses", max(apart), MAX_TOLERANCE),
        _row(f"{pair}: distance of the LoRAs", distance, lora_tolerance),
    ]


def _row(check: str, error: float, tolerance: float) -> dict[str, Any]:
    return {"check": check, "error": error, "tolerance": tolerance, "passed": error <= tolerance}


def _name(runtime: Runtime) -> str:
    return str(runtime.dtype).removeprefix("torch.")
