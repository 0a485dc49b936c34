"""Which stages a job has, what they wait for, and how much of the whole each is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from duolora.config import PersonalizeConfig


class JobKind(StrEnum):
    """What a job makes."""

    PERSONALIZE = "personalize"
    """A content LoRA and a style LoRA from pictures, and their merge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One stage of a job."""

    name: str
    depends_on: tuple[str, ...] = ()
    max_attempts: int = 3
    """Deaths in a row of what runs it, without the stage getting further: with so many it fails for good."""
    weight: float | None = None
    """Its share of the job's whole work; `plan` fills it in."""


def plan(kind: JobKind, config: PersonalizeConfig) -> tuple[StagePlan, ...]:
    """Return the stages of a job, each after those it waits for. A job keeps the stages that it was submitted with."""
    stages = _PLANS[kind](config)
    weights = stage_weights(config, [stage.name for stage in stages])
    return tuple(replace(stage, weight=weights[stage.name]) for stage in stages)


def _personalize(config: PersonalizeConfig) -> tuple[StagePlan, ...]:
    """Train both LoRAs, in one stage where each keeps the other company and otherwise in two that may run at once."""
    training = ("loras",) if config.trains_together else ("content_lora", "style_lora")
    return (
        *(StagePlan(name=name) for name in training),
        StagePlan(name="merge", depends_on=training),
        StagePlan(name="package", depends_on=("merge",)),
    )


_PLANS: Mapping[JobKind, Callable[[PersonalizeConfig], tuple[StagePlan, ...]]] = {JobKind.PERSONALIZE: _personalize}

MERGE_START_COST = 3.0
"""A merge also takes both LoRAs apart and writes them as one, with no step at all."""
MERGE_STEP_COST = 3.0
"""A merge step evaluates both sides and their teachers without weights' gradients: about three training samples."""
SAMPLING_STEP_COST = 0.5
"""A sampling step is two forward passes (guidance) and no backward pass, per picture."""
PREVIEWED_MODELS = 3
"""The preview draws with the content LoRA, the style LoRA and the merge."""


def stage_weights(config: PersonalizeConfig, stages: Iterable[str]) -> dict[str, float]:
    """Return each stage's share of the whole work of a `personalize` job of these stages; the shares add up to 1.

    The unit is one forward and backward pass of one picture at the stage's resolution. These are estimates for a
    progress bar, not promises.
    """
    content = float(config.content.steps * config.content.batch_size)
    style = float(config.style.steps * config.style.batch_size)
    costs = {
        "loras": content + style,
        "content_lora": content,
        "style_lora": style,
        "merge": MERGE_START_COST + config.merge.steps * config.merge.batch_size * MERGE_STEP_COST,
        "package": PREVIEWED_MODELS * config.preview.images * config.preview.steps * SAMPLING_STEP_COST,
    }
    cost = {name: costs[name] for name in stages}
    whole = sum(cost.values())
    return {name: value / whole for name, value in cost.items()}
