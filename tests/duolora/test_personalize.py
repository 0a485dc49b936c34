"""The whole way, train -> merge -> generate, on two bases that share no size: nothing knows that one is the default."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from duolora.baselines import duolora_release
from duolora.config import PersonalizeConfig, Prompts
from duolora.drawings import draw_results
from duolora.errors import Cancelled, InvalidConfig
from duolora.lora.parts import Parts
from duolora.lora.read import read_lora
from duolora.lora.weights import LoraWeights
from duolora.lora.write import write_diffusers
from duolora.merge import MergeSide, merge_case, merge_loras
from duolora.models.registry import load_base
from duolora.personalize import captions, job_report, merge_sides, train_sides
from duolora.preview import CELL_PX, GAP_PX, LABEL_PX
from duolora.recipes import MERGE_RECIPES, resolve
from tests.duolora.pico import CPU, random_lora, random_lora_on
from tests.duolora.watch import Watcher

if TYPE_CHECKING:
    from pathlib import Path

    from duolora.models.base import DiffusionBase

PROMPTS = Prompts(subject_class="disc", style_captions=("a ball", "a sun"))


def lean_config(base_model: str = "tiny", *, company: float = 0.0) -> PersonalizeConfig:
    config = resolve("tiny", base_model, PROMPTS, content_steps=2, style_steps=3, merge_steps=2, rank=3, seed=8)
    changes = {
        "content": {"batch_size": 1, "company": company},
        "style": {"batch_size": 1, "company": company},
        "merge": {"batch_size": 1, "bank_size": 2},
        "preview": {"steps": 2, "images": 2},
    }
    return config.model_copy(
        update={part: getattr(config, part).model_copy(update=update) for part, update in changes.items()}
    )


def test_captions_follow_the_files(content_pictures: list[Path]) -> None:
    assert captions("content", PROMPTS, 2) == ["a sbu disc", "a sbu disc"]
    described = Prompts(subject_class="disc", content_captions=("", "a sbu disc at sea"))
    assert captions("content", described, 3) == ["a sbu disc", "a sbu disc at sea", "a sbu disc"]
    assert captions("style", PROMPTS, 3) == ["a ball in szn style", "a sun in szn style", "a picture in szn style"]


@pytest.mark.parametrize(("name", "company"), [("pico", 0.0), ("tiny", 0.0), ("tiny", 1.0)])
def test_pictures_become_two_loras_a_merge_and_a_preview_on_any_base(
    *,
    base: DiffusionBase,
    name: str,
    company: float,
    pictures: dict[str, list[Path]],
    tmp_path: Path,
) -> None:
    model = base if name == "pico" else load_base("tiny", CPU)
    config = lean_config(name, company=company)
    if config.trains_together:
        loras = train_sides(model, pictures, config)
    else:
        loras = {side: train_sides(model, {side: pictures[side]}, config)[side] for side in pictures}
    merged = merge_sides(model, loras, pictures, config)
    watcher = Watcher()
    preview = draw_results(model, {**loras, "merged": merged.weights}, pictures, config, watcher).preview

    layers = {f"unet.{path}" for path in model.target_layers(config.content.targets)}
    assert all(set(lora.layers) == layers for lora in loras.values())
    assert set(merged.weights.layers) <= layers
    assert max(layer.rank for layer in merged.weights.layers.values()) <= 2 * 3
    assert preview.size == (GAP_PX + 2 * (CELL_PX + GAP_PX), GAP_PX + 5 * (LABEL_PX + CELL_PX + GAP_PX))
    assert [(report.step, report.total) for report in watcher.reports] == [(step, 6) for step in range(1, 7)]
    write_diffusers(merged.weights, tmp_path / "merged.safetensors")
    assert set(read_lora(tmp_path / "merged.safetensors").layers) == set(merged.weights.layers)
    report = json.loads(json.dumps(job_report(model, config, merge=merged.report)))
    assert PersonalizeConfig.model_validate(report["config"]) == config
    assert report["memory_profile"] == "80gb"
    assert report["merge"]["trainable"] == 2 * 3 * len(layers)


def test_preview_shows_what_each_lora_draws_and_the_pictures_sent(
    base: DiffusionBase, pictures: dict[str, list[Path]]
) -> None:
    loras = {name: random_lora(base, seed=seed) for seed, name in enumerate(("content", "style", "merged"))}

    def cells(**changed: int) -> list[np.ndarray]:
        swapped = loras | {name: random_lora(base, seed=seed) for name, seed in changed.items()}
        sheet = np.asarray(draw_results(base, swapped, pictures, lean_config()).preview)
        tops = [GAP_PX + line * (LABEL_PX + CELL_PX + GAP_PX) + LABEL_PX for line in range(5)]
        return [sheet[top : top + CELL_PX, GAP_PX : GAP_PX + CELL_PX].astype(int) for top in tops]

    plain = cells()

    assert plain[0][CELL_PX // 2, CELL_PX // 2].tolist() == [230, 40, 40]  # the disc of the first content picture
    assert plain[1][CELL_PX // 2, CELL_PX // 2].tolist() == [40, 40, 230]
    for line, name in ((2, "content"), (3, "style"), (4, "merged")):
        differs = [not np.array_equal(one, other) for one, other in zip(plain, cells(**{name: 9}), strict=True)]
        assert differs == [index == line for index in range(5)], name


@pytest.mark.parametrize("company", [0.0, 1.0])
def test_files_carry_their_words(base: DiffusionBase, pictures: dict[str, list[Path]], company: float) -> None:
    config = lean_config(company=company)
    if config.trains_together:
        loras = train_sides(base, pictures, config)
    else:
        loras = {side: train_sides(base, {side: pictures[side]}, config)[side] for side in pictures}
    merged = merge_sides(base, loras, pictures, config).weights

    words = {name: lora.metadata for name, lora in {**loras, "merged": merged}.items()}
    assert {name: word["modelspec.trigger_phrase"] for name, word in words.items()} == {
        "content": "a sbu disc",
        "style": "in szn style",
        "merged": "a sbu disc in szn style",
    }
    assert words["merged"]["modelspec.merged_from"] == "content LoRA, style LoRA"
    for word in words.values():
        assert word["modelspec.resolution"] == "64x64"
        assert word["duolora.seed"] == "8"
        assert PersonalizeConfig.model_validate_json(word["duolora.config"]) == config


def test_each_side_is_trained_by_its_own_settings(base: DiffusionBase, content_pictures: list[Path]) -> None:
    config = lean_config()
    config = config.model_copy(update={"style": config.style.model_copy(update={"rank": 5, "seed": 9})})

    alone = {side: train_sides(base, {side: content_pictures}, config)[side] for side in ("content", "style")}
    both = train_sides(base, dict.fromkeys(("content", "style"), content_pictures), config)

    for loras in (alone, both):
        assert {side: lora.common_rank for side, lora in loras.items()} == {"content": 3, "style": 5}
        assert {side: lora.metadata["duolora.seed"] for side, lora in loras.items()} == {"content": "8", "style": "9"}


def deltas(lora: LoraWeights) -> torch.Tensor:
    return torch.cat([layer.delta_OI().flatten() for layer in lora.layers.values()])


def test_both_sides_in_one_pass_are_trained_on_their_own_pictures_and_captions(
    base: DiffusionBase, pictures: dict[str, list[Path]]
) -> None:
    """Without company one pass gives what two give; tolerance as where `train_loras` is tested for that."""
    both = train_sides(base, pictures, lean_config())

    for side, lora in both.items():
        alone = deltas(train_sides(base, {side: pictures[side]}, lean_config())[side])
        assert (deltas(lora) - alone).norm() < 1e-3 * alone.norm(), side


def test_a_side_trained_by_itself_has_no_company_and_says_so(base: DiffusionBase, content_pictures: list[Path]) -> None:
    without, wished = (
        train_sides(base, {"content": content_pictures}, lean_config(company=share))["content"] for share in (0.0, 1.0)
    )

    assert torch.equal(deltas(without), deltas(wished))
    recorded = PersonalizeConfig.model_validate_json(wished.metadata["duolora.config"])
    assert recorded == lean_config(company=0.0)


def test_company_changes_what_both_sides_learn(base: DiffusionBase, pictures: dict[str, list[Path]]) -> None:
    without, with_it = (train_sides(base, pictures, lean_config(company=share)) for share in (0.0, 1.0))

    for side, lora in without.items():
        assert (deltas(with_it[side]) - deltas(lora)).norm() > 1e-2 * deltas(lora).norm(), side


def test_loras_trained_on_different_words_differ(base: DiffusionBase, content_pictures: list[Path]) -> None:
    other = lean_config().model_copy(update={"prompts": Prompts(subject_class="zebra")})

    one, two = (
        train_sides(base, {"content": content_pictures}, config)["content"] for config in (lean_config(), other)
    )

    assert any(not torch.equal(layer.up_OR, two.layers[name].up_OR) for name, layer in one.layers.items())


def merging(recipe: str, **changes: object) -> PersonalizeConfig:
    """The lean job, merged by another recipe, in two steps where it takes steps."""
    config = lean_config()
    steps = {"steps": 2} if MERGE_RECIPES[recipe].steps else {}
    return config.model_copy(update={"merge": MERGE_RECIPES[recipe].model_copy(update={**steps, "seed": 8, **changes})})


def two_loras(base: DiffusionBase) -> dict[str, LoraWeights]:
    return {side: random_lora(base, seed=seed, ranks=(3,)) for seed, side in enumerate(("content", "style"))}


def test_release_of_a_job_is_the_release_of_the_comparison(
    base: DiffusionBase, pictures: dict[str, list[Path]]
) -> None:
    config, loras = merging("release"), two_loras(base)
    found = merge_sides(base, loras, pictures, config).weights

    sides = {
        side: MergeSide(lora, pictures[side], captions(side, PROMPTS, len(pictures[side])))
        for side, lora in loras.items()
    }
    case = merge_case(base, sides, PROMPTS.joint, config.merge, resolution_px=64)
    [expected] = duolora_release.merge(base, [case], steps=2)
    ours = merge_loras(base, sides, PROMPTS.joint, merging("paper").merge, resolution_px=64).weights
    assert Parts.of(found).sides == ("content", "style")
    torch.testing.assert_close(deltas(found), deltas(expected), rtol=1e-5, atol=1e-6)
    assert (deltas(found) - deltas(ours)).norm() > 1e-2 * deltas(ours).norm()


def test_release_reports_progress_and_what_it_kept_as_other_merges_do(
    base: DiffusionBase, pictures: dict[str, list[Path]]
) -> None:
    loras = two_loras(base)
    watcher = Watcher()

    released = merge_sides(base, loras, pictures, merging("release"), watcher)
    report, other = released.report, merge_sides(base, loras, pictures, merging("paper")).report

    assert [(seen.step, seen.total) for seen in watcher.reports] == [(0, 2), (1, 2), (2, 2)]
    assert report["method"] == "release"
    assert report.keys() == other.keys()
    assert report["layers"].keys() == other["layers"].keys()
    assert watcher.losses == pytest.approx([terms["total"] for terms in report["losses"]], abs=1e-5)
    assert report["seconds"] > 0
    modules = {name.rpartition(".to_")[0] for name in report["layers"]}
    assert report["trainable"] == 2 * 3 * len(modules) < other["trainable"]
    counts = Parts.of(released.weights).counts
    for name, entry in report["layers"].items():
        assert (entry["content"]["kept"], entry["style"]["kept"]) == counts[name]
        assert entry["content"].keys() == other["layers"][name]["content"].keys()
        assert 0.8 < entry["content"]["mean_mask"] < 1.2
    json.dumps(report)


def test_release_can_be_cancelled_between_steps(base: DiffusionBase, pictures: dict[str, list[Path]]) -> None:
    watcher = Watcher(stop_after=1)

    with pytest.raises(Cancelled, match="after step 1 of 2"):
        merge_sides(base, two_loras(base), pictures, merging("release"), watcher)


@pytest.mark.parametrize("order", [("content", "style"), ("style", "content")])
def test_release_carries_convolutions_and_text_encoders_through(
    *, base: DiffusionBase, pictures: dict[str, list[Path]], order: tuple[str, str]
) -> None:
    carried = random_lora_on(base, [name for name in base.layers().shapes if name.endswith(("conv1", "q_proj"))])
    loras = two_loras(base)
    loras["style"] = LoraWeights({**loras["style"].layers, **carried.layers})
    merged = merge_sides(
        base, {side: loras[side] for side in order}, pictures, merging("release"), strengths={"style": 0.5}
    ).weights

    assert set(merged.layers) == set(loras["style"].layers)
    for name, layer in carried.layers.items():
        torch.testing.assert_close(merged.layers[name].delta_weight(), 0.5 * layer.delta_weight())


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("release", "the release merges one content and one style LoRA.*content, style, style-2"),
        ("paper", "learns from captions.*recipe duolora"),
        ("instant", "learns from captions.*recipe duolora"),
    ],
)
def test_merges_that_learn_refuse_further_sides_before_they_look_at_pictures(
    base: DiffusionBase, tmp_path: Path, recipe: str, message: str
) -> None:
    loras = {**two_loras(base), "style-2": random_lora(base, seed=5, ranks=(3,))}
    absent = {side: [tmp_path / f"{side}.png"] for side in loras}

    with pytest.raises(InvalidConfig, match=message):
        merge_sides(base, loras, absent, merging(recipe))


@pytest.mark.parametrize("sides", [("content",), ("content", "content-2"), ("content", "style-2")])
def test_release_takes_a_content_and_a_style_by_these_names(base: DiffusionBase, sides: tuple[str, ...]) -> None:
    loras = {side: random_lora(base, seed=seed) for seed, side in enumerate(sides)}

    with pytest.raises(InvalidConfig, match="one content and one style LoRA"):
        merge_sides(base, loras, {}, merging("release"))


def test_merges_at_once_take_further_sides(base: DiffusionBase) -> None:
    loras = {**two_loras(base), "style-2": random_lora(base, seed=5, ranks=(3,))}

    merged = merge_sides(base, loras, {}, merging("duolora"))

    assert Parts.of(merged.weights).sides == ("content", "style", "style-2")
