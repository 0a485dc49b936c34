"""Webhooks are taken from the service only, and only while they are new."""

import json
from datetime import UTC, datetime

import pytest
from standardwebhooks.webhooks import Webhook

from api.client import ClientError, InvalidSignature, verify_webhook
from api.webhooks.signing import make_secret

SECRET, OTHER = make_secret(), make_secret()
BODY = json.dumps({"type": "job.succeeded", "data": {"job_id": "x"}})
SENT = 1_800_000_000


def headers(secret=SECRET, body=BODY):
    """Signed by the standard's reference implementation."""
    signature = Webhook(secret).sign("msg_1", datetime.fromtimestamp(SENT, UTC), body)
    return {"Webhook-Id": "msg_1", "webhook-timestamp": str(SENT), "WEBHOOK-SIGNATURE": signature}


@pytest.mark.parametrize("body", [BODY, BODY.encode()], ids=["text", "bytes"])
@pytest.mark.parametrize("secret", [SECRET, (OTHER, SECRET)], ids=["one", "several"])
def test_what_is_signed_with_a_known_secret_is_read(body, secret):
    assert verify_webhook(body, headers(), secret, now=SENT + 299)["type"] == "job.succeeded"


def test_one_of_two_signatures_is_enough_while_a_secret_is_changed():
    both = headers() | {"WEBHOOK-SIGNATURE": f"{headers(OTHER)['WEBHOOK-SIGNATURE']} {headers()['WEBHOOK-SIGNATURE']}"}
    assert verify_webhook(BODY, both, SECRET, now=SENT)["data"] == {"job_id": "x"}


@pytest.mark.parametrize(
    ("change", "body", "secret", "now"),
    [
        ({}, BODY + " ", SECRET, SENT),
        ({}, BODY, OTHER, SENT),
        ({}, BODY, SECRET, SENT + 301),
        ({}, BODY, SECRET, SENT - 301),
        ({"Webhook-Id": "msg_2"}, BODY, SECRET, SENT),
        ({"webhook-timestamp": "soon"}, BODY, SECRET, SENT),
        ({"WEBHOOK-SIGNATURE": ""}, BODY, SECRET, SENT),
        ({"WEBHOOK-SIGNATURE": "v1,caf\u00e9"}, BODY, SECRET, SENT),
    ],
    ids=["body", "secret", "old", "future", "id", "no time", "no signature", "no ASCII"],
)
def test_anything_else_is_refused(change, body, secret, now):
    with pytest.raises(InvalidSignature) as refusal:
        verify_webhook(body, headers() | change, secret, now=now)
    assert isinstance(refusal.value, ClientError)
    assert SECRET not in str(refusal.value)
