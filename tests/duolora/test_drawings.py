"""What a job draws: sliders and prompts, stopped anywhere and gone on with."""

from __future__ import annotations

import gc
import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

from duolora.checkpoints import FolderKeeper
from duolora.config import GenerateConfig, Prompts
from duolora.drawings import draw_prompts, draw_results, prompts_preview
from duolora.errors import Cancelled
from duolora.generate import generate
from duolora.job_configs import GenerateJobConfig, MergeJobConfig, TrainJobConfig
from duolora.lora.parts import PARTS_KEY, join_sides
from duolora.lora.weights import LoraWeights
from duolora.memory import SPARING
from duolora.preview import CELL_PX, GAP_PX, LABEL_PX
from duolora.recipes import resolve
from duolora.slider import slider_strengths
from duolora.strengths import reweight
from tests.duolora.pico import pico_base, random_lora, random_lora_on
from tests.duolora.watch import Watcher

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from PIL.Image import Image

    from duolora.events import Progress
    from duolora.keeping import Saved
    from duolora.models.base import DiffusionBase

WHOLE = resolve("tiny", "pico", Prompts(subject_class="disc"), seed=8)
FEW = {"steps": 2, "images": 2}
PROMPTS = ("a disc", "a sbu disc", "a ball")


def merging(slider: int) -> MergeJobConfig:
    config = MergeJobConfig.of(WHOLE.model_copy(update={"slider": slider}))
    return config.model_copy(update={"preview": config.preview.model_copy(update=FEW)})


def drawing(strengths: Sequence[float], prompts: Sequence[str] = PROMPTS) -> GenerateJobConfig:
    return GenerateJobConfig.of(WHOLE, prompts=prompts, strengths=strengths, wishes=FEW)


def merged_of(sides: dict[str, LoraWeights]) -> dict[str, LoraWeights]:
    return {**sides, "merged": join_sides(sides)}


@pytest.fixture
def loras(base: DiffusionBase) -> dict[str, LoraWeights]:
    """The LoRAs of a merge job: both sides, and their sum."""
    return merged_of({"content": random_lora(base, seed=1, ranks=(2, 3)), "style": random_lora(base, seed=2)})


def assert_alike(found: Sequence[Image], expected: Sequence[Image], levels: int = 2) -> None:
    """Batches of other sizes round otherwise."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max() <= levels


def one_by_one(base: DiffusionBase, merged: LoraWeights, config: MergeJobConfig) -> list[Image]:
    """The slider's pictures as files of those strengths would draw them."""
    single = config.preview.model_copy(update={"images": 1})
    return [
        generate(base, [config.prompts.joint], single, reweight(merged, strengths))[0]
        for strengths in slider_strengths(config.slider)
    ]


@pytest.mark.parametrize("positions", [1, 2, 5])
def test_a_slider_shows_the_merge_at_its_strengths(
    base: DiffusionBase, loras: dict[str, LoraWeights], positions: int
) -> None:
    config = merging(positions)
    results = draw_results(base, loras, {}, config)
    assert_alike(results.slider, one_by_one(base, loras["merged"], config))
    assert set(results.drawn) == {"content", "style", "merged"}


def test_a_slider_goes_from_one_side_alone_over_the_merge_to_the_other() -> None:
    assert slider_strengths(0) == []
    assert slider_strengths(1) == [{"content": 1.0, "style": 1.0}]
    assert slider_strengths(5) == [
        {"content": 1.0, "style": 0.0},
        {"content": 1.0, "style": 0.5},
        {"content": 1.0, "style": 1.0},
        {"content": 0.5, "style": 1.0},
        {"content": 0.0, "style": 1.0},
    ]


def test_a_slider_is_the_same_where_passes_are_not_shared(base: DiffusionBase, loras: dict[str, LoraWeights]) -> None:
    sparing = pico_base(memory=SPARING)
    assert base.memory.shares_passes
    assert not sparing.memory.shares_passes
    watcher = Watcher()
    found = draw_results(sparing, loras, {}, merging(3), watcher).slider
    assert_alike(found, draw_results(base, loras, {}, merging(3)).slider)
    assert [report.step for report in watcher.reports] == list(range(1, 2 * (3 + 3) + 1))


@pytest.mark.parametrize("stop", [7, 9, 11])
def test_a_slider_that_goes_on_under_another_memory_profile_has_its_pictures_once(
    base: DiffusionBase, loras: dict[str, LoraWeights], tmp_path: Path, stop: int
) -> None:
    config = merging(3)
    with pytest.raises(Cancelled):
        draw_results(pico_base(memory=SPARING), loras, {}, config, Watcher(stop_after=stop), keeper=always(tmp_path))
    folder = tmp_path / "again"
    shutil.copytree(tmp_path, folder)
    with pytest.raises(Cancelled):
        draw_results(base, loras, {}, config, Watcher(stop_after=7), keeper=always(folder))
    [state] = [json.loads(path.read_text()) for path in folder.rglob("state.json")]
    assert (state["step"], state["total"]) == (6, 8)

    watcher = Watcher()
    found = draw_results(base, loras, {}, config, watcher, keeper=always(tmp_path))

    assert_alike(found.slider, one_by_one(base, loras["merged"], config))
    assert [report.step for report in watcher.reports] == [7, 8]


@pytest.mark.parametrize("shares", [True, False])
def test_a_slider_has_no_faded_lora_in_memory_but_while_it_is_drawn_with(
    loras: dict[str, LoraWeights], *, shares: bool
) -> None:
    def merged_in_memory(positions: int) -> list[int]:
        counter = Counter()
        draw_results(pico_base() if shares else pico_base(memory=SPARING), loras, {}, merging(positions), counter)
        return counter.counts

    few, many = merged_in_memory(1), merged_in_memory(5)
    previews = 2 * 3
    assert many[:previews] == few[:previews]
    if not shares:
        assert max(many) == max(few)


def test_a_slider_of_loras_that_change_more_than_transformers_fades_all_of_it(base: DiffusionBase) -> None:
    names = [name for name in base.layers().shapes if name.endswith(("attn1.to_q", "conv1", "q_proj"))]
    sides = {side: random_lora_on(base, names, seed=seed) for seed, side in enumerate(("content", "style"))}
    loras = merged_of(sides)
    assert_alike(draw_results(base, loras, {}, merging(3)).slider, one_by_one(base, loras["merged"], merging(3)))


def test_the_preview_shows_what_there_is(
    base: DiffusionBase, loras: dict[str, LoraWeights], pictures: dict[str, list[Path]]
) -> None:
    def rows(height: int) -> float:
        return (height - GAP_PX) / (LABEL_PX + CELL_PX + GAP_PX)

    assert rows(draw_results(base, loras, {}, merging(0)).preview.height) == 3
    training = TrainJobConfig.of(WHOLE, ["style"])
    training = training.model_copy(update={"preview": GenerateConfig(resolution_px=64, **FEW)})
    results = draw_results(base, {"style": loras["style"]}, {"style": pictures["style"]}, training)
    assert rows(results.preview.height) == 2
    assert list(results.drawn) == ["style"]
    assert results.slider == []


@pytest.mark.parametrize("strengths", [(), (1.0,), (0.5, -2.0), (0.0, 0.0)])
def test_prompts_are_drawn_with_all_loras_at_their_strengths(
    base: DiffusionBase, loras: dict[str, LoraWeights], strengths: tuple[float, ...]
) -> None:
    config = drawing(strengths)
    used = [loras["content"], loras["style"]][: len(strengths)]
    parts = {
        str(place): lora.scaled(strength) for place, (lora, strength) in enumerate(zip(used, strengths, strict=True))
    }

    drawn = draw_prompts(base, used, config)

    for prompt, found in zip(PROMPTS, drawn, strict=True):
        expected = generate(base, [prompt], config.sampling, join_sides(parts) if parts else None)
        assert_alike(found, expected, levels=1)
    assert prompts_preview(config, drawn).height == GAP_PX + 3 * (LABEL_PX + CELL_PX + GAP_PX)


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_prompts_that_were_stopped_are_gone_on_with(
    base: DiffusionBase, loras: dict[str, LoraWeights], tmp_path: Path, stop: int
) -> None:
    config, used = drawing((1.0,)), [loras["content"]]
    expected = draw_prompts(base, used, config)
    with pytest.raises(Cancelled):
        draw_prompts(base, used, config, Watcher(stop_after=stop), keeper=always(tmp_path))

    watcher = Watcher()
    found = draw_prompts(base, used, config, watcher, keeper=always(tmp_path))

    for ours, theirs in zip(found, expected, strict=True):
        assert_alike(ours, theirs, levels=0)
    finished = 2 * ((stop - 1) // 2)
    assert [report.step for report in watcher.reports] == list(range(finished + 1, 7))


def test_prompts_that_are_to_end_early_end_after_the_one_at_hand(
    base: DiffusionBase, loras: dict[str, LoraWeights]
) -> None:
    watcher = Watcher()
    drawn = draw_prompts(base, [loras["content"]], drawing((1.0,)), watcher, keeper=Ending())
    assert len(drawn) == 1
    assert watcher.reports[-1].step == 2


def always(folder: Path) -> FolderKeeper:
    return FolderKeeper(folder, digest="this work", every_s=0)


class Counter(Watcher):
    """Counts at every report the LoRAs in memory that say their sides, as merged ones do."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[int] = []

    def on_progress(self, progress: Progress) -> None:
        super().on_progress(progress)
        known = [each for each in gc.get_objects() if type(each) is LoraWeights]
        self.counts.append(sum(PARTS_KEY in lora.metadata for lora in known))


class Ending:
    """A keeper that wants an early end, and keeps nothing."""

    def resume(self) -> Saved | None:
        return None

    def is_due(self) -> bool:
        return False

    def keep(self, saved: Saved) -> None: ...

    def should_finish(self) -> bool:
        return True
