"""Which stages may share every pass of the U-Net: the two LoRAs of one job, and alike LoRAs of several jobs. Pure."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from api.jobs.library import SIDES
from api.jobs.models import MemoryProfile
from api.jobs.states import StageState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from api.jobs.models import Job, Stage

PARTNERS = {"content_lora": "style_lora", "style_lora": "content_lora"}
"""Stages that may share passes if both are of one job."""


def likeness(stage: str, config: Mapping[str, Any]) -> str | None:
    """Return a hash of all that trainings of several jobs must have in common to share passes; None for other stages.

    Pictures, words and seeds may differ. A training that is shown meanwhile shares no pass: others would wait for it.

    Args:
        stage: its name.
        config: `duolora.config.PersonalizeConfig` as JSON.
    """
    sides = SIDES.get(stage)
    if sides is None or config.get("preview_every"):
        return None
    training = {side: {name: value for name, value in config[side].items() if name != "seed"} for side in sides}
    common = {"stage": stage, "base": config["base_model"], "training": training}
    return hashlib.sha256(json.dumps(common, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def step_of(stage: Stage) -> int | None:
    """Return the step of the checkpoint that a stage goes on from."""
    return None if stage.checkpoint is None else int(stage.checkpoint["step"])


def share_a_past(stage: Stage, other: Stage) -> bool:
    """Say whether both stand at the same step of one pass: then only one pass of both goes on from there exactly."""
    one, two = stage.checkpoint, other.checkpoint
    if one is None or two is None or other.state is not StageState.RUNNABLE:
        return False
    return bool(one.get("paired")) and bool(two.get("paired")) and bool(one["step"] == two["step"])


def may_pair(params: Mapping[str, Any], stage: Stage, other: Stage) -> bool:
    """Say whether both LoRAs of a job, of these params, may begin a common pass though they have no common past."""
    if stage.checkpoint is not None or other.checkpoint is not None:
        one, two = stage.checkpoint or {}, other.checkpoint or {}
        if one.get("step") != two.get("step") or one.get("paired") != two.get("paired"):
            return False
    return bool(params["content"]["resolution_px"] == params["style"]["resolution_px"])


def may_have_company(job: Job, stages: Sequence[Stage]) -> bool:
    """Say whether these stages of a job may share passes with other jobs: one that is to end soon does not."""
    return job.stop_requested_at is None and all(
        stage.likeness is not None and not stage.alone and stage.memory_profile is MemoryProfile.FULL
        for stage in stages
    )


def are_alike(stages: Sequence[Stage], others: Sequence[Stage]) -> bool:
    """Say whether stages of one job can be trained in the same passes as those of another."""

    def shape(of_job: Sequence[Stage]) -> set[tuple[str | None, int | None]]:
        return {(stage.likeness, step_of(stage)) for stage in of_job}

    return len(stages) == len(others) and shape(stages) == shape(others)
