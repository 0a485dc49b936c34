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
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from duolora.config import PersonalizeConfig
    from duolora.evaluate.folder_suite import FolderSuite
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


def identity(base: SdxlBase, config: PersonalizeConfig, suite: Mapping[str, str]) -> dict[str, Any]:
    """Return what decides a score, besides method, pair and seed; runs may share a folder if theirs are equal.

    `suite` says the same of the suite and of the networks it measures with.
    """
    return {
        "base": config.base_model,
        "base_sha256": _digest_modules([base.unet, base.vae, base.pipeline.text_encoder, base.pipeline.text_encoder_2]),
        **suite,
        "recipe": config.recipe,
        "content": config.content.model_dump(mode="json"),
        "style": config.style.model_dump(mode="json"),
        "sampling": config.preview.model_dump(mode="json"),
    }


def truth_identity() -> dict[str, str]:
    """Digest the truth suite: its lists and its evaluator."""
    return {"evaluator_sha256": digest_files([weights_path()]), "suite_sha256": digest_files([suite_path()])}


def folders_identity(suite: FolderSuite, judges: Mapping[str, str]) -> dict[str, str]:
    """Digest a suite of folders: its pictures, captions and prompts; and where its networks come from."""
    pictures = {path for pair in suite.pairs for path in (*pair.subject.pictures, *pair.style.pictures)}
    words = "\n".join([*suite.templates, *(repr(pair.prompts) for pair in suite.pairs)])
    return {
        "pictures_sha256": digest_files(sorted(pictures)),
        "words_sha256": hashlib.sha256(words.encode()).hexdigest(),
        **judges,
    }


def digest_files(paths: Iterable[Path]) -> str:
    """Digest the contents of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _digest_modules(modules: Sequence[nn.Module]) -> str:
    """Digest all weights as float32 bytes, in the order of their names."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
