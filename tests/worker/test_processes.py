"""The worker and the dispatcher as processes, with hints over the real broker."""

from __future__ import annotations

import json
import signal
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import redis
from sqlalchemy import func, select, text, update
from standardwebhooks import Webhook

from api.db import transaction
from api.jobs.models import OutboxRow
from api.jobs.repository import OutboxMessage
from api.webhooks.models import WebhookDelivery
from tests.worker.bench import PATIENCE_S, eventually, is_running
from tests.worker.jobs import REQUEST_ID, TRACEPARENT, TRACESTATE, submit, webhook_secret
from worker.app import QUEUE, TASK, make_app
from worker.dispatcher import publisher

if TYPE_CHECKING:
    from collections.abc import Iterator

    from api.jobs.models import Job
    from tests.worker.bench import Bench

HINTS_ONLY = {"WORKER_POLL_S": "600"}
NEVER_POLLS = {"DISPATCHER_RELAY_POLL_S": "600", "DISPATCHER_REPUBLISH_AFTER_S": "600"}
RUNS_FOR_EVER = {"content_lora": ["train:100000"]}
NO_BROKER = {"REDIS_URL": "redis://127.0.0.1:1/0"}


def unpublished(bench: Bench) -> int:
    """Hints that the dispatcher has not handed to the broker yet."""
    with bench.sessions() as session:
        return session.scalar(select(func.count()).select_from(OutboxRow)) or 0


def waiting(connection) -> int:
    """Hints in the queue."""
    return connection.default_channel.queue_declare(queue=QUEUE, durable=True).message_count


def hint(app, job: Job, *, times: int = 1) -> None:
    """Send what a dispatcher would send for every stage of the job."""
    for stage in list(job.stages) * times:
        app.send_task(TASK, kwargs={"stage_id": str(stage.id), "job_id": str(job.id)}, queue=QUEUE)


def test_a_hint_brings_a_job_to_an_idle_worker_at_once_and_more_of_them_run_nothing_twice(bench: Bench, redis_url: str):
    app = make_app(redis_url)
    with bench.process("worker.dispatcher", **NEVER_POLLS), bench.process("worker", **HINTS_ONLY):
        first = submit(bench)
        hint(app, first, times=3)
        app.send_task(TASK, kwargs={"stage_id": "nonsense"}, queue=QUEUE)
        bench.wait_for(first.id, "succeeded")
        second = submit(bench)
        bench.wait_for(second.id, "succeeded")
        with app.connection_for_read() as connection:
            eventually(lambda: waiting(connection) == 0)
    app.close()
    for job in (bench.read(first.id), bench.read(second.id)):
        assert all(bench.attempts(job.id, stage.name) == [(1, "succeeded")] for stage in job.stages)


def test_a_busy_worker_leaves_hints_to_an_idle_one(bench: Bench, redis_url: str):
    app = make_app(redis_url)
    first = submit(bench)
    behaviours = {"content_lora": ["gate:never"]}
    with (
        bench.process("worker", behaviours=behaviours, WORKER_ID="one", **HINTS_ONLY),
        bench.process("worker", behaviours=behaviours, WORKER_ID="two", **HINTS_ONLY),
    ):
        eventually(lambda: bench.stage(first.id, "style_lora").state == "succeeded")
        bench.wait_for_run("content_lora")
        second = submit(bench)
        hint(app, second)
        bench.wait_for(second.id, "running")
        for job in (first, second):
            bench.cancel(job)
            bench.wait_for(job.id, "canceled")
    app.close()


def test_a_broker_that_lost_everything_is_told_again(bench: Bench, redis_url: str):
    submit(bench)
    app = make_app(redis_url)
    with bench.process("worker.dispatcher"), app.connection_for_read() as connection:
        eventually(lambda: waiting(connection) >= 2)
        with redis.Redis.from_url(redis_url) as client:
            client.flushall()
        eventually(lambda: waiting(connection) >= 2)
    app.close()


def lines(bench: Bench, module: str) -> list[dict[str, Any]]:
    """What a process has logged."""
    return [json.loads(line) for line in (bench.folder / f"{module}.log").read_text().splitlines()]


def test_every_line_about_a_job_names_the_trace_and_the_request_that_made_it(bench: Bench):
    with bench.process("worker", WORKER_ENGINE="mock"):
        job = submit(bench, engine="mock")
        bench.wait_for(job.id, "succeeded")
    about = [line for line in lines(bench, "worker") if line.get("job") == str(job.id)]
    assert {line["stage"] for line in about} == {stage.name for stage in job.stages}
    assert {(line["traceparent"], line["request_id"]) for line in about} == {(TRACEPARENT, REQUEST_ID)}


def test_term_gives_the_running_stage_back_and_leaves_no_process(bench: Bench):
    job = submit(bench)
    with bench.process("worker", behaviours={"content_lora": ["gate:never"]}) as worker:
        engine = bench.wait_for_run("content_lora")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(PATIENCE_S) == 0
    stage = bench.stage(job.id, "content_lora")
    assert (stage.state, stage.failures) == ("runnable", 0)
    assert bench.attempts(job.id, "content_lora") == [(1, "released")]
    assert not is_running(engine)
    assert list((bench.folder / "scratch").iterdir()) == []


def test_a_worker_that_cannot_stop_in_time_gives_its_stage_back_and_exits_by_force(bench: Bench):
    job = submit(bench)
    stubborn = {"WORKER_GRACE_S": "3", "ENGINE_TERM_GRACE_S": "60"}
    with bench.process("worker", behaviours={"content_lora": ["deaf"]}, **stubborn) as worker:
        engine = bench.wait_for_run("content_lora")
        asked_at = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(PATIENCE_S) == 1
        assert time.monotonic() - asked_at < 10  # with much to spare for a busy machine
    eventually(lambda: not is_running(engine))
    assert bench.attempts(job.id, "content_lora") == [(1, "released")]
    assert bench.stage(job.id, "content_lora").failure_counts == {}


def test_a_deadline_that_passes_stops_the_run_and_fails_the_job(bench: Bench):
    job = submit(bench)
    with bench.process("worker.dispatcher"), bench.process("worker.dispatcher"), bench.worker(RUNS_FOR_EVER) as worker:
        engine = bench.wait_for_run("content_lora")
        with transaction(bench.sessions) as session:
            session.execute(text("UPDATE jobs SET deadline_at = now()"))
        failed = bench.wait_for(job.id, "failed")
        other = submit(bench)
        bench.wait_for(other.id, "running")  # the worker has turned to other work
        assert worker.engine.pid == engine
        bench.cancel(other)
        bench.wait_for(other.id, "canceled")
    assert failed.error["code"] == "deadline_exceeded"
    assert bench.attempts(job.id, "content_lora") == [(1, "canceled")]


def test_a_worker_killed_in_the_middle_takes_its_engine_along_and_the_stage_is_done_by_another(bench: Bench):
    job = submit(bench)
    with (
        bench.process("worker.dispatcher"),
        bench.process("worker", behaviours={"content_lora": ["gate:never"]}, WORKER_LEASE_S="2") as worker,
    ):
        engine = bench.wait_for_run("content_lora")
        worker.kill()
        worker.wait()
        eventually(lambda: not is_running(engine))
        eventually(lambda: bench.attempts(job.id, "content_lora") == [(1, "lease_expired")])
        with transaction(bench.sessions) as session:  # the pause before the retry only slows the suite
            session.execute(text("UPDATE stages SET runnable_at = now() WHERE state = 'runnable'"))
        with bench.worker():
            done = bench.wait_for(job.id, "succeeded")
    assert bench.attempts(job.id, "content_lora") == [(1, "lease_expired"), (2, "succeeded")]
    assert [artifact.attempt for artifact in done.artifacts if artifact.name == "content_lora"] == [2]


def test_a_job_runs_without_any_broker(bench: Bench):
    job = submit(bench)
    with bench.process("worker", **NO_BROKER):
        bench.wait_for(job.id, "succeeded")


def test_the_outbox_waits_for_the_broker(bench: Bench, redis_url: str):
    submit(bench)
    with bench.process("worker.dispatcher", **NO_BROKER) as dispatcher:
        log = bench.folder / "worker.dispatcher.log"
        eventually(lambda: log.exists() and "off duty" in log.read_text())
        assert dispatcher.poll() is None
    assert unpublished(bench) >= 2
    app = make_app(redis_url)
    with bench.process("worker.dispatcher"), app.connection_for_read() as connection:
        eventually(lambda: waiting(connection) >= 2)
        eventually(lambda: unpublished(bench) == 0)
    app.close()


def test_hints_do_not_pile_up_while_every_worker_is_away(redis_url: str, monkeypatch):
    monkeypatch.setattr(publisher, "ENOUGH_HINTS", 5)
    app = make_app(redis_url)
    sender = publisher.HintPublisher(app)
    for number in range(10):
        sender.publish([OutboxMessage(number, "stage.runnable", {"stage_id": "s", "job_id": "j"})] * 2)
    with app.connection_for_read() as connection:
        assert waiting(connection) == 4
    app.close()


def test_two_dispatchers_publish_every_hint_once(bench: Bench, redis_url: str):
    slow = {"DISPATCHER_REPUBLISH_AFTER_S": "600"}
    with bench.process("worker.dispatcher", **slow), bench.process("worker.dispatcher", **slow) as second:
        for _ in range(5):
            submit(bench)
        eventually(lambda: unpublished(bench) == 0)
        second.kill()  # whichever was on duty, the other takes over
        submit(bench)
        eventually(lambda: unpublished(bench) == 0)
    app = make_app(redis_url)
    with app.connection_for_read() as connection:
        assert waiting(connection) == 12
    app.close()


def test_the_dispatcher_survives_a_cut_of_all_its_connections(bench: Bench, database_url: str):
    with bench.process("worker.dispatcher") as dispatcher:
        submit(bench)
        eventually(lambda: unpublished(bench) == 0)
        with bench.sessions() as session:
            session.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        submit(bench)
        eventually(lambda: unpublished(bench) == 0)
        assert dispatcher.poll() is None


class Receiver:
    """A web server that answers as told and keeps what it got."""

    def __init__(self, answers: list[int]) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status = answers[min(len(receiver.requests), len(answers) - 1)]
                receiver.requests.append(({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"


@contextmanager
def receiving(*answers: int) -> Iterator[Receiver]:
    receiver = Receiver(list(answers))
    thread = threading.Thread(target=receiver.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()
        thread.join()


def test_the_end_of_a_job_is_told_signed_and_again_after_an_error(bench: Bench):
    with receiving(500, 200) as receiver, bench.process("worker.dispatcher"), bench.worker():
        job = submit(bench, webhook_url=receiver.url)
        bench.wait_for(job.id, "succeeded")
        eventually(lambda: len(receiver.requests) == 1)

        def hurry() -> bool:
            later = (WebhookDelivery.attempts == 1) & (WebhookDelivery.last_status == 500)
            with transaction(bench.sessions) as session:
                statement = update(WebhookDelivery).where(later).values(next_attempt_at=func.now())
                return bool(session.execute(statement).rowcount)

        eventually(hurry)
        eventually(lambda: len(receiver.requests) == 2)
        eventually(lambda: delivery(bench).state == "delivered")
    headers, bodies = zip(*receiver.requests, strict=True)
    assert headers[0]["webhook-id"] == headers[1]["webhook-id"]
    assert (headers[0]["traceparent"], headers[0]["x-request-id"]) == (TRACEPARENT, REQUEST_ID)
    assert headers[0]["tracestate"] == TRACESTATE
    assert {line["request_id"] for line in lines(bench, "worker.dispatcher") if "job" in line} == {REQUEST_ID}
    verifier = Webhook(webhook_secret(bench, job))
    for head, body in receiver.requests:
        event = verifier.verify(body.decode(), head)
        assert event["type"] == "job.succeeded"
        assert event["data"]["job_id"] == str(job.id)
    assert bodies[0] == bodies[1]


def delivery(bench: Bench) -> WebhookDelivery:
    with bench.sessions() as session:
        return session.scalars(select(WebhookDelivery)).one()


def test_a_slow_receiver_keeps_nobody_waiting_and_a_dispatcher_ends_in_the_middle_of_it(bench: Bench):
    release = threading.Event()

    class Slow(Receiver):
        pass

    with receiving(200) as quick:
        slow = Slow([200])
        handler = slow.server.RequestHandlerClass
        post = handler.do_POST
        handler.do_POST = lambda self: (release.wait(PATIENCE_S), post(self))
        thread = threading.Thread(target=slow.server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with bench.process("worker.dispatcher") as dispatcher, bench.worker():
                submit(bench, webhook_url=slow.url)
                submit(bench, webhook_url=quick.url)
                eventually(lambda: quick.requests)
                dispatcher.send_signal(signal.SIGTERM)
                assert dispatcher.wait(PATIENCE_S) == 0
        finally:
            release.set()
            slow.server.shutdown()
            slow.server.server_close()
            thread.join()
