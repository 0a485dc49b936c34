"""A training that is shown meanwhile is the training that it would have been, stopped anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from duolora.checkpoints import FolderKeeper
from duolora.config import Prompts
from duolora.errors import Cancelled
from duolora.events import Observer, Progress, advance
from duolora.job_configs import TrainJobConfig
from duolora.personalize import TrainingJob, train_jobs
from duolora.recipes import resolve
from duolora.training_previews import train_showing
from tests.duolora.watch import Watcher

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from duolora.keeping import Saved
    from duolora.lora.weights import LoraWeights
    from duolora.models.base import DiffusionBase
    from duolora.training_previews import Loras

STEPS, EVERY = 7, 3


def job(pictures: Mapping[str, list[Path]], *sides: str, preserves: float = 0.0) -> TrainingJob:
    whole = resolve("tiny", "pico", Prompts(subject_class="disc"), content_steps=STEPS, style_steps=5, rank=2, seed=8)
    document = whole.model_dump()
    for side in ("content", "style"):
        document[side] |= {"batch_size": 1, "preservation": {"weight": preserves, "pictures": 1}}
    document["preview"] |= {"steps": 1, "images": 1}
    config = TrainJobConfig.of(type(whole).model_validate(document), sides)
    return TrainingJob({side: pictures[side] for side in sides}, config)


class Shows:
    """Remembers what it was shown; takes a step of its own."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def __call__(self, step: int, loras: Loras, observer: Observer) -> None:
        assert loras[0]
        advance(observer, Progress(step=1, total=1))
        self.steps.append(step)


def assert_same_bits(found: Mapping[str, LoraWeights], expected: Mapping[str, LoraWeights]) -> None:
    assert found.keys() == expected.keys()
    for side, lora in expected.items():
        assert all(torch.equal(found[side].layers[name].up_OR, layer.up_OR) for name, layer in lora.layers.items())


@pytest.mark.parametrize("sides", [("content",), ("content", "style")])
@pytest.mark.parametrize("preserves", [0.0, 1.0])
def test_what_is_learnt_is_the_same_to_the_bit(
    base: DiffusionBase, pictures: dict[str, list[Path]], sides: tuple[str, ...], preserves: float
) -> None:
    training, shows, watcher = job(pictures, *sides, preserves=preserves), Shows(), Watcher()
    [found] = train_showing(base, [training], shows, watcher, every=EVERY)
    assert_same_bits(found, train_jobs(base, [training])[0])
    assert shows.steps == [3, 6]
    taken = [report.step for report in watcher.reports if report.note == "training"]
    assert taken == list(range(1, STEPS + 1))


@pytest.mark.parametrize("stop", range(1, STEPS))
def test_one_that_was_stopped_goes_on_and_is_shown_what_is_due_and_to_come(
    base: DiffusionBase, pictures: dict[str, list[Path]], tmp_path: Path, stop: int
) -> None:
    training = job(pictures, "content")
    expected = train_jobs(base, [training])[0]
    with pytest.raises(Cancelled):
        train_showing(base, [training], Shows(), Watcher(stop_after=stop), every=EVERY, keeper=always(tmp_path))
    shows = Shows()
    [found] = train_showing(base, [training], shows, every=EVERY, keeper=always(tmp_path))
    assert_same_bits(found, expected)
    assert shows.steps == [step for step in (3, 6) if step >= stop]


def stopped(*_: object) -> None:
    """Is stopped before it has shown anything."""
    raise Cancelled("stopped")


def test_one_that_was_stopped_while_it_was_shown_is_shown_that_once_it_goes_on(
    base: DiffusionBase, pictures: dict[str, list[Path]], tmp_path: Path
) -> None:
    training, shows = job(pictures, "content"), Shows()
    for _ in range(2):
        with pytest.raises(Cancelled):
            train_showing(base, [training], stopped, every=EVERY, keeper=always(tmp_path))
    [found] = train_showing(base, [training], shows, every=EVERY, keeper=always(tmp_path))
    assert_same_bits(found, train_jobs(base, [training])[0])
    assert shows.steps == [3, 6]


def test_what_was_shown_is_not_shown_again(
    base: DiffusionBase, pictures: dict[str, list[Path]], tmp_path: Path
) -> None:
    training, first, second = job(pictures, "content"), Shows(), Shows()
    with pytest.raises(Cancelled):
        train_showing(base, [training], first, Watcher(stop_after=4), every=EVERY, keeper=always(tmp_path))
    train_showing(base, [training], second, every=EVERY, keeper=always(tmp_path))
    assert (first.steps, second.steps) == ([3], [6])


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_state_that_does_not_say_what_was_shown_is_gone_on_from(
    base: DiffusionBase, pictures: dict[str, list[Path]], tmp_path: Path, stop: int
) -> None:
    training, shows = job(pictures, "content"), Shows()
    with pytest.raises(Cancelled):
        train_jobs(base, [training], Watcher(stop_after=stop), keeper=always(tmp_path))
    [found] = train_showing(base, [training], shows, every=EVERY, keeper=always(tmp_path))
    assert_same_bits(found, train_jobs(base, [training])[0])
    assert shows.steps == [step for step in (3, 6) if step >= stop]


def test_one_that_is_to_end_early_ends_and_is_kept(base: DiffusionBase, pictures: dict[str, list[Path]]) -> None:
    shows, keeper = Shows(), EndsAt(4)
    [found] = train_showing(base, [job(pictures, "content")], shows, keeper, every=EVERY, keeper=keeper)
    assert shows.steps == [3]
    assert found["content"].layers
    assert keeper.kept == [4]


def always(folder: Path) -> FolderKeeper:
    return FolderKeeper(folder, digest="this work", every_s=0)


class EndsAt(Watcher):
    """A keeper that wants an end after some step; it hears of steps as an observer does."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.kept: list[int] = []
        self._step = step

    def resume(self) -> Saved | None:
        return None

    def is_due(self) -> bool:
        return False

    def keep(self, saved: Saved) -> None:
        self.kept.append(saved.step)

    def should_finish(self) -> bool:
        return self.reports[-1].step >= self._step
