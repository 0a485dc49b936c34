"""Entity tags and answers that wait, against the real application and its hub."""

import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update

from api.db import transaction
from api.jobs import repository
from api.jobs.waiting import MAX_WAIT_S, Wait, is_known, read_wait
from api.webhooks.models import WebhookEndpoint
from tests.api.factories import LEASE, cancel, claim, fail, finish, held

LONG = {"Prefer": f"wait={MAX_WAIT_S}"}


@pytest.fixture
def path(caller):
    return caller.submit().headers["location"]


@pytest.fixture
def pool():
    with ThreadPoolExecutor(60) as pool:
        yield pool


def job_of(path):
    return uuid.UUID(path.rsplit("/", 1)[1])


def tag(caller, path):
    return caller.get(path).headers["etag"]


def ask(caller, path, known, **options):
    return caller.get(path, headers={"If-None-Match": known, **options.pop("headers", {})}, **options)


def until_heard(caller, listeners=1):
    """Wait until so many requests wait."""
    hub = caller._http.app.state.services.hub
    for _ in range(3000):
        if sum(len(each) for each in list(hub._listeners.values())) >= listeners:
            return
        time.sleep(0.01)
    pytest.fail("nobody waits")


class TestEntityTag:
    def test_it_holds_while_nothing_changes(self, caller, path):
        first = caller.get(path)
        again = ask(caller, path, first.headers["etag"])
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
        assert first.headers["cache-control"] == again.headers["cache-control"] == "private, no-cache"
        assert ask(caller, path, '"other"').status_code == 200

    def test_the_document_is_not_made_for_it(self, caller, path, monkeypatch):
        known = tag(caller, path)
        monkeypatch.setattr("api.jobs.view.describe", None)
        assert ask(caller, path, known).status_code == 304

    def test_every_change_gives_another(self, caller, path, sessions):
        tags = [tag(caller, path)]

        def changed():
            tags.append(tag(caller, path))
            return len(set(tags)) == len(tags)

        claimed = claim(sessions)
        assert changed()
        for step in (1, 2):
            with transaction(sessions) as session:
                repository.record_progress(session, **held(claimed), progress={"step": step, "total": 9})
            assert changed()
        finish(sessions, claimed)
        assert changed()
        cancel(sessions, claimed.account_id, claimed.job_id)
        assert changed()

    def test_a_sign_of_life_is_no_change(self, caller, path, sessions):
        claimed = claim(sessions)
        known = tag(caller, path)
        with transaction(sessions) as session:
            repository.heartbeat(session, **held(claimed), lease=2 * LEASE)
        assert ask(caller, path, known).status_code == 304

    def test_how_its_webhook_does_is_a_part(self, caller, sessions):
        path = caller.submit(params={"webhook_url": "https://example.org/hook"}).headers["location"]
        known = tag(caller, path)
        with transaction(sessions) as session:
            session.execute(update(WebhookEndpoint).values(state="disabled", disabled_at="now", disabled_reason="gone"))
        assert ask(caller, path, known).status_code == 200

    def test_it_changes_before_links_are_too_old(self, serve, caller, sessions, monkeypatch):
        caller._http = serve(artifact_url_lifetime_s=1000)
        path = caller.submit().headers["location"]
        while (claimed := claim(sessions)) is not None:
            finish(sessions, claimed)
        monkeypatch.setattr("api.jobs.reading.time.time", lambda: 1_500_000_001)
        known = tag(caller, path)
        monkeypatch.setattr("api.jobs.reading.time.time", lambda: 1_500_000_499)
        assert ask(caller, path, known).status_code == 304
        monkeypatch.setattr("api.jobs.reading.time.time", lambda: 1_500_000_501)
        assert ask(caller, path, known).status_code == 200

    def test_a_strangers_tag_tells_nothing(self, caller, stranger, path):
        assert ask(stranger, path, tag(caller, path)).status_code == 404

    @pytest.mark.parametrize("sent", ['W/"a"', '"a"', '"b", W/"a"', '"b","a"', "*", ' W/"x" ,\t"a" '])
    def test_a_known_tag_is_found(self, sent):
        assert is_known('W/"a"', [sent])
        assert is_known('W/"a"', ['"z"', sent] if sent != "*" else [sent])

    @pytest.mark.parametrize("sent", [[], [""], ["a"], ['"b"'], ['W/"ab"'], ['"a'], ['"*"']])
    def test_another_is_not(self, sent):
        assert not is_known('W/"a"', sent)


class TestWait:
    def test_the_answer_comes_when_the_state_changes(self, caller, path, sessions, pool):
        answer = pool.submit(caller.get, path, headers=LONG)
        until_heard(caller)
        claimed = claim(sessions)
        got = answer.result(30)
        assert (got.json()["state"], got.headers["preference-applied"]) == ("running", f"wait={MAX_WAIT_S}")
        answer = pool.submit(caller.get, f"{path}?wait={MAX_WAIT_S}")
        until_heard(caller)
        fail(sessions, claimed)
        got = answer.result(30)
        assert (got.json()["state"], "preference-applied" in got.headers) == ("failed", False)

    def test_progress_is_not_waited_for_without_a_tag_and_is_with_one(self, caller, path, sessions, pool):
        claimed = claim(sessions)
        known = tag(caller, path)
        by_state = pool.submit(caller.get, path, headers=LONG)
        by_tag = pool.submit(ask, caller, path, known, headers=LONG)
        until_heard(caller, 2)
        with transaction(sessions) as session:
            repository.record_progress(session, **held(claimed), progress={"step": 1, "total": 2}, tell=True)
        got = by_tag.result(30)
        assert (got.status_code, got.json()["stages"][0]["progress"]["step"]) == (200, 1)
        assert got.headers["etag"] != known
        assert not by_state.done()
        fail(sessions, claimed)
        assert by_state.result(30).json()["state"] == "failed"

    def test_after_the_time_it_comes_all_the_same(self, caller, path):
        assert caller.get(path, headers={"Prefer": "wait=1"}).json()["state"] == "queued"
        late = ask(caller, path, tag(caller, path), headers={"Prefer": "wait=1"})
        assert (late.status_code, late.headers["preference-applied"]) == (304, "wait=1")

    def test_what_changed_before_is_told_at_once(self, caller, path, sessions, pool):
        known = tag(caller, path)
        claim(sessions)
        assert pool.submit(ask, caller, path, known, headers=LONG).result(30).json()["state"] == "running"

    def test_a_job_that_has_ended_is_not_waited_for(self, caller, path, pool):
        caller.post(path + "/cancel")
        known = tag(caller, path)
        assert pool.submit(caller.get, path, headers=LONG).result(30).json()["state"] == "canceled"
        assert pool.submit(ask, caller, path, known, headers=LONG).result(30).status_code == 304

    def test_those_who_wait_hold_no_thread(self, caller, path, pool):
        waiting = [pool.submit(caller.get, path, headers=LONG) for _ in range(50)]  # of 40 threads
        until_heard(caller, 50)
        assert caller.post(path + "/cancel").json()["state"] == "canceled"
        assert {answer.result(30).json()["state"] for answer in waiting} == {"canceled"}

    def test_a_process_that_stops_answers_at_once(self, caller, path, pool):
        answer = pool.submit(caller.get, path, headers=LONG)
        until_heard(caller)
        caller._http.portal.call(caller._http.app.state.services.hub.close)
        assert answer.result(30).json()["state"] == "queued"

    def test_an_unknown_job_is_not_waited_for(self, stranger, path):
        assert stranger.get(path, headers=LONG).status_code == 404

    def test_a_query_out_of_bounds_is_refused(self, caller, path):
        answer = caller.get(f"{path}?wait={MAX_WAIT_S + 1}")
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/wait")


class TestSubmission:
    def test_it_may_be_waited_for_to_the_end(self, caller, sessions, pool):
        answer = pool.submit(caller.submit, headers=LONG)
        until_heard(caller)
        claimed = claim(sessions)
        cancel(sessions, claimed.account_id, claimed.job_id)
        assert not answer.done()  # it is running
        fail(sessions, claimed)
        got = answer.result(30)
        assert (got.status_code, got.json()["state"]) == (200, "canceled")
        assert got.headers["location"].endswith(got.json()["id"])
        assert "retry-after" not in got.headers
        assert got.headers["preference-applied"] == f"wait={MAX_WAIT_S}"

    def test_after_the_time_it_is_as_usual(self, caller):
        got = caller.submit(headers={"Prefer": "wait=1"})
        assert (got.status_code, got.json()["state"], got.headers["preference-applied"]) == (202, "queued", "wait=1")

    def test_a_request_that_is_sent_again_waits_for_the_same_job(self, caller, pool):
        key = {"Idempotency-Key": "k"}
        first = caller.submit(headers=key)
        again = pool.submit(caller.submit, headers=key | LONG)
        until_heard(caller)
        caller.post(first.headers["location"] + "/cancel")
        got = again.result(30)
        assert (got.status_code, got.json()["id"], got.json()["state"]) == (200, first.json()["id"], "canceled")
        assert got.headers["idempotency-replayed"] == "true"


@pytest.mark.parametrize(
    ("sent", "seconds"),
    [
        (["wait=5"], 5),
        (["respond-async, wait=5"], 5),
        (["respond-async", "WAIT = 5"], 5),
        (['wait="7"; x=1'], 7),
        (["wait=3, wait=9"], 3),
        (["wait=100000"], MAX_WAIT_S),
    ],
)
def test_a_preference_is_read(sent, seconds):
    assert read_wait(sent) == Wait(seconds, is_preference=True)


@pytest.mark.parametrize("sent", [[], [""], ["wait"], ["wait=x"], ["wait=-1"], ["wait=1.5"], ["wait=99999999999"]])
def test_what_is_no_preference_is_passed_over(sent):
    assert read_wait(sent) == Wait(0)


def test_the_query_goes_before_the_preference():
    assert read_wait(["wait=5"], 9) == Wait(9)


@given(st.lists(st.text(st.characters(codec="latin-1"))))
def test_no_header_breaks_the_reading(sent):
    assert 0 <= read_wait(sent).seconds <= MAX_WAIT_S
    assert is_known('W/"a"', sent) in {True, False}
