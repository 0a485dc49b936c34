"""The steps of a job over pictures and LoRAs; the service, the command line and notebooks share them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from duolora.baselines import duolora_release
from duolora.class_pictures import all_with_class_pictures
from duolora.config import MergeMethod
from duolora.errors import InvalidConfig
from duolora.lora_task import LoraTask
from duolora.merge import MergeResult, MergeSide, merge_case, merge_loras, with_carried
from duolora.method.merge_case import CONTENT, SIDES, role_of
from duolora.train import train_tenants

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from duolora.config import Prompts
    from duolora.events import Observer
    from duolora.job_configs import JobConfig, Merging, Training
    from duolora.keeping import Keeper
    from duolora.lora.weights import LoraWeights
    from duolora.models.base import DiffusionBase


def captions(side: str, prompts: Prompts, count: int) -> list[str]:
    """Return the captions of one side's pictures."""
    of_picture = prompts.content_picture if side == CONTENT else prompts.style
    return [of_picture(index) for index in range(count)]


def train_sides(
    base: DiffusionBase,
    pictures: Mapping[str, Sequence[Path]],
    config: Training,
    observer: Observer | None = None,
    *,
    keeper: Keeper | None = None,
) -> dict[str, LoraWeights]:
    """Train the LoRAs of the sides whose pictures are given, in one pass, with the class pictures they are to preserve.

    Both sides are trained in as much company as the configuration says; one alone has none, as its file then says.
    Takes and raises what `duolora.train.train_loras` does.
    """
    return train_jobs(base, [TrainingJob(pictures, config)], observer, keeper=keeper)[0]


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """One job's part of a training: pictures of the sides to train, and its configuration."""

    pictures: Mapping[str, Sequence[Path]]
    config: Training


def train_jobs(
    base: DiffusionBase,
    jobs: Sequence[TrainingJob],
    observer: Observer | None = None,
    *,
    keeper: Keeper | None = None,
    until: int | None = None,
) -> list[dict[str, LoraWeights]]:
    """Train the LoRAs of several jobs in the same passes, each as `train_sides` trains one job's.

    Takes and raises what `duolora.train.train_tenants` does; a job is a tenant.
    """
    configs = [job.config if len(job.pictures) > 1 else without_company(job.config) for job in jobs]
    tenants = [
        ([_task(side, job.pictures[side], config) for side in SIDES if side in job.pictures], config)
        for job, config in zip(jobs, configs, strict=True)
    ]
    tasks = all_with_class_pictures(base, tenants, observer, keeper=keeper)
    trained = train_tenants(base, tasks, observer, keeper=keeper, until=until)
    return [
        {side: _signed(weights, side, config) for side, weights in loras.items()}
        for loras, config in zip(trained, configs, strict=True)
    ]


def without_company(config: Training) -> Training:
    """Return the configuration of sides that are trained without each other: in one pass or apart, they come out alike.

    Their files differ by rounding only.
    """
    apart = {side: config.of_side(side).model_copy(update={"company": 0.0}) for side in config.sides}
    return config.model_copy(update=apart)


def _task(side: str, pictures: Sequence[Path], config: Training) -> LoraTask:
    """Return the training of one side."""
    return LoraTask(side, pictures, captions(side, config.prompts, len(pictures)), config.of_side(side))


def _signed(trained: LoraWeights, side: str, config: Training) -> LoraWeights:
    """Return one side's LoRA with the words that its files carry."""
    prompts = config.prompts
    trigger = prompts.content if side == CONTENT else f"in {prompts.style_trigger} style"
    own = config.of_side(side)
    words = provenance(config, title=f"{side} LoRA", trigger=trigger, seed=own.seed, resolution_px=own.resolution_px)
    return trained.with_metadata(**words)


def merge_sides(
    base: DiffusionBase,
    loras: Mapping[str, LoraWeights],
    pictures: Mapping[str, Sequence[Path]],
    config: Merging,
    observer: Observer | None = None,
    *,
    strengths: Mapping[str, float] | None = None,
    keeper: Keeper | None = None,
) -> MergeResult:
    """Merge the two LoRAs of a job, or more.

    Args:
        base: the base model.
        loras: "content" and "style"; further ones begin with their role ("style-2").
        pictures: those of every side; a merge that learns nothing needs none.
        config: the job's configuration.
        observer: receives progress.
        strengths: side -> factor of that side in the result; 1 where not given.
        keeper: keeps checkpoints of a merge that takes steps.

    Raises what `merge_loras` raises, and InvalidConfig for more sides than the way of merging takes.
    """
    _require_fitting_sides(loras, config)
    prompts, resolution_px = config.prompts, config.resolution_px
    sides = {}
    for side, weights in loras.items():
        own = pictures.get(side, ())
        words = captions(role_of(side).value, prompts, len(own))
        sides[side] = MergeSide(weights, own, words, (strengths or {}).get(side, 1.0))
    if config.merge.method is MergeMethod.RELEASE:
        case = merge_case(base, sides, prompts.joint, config.merge, resolution_px=resolution_px)
        released = duolora_release.merge_as_job(base, case, steps=config.merge.steps, observer=observer, keeper=keeper)
        carried = with_carried(released.weights, {side: sides[side] for side in SIDES})  # the release's own order
        result = MergeResult(carried, released.report)
    else:
        result = merge_loras(
            base,
            sides,
            prompts.joint,
            config.merge,
            resolution_px=resolution_px,
            observer=observer,
            keeper=keeper,
        )
    title = "content and style, merged by DuoLoRA"
    signed = provenance(config, title=title, trigger=prompts.joint, seed=config.merge.seed, resolution_px=resolution_px)
    merged_from = ", ".join(weights.metadata.get("modelspec.title", side) for side, weights in loras.items())
    return MergeResult(result.weights.with_metadata(**signed, **{"modelspec.merged_from": merged_from}), result.report)


def _require_fitting_sides(sides: Collection[str], config: Merging) -> None:
    """Refuse sides that the way of merging would drop or teach with another side's words.

    Raises:
        InvalidConfig: with what to do instead.
    """
    if config.merge.method is MergeMethod.RELEASE and set(sides) != set(SIDES):
        raise InvalidConfig(
            f"the release merges one content and one style LoRA; the sides of this merge are {', '.join(sides)}: "
            "merge these with the merge recipe duolora"
        )
    if config.merge.needs_pictures and len({role_of(side) for side in sides}) < len(sides):
        raise InvalidConfig(
            f"this merge learns from captions, and of {', '.join(sides)} at least two would be taught with the same "
            "words; merge more than one content and one style LoRA with the merge recipe duolora"
        )


def provenance(
    config: Training | Merging, *, title: str, trigger: str, seed: int, resolution_px: int
) -> dict[str, str]:
    """Header entries that say what made a file: ModelSpec words, and our own under `duolora.`."""
    return {
        "modelspec.title": title,
        "modelspec.trigger_phrase": trigger,
        "modelspec.date": datetime.now(UTC).isoformat(timespec="seconds"),
        "modelspec.resolution": f"{resolution_px}x{resolution_px}",
        "duolora.version": version("duolora"),
        "duolora.recipe": config.recipe,
        "duolora.base_model": config.base_model,
        "duolora.seed": str(seed),
        "duolora.config": config.model_dump_json(),
    }


def job_report(base: DiffusionBase, config: JobConfig, **made: object) -> dict[str, Any]:
    """Return what a job's report file says: configuration, versions, and what else there is to tell by name."""
    return {
        "version": version("duolora"),
        "device": str(base.runtime.device),
        "memory_profile": base.memory.name,
        "config": config.model_dump(mode="json"),
        **made,
    }
