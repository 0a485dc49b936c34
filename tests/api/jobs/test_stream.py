"""The events of a job as they happen, from a real server: streams are what a test client cannot show."""

import asyncio
import json
import os
import sys
import threading
import time
import uuid

import httpx
import psycopg
import pytest
from sqlalchemy import func, select, text

from api.accounts.models import Account
from api.accounts.service import issue_key
from api.client import Client
from api.db import make_engine, session_factory, transaction
from api.errors import InvalidParameters, InvalidRequest
from api.jobs.events import EventType, record_event
from api.jobs.hub import EventHub, Missed, Subscription
from api.jobs.locking import lock_job
from api.jobs.models import Event
from api.jobs.stream import read_start
from deploy.local.processes import LOOPBACK, free_port, spawn
from tests.api.factories import cancel, claim, finish, make_account, make_job
from tests.support.vault import SECRET_KEYS, VAULT

pytestmark = pytest.mark.xdist_group("stream")

LISTENING = "FROM pg_stat_activity WHERE application_name LIKE 'duolora-%-events' AND datname = current_database()"
"""Connections of the hub under test; the server may have databases with hubs of others."""


def tell(sessions, job_id, count=1, kind=EventType.PROGRESS):
    with transaction(sessions) as session:
        locked = lock_job(session, job_id)
        for number in range(count):
            record_event(session, locked.job, kind, now=locked.now, data={"number": number})


def libpq(url):
    return url.replace("postgresql+psycopg", "postgresql")


class Listening:
    """A hub in a loop of its own thread, for tests that look at single steps."""

    def __init__(self, url, **options):
        self.hub = EventHub(libpq(url), **{"replay_limit": 1000} | options)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self._task = asyncio.run_coroutine_threadsafe(self.hub.run(), self.loop)

    def call(self, function, *arguments):
        async def run():
            answer = function(*arguments)
            return await answer if asyncio.iscoroutine(answer) else answer

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(30)

    def listen(self, job_id, after=0):
        async def make():
            return Subscription(self.hub, job_id, after).__enter__()

        return self.call(make)

    def take(self, subscription, timeout_s=10):
        return self.call(subscription.take, timeout_s)

    def stop(self):
        self._task.cancel()
        time.sleep(0.1)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture
def listening(database_url):
    made = []

    def make(**options):
        made.append(Listening(database_url, **options))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def job_id(sessions):
    return make_job(sessions, make_account(sessions))


def kinds(mail):
    return [json.loads(told.frame.split(b"data: ")[1])["type"] for told in mail]


class TestHub:
    def test_what_has_happened_comes_first_then_what_happens(self, listening, sessions, job_id):
        listener = listening()
        heard = listener.listen(job_id)
        assert kinds(listener.take(heard)) == ["job.queued"]
        tell(sessions, job_id, 2)
        assert kinds(listener.take(heard)) == ["job.progress", "job.progress"]
        assert listener.take(heard, 0.1) == []

    def test_from_an_id_on_only_later_events_are_told(self, listening, sessions, job_id):
        with transaction(sessions) as session:
            first = session.scalar(select(func.max(Event.id)))
        tell(sessions, job_id)
        listener = listening()
        assert kinds(listener.take(listener.listen(job_id, first))) == ["job.progress"]

    def test_jobs_do_not_hear_of_each_other(self, listening, sessions, job_id):
        other = make_job(sessions, make_account(sessions, "theirs"))
        listener = listening()
        mine, theirs = listener.listen(job_id), listener.listen(other)
        listener.take(mine), listener.take(theirs)
        tell(sessions, other)
        assert kinds(listener.take(theirs)) == ["job.progress"]
        assert listener.take(mine, 0.1) == []

    def test_too_many_become_a_gap_before_the_newest(self, listening, sessions, job_id):
        tell(sessions, job_id, 9)
        with transaction(sessions) as session:
            ids = list(session.scalars(select(Event.id).order_by(Event.id)))
        listener = listening(replay_limit=3)
        gap, *rest = listener.take(listener.listen(job_id))
        assert gap == Missed(ids[0], ids[-4])
        assert [told.id for told in rest] == ids[-3:]

    def test_exactly_as_many_as_fit_are_no_gap(self, listening, sessions, job_id):
        tell(sessions, job_id, 2)
        listener = listening(replay_limit=3)
        assert len(kinds(listener.take(listener.listen(job_id)))) == 3

    def test_one_who_does_not_keep_up_fills_no_memory_and_misses_nothing(self, listening, sessions, job_id):
        listener = listening()
        slow, quick = listener.listen(job_id), listener.listen(job_id)
        listener.take(quick)
        for _ in range(5):
            tell(sessions, job_id)
            assert kinds(listener.take(quick)) == ["job.progress"]
        assert len(slow._mail) == 1
        assert kinds(listener.take(slow)) == ["job.queued"]
        assert kinds(listener.take(slow)) == ["job.progress"] * 5

    def test_events_that_nobody_notified_of_are_found(self, listening, sessions, job_id, engine):
        listener = listening()
        heard = listener.listen(job_id)
        listener.take(heard)
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE events DISABLE TRIGGER events_notify"))
        tell(sessions, job_id)
        assert kinds(listener.take(heard)) == ["job.progress"]

    def test_lost_connections_are_made_anew_and_nothing_is_missed(self, listening, sessions, job_id, database_url):
        listener = listening()
        heard = listener.listen(job_id)
        listener.take(heard)
        kill = f"SELECT pg_terminate_backend(pid) {LISTENING}"
        with psycopg.connect(libpq(database_url), autocommit=True) as connection:
            assert len(connection.execute(kill).fetchall()) == 2
        tell(sessions, job_id)
        assert kinds(listener.take(heard)) == ["job.progress"]

    def test_nobody_is_kept_who_has_gone(self, listening, job_id):
        listener = listening()
        heard = listener.listen(job_id)
        listener.call(heard.__exit__, None, None, None)
        assert not listener.hub._listeners

    def test_five_hundred_need_no_more_connections_than_one(self, listening, sessions, job_id, database_url):
        listener = listening()
        everybody = [listener.listen(job_id) for _ in range(500)]
        for heard in everybody:
            listener.take(heard)
        tell(sessions, job_id)
        assert all(kinds(listener.take(heard)) == ["job.progress"] for heard in everybody)
        count = f"SELECT count(*) {LISTENING}"
        with psycopg.connect(libpq(database_url), autocommit=True) as connection:
            assert connection.execute(count).fetchone() == (2,)


@pytest.mark.parametrize(("last", "after", "start"), [(None, None, 0), ("7", "3", 7), (None, "3", 3), ("", "", 0)])
def test_the_header_of_a_reconnection_outweighs_the_query(last, after, start):
    assert read_start(last, after) == start


@pytest.mark.parametrize("bad", ["x", "-1", "1.5", str(2**63), "٣"])
def test_what_is_no_id_is_refused(bad):
    with pytest.raises(InvalidRequest):
        read_start(bad, None)
    with pytest.raises(InvalidParameters):
        read_start(None, bad)


@pytest.fixture(scope="module")
def server(test_databases, valkey_server, object_store_server, tmp_path_factory):
    """A real API process with short heartbeats, and the database it speaks to."""
    with test_databases.fresh() as url:
        port = free_port()
        environment = {
            "DATABASE_URL": url,
            "REDIS_URL": valkey_server.url,
            "SECRET_KEYS": SECRET_KEYS,
            **object_store_server.environment("stream-tests"),
            "HOST": LOOPBACK,
            "PORT": str(port),
            "SSE_HEARTBEAT_S": "0.5",
            "SSE_REPLAY_LIMIT": "8",
        }
        log = tmp_path_factory.mktemp("api") / "api.log"
        child = spawn("api", [sys.executable, "-m", "api"], log=log, env=os.environ | environment)
        address = f"http://{LOOPBACK}:{port}"

        def ready():
            try:
                return httpx.get(f"{address}/readyz").is_success
            except httpx.TransportError:
                return False

        child.wait_ready(ready, timeout_s=60)
        engine = make_engine(url)
        yield address, session_factory(engine, VAULT), child
        engine.dispose()
        child.stop()


@pytest.fixture
def mine(server):
    """Sessions, a job of a fresh account, and a client with its key."""
    address, sessions, _ = server
    name = os.urandom(8).hex()
    key = issue_key(sessions, account=name)
    with transaction(sessions) as session:
        account_id = session.scalar(select(Account.id).where(Account.name == name))
    headers = {"Authorization": f"Bearer {key.text}"}
    with httpx.Client(base_url=address, headers=headers, timeout=30) as http:
        yield sessions, account_id, make_job(sessions, account_id), http


def blocks(answer):
    """The parts of a stream between blank lines, as dictionaries; a comment is {"": text}."""
    fields = {}
    for line in answer.iter_lines():
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.strip()
        elif fields:
            yield fields
            fields = {}


class TestStream:
    def test_a_stream_tells_all_and_ends_with_the_job(self, mine):
        sessions, account_id, job_id, http = mine
        with http.stream("GET", f"/jobs/{job_id}/events") as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-accel-buffering"] == "no"
            parts = blocks(answer)
            assert next(parts) == {"retry": "2000"}
            queued = next(parts)
            document = json.loads(queued["data"])
            assert (queued["event"], queued["id"]) == ("job.queued", str(document["id"]))
            assert (document["type"], document["job_id"], document["data"]) == ("job.queued", str(job_id), {})
            cancel(sessions, account_id, job_id)
            rest = [part["event"] for part in parts if "event" in part]
        assert rest == ["job.cancel_requested", *["job.stage_changed"] * 4, "job.canceled"]

    def test_silence_is_broken_by_comments(self, mine):
        _, _, job_id, http = mine
        with http.stream("GET", f"/jobs/{job_id}/events") as answer:
            parts = blocks(answer)
            next(parts), next(parts)
            began = time.monotonic()
            assert next(parts) == {"": ""}
            assert time.monotonic() - began < 5

    def test_a_reconnection_goes_on_where_it_was_and_an_ended_job_says_so(self, mine):
        sessions, account_id, job_id, http = mine
        cancel(sessions, account_id, job_id)
        path = f"/jobs/{job_id}/events"
        with http.stream("GET", path) as answer:
            ids = [part["id"] for part in blocks(answer) if "id" in part]
        with http.stream("GET", path, headers={"Last-Event-ID": ids[0]}, params={"after": "0"}) as answer:
            assert [part["id"] for part in blocks(answer) if "id" in part] == ids[1:]
        for request in ({"headers": {"Last-Event-ID": ids[-1]}}, {"params": {"after": ids[-1]}}):
            assert http.get(path, **request).status_code == 204

    def test_more_than_is_replayed_begins_with_a_gap(self, mine):
        sessions, _, job_id, http = mine
        tell(sessions, job_id, 10)
        with http.stream("GET", f"/jobs/{job_id}/events") as answer:
            parts = blocks(answer)
            next(parts)
            gap = next(parts)
            assert gap["event"] == "gap"
            missed = json.loads(gap["data"])
            following = next(parts)
            assert missed["missed_from"] < missed["missed_to"] < int(following["id"])

    def test_refusals_are_problems(self, mine):
        _, _, job_id, http = mine
        assert http.get(f"/jobs/{uuid.uuid4()}/events").status_code == 404
        assert http.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": "x"}).status_code == 400
        answer = http.get(f"/jobs/{job_id}/events", params={"after": "x"})
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/after")

    def test_the_client_follows_a_job_to_its_end(self, mine, server):
        sessions, _, job_id, http = mine
        seen = []
        with Client(server[0], http.headers["Authorization"].removeprefix("Bearer ")) as client:
            for event in client.events(str(job_id)):
                seen.append(event.type)
                if event.type == "job.queued":
                    while claimed := claim(sessions):
                        finish(sessions, claimed)
        assert seen[0] in {"job.queued", "gap"}
        assert seen[-1] == "job.succeeded"


def test_a_process_that_is_told_to_stop_ends_its_streams_at_once(server):
    """Last in this module: the server is gone afterwards."""
    address, sessions, child = server
    key = issue_key(sessions, account="last")
    with transaction(sessions) as session:
        account_id = session.scalar(select(Account.id).where(Account.name == "last"))
    job_id = make_job(sessions, account_id)
    with httpx.stream(
        "GET", f"{address}/jobs/{job_id}/events", headers={"Authorization": f"Bearer {key.text}"}, timeout=30
    ) as answer:
        parts = blocks(answer)
        next(parts)
        began = time.monotonic()
        child.process.terminate()
        for _ in parts:
            pass
        child.process.wait(10)
    assert time.monotonic() - began < 5
