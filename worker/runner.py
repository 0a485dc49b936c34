"""One stage from claim to its last write: claim, bring the inputs, run the engine, store the outputs, finish.

The broad `except` here records on the stage whatever happens to an attempt. Two more such boundaries are in the worker:
`worker.engine.__main__` tells its parent, `worker.dispatcher.deliverer` writes it on the delivery. Every write carries
the fencing token, so an attempt that was given to somebody else changes nothing.
"""

from __future__ import annotations

import logging
import time
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy.exc import DBAPIError

from api.db import transaction
from api.errors import LeaseLost
from api.jobs import repository
from api.storage import StoreError
from worker import logs
from worker.backoff import Backoff
from worker.mailbox import Interrupt, Interruption
from worker.outcomes import Abandon, Cancel, Fail, Release, Retry, classify
from worker.reporter import StageReporter
from worker.supervisor import EngineDied, StageInterrupted
from worker.wire import Run
from worker.workspace import BaseUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sqlalchemy.orm import Session, sessionmaker

    from api.jobs.repository import ClaimedStage, NewArtifact
    from api.storage import ObjectStore
    from worker.mailbox import Mailbox
    from worker.outcomes import Outcome
    from worker.settings import WorkerSettings
    from worker.supervisor import EngineSupervisor
    from worker.workspace import Scratch, Workspace

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class StageRunner:
    """Runs one stage at a time on one engine process."""

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        sessions: sessionmaker[Session],
        store: ObjectStore,
        engine: EngineSupervisor,
        scratch: Scratch,
        mailbox: Mailbox,
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._store = store
        self._engine = engine
        self._scratch = scratch
        self._mailbox = mailbox

    def run_next(self) -> bool:
        """Claim the best runnable stage and see it through; False when there is none.

        Raises:
            DBAPIError: the database does not answer; nothing was claimed.
        """
        with transaction(self._sessions) as session:
            stage = repository.claim_stage(session, worker_id=self._settings.worker_id, lease=self._settings.lease)
        if stage is None:
            return False
        with logs.bound(job=str(stage.job_id), stage=stage.name, attempt=stage.attempt, traceparent=stage.traceparent):
            log.info("stage claimed")
            self._attempt(stage)
        return True

    def _attempt(self, stage: ClaimedStage) -> None:
        run_id = f"{stage.stage_id}:{stage.attempt}"
        reporter = StageReporter(
            stage,
            run_id=run_id,
            sessions=self._sessions,
            mailbox=self._mailbox,
            lease=self._settings.lease,
            heartbeat_s=self._settings.worker_heartbeat_s,
            progress_s=self._settings.worker_progress_s,
        )
        with reporter:
            try:
                artifacts, timings = self._work(stage, run_id, reporter)
                self._persist(
                    lambda session: repository.finish_stage(
                        session,
                        stage_id=stage.stage_id,
                        fencing_token=stage.fencing_token,
                        artifacts=artifacts,
                        timings=timings,
                    )
                )
                log.info("stage succeeded", extra=timings)
            except Exception as error:  # noqa: BLE001 - a recorded boundary: it becomes the stage's outcome
                self._settle(stage, error)

    def _work(
        self, stage: ClaimedStage, run_id: str, reporter: StageReporter
    ) -> tuple[list[NewArtifact], dict[str, float]]:
        """Do the work of an attempt up to its stored outputs."""
        base = stage.params["base_model"]
        if base not in self._settings.base_models:
            raise BaseUnavailable(f"this worker has no base model {base!r}")

        started = perf_counter()
        with self._scratch.workspace(stage, self._store) as workspace:
            self._patiently(lambda: workspace.fetch(lambda: self._check(run_id)))
            fetched = perf_counter()
            done = self._engine.run(self._command(stage, run_id, workspace), reporter.report)
            ran = perf_counter()
            artifacts = self._patiently(lambda: workspace.publish(done.outputs, lambda: self._check(run_id, done=True)))
            timings = done.timings | {
                "fetch_s": round(fetched - started, 3),
                "engine_s": round(ran - fetched, 3),
                "publish_s": round(perf_counter() - ran, 3),
            }
        return artifacts, timings

    def _command(self, stage: ClaimedStage, run_id: str, workspace: Workspace) -> Run:
        return Run(
            id=run_id,
            stage=stage.name,
            job_id=str(stage.job_id),
            attempt=stage.attempt,
            base=self._settings.base_models[stage.params["base_model"]],
            config=stage.params,
            inputs_dir=str(workspace.inputs_dir),
            outputs_dir=str(workspace.outputs_dir),
            checkpoints_dir=str(workspace.checkpoints_dir),
            traceparent=stage.traceparent,
        )

    def _check(self, run_id: str, *, done: bool = False) -> None:
        """Honour an interruption while no engine runs; a shutdown does not stop an attempt whose work is `done`.

        Raises:
            StageInterrupted: when there is one for this run.
        """
        while (message := self._mailbox.take(0)) is not None:
            if not isinstance(message, Interruption) or message.run_id not in {None, run_id}:
                continue
            if message.reason is not Interrupt.SHUTDOWN or not done:
                raise StageInterrupted(message.reason)

    def _patiently(self, act: Callable[[], Result]) -> Result:
        """Do what needs the object store, again and again while it is away, for `worker_patience_s` at most."""
        give_up_at = monotonic() + self._settings.worker_patience_s
        backoff = Backoff(most_s=2.0)
        while True:
            try:
                return act()
            except StoreError as error:
                pause_s = backoff.next_s()
                if monotonic() + pause_s > give_up_at:
                    raise
                log.warning("the object store does not answer", extra={"error": str(error)})
            if self._mailbox.shutting_down:
                raise StageInterrupted(Interrupt.SHUTDOWN)
            time.sleep(pause_s)

    def _persist(self, write: Callable[[Session], Any]) -> None:
        """Make the last write of an attempt, again and again while the database is away.

        A commit whose answer was lost shows as `LeaseLost` the second time: the write is there, or somebody else
        decided. Either way there is nothing left to do. After `worker_patience_s` the reaper takes over.

        Raises:
            LeaseLost: the stage is no longer ours.
            DBAPIError: the database stayed away.
        """
        give_up_at = monotonic() + self._settings.worker_patience_s
        backoff = Backoff(most_s=2.0)
        while True:
            try:
                with transaction(self._sessions) as session:
                    write(session)
            except DBAPIError as error:
                pause_s = backoff.next_s()
                if self._mailbox.shutting_down or monotonic() + pause_s > give_up_at:
                    raise
                log.warning("the database did not take a result", extra={"error": type(error).__name__})
            else:
                return
            time.sleep(pause_s)

    def _settle(self, stage: ClaimedStage, error: Exception) -> None:
        """Record how an attempt failed."""
        if (
            isinstance(error, EngineDied) and self._mailbox.shutting_down
        ):  # whoever stops us may stop the engine as well
            error = StageInterrupted(Interrupt.SHUTDOWN)
        outcome = classify(error, failures=stage.failures, last_error=stage.last_error)
        expected = isinstance(outcome, Cancel | Release | Abandon)
        log.log(
            logging.INFO if expected else logging.ERROR,
            "stage ended: %s",
            type(outcome).__name__.lower(),
            exc_info=None if expected else error,
        )
        if isinstance(outcome, Abandon):
            return
        try:
            self._persist(lambda session: self._record(session, stage, outcome))
        except LeaseLost:
            log.info("the stage was decided elsewhere")
        except DBAPIError:
            log.warning("the outcome could not be recorded; the reaper will find the stage")
        if isinstance(outcome, Retry | Fail) and outcome.fresh_engine:
            self._engine.stop()

    @staticmethod
    def _record(session: Session, stage: ClaimedStage, outcome: Outcome) -> None:
        held = {"stage_id": stage.stage_id, "fencing_token": stage.fencing_token}
        match outcome:
            case Retry(error=error, after=after):
                repository.fail_stage(session, **held, error=error, retry_after=after)
            case Fail(error=error):
                repository.fail_stage(session, **held, error=error, retry_after=None)
            case Cancel():
                repository.settle_cancel(session, **held)
            case Release():
                repository.release_stage(session, **held)
