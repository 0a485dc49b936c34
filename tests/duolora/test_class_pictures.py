from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from duolora.class_pictures import with_class_pictures
from duolora.config import PersonalizeConfig, Preservation, Prompts
from duolora.errors import Cancelled
from duolora.generate import sample_tenants
from duolora.lora_task import LoraTask
from duolora.personalize import train_sides
from duolora.recipes import resolve
from tests.duolora.watch import Watcher

if TYPE_CHECKING:
    from pathlib import Path

    from duolora.models.base import DiffusionBase


def preserving_config(*, weight: float = 1.0, pictures: int = 3, at_once: int = 2) -> PersonalizeConfig:
    settings = resolve("tiny", "pico", Prompts(subject_class="owl"), content_steps=2, style_steps=2, rank=2, seed=5)
    changes = {"batch_size": 1, "preservation": Preservation(weight=weight, pictures=pictures)}
    return settings.model_copy(
        update={
            "content": settings.content.model_copy(update=changes),
            "style": settings.style.model_copy(update=changes),
            "preview": settings.preview.model_copy(update={"steps": 2, "images": at_once}),
        }
    )


def side_task(side: str, pictures: list[Path], config: PersonalizeConfig) -> LoraTask:
    settings = config.content if side == "content" else config.style
    return LoraTask(side, pictures, ["a sbu owl"] * len(pictures), settings)


@pytest.mark.parametrize(("side", "caption"), [("content", "an owl"), ("style", "a picture")])
def test_class_pictures_are_what_the_base_draws_of_the_class(
    base: DiffusionBase, content_pictures: list[Path], side: str, caption: str
) -> None:
    config = preserving_config()

    preserved = with_class_pictures(base, side_task(side, content_pictures, config), config).preserved
    again = with_class_pictures(base, side_task(side, content_pictures, config), config).preserved

    assert preserved is not None
    assert again is not None
    assert preserved.caption == caption
    assert preserved.moments.mean_BCHW.shape == (3, 4, 8, 8)
    assert torch.equal(preserved.moments.mean_BCHW, again.moments.mean_BCHW)
    seed = side_task(side, content_pictures, config).seed("class pictures from 0")
    drawn = sample_tenants(base, None, [[caption] * 2], config.preview, [seed])[0]
    expected = base.encode_pictures(drawn.clamp(-1, 1))
    torch.testing.assert_close(preserved.moments.mean_BCHW[:2], expected.mean_BCHW)
    torch.testing.assert_close(preserved.moments.std_BCHW[:2], expected.std_BCHW)
    assert len(preserved.moments.mean_BCHW.flatten(1).unique(dim=0)) == 3, "two pictures are the same"


def test_nothing_is_drawn_where_nothing_is_preserved(base: DiffusionBase, content_pictures: list[Path]) -> None:
    config, watcher = preserving_config(weight=0), Watcher()
    task = side_task("content", content_pictures, config)

    assert with_class_pictures(base, task, config, watcher) is task
    assert watcher.reports == []


def test_drawing_is_reported_before_the_first_step_and_can_be_stopped(
    base: DiffusionBase, content_pictures: list[Path]
) -> None:
    config = preserving_config()
    task, watcher = side_task("content", content_pictures, config), Watcher()

    with_class_pictures(base, task, config, watcher)

    assert [(report.step, report.total, report.note) for report in watcher.reports] == [
        (0, 2, "drawing 1 of 3 pictures of the class"),
        (0, 2, "drawing 3 of 3 pictures of the class"),
    ]
    with pytest.raises(Cancelled):
        with_class_pictures(base, task, config, Watcher(stop_after=0))


def test_jobs_train_with_their_class_pictures(base: DiffusionBase, pictures: dict[str, list[Path]]) -> None:
    plain, kept = (
        {
            "alone": train_sides(base, {"content": pictures["content"]}, config)["content"],
            **train_sides(base, pictures, config),
        }
        for config in (preserving_config(weight=0), preserving_config())
    )

    for name, lora in kept.items():
        settings = PersonalizeConfig.model_validate_json(lora.metadata["duolora.config"])
        assert settings.content.preservation == Preservation(weight=1, pictures=3)
        assert any(
            not torch.allclose(layer.up_OR, plain[name].layers[layer_name].up_OR, rtol=1e-2)
            for layer_name, layer in lora.layers.items()
        ), name
