"""The pictures that a job draws to be looked at: its preview, its slider, those of prompts.

Drawn in turn, in samplings of several pictures each; a checkpoint has the pictures of all that have ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from duolora.events import Observer, Segment, Silent
from duolora.generate import generate, sample_tenants
from duolora.images import open_pictures, picture_bytes, pictures_of_bytes, to_pictures
from duolora.job_configs import TrainJobConfig
from duolora.keeping import Keeper, Part, Saved, kept_when_stopped, resumed
from duolora.lora.carry import split
from duolora.method.merge_case import CONTENT, STYLE
from duolora.preview import PreviewRow, preview_grid
from duolora.slider import slider_strengths
from duolora.strengths import added, faded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from PIL import Image
    from torch import Tensor

    from duolora.config import GenerateConfig, PersonalizeConfig, Prompts
    from duolora.job_configs import GenerateJobConfig, MergeJobConfig, Training
    from duolora.lora.weights import LoraWeights
    from duolora.models.base import DiffusionBase

_DRAWN = "preview"
"""The one part of the checkpoints."""
MERGED = "merged"
_SLIDER = "slider"
_SENT = {
    CONTENT: ("Content images", "what you sent as the subject"),
    STYLE: ("Style images", "what you sent as the style"),
}
MOST_ROWS = 8
"""Prompts that the preview of a job shows."""


@dataclass(frozen=True, slots=True)
class Results:
    """What a job shows of its LoRAs.

    Attributes:
        preview: the labelled grid.
        drawn: name of a LoRA -> the pictures drawn with it.
        slider: pictures of the merge, from all content to all style.
    """

    preview: Image.Image
    drawn: Mapping[str, Sequence[Image.Image]]
    slider: Sequence[Image.Image]


@dataclass(frozen=True, slots=True)
class _Sampling:
    """Pictures that are drawn at once; `name` is theirs in the checkpoints."""

    name: str
    note: str
    draw: Callable[[Observer], list[Image.Image]]


def draw_results(
    base: DiffusionBase,
    loras: Mapping[str, LoraWeights],
    pictures: Mapping[str, Sequence[Path]],
    config: PersonalizeConfig | TrainJobConfig | MergeJobConfig,
    observer: Observer | None = None,
    *,
    keeper: Keeper | None = None,
) -> Results:
    """Draw with the LoRAs that a job made or merged.

    Args:
        base: the base model.
        loras: "content", "style" and "merged", or those of them that there are; a slider needs "merged".
        pictures: the job's own pictures, of the sides that have any.
        config: the job's configuration.
        observer: receives progress over all samplings.
        keeper: keeps the pictures of finished samplings, so that they are not drawn again.

    Raises what `generate` raises, and CheckpointUnusable.
    """
    preview, shown = config.preview, _shown(loras, config.prompts)
    samplings = [
        _Sampling(
            name,
            f"drawing with the {title[0].lower()}{title[1:]}",
            partial(_generate, base, prompt, preview, loras[name]),
        )
        for name, (title, prompt) in shown.items()
    ]
    positions = 0 if isinstance(config, TrainJobConfig) else config.slider
    fades = _slider_samplings(base, loras[MERGED], positions, config.prompts.joint, preview) if positions else []
    drawn = _draw_in_turn([*samplings, *fades], preview.steps, observer or Silent(), keeper)
    rows = [PreviewRow(*_SENT[side], open_pictures(pictures[side])) for side in (CONTENT, STYLE) if side in pictures]
    rows += [PreviewRow(title, f'"{prompt}"', drawn[name]) for name, (title, prompt) in shown.items()]
    slider = [picture for fade in fades for picture in drawn[fade.name]]
    return Results(preview_grid(rows, columns=preview.images), {name: drawn[name] for name in shown}, slider)


def draw_training(
    base: DiffusionBase, learnt: Mapping[str, LoraWeights], config: Training, step: int, observer: Observer
) -> Image.Image:
    """Draw with what a training has learnt of one side by some step, as its preview will, labelled.

    Raises what `generate` raises.
    """
    [(name, (title, prompt))] = _shown(learnt, config.prompts).items()
    pictures = generate(base, [prompt], config.preview, learnt[name], observer)
    return preview_grid([PreviewRow(f"{title}, step {step}", f'"{prompt}"', pictures)], columns=config.preview.images)


def _shown(loras: Mapping[str, LoraWeights], prompts: Prompts) -> dict[str, tuple[str, str]]:
    """Return title and prompt by LoRA, of those that there are."""
    known = {
        CONTENT: ("Content LoRA alone", prompts.content),
        STYLE: ("Style LoRA alone", prompts.style_of_class),
        MERGED: ("Merged LoRA", prompts.joint),
    }
    return {name: words for name, words in known.items() if name in loras}


def _slider_samplings(
    base: DiffusionBase, merged: LoraWeights, positions: int, prompt: str, config: GenerateConfig
) -> list[_Sampling]:
    """Return the samplings of one picture at each position, all from the same noise; one batch if passes are shared.

    A faded LoRA is many times as large as its file, so there is none but while it is drawn with.
    """
    single, note = config.model_copy(update={"images": 1}), "drawing from all content to all style"
    fades = slider_strengths(positions)

    def draw_all(observer: Observer) -> list[Image.Image]:
        loras = [faded(merged, strengths) for strengths in fades]
        prompts, seeds = [[prompt]] * positions, [config.seed] * positions
        rgb_J13HW = sample_tenants(base, loras, prompts, single, seeds, observer=observer)
        return to_pictures(rgb_J13HW.flatten(0, 1))

    def draw_one(strengths: Mapping[str, float], observer: Observer) -> list[Image.Image]:
        return _generate(base, prompt, single, faded(merged, strengths), observer)

    if base.memory.shares_passes and split(merged).carried is None:
        return [_Sampling(_SLIDER, note, draw_all)]
    return [_Sampling(f"{_SLIDER}{place}", note, partial(draw_one, strengths)) for place, strengths in enumerate(fades)]


def _generate(
    base: DiffusionBase, prompt: str, config: GenerateConfig, lora: LoraWeights | None, observer: Observer
) -> list[Image.Image]:
    return generate(base, [prompt], config, lora, observer)


def draw_prompts(
    base: DiffusionBase,
    loras: Sequence[LoraWeights],
    config: GenerateJobConfig,
    observer: Observer | None = None,
    *,
    keeper: Keeper | None = None,
) -> list[list[Image.Image]]:
    """Draw the pictures of every prompt with all LoRAs at once; fewer prompts if the keeper wants the work to end.

    Raises what `generate` raises, and CheckpointUnusable.
    """
    lora = added(list(zip(loras, config.strengths, strict=True)))
    samplings = [
        _Sampling(
            f"{place:03d}",
            f"drawing prompt {place + 1} of {len(config.prompts)}",
            partial(_generate, base, prompt, config.sampling, lora),
        )
        for place, prompt in enumerate(config.prompts)
    ]
    drawn = _draw_in_turn(samplings, config.sampling.steps, observer or Silent(), keeper, many=True)
    return [drawn[name] for name in sorted(drawn)]


def prompts_preview(config: GenerateJobConfig, drawn: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Return the labelled grid of what was drawn: a row for each of the first prompts."""
    rows = [
        PreviewRow(f"Prompt {place + 1}", f'"{prompt}"', pictures)
        for place, (prompt, pictures) in enumerate(zip(config.prompts, drawn, strict=False))
    ]
    return preview_grid(rows[:MOST_ROWS])


def _draw_in_turn(
    samplings: Sequence[_Sampling],
    steps: int,
    observer: Observer,
    keeper: Keeper | None,
    *,
    many: bool = False,
) -> dict[str, list[Image.Image]]:
    """Draw what a checkpoint does not have yet; every sampling takes `steps` steps.

    What the checkpoint has of samplings that are not among these is left out: another memory profile draws a slider in
    others.

    Of `many`, which may end early, a checkpoint is kept when one is due; of few, after each.
    """
    saved, total = resumed(keeper), len(samplings) * steps
    names = {sampling.name for sampling in samplings}
    kept = {} if saved is None else saved.part(_DRAWN).tensors
    drawn: dict[str, Tensor] = {name: bytes_NHWC for name, bytes_NHWC in kept.items() if name in names}

    def state() -> Saved | None:
        return Saved(len(drawn) * steps, total, {_DRAWN: Part(drawn)}) if drawn else None

    with kept_when_stopped(keeper, state):
        for place, sampling in enumerate(samplings):
            if sampling.name in drawn:
                continue
            if many and keeper is not None and drawn and keeper.should_finish():
                break
            part = Segment(observer, before=place * steps, total=total, note=sampling.note)
            drawn[sampling.name] = picture_bytes(sampling.draw(part))
            if keeper is not None and place + 1 < len(samplings) and (not many or keeper.is_due()):
                keeper.keep(Saved((place + 1) * steps, total, {_DRAWN: Part(drawn)}))
    return {name: pictures_of_bytes(bytes_NHWC) for name, bytes_NHWC in drawn.items()}
