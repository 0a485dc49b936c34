"""What a stage of the engine finds in its workspace and leaves there: pictures, LoRAs, reports."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from duolora.images import list_pictures
from duolora.job_configs import GenerateJobConfig, MergeJobConfig, TrainJobConfig
from duolora.lora.read import read_lora
from duolora.lora.write import write_diffusers, write_kohya
from worker.engine.protocol import Output, StageOfJob

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

    from duolora.families.family import Family
    from duolora.lora.base_layers import BaseLayers
    from duolora.lora.weights import LoraWeights

SAFETENSORS = "application/octet-stream"
JSON = "application/json"
PNG = "image/png"
MERGED = "merged.diffusers.safetensors"
SIDES = ("content", "style")


def pictures_of(stage: StageOfJob) -> dict[str, list[Path]]:
    """Return the pictures of the sides that have any; a job that trains has some of each side that it trains.

    Raises:
        InvalidImage: a folder that must hold some does not.
    """
    config = stage.config
    if isinstance(config, GenerateJobConfig | MergeJobConfig):
        sides = [side for side in SIDES if (stage.inputs_dir / side).is_dir()]
    else:
        sides = list(config.sides)
    return {side: list_pictures(stage.inputs_dir / side) for side in sides}


def side_loras(stage: StageOfJob, layers: BaseLayers) -> dict[str, LoraWeights]:
    """Read the LoRAs of the sides: those that the job trained, or those that came with it.

    Raises:
        InvalidLora: a file cannot be read, or does not fit the base.
    """
    folder, config = stage.inputs_dir, stage.config
    if isinstance(config, MergeJobConfig):
        return {side: read_lora(folder / "loras" / f"{side}_0.safetensors", layers) for side in SIDES}
    sides = config.sides if isinstance(config, TrainJobConfig) else SIDES
    return {side: read_lora(folder / f"{side}_lora.safetensors", layers) for side in sides}


def drawing_loras(stage: StageOfJob, count: int, layers: BaseLayers) -> list[LoraWeights]:
    """Read the LoRAs that pictures are drawn with, in their order. Raises what `side_loras` does."""
    folder = stage.inputs_dir / "loras"
    return [read_lora(folder / f"drawing_{place}.safetensors", layers) for place in range(count)]


def write_side(weights: LoraWeights, side: str, folder: Path, family: Family) -> list[Output]:
    """Write one side's LoRA in both key formats."""
    return _write_both(weights, folder, family, names=(f"{side}_lora", f"{side}_lora_kohya"), stem=f"{side}_lora")


def write_merged(weights: LoraWeights, folder: Path, family: Family) -> list[Output]:
    """Write a merged LoRA in both key formats."""
    return _write_both(
        weights, folder, family, names=("merged_diffusers", "merged_kohya"), stem="merged", infix=".diffusers"
    )


def _write_both(
    weights: LoraWeights, folder: Path, family: Family, *, names: tuple[str, str], stem: str, infix: str = ""
) -> list[Output]:
    """Write a LoRA in diffusers keys and in kohya keys."""
    files = (f"{stem}{infix}.safetensors", f"{stem}.kohya.safetensors")
    write_diffusers(weights, folder / files[0], family=family)
    write_kohya(weights, folder / files[1], family=family)
    return [
        Output(name=name, filename=filename, content_type=SAFETENSORS)
        for name, filename in zip(names, files, strict=True)
    ]


def write_picture(picture: Image.Image, name: str, folder: Path) -> Output:
    """Write a picture as PNG."""
    picture.save(folder / f"{name}.png")
    return Output(name=name, filename=f"{name}.png", content_type=PNG)


def write_json(document: Any, name: str, folder: Path) -> Output:  # noqa: ANN401 - whatever JSON holds
    """Write a report."""
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1))
    return Output(name=name, filename=f"{name}.json", content_type=JSON)
