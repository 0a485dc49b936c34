"""`duolora merge`: several LoRAs become one, or a merged one is adjusted."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from duolora.command_setup import (
    TerminalObserver,
    checkpoints_option,
    console,
    keeper_of,
    load,
    progress_bar,
    read_layers,
    resolve_config,
    shared_options,
    write_both,
)
from duolora.errors import InvalidConfig
from duolora.recipes import MERGE_RECIPES

if TYPE_CHECKING:
    import argparse

    from duolora.lora.weights import LoraWeights

BYTES_PER_MB = 1e6


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command."""
    merge = commands.add_parser("merge", help="merge a content LoRA and a style LoRA into one, or adjust a merged one")
    merge.add_argument("content", type=Path, help="content LoRA (diffusers or kohya keys); alone: a merged LoRA")
    merge.add_argument("style", type=Path, nargs="?", help="style LoRA; left out, the merged LoRA is adjusted as asked")
    merge.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="SIDE=FILE",
        help="a further LoRA, its side named for its role: content-2=cat.safetensors, style-2=ink.safetensors",
    )
    merge.add_argument("--content-images", type=Path, help="folder of the content LoRA's pictures")
    merge.add_argument("--style-images", type=Path, help="folder of the style LoRA's pictures")
    merge.add_argument(
        "--also-images", action="append", default=[], metavar="SIDE=FOLDER", help="pictures of a further LoRA"
    )
    merge.add_argument(
        "--merge-recipe",
        choices=sorted(MERGE_RECIPES),
        help="how to merge (default: the recipe's; duolora needs no pictures, the others learn from them)",
    )
    _adjustments(merge)
    merge.add_argument("--steps", type=int, help="merge steps (default: the recipe's)")
    merge.add_argument("--out", type=Path, required=True, help="file to write; a .kohya.safetensors goes beside it")
    checkpoints_option(merge)
    shared_options(merge)
    merge.set_defaults(run=_merge)


def _adjustments(parser: argparse.ArgumentParser) -> None:
    """Add the options that change a merged LoRA without another merge."""
    parser.add_argument("--content-strength", type=float, metavar="X", help="multiply the content side by X")
    parser.add_argument("--style-strength", type=float, metavar="X", help="multiply the style side by X")
    parser.add_argument(
        "--strength", action="append", default=[], metavar="SIDE=X", help="multiply any side by X; for merges of many"
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--target-rank", type=float, metavar="R", help="prune to R ranks per layer on the average")
    size.add_argument("--target-size-mb", type=float, metavar="MB", help="prune until each file fits into MB megabytes")
    parser.add_argument(
        "--mix-parts", action="store_true", help="prune both sides as one: loses less, but their strengths are fixed"
    )


def _merge(arguments: argparse.Namespace) -> int:
    """Merge two LoRAs, or adjust one that was merged before."""
    _check(arguments)
    if arguments.style is None:
        return _adjust_file(arguments)
    from duolora.images import list_pictures  # noqa: PLC0415 - imports torch
    from duolora.lora.read import read_lora  # noqa: PLC0415
    from duolora.personalize import merge_sides  # noqa: PLC0415

    config = resolve_config(arguments)
    files = {"content": arguments.content, "style": arguments.style} | _named_paths(arguments.also, "--also")
    folders = {"content": arguments.content_images, "style": arguments.style_images}
    folders |= _named_paths(arguments.also_images, "--also-images")
    strengths = _strengths(arguments, set(files))
    pictures = {side: list_pictures(folder) for side, folder in folders.items() if folder is not None}
    keeper = keeper_of(
        arguments, config, [*files.values(), *(path for of_side in pictures.values() for path in of_side)]
    )
    base = load(arguments)
    layers = base.layers()
    loras = {side: read_lora(path, layers) for side, path in files.items()}
    with progress_bar() as bar:
        result = merge_sides(base, loras, pictures, config, TerminalObserver(bar), strengths=strengths, keeper=keeper)
    write_both(_pruned(result.weights, arguments), arguments.out, base.family)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse options that say nothing, or that contradict each other, before anything is read.

    Raises:
        InvalidConfig: naming the option.
    """
    targets = {"target rank": arguments.target_rank, "target size": arguments.target_size_mb}
    given = {words: target for words, target in targets.items() if target is not None}
    for words, target in given.items():
        if not (target > 0 and math.isfinite(target * BYTES_PER_MB)):
            raise InvalidConfig(f"the {words} must be a positive number, not {target}")
    if arguments.mix_parts and not given:
        raise InvalidConfig("--mix-parts is about pruning: give --target-rank or --target-size-mb as well")
    if arguments.style is None:
        _check_adjusting(arguments)
    else:
        _check_further_sides(arguments)


def _check_adjusting(arguments: argparse.Namespace) -> None:
    """Refuse options of a merge where one file is adjusted, which merges nothing."""
    for name in ("also", "also_images", "content_images", "style_images", "merge_recipe", "steps", "checkpoints"):
        if getattr(arguments, name) not in (None, []):
            raise InvalidConfig(
                f"--{name.replace('_', '-')} is for merging, but one file alone is adjusted; give the style LoRA too"
            )


def _check_further_sides(arguments: argparse.Namespace) -> None:
    """Refuse further sides that are named twice, and pictures of sides that are not there."""
    further = [word.partition("=")[0] for word in arguments.also]
    pictured = [word.partition("=")[0] for word in arguments.also_images]
    for option, sides in (("--also", ["content", "style", *further]), ("--also-images", pictured)):
        for side in (side for side, count in Counter(sides).items() if count > 1):
            raise InvalidConfig(f"{option} names {side!r}, which is given already; every side needs its own name")
    for side in pictured:
        if side not in further:
            raise InvalidConfig(f"--also-images names {side!r}, but no --also does: it is for the pictures of those")


def _named_paths(words: list[str], option: str) -> dict[str, Path]:
    """Read SIDE=PATH options."""
    named = {}
    for word in words:
        side, equals, path = word.partition("=")
        if not side or not equals or not path:
            raise InvalidConfig(f"{option} must be SIDE=PATH, for example style-2=ink.safetensors, not {word!r}")
        named[side] = Path(path)
    return named


def _adjust_file(arguments: argparse.Namespace) -> int:
    """Re-weight and prune a merged LoRA; needs no pictures and no time."""
    from duolora.lora.read import read_lora  # noqa: PLC0415 - imports torch
    from duolora.strengths import reweight  # noqa: PLC0415

    if not _strengths(arguments) and arguments.target_rank is None and arguments.target_size_mb is None:
        raise InvalidConfig(
            "one file alone is adjusted: give --content-strength, --style-strength, --target-rank or --target-size-mb; "
            "to merge, give the style LoRA as well"
        )
    layers = read_layers(arguments)
    merged = read_lora(arguments.content, layers)
    strengths = _strengths(arguments)
    if strengths:
        merged = reweight(merged, strengths)
    write_both(_pruned(merged, arguments), arguments.out, layers.family)
    return 0


def _strengths(arguments: argparse.Namespace, known: set[str] | None = None) -> dict[str, float]:
    """Return the strengths that were asked for, by side; a side must be among the known ones, where these are known."""
    asked = {"content": arguments.content_strength, "style": arguments.style_strength}
    strengths = {side: strength for side, strength in asked.items() if strength is not None}
    for words in arguments.strength:
        side, _, number = words.rpartition("=")
        try:
            strengths[side] = float(number)
        except ValueError as error:
            raise InvalidConfig(f"--strength must be SIDE=X, for example style=1.2, not {words!r}") from error
    for side in strengths.keys() - (known or strengths.keys()):
        raise InvalidConfig(
            f"--strength names {side!r}, but the sides of this merge are {', '.join(sorted(known or ()))}"
        )
    return strengths


def _pruned(weights: LoraWeights, arguments: argparse.Namespace) -> LoraWeights:
    """Prune a merged LoRA, as far as the options ask for it."""
    from duolora.pruning import prune  # noqa: PLC0415 - imports torch

    if arguments.target_rank is None and arguments.target_size_mb is None:
        return weights
    pruned = prune(
        weights,
        target_rank=arguments.target_rank,
        target_bytes=None if arguments.target_size_mb is None else int(arguments.target_size_mb * BYTES_PER_MB),
        keep_parts=False if arguments.mix_parts else None,
    )
    console.print(
        f"{pruned.ranks_before} ranks pruned to {pruned.ranks_after}; {pruned.relative_error:.2%} of the change is "
        f"lost, at most {pruned.worst_error:.2%} in one layer ({pruned.worst_layer})"
    )
    return pruned.weights
