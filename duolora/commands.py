"""`duolora train | generate | inspect`, and where the other commands join: the engine with no service."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from duolora import merge_command
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
from duolora.evaluate import command as evaluate

if TYPE_CHECKING:
    import argparse

    from duolora.config import PersonalizeConfig


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the engine's own sub-commands."""
    train = commands.add_parser("train", help="train one LoRA from a folder of pictures, or both in one pass")
    train.add_argument("side", choices=["content", "style", "both"], help="what the pictures stand for")
    train.add_argument(
        "pictures", type=Path, nargs="+", help="folder with 1 to 20 pictures; for both: the content's, then the style's"
    )
    train.add_argument("--steps", type=int, help="training steps (default: the recipe's)")
    train.add_argument(
        "--preserve",
        type=float,
        metavar="WEIGHT",
        help="keep the class as the base draws it: weight of its pictures in the loss, 1 as in DreamBooth",
    )
    train.add_argument("--class-pictures", type=int, metavar="N", help="how many pictures of the class the base draws")
    train.add_argument("--text-encoder", action="store_true", help="adapt the text encoders' attention too")
    train.add_argument(
        "--out",
        type=Path,
        required=True,
        help="file to write, a .kohya.safetensors goes beside it; for both: folder for content_lora and style_lora",
    )
    checkpoints_option(train)
    shared_options(train)
    train.set_defaults(run=_train)

    merge_command.register(commands)

    generate = commands.add_parser("generate", help="draw pictures with a base and, if given, a LoRA")
    generate.add_argument("prompt", help='for example "a sbu dog in szn style"')
    generate.add_argument("--lora", type=Path, help="LoRA file (diffusers or kohya keys)")
    generate.add_argument("--images", type=int, help="how many pictures")
    generate.add_argument("--out", type=Path, required=True, help="folder to write PNG files to")
    shared_options(generate)
    generate.set_defaults(run=_generate)

    inspect = commands.add_parser("inspect", help="say what is inside a LoRA file")
    inspect.add_argument("file", type=Path)
    inspect.add_argument("--base", default="tiny", help="base model, needed for kohya keys (default: tiny)")
    inspect.set_defaults(run=_inspect)

    evaluate.register(commands)


def _train(arguments: argparse.Namespace) -> int:
    """Train one LoRA by itself, or the LoRAs of both sides in one pass."""
    from duolora.images import list_pictures  # noqa: PLC0415 - imports torch
    from duolora.personalize import train_sides  # noqa: PLC0415

    config, sides = _train_config(arguments), _sides(arguments)
    pictures = {side: list_pictures(folder) for side, folder in zip(sides, arguments.pictures, strict=True)}
    keeper = keeper_of(arguments, config, [path for of_side in pictures.values() for path in of_side])
    base = load(arguments)
    with progress_bar() as bar:
        watcher = TerminalObserver(bar)
        for side, weights in train_sides(base, pictures, config, watcher, keeper=keeper).items():
            out = arguments.out / f"{side}_lora.safetensors" if arguments.side == "both" else arguments.out
            write_both(weights, out, base.family)
    return 0


def _train_config(arguments: argparse.Namespace) -> PersonalizeConfig:
    """Resolve the configuration, and put over it the options that only trainings have."""
    config = resolve_config(arguments)
    preservation = {"weight": arguments.preserve, "pictures": arguments.class_pictures}
    document = config.model_dump()
    for side in ("content", "style"):
        document[side]["preservation"] |= {name: value for name, value in preservation.items() if value is not None}
        document[side]["text_encoder"] |= arguments.text_encoder
    config = type(config).model_validate(document)
    if arguments.class_pictures is not None and not any(
        each.preservation.weight for each in (config.content, config.style)
    ):
        raise InvalidConfig("--class-pictures draws none without --preserve WEIGHT, which says how much they count")
    return config


def _sides(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Return the sides to train, one for each folder of pictures."""
    folders = len(arguments.pictures)
    if arguments.side != "both":
        if folders != 1:
            raise InvalidConfig(f"train {arguments.side} takes one folder of pictures, but {folders} came")
        return (arguments.side,)
    if folders != 2:
        raise InvalidConfig(f"train both takes the content's folder and the style's folder, but {folders} came")
    if arguments.out.suffix == ".safetensors" or arguments.out.is_file():
        raise InvalidConfig("train both writes several files: --out must name a folder")
    return ("content", "style")


def _generate(arguments: argparse.Namespace) -> int:
    """Draw pictures."""
    from duolora.generate import generate  # noqa: PLC0415 - imports torch
    from duolora.lora.read import read_lora  # noqa: PLC0415

    config = resolve_config(arguments).preview
    if arguments.images is not None:
        config = type(config).model_validate(config.model_dump() | {"images": arguments.images})
    base = load(arguments)
    lora = None if arguments.lora is None else read_lora(arguments.lora, base.layers())
    with progress_bar() as bar:
        pictures = generate(base, [arguments.prompt], config, lora, TerminalObserver(bar))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(pictures):
        picture.save(arguments.out / f"{index:03d}.png")
    console.print(f"{len(pictures)} pictures in {arguments.out}")
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    """Print a LoRA's layers, ranks and metadata as JSON."""
    from duolora.lora.read import read_lora  # noqa: PLC0415 - imports torch

    layers = read_layers(arguments)
    lora = read_lora(arguments.file, layers)
    print(
        json.dumps(
            {
                "family": layers.family.title,
                "layers": len(lora.layers),
                "components": Counter(name.partition(".")[0] for name in lora.layers),
                "convolutions": sum(layer.kernel is not None for layer in lora.layers.values()),
                "ranks": sorted({layer.rank for layer in lora.layers.values()}),
                "numbers": lora.trainable_numbers,
                "metadata": dict(lora.metadata),
            },
            indent=1,
        )
    )
    return 0
