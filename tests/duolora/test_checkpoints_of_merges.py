"""Merges and previews, interrupted anywhere and gone on with: the result is that of no interruption, to the bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from duolora.checkpoints import FolderKeeper
from duolora.config import GenerateConfig, MergeConfig, Prompts
from duolora.drawings import draw_results
from duolora.errors import Cancelled, CheckpointUnusable
from duolora.memory import SPARING
from duolora.merge import MergeSide, merge_cases
from duolora.personalize import merge_sides
from duolora.recipes import resolve
from tests.duolora.pico import pico_base, random_lora
from tests.duolora.test_merge import merge_case
from tests.duolora.watch import Watcher

if TYPE_CHECKING:
    from pathlib import Path

    from duolora.config import PersonalizeConfig
    from duolora.lora.weights import LoraWeights
    from duolora.merge import MergeResult
    from duolora.models.base import DiffusionBase

STEPS = 3
LEAN = {"batch_size": 1, "bank_size": 2, "steps": STEPS, "learning_rate": 0.05, "seed": 4}
WAYS = {
    "paper": MergeConfig(**LEAN, constyle_every=2),
    "ones": MergeConfig(**LEAN, start="ones", prior="none", constyle_weight=0),
    "instant, then steps": MergeConfig(**LEAN, start="closed-form", prior="none"),
    "release": MergeConfig(method="release", steps=STEPS),
}


def job(merge: MergeConfig) -> PersonalizeConfig:
    settings = resolve("tiny", "pico", Prompts(subject_class="disc"), rank=3, seed=8)
    return settings.model_copy(
        update={"merge": merge, "preview": GenerateConfig(steps=2, images=2, resolution_px=64, seed=1)}
    )


@pytest.fixture
def pictures(content_pictures: list[Path], style_pictures: list[Path]) -> dict[str, list[Path]]:
    return {"content": content_pictures, "style": style_pictures}


@pytest.fixture
def loras(base: DiffusionBase) -> dict[str, LoraWeights]:
    return {"content": random_lora(base, seed=1, ranks=(3,)), "style": random_lora(base, seed=2, ranks=(3,))}


def always(folder: Path) -> FolderKeeper:
    return FolderKeeper(folder, digest="this work", every_s=0)


def assert_same_bits(found: MergeResult, expected: MergeResult) -> None:
    assert found.weights.layers.keys() == expected.weights.layers.keys()
    for name, layer in expected.weights.layers.items():
        assert torch.equal(found.weights.layers[name].down_RI, layer.down_RI), name
        assert torch.equal(found.weights.layers[name].up_OR, layer.up_OR), name
    assert dict(found.report, seconds=0) == dict(expected.report, seconds=0)


@pytest.mark.parametrize("way", WAYS)
def test_a_merge_stopped_after_any_step_goes_on_to_the_same_bits_and_report(
    base: DiffusionBase, pictures: dict[str, list[Path]], loras: dict[str, LoraWeights], tmp_path: Path, way: str
) -> None:
    def merge(**how: Any) -> MergeResult:
        return merge_sides(base, loras, pictures, job(WAYS[way]), **how)

    expected = merge()
    assert len(expected.report["losses"]) == STEPS

    for stop in range(1, STEPS + 1):
        folder = tmp_path / str(stop)
        with pytest.raises(Cancelled):
            merge(observer=Watcher(stop_after=stop), keeper=always(folder))
        watcher = Watcher()
        found = merge(observer=watcher, keeper=always(folder))

        assert_same_bits(found, expected)
        assert len(watcher.losses) == STEPS - stop
        assert min(report.step for report in watcher.reports) == stop


def test_a_merge_of_no_steps_has_no_checkpoint(
    base: DiffusionBase, pictures: dict[str, list[Path]], loras: dict[str, LoraWeights], tmp_path: Path
) -> None:
    at_once = MergeConfig(steps=0, start="closed-form", prior="none", bank_size=2)

    merge_sides(base, loras, pictures, job(at_once), keeper=always(tmp_path))

    assert list(tmp_path.iterdir()) == []


def test_merges_of_several_cases_go_on_together(
    base: DiffusionBase, pictures: dict[str, list[Path]], loras: dict[str, LoraWeights], tmp_path: Path
) -> None:
    sides = {side: MergeSide(lora, pictures[side], ["a disc"] * len(pictures[side])) for side, lora in loras.items()}
    cases = [merge_case(base, sides, seed=seed) for seed in (1, 2)]

    def merge(**how: Any) -> list[MergeResult]:
        return merge_cases(base, cases, WAYS["paper"], resolution_px=64, **how)

    with pytest.raises(Cancelled):
        merge(observer=Watcher(stop_after=2), keeper=always(tmp_path))

    for found, expected in zip(merge(keeper=always(tmp_path)), merge(), strict=True):
        assert_same_bits(found, expected)


class Finishing(FolderKeeper):
    def should_finish(self) -> bool:
        return True


@pytest.mark.parametrize("way", ["paper", "release"])
def test_a_merge_that_is_to_finish_ends_after_its_step(
    base: DiffusionBase, pictures: dict[str, list[Path]], loras: dict[str, LoraWeights], tmp_path: Path, way: str
) -> None:
    keeper = Finishing(tmp_path, digest="this work", every_s=1e9)

    found = merge_sides(base, loras, pictures, job(WAYS[way]), keeper=keeper)

    assert len(found.report["losses"]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert found.weights.layers


@pytest.mark.parametrize("way", ["paper", "release"])
def test_a_checkpoint_of_another_merge_is_refused(
    base: DiffusionBase, pictures: dict[str, list[Path]], loras: dict[str, LoraWeights], tmp_path: Path, way: str
) -> None:
    with pytest.raises(Cancelled):
        merge_sides(base, loras, pictures, job(WAYS[way]), observer=Watcher(stop_after=1), keeper=always(tmp_path))
    wider = {**loras, "style": random_lora(base, seed=2, ranks=(4,))}

    with pytest.raises(CheckpointUnusable):
        merge_sides(base, wider, pictures, job(WAYS[way]), keeper=always(tmp_path))


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_pictures_of_a_preview_are_drawn_once(
    base: DiffusionBase, pictures: dict[str, list[Path]], loras: dict[str, LoraWeights], tmp_path: Path, stop: int
) -> None:
    settings, models = job(WAYS["ones"]), {**loras, "merged": loras["content"]}
    expected = draw_results(base, models, pictures, settings).preview
    with pytest.raises(Cancelled):
        draw_results(base, models, pictures, settings, Watcher(stop_after=stop), keeper=always(tmp_path))

    watcher = Watcher()
    found = draw_results(base, models, pictures, settings, watcher, keeper=always(tmp_path)).preview

    assert np.array_equal(np.asarray(found), np.asarray(expected))
    finished = 2 * ((stop - 1) // 2)  # steps of samplings that had ended
    assert [report.step for report in watcher.reports] == list(range(finished + 1, 7))


def test_a_merge_that_spares_memory_learns_the_same(
    base: DiffusionBase, pictures: dict[str, list[Path]], loras: dict[str, LoraWeights]
) -> None:
    """Blocks are computed again in the roles that they had: the cycles change roles before any gradient is wanted."""
    for way in ("paper", "release"):
        plain, sparing = (
            merge_sides(each, loras, pictures, job(WAYS[way])).report["losses"]
            for each in (base, pico_base(memory=SPARING))
        )
        for one, other in zip(sparing, plain, strict=True):
            assert one == pytest.approx(other, rel=1e-4)
