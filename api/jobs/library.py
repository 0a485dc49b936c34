"""Results that an account has already: an identical LoRA is taken from there and not trained again. Never commits."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from api.jobs.claimed import StoredArtifact
from api.jobs.models import Artifact, Job, Stage
from api.jobs.states import StageState

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session

    from api.jobs.claimed import InputImage

SIDES: Mapping[str, tuple[str, ...]] = {
    "content_lora": ("content",),
    "style_lora": ("style",),
    "loras": ("content", "style"),
}
"""Stages whose results can be taken again, and what each trains."""


@dataclass(frozen=True, slots=True)
class Reusable:
    """A succeeded stage of another job that made the same thing."""

    job_id: uuid.UUID
    artifacts: tuple[StoredArtifact, ...]


def reuse_key(
    stage: str,
    config: Mapping[str, Any],
    images: Sequence[InputImage],
    base_revision: str | None,
    engine_version: str | None,
) -> str | None:
    """Return a hash of all that makes a stage's result; None if it is not known, or the stage trains nothing.

    Args:
        stage: its name.
        config: `duolora.config.PersonalizeConfig` as JSON.
        images: all pictures of the job, each side's in order.
        base_revision: which files the base model consists of.
        engine_version: of the engine that computes.
    """
    sides = SIDES.get(stage)
    if sides is None or base_revision is None or engine_version is None:
        return None
    draws = any(config[side]["preservation"]["weight"] > 0 for side in sides)
    made_of = {
        "stage": stage,
        "training": {side: config[side] for side in sides},
        "prompts": config["prompts"],
        "class_pictures": config["preview"] if draws else None,
        "base": [config["base_model"], base_revision],
        "engine": engine_version,
        "images": {side: [image.sha256 for image in images if image.side == side] for side in sides},
    }
    if config.get("preview_every"):
        made_of["shown"] = [config["preview_every"], config["preview"]]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def find_reusable(session: Session, *, account_id: uuid.UUID, reuse_key: str) -> Reusable | None:
    """Return the newest result of that key that the account has, None if there is none."""
    stage = session.scalars(
        select(Stage)
        .join(Job, Job.id == Stage.job_id)
        .where(Stage.account_id == account_id, Stage.reuse_key == reuse_key, Stage.state == StageState.SUCCEEDED)
        .where(Job.deletion_requested_at.is_(None))
        .order_by(Stage.finished_at.desc())
        .limit(1)
    ).first()
    if stage is None:
        return None
    artifacts = session.scalars(select(Artifact).where(Artifact.stage_id == stage.id).order_by(Artifact.name)).all()
    return Reusable(
        stage.job_id,
        tuple(StoredArtifact.of(artifact) for artifact in artifacts),
    )
