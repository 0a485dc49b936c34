"""What both clients share: asking again, and being the same."""

import asyncio
import inspect

import httpx
import pytest

from api import openapi
from api.client import AsyncClient, Client, ServiceRefused
from api.client.core import Operation, Stream

JOB = {"id": "x", "kind": "personalize", "state": "queued", "progress": {}, "created_at": "2026-01-01T00:00:00Z"}
METHODS = {
    "submit_job": "personalize",
    "list_jobs": "jobs",
    "read_job": "job",
    "delete_job": "delete",
    "cancel_job": "cancel",
    "stop_job": "stop",
    "retry_job": "retry",
    "stream_events": "events",
    "read_logs": "logs",
    "list_attempts": "attempts",
    "list_recipes": "recipes",
    "list_webhooks": "webhooks",
    "read_webhook": "webhook",
    "list_deliveries": "deliveries",
    "read_delivery": "delivery",
    "list_loras": "loras",
    "read_lora": "lora",
    "change_lora": "update_lora",
    "create_upload": "upload",
    "presign_upload": "upload_by_link",
    "confirm_upload": "upload_by_link",
    "list_keys": "keys",
    "read_key": "key",
}
"""Operations that a client calls by other names."""
OF_OPERATORS = {"livez", "readyz"}


def operations():
    paths = openapi.document()["paths"].values()
    return {operation["operationId"] for entry in paths for operation in entry.values()} - OF_OPERATORS


def test_every_operation_of_the_service_has_a_method():
    for operation in operations():
        method = inspect.getattr_static(Client, METHODS.get(operation, operation))
        assert isinstance(method, Operation | Stream), operation


def test_both_clients_have_the_same_methods_with_the_same_words():
    def methods(kind):
        return {
            name: method.function
            for name in dir(kind)
            if isinstance(method := inspect.getattr_static(kind, name), Operation | Stream)
        }

    assert methods(Client) == methods(AsyncClient)
    assert "timeout_s" in inspect.signature(Client("http://x", "k").wait).parameters


def answering(client, *answers):
    """Let a client get these answers one after another; an exception is raised. Returns what was asked."""
    left, asked = list(answers), []

    def answer(request):
        asked.append(request)
        given = left.pop(0)
        if isinstance(given, Exception):
            raise given
        status, *rest = given if isinstance(given, tuple) else (given,)
        return httpx.Response(status, json=JOB | (rest[0] if rest else {}), headers={"Retry-After": "0"})

    client.wire.api._transport = httpx.MockTransport(answer)
    return asked


@pytest.fixture
def client(monkeypatch):
    monkeypatch.setattr("api.client.core.FIRST_PAUSE_S", 0.0)
    with Client("http://service", "duo_x") as made:
        yield made


GONE = httpx.ReadError("gone")


@pytest.mark.parametrize("trouble", [GONE, 502, 503, 504, 429])
def test_what_may_be_done_twice_is_asked_again(client, trouble):
    asked = answering(client, trouble, trouble, 200)
    assert client.job("x").id == "x"
    assert len(asked) == 3


def test_a_submission_is_repeated_with_one_key_of_its_own(client, tmp_path):
    path = tmp_path / "c.png"
    path.write_bytes(b"picture")
    asked = answering(client, GONE, (409, {"code": "idempotency_in_flight"}), 200, 200)
    for _ in range(2):
        client.personalize(content=[path], style=[path], subject_class="cat")
    keys = [request.headers["idempotency-key"] for request in asked]
    assert keys[0] == keys[1] == keys[2] != keys[3]
    assert {request.read().count(b"picture") for request in asked} == {2}


@pytest.mark.parametrize("trouble", [GONE, 503])
def test_what_may_not_be_done_twice_is_asked_once(client, trouble):
    asked = answering(client, trouble)
    with pytest.raises((httpx.ReadError, ServiceRefused)):
        client.create_key()
    assert len(asked) == 1


def test_one_request_too_many_is_made_again_whatever_it_was(client):
    asked = answering(client, (429, {"code": "rate_limited"}), (404, {"code": "not_found"}))
    with pytest.raises(ServiceRefused) as refusal:
        client.ping_webhook("x")
    assert (refusal.value.status, len(asked)) == (404, 2)


@pytest.mark.parametrize("answer", [(429, {"code": "quota_exceeded"}), 500, 404, (409, {"code": "job_not_ended"})])
def test_what_asking_again_does_not_mend_is_asked_once(client, answer):
    asked = answering(client, answer)
    with pytest.raises(ServiceRefused):
        client.delete("x")
    assert len(asked) == 1


def test_it_gives_up_after_so_many_tries(client):
    asked = answering(client, *[503] * 9)
    with pytest.raises(ServiceRefused):
        client.job("x")
    assert len(asked) == 4


def test_the_pause_is_what_the_service_says_unless_that_is_too_long(client, monkeypatch):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr(client.wire, "sleep", sleep)
    later = [httpx.Response(503, json={}, headers={"Retry-After": after}) for after in ("7", "3600")]
    client.wire.api._transport = httpx.MockTransport(lambda _: later.pop(0))
    with pytest.raises(ServiceRefused) as refusal:
        client.job("x")
    assert slept == [7]
    assert refusal.value.retry_after_s == 3600


def test_the_awaited_client_asks_again_as_well(monkeypatch):
    monkeypatch.setattr("api.client.core.FIRST_PAUSE_S", 0.0)

    async def ask():
        async with AsyncClient("http://service", "duo_x") as client:
            asked = answering(client, GONE, 503, 200)
            return await client.job("x"), asked

    job, asked = asyncio.run(ask())
    assert (job.id, len(asked)) == ("x", 3)
