"""Events, senders and owners at once: none waits for another in a circle, no end is lost or told twice."""

import random
import threading
import time
from collections import Counter
from datetime import timedelta

from sqlalchemy import text

from api.accounts.service import Caller
from api.db import make_engine, session_factory, transaction
from api.errors import ServiceError
from api.jobs.events import EventType, record_event
from api.jobs.locking import instant, lock_job
from api.settings import WebhookSettings
from api.webhooks.models import EndpointState
from api.webhooks.repository import DeliveryOutcome, record_outcome, take_due
from api.webhooks.schemas import EndpointCreate, EndpointPatch
from api.webhooks.service import WebhookService
from tests.api.factories import cancel, make_account, make_job
from tests.api.webhooks.conftest import TOOK, URL
from tests.support.vault import VAULT

SECONDS = 5
OUTCOMES = (
    DeliveryOutcome(status=204),
    DeliveryOutcome(status=204),
    DeliveryOutcome(status=500, error="no"),
    DeliveryOutcome(status=410, error="gone", final=True),
)


class Storm:
    """All that can happen to endpoints and deliveries, a random bit of it at a time."""

    def __init__(self, sessions):
        self.sessions = sessions
        self.account = make_account(sessions)
        self.caller = Caller(account_id=self.account, key_id="k", max_priority=0, scopes=frozenset())
        self.service = WebhookService(WebhookSettings(), sessions)
        for _ in range(3):
            self.create()
        self.jobs = [self.make_job() for _ in range(6)]
        self.done = Counter()
        self.failures = []

    def make_job(self):
        return make_job(self.sessions, self.account, webhook_url=URL)

    def create(self):
        self.service.create(self.caller, EndpointCreate(url=URL, events=list(EventType)))

    def report(self, rng):
        with transaction(self.sessions) as session:
            job = lock_job(session, rng.choice(self.jobs)).job
            record_event(session, job, EventType.PROGRESS, now=instant(session), data={"step": 1})

    def end(self, rng):
        place = rng.randrange(len(self.jobs))
        cancel(self.sessions, self.account, self.jobs[place])
        self.jobs[place] = self.make_job()

    def send(self, rng):
        with transaction(self.sessions) as session:
            taken = take_due(session, limit=4, hold=timedelta(seconds=1))
        for due in taken:
            with transaction(self.sessions) as session:
                record_outcome(session, due=due, outcome=rng.choice(OUTCOMES), time=TOOK, scale=1e-6)

    def manage(self, rng):
        chosen = rng.choice(self.service.list(self.caller, None).items).id
        match rng.randrange(6):
            case 0:
                self.service.change(self.caller, chosen, EndpointPatch(state=EndpointState.DISABLED))
            case 1:
                self.service.change(self.caller, chosen, EndpointPatch(url="https://other.example/"))
            case 2:
                self.service.rotate(self.caller, chosen, None)
            case 3:
                self.create()
                self.service.delete(self.caller, chosen)
            case 4:
                newest = self.service.deliveries(self.caller, chosen, cursor=None, limit=5, state=None).items
                if newest:
                    self.service.replay(self.caller, rng.choice(newest).id)
            case _:
                self.service.enable(self.caller, chosen)

    def blow(self, act, seed, until):
        rng = random.Random(seed)
        while time.monotonic() < until:
            try:
                act(rng)
                self.done[act.__name__] += 1
            except ServiceError as error:  # disabled or deleted by another a moment ago
                assert error.status in {404, 409}  # noqa: PT017
            except Exception as error:  # noqa: BLE001 - shown by the test
                self.failures.append((act.__name__, error))


def test_nobody_waits_in_a_circle(database_url):
    engine = make_engine(database_url, pool_size=10)
    sessions = session_factory(engine, VAULT)
    storm = Storm(sessions)
    until = time.monotonic() + SECONDS
    acts = [storm.report, storm.report, storm.end, storm.send, storm.send, storm.send, storm.manage, storm.manage]
    threads = [
        threading.Thread(target=storm.blow, args=(act, seed, until), daemon=True) for seed, act in enumerate(acts)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert storm.failures == []
    assert set(storm.done) == {"report", "end", "send", "manage"}
    twice = text(
        "SELECT count(*) FROM webhook_deliveries WHERE type = 'job.canceled' AND replay_of IS NULL"
        " GROUP BY job_id, endpoint_id HAVING count(*) > 1"
    )
    untold = text(
        "SELECT count(*) FROM jobs WHERE state = 'canceled' AND NOT EXISTS ("
        " SELECT 1 FROM webhook_deliveries d JOIN webhook_endpoints e ON e.id = d.endpoint_id"
        " WHERE e.job_id = jobs.id AND d.type = 'job.canceled')"
    )
    with engine.connect() as connection:
        assert connection.execute(twice).all() == []
        assert connection.scalar(untold) == 0
    engine.dispose()
