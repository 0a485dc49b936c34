"""What the engine's commands share: their options, the configuration, the base, progress in a terminal, files.

Torch is imported when a command runs, so that `duolora --help` answers at once.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from duolora.config import Prompts
from duolora.device_options import device_options, device_runtime
from duolora.recipes import RECIPES, resolve

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from duolora.config import PersonalizeConfig
    from duolora.events import Progress
    from duolora.families.family import Family
    from duolora.keeping import Keeper
    from duolora.lora.base_layers import BaseLayers
    from duolora.lora.weights import LoraWeights
    from duolora.models.base import DiffusionBase

console = Console(stderr=True)


class TerminalObserver:
    """Shows progress as a bar on standard error."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._task = bar.add_task("starting", total=None)

    def on_progress(self, progress: Progress) -> None:
        """Move the bar."""
        loss = "" if progress.loss is None else f" loss {progress.loss:.4f}"
        self._bar.update(
            self._task, completed=progress.step, total=progress.total, description=f"{progress.note}{loss}"
        )

    def should_stop(self) -> bool:
        """Only Ctrl-C stops a command."""
        return False


def shared_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that several commands take."""
    parser.add_argument("--base", default="tiny", help="tiny, a folder, a single-file checkpoint or a hub id")
    parser.add_argument("--recipe", choices=sorted(RECIPES), help="named settings (default: by the base)")
    parser.add_argument("--class", dest="subject_class", default="subject", help="what the subject is: dog, teapot")
    parser.add_argument("--content-trigger", default="sbu")
    parser.add_argument("--style-trigger", default="szn")
    parser.add_argument(
        "--content-caption",
        action="append",
        default=[],
        help="what a content picture shows, trigger included; in file order, '' for the usual caption",
    )
    parser.add_argument(
        "--style-caption", action="append", default=[], help="what a style picture shows; in file order"
    )
    parser.add_argument("--rank", type=int)
    parser.add_argument("--seed", type=int)
    device_options(parser)


def checkpoints_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that lets an interrupted command go on."""
    parser.add_argument(
        "--checkpoints",
        type=Path,
        metavar="FOLDER",
        help="keep a checkpoint there every 20 s; the same command goes on from it, others start anew",
    )


def keeper_of(arguments: argparse.Namespace, config: PersonalizeConfig, files: Iterable[Path]) -> Keeper | None:
    """Return the keeper of the command's checkpoints: of this work on these files only; None where none was asked for.

    Raises:
        OSError: a file cannot be read, or the folder cannot be made.
    """
    if arguments.checkpoints is None:
        return None
    from duolora.checkpoints import FolderKeeper  # noqa: PLC0415 - imports torch
    from duolora.models.revision import base_revision  # noqa: PLC0415

    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    work = [arguments.run.__name__, getattr(arguments, "side", ""), config.model_dump_json(), digests]
    digest = hashlib.sha256(json.dumps([*work, base_revision(arguments.base)]).encode()).hexdigest()
    return FolderKeeper(arguments.checkpoints, digest=digest)


def resolve_config(arguments: argparse.Namespace) -> PersonalizeConfig:
    """Resolve the recipe and the options into one configuration."""
    prompts = Prompts(
        subject_class=arguments.subject_class,
        content_trigger=arguments.content_trigger,
        style_trigger=arguments.style_trigger,
        style_captions=tuple(arguments.style_caption),
        content_captions=tuple(arguments.content_caption),
    )
    steps = getattr(arguments, "steps", None)
    side = getattr(arguments, "side", None)
    return resolve(
        arguments.recipe,
        arguments.base,
        prompts,
        content_steps=steps if side in {"content", "both"} else None,
        style_steps=steps if side in {"style", "both"} else None,
        merge_recipe=getattr(arguments, "merge_recipe", None),
        merge_steps=steps if side is None else None,
        rank=arguments.rank,
        seed=arguments.seed,
    )


def load(arguments: argparse.Namespace) -> DiffusionBase:
    """Load the base; torch is imported here, so that `duolora --help` answers at once."""
    from duolora.models.registry import load_base  # noqa: PLC0415

    with console.status(f"loading {arguments.base}"):
        return load_base(arguments.base, device_runtime(arguments))


def read_layers(arguments: argparse.Namespace) -> BaseLayers:
    """Read which layers the base has, without loading it."""
    from duolora.models.registry import base_layers  # noqa: PLC0415 - imports torch
    from duolora.runtime import choose_runtime  # noqa: PLC0415

    return base_layers(arguments.base, choose_runtime("cpu"))


def progress_bar() -> Bar:
    """Return a progress bar on standard error."""
    return Bar(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )


def write_both(weights: LoraWeights, out: Path, family: Family) -> None:
    """Write a LoRA in both key formats and say where."""
    from duolora.lora.write import write_diffusers, write_kohya  # noqa: PLC0415 - imports torch

    kohya = out.with_suffix(".kohya.safetensors")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_diffusers(weights, out, family=family)
    write_kohya(weights, kohya, family=family)
    console.print(f"{out} (diffusers keys), {kohya} (kohya keys)")
