"""`duolora webhooks` against a running stack, with a server that takes what it is sent."""

import json

import pytest

from api.client import verify_webhook
from tests.support.webhook_receiver import webhook_receiver

pytestmark = [pytest.mark.xdist_group("commands"), pytest.mark.timeout(120)]


@pytest.fixture
def receiver():
    with webhook_receiver() as running:
        yield running


def test_a_webhook_from_its_making_to_its_end(duolora, submit, receiver):
    wishes = ("--event", "job.succeeded", "--description", "the gallery")
    hook = duolora("webhooks", "create", receiver.url, *wishes, "--json").document()
    submit("--watch")
    delivery = receiver.deliveries.get(timeout=20)
    assert verify_webhook(delivery.body, delivery.headers, hook["secret"])["type"] == "job.succeeded"
    assert "the gallery" in duolora("webhooks", "list").out
    assert hook["secret"] not in duolora("webhooks", "show", hook["id"]).out
    sent = duolora("webhooks", "deliveries", hook["id"], "--json").document()
    assert [each["type"] for each in sent] == ["job.succeeded"]
    shown = duolora("webhooks", "delivery", sent[0]["id"], "--json").document()
    assert json.loads(shown["body"])["type"] == "job.succeeded"
    assert duolora("webhooks", "replay", sent[0]["id"]).status == 0
    assert receiver.deliveries.get(timeout=20).headers["webhook-id"] == delivery.headers["webhook-id"]
    assert duolora("webhooks", "rotate", hook["id"], "--json").document()["secret"] != hook["secret"]
    assert "disabled" in duolora("webhooks", "change", hook["id"], "--state", "disabled", "--event", "job.failed").out
    assert duolora("webhooks", "ping", hook["id"]).status == 5
    assert "enabled" in duolora("webhooks", "enable", hook["id"]).out
    assert "webhook.ping" in duolora("webhooks", "ping", hook["id"]).out
    assert duolora("webhooks", "delete", hook["id"]).status == 0
    assert duolora("webhooks", "list", "--json").document() == []


def test_a_webhook_that_is_refused_is_status_2(duolora):
    ended = duolora("webhooks", "create", "http://10.0.0.1/hook")
    assert ended.status == 2
    assert "/url" in ended.err
