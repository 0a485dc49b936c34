"""A place to run workers in tests: real database, broker and object store, a stub only behind the engine's pipe."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import select
from sqlalchemy.orm import selectinload

from api.db import transaction
from api.jobs.models import Job, Stage, StageAttempt
from api.jobs.repository import request_cancel
from worker.loop import WorkLoop
from worker.mailbox import Mailbox
from worker.metrics import AttemptTimes, EngineGauges
from worker.presence import Presence
from worker.runner import StageRunner
from worker.settings import WorkerSettings
from worker.supervisor import EngineSupervisor
from worker.workspace import Scratch

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sqlalchemy.orm import Session, sessionmaker

    from api.storage import ObjectStore

REPOSITORY = Path(__file__).parents[2]
STUB = Path(__file__).with_name("stub_engine.py")
PATIENCE_S = 60.0
LOOK_EVERY_S = 0.02

QUICK = {
    "WORKER_HEARTBEAT_S": "0.1",
    "WORKER_PROGRESS_S": "0.02",
    "WORKER_POLL_S": "0.1",
    "WORKER_PATIENCE_S": "2",
    "WORKER_EVENT_S": "0.1",
    "WORKER_GRACE_S": "4",
    "WORKER_CHECKPOINT_S": "0.1",
    "WORKER_PAIRS": "false",
    "ENGINE_CANCEL_GRACE_S": "0.5",
    "ENGINE_TERM_GRACE_S": "0.3",
    "DISPATCHER_REAP_S": "0.1",
    "DISPATCHER_REPUBLISH_S": "0.2",
    "DISPATCHER_REPUBLISH_AFTER_S": "0.2",
    "DISPATCHER_DELIVER_S": "0.05",
    "DISPATCHER_STANDBY_S": "0.1",
    "WEBHOOK_ALLOW_CIDRS": "127.0.0.0/8",
}
"""Settings that make every wait of the service short."""

Value = TypeVar("Value")
Behaviours = dict[str, list[str]]


def eventually(look: Callable[[], Value], *, within_s: float = PATIENCE_S) -> Value:
    """Look until there is something to see."""
    give_up_at = time.monotonic() + within_s
    while not (seen := look()):
        if time.monotonic() > give_up_at:
            pytest.fail(f"did not happen within {within_s:.0f} s")
        time.sleep(LOOK_EVERY_S)
    return seen


class Bench:
    """Submits jobs, runs workers, looks at rows."""

    def __init__(
        self, *, environment: Mapping[str, str], sessions: sessionmaker[Session], store: ObjectStore, folder: Path
    ) -> None:
        self.environment = {**environment, **QUICK, "WORKER_SCRATCH_DIR": str(folder / "scratch")}
        self.sessions = sessions
        self.store = store
        self.folder = folder
        self.runs = folder / "runs"
        self.runs.mkdir()

    def engine_command(self, behaviours: Behaviours) -> str:
        return json.dumps([sys.executable, "-ES", str(STUB), str(self.runs), json.dumps(behaviours)])

    def settings(self, behaviours: Behaviours, **environment: str) -> WorkerSettings:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (self.environment | environment).items():
                patch.setenv(name, value)
            patch.setenv("ENGINE_COMMAND", self.engine_command(behaviours))
            return WorkerSettings()

    @contextmanager
    def worker(
        self, behaviours: Behaviours | None = None, *, store: ObjectStore | None = None, **environment: str
    ) -> Iterator[InProcessWorker]:
        """A worker without hints in a thread: it polls ten times a second."""
        worker = InProcessWorker(
            self.settings(behaviours or {}, **environment), sessions=self.sessions, store=store or self.store
        )
        worker.start()
        try:
            yield worker
        finally:
            worker.stop()

    @contextmanager
    def process(
        self, module: str, *, behaviours: Behaviours | None = None, **environment: str
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A process of the service; its log is in `<module>.log`, and shown when a test fails."""
        env = {
            "PATH": os.environ["PATH"],
            "ENGINE_COMMAND": self.engine_command(behaviours or {}),
            **self.environment,
            **environment,
        }
        log = self.folder / f"{module}.log"
        with log.open("ab") as stream:
            process = subprocess.Popen([sys.executable, "-m", module], cwd=REPOSITORY, env=env, stderr=stream)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(PATIENCE_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            sys.stderr.write(log.read_text())

    def read(self, job_id: uuid.UUID) -> Job:
        """The job as it stands, with stages and artifacts."""
        with self.sessions() as session:
            return session.scalars(
                select(Job).where(Job.id == job_id).options(selectinload(Job.stages), selectinload(Job.artifacts))
            ).one()

    def stage(self, job_id: uuid.UUID, name: str) -> Stage:
        return next(stage for stage in self.read(job_id).stages if stage.name == name)

    def attempts(self, job_id: uuid.UUID, name: str) -> list[tuple[int, str | None]]:
        """Number and outcome of every attempt at a stage."""
        with self.sessions() as session:
            rows = session.scalars(
                select(StageAttempt)
                .join(Stage, Stage.id == StageAttempt.stage_id)
                .where(Stage.job_id == job_id, Stage.name == name)
                .order_by(StageAttempt.attempt)
            )
            return [(row.attempt, row.outcome and row.outcome.value) for row in rows]

    def wait_for(self, job_id: uuid.UUID, state: str, *, within_s: float = PATIENCE_S) -> Job:
        eventually(lambda: self.state(job_id) == state, within_s=within_s)
        return self.read(job_id)

    def state(self, job_id: uuid.UUID) -> str:
        with self.sessions() as session:
            return session.scalars(select(Job.state).where(Job.id == job_id)).one().value

    def wait_for_run(self, stage: str, attempt: int = 1) -> int:
        """Wait until the stub has begun a run; its process id."""
        mark = self.runs / f"{stage}.{attempt}"
        return int(eventually(lambda: mark.exists() and mark.read_text()))

    def open(self, gate: str) -> None:
        (self.runs / gate).touch()

    def cancel(self, job: Job) -> None:
        with transaction(self.sessions) as session:
            assert request_cancel(session, account_id=job.account_id, job_id=job.id)


class InProcessWorker:
    """The worker's loop in a thread of the test, which owns the engine process as the main thread does otherwise."""

    def __init__(self, settings: WorkerSettings, *, sessions: sessionmaker[Session], store: ObjectStore) -> None:
        self.mailbox = Mailbox()
        self.settings = settings
        self.engine = EngineSupervisor(
            settings.engine,
            env=settings.engine.environment(os.environ),
            mailbox=self.mailbox,
            pause_s=settings.worker_grace_s / 2,
        )
        presence = Presence(
            settings.worker_id, sessions=sessions, engine=self.engine, heartbeat_s=settings.worker_heartbeat_s
        )
        self._scratch = Scratch(settings.worker_scratch_dir)
        self.registry = CollectorRegistry()
        self.registry.register(EngineGauges(self.engine))
        runner = StageRunner(
            settings,
            sessions=sessions,
            store=store,
            engine=self.engine,
            scratch=self._scratch,
            mailbox=self.mailbox,
            presence=presence,
            times=AttemptTimes(self.registry),
        )
        self._loop = WorkLoop(
            runner,
            engine=self.engine,
            mailbox=self.mailbox,
            presence=presence,
            poll_s=settings.worker_poll_s,
            warm_base=settings.warm_location,
            needs_engine=not settings.mocks_only,
        )
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="in-process worker")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Shut down as a signal would; a crash of the loop fails the test."""
        self.mailbox.shut_down()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        self._scratch.close()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            self._loop.run()
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            self._failure = error


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def states(stages: Sequence[Stage]) -> dict[str, str]:
    return {stage.name: stage.state.value for stage in stages}
