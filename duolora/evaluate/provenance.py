"""What a run was made of: versions, device, and digests of everything that decides its figures."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import duolora
from duolora.evaluate.network import weights_path
from duolora.evaluate.truth_suite import suite_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import nn

    from duolora.config import PersonalizeConfig
    from duolora.evaluate.folder_suite import FolderSuite
    from duolora.models.base import DiffusionBase

PACKAGES = ("duolora", "torch", "diffusers", "transformers", "peft", "numpy")
SOURCES = Path(duolora.__file__).parent
TRAINING_SOURCES = (
    "adapters.py",
    "capture.py",
    "class_pictures.py",
    "generate.py",
    "images.py",
    "lora_task.py",
    "losses.py",
    "memory.py",
    "models/base.py",
    "models/eight_bit.py",
    "noise_schedule.py",
    "thrift.py",
    "train.py",
    "whole_adapter.py",
)
"""The code that decides what is trained from given pictures and settings."""
PRESENTATION = frozenset(
    {"cli.py", "commands.py", "preview.py"}
    | {f"evaluate/{name}.py" for name in ("command", "intervals", "report", "tables")}
)
"""Code that only shows what was scored: changing it makes no score stale."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What decides a run's LoRAs, and what decides its scores beside that; runs with equal ones may share a folder."""

    loras: Mapping[str, Any]
    scores: Mapping[str, Any]

    def flat(self) -> dict[str, Any]:
        """Return all of it in one."""
        return {**self.loras, **self.scores}


def environment(base: DiffusionBase) -> dict[str, Any]:
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


def identity(base: DiffusionBase, config: PersonalizeConfig, suite: Identity) -> Identity:
    """Return what decides a score, besides method, pair and seed.

    `suite` says the same of the suite and of the networks it measures with.
    """
    encoders = [base.component(name) for name in base.family.components if name != "unet"]
    return Identity(
        loras={
            "base": config.base_model,
            "base_sha256": _digest_modules([base.unet, base.vae, *encoders]),
            **suite.loras,
            "recipe": config.recipe,
            "content": config.content.model_dump(mode="json"),
            "style": config.style.model_dump(mode="json"),
            "training_code_sha256": digest_sources(SOURCES / name for name in TRAINING_SOURCES),
        },
        scores={
            **suite.scores,
            "merge": config.merge.model_dump(mode="json"),
            "sampling": config.preview.model_dump(mode="json"),
            "measured_priors_sha256": digest_files([SOURCES / "method/measured_priors.json"]),
            "code_sha256": digest_sources(
                path for path in SOURCES.rglob("*.py") if path.relative_to(SOURCES).as_posix() not in PRESENTATION
            ),
        },
    )


def truth_identity() -> Identity:
    """Digest the truth suite: its lists and its evaluator."""
    return Identity(
        {"suite_sha256": digest_files([suite_path()])}, {"evaluator_sha256": digest_files([weights_path()])}
    )


def folders_identity(suite: FolderSuite, judges: Mapping[str, str], pictures: int) -> Identity:
    """Digest a suite of folders: its pictures, captions and prompts; where its networks come from, how much they see.

    `pictures` is how many are drawn for each prompt.
    """
    given = {path for pair in suite.pairs for path in (*pair.subject.pictures, *pair.style.pictures)}
    return Identity(
        {
            "pictures_sha256": digest_files(sorted(given)),
            "words_sha256": _digest_words(repr(pair.prompts) for pair in suite.pairs),
        },
        {"templates_sha256": _digest_words(suite.templates), **judges, "pictures_per_prompt": pictures},
    )


def digest_sources(paths: Iterable[Path]) -> str:
    """Digest source files of the package, with their names, so that a file that moved is another."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(SOURCES).as_posix()}:{digest_files([path])}\n".encode())
    return digest.hexdigest()


def _digest_words(words: Iterable[str]) -> str:
    """Digest lines of text."""
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


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
