"""One attempt at a delivery, against real receivers on the loopback interface."""

import json
import socket
import threading
import time
import uuid
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from api.settings import WebhookSettings
from api.webhooks.delivery import WebhookSender
from api.webhooks.repository import DueDelivery
from api.webhooks.signing import make_secret
from tests.support.webhook_receiver import webhook_receiver

LOOPBACK = WebhookSettings(allow_cidrs="127.0.0.0/8", timeout_s=5)


def delivery(url, **changes):
    fields = {
        "id": uuid.uuid4(),
        "endpoint_id": uuid.uuid4(),
        "job_id": uuid.uuid4(),
        "message": "msg_1",
        "url": url,
        "body": '{"type":"job.succeeded"}',
        "secrets": (make_secret(),),
        "attempt": 1,
        "traceparent": None,
    }
    return DueDelivery(**fields | changes)


@contextmanager
def receiver(answer):
    """A server that answers every POST by `answer(handler)`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            requests.append(self.path)
            self.rfile.read(int(self.headers["Content-Length"]))
            answer(self)

        do_GET = do_POST

        def log_message(self, *_):
            pass

    requests = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/hook?x=1", requests
        server.shutdown()
        thread.join()


def answering(status, body=b"", **headers):
    def answer(handler):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def test_a_delivery_arrives_signed_as_the_standard_says():
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with webhook_receiver() as end:
        sent = delivery(end.url, traceparent=trace, tracestate="rojo=1", request_id="r-1")
        outcome = WebhookSender(LOOPBACK).send(sent)
        got = end.deliveries.get(timeout=5)
    assert (outcome.is_delivered, outcome.status, outcome.error) == (True, 204, None)
    (secret,) = sent.secrets
    assert Webhook(secret).verify(got.body.decode(), got.headers) == json.loads(sent.body)
    assert got.headers["webhook-id"] == "msg_1"
    assert abs(int(got.headers["webhook-timestamp"]) - time.time()) < 30
    assert (got.headers["content-type"], got.headers["traceparent"]) == ("application/json", trace)
    assert (got.headers["x-request-id"], got.headers["tracestate"]) == ("r-1", "rojo=1")
    assert got.headers["host"] == end.url.split("/")[2]


def test_while_a_secret_is_changed_both_verify_and_no_other():
    new, old = make_secret(), make_secret()
    with webhook_receiver() as end:
        sent = delivery(end.url, secrets=(new, old))
        WebhookSender(LOOPBACK).send(sent)
        got = end.deliveries.get(timeout=5)
    for secret in (new, old):
        assert Webhook(secret).verify(got.body.decode(), got.headers) == json.loads(sent.body)
    assert len(got.headers["webhook-signature"].split()) == 2
    with pytest.raises(WebhookVerificationError):
        Webhook(make_secret()).verify(got.body.decode(), got.headers)


def test_path_and_query_are_kept():
    with receiver(answering(200)) as (url, requests):
        assert WebhookSender(LOOPBACK).send(delivery(url)).is_delivered
    assert requests == ["/hook?x=1"]


def test_the_id_stays_and_the_timestamp_is_the_attempts(monkeypatch):
    with webhook_receiver() as end:
        sent = delivery(end.url)
        for now in (1_700_000_000.5, 1_700_000_300.5):
            monkeypatch.setattr("api.webhooks.delivery.time.time", lambda now=now: now)
            WebhookSender(LOOPBACK).send(sent)
        first, second = (end.deliveries.get(timeout=5).headers for _ in range(2))
    assert first["webhook-id"] == second["webhook-id"]
    assert (first["webhook-timestamp"], second["webhook-timestamp"]) == ("1700000000", "1700000300")
    assert first["webhook-signature"] != second["webhook-signature"]


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
def test_another_status_is_a_failure_to_be_tried_again(status):
    with receiver(answering(status, b"no \x00\x1b[31m thanks")) as (url, _):
        outcome = WebhookSender(LOOPBACK).send(delivery(url))
    assert (outcome.status, outcome.final, outcome.is_delivered) == (status, False, False)
    assert "thanks" in outcome.error
    assert outcome.error.isprintable()


def test_gone_is_final():
    with receiver(answering(410)) as (url, _):
        assert WebhookSender(LOOPBACK).send(delivery(url)).final


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_a_failure_and_not_followed(status):
    with receiver(answering(200)) as (other, followed), receiver(answering(status, Location=other)) as (url, _):
        outcome = WebhookSender(LOOPBACK).send(delivery(url))
    assert (outcome.status, outcome.is_delivered) == (status, False)
    assert "redirect" in outcome.error
    assert followed == []


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("120", 120, 120),
        ("999999999", 86400, 86400),
        ("9" * 5000, None, None),
        ("soon", None, None),
        (timedelta(hours=1), 3500, 3600),
        (timedelta(hours=-1), 0, 0),
        ("Fri, 31 Dec 9999 23:59:59 -2300", None, None),
    ],
    ids=["seconds", "capped", "absurd", "nonsense", "date", "past date", "beyond time"],
)
def test_retry_after_is_understood(value, low, high):
    _check_retry_after(429, value, low, high)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_retry_after_counts_with_every_answer_that_asks_for_patience(status):
    _check_retry_after(status, "120", 120, 120)


def _check_retry_after(status, value, low, high):
    if isinstance(value, timedelta):
        value = format_datetime(datetime.now(UTC) + value)
    with receiver(answering(status, Retry_After=value)) as (url, _):
        wait = WebhookSender(LOOPBACK).send(delivery(url)).retry_after
    if low is None:
        assert wait is None
    else:
        assert low <= wait.total_seconds() <= high


def test_a_long_answer_is_neither_read_nor_kept():
    def endless(handler):
        handler.send_response(500)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"x" * 1000)
        except OSError:
            ended.set()

    ended = threading.Event()
    with receiver(endless) as (url, _):
        outcome = WebhookSender(LOOPBACK).send(delivery(url))
        assert ended.wait(5)
    assert len(outcome.error) <= 200


def test_a_receiver_that_drips_its_answer_is_left_in_time():
    def drip(handler):
        try:
            for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 1000:
                handler.wfile.write(bytes([byte]))
                handler.wfile.flush()
                if gone.wait(0.05):
                    return
        except OSError:
            pass

    gone = threading.Event()
    with receiver(drip) as (url, _):
        began = time.monotonic()
        outcome = WebhookSender(WebhookSettings(allow_cidrs="127.0.0.0/8", timeout_s=0.5)).send(delivery(url))
        took = time.monotonic() - began
        gone.set()
    assert "within 0.5 s" in outcome.error
    assert took < 20  # the whole answer would take 50 s


def test_a_receiver_that_is_down_is_a_failure():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        outcome = WebhookSender(LOOPBACK).send(delivery(f"http://127.0.0.1:{unused.getsockname()[1]}/"))
    assert outcome.status is None
    assert "ConnectError" in outcome.error


def test_a_name_that_does_not_resolve_is_a_failure():
    def fail(host, port):
        raise OSError("no such name")

    outcome = WebhookSender(LOOPBACK, resolve=fail).send(delivery("https://nowhere.invalid/"))
    assert "cannot resolve" in outcome.error


def test_without_the_list_nothing_reaches_the_loopback():
    with receiver(answering(200)) as (url, requests):
        port = url.split(":")[2].split("/")[0]
        for target, is_final in (
            (url, True),
            (f"http://[::ffff:127.0.0.1]:{port}/", True),
            (f"http://localhost:{port}/", False),
            (f"https://localhost:{port}/", False),
        ):
            outcome = WebhookSender(WebhookSettings()).send(delivery(target))
            assert not outcome.is_delivered
            assert outcome.final is is_final, "only a name may come to point elsewhere"
        rebinding = WebhookSender(WebhookSettings(), resolve=lambda *_: ["127.0.0.1"])
        assert "not a public address" in rebinding.send(delivery("https://innocent.example/")).error
    assert requests == []


def test_each_attempt_looks_the_name_up_anew():
    """DNS rebinding: a name that was harmless at the first attempt points inside at the second."""
    answers = iter([["127.0.0.1"], ["10.0.0.1"], ["127.0.0.1", "169.254.169.254"], ["127.0.0.1"]])
    with receiver(answering(500)) as (url, requests):
        sender = WebhookSender(LOOPBACK, resolve=lambda *_: next(answers))
        sent = delivery(url.replace("127.0.0.1", "receiver.example"))
        outcomes = [sender.send(sent) for _ in range(4)]
    assert [outcome.status for outcome in outcomes] == [500, None, None, 500]
    assert all("is only reached" in outcome.error for outcome in outcomes[1:3])
    assert not any(outcome.final for outcome in outcomes), "the name may come to point elsewhere"
    assert len(requests) == 2


def test_a_row_with_a_broken_url_is_an_outcome_not_a_crash():
    outcome = WebhookSender(LOOPBACK).send(delivery("nonsense"))
    assert "must begin with https" in outcome.error
    assert outcome.final


def test_a_server_that_speaks_no_http_is_a_failure():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def babble():
            connection, _ = server.accept()
            with connection:
                seen = b""
                while not seen.endswith(b"}"):  # unread bytes would reset the connection
                    seen += connection.recv(65536)
                connection.sendall(b"220 smtp ready\r\n")

        thread = threading.Thread(target=babble, daemon=True)
        thread.start()
        outcome = WebhookSender(LOOPBACK).send(delivery(f"http://127.0.0.1:{server.getsockname()[1]}/"))
        thread.join(5)
    assert "ProtocolError" in outcome.error
