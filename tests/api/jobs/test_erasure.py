"""Deleting jobs on request and by their time: what goes, what stays, what is told of it."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select, text, update

from api.accounts.models import Account
from api.db import transaction
from api.jobs import repository
from api.jobs.models import DeletedJob, Event, Job, JobImage, LogLine, Stage
from api.jobs.repository import LogEntry, StoredArtifact
from api.object_keys import artifact_key, checkpoint_key, job_prefix
from tests.api.factories import cancel, claim, fail, held, make_account, make_job
from worker.dispatcher.janitor import Janitor
from worker.settings import DispatcherSettings

TABLES = (Job, Stage, JobImage, Event, LogLine)


def id_of(path):
    return uuid.UUID(path.rsplit("/", 1)[1])


def store_result(sessions, store, claimed, name, content_type="application/octet-stream"):
    """Play the worker of a stage: one file in the store, one row."""
    key = artifact_key(claimed.account_id, claimed.job_id, claimed.name, claimed.attempt, name)
    data = b"weights"
    store.put_bytes(key, data, content_type)
    made = StoredArtifact(
        name=name, filename=name, key=key, sha256="ab" * 32, bytes=len(data), content_type=content_type
    )
    with transaction(sessions) as session:
        repository.finish_stage(session, **held(claimed), artifacts=[made], timings={}, reuse_key=f"key of {name}")


def store_checkpoint(sessions, store, claimed, data=b"so far"):
    key = checkpoint_key(claimed.account_id, claimed.job_id, claimed.name, claimed.attempt, step=1, filename="state")
    store.put_bytes(key, data, "application/octet-stream")
    file = {"name": "state", "key": key, "sha256": "x", "bytes": len(data)}
    with transaction(sessions) as session:
        pointer = {"step": 1, "total": 2, "attempt": 1, "paired": False, "at": 0.0, "files": [file]}
        repository.record_checkpoint(session, **held(claimed), checkpoint=pointer)


@pytest.fixture
def ended(caller, sessions, store):
    """The path of a failed job that has everything a job can have."""
    path = caller.submit().headers["location"]
    content, style = claim(sessions), claim(sessions)
    store_result(sessions, store, content, "content.safetensors")
    with transaction(sessions) as session:
        lines = [LogEntry(datetime.now(UTC), "INFO", "é"), LogEntry(datetime.now(UTC), "INFO", "ab")]
        repository.record_logs(session, **held(style), lines=lines)
    store_checkpoint(sessions, store, style)
    fail(sessions, style)
    return path


@pytest.fixture
def janitor(service_environment, sessions, store, monkeypatch):
    for name, value in service_environment.items():
        monkeypatch.setenv(name, value)
    return Janitor(DispatcherSettings(), sessions=sessions, store=store, stop=threading.Event())


@pytest.fixture
def without_store(serve, caller, api_settings):
    """The same caller at a process whose store does not answer."""
    dead = api_settings.store.model_copy(update={"endpoint": "http://127.0.0.1:1"})
    return type(caller)(serve(store=dead), caller.key)


@pytest.fixture
def objects_of(store, sessions):
    return lambda path: objects(store, sessions, path)


def delete(caller, path):
    return caller.request("DELETE", path)


def refused(answer):
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


def objects(store, sessions, path):
    with sessions() as session:
        account_id = session.scalar(select(Account.id).where(Account.name == "mine"))
    return store.keys(job_prefix(account_id, id_of(path)))


def let_pass(sessions, **time):
    with transaction(sessions) as session:
        session.execute(update(DeletedJob).values(deleted_at=DeletedJob.deleted_at - timedelta(**time)))
        ends = {"finished_at": Job.finished_at - timedelta(**time), "expires_at": Job.expires_at - timedelta(**time)}
        session.execute(update(Job).where(Job.finished_at.is_not(None)).values(ends))


class TestRequest:
    def test_everything_goes_and_the_receipt_says_what(self, caller, ended, sessions, store):
        assert len(objects(store, sessions, ended)) == 4
        with sessions() as session:
            pictures = session.scalar(select(func.sum(JobImage.bytes)))
        answer = delete(caller, ended)
        receipt = answer.json()
        assert (answer.status_code, receipt["state"], receipt["cause"]) == (200, "deleted", "request")
        assert receipt["requested_at"] <= receipt["deleted_at"]
        assert receipt["erased"] == {
            "inputs": {"count": 2, "bytes": pictures},
            "checkpoints": {"count": 1, "bytes": len(b"so far")},
            "previews": {"count": 0, "bytes": 0},
            "artifacts": {"count": 1, "bytes": len(b"weights")},
            "logs": {"count": 2, "bytes": 4},
        }
        assert objects(store, sessions, ended) == []
        with sessions() as session:
            assert [session.scalar(select(func.count()).select_from(table)) for table in TABLES] == [0] * len(TABLES)
            assert session.scalar(select(Account.stored_bytes).where(Account.name == "mine")) == 0

    def test_a_picture_among_the_results_is_a_preview(self, caller, sessions, store):
        path = caller.submit().headers["location"]
        store_result(sessions, store, claim(sessions), "preview.png", content_type="image/png")
        fail(sessions, claim(sessions))
        erased = delete(caller, path).json()["erased"]
        assert (erased["previews"]["count"], erased["artifacts"]["count"]) == (1, 0)

    def test_asked_again_the_receipt_is_the_same(self, caller, ended):
        first = delete(caller, ended)
        assert [delete(caller, ended).json() for _ in range(2)] == [first.json()] * 2

    def test_asked_at_once_it_is_the_same_too(self, caller, ended):
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: delete(caller, ended), range(6)))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.text for answer in answers}) == 1

    @pytest.mark.parametrize("path", ["", "/logs", "/attempts", "/events"])
    def test_afterwards_it_is_gone(self, caller, ended, path):
        delete(caller, ended)
        assert refused(caller.get(ended + path)) == (410, "job_deleted")

    @pytest.mark.parametrize("act", ["cancel", "stop", "retry"])
    def test_afterwards_nothing_can_be_done_with_it(self, caller, ended, act):
        delete(caller, ended)
        assert refused(caller.post(f"{ended}/{act}")) == (410, "job_deleted")

    def test_lists_leave_it_out(self, caller, ended):
        kept = caller.submit().json()["id"]
        delete(caller, ended)
        assert [job["id"] for job in caller.get("/jobs").json()["items"]] == [kept]

    def test_it_is_nobody_elses(self, caller, stranger, ended):
        assert refused(delete(stranger, ended)) == (404, "not_found")
        delete(caller, ended)
        assert refused(delete(stranger, ended)) == (404, "not_found")
        assert refused(stranger.get(ended)) == (404, "not_found")

    def test_a_job_that_goes_on_is_refused_with_the_remedy(self, caller, sessions, store):
        path = caller.submit().headers["location"]
        for _ in range(2):
            answer = delete(caller, path)
            assert refused(answer) == (409, "job_not_ended")
            assert f"POST {path}/cancel" in answer.json()["detail"]
            claim(sessions)  # the second time it is running
        assert caller.get(path).json()["state"] == "running"
        assert len(objects(store, sessions, path)) == 2

    def test_a_job_whose_checkpoints_are_in_use_is_refused(self, caller, ended, sessions, store):
        retry = caller.post(f"{ended}/retry").headers["location"]
        answer = delete(caller, ended)
        assert refused(answer) == (409, "job_in_use")
        assert str(id_of(retry)) in answer.json()["detail"]
        assert caller.get(ended).status_code == 200
        caller.post(f"{retry}/cancel")
        assert delete(caller, ended).status_code == 200
        assert caller.get(retry).json()["retry_of"] is None
        assert len(objects(store, sessions, retry)) == 2

    def test_what_another_job_took_from_it_stays(self, caller, ended, sessions, store):
        other = caller.submit().headers["location"]
        claimed = claim(sessions)
        with sessions() as session:
            found = repository.find_reusable(
                session, account_id=claimed.account_id, reuse_key="key of content.safetensors"
            )
        key = artifact_key(claimed.account_id, claimed.job_id, claimed.name, 1, "content.safetensors")
        store.copy(found.artifacts[0].key, key)  # as the worker does
        delete(caller, ended)
        assert store.get_bytes(key) == b"weights"
        assert caller.get(other).status_code == 200

    def test_its_key_is_free_again(self, caller):
        headers = {"Idempotency-Key": "k"}
        first = caller.submit(headers=headers).headers["location"]
        caller.post(f"{first}/cancel")
        delete(caller, first)
        assert caller.submit(headers=headers).headers["location"] != first


class TestStoreThatIsAway:
    def test_the_job_is_gone_at_once_and_the_janitor_does_the_rest(
        self, caller, without_store, ended, janitor, objects_of
    ):
        answer = delete(without_store, ended)
        assert (answer.status_code, answer.json()["state"], answer.json()["deleted_at"]) == (202, "deleting", None)
        assert refused(caller.get(ended)) == (410, "job_deleted")
        assert caller.get("/jobs").json()["items"] == []
        assert len(objects_of(ended)) == 4
        assert delete(without_store, ended).json() == answer.json()
        janitor.tidy()
        assert objects_of(ended) == []
        done = delete(without_store, ended)
        assert (done.status_code, done.json()["erased"]) == (200, answer.json()["erased"])
        assert done.json()["requested_at"] == answer.json()["requested_at"]

    def test_asking_again_tries_at_once(self, caller, without_store, ended, sessions, store):
        delete(without_store, ended)
        assert delete(caller, ended).json()["state"] == "deleted"
        assert objects(store, sessions, ended) == []

    def test_what_is_on_its_way_out_is_neither_tried_again_nor_taken(self, caller, without_store, ended, sessions):
        delete(without_store, ended)
        assert refused(caller.post(f"{ended}/retry")) == (410, "job_deleted")
        with sessions() as session:
            account_id = session.scalar(select(Job.account_id))
            assert (
                repository.find_reusable(session, account_id=account_id, reuse_key="key of content.safetensors") is None
            )


class TestSweep:
    def test_what_a_worker_wrote_afterwards_goes_an_hour_later(self, caller, ended, janitor, sessions, store):
        delete(caller, ended)
        with sessions() as session:
            account_id = session.scalar(select(DeletedJob.account_id))
        store.put_bytes(job_prefix(account_id, id_of(ended)) + "merge/1/late", b"x", "text/plain")
        janitor.tidy()
        assert len(objects(store, sessions, ended)) == 1
        let_pass(sessions, hours=2)
        receipt = delete(caller, ended).json()
        janitor.tidy()
        assert objects(store, sessions, ended) == []
        with sessions() as session:
            assert session.scalar(select(DeletedJob.swept_at)) is not None
            assert repository.overdue_jobs(session, finished_before=datetime.now(UTC), limit=9) == []
        assert delete(caller, ended).json() == receipt


class TestRetention:
    def test_a_job_may_ask_for_its_time(self, caller, janitor, sessions):
        short = caller.submit(params={"retention_days": 2}).json()
        usual = caller.submit().json()
        assert short["expires_at"] is usual["expires_at"] is None
        ends = {}
        for job in (short, usual):
            ended = caller.post(job["urls"]["cancel"]).json()
            ends[job["id"]] = datetime.fromisoformat(ended["expires_at"]) - datetime.fromisoformat(ended["finished_at"])
        assert list(ends.values()) == [timedelta(days=2), timedelta(days=30)]
        let_pass(sessions, days=3)
        janitor.tidy()
        assert refused(caller.get(short["urls"]["self"])) == (410, "job_deleted")
        receipt = delete(caller, short["urls"]["self"]).json()
        assert (receipt["cause"], receipt["requested_at"]) == ("expiry", None)
        assert caller.get(usual["urls"]["self"]).status_code == 200
        let_pass(sessions, days=28)
        janitor.tidy()
        assert refused(caller.get(usual["urls"]["self"])) == (410, "job_deleted")

    def test_a_longer_time_than_usual_holds_too(self, caller, janitor, sessions):
        job = caller.submit(params={"retention_days": 60}).json()
        caller.post(job["urls"]["cancel"])
        let_pass(sessions, days=59)
        janitor.tidy()
        assert caller.get(job["urls"]["self"]).status_code == 200

    def test_a_retry_has_the_same_time_and_what_it_draws_on_waits_for_it(self, caller, janitor, sessions):
        first = caller.submit(params={"retention_days": 2}).json()
        caller.post(first["urls"]["cancel"])
        retry = caller.post(first["urls"]["retry"]).json()
        let_pass(sessions, days=3)
        janitor.tidy()
        assert caller.get(first["urls"]["self"]).status_code == 200
        ended = caller.post(retry["urls"]["cancel"]).json()
        assert datetime.fromisoformat(ended["expires_at"]) - datetime.fromisoformat(ended["finished_at"]) == timedelta(
            days=2
        )
        janitor.tidy()
        assert caller.get(first["urls"]["self"]).status_code == 410

    @pytest.mark.parametrize(("days", "code"), [(0, "greater_than_equal"), (11, "too_long"), (9999, "less_than_equal")])
    def test_the_installation_sets_bounds(self, serve, caller, days, code):
        caller._http = serve(retention_max_days=10)
        answer = caller.submit(params={"retention_days": days})
        assert answer.status_code == 422
        assert [(each["pointer"], each["code"]) for each in answer.json()["errors"]] == [
            ("/params/retention_days", code)
        ]

    def test_the_usual_time_is_the_dispatchers(self, serve, caller):
        caller._http = serve(dispatcher_retention_days=7)
        ended = caller.post(caller.submit().json()["urls"]["cancel"]).json()
        kept = datetime.fromisoformat(ended["expires_at"]) - datetime.fromisoformat(ended["finished_at"])
        assert kept == timedelta(days=7)


def test_no_more_jobs_are_named_than_asked_for(sessions):
    account = make_account(sessions)
    jobs = [make_job(sessions, account, retention_days=days) for days in (1, None, None, 1)]
    for job_id in jobs:
        cancel(sessions, account, job_id)
    with transaction(sessions) as session:
        session.execute(update(Job).where(Job.id == jobs[3]).values(deletion_requested_at=func.now()))
        session.execute(update(Job).where(Job.id == jobs[0]).values(expires_at=func.now() - text("interval '1 day'")))
    with transaction(sessions) as session:
        soon = datetime.now(UTC) + timedelta(hours=1)
        found = [
            [each.job_id for each in repository.overdue_jobs(session, finished_before=soon, limit=limit)]
            for limit in (1, 2, 3, 9)
        ]
    assert found == [[jobs[3]], [jobs[3], jobs[0]], [jobs[3], jobs[0], jobs[1]], [jobs[3], jobs[0], jobs[1], jobs[2]]]
