"""One attempt from claim to its last write: claim, work, finish; or whatever else became of it.

The broad `except` here records on the stage whatever happens to an attempt. Two more such boundaries are in the worker:
`worker.engine.__main__` tells its parent, `worker.dispatcher.deliverer` writes it on the delivery. Every write carries
the fencing token, so an attempt that was given to somebody else changes nothing.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from itertools import groupby
from time import monotonic
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from api.db import transaction
from api.errors import LeaseLost
from api.jobs import repository
from api.storage import StoreError
from api.tracing import span
from duolora.errors import Fault
from worker import logs
from worker.attempt import Attempt
from worker.mailbox import Interrupt
from worker.metrics import SUCCEEDED
from worker.mock_engine import MockEngine
from worker.outcomes import Abandon, Cancel, Fail, Release, Retry, classify
from worker.patience import Patience
from worker.reporter import StageReporter
from worker.supervisor import EngineDied, StageFailed, StageInterrupted
from worker.uploader import CheckpointUploader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.orm import Session, sessionmaker

    from api.jobs.repository import ClaimedStage
    from api.storage import ObjectStore
    from worker.attempt import Finished
    from worker.mailbox import Mailbox
    from worker.metrics import AttemptTimes
    from worker.outcomes import Outcome
    from worker.presence import Presence
    from worker.settings import WorkerSettings
    from worker.supervisor import EngineSupervisor
    from worker.workspace import Scratch

log = logging.getLogger(__name__)


class StageRunner:
    """Runs one attempt at a time on one engine process."""

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        sessions: sessionmaker[Session],
        store: ObjectStore,
        engine: EngineSupervisor,
        scratch: Scratch,
        mailbox: Mailbox,
        presence: Presence,
        times: AttemptTimes,
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._store = store
        self._engine = engine
        self._mock = MockEngine(mailbox)
        self._scratch = scratch
        self._mailbox = mailbox
        self._presence = presence
        self._times = times
        self._patience = Patience(settings.worker_patience_s, sessions=sessions, mailbox=mailbox)
        self._held: ClaimedStage | None = None
        self._claimed_at = 0.0
        self._doubts_store = False

    def run_next(self) -> bool:
        """Claim the best runnable stage and see it through; False when there is none.

        Where the store failed the last attempt it must answer before the next: a host that has lost its way there is
        always free, and would use up the attempts of one stage after another.

        Raises:
            DBAPIError: the database does not answer; nothing was claimed.
            StoreError: the object store still does not answer; likewise.
        """
        settings = self._settings
        if self._doubts_store:
            self._store.ping()
            self._doubts_store = False
        with self._presence.claiming(), transaction(self._sessions) as session:
            stage = repository.claim_stage(
                session,
                repository.Claimant(
                    worker_id=settings.worker_id,
                    lease=settings.lease,
                    pairs=settings.worker_pairs and self._engine.pairs,
                    mocks_only=settings.mocks_only,
                    jobs_at_once=settings.worker_jobs_at_once if self._engine.shares_passes else 1,
                ),
            )
            if stage is not None:
                self._presence.claimed(session)
        if stage is None:
            return False
        origin = {
            "traceparent": stage.traceparent,
            "tracestate": stage.tracestate,
            "request_id": stage.request_id,
        }
        with logs.bound(job=str(stage.job_id), stage=stage.name, attempt=stage.attempt, **origin):
            log.info("stage claimed", extra={"mates": [f"{mate.job_id}/{mate.name}" for mate in stage.mates]})
            self._held, self._claimed_at = stage, monotonic()
            try:
                with span(f"stage {stage.name}", "consumer", job=str(stage.job_id), attempt=stage.attempt):
                    self._attempt(stage)
            finally:
                self._held = None
        return True

    def give_back(self) -> None:
        """Release what is held, from another thread, because the process is about to exit whatever it does."""
        stage = self._held
        for stages in () if stage is None else stage.by_job:
            with suppress(LeaseLost, DBAPIError), transaction(self._sessions) as session:
                _on_all(stages, lambda each: repository.release_stage(session, **each.proof))

    def _attempt(self, stage: ClaimedStage) -> None:
        attempt = Attempt(
            stage,
            settings=self._settings,
            sessions=self._sessions,
            store=self._store,
            engine=self._engine if stage.mock_outcome is None else self._mock.that_ends(stage.mock_outcome),
            mailbox=self._mailbox,
            patience=self._patience,
        )
        reporter = StageReporter(
            stage, run_id=attempt.run_id, sessions=self._sessions, mailbox=self._mailbox, settings=self._settings
        )
        with reporter:
            try:
                taken = attempt.look_up()
                for finished in taken:
                    reporter.let_go(finished.stage)
                self._finish(taken, [])
            except Exception as error:  # noqa: BLE001 - a recorded boundary: it becomes the stage's outcome
                self._settle(attempt, error)
                return
            if len(taken) < len(stage.all):
                self._held = attempt.stage
                self._run(attempt, reporter)

    def _run(self, attempt: Attempt, reporter: StageReporter) -> None:
        """Work on what the library did not have."""
        uploader = CheckpointUploader(attempt.stage, sessions=self._sessions, store=self._store)
        succeeded: list[ClaimedStage] = []
        try:
            finished = attempt.work(self._scratch, reporter, uploader)
            reporter.flush()
            self._finish(finished, succeeded)
        except Exception as error:  # noqa: BLE001 - a recorded boundary: it becomes the stage's outcome
            reporter.flush()
            self._settle(attempt, error)
        finally:
            uploader.close(forget=succeeded)

    def _finish(self, finished: Sequence[Finished], succeeded: list[ClaimedStage]) -> None:
        """Write what succeeded, all of a job in one transaction, and add it to `succeeded`.

        Raises:
            LeaseLost, DBAPIError: it could not be written of some job; what could be is.
        """
        lost: LeaseLost | None = None
        for of_job in _by_job(finished):
            try:
                self._patience.with_database(partial(_write_finished, of_job))
            except LeaseLost as error:
                lost = error
                continue
            stages = [each.stage for each in of_job]
            self._times.take(stages, SUCCEEDED, monotonic() - self._claimed_at)
            succeeded += stages
            for each in of_job:
                done = {"done": each.stage.name, "done_job": str(each.stage.job_id)}
                log.info("stage succeeded", extra={**done, **each.timings})
        if lost is not None:
            raise lost

    def _settle(self, attempt: Attempt, error: Exception) -> None:
        """Record how an attempt failed."""
        if self._mailbox.shutting_down and _was_ended(error):  # whoever stops us may stop the engine as well
            error = StageInterrupted(Interrupt.SHUTDOWN)
        self._doubts_store = isinstance(error, StoreError)
        outcome = classify(error, failures=attempt.stage.failures)
        expected = isinstance(outcome, Cancel | Release | Abandon)
        word = type(outcome).__name__.lower()
        self._times.take(attempt.stage.all, word, monotonic() - self._claimed_at)
        log.log(
            logging.INFO if expected else logging.ERROR,
            "stage ended: %s",
            word,
            exc_info=None if expected else error,
        )
        for stages in attempt.stage.by_job:
            try:
                self._patience.with_database(partial(_record, stages, outcome))
            except LeaseLost:
                log.info("the stage was decided elsewhere")
            except DBAPIError:
                log.warning("the outcome could not be recorded; the reaper will find the stage")
                break
        if isinstance(outcome, Retry) and outcome.fresh_engine:
            attempt.engine.stop()


def _record(stages: Sequence[ClaimedStage], outcome: Outcome, session: Session) -> None:
    """Write an outcome on the stages of one job.

    Raises:
        LeaseLost: none of them is held any more.
    """
    write: Callable[..., object]
    match outcome:
        case Retry(error=error, after=after, kind=kind, fresh_start=fresh_start):
            write = partial(
                repository.fail_stage, error=error, retry_after=after, kind=kind, forget_checkpoint=fresh_start
            )
        case Fail(error=error, kind=kind):
            write = partial(repository.fail_stage, error=error, retry_after=None, kind=kind)
        case Cancel():
            write = repository.settle_cancel
        case (
            Release() | Abandon()
        ):  # one lease of a pair may be lost and the other not; what is not held is passed over
            write = repository.release_stage
    _on_all(stages, lambda each: write(session, **each.proof))


def _write_finished(finished: Sequence[Finished], session: Session) -> None:
    """Write what succeeded of one job."""
    for each in finished:
        repository.finish_stage(
            session,
            **each.stage.proof,
            artifacts=each.artifacts,
            timings=each.timings,
            reuse_key=each.reuse_key,
            reused_job_id=each.reused_job_id,
            stopped_early=each.stopped_early,
        )


def _by_job(finished: Sequence[Finished]) -> list[list[Finished]]:
    """Return what succeeded, that of each job together, in the order of locks."""
    ordered = sorted(finished, key=lambda each: (each.stage.job_id, each.stage.stage_id))
    return [list(of_job) for _, of_job in groupby(ordered, key=lambda each: each.stage.job_id)]


def _on_all(stages: Sequence[ClaimedStage], write: Callable[[ClaimedStage], object]) -> None:
    """Write on all stages of a job; the end of one may have taken the other along.

    Raises:
        LeaseLost: none of them is held any more.
    """
    lost = None
    written = False
    for each in stages:
        try:
            write(each)
            written = True
        except LeaseLost as error:
            lost = error
    if not written and lost is not None:
        raise lost


def _was_ended(error: Exception) -> bool:
    """Say whether the engine process ended, or was told to."""
    return isinstance(error, EngineDied) or (isinstance(error, StageFailed) and error.failure.fault is Fault.CANCELLED)
