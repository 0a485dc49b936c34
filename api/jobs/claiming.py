"""Which stage is next, and giving it to exactly one worker, alone or with its partner. Never commits."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select, text
from sqlalchemy.orm import selectinload

from api.accounts.models import Account
from api.jobs.claimed import ClaimedStage, describe
from api.jobs.events import EventType, record_events
from api.jobs.locking import change_of
from api.jobs.models import Job, MemoryProfile, Stage, StageAttempt
from api.jobs.plan import JobKind
from api.jobs.states import JobState, StageState, check_job, check_stage
from api.jobs.workers import FRESH, count_workers

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime, timedelta

    from sqlalchemy import Row
    from sqlalchemy.orm import Session

FIRST_LOOK = 8
"""Candidates that a claim asks for at first; twice as many once all of these were lost to others."""

PARTNERS = {"content_lora": "style_lora", "style_lora": "content_lora"}
"""Stages that may share every pass of the U-Net, if both are of one job."""

_CANDIDATES = text(
    """
    WITH RECURSIVE waiting AS (
      (SELECT account_id FROM stages WHERE state = 'runnable' ORDER BY account_id LIMIT 1)
      UNION ALL
      SELECT (SELECT s.account_id FROM stages s WHERE s.state = 'runnable' AND s.account_id > w.account_id
              ORDER BY s.account_id LIMIT 1)
      FROM waiting w WHERE w.account_id IS NOT NULL),
    served AS MATERIALIZED (
      SELECT account_id, max(finished_at) AS at
      FROM (SELECT account_id, finished_at FROM jobs WHERE finished_at IS NOT NULL
            ORDER BY finished_at DESC LIMIT 200) latest
      GROUP BY account_id)
    SELECT best.id, load.is_limited, now() AS now
    FROM waiting w
    CROSS JOIN LATERAL (
      SELECT (SELECT count(*) FROM stages b WHERE b.account_id = w.account_id AND b.state = 'running') AS running,
             (SELECT served.at FROM served WHERE served.account_id = w.account_id) AS served_at,
             coalesce((SELECT count(*) FROM jobs j WHERE j.account_id = w.account_id AND j.state = 'running'
                       AND j.finished_at IS NULL)
                      >= (SELECT a.max_running_jobs FROM accounts a WHERE a.id = w.account_id), false) AS is_full,
             (SELECT a.max_running_jobs IS NOT NULL FROM accounts a WHERE a.id = w.account_id) AS is_limited
      OFFSET 0) load
    CROSS JOIN LATERAL (
      SELECT s.id, s.priority, s.queued_at, s.job_id, s.ordinal,
             row_number() OVER (ORDER BY s.priority DESC, s.queued_at, s.job_id, s.ordinal) AS nth
      FROM stages s
      WHERE s.account_id = w.account_id AND s.state = 'runnable' AND s.runnable_at <= now()
        AND (SELECT j.kind = ANY(:kinds) AND j.cancel_requested_at IS NULL
                    AND (j.deadline_at IS NULL OR j.deadline_at > now())
                    AND NOT (load.is_full AND j.started_at IS NULL)
             FROM jobs j WHERE j.id = s.job_id)
      ORDER BY s.priority DESC, s.queued_at, s.job_id, s.ordinal LIMIT :wanted) best
    ORDER BY best.priority DESC, load.running + best.nth, load.served_at NULLS FIRST,
             best.queued_at, best.job_id, best.ordinal
    LIMIT :wanted
    """
)
"""Index scans only: one step of the index for each account that waits, then the best few of each.

An account's second candidate counts as if the first were running: whoever loses the race for the first turns to another
account. The conditions on the job are a scalar subquery on purpose: of a join the planner would make a sequential scan.
OFFSET 0 keeps it from counting the running anew for each candidate.
"""


def claim_stage(
    session: Session,
    *,
    worker_id: str,
    lease: timedelta,
    kinds: Collection[str] = tuple(JobKind),
    pairs: bool = False,
) -> ClaimedStage | None:
    """Claim the best runnable stage, or return None when there is none.

    Best: highest priority, then the account with the fewest running stages, then the one none of whose jobs has ended
    lately, then the oldest job: with fewer workers than accounts they take turns, job by job. A stage that another
    transaction is just claiming is passed over, so two workers never wait for each other and never get the same one. A
    queued job of an account that runs as many as it may is passed over too, and so is a job past its deadline.

    Args:
        session: an open transaction.
        worker_id: who claims.
        lease: how long the stage is its own without a sign of life.
        kinds: of the jobs.
        pairs: whether a LoRA may come with its partner, for one pass of both: when no other worker is free for it, or
            when their checkpoints are of such a pass.
    """
    wanted = FIRST_LOOK
    while True:
        found = session.execute(_CANDIDATES, {"kinds": [str(kind) for kind in kinds], "wanted": wanted}).all()
        for candidate in found:
            savepoint = session.begin_nested()
            claimed = _claim(session, candidate, worker_id=worker_id, lease=lease, pairs=pairs)
            if claimed is not None:
                savepoint.commit()
                return claimed
            savepoint.rollback()  # gives back the locks
        if len(found) < wanted:
            return None
        wanted *= 2


def _claim(
    session: Session, candidate: Row[Any], *, worker_id: str, lease: timedelta, pairs: bool
) -> ClaimedStage | None:
    """Claim one of `_CANDIDATES`, or return None if somebody else has it or it may not run now."""
    stage = _free(session, candidate.id)
    if stage is None:
        return None
    partner: Stage | None = None
    if pairs and stage.name in PARTNERS and stage.memory_profile is MemoryProfile.FULL:
        sibling = _sibling(session, stage)
        if sibling is not None and _share_a_past(stage, sibling):
            partner = _free(session, sibling.id, due_only=False, wait=stage.id < sibling.id)
            if partner is None or not _share_a_past(stage, partner):
                return None  # whoever has it looks for this one too, and may wait for it
        elif sibling is not None and _may_share(session, stage, sibling, worker_id):
            partner = _free(session, sibling.id)
    job = _lock_job(session, stage)
    if job.cancel_requested_at is not None or (candidate.is_limited and not _may_start(session, job)):
        return None
    now = candidate.now
    pair = [stage] if partner is None else [stage, partner]
    for each in pair:
        _hold(session, each, worker_id=worker_id, until=now + lease, now=now)
    _begin(session, job, pair, now)
    session.flush()
    return describe(job, stage, partner=None if partner is None else describe(job, partner))


def _free(session: Session, stage_id: uuid.UUID, *, due_only: bool = True, wait: bool = False) -> Stage | None:
    """Lock a stage if it is still to be had.

    Args:
        session: an open transaction.
        stage_id: the stage.
        due_only: whether it must wait for its time.
        wait: whether to wait for somebody who has it locked; only in the order of locks.
    """
    statement = select(Stage).where(Stage.id == stage_id, Stage.state == StageState.RUNNABLE)
    if due_only:
        statement = statement.where(Stage.runnable_at <= func.now())
    return session.scalars(
        statement.with_for_update(key_share=True, skip_locked=not wait), execution_options={"populate_existing": True}
    ).first()


def _lock_job(session: Session, stage: Stage) -> Job:
    """Lock a stage's job, and read all of it that the stage's worker must know."""
    parts = [selectinload(Job.images)]
    if stage.depends_on:
        parts += [selectinload(Job.artifacts), selectinload(Job.stages)]
    return session.scalars(
        select(Job).where(Job.id == stage.job_id).options(*parts).with_for_update(key_share=True),
        execution_options={"populate_existing": True},
    ).one()


def _may_start(session: Session, job: Job) -> bool:
    """Say whether a job runs already, or may under its account's quota; the account stays locked in the latter case."""
    if job.state is not JobState.QUEUED:
        return True
    limit = session.scalar(
        select(Account.max_running_jobs).where(Account.id == job.account_id).with_for_update(key_share=True)
    )
    running = session.scalar(
        select(func.count())
        .select_from(Job)
        .where(Job.account_id == job.account_id, Job.state == JobState.RUNNING, Job.finished_at.is_(None))
    )
    return limit is None or (running or 0) < limit


def _hold(session: Session, stage: Stage, *, worker_id: str, until: datetime, now: datetime) -> None:
    """Give a locked stage to a worker."""
    check_stage(stage.state, StageState.RUNNING)
    token = uuid.uuid4()
    checkpoint = stage.checkpoint
    stage.state = StageState.RUNNING
    stage.attempt += 1
    stage.worker_id, stage.fencing_token = worker_id, token
    stage.heartbeat_at = stage.started_at = now
    stage.lease_expires_at = until
    stage.progress = None
    if checkpoint is not None:
        kept = {name: checkpoint[name] for name in ("step", "total")}
        stage.progress = kept | {"loss": None, "note": "", "at": now.timestamp(), "since": None}
    session.add(
        StageAttempt(
            stage_id=stage.id,
            attempt=stage.attempt,
            worker_id=worker_id,
            fencing_token=token,
            started_at=now,
            resumed_step=None if checkpoint is None else checkpoint["step"],
        )
    )


def _begin(session: Session, job: Job, stages: Sequence[Stage], now: datetime) -> None:
    """Make the job of just claimed stages running, if these are its first, and record all of it."""
    happened = [change_of(stage) for stage in stages]
    if job.state is JobState.QUEUED:
        check_job(job.state, JobState.RUNNING)
        job.state, job.started_at = JobState.RUNNING, now
        happened.insert(0, (EventType.STARTED, {}))
    record_events(session, job, happened, now=now)


def _sibling(session: Session, stage: Stage) -> Stage | None:
    """Return the partner that a stage might have, if anybody may claim it; unlocked, so only a hint."""
    return session.scalars(
        select(Stage).where(
            Stage.job_id == stage.job_id,
            Stage.name == PARTNERS[stage.name],
            Stage.state == StageState.RUNNABLE,
            Stage.memory_profile == MemoryProfile.FULL,
        )
    ).first()


def _share_a_past(stage: Stage, other: Stage) -> bool:
    """Say whether both stand at the same step of one pass: then only one pass of both goes on from there exactly."""
    one, two = stage.checkpoint, other.checkpoint
    if one is None or two is None or other.state is not StageState.RUNNABLE:
        return False
    return bool(one.get("paired")) and bool(two.get("paired")) and bool(one["step"] == two["step"])


def _may_share(session: Session, stage: Stage, other: Stage, worker_id: str) -> bool:
    """Say whether two stages without a common past may begin a common pass."""
    if stage.checkpoint is not None or other.checkpoint is not None:
        one, two = stage.checkpoint or {}, other.checkpoint or {}
        if one.get("step") != two.get("step") or one.get("paired") != two.get("paired"):
            return False
    params = session.scalar(select(Job.params).where(Job.id == stage.job_id)) or {}
    if params["content"]["resolution_px"] != params["style"]["resolution_px"]:
        return False
    return count_workers(session, fresh=FRESH, but=worker_id).idle == 0
