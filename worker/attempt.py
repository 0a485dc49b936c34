"""The work of one attempt, at one stage or at several in one pass: library, inputs, checkpoint, engine, outputs.

Ends with a `Finished` for each stage, or with whatever exception ended it; `worker.runner` records either.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

from sqlalchemy.exc import DBAPIError

from api.db import transaction
from api.errors import LeaseLost
from api.jobs import repository
from api.storage import StoreError, artifact_key
from api.telemetry import current_traceparent, current_tracestate
from worker.mailbox import Interrupt, Interruption
from worker.supervisor import StageInterrupted
from worker.wire import Checkpointed, LogLine, Member, ProgressReport, Run, Shown
from worker.workspace import BaseUnavailable, CheckpointUnusable, OutputMissing

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from sqlalchemy.orm import Session, sessionmaker

    from api.jobs.repository import ClaimedStage, Reusable, StoredArtifact
    from api.storage import ObjectStore
    from worker.mailbox import Mailbox
    from worker.patience import Patience
    from worker.reporter import StageReporter
    from worker.settings import WorkerSettings
    from worker.supervisor import News
    from worker.uploader import CheckpointUploader
    from worker.wire import Done, OutputFile
    from worker.workspace import Scratch, Workspace

log = logging.getLogger(__name__)

FLUSH_S = 10.0
"""How long an attempt that failed waits for its last checkpoint to be stored, for each of its jobs."""
STORE_SHARE = 0.8
"""Share of the grace period after which a worker that shuts down no longer waits for that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What there is to write of a stage that succeeded."""

    stage: ClaimedStage
    artifacts: list[StoredArtifact]
    timings: dict[str, float] = field(default_factory=dict)
    reuse_key: str | None = None
    reused_job_id: uuid.UUID | None = None
    stopped_early: bool = False


class Engine(Protocol):
    """What does the work: the engine process, or the mock engine."""

    @property
    def version(self) -> str | None:
        """Version of the engine, None before one said so."""

    def revision_of(self, base: str, run_id: str) -> str | None:
        """Return which files a base consists of, None if nobody can tell."""

    def run(self, command: Run, on_news: Callable[[News], None]) -> Done:
        """Run a command to the end and return the outputs."""

    def stop(self) -> None:
        """End its process, if it has one."""


class Attempt:
    """One run of the engine. `run_id` names it in every message."""

    def __init__(
        self,
        stage: ClaimedStage,
        *,
        settings: WorkerSettings,
        sessions: sessionmaker[Session],
        store: ObjectStore,
        engine: Engine,
        mailbox: Mailbox,
        patience: Patience,
    ) -> None:
        self.stage = stage
        self.run_id = f"{stage.stage_id}:{stage.attempt}"
        self._settings = settings
        self._sessions = sessions
        self._store = store
        self.engine = engine
        self._mailbox = mailbox
        self._patience = patience
        self._keys: dict[uuid.UUID, str | None] = {}

    def look_up(self) -> list[Finished]:
        """Take from the library what it has; what is left to do, if anything is, stays in `stage`."""
        base = self._base()
        stages = self.stage.all
        if not any(self._makes_a_lora(each) for each in stages):
            return []
        revision = self.engine.revision_of(base, self.run_id)
        found: list[Finished] = []
        for each in stages:
            key = repository.reuse_key(each.name, each.params, each.images, revision, self.engine.version)
            self._keys[each.stage_id] = key
            taken = None if key is None or each.stop_requested else self._take(each, key)
            if taken is not None:
                found.append(taken)
        self.stage = self.stage.without(done.stage for done in found) or self.stage
        return found

    def work(self, scratch: Scratch, reporter: StageReporter, uploader: CheckpointUploader) -> list[Finished]:
        """Do the work up to its stored outputs.

        Raises:
            StageInterrupted: somebody asked for it.
            Exception: whatever else went wrong.
        """
        started = perf_counter()
        with scratch.workspace(self.stage, self._store) as workspace, self._keeping_the_last(uploader):
            for first, *_ in self.stage.by_job:
                self._patience.with_store(partial(workspace.fetch, first, self._check))
            command = self._command(workspace, self._fetch_checkpoints(workspace))
            fetched = perf_counter()

            def hear(news: News) -> None:
                match news:
                    case ProgressReport():
                        reporter.report(news)
                    case Checkpointed():
                        uploader.take(news)
                    case LogLine():
                        reporter.write_line(news)
                    case Shown():
                        uploader.take_show(partial(self._publish_early, workspace, news.output))

            done = self.engine.run(command, hear)
            uploader.drop_shows()
            ran = perf_counter()
            stored = [
                (each, self._publish(workspace, each, [output for output in done.outputs if output.member == place]))
                for place, each in enumerate(self.stage.all)
            ]
        timings = done.timings | {
            "fetch_s": round(fetched - started, 3),
            "engine_s": round(ran - fetched, 3),
            "publish_s": round(perf_counter() - ran, 3),
        }
        if done.peak_bytes is not None:
            timings["peak_bytes"] = done.peak_bytes
        return [
            Finished(
                stage=each,
                artifacts=artifacts,
                timings=timings,
                reuse_key=self._keys.get(each.stage_id),
                stopped_early=done.finished_early,
            )
            for each, artifacts in stored
        ]

    @contextmanager
    def _keeping_the_last(self, uploader: CheckpointUploader) -> Iterator[None]:
        """See a checkpoint on its way into the store if the work ends badly: the next attempt goes on from there."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, StageInterrupted) or error.reason is not Interrupt.LEASE_LOST:
                wait_s = FLUSH_S * len(self.stage.by_job)
                if self._mailbox.shutting_down:
                    wait_s = self._mailbox.grace_left_s(self._settings.worker_grace_s * STORE_SHARE)
                if not uploader.flush(wait_s):
                    log.warning("the last checkpoint was not stored in time")
            raise
        finally:
            uploader.drop_shows()

    def _base(self) -> str:
        """Return where the job's base model is; the mock engine needs none.

        Raises:
            BaseUnavailable: this worker does not know it.
        """
        base: str = self.stage.params["base_model"]
        if self.stage.mock_outcome is not None:
            return base
        if base not in self._settings.base_models:
            raise BaseUnavailable(f"this worker has no base model {base!r}")
        return self._settings.base_models[base]

    @staticmethod
    def _makes_a_lora(stage: ClaimedStage) -> bool:
        """Say whether a stage's result can be taken again, given that everything about it is known."""
        return repository.reuse_key(stage.name, stage.params, stage.images, "any", "any") is not None

    def _take(self, stage: ClaimedStage, key: str) -> Finished | None:
        """Copy an identical result, so that each job owns its objects; None if there is none any more."""
        started = perf_counter()
        try:
            with transaction(self._sessions) as session:
                found = repository.find_reusable(session, account_id=stage.account_id, reuse_key=key)
            if found is None or not found.artifacts:
                return None
            artifacts = self._copy(stage, found)
        except (StoreError, DBAPIError) as error:  # working it out anew is always possible
            log.warning("the library was of no use", extra={"error": type(error).__name__})
            return None
        log.info("taken from the library", extra={"reused": stage.name, "from_job": str(found.job_id)})
        return Finished(
            stage=stage,
            artifacts=artifacts,
            timings={"copy_s": round(perf_counter() - started, 3)},
            reuse_key=key,
            reused_job_id=found.job_id,
        )

    def _copy(self, stage: ClaimedStage, found: Reusable) -> list[StoredArtifact]:
        artifacts = []
        for source in found.artifacts:
            key = artifact_key(stage.account_id, stage.job_id, stage.name, stage.attempt, source.filename)
            self._store.copy(source.key, key)
            artifacts.append(replace(source, key=key))
        return artifacts

    def _fetch_checkpoints(self, workspace: Workspace) -> dict[uuid.UUID, Path | None]:
        """Bring what the stages go on from. If any of a job's is unusable, the job starts from the beginning.

        Raises:
            StageInterrupted: it is one of several jobs, so the others go on without it.
        """
        found: dict[uuid.UUID, Path | None] = {}
        for stages in self.stage.by_job:
            try:
                found |= {each.stage_id: self._fetch_checkpoint(workspace, each) for each in stages}
            except CheckpointUnusable as error:
                log.warning("a checkpoint is unusable, starting from the beginning", extra={"error": str(error)})
                self._patience.with_database(partial(_drop_checkpoints, stages))
                if len(self.stage.by_job) > 1:
                    raise StageInterrupted(Interrupt.REGROUP) from error
                return {}
        return found

    def _fetch_checkpoint(self, workspace: Workspace, stage: ClaimedStage) -> Path | None:
        return self._patience.with_store(lambda: workspace.fetch_checkpoint(stage, self._check))

    def _publish(
        self, workspace: Workspace, stage: ClaimedStage, outputs: Sequence[OutputFile]
    ) -> list[StoredArtifact]:
        return self._patience.with_store(lambda: workspace.publish(stage, outputs, self._check_done))

    def _publish_early(self, workspace: Workspace, output: OutputFile) -> None:
        """Publish an output of a stage that goes on; if that cannot be done now, it comes with the others.

        Belongs to the uploader's thread: a store that is away takes its time to say so.
        """
        stage = self.stage.all[output.member]
        try:
            artifacts = workspace.publish(stage, [output], lambda: None)
            with transaction(self._sessions) as session:
                repository.publish_early(session, **stage.proof, artifacts=artifacts)
        except (StoreError, OutputMissing, OSError, DBAPIError, LeaseLost) as error:  # the folder may go with the run
            log.info("a picture was not published yet", extra={"error": type(error).__name__})

    def _command(self, workspace: Workspace, resume: dict[uuid.UUID, Path | None]) -> Run:
        return Run(
            id=self.run_id,
            members=tuple(self._member(workspace, each, resume.get(each.stage_id)) for each in self.stage.all),
            base=self._base(),
            checkpoint_every_s=self._settings.worker_checkpoint_s,
            finish_early=self.stage.stop_requested,
            memory_profile=self.stage.memory_profile.value,
            traceparent=current_traceparent() or self.stage.traceparent,
            tracestate=current_tracestate() or self.stage.tracestate,
            request_id=self.stage.request_id,
        )

    @staticmethod
    def _member(workspace: Workspace, stage: ClaimedStage, resume_dir: Path | None) -> Member:
        return Member(
            job_id=str(stage.job_id),
            stage=stage.name,
            attempt=stage.attempt,
            config=stage.params,
            inputs_dir=str(workspace.inputs_dir(stage)),
            outputs_dir=str(workspace.outputs_dir(stage)),
            checkpoints_dir=str(workspace.checkpoints_dir(stage)),
            resume_dir=None if resume_dir is None else str(resume_dir),
        )

    def _check_done(self) -> None:
        """Honour an interruption after the engine's work, unless it is one for which a run may end well."""
        self._check(done=True)

    def _check(self, *, done: bool = False) -> None:
        """Honour an interruption while no engine runs.

        Raises:
            StageInterrupted: when there is one for this run.
        """
        wishes = []
        while (message := self._mailbox.take(0)) is not None:
            if not isinstance(message, Interruption) or message.run_id not in {None, self.run_id}:
                continue
            if message.reason is Interrupt.FINISH:
                wishes.append(message)
            elif message.reason not in {Interrupt.SHUTDOWN, Interrupt.REGROUP} or not done:
                raise StageInterrupted(message.reason)
        if wishes and not done:
            self._mailbox.post(wishes[0])  # for the engine, once it runs


def _drop_checkpoints(stages: Sequence[ClaimedStage], session: Session) -> None:
    """Forget where the stages of a job could go on from."""
    for each in stages:
        if each.checkpoint is not None:
            repository.drop_checkpoint(session, **each.proof)
