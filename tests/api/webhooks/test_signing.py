import base64
import json
import time
import uuid
from datetime import timedelta

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from api.webhooks.signing import SCHEDULE, delay_before, make_secret, message_id, sign

BODY = json.dumps({"type": "job.succeeded", "data": {"name": "é"}}).encode()


def headers(secret, body=BODY, message="msg_1", timestamp=None):
    timestamp = int(time.time()) if timestamp is None else timestamp
    return {
        "webhook-id": message,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(secret, message=message, timestamp=timestamp, body=body),
    }


def test_the_reference_library_accepts_our_signature():
    secret = make_secret()
    assert Webhook(secret).verify(BODY.decode(), headers(secret)) == json.loads(BODY)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda body, head: (body + b" ", head),
        lambda body, head: (body, head | {"webhook-id": "msg_2"}),
        lambda body, head: (body, head | {"webhook-timestamp": str(int(head["webhook-timestamp"]) + 1)}),
        lambda body, head: (
            body,
            head | {"webhook-signature": sign(make_secret(), message="msg_1", timestamp=1, body=body)},
        ),
    ],
)
def test_the_reference_library_refuses_a_change(tamper):
    secret = make_secret()
    body, changed = tamper(BODY, headers(secret))
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body.decode(), changed)


def test_a_secret_has_the_length_that_the_standard_asks_for():
    secret = make_secret()
    assert secret.startswith("whsec_")
    assert 24 <= len(base64.b64decode(secret.removeprefix("whsec_"))) <= 64
    assert make_secret() != secret


def test_a_message_id_has_no_full_stop():
    assert "." not in message_id(uuid.uuid4())


def test_the_schedule_grows_and_ends():
    waits = [delay_before(attempt) for attempt in range(1, len(SCHEDULE) + 1)]
    assert waits[0] == timedelta(0)
    assert all(base <= wait <= base * 1.1 for wait, base in zip(waits, SCHEDULE, strict=True))
    assert list(SCHEDULE[1:4]) == [timedelta(seconds=5), timedelta(minutes=5), timedelta(minutes=30)]
    assert timedelta(hours=75) < sum(SCHEDULE, timedelta(0)) < timedelta(hours=76)
    assert delay_before(len(SCHEDULE) + 1) is None
