"""`python -m worker`: one engine process, one stage at a time.

TERM or INT: claim nothing more, let the running stage write a checkpoint, give it back, end the engine process, exit.
"""

from __future__ import annotations

import logging
import os
import signal
from typing import TYPE_CHECKING

from api.db import make_engine, session_factory
from api.metrics import exposed, process_registry
from api.storage import ObjectStore
from api.tracing import exported
from worker import logs, tasks
from worker.app import make_app
from worker.hints import HintListener
from worker.loop import WorkLoop
from worker.mailbox import Hint, Mailbox
from worker.metrics import AttemptTimes, EngineGauges
from worker.presence import Presence
from worker.runner import StageRunner
from worker.settings import WorkerSettings
from worker.shutdown import ExitInTime
from worker.supervisor import EngineSupervisor
from worker.workspace import Scratch

if TYPE_CHECKING:
    from types import FrameType

log = logging.getLogger("worker")

MOCK_POLL_S = 0.3
"""A worker that does mock jobs only looks for them itself: hints are for those who can do what they tell of."""
PAUSE_SHARE = 0.5
"""Share of the grace period that a running stage has for its last checkpoint."""


def main() -> None:
    """Build the parts, work until told to stop, leave nothing behind."""
    settings = WorkerSettings()
    logs.configure(settings.log_level)
    mailbox = Mailbox()
    _obey_signals(mailbox)

    database = make_engine(
        settings.database.url.get_secret_value(),
        pool_size=settings.database.pool_size,
        application_name=f"worker {settings.worker_id}"[:63],
    )
    sessions = session_factory(database)
    engine = EngineSupervisor(
        settings.engine,
        env=settings.engine.environment(os.environ),
        mailbox=mailbox,
        pause_s=settings.worker_grace_s * PAUSE_SHARE,
    )
    presence = Presence(settings.worker_id, sessions=sessions, engine=engine, heartbeat_s=settings.worker_heartbeat_s)
    scratch = Scratch(settings.worker_scratch_dir)
    registry = process_registry()
    registry.register(EngineGauges(engine))
    runner = StageRunner(
        settings,
        sessions=sessions,
        store=ObjectStore(settings.store),
        engine=engine,
        scratch=scratch,
        mailbox=mailbox,
        presence=presence,
        times=AttemptTimes(registry),
    )
    loop = WorkLoop(
        runner,
        engine=engine,
        mailbox=mailbox,
        presence=presence,
        poll_s=MOCK_POLL_S if settings.mocks_only else settings.worker_poll_s,
        warm_base=settings.warm_location,
        needs_engine=not settings.mocks_only,
    )
    if not settings.mocks_only:
        app = make_app(settings.redis.url.get_secret_value())
        tasks.register(app, loop.gate, lambda: mailbox.post(Hint()))
        HintListener(app).start()
    ExitInTime(mailbox, settings.worker_grace_s, give_back=runner.give_back).start()
    log.info("worker started", extra={"worker": settings.worker_id})
    try:
        with exported(settings.tracing, "duolora-worker"), exposed(settings.metrics, registry):
            loop.run()
    finally:
        scratch.close()
        database.dispose()
    log.info("worker stopped", extra={"worker": settings.worker_id})


def _obey_signals(mailbox: Mailbox) -> None:
    def stop(_number: int, _frame: FrameType | None) -> None:
        mailbox.shut_down()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


if __name__ == "__main__":
    main()
