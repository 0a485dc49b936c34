from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from duolora.config import PersonalizeConfig, Prompts
from duolora.errors import InvalidConfig
from duolora.recipes import RECIPES, default_recipe, resolve

if TYPE_CHECKING:
    from pathlib import Path

PROMPTS = Prompts(subject_class="dog")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_whole_valid_configuration_of_its_name(name: str) -> None:
    config = resolve(name, "some base", PROMPTS)

    assert config.recipe == name
    assert config.base_model == "some base"
    assert config.prompts == PROMPTS
    assert PersonalizeConfig.model_validate(config.model_dump(mode="json")) == config
    assert config.content.resolution_px == config.style.resolution_px == config.preview.resolution_px
    assert config.content.warmup_steps < config.content.steps


@pytest.mark.parametrize(("base_model", "recipe"), [("tiny", "tiny"), ("sdxl", "sdxl"), ("/models/other", "sdxl")])
def test_recipe_follows_the_base_when_none_is_named(base_model: str, recipe: str) -> None:
    assert default_recipe(base_model) == recipe
    assert resolve(None, base_model, PROMPTS).recipe == recipe


def test_a_folder_says_itself_whether_its_base_is_small(tmp_path: Path) -> None:
    for name, latents in (("small", 16), ("large", 128)):
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "unet" / "config.json").write_text(json.dumps({"sample_size": latents}))

    assert resolve(None, str(tmp_path / "small"), PROMPTS).recipe == "tiny"
    assert resolve(None, str(tmp_path / "large"), PROMPTS).recipe == "sdxl"
    assert resolve(None, "mine", PROMPTS, location=str(tmp_path / "small")).recipe == "tiny"

    (tmp_path / "large" / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    config = resolve(None, str(tmp_path / "large"), PROMPTS)
    assert config.recipe == "sd15"
    assert {config.content.resolution_px, config.style.resolution_px, config.preview.resolution_px} == {512}


def test_paper_recipe_has_the_papers_numbers() -> None:
    config = resolve("sdxl-paper", "sdxl", PROMPTS)

    assert (config.content.rank, config.content.learning_rate, config.content.batch_size) == (64, 5e-5, 1)
    assert (config.content.steps, config.style.steps, config.merge.steps) == (100, 1000, 100)
    assert (config.merge.learning_rate, config.merge.prior_weight, config.merge.constyle_weight) == (0.01, 0.1, 0.01)
    assert config.content.resolution_px == 1024


@pytest.mark.parametrize("name", RECIPES)
def test_wishes_go_over_the_recipe_and_nothing_else_changes(name: str) -> None:
    plain = resolve(name, "b", PROMPTS).model_dump()

    wished = resolve(
        name, "b", PROMPTS, content_steps=3, style_steps=4, merge_steps=0, rank=7, resolution_px=96, seed=9
    ).model_dump()

    for part, wishes in {
        "content": {"steps": 3, "rank": 7, "resolution_px": 96, "seed": 9},
        "style": {"steps": 4, "rank": 7, "resolution_px": 96, "seed": 9},
        "merge": {"steps": 0, "seed": 9},
        "preview": {"resolution_px": 96, "seed": 9},
    }.items():
        assert wished[part] == plain[part] | wishes
    assert resolve(name, "b", PROMPTS, content_steps=3).style == resolve(name, "b", PROMPTS).style


@pytest.mark.parametrize(
    ("wish", "fields"),
    [
        ({"rank": 0}, {"content.rank", "style.rank"}),
        ({"content_steps": 0}, {"content.steps"}),
        ({"merge_steps": -1}, {"merge.steps"}),
        ({"resolution_px": 65}, {"content.resolution_px", "style.resolution_px", "preview.resolution_px"}),
    ],
)
def test_wish_out_of_bounds_names_its_field(wish: dict[str, int], fields: set[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        resolve("tiny", "tiny", PROMPTS, **wish)

    assert {".".join(map(str, fault["loc"])) for fault in caught.value.errors()} == fields


def test_unknown_recipe_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidConfig, match="'huge'; known: sd15, sdxl, sdxl-paper, tiny"):
        resolve("huge", "tiny", PROMPTS)
