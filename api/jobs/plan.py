"""Which stages a job has, what they wait for, and how much of the whole each is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from duolora.job_configs import GenerateJobConfig, Merging, Training

if TYPE_CHECKING:
    from collections.abc import Iterable

    from duolora.job_configs import JobConfig


class JobKind(StrEnum):
    """What a job makes."""

    PERSONALIZE = "personalize"
    """A content LoRA and a style LoRA from pictures, and their merge."""
    TRAIN = "train"
    """A content LoRA, or a style LoRA, or both, from pictures."""
    MERGE = "merge"
    """One LoRA of two that the account has."""
    GENERATE = "generate"
    """Pictures of prompts, drawn with LoRAs that the account has."""

    @property
    def takes_loras(self) -> bool:
        """Whether jobs of this kind work with LoRAs of the library."""
        return self in {JobKind.MERGE, JobKind.GENERATE}


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One stage of a job."""

    name: str
    depends_on: tuple[str, ...] = ()
    max_attempts: int = 3
    """Deaths in a row of what runs it, without the stage getting further: with so many it fails for good."""
    weight: float | None = None
    """Its share of the job's whole work; `plan` fills it in."""


def plan(config: JobConfig) -> tuple[StagePlan, ...]:
    """Return the stages of a job, each after those it waits for. A job keeps the stages that it was submitted with."""
    stages = _stages(config)
    weights = stage_weights(config, [stage.name for stage in stages])
    return tuple(replace(stage, weight=weights[stage.name]) for stage in stages)


def _stages(config: JobConfig) -> tuple[StagePlan, ...]:
    """Return the stages without their weights.

    Two LoRAs are trained in one stage where each keeps the other company, and otherwise in two that may run at once.
    """
    if isinstance(config, GenerateJobConfig):
        return (StagePlan(name="generate"),)
    training: tuple[str, ...] = ()
    if isinstance(config, Training):
        training = ("loras",) if config.trains_together else tuple(f"{side}_lora" for side in config.sides)
    stages = tuple(StagePlan(name=name) for name in training)
    if isinstance(config, Merging):
        stages += (StagePlan(name="merge", depends_on=training),)
    return (*stages, StagePlan(name="package", depends_on=("merge",) if isinstance(config, Merging) else training))


MERGE_START_COST = 3.0
"""A merge also takes both LoRAs apart and writes them as one, with no step at all."""
MERGE_STEP_COST = 3.0
"""A merge step evaluates both sides and their teachers without weights' gradients: about three training samples."""
SAMPLING_STEP_COST = 0.5
"""A sampling step is two forward passes (guidance) and no backward pass, per picture."""
PREVIEWED_MODELS = 3
"""The preview draws with the content LoRA, the style LoRA and the merge."""


def stage_weights(config: JobConfig, stages: Iterable[str]) -> dict[str, float]:
    """Return each stage's share of the whole work of a job of these stages; the shares add up to 1.

    The unit is one forward and backward pass of one picture at the stage's resolution. These are estimates for a
    progress bar, not promises.
    """
    costs = _costs(config)
    cost = {name: costs[name] for name in stages}
    whole = sum(cost.values())
    return {name: value / whole for name, value in cost.items()}


def _costs(config: JobConfig) -> dict[str, float]:
    """Return what the stages cost that such a job can have."""
    if isinstance(config, GenerateJobConfig):
        drawn = len(config.prompts) * config.sampling.images
        return {"generate": drawn * config.sampling.steps * SAMPLING_STEP_COST}
    costs: dict[str, float] = {}
    if isinstance(config, Training):
        sides = {side: config.of_side(side) for side in config.sides}
        costs = {f"{side}_lora": float(own.steps * own.batch_size) for side, own in sides.items()}
        costs["loras"] = sum(costs.values())
    drawn = (PREVIEWED_MODELS if isinstance(config, Merging) else len(costs) - 1) * config.preview.images
    if isinstance(config, Merging):
        costs["merge"] = MERGE_START_COST + config.merge.steps * config.merge.batch_size * MERGE_STEP_COST
        drawn += config.slider
    costs["package"] = drawn * config.preview.steps * SAMPLING_STEP_COST
    return costs
