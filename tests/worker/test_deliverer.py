"""Senders of webhooks: they outlive whatever an attempt brings to light, and no server keeps them all."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from api.db import transaction
from api.settings import WebhookSettings
from api.webhooks.delivery import WebhookSender
from api.webhooks.models import DeliveryState, WebhookAttempt, WebhookDelivery, WebhookEndpoint
from api.webhooks.repository import DeliveryOutcome, DueDelivery
from api.webhooks.signing import SCHEDULE
from tests.api.factories import cancel, make_account, make_job
from tests.support.webhook_receiver import webhook_receiver
from tests.worker.bench import eventually
from worker.dispatcher import deliverer
from worker.dispatcher.deliverer import Deliverer

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable

    from tests.worker.bench import Bench


@pytest.fixture
def account(bench: Bench) -> uuid.UUID:
    return make_account(bench.sessions)


def deliveries(bench: Bench) -> dict[str, WebhookDelivery]:
    with bench.sessions() as session:
        return {row.url: row for row in session.scalars(select(WebhookDelivery))}


def queue(bench: Bench, account: uuid.UUID, url: str) -> None:
    cancel(bench.sessions, account, make_job(bench.sessions, account, webhook_url=url))


def make(bench: Bench, send: Callable[[DueDelivery], DeliveryOutcome], **options: float) -> Deliverer:
    return Deliverer(
        bench.sessions, send, stop=threading.Event(), **{"poll_s": 0.01, "timeout_s": 5, "time_scale": 1} | options
    )


def go(round_: Deliverer) -> None:
    round_(None)  # type: ignore[arg-type] - it asks nothing of its connection


def test_an_attempt_that_fails_unforeseen_is_recorded_and_its_sender_goes_on(bench: Bench, account, monkeypatch):
    monkeypatch.setattr(deliverer, "SENDERS", 1)
    bad, good = "https://bad.example/", "https://good.example/"

    def send(delivery: DueDelivery) -> DeliveryOutcome:
        if delivery.url == bad:
            raise OverflowError("date value out of range")
        return DeliveryOutcome(status=204)

    round_ = make(bench, send)
    for url in (bad, good):
        queue(bench, account, url)

    def both_attempted() -> bool:
        go(round_)
        rows = deliveries(bench)
        return rows[good].state == "delivered" and rows[bad].last_error is not None

    eventually(both_attempted, within_s=20)
    failed = deliveries(bench)[bad]
    assert (failed.state, failed.last_error) == ("pending", "an unexpected OverflowError on our side")


def test_a_server_that_hangs_keeps_two_senders_and_the_others_go_on(bench: Bench, account):
    release = threading.Event()
    hanging: list[uuid.UUID] = []

    def send(delivery: DueDelivery) -> DeliveryOutcome:
        if "slow" in delivery.url:
            hanging.append(delivery.id)
            release.wait(60)
        return DeliveryOutcome(status=204)

    round_ = make(bench, send)
    for _ in range(20):
        queue(bench, account, "https://slow.example/")
    for number in range(4):
        queue(bench, account, f"https://quick-{number}.example/")

    def quick_ones_arrived() -> bool:
        go(round_)
        return all(row.state == "delivered" for url, row in deliveries(bench).items() if "quick" in url)

    try:
        eventually(quick_ones_arrived, within_s=20)
        assert len(hanging) == 2
    finally:
        release.set()
    eventually(lambda: not +round_._in_flight)


def test_a_backlog_is_worked_off_without_waiting_between_rounds(bench: Bench, account):
    for _ in range(30):
        queue(bench, account, "https://receiver.example/")
    round_ = make(bench, lambda _: DeliveryOutcome(status=204), poll_s=5)

    def count() -> int:
        with bench.sessions() as session:
            delivered = WebhookDelivery.state == DeliveryState.DELIVERED
            return len(session.scalars(select(WebhookDelivery.id).where(delivered)).all())

    began = time.monotonic()
    while count() < 30:
        go(round_)
    assert time.monotonic() - began < 40, "two at a time, each round waiting, would take 75 s"


def test_a_receiver_that_is_down_for_the_whole_schedule_is_disabled_and_every_attempt_logged(bench: Bench, account):
    """Three days in a second."""
    sender = WebhookSender(WebhookSettings(allow_cidrs="127.0.0.0/8", timeout_s=5))
    round_ = make(bench, sender.send, time_scale=1e-6)
    queue(bench, account, "http://127.0.0.1:1/")

    def ended() -> bool:
        go(round_)
        return deliveries(bench)["http://127.0.0.1:1/"].state == "exhausted"

    eventually(ended)
    with bench.sessions() as session:
        log = session.scalars(select(WebhookAttempt).order_by(WebhookAttempt.attempt)).all()
        endpoint = session.scalars(select(WebhookEndpoint)).one()
    assert [row.attempt for row in log] == list(range(1, len(SCHEDULE) + 1))
    assert all("ConnectError" in row.error and row.status is None for row in log)
    assert all(earlier.started_at < later.started_at for earlier, later in pairwise(log))
    assert (endpoint.state, endpoint.disabled_reason) == ("disabled", "exhausted")


def test_a_receiver_that_comes_back_is_told_what_it_missed(bench: Bench, account):
    with webhook_receiver() as end:
        sender = WebhookSender(WebhookSettings(allow_cidrs="127.0.0.0/8", timeout_s=5))
        failures = iter([True, True])

        def send(delivery: DueDelivery) -> DeliveryOutcome:
            return DeliveryOutcome(error="down") if next(failures, False) else sender.send(delivery)

        round_ = make(bench, send, time_scale=1e-6)
        queue(bench, account, end.url)

        def arrived() -> bool:
            go(round_)
            return deliveries(bench)[end.url].state == "delivered"

        eventually(arrived)
        got = end.deliveries.get(timeout=5)
    with transaction(bench.sessions) as session:
        row = session.scalars(select(WebhookDelivery)).one()
        errors = session.scalars(select(WebhookAttempt.error).order_by(WebhookAttempt.attempt)).all()
    assert got.headers["webhook-id"] == f"msg_{row.id.hex}"
    assert (row.attempts, errors) == (3, ["down", "down", None])
