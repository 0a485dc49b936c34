"""`duolora train | merge | generate | inspect | evaluate`: the engine from the command line, with no service."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from duolora.config import Prompts
from duolora.errors import InvalidConfig
from duolora.evaluate import command as evaluate
from duolora.recipes import MERGE_RECIPES, RECIPES, resolve

if TYPE_CHECKING:
    import argparse

    from duolora.config import PersonalizeConfig
    from duolora.events import Progress
    from duolora.families.family import Family
    from duolora.lora.base_layers import BaseLayers
    from duolora.lora.weights import LoraWeights
    from duolora.models.sdxl import SdxlBase

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
    _shared(train)
    train.set_defaults(run=_train)

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
    _shared(merge)
    merge.set_defaults(run=_merge)

    generate = commands.add_parser("generate", help="draw pictures with a base and, if given, a LoRA")
    generate.add_argument("prompt", help='for example "a sbu dog in szn style"')
    generate.add_argument("--lora", type=Path, help="LoRA file (diffusers or kohya keys)")
    generate.add_argument("--images", type=int, help="how many pictures")
    generate.add_argument("--out", type=Path, required=True, help="folder to write PNG files to")
    _shared(generate)
    generate.set_defaults(run=_generate)

    inspect = commands.add_parser("inspect", help="say what is inside a LoRA file")
    inspect.add_argument("file", type=Path)
    inspect.add_argument("--base", default="tiny", help="base model, needed for kohya keys (default: tiny)")
    inspect.set_defaults(run=_inspect)

    evaluate.register(commands)


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


def _shared(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument("--device", default="auto")


def _config(arguments: argparse.Namespace) -> PersonalizeConfig:
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


def _load(arguments: argparse.Namespace) -> SdxlBase:
    """Load the base; torch is imported here, so that `duolora --help` answers at once."""
    from duolora.models.registry import load_base  # noqa: PLC0415
    from duolora.runtime import choose_runtime  # noqa: PLC0415

    with console.status(f"loading {arguments.base}"):
        return load_base(arguments.base, choose_runtime(getattr(arguments, "device", "auto")))


def _layers(arguments: argparse.Namespace) -> BaseLayers:
    """Read which layers the base has, without loading it."""
    from duolora.models.registry import base_layers  # noqa: PLC0415 - imports torch
    from duolora.runtime import choose_runtime  # noqa: PLC0415

    return base_layers(arguments.base, choose_runtime("cpu"))


def _bar() -> Bar:
    """Return a progress bar on standard error."""
    return Bar(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )


def _write(weights: LoraWeights, out: Path, family: Family) -> None:
    """Write a LoRA in both key formats and say where."""
    from duolora.lora.write import write_diffusers, write_kohya  # noqa: PLC0415 - imports torch

    kohya = out.with_suffix(".kohya.safetensors")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_diffusers(weights, out, family=family)
    write_kohya(weights, kohya, family=family)
    console.print(f"{out} (diffusers keys), {kohya} (kohya keys)")


def _train(arguments: argparse.Namespace) -> int:
    """Train one LoRA by itself, or the LoRAs of both sides in one pass."""
    from duolora.images import list_pictures  # noqa: PLC0415 - imports torch
    from duolora.personalize import train_both, train_side  # noqa: PLC0415

    config, sides = _train_config(arguments), _sides(arguments)
    pictures = {side: list_pictures(folder) for side, folder in zip(sides, arguments.pictures, strict=True)}
    base = _load(arguments)
    with _bar() as bar:
        watcher = TerminalObserver(bar)
        if arguments.side == "both":
            for side, weights in train_both(base, pictures, config, watcher).items():
                _write(weights, arguments.out / f"{side}_lora.safetensors", base.family)
        else:
            weights = train_side(base, arguments.side, pictures[arguments.side], config, watcher)
            _write(weights, arguments.out, base.family)
    return 0


def _train_config(arguments: argparse.Namespace) -> PersonalizeConfig:
    """Resolve the configuration, and put over it the options that only trainings have."""
    config = _config(arguments)
    preservation = {"weight": arguments.preserve, "pictures": arguments.class_pictures}
    document = config.model_dump()
    for side in ("content", "style"):
        document[side]["preservation"] |= {name: value for name, value in preservation.items() if value is not None}
        document[side]["text_encoder"] |= arguments.text_encoder
    return type(config).model_validate(document)


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


def _merge(arguments: argparse.Namespace) -> int:
    """Merge two LoRAs, or adjust one that was merged before."""
    if arguments.style is None:
        return _adjust_file(arguments)
    from duolora.images import list_pictures  # noqa: PLC0415 - imports torch
    from duolora.lora.read import read_lora  # noqa: PLC0415
    from duolora.personalize import merge_sides  # noqa: PLC0415

    config = _config(arguments)
    files = {"content": arguments.content, "style": arguments.style} | _named_paths(arguments.also, "--also")
    folders = {"content": arguments.content_images, "style": arguments.style_images}
    folders |= _named_paths(arguments.also_images, "--also-images")
    pictures = {side: list_pictures(folder) for side, folder in folders.items() if folder is not None}
    base = _load(arguments)
    layers = base.layers()
    loras = {side: read_lora(path, layers) for side, path in files.items()}
    with _bar() as bar:
        result = merge_sides(
            base, loras, pictures, config, TerminalObserver(bar), strengths=_strengths(arguments, set(loras))
        )
    _write(_pruned(result.weights, arguments), arguments.out, base.family)
    return 0


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
    layers = _layers(arguments)
    merged = read_lora(arguments.content, layers)
    strengths = _strengths(arguments)
    if strengths:
        merged = reweight(merged, strengths)
    _write(_pruned(merged, arguments), arguments.out, layers.family)
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
        target_bytes=None if arguments.target_size_mb is None else int(arguments.target_size_mb * 1e6),
        keep_parts=False if arguments.mix_parts else None,
    )
    console.print(
        f"{pruned.ranks_before} ranks pruned to {pruned.ranks_after}; {pruned.relative_error:.2%} of the change is "
        f"lost, at most {pruned.worst_error:.2%} in one layer ({pruned.worst_layer})"
    )
    return pruned.weights


def _generate(arguments: argparse.Namespace) -> int:
    """Draw pictures."""
    from duolora.generate import generate  # noqa: PLC0415 - imports torch
    from duolora.lora.read import read_lora  # noqa: PLC0415

    config = _config(arguments).preview
    if arguments.images is not None:
        config = type(config).model_validate(config.model_dump() | {"images": arguments.images})
    base = _load(arguments)
    lora = None if arguments.lora is None else read_lora(arguments.lora, base.layers())
    with _bar() as bar:
        pictures = generate(base, [arguments.prompt], config, lora, TerminalObserver(bar))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(pictures):
        picture.save(arguments.out / f"{index:03d}.png")
    console.print(f"{len(pictures)} pictures in {arguments.out}")
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    """Print a LoRA's layers, ranks and metadata as JSON."""
    from duolora.lora.read import read_lora  # noqa: PLC0415 - imports torch

    layers = _layers(arguments)
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
