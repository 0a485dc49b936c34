"""`python -m worker.dispatcher`: all duties in one small process. TERM or INT ends it; a bug in a duty ends it too."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING

from api.db import make_engine, session_factory
from api.metrics import exposed, process_registry
from api.storage import ObjectStore
from api.tracing import exported
from api.webhooks.delivery import WebhookSender
from worker import logs
from worker.app import make_app
from worker.dispatcher.deliverer import Deliverer
from worker.dispatcher.duty import Duty
from worker.dispatcher.gauges import RowGauges
from worker.dispatcher.janitor import Janitor
from worker.dispatcher.publisher import HintPublisher
from worker.dispatcher.rounds import Relay, every, reap, republish
from worker.settings import DispatcherSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session, sessionmaker

    from worker.dispatcher.duty import Round

log = logging.getLogger("worker.dispatcher")

SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})
LOOK_S = 1.0
"""How often the duties are looked at."""
STOP_S = 5.0
"""How long they may take to stop."""


def main() -> int:
    """Start the duties, wait for a signal or for one of them to die, stop them all; the exit status tells which."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # before any thread starts, so that only sigtimedwait sees them
    settings = DispatcherSettings()
    logs.configure(settings.log_level)
    stop = threading.Event()
    sessions = session_factory(
        make_engine(
            settings.database.url.get_secret_value(),
            pool_size=settings.database.pool_size,
            application_name="dispatcher",
        ),
        settings.seals.vault(),
    )
    registry = process_registry()
    registry.register(RowGauges(sessions))
    with exported(settings.tracing, "duolora-dispatcher"), exposed(settings.metrics, registry):
        return _serve(_duties(settings, sessions, stop), stop)


def _serve(duties: Sequence[Duty], stop: threading.Event) -> int:
    """Run the duties until a signal comes or one of them dies."""
    for duty in duties:
        duty.start()
    log.info("dispatcher started")
    dead: list[str] = []
    while not dead and signal.sigtimedwait(SIGNALS, LOOK_S) is None:
        dead = [duty.name for duty in duties if not duty.is_alive()]
    stop.set()
    for duty in duties:
        duty.join(STOP_S)
    if dead:
        log.error("a duty died, so the dispatcher ends", extra={"duties": dead})
        return 1
    log.info("dispatcher stopped")
    return 0


def _duties(settings: DispatcherSettings, sessions: sessionmaker[Session], stop: threading.Event) -> list[Duty]:
    database_url = settings.database.url.get_secret_value()
    publisher = HintPublisher(make_app(settings.redis.url.get_secret_value()))
    rounds: dict[str, Round] = {
        "relay": Relay(sessions, publisher, stop=stop, poll_s=settings.dispatcher_relay_poll_s),
        "reaper": every(settings.dispatcher_reap_s, stop, partial(reap, sessions)),
        "republisher": every(
            settings.dispatcher_republish_s,
            stop,
            partial(republish, sessions, older_than_s=settings.dispatcher_republish_after_s),
        ),
        "deliverer": Deliverer(
            sessions,
            WebhookSender(settings.webhooks).send,
            stop=stop,
            poll_s=settings.dispatcher_deliver_s,
            timeout_s=settings.webhooks.timeout_s,
            time_scale=settings.webhooks.time_scale,
        ),
        "janitor": Janitor(settings, sessions=sessions, store=ObjectStore(settings.store), stop=stop),
    }
    return [
        Duty(name, round_, database_url=database_url, stop=stop, standby_s=settings.dispatcher_standby_s)
        for name, round_ in rounds.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
