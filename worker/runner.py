"""One attempt from claim to its last write: claim, work, finish; or whatever else became of it.

The broad `except` here records on the stage whatever happens to an attempt. Two more such boundaries are in the worker:
`worker.engine.__main__` tells its parent, `worker.dispatcher.deliverer` writes it on the delivery. Every write carries
the fencing token, so an attempt that was given to somebody else changes nothing.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from api.db import transaction
from api.errors import LeaseLost
from api.jobs import repository
from duolora.errors import Fault
from worker import logs
from worker.attempt import Attempt
from worker.mailbox import Interrupt
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
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._store = store
        self._engine = engine
        self._scratch = scratch
        self._mailbox = mailbox
        self._presence = presence
        self._patience = Patience(settings.worker_patience_s, sessions=sessions, mailbox=mailbox)
        self._held: ClaimedStage | None = None

    def run_next(self) -> bool:
        """Claim the best runnable stage and see it through; False when there is none.

        Raises:
            DBAPIError: the database does not answer; nothing was claimed.
        """
        settings = self._settings
        with self._presence.claiming(), transaction(self._sessions) as session:
            stage = repository.claim_stage(
                session,
                worker_id=settings.worker_id,
                lease=settings.lease,
                pairs=settings.worker_pairs and self._engine.pairs,
            )
            if stage is not None:
                self._presence.claimed(session)
        if stage is None:
            return False
        with logs.bound(job=str(stage.job_id), stage=stage.name, attempt=stage.attempt, traceparent=stage.traceparent):
            log.info("stage claimed", extra={"partner": None if stage.partner is None else stage.partner.name})
            self._held = stage
            try:
                self._attempt(stage)
            finally:
                self._held = None
        return True

    def give_back(self) -> None:
        """Release what is held, from another thread, because the process is about to exit whatever it does."""
        stage = self._held
        if stage is not None:
            with suppress(LeaseLost, DBAPIError), transaction(self._sessions) as session:
                self._on_all(stage, lambda each: repository.release_stage(session, **each.proof))

    def _attempt(self, stage: ClaimedStage) -> None:
        attempt = Attempt(
            stage,
            settings=self._settings,
            sessions=self._sessions,
            store=self._store,
            engine=self._engine,
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
                self._finish(taken)
            except Exception as error:  # noqa: BLE001 - a recorded boundary: it becomes the stage's outcome
                self._settle(attempt, error)
                return
            if len(taken) < len(stage.all):
                self._held = attempt.stage
                self._run(attempt, reporter)

    def _run(self, attempt: Attempt, reporter: StageReporter) -> None:
        """Work on what the library did not have."""
        uploader = CheckpointUploader(attempt.stage, sessions=self._sessions, store=self._store)
        succeeded = False
        try:
            finished = attempt.work(self._scratch, reporter, uploader)
            reporter.flush()
            self._finish(finished)
            succeeded = True
        except Exception as error:  # noqa: BLE001 - a recorded boundary: it becomes the stage's outcome
            reporter.flush()
            self._settle(attempt, error)
        finally:
            uploader.close(forget=succeeded)

    def _finish(self, finished: Sequence[Finished]) -> None:
        """Write what succeeded, all of it in one transaction."""
        if not finished:
            return
        ordered = sorted(finished, key=lambda each: each.stage.stage_id)

        def write(session: Session) -> None:
            for each in ordered:
                repository.finish_stage(
                    session,
                    **each.stage.proof,
                    artifacts=each.artifacts,
                    timings=each.timings,
                    reuse_key=each.reuse_key,
                    reused_job_id=each.reused_job_id,
                    stopped_early=each.stopped_early,
                )

        self._patience.with_database(write)
        for each in ordered:
            log.info("stage succeeded", extra={"done": each.stage.name, **each.timings})

    def _settle(self, attempt: Attempt, error: Exception) -> None:
        """Record how an attempt failed."""
        if self._mailbox.shutting_down and _was_ended(error):  # whoever stops us may stop the engine as well
            error = StageInterrupted(Interrupt.SHUTDOWN)
        outcome = classify(error, failures=attempt.stage.failures)
        expected = isinstance(outcome, Cancel | Release | Abandon)
        log.log(
            logging.INFO if expected else logging.ERROR,
            "stage ended: %s",
            type(outcome).__name__.lower(),
            exc_info=None if expected else error,
        )
        try:
            self._patience.with_database(lambda session: self._record(session, attempt, outcome))
        except LeaseLost:
            log.info("the stage was decided elsewhere")
        except DBAPIError:
            log.warning("the outcome could not be recorded; the reaper will find the stage")
        if isinstance(outcome, Retry) and outcome.fresh_engine:
            self._engine.stop()

    def _record(self, session: Session, attempt: Attempt, outcome: Outcome) -> None:
        """Write an outcome on all that the attempt holds.

        Raises:
            LeaseLost: it holds nothing any more.
        """
        match outcome:
            case Retry(error=error, after=after, kind=kind):
                self._on_all(
                    attempt.stage,
                    lambda each: repository.fail_stage(
                        session,
                        **each.proof,
                        error=error,
                        retry_after=after,
                        kind=kind,
                        forget_checkpoint=outcome.fresh_start,
                    ),
                )
            case Fail(error=error, kind=kind):
                self._on_all(
                    attempt.stage,
                    lambda each: repository.fail_stage(session, **each.proof, error=error, retry_after=None, kind=kind),
                )
            case Cancel():
                self._on_all(attempt.stage, lambda each: repository.settle_cancel(session, **each.proof))
            case Release():
                self._on_all(attempt.stage, lambda each: repository.release_stage(session, **each.proof))
            case Abandon():  # one lease of a pair may be lost and the other not; what is not held is passed over
                self._on_all(attempt.stage, lambda each: repository.release_stage(session, **each.proof))

    @staticmethod
    def _on_all(stage: ClaimedStage, write: Callable[[ClaimedStage], object]) -> None:
        """Write on a stage and its partner; the end of one may have taken the other along.

        Raises:
            LeaseLost: none of them is held any more.
        """
        lost = None
        written = False
        for each in stage.all:
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
