"""Endpoints, and the acts of a sender."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select, update

from api.db import transaction
from api.webhooks.models import WebhookAttempt, WebhookDelivery, WebhookEndpoint
from api.webhooks.repository import AttemptTime, DeliveryOutcome, record_outcome, take_due
from tests.api.factories import make_account

HOLD = timedelta(seconds=60)
TOOK = AttemptTime(datetime(2026, 1, 2, tzinfo=UTC), timedelta(milliseconds=12))
URL = "https://receiver.example/hook"


@pytest.fixture
def account(sessions):
    return make_account(sessions)


class Post:
    """Does what a sender does, but for the sending."""

    def __init__(self, sessions):
        self._sessions = sessions

    def take(self, limit=10, **options):
        with transaction(self._sessions) as session:
            return take_due(session, limit=limit, hold=HOLD, **options)

    def record(self, due, scale=1, **outcome):
        with transaction(self._sessions) as session:
            return record_outcome(session, due=due, outcome=DeliveryOutcome(**outcome), time=TOOK, scale=scale)

    def make_due(self):
        with transaction(self._sessions) as session:
            session.execute(update(WebhookDelivery).values(next_attempt_at=func.now()))

    def wait(self):
        """How long until the next attempt at the only delivery."""
        with transaction(self._sessions) as session:
            return session.scalar(select(WebhookDelivery.next_attempt_at - func.now()))

    def row(self):
        (only,) = self.rows()
        return only

    def rows(self):
        with transaction(self._sessions) as session:
            return session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.id)).all()

    def log(self):
        with transaction(self._sessions) as session:
            return session.scalars(select(WebhookAttempt).order_by(WebhookAttempt.attempt)).all()

    def endpoint(self, endpoint_id=None):
        query = select(WebhookEndpoint)
        if endpoint_id is not None:
            query = query.where(WebhookEndpoint.id == endpoint_id)
        with transaction(self._sessions) as session:
            return session.scalars(query).one()

    def redirect(self, endpoint_id, url):
        """Point an endpoint somewhere, past the check of its URL."""
        with transaction(self._sessions) as session:
            session.get(WebhookEndpoint, endpoint_id).url = url

    def add_endpoint(self, account_id, **fields):
        with transaction(self._sessions) as session:
            endpoint = WebhookEndpoint(**{"account_id": account_id, "url": URL, **fields})
            session.add(endpoint)
            session.flush()
            return endpoint.id


@pytest.fixture
def post(sessions):
    return Post(sessions)
