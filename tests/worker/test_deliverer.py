"""Senders of webhooks outlive whatever an attempt brings to light."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from sqlalchemy import select

from api.db import transaction
from api.jobs.events import EventType, record_event
from api.jobs.locking import instant
from api.jobs.models import Job
from api.webhooks.models import WebhookDelivery
from api.webhooks.repository import DeliveryOutcome, DueDelivery
from tests.worker.bench import eventually
from tests.worker.jobs import submit
from worker.dispatcher import deliverer
from worker.dispatcher.deliverer import Deliverer

if TYPE_CHECKING:
    from tests.worker.bench import Bench


def deliveries(bench: Bench) -> dict[str, WebhookDelivery]:
    with bench.sessions() as session:
        return {row.url: row for row in session.scalars(select(WebhookDelivery))}


def queue(bench: Bench, url: str) -> None:
    job = submit(bench, webhook_url=url)
    with transaction(bench.sessions) as session:
        row = session.get_one(Job, job.id)
        record_event(session, row, EventType.SUCCEEDED, now=instant(session), data={})


def test_an_attempt_that_fails_unforeseen_is_recorded_and_its_sender_goes_on(bench: Bench, monkeypatch):
    monkeypatch.setattr(deliverer, "SENDERS", 1)
    bad, good = "https://bad.example/", "https://good.example/"

    def send(delivery: DueDelivery) -> DeliveryOutcome:
        if delivery.url == bad:
            raise OverflowError("date value out of range")
        return DeliveryOutcome(status=204)

    round_ = Deliverer(bench.sessions, send, stop=threading.Event(), poll_s=0.01, timeout_s=5)
    for url in (bad, good):
        queue(bench, url)

    def both_attempted() -> bool:
        round_(None)  # type: ignore[arg-type] - it asks nothing of its connection
        rows = deliveries(bench)
        return rows[good].state == "delivered" and rows[bad].last_error is not None

    eventually(both_attempted, within_s=20)
    failed = deliveries(bench)[bad]
    assert (failed.state, failed.last_error) == ("pending", "an unexpected OverflowError on our side")
