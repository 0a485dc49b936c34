"""What the random SDXL is: its counts, and that no number runs away in it, whose weights nobody trained."""

from __future__ import annotations

from typing import Any

import torch

from duolora.config import TargetLayers
from tests.benchmarks.gpu.random_sdxl import ATTENTION_LINEARS, UNET_PARAMETERS
from tests.benchmarks.gpu.timing import measured
from tests.benchmarks.gpu.workbench import Findings, Workbench


def measure(bench: Workbench) -> Findings:
    """Make the base and run it once at full resolution; about 20 s on an H100.

    Raises:
        ValueError: a count is not SDXL's, or a prediction, caption or picture is not finite.
    """
    with measured(bench.device) as making:
        base = bench.base()
    parameters = sum(each.numel() for each in base.unet.parameters())
    adapted = len(base.target_layers(TargetLayers.ATTENTION))
    if not bench.is_small and (parameters, adapted) != (UNET_PARAMETERS, ATTENTION_LINEARS):
        raise ValueError(f"the U-Net has {parameters} parameters and {adapted} attention linears, which is not SDXL")
    with measured(bench.device) as running:
        spread = _spread(bench)
    row: dict[str, Any] = {
        "unet_parameters": parameters,
        "attention_linears": adapted,
        "dtype": str(base.runtime.dtype).removeprefix("torch."),
        "making_s": making.seconds,
        "weights_gib": making.peak_gib,
        "first_pass_s": running.seconds,
        "first_pass_peak_gib": running.peak_gib,
        **{f"{name}_std": value for name, value in spread.items()},
    }
    return Findings({}, [row])


@torch.no_grad()
def _spread(bench: Workbench) -> dict[str, float]:
    """Return the standard deviation of what each part of the base gives for noise and a caption; all are finite."""
    base, resolution_px = bench.base(), bench.scale.resolution_px
    side = base.latent_size(resolution_px)
    prompts = base.encode_prompts([bench.job().prompts.joint])
    noisy_1CHW = torch.randn(1, base.latent_channels, side, side, device=bench.device)
    given = {
        "caption": prompts.hidden_BTD,
        "prediction": base.predict_noise(noisy_1CHW, torch.tensor([600], device=bench.device), prompts),
        "latents": base.encode_pictures(torch.rand(1, 3, resolution_px, resolution_px) * 2 - 1).mean_BCHW,
        "picture": base.decode_latents(noisy_1CHW),
    }
    endless = [name for name, tensor in given.items() if not tensor.isfinite().all()]
    if endless:
        raise ValueError(f"not finite: {', '.join(endless)}")
    return {name: float(tensor.float().std()) for name, tensor in given.items()}
