"""What a run was made of: versions, device, and digests of everything that decides its figures."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from duolora.evaluate.network import weights_path
from duolora.evaluate.truth_suite import suite_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from duolora.evaluate.run import Plan
    from duolora.models.sdxl import SdxlBase

PACKAGES = ("duolora", "torch", "diffusers", "transformers", "peft", "numpy")


def environment(base: SdxlBase) -> dict[str, Any]:
    """Return versions and device, which change seconds and last digits."""
    device = base.runtime.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "device": name,
        "dtype": str(base.runtime.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def identity(base: SdxlBase, plan: Plan) -> dict[str, Any]:
    """Return what decides a score, besides method, pair and seed; runs may share a folder if theirs are equal."""
    config = plan.config(plan.pairs[0], 0)
    return {
        "base": plan.base_name,
        "base_sha256": _digest_modules([base.unet, base.vae, base.pipeline.text_encoder, base.pipeline.text_encoder_2]),
        "evaluator_sha256": hashlib.sha256(weights_path().read_bytes()).hexdigest(),
        "suite_sha256": hashlib.sha256(suite_path().read_bytes()).hexdigest(),
        "recipe": config.recipe,
        "content": config.content.model_dump(mode="json"),
        "style": config.style.model_dump(mode="json"),
        "sampling": config.preview.model_dump(mode="json"),
    }


def _digest_modules(modules: Sequence[nn.Module]) -> str:
    """Digest all weights as float32 bytes, in the order of their names."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
