"""Named, complete configurations. A recipe is a function from a job's words to a whole configuration. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from duolora.config import (
    GenerateConfig,
    LayerPrior,
    LoraTrainConfig,
    MaskStart,
    MergeConfig,
    MergeMethod,
    PersonalizeConfig,
    Prompts,
    TargetLayers,
)
from duolora.errors import InvalidConfig

Recipe = Callable[[str, Prompts], PersonalizeConfig]

EMBEDDED = "tiny"
"""Name of the small base that ships with the package."""
COMPARED = "tiny-long"
"""What `duolora evaluate` trains with on the embedded base: merges are told apart best where both LoRAs have learnt."""

_AT_ONCE = {"steps": 0, "prior": LayerPrior.NONE, "constyle_weight": 0.0}

MERGE_RECIPES: Mapping[str, MergeConfig] = {
    "duolora": MergeConfig(start=MaskStart.MEASURED, **_AT_ONCE),
    "paper": MergeConfig(),
    "release": MergeConfig(method=MergeMethod.RELEASE),
    "instant": MergeConfig(start=MaskStart.CLOSED_FORM, **_AT_ONCE),
}
"""How to merge: ours, which won on the development list; as the paper says; as the authors' published code behaves;
and the least squares alone."""


def tiny(base_model: str, prompts: Prompts) -> PersonalizeConfig:
    """The embedded base on two CPU cores, within a minute."""
    content = LoraTrainConfig(
        steps=85,
        rank=16,
        learning_rate=2e-3,
        batch_size=4,
        resolution_px=64,
        targets=TargetLayers.ATTENTION,
        snr_gamma=5.0,
        warmup_steps=5,
    )
    return PersonalizeConfig(
        recipe="tiny",
        base_model=base_model,
        prompts=prompts,
        content=content,
        style=content.model_copy(update={"steps": 100}),  # at 85 steps some pictures slip into a style the base knows
        merge=MERGE_RECIPES["duolora"],
        preview=GenerateConfig(steps=14, guidance_scale=4.0, images=4, resolution_px=64),
    )


def tiny_long(base_model: str, prompts: Prompts) -> PersonalizeConfig:
    """The embedded base with 250 steps a side: minutes on two cores, seconds on a GPU, and pictures learnt better."""
    short = tiny(base_model, prompts)
    steps = {"steps": 250}
    return short.model_copy(
        update={
            "recipe": COMPARED,
            "content": short.content.model_copy(update=steps),
            "style": short.style.model_copy(update=steps),
        }
    )


def sdxl_paper(base_model: str, prompts: Prompts) -> PersonalizeConfig:
    """The paper's numbers on SDXL (DuoLoRA, section 5): rank 64, lr 5e-5, batch 1, 1024 px, 100/1000/100 steps."""
    content = LoraTrainConfig(steps=100, rank=64, learning_rate=5e-5)
    return PersonalizeConfig(
        recipe="sdxl-paper",
        base_model=base_model,
        prompts=prompts,
        content=content,
        style=content.model_copy(update={"steps": 1000}),
        merge=MERGE_RECIPES["paper"],
        preview=GenerateConfig(),
    )


def sdxl(base_model: str, prompts: Prompts) -> PersonalizeConfig:
    """SDXL with equal budgets for both sides and min-SNR weighting; not yet tuned on photographs."""
    lora = LoraTrainConfig(steps=500, rank=64, learning_rate=1e-4, batch_size=1, snr_gamma=5.0, warmup_steps=20)
    return PersonalizeConfig(
        recipe="sdxl",
        base_model=base_model,
        prompts=prompts,
        content=lora,
        style=lora,
        merge=MERGE_RECIPES["duolora"],
        preview=GenerateConfig(),
    )


def sd15(base_model: str, prompts: Prompts) -> PersonalizeConfig:
    """SD 1.5 at its 512 px, otherwise as `sdxl`; not yet tuned on photographs."""
    large = sdxl(base_model, prompts)
    size = {"resolution_px": 512}
    return large.model_copy(
        update={
            "recipe": "sd15",
            "content": large.content.model_copy(update=size),
            "style": large.style.model_copy(update=size),
            "preview": large.preview.model_copy(update=size),
        }
    )


RECIPES: Mapping[str, Recipe] = {
    EMBEDDED: tiny,
    COMPARED: tiny_long,
    "sdxl": sdxl,
    "sdxl-paper": sdxl_paper,
    "sd15": sd15,
}


SMALL_LATENTS = 32
"""Bases whose native latents are at most this wide are small ones, trained as the embedded base is."""


def default_recipe(location: str) -> str:
    """Name of the recipe for a base at a location, used when a request names none.

    A local folder in diffusers' layout says itself how large it draws; of anything else only the embedded base is
    known to be small.
    """
    index = Path(location) / "model_index.json"
    if (
        index.is_file()
        and json.loads(index.read_text(encoding="utf-8")).get("_class_name") == "StableDiffusionPipeline"
    ):
        return "sd15"
    configuration = Path(location) / "unet" / "config.json"
    if configuration.is_file():
        latents = json.loads(configuration.read_text(encoding="utf-8")).get("sample_size") or 0
        return "tiny" if 0 < latents <= SMALL_LATENTS else "sdxl"
    return "tiny" if location == EMBEDDED else "sdxl"


def resolve(
    recipe: str | None,
    base_model: str,
    prompts: Prompts,
    *,
    location: str | None = None,
    content_steps: int | None = None,
    style_steps: int | None = None,
    merge_recipe: str | None = None,
    merge_steps: int | None = None,
    rank: int | None = None,
    resolution_px: int | None = None,
    seed: int | None = None,
    slider: int | None = None,
    preview_every: int | None = None,
) -> PersonalizeConfig:
    """Fill a recipe and put the caller's wishes over it; None keeps the recipe's value.

    `location` is where the base called `base_model` lies, when that differs from its name.

    Raises:
        InvalidConfig: the recipe, or the recipe of the merge, is unknown.
        pydantic.ValidationError: a wish is out of bounds; the location names the field of the configuration.
    """
    name = recipe or default_recipe(location or base_model)
    if name not in RECIPES:
        raise InvalidConfig(f"unknown recipe {name!r}; known: {', '.join(sorted(RECIPES))}")
    config = RECIPES[name](base_model, prompts)
    if merge_recipe is not None:
        if merge_recipe not in MERGE_RECIPES:
            raise InvalidConfig(f"unknown merge recipe {merge_recipe!r}; known: {', '.join(sorted(MERGE_RECIPES))}")
        config = config.model_copy(update={"merge": MERGE_RECIPES[merge_recipe]})
    side = {"rank": rank, "resolution_px": resolution_px, "seed": seed}
    wishes = {
        "content": {"steps": content_steps, **side},
        "style": {"steps": style_steps, **side},
        "merge": {"steps": merge_steps, "seed": seed},
        "preview": {"resolution_px": resolution_px, "seed": seed},
    }
    document = config.model_dump()
    for part, fields in wishes.items():
        document[part] |= {key: value for key, value in fields.items() if value is not None}
    document |= {
        name: value for name, value in (("slider", slider), ("preview_every", preview_every)) if value is not None
    }
    return PersonalizeConfig.model_validate(document)
