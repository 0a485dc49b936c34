"""What a worker writes about a stage while it runs: signs of life, progress, checkpoints, lines of its log.

Every write brings the fencing token and raises `LeaseLost`, changing nothing, once the database has decided otherwise.
Never commits.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, insert, select, update

from api.accounts.quotas import add_stored
from api.errors import LeaseLost
from api.jobs.events import EventType, record_event
from api.jobs.locking import instant
from api.jobs.models import Artifact, Job, LogLine, Stage, StageAttempt
from api.jobs.pace import steps_per_second

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping, Sequence
    from datetime import datetime, timedelta

    from sqlalchemy.orm import Session

    from api.jobs.claimed import StoredArtifact

MAX_LOG_LINES = 1000
"""Of one attempt; the line after the last says that there were more."""
MAX_LOG_MESSAGE = 2000


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The answer to a sign of life: what the job's owner asked for."""

    cancel_requested: bool
    stop_requested: bool = False


@dataclass(frozen=True, slots=True)
class LogEntry:
    """Something that the job's owner may read about a stage."""

    at: datetime
    level: str
    message: str


def heartbeat(session: Session, *, stage_id: uuid.UUID, fencing_token: uuid.UUID, lease: timedelta) -> Heartbeat:
    """Prolong the lease and hear whether the caller wants to cancel or to stop early.

    Raises:
        LeaseLost: the stage is no longer held by this token.
    """
    job_id = session.scalar(
        update(Stage)
        .where(Stage.id == stage_id, Stage.fencing_token == fencing_token)
        .values(heartbeat_at=func.now(), lease_expires_at=func.now() + lease)
        .returning(Stage.job_id)
        .execution_options(synchronize_session=False)
    )
    if job_id is None:
        raise LeaseLost(f"stage {stage_id} is not held by this token")
    cancel_at, stop_at = session.execute(
        select(Job.cancel_requested_at, Job.stop_requested_at).where(Job.id == job_id)
    ).one()
    return Heartbeat(cancel_requested=cancel_at is not None, stop_requested=stop_at is not None)


def record_progress(
    session: Session, *, stage_id: uuid.UUID, fencing_token: uuid.UUID, progress: dict[str, Any], tell: bool = False
) -> None:
    """Keep the newest report of a running stage: `step`, `total`, and whatever else the worker says.

    Adds `at`, and under `since` the first report of the same count, from which the rate is taken: a stage that begins
    to count anew (pictures first, then training steps) begins a new rate.

    Args:
        session: an open transaction; with `tell` it holds the job's lock from here on, so tell of the last stage last.
        stage_id: the stage.
        fencing_token: proof that the worker still holds it.
        progress: the report.
        tell: whether it also becomes an event.

    Raises:
        LeaseLost: the stage is no longer held by this token.
    """
    stage = _held(session, stage_id, fencing_token)
    now = instant(session)
    before, at = stage.progress or {}, now.timestamp()
    same_count = before.get("total") == progress.get("total") and before.get("step", 0) <= progress.get("step", 0)
    since = before.get("since") if same_count else None
    if since is None and progress.get("step", 0) > 0:
        since = {"step": progress["step"], "at": at}
    stage.progress = {**progress, "at": at, "since": since}
    if tell:
        _tell_progress(session, stage, now)


def record_checkpoint(
    session: Session, *, stage_id: uuid.UUID, fencing_token: uuid.UUID, checkpoint: dict[str, Any]
) -> dict[str, Any] | None:
    """Let a later attempt go on from here; returns the pointer that nothing needs any more.

    That is the one it replaces, or the new one itself if the stage has been further already. What it names in the store
    may be deleted after the commit, but for files that the stage's pointer names as well. A checkpoint of a later step
    than before empties the counts of failures: the stage has got further.

    Args:
        session: an open transaction.
        stage_id: the stage.
        fencing_token: proof that the worker still holds it.
        checkpoint: `step`, `total`, `attempt`, `paired`, `at`, and `files` (`name`, `key`, `sha256`, `bytes`), all of
            them in the store.

    Raises:
        LeaseLost: the stage is no longer held by this token.
    """
    stage = _held(session, stage_id, fencing_token)
    before = stage.checkpoint
    if before is not None and checkpoint["step"] < before["step"]:
        return checkpoint
    if before is None or checkpoint["step"] > before["step"]:
        stage.failure_counts, stage.failures = {}, 0
    stage.checkpoint = checkpoint
    return before


def publish_early(
    session: Session, *, stage_id: uuid.UUID, fencing_token: uuid.UUID, artifacts: Sequence[StoredArtifact]
) -> None:
    """Publish files of a stage that goes on, all of them in the store; its end does not publish them again.

    Raises:
        LeaseLost: the stage is no longer held by this token.
    """
    stage = _held(session, stage_id, fencing_token)
    add_stored(session, stage.account_id, publish(session, stage, artifacts))


def publish(session: Session, stage: Stage, artifacts: Sequence[StoredArtifact]) -> int:
    """Write the files of a locked stage that are not published yet, and return how many bytes they have.

    What an earlier attempt published stays: this one may have done the same again.
    """
    known = set(session.scalars(select(Artifact.name).where(Artifact.stage_id == stage.id)))
    fresh = [artifact for artifact in artifacts if artifact.name not in known]
    session.add_all(
        Artifact(job_id=stage.job_id, stage_id=stage.id, attempt=stage.attempt, **asdict(artifact))
        for artifact in fresh
    )
    session.flush()
    return sum(artifact.bytes for artifact in fresh)


def drop_checkpoint(session: Session, *, stage_id: uuid.UUID, fencing_token: uuid.UUID) -> None:
    """Forget a checkpoint that cannot be used: the stage starts from the beginning, now and later.

    Raises:
        LeaseLost: the stage is no longer held by this token.
    """
    stage = _held(session, stage_id, fencing_token)
    stage.checkpoint = None
    session.execute(
        update(StageAttempt)
        .where(StageAttempt.stage_id == stage.id, StageAttempt.attempt == stage.attempt)
        .values(resumed_step=None)
        .execution_options(synchronize_session=False)
    )


def record_logs(session: Session, *, stage_id: uuid.UUID, fencing_token: uuid.UUID, lines: Sequence[LogEntry]) -> None:
    """Append lines to the log of the running attempt; beyond `MAX_LOG_LINES` they are dropped, and one line says so.

    Raises:
        LeaseLost: the stage is no longer held by this token.
    """
    stage = _held(session, stage_id, fencing_token)
    written = session.scalar(
        select(func.count())
        .select_from(LogLine)
        .where(LogLine.job_id == stage.job_id, LogLine.stage == stage.name, LogLine.attempt == stage.attempt)
    )
    room = MAX_LOG_LINES - (written or 0)
    rows: list[Mapping[str, Any]] = [_log_row(stage, line) for line in lines[: max(room, 0)]]
    if room >= 0 and len(lines) > room:
        said = LogEntry(lines[room].at, "WARNING", f"further lines are not kept: {MAX_LOG_LINES} are the most")
        rows.append(_log_row(stage, said))
    if rows:
        session.execute(insert(LogLine), rows)


def _held(session: Session, stage_id: uuid.UUID, fencing_token: uuid.UUID) -> Stage:
    """Lock a stage that a worker holds, and read it afresh.

    Raises:
        LeaseLost: the stage is no longer held by this token.
    """
    session.flush()
    stage = session.scalars(
        select(Stage).where(Stage.id == stage_id, Stage.fencing_token == fencing_token).with_for_update(key_share=True),
        execution_options={"populate_existing": True},
    ).first()
    if stage is None:
        raise LeaseLost(f"stage {stage_id} is not held by this token")
    return stage


def _tell_progress(session: Session, stage: Stage, now: datetime) -> None:
    """Make an event of a stage's report, under the job's lock as all events."""
    session.flush()
    job = session.scalars(
        select(Job).where(Job.id == stage.job_id).with_for_update(key_share=True),
        execution_options={"populate_existing": True},
    ).one()
    report = stage.progress or {}
    step, total = int(report.get("step", 0)), int(report.get("total", 0))
    speed = steps_per_second(report)
    data = {
        "stage": stage.name,
        "attempt": stage.attempt,
        "step": step,
        "total": total,
        "fraction": round(step / total, 4) if total else 0.0,
        "loss": report.get("loss"),
        "note": report.get("note") or "",
        "steps_per_second": None if speed is None else round(speed, 4),
        "eta_seconds": None if speed is None else round((total - step) / speed, 1),
    }
    record_event(session, job, EventType.PROGRESS, now=now, data=data)


def _log_row(stage: Stage, line: LogEntry) -> Mapping[str, Any]:
    return {
        "job_id": stage.job_id,
        "stage": stage.name,
        "attempt": stage.attempt,
        "at": line.at,
        "level": line.level,
        "message": line.message.replace("\0", "")[:MAX_LOG_MESSAGE],
    }
