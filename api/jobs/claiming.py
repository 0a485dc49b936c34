"""Giving the next stage to exactly one worker, alone or with others that share its passes. Never commits."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import Uuid, any_, func, literal, select, tuple_, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import selectinload

from api.accounts.models import Account
from api.jobs.candidates import find_any, find_like
from api.jobs.claimed import ClaimedStage, describe
from api.jobs.events import EventType, record_events
from api.jobs.library import reuse_key
from api.jobs.locking import change_of
from api.jobs.models import Job, MemoryProfile, Stage, StageAttempt
from api.jobs.plan import JobKind
from api.jobs.sharing import PARTNERS, are_alike, may_have_company, may_pair, share_a_past
from api.jobs.states import JobState, StageState, check_job, check_stage
from api.jobs.workers import FRESH, count_workers

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime, timedelta

    from sqlalchemy import Row
    from sqlalchemy.orm import Session

FIRST_LOOK = 16
"""Candidates that a claim asks for at first; four times as many once all of these were lost to others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimant:
    """Who claims, and how much."""

    worker_id: str
    lease: timedelta
    """How long a stage is its own without a sign of life."""
    kinds: Collection[str] = tuple(JobKind)
    """Of the jobs."""
    pairs: bool = False
    """Whether a LoRA may come with its partner, for one pass of both: when no other worker is free for it, or when
    their checkpoints are of such a pass."""
    mocks_only: bool = False
    """Whether it has no engine, and so does only what is done by the mock engine."""
    jobs_at_once: int = 1
    """Most jobs whose trainings may come at once, for one pass of all."""


@dataclass(frozen=True, slots=True)
class _Taken:
    """Stages of one job, locked with it, that a worker is to have."""

    job: Job
    stages: Sequence[Stage]


def claim_stage(session: Session, claimant: Claimant) -> ClaimedStage | None:
    """Claim the best runnable stage, or return None when there is none.

    Best: highest priority, then the account with the fewest running stages, then the one none of whose jobs has ended
    lately, then the oldest job: with fewer workers than accounts they take turns, job by job. A stage that another
    transaction is just claiming is passed over, so two workers never wait for each other and never get the same one. A
    queued job of an account that runs as many as it may is passed over too, and so is a job past its deadline.

    A training brings others along that are to share its passes, as `claimant` says: its partner, and then trainings of
    other jobs that are alike, in the same order, if more of them wait than other workers are free for.
    """
    wanted = FIRST_LOOK
    while True:
        found = find_any(session, kinds=claimant.kinds, wanted=wanted, mocks_only=claimant.mocks_only)
        left = {candidate.id: candidate for candidate in found}
        while left:
            savepoint = session.begin_nested()
            stage = _first_free(session, list(left))
            if stage is None:
                savepoint.rollback()
                break
            candidate = left[stage.id]
            taken = _take_best(session, stage, candidate, claimant)
            if taken is not None:
                first, *rest = _give(session, taken, claimant, candidate.now)
                savepoint.commit()
                return replace(first, mates=(*rest, *_company(session, taken, (first, *rest), claimant)))
            savepoint.rollback()  # gives back the locks
            del left[stage.id]
        if len(found) < wanted:
            return None
        wanted *= 4


def _take_best(session: Session, stage: Stage, candidate: Row[Any], claimant: Claimant) -> _Taken | None:
    """Lock one of `find_any`, locked itself, with its partner and its job, or return None if it may not run now."""
    partner: Stage | None = None
    if claimant.pairs and stage.name in PARTNERS and stage.memory_profile is MemoryProfile.FULL:
        sibling = _sibling(session, stage)
        if sibling is not None and share_a_past(stage, sibling):
            partner = _free(session, sibling.id, due_only=False, wait=stage.id < sibling.id)
            if partner is None or not share_a_past(stage, partner):
                return None  # whoever has it looks for this one too, and may wait for it
        elif sibling is not None and _nobody_else(session, stage, sibling, claimant):
            partner = _free(session, sibling.id)
    job = _lock_job(session, stage)
    if job is None or job.cancel_requested_at is not None or (candidate.is_limited and not _may_start(session, job)):
        return None
    return _Taken(job, [stage] if partner is None else [stage, partner])


def _company(session: Session, taken: _Taken, held: Sequence[ClaimedStage], claimant: Claimant) -> list[ClaimedStage]:
    """Claim trainings of other jobs that are to share the passes of the one just given.

    The best of those that wait are left to the workers that are free. Whatever somebody else has locked is passed over,
    so that this waits for nobody (`api.jobs.locking`).
    """
    company: list[ClaimedStage] = []
    if claimant.jobs_at_once < 2 or not may_have_company(taken.job, taken.stages):
        return company
    free = count_workers(session, fresh=FRESH, but=claimant.worker_id).idle
    jobs = 1
    for candidate in find_like(
        session, taken.stages[0], kinds=claimant.kinds, wanted=free + FIRST_LOOK + claimant.jobs_at_once
    )[free:]:
        if jobs == claimant.jobs_at_once:
            break
        savepoint = session.begin_nested()
        mate = _take_like(session, candidate, taken.stages, claimant)
        given = [] if mate is None else _give(session, mate, claimant, candidate.now)
        if not given or any(_are_twins(one, other) for one in given for other in (*held, *company)):
            savepoint.rollback()
            continue
        savepoint.commit()
        company += given
        jobs += 1
    if company:
        _note_company(session, [*held, *company], jobs)
    return company


def _take_like(session: Session, candidate: Row[Any], stages: Sequence[Stage], claimant: Claimant) -> _Taken | None:
    """Lock one of `find_like` with as many stages of its job as are to be matched; None if that cannot be."""
    own = _free_like(session, candidate.id, stages, claimant)
    job = None if own is None else _lock_job(session, own[0], wait=False)
    if own is None or job is None or job.cancel_requested_at is not None or not may_have_company(job, own):
        return None
    if len(own) > 1 and not (share_a_past(*own) or may_pair(job.params, *own)):
        return None
    if candidate.is_limited and not _may_start(session, job, wait=False):
        return None
    return _Taken(job, own)


def _free_like(
    session: Session, stage_id: uuid.UUID, stages: Sequence[Stage], claimant: Claimant
) -> list[Stage] | None:
    """Lock a stage, and its partner where others have theirs, if they are like the others and are to be had."""
    stage = _free(session, stage_id)
    if stage is None:
        return None
    own = [stage]
    sibling = _sibling(session, stage) if claimant.pairs and stage.name in PARTNERS else None
    if sibling is not None and len(stages) == 1 and share_a_past(stage, sibling):
        return None
    if sibling is not None and len(stages) > 1 and (partner := _free(session, sibling.id, due_only=False)) is not None:
        own.append(partner)
    return own if are_alike(stages, own) else None


def _are_twins(one: ClaimedStage, other: ClaimedStage) -> bool:
    """Say whether two stages make the same LoRA: the second one takes it from the library once the first is done."""
    keys = {reuse_key(stage.name, stage.params, stage.images, "any", "any") for stage in (one, other)}
    return one.account_id == other.account_id and len(keys) == 1


def _give(session: Session, taken: _Taken, claimant: Claimant, now: datetime) -> list[ClaimedStage]:
    """Give locked stages to a worker, and describe them."""
    for each in taken.stages:
        _hold(session, each, worker_id=claimant.worker_id, until=now + claimant.lease, now=now)
    _begin(session, taken.job, taken.stages, now)
    session.flush()
    return [describe(taken.job, each) for each in taken.stages]


def _note_company(session: Session, stages: Sequence[ClaimedStage], jobs: int) -> None:
    """Write on the attempts just begun how many jobs share their passes."""
    session.execute(
        update(StageAttempt)
        .where(tuple_(StageAttempt.stage_id, StageAttempt.attempt).in_([(one.stage_id, one.attempt) for one in stages]))
        .values(jobs=jobs)
        .execution_options(synchronize_session=False)
    )


def _first_free(session: Session, stage_ids: Sequence[uuid.UUID]) -> Stage | None:
    """Lock the first of some stages that is still to be had and that nobody has locked."""
    wanted = literal(stage_ids, ARRAY(Uuid()))
    statement = (
        select(Stage)
        .where(Stage.id == any_(wanted), Stage.state == StageState.RUNNABLE, Stage.runnable_at <= func.now())
        .order_by(func.array_position(wanted, Stage.id))
        .limit(1)
    )
    return session.scalars(
        statement.with_for_update(key_share=True, skip_locked=True), execution_options={"populate_existing": True}
    ).first()


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


def _lock_job(session: Session, stage: Stage, *, wait: bool = True) -> Job | None:
    """Lock a stage's job, and read all of it that the stage's worker must know; None if it may not wait and must."""
    parts = [selectinload(Job.images)]
    if stage.depends_on:
        parts += [selectinload(Job.artifacts), selectinload(Job.stages)]
    job = session.scalars(
        select(Job).where(Job.id == stage.job_id).options(*parts).with_for_update(key_share=True, skip_locked=not wait),
        execution_options={"populate_existing": True},
    ).one_or_none()
    if job is not None and job.kind.takes_loras:
        session.scalars(select(Job).where(Job.id == job.id).options(selectinload(Job.loras))).one()
    return job


def _may_start(session: Session, job: Job, *, wait: bool = True) -> bool:
    """Say whether a job runs already, or may under its account's quota; the account stays locked in the latter case.

    If it may not wait for the account's lock and would have to, it may not start.
    """
    if job.state is not JobState.QUEUED:
        return True
    account = session.execute(
        select(Account.max_running_jobs)
        .where(Account.id == job.account_id)
        .with_for_update(key_share=True, skip_locked=not wait)
    ).first()
    if account is None:
        return False
    running = session.scalar(
        select(func.count())
        .select_from(Job)
        .where(Job.account_id == job.account_id, Job.state == JobState.RUNNING, Job.finished_at.is_(None))
    )
    return account.max_running_jobs is None or (running or 0) < account.max_running_jobs


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


def _nobody_else(session: Session, stage: Stage, other: Stage, claimant: Claimant) -> bool:
    """Say whether two stages without a common past may begin a common pass, and no other worker is free for one."""
    params = session.scalar(select(Job.params).where(Job.id == stage.job_id)) or {}
    return may_pair(params, stage, other) and count_workers(session, fresh=FRESH, but=claimant.worker_id).idle == 0
