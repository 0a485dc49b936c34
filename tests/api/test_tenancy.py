"""What belongs to one account does not exist for another: every operation of the document that takes an id.

A new path takes part as soon as the document has it. A new kind of id needs a line in `OWNED`; without it this fails.
"""

import json

import pytest
from sqlalchemy import select

from api import openapi
from api.db import transaction
from api.webhooks.models import WebhookDelivery
from tests.api.factories import make_account, make_lora, png

SPEC = openapi.document()
WITH_IDS = [
    pytest.param((method, path, operation), id=operation["operationId"])
    for path, entry in SPEC["paths"].items()
    for method, operation in entry.items()
    if "{" in path
]


def job(caller, sessions):
    return caller.submit().json()["id"]


def webhook(caller, sessions):
    return caller.post("/webhooks", json={"url": "https://receiver.example/"}).json()["id"]


def delivery(caller, sessions):
    caller.post(f"/webhooks/{webhook(caller, sessions)}/ping")
    with transaction(sessions) as session:
        return str(session.scalars(select(WebhookDelivery.id)).first())


def upload(caller, sessions):
    return caller.post("/uploads", files={"file": ("a.png", png())}).json()["id"]


def lora(caller, sessions):
    return str(make_lora(sessions, make_account(sessions)))


def key(caller, sessions):
    return caller.post("/keys", json={"label": "spare"}).json()["id"]


OWNED = {
    "job_id": job,
    "webhook_id": webhook,
    "delivery_id": delivery,
    "upload_id": upload,
    "lora_id": lora,
    "key_id": key,
}
"""Name of an id in a path -> makes one of the account's and returns its id."""


def request(caller, method, path, operation):
    """Ask as the document's example does."""
    body = next(iter(operation.get("requestBody", {}).get("content", {"none": {}}).items()))
    options = {"headers": {"Prefer": "wait=0"}, "follow_redirects": False}
    if body[0] == "application/json":
        options["json"] = body[1]["example"]
    return caller.request(method.upper(), path, **options)


@pytest.mark.parametrize("wanted", WITH_IDS)
def test_what_is_anothers_is_not_there(wanted, caller, stranger, sessions):
    method, path, operation = wanted
    names = [part["name"] for part in operation["parameters"] if part["in"] == "path"]
    ids = {name: OWNED[name](caller, sessions) for name in names}
    theirs = request(stranger, method, path.format(**ids), operation)
    assert (theirs.status_code, theirs.json()["code"]) == (404, "not_found")
    nobodys = dict.fromkeys(names, "019ab2f0-7c31-7d2e-9b11-2f64c8d0a1e5")
    neither = request(stranger, method, path.format(**nobodys), operation)
    assert told(theirs, ids.values()) == told(neither, nobodys.values())
    if operation["operationId"] != "stream_events":  # whose answer would not end
        assert request(caller, method, path.format(**ids), operation).status_code != 404


def told(answer, ids):
    """What an answer gives away, the ids in it aside."""
    text = json.dumps({name: value for name, value in answer.json().items() if name != "request_id"})
    for each in ids:
        text = text.replace(each, "ID")
    return answer.status_code, text


def test_lists_show_only_ones_own(caller, stranger, sessions):
    for make in OWNED.values():
        make(caller, sessions)
    for path, entry in SPEC["paths"].items():
        schema = json.dumps(entry.get("get", {}).get("responses", {}).get("200", {}))
        if "{" not in path and "Page" in schema and path != "/recipes":
            ours, theirs = ({item["id"] for item in each.get(path).json()["items"]} for each in (caller, stranger))
            assert ours, path
            assert not ours & theirs, path
