"""Interrupted anywhere and gone on with: the result is that of no interruption, to the last bit."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch

from duolora import checkpoints
from duolora.checkpoints import FolderKeeper, read_saved, write_saved
from duolora.config import PersonalizeConfig, Preservation, Prompts
from duolora.errors import Cancelled, CheckpointUnusable
from duolora.events import Progress
from duolora.keeping import Part, Saved, proceed
from duolora.personalize import train_sides, without_company
from duolora.recipes import resolve
from tests.duolora.dense import assert_same_change
from tests.duolora.watch import Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from duolora.keeping import Keeper
    from duolora.lora.weights import LoraWeights
    from duolora.models.base import DiffusionBase

    Train = Callable[..., Mapping[str, LoraWeights]]

STEPS = {"content": 4, "style": 3}


def job(*, company: float = 0.0, weight: float = 1.0, text_encoder: bool = False) -> PersonalizeConfig:
    """A training in which all that has a state takes part: warm-up, class pictures, unequal lengths."""
    prompts = Prompts(subject_class="owl", content_captions=("a sbu owl", "a sbu owl at sea"))
    settings = resolve(
        "tiny", "pico", prompts, content_steps=STEPS["content"], style_steps=STEPS["style"], rank=2, seed=5
    )
    changes = {
        "batch_size": 2,
        "company": company,
        "warmup_steps": 2,
        "flip": True,
        "text_encoder": text_encoder,
        "preservation": Preservation(weight=weight, pictures=3),
    }
    return settings.model_copy(
        update={
            "content": settings.content.model_copy(update=changes),
            "style": settings.style.model_copy(update=changes),
            "preview": settings.preview.model_copy(update={"steps": 1, "images": 2}),
        }
    )


def content(base: DiffusionBase, pictures: Mapping[str, list[Path]], **how: Any) -> Mapping[str, LoraWeights]:
    return train_sides(base, {"content": pictures["content"]}, job(), **how)


def style(base: DiffusionBase, pictures: Mapping[str, list[Path]], **how: Any) -> Mapping[str, LoraWeights]:
    return train_sides(base, {"style": pictures["style"]}, job(weight=0), **how)


def pair(base: DiffusionBase, pictures: Mapping[str, list[Path]], **how: Any) -> Mapping[str, LoraWeights]:
    return train_sides(base, pictures, without_company(job()), **how)


def loras(base: DiffusionBase, pictures: Mapping[str, list[Path]], **how: Any) -> Mapping[str, LoraWeights]:
    return train_sides(base, pictures, job(company=0.5), **how)


def texts(base: DiffusionBase, pictures: Mapping[str, list[Path]], **how: Any) -> Mapping[str, LoraWeights]:
    return train_sides(base, pictures, job(company=0.5, weight=0, text_encoder=True), **how)


@pytest.fixture
def pictures(content_pictures: list[Path], style_pictures: list[Path]) -> dict[str, list[Path]]:
    return {"content": content_pictures, "style": style_pictures}


def assert_same_bits(found: Mapping[str, LoraWeights], expected: Mapping[str, LoraWeights]) -> None:
    assert found.keys() == expected.keys()
    for side, lora in expected.items():
        assert found[side].layers.keys() == lora.layers.keys()
        for name, layer in lora.layers.items():
            assert torch.equal(found[side].layers[name].down_RI, layer.down_RI), (side, name)
            assert torch.equal(found[side].layers[name].up_OR, layer.up_OR), (side, name)


def always(folder: Path, digest: str = "this work") -> FolderKeeper:
    return FolderKeeper(folder, digest=digest, every_s=0)


@pytest.mark.parametrize("train", [content, style, pair, loras, texts])
def test_a_training_stopped_after_any_step_goes_on_to_the_same_bits(
    base: DiffusionBase, pictures: dict[str, list[Path]], tmp_path: Path, train: Train
) -> None:
    whole = Watcher()
    expected = train(base, pictures, observer=whole)
    steps = whole.reports[-1].total

    for stop in range(steps + 1):
        with pytest.raises(Cancelled):
            train(base, pictures, observer=Watcher(stop_after=stop), keeper=always(tmp_path / str(stop)))
        torch.manual_seed(stop)  # the process's own random numbers must not matter
        watcher = Watcher()
        found = train(base, pictures, observer=watcher, keeper=always(tmp_path / str(stop)))

        assert_same_bits(found, expected)
        went_on_at = min(report.step for report in watcher.reports)
        assert went_on_at in {stop, max(1, stop)}  # what draws nothing first is stopped after its first step
        assert watcher.losses == whole.losses[went_on_at:]
        assert {report.total for report in watcher.reports if report.loss} <= {steps}


def test_a_training_stopped_again_and_again_ends_in_the_same_bits(
    base: DiffusionBase, pictures: dict[str, list[Path]], tmp_path: Path
) -> None:
    expected = loras(base, pictures)

    for stop in range(1, STEPS["content"]):
        with pytest.raises(Cancelled):
            loras(base, pictures, observer=Watcher(stop_after=stop), keeper=always(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["3"]

    assert_same_bits(loras(base, pictures, keeper=always(tmp_path)), expected)


def test_class_pictures_that_were_drawn_are_not_drawn_again(
    base: DiffusionBase, pictures: dict[str, list[Path]], tmp_path: Path
) -> None:
    with pytest.raises(Cancelled):  # at the second side's first batch
        pair(
            base, pictures, observer=_StopsAt("drawing 1 of 3 pictures of the class", times=2), keeper=always(tmp_path)
        )
    kept = read_saved(tmp_path / "0", digest="this work")
    assert set(kept.parts) == {"content"}

    watcher = Watcher()
    found = pair(base, pictures, observer=watcher, keeper=always(tmp_path))

    drawn = [report.note for report in watcher.reports if "pictures of the class" in report.note]
    assert drawn == ["drawing 1 of 3 pictures of the class", "drawing 3 of 3 pictures of the class"]
    assert_same_bits(found, pair(base, pictures))


class _StopsAt:
    """Stops when it is told a note for the given time."""

    def __init__(self, note: str, times: int) -> None:
        self._note, self._left = note, times

    def on_progress(self, progress: Progress) -> None:
        self._left -= progress.note == self._note

    def should_stop(self) -> bool:
        return self._left <= 0


@pytest.mark.parametrize("damage", ["half a file", "no state", "unfinished", "half a state", "other work"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    base: DiffusionBase, pictures: dict[str, list[Path]], tmp_path: Path, damage: str
) -> None:
    for stop in (1, 2):
        with pytest.raises(Cancelled):
            style(base, pictures, observer=Watcher(stop_after=stop), keeper=always(tmp_path / str(stop)))
    folder = tmp_path / "both"
    shutil.copytree(tmp_path / "1" / "1", folder / "1")
    latest = shutil.copytree(tmp_path / "2" / "2", folder / ("2.tmp" if damage == "unfinished" else "2"))
    torn = latest / ("state.json" if damage == "half a state" else "style.safetensors")
    if damage.startswith("half"):
        torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    elif damage == "no state":
        (latest / "state.json").unlink()
    elif damage == "other work":
        state = json.loads((latest / "state.json").read_text())
        (latest / "state.json").write_text(json.dumps(state | {"digest": "that work"}))
    watcher = Watcher()

    found = style(base, pictures, observer=watcher, keeper=always(folder))

    assert_same_bits(found, style(base, pictures))
    assert watcher.reports[0].step == 1
    assert [path.name for path in folder.iterdir()] == ["3"]


@pytest.mark.parametrize("broken", [OSError("no space left on device"), KeyboardInterrupt()])
def test_a_checkpoint_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: BaseException
) -> None:
    write_saved(saved(step=1), tmp_path, digest="x")

    def fail(*_: object) -> None:
        raise broken

    monkeypatch.setattr(checkpoints, "_settled", fail)
    with pytest.raises(type(broken)):
        write_saved(saved(step=2), tmp_path, digest="x")

    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def saved(step: int = 3, **parts: Part) -> Saved:
    return Saved(step, 9, parts or {"a": Part({"t": torch.arange(3.0)}, {"words": ["x", 0.1]}), "b": Part()})


def test_a_checkpoint_comes_back_as_it_was_with_checksums_of_its_files(tmp_path: Path) -> None:
    place, files = write_saved(saved(), tmp_path, digest="x", paired=True)

    assert place == tmp_path / "3"
    assert (
        {file.name for file in files}
        == {path.name for path in place.iterdir()}
        == {
            "a.safetensors",
            "b.safetensors",
            "state.json",
        }
    )
    assert all(file.size_bytes == (place / file.name).stat().st_size and len(file.sha256) == 64 for file in files)
    found = read_saved(place, digest="x")
    assert (found.step, found.total) == (3, 9)
    assert torch.equal(found.part("a").tensor("t"), torch.arange(3.0))
    assert found.part("a").value("words") == ["x", 0.1]
    with pytest.raises(CheckpointUnusable, match="other work"):
        read_saved(place, digest="y")
    for ask in (lambda: found.part("c"), lambda: found.part("b").tensor("t"), lambda: found.part("b").value("w")):
        with pytest.raises(CheckpointUnusable):
            ask()


def test_a_checkpoint_of_another_rank_or_side_is_refused(
    base: DiffusionBase, pictures: dict[str, list[Path]], tmp_path: Path
) -> None:
    with pytest.raises(Cancelled):
        style(base, pictures, observer=Watcher(stop_after=1), keeper=always(tmp_path))
    config = job(weight=0)
    wider = config.model_copy(update={"style": config.style.model_copy(update={"rank": 3})})

    with pytest.raises(CheckpointUnusable, match="shape"):
        train_sides(base, {"style": pictures["style"]}, wider, keeper=always(tmp_path))
    with pytest.raises(CheckpointUnusable, match="no part 'content'"):
        train_sides(base, {"content": pictures["content"]}, config, keeper=always(tmp_path))


class Finishing(FolderKeeper):
    """Asks to finish from a step on; nothing is due before."""

    def __init__(self, folder: Path, after: int) -> None:
        super().__init__(folder, digest="this work", every_s=1e9)
        self._left = after

    def should_finish(self) -> bool:
        self._left -= 1
        return self._left <= 0


@pytest.mark.parametrize("train", [content, pair, loras])
def test_a_training_that_is_to_finish_ends_after_its_step_and_is_kept_there(
    base: DiffusionBase, pictures: dict[str, list[Path]], tmp_path: Path, train: Train
) -> None:
    watcher = Watcher()
    found = train(base, pictures, observer=watcher, keeper=Finishing(tmp_path, after=1))

    assert watcher.reports[-1].step == 1
    assert all(layer.up_OR.abs().max() > 0 for lora in found.values() for layer in lora.layers.values())
    again = Watcher()
    more = train(base, pictures, observer=again, keeper=Finishing(tmp_path, after=1))  # one step more, no less
    assert again.reports[-1].step == 2
    assert not torch.equal(*(next(iter(next(iter(each.values())).layers.values())).up_OR for each in (found, more)))


def test_the_end_is_kept_so_that_exporting_again_takes_no_step(
    base: DiffusionBase, pictures: dict[str, list[Path]], tmp_path: Path
) -> None:
    keeper: Keeper = FolderKeeper(tmp_path, digest="this work", every_s=1e9)
    expected = pair(base, pictures, keeper=keeper)
    assert [path.name for path in tmp_path.iterdir()] == [str(max(STEPS.values()))]

    watcher = Watcher()
    found = pair(base, pictures, observer=watcher, keeper=always(tmp_path))

    assert watcher.losses == []
    assert_same_bits(found, expected)


def test_a_side_goes_on_alone_from_a_pairs_checkpoint(
    base: DiffusionBase, pictures: dict[str, list[Path]], tmp_path: Path
) -> None:
    """Tolerance: a batch of both sides sums in another order than one side's. Style ends before content does."""
    with pytest.raises(Cancelled):
        pair(base, pictures, observer=Watcher(stop_after=STEPS["style"] + 1), keeper=always(tmp_path))
    expected = pair(base, pictures)

    found = train_sides(base, {"style": pictures["style"]}, job(), keeper=always(tmp_path))["style"]

    assert_same_change(found, expected["style"], 1e-6)
    assert_same_change(train_sides(base, {"style": pictures["style"]}, job())["style"], expected["style"], 1e-2)


def test_who_stops_for_a_while_between_the_question_and_the_keeping_loses_nothing() -> None:
    """A pause that arrives while a step is reported makes a checkpoint due before the work is stopped."""
    kept: list[int] = []

    class Pausing:
        paused = False

        def on_progress(self, _progress: Progress) -> None:
            """A report."""

        def should_stop(self) -> bool:
            was, self.paused = self.paused, True  # it arrives just after the answer
            return was

        def is_due(self) -> bool:
            return self.paused

        def resume(self) -> None:
            """Nothing to go on from."""

        def keep(self, state: Saved) -> None:
            kept.append(state.step)

        def should_finish(self) -> bool:
            return False

    control = Pausing()
    assert proceed(control, control, Progress(step=1, total=5), dict)
    with pytest.raises(Cancelled):
        proceed(control, control, Progress(step=2, total=5), dict)
    assert kept == [1, 2]
