"""What a stage says of its work in the job's log. Jobs that share passes read the same words, so none of one's own."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duolora.config import GenerateConfig, LoraTrainConfig
    from duolora.job_configs import GenerateJobConfig
    from duolora.models.base import DiffusionBase

log = logging.getLogger("worker.engine")


def tell_of_training(base: DiffusionBase, sides: Mapping[str, LoraTrainConfig], jobs: int) -> None:
    """Say what is about to be learnt, how, and where."""
    for side, config in sides.items():
        log.info(
            "learning %s: %d steps at %d px, batch %d, rank %d, learning rate %g",
            side,
            config.steps,
            config.resolution_px,
            config.batch_size,
            config.rank,
            config.learning_rate,
        )
    log.info("on %s in %s, memory profile %s", base.runtime.device, _dtype(base), base.memory.name)
    if jobs > 1:
        log.info("passes are shared with other jobs (%d in all)", jobs)


def tell_of_merge(report: Mapping[str, Any]) -> None:
    """Say how it was merged and how many ranks are left of either side."""
    kept: dict[str, list[int]] = {}
    for layer in report["layers"].values():
        for side, entry in layer.items():
            if side != "role":
                counts = kept.setdefault(side, [0, 0])
                counts[0] += entry["kept"]
                counts[1] += entry["rank"]
    ranks = ", ".join(f"{some} of {all_} ranks of {side}" for side, (some, all_) in kept.items())
    log.info("merged by %s, begun with masks %s: kept %s", report["method"], report["start"], ranks)


def tell_of_preview(config: GenerateConfig) -> None:
    """Say what is about to be drawn."""
    log.info(
        "drawing %d pictures with each LoRA: %d steps at %d px, guidance %g",
        config.images,
        config.steps,
        config.resolution_px,
        config.guidance_scale,
    )


def tell_of_prompts(config: GenerateJobConfig) -> None:
    """Say what is about to be drawn of prompts; not the prompts themselves."""
    log.info(
        "drawing %d pictures of each of %d prompts with %d LoRAs: %d steps at %d px, guidance %g",
        config.sampling.images,
        len(config.prompts),
        len(config.strengths),
        config.sampling.steps,
        config.sampling.resolution_px,
        config.sampling.guidance_scale,
    )


def _dtype(base: DiffusionBase) -> str:
    """Return the name of the base's dtype."""
    return str(base.runtime.dtype).removeprefix("torch.")
