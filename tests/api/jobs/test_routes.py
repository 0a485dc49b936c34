"""Jobs over HTTP, against real Postgres and a real S3 server."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from sqlalchemy import event, func, select
from sqlalchemy.exc import OperationalError

from api.db import transaction
from api.jobs import darkroom, orders, repository
from api.jobs.models import Job, JobImage, OutboxRow, Stage
from api.settings import ImageLimits
from api.storage import ObjectStore, StoreError, artifact_key
from tests.api.factories import (
    PROBLEM,
    Caller,
    claim,
    events,
    fail,
    finish,
    held,
    make_all_due,
    png,
    png_header,
    snapshot,
)
from tests.support.company import alone, offer_as_tiny, together


def problem(answer, status, code=None):
    """Check that an answer is a problem in full; returns its document."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["status"] == status
    assert document["type"] == f"urn:duolora:problem:{document['code']}"
    assert document["request_id"] == answer.headers["x-request-id"]
    assert isinstance(document["retryable"], bool)
    assert document["title"]
    if code is not None:
        assert document["code"] == code
    return document


def pointers(document):
    return [entry["pointer"] for entry in document["errors"]]


@pytest.fixture
def nothing_stored(sessions, store):
    """After the test: neither a row nor an object."""
    yield
    assert all(rows == [] for rows in snapshot(sessions).values())
    assert store.keys() == []


@pytest.fixture(autouse=True)
def a_stage_for_each_lora(monkeypatch):
    """Jobs of these tests train each side by itself, unless they say otherwise."""
    offer_as_tiny(monkeypatch, alone)


def run_through(sessions, store=None):
    """Play a worker until nothing is runnable; uploads what it publishes."""
    while claimed := claim(sessions):
        if store is None:
            finish(sessions, claimed)
            continue
        data = f"{claimed.name} of {claimed.job_id}".encode()
        key = artifact_key(claimed.account_id, claimed.job_id, claimed.name, claimed.attempt, "file.bin")
        store.put_bytes(key, data, "application/octet-stream")
        with transaction(sessions) as session:
            repository.finish_stage(
                session,
                **held(claimed),
                artifacts=[
                    repository.StoredArtifact(
                        name=claimed.name,
                        filename=f"{claimed.name} é.bin",
                        key=key,
                        sha256="ab" * 32,
                        bytes=len(data),
                        content_type="application/octet-stream",
                    )
                ],
                timings={"train_seconds": 1.5},
            )


class TestSubmit:
    def test_the_answer_is_the_job(self, caller):
        answer = caller.submit([png(), png()], [png()], {"subject_class": "cat", "rank": 4, "seed": 9})
        assert answer.status_code == 202
        job = answer.json()
        assert answer.headers["location"] == f"/jobs/{job['id']}" == job["urls"]["self"]
        assert int(answer.headers["retry-after"]) >= 1
        assert (job["kind"], job["state"], job["stage"]) == ("personalize", "queued", None)
        assert job["progress"]["fraction"] == 0
        assert [(stage["name"], stage["state"]) for stage in job["stages"]] == [
            ("content_lora", "runnable"),
            ("style_lora", "runnable"),
            ("merge", "waiting"),
            ("package", "waiting"),
        ]
        assert job["params"]["content"]["rank"] == 4
        assert job["params"]["content"]["company"] == 0
        assert job["params"]["prompts"]["subject_class"] == "cat"
        assert [(image["side"], image["ordinal"]) for image in job["images"]] == [
            ("content", 0),
            ("content", 1),
            ("style", 0),
        ]
        assert (job["error"], job["result"], job["finished_at"]) == (None, None, None)
        assert caller.get(answer.headers["location"]).json()["id"] == job["id"]

    def test_sides_that_keep_each_other_company_have_one_stage(self, caller, sessions, monkeypatch):
        offer_as_tiny(monkeypatch, together)
        path = caller.submit().headers["location"]
        offer_as_tiny(monkeypatch, alone)  # a job keeps the stages that it was submitted with
        job = caller.get(path).json()
        assert job["params"]["style"]["company"] > 0
        assert [(stage["name"], stage["state"]) for stage in job["stages"]] == [
            ("loras", "runnable"),
            ("merge", "waiting"),
            ("package", "waiting"),
        ]
        fractions = [0]
        while claimed := claim(sessions):
            finish(sessions, claimed)
            fractions.append(caller.get(path).json()["progress"]["fraction"])
        assert fractions == sorted(set(fractions))
        assert fractions[-1] == 1
        assert set(caller.get(path).json()["timings"]["stages"]) == {"loras", "merge", "package"}

    def test_pictures_lie_under_their_final_keys_as_the_rows_say(self, caller, sessions, store):
        job_id = caller.submit([png(color=(1, 2, 3))], [png()]).json()["id"]
        with transaction(sessions) as session:
            rows = session.scalars(select(JobImage)).all()
            account = session.scalar(select(Job.account_id))
        assert sorted(row.key for row in rows) == sorted(store.keys())
        for row in rows:
            assert row.key == f"accounts/{account}/jobs/{job_id}/inputs/{row.side}/{row.ordinal}-{row.sha256[:12]}.png"
            assert len(store.get_bytes(row.key)) == row.bytes

    def test_everything_is_written_in_one_transaction(self, caller, sessions):
        commits = []
        served = caller._http.app.state.services.engine
        event.listen(served, "commit", lambda _: commits.append(snapshot(sessions)))
        caller.submit()
        filled = [rows for rows in commits if any(rows.values())]
        # The listener runs just before its commit: until the one of the job nothing may be seen from outside.
        assert all(rows["jobs"] and rows["stages"] and rows["outbox"] and rows["events"] for rows in filled)
        with transaction(sessions) as session:
            assert session.scalar(select(func.count()).select_from(OutboxRow)) == 2

    def test_params_may_be_left_out_or_come_as_a_file(self, caller):
        assert caller.submit().status_code == 202
        files = [
            ("content_images[]", ("a.png", png())),
            ("style_images[]", ("b.png", png())),
            ("params", ("params.json", b'{"rank": 3}', "application/json")),
        ]
        answer = caller.post("/jobs", files=files)
        assert answer.status_code == 202
        assert answer.json()["params"]["style"]["rank"] == 3

    def test_twenty_of_each_are_taken(self, caller):
        answer = caller.submit([png((32, 32))] * 20, [png((32, 32))] * 20)
        assert answer.status_code == 202
        assert len(answer.json()["images"]) == 40

    def test_the_trace_and_the_callers_url_are_kept(self, caller, sessions):
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        job_id = caller.submit(headers={"traceparent": trace, "tracestate": "rojo=1, congo=2"}).json()["id"]
        with transaction(sessions) as session:
            job = session.get(Job, job_id)
            assert (job.traceparent, job.tracestate) == (trace, "rojo=1,congo=2")
            assert job.self_url == f"http://testserver/jobs/{job_id}"
        claimed = claim(sessions)
        assert (claimed.traceparent, claimed.tracestate) == (trace, "rojo=1,congo=2")

    def test_a_public_url_replaces_the_host_header(self, serve, caller, sessions):
        caller._http = serve(public_url="https://lora.example.org/")
        job_id = caller.submit(headers={"host": "evil"}).json()["id"]
        with transaction(sessions) as session:
            assert session.get(Job, job_id).self_url == f"https://lora.example.org/jobs/{job_id}"

    def test_whoever_waits_too_long_for_a_turn_is_asked_to_come_again(self, serve, caller, monkeypatch):
        started, release = threading.Event(), threading.Event()

        def slow(*arguments):
            started.set()
            release.wait(30)
            return clean(*arguments)

        clean = darkroom.images.clean
        monkeypatch.setattr(darkroom.images, "clean", slow)
        narrow = Caller(serve(images=ImageLimits(parallel=1, wait_s=0.05)), caller.key)
        with ThreadPoolExecutor(1) as other:
            first = other.submit(narrow.submit)
            assert started.wait(30)
            answer = narrow.submit()
            release.set()
            assert first.result().status_code == 202
        assert problem(answer, 503, "busy")["retryable"]
        assert int(answer.headers["retry-after"]) >= 1
        assert narrow.submit().status_code == 202

    def test_a_broker_that_is_down_does_not_matter(self, serve, caller, api_settings):
        dead = api_settings.redis.model_copy(update={"url": type(api_settings.redis.url)("redis://127.0.0.1:1")})
        caller._http = serve(redis=dead)
        assert caller.submit().status_code == 202


@pytest.mark.usefixtures("nothing_stored")
class TestRefusals:
    @pytest.mark.parametrize(
        ("bad", "code"),
        [
            (b"", "empty"),
            (b"this is no picture", "not_an_image"),
            (png((200, 200))[:-30], "damaged"),
            (png_header(30_000, 30_000), "too_many_pixels"),
            (png((8, 8)), "too_small"),
        ],
    )
    @pytest.mark.parametrize("side", ["content", "style"])
    def test_a_bad_picture_is_named_by_its_place(self, caller, bad, code, side):
        good = [png(), png()]
        answer = caller.submit(**{side: [*good, bad], {"content": "style", "style": "content"}[side]: good})
        document = problem(answer, 422, "invalid_parameters")
        assert [(entry["pointer"], entry["code"]) for entry in document["errors"]] == [(f"/{side}_images/2", code)]
        assert document["retryable"] is False

    def test_all_bad_pictures_are_told_at_once(self, caller):
        answer = caller.submit([b"x", png(), b""], [b"y"])
        assert pointers(problem(answer, 422)) == ["/content_images/0", "/content_images/2", "/style_images/0"]

    @pytest.mark.parametrize("side", ["content", "style"])
    def test_twenty_one_pictures(self, caller, side):
        document = problem(caller.submit(**{side: [png((32, 32))] * 21}), 422)
        assert [(entry["pointer"], entry["code"]) for entry in document["errors"]] == [(f"/{side}_images", "too_many")]

    @pytest.mark.parametrize("side", ["content", "style"])
    def test_no_pictures(self, caller, side):
        document = problem(caller.submit(**{side: []}), 422)
        assert [(entry["pointer"], entry["code"]) for entry in document["errors"]] == [(f"/{side}_images", "missing")]

    @pytest.mark.parametrize(
        ("params", "pointer"),
        [
            ({"rank": 0}, "/params/rank"),
            ({"colour": "blue"}, "/params/colour"),
            ("{not json", "/params"),
            ({"content_trigger": "x", "style_trigger": "x"}, "/params/style_trigger"),
            ({"recipe": "nope"}, "/params/recipe"),
            ({"base_model": "nope"}, "/params/base_model"),
            ({"priority": 1}, "/params/priority"),
            ({"style_captions": ["a", "b"]}, "/params/style_captions"),
            ({"content_captions": ["a sbu cat", ""]}, "/params/content_captions"),
            ({"content_captions": ["a cat"]}, "/params/content_captions"),
            ({"webhook_url": "http://169.254.169.254/latest"}, "/params/webhook_url"),
            ({"webhook_url": "https://[::1]/"}, "/params/webhook_url"),
            ({"subject_class": "a\x00b"}, "/params/subject_class"),
        ],
    )
    def test_a_bad_parameter_is_named(self, caller, params, pointer):
        assert pointers(problem(caller.submit(params=params), 422)) == [pointer]

    def test_text_where_a_file_belongs(self, caller):
        files = [("content_images", (None, "text")), ("style_images", ("s.png", png()))]
        assert pointers(problem(caller.post("/jobs", files=files), 422)) == ["/content_images/0"]

    def test_an_unknown_part(self, caller):
        files = [("content_images", ("c.png", png())), ("style_images", ("s.png", png())), ("mask", ("m.png", png()))]
        assert pointers(problem(caller.post("/jobs", files=files), 422)) == ["/mask"]

    def test_params_twice(self, caller):
        files = [("content_images", ("c.png", png())), ("style_images", ("s.png", png()))]
        files += [("params", (None, "{}"))] * 2
        assert pointers(problem(caller.post("/jobs", files=files), 422)) == ["/params"]

    def test_another_type_of_body(self, caller):
        problem(caller.post("/jobs", data={"rank": 4}), 415, "unsupported_media_type")

    def test_a_form_that_is_broken(self, caller):
        headers = {"content-type": "multipart/form-data; boundary=x"}
        problem(caller.post("/jobs", content=b"--x\r\nno headers", headers=headers), 400)

    def test_too_many_parts(self, caller):
        files = [("content_images", (f"{n}.png", b"x")) for n in range(201)]
        problem(caller.post("/jobs", files=files), 400)

    def test_a_body_announced_too_large(self, serve, caller):
        caller._http = serve(max_request_bytes=1000)
        document = problem(caller.submit([png(), bytes(2000)]), 413, "too_large")
        assert "1000 bytes" in document["detail"]

    def test_a_body_that_grows_too_large_as_it_streams(self, serve, caller):
        caller._http = serve(max_request_bytes=1000)
        sent = []

        def body():
            yield b'--x\r\nContent-Disposition: form-data; name="content_images"; filename="a.png"\r\n\r\n'
            for _ in range(100):
                sent.append(100)
                yield bytes(100)

        headers = {"content-type": "multipart/form-data; boundary=x"}
        problem(caller.post("/jobs", content=body(), headers=headers), 413, "too_large")

    def test_a_file_over_its_own_limit(self, serve, caller):
        caller._http = serve(images=ImageLimits(max_bytes=100))
        document = problem(caller.submit([png((300, 300))]), 422)
        assert [entry["code"] for entry in document["errors"]] == ["too_large", "too_large"]

    def test_no_key_no_upload(self, http):
        answer = http.post("/jobs", files=[("content_images", ("c.png", png()))])
        problem(answer, 401, "unauthenticated")
        assert answer.headers["www-authenticate"].startswith("Bearer")

    def test_a_database_that_fails_leaves_no_pictures(self, caller, monkeypatch):
        stored = []
        put_file = ObjectStore.put_file

        def remember(self, key, *arguments):
            put_file(self, key, *arguments)
            stored.append(key)

        def fail_late(session, job, stages, **options):
            repository_insert(session, job, stages, **options)
            session.flush()
            session.connection().exec_driver_sql("SELECT no_such_function()")

        repository_insert = repository.insert_job
        monkeypatch.setattr(ObjectStore, "put_file", remember)
        monkeypatch.setattr(repository, "insert_job", fail_late)
        problem(caller.submit([png(), png()]), 500, "internal_error")
        assert len(stored) == 3  # they were there, and are gone

    def test_a_store_that_fails_half_way_leaves_nothing(self, caller, monkeypatch):
        put_file = ObjectStore.put_file
        calls = []

        def fail_third(self, key, *arguments):
            calls.append(key)
            if len(calls) == 3:
                raise StoreError("the disk is full")
            put_file(self, key, *arguments)

        monkeypatch.setattr(ObjectStore, "put_file", fail_third)
        document = problem(caller.submit([png(), png()], [png(), png()]), 503, "store_unavailable")
        assert document["retryable"] is True


def test_a_commit_whose_answer_got_lost_keeps_its_pictures(caller, sessions, store, monkeypatch):
    calls = []

    @contextmanager
    def lose_the_first_answer(factory):
        calls.append(factory)
        with transaction(factory) as session:
            yield session
        if len(calls) == 1:
            raise OperationalError("commit", {}, Exception("the connection is gone"))

    monkeypatch.setattr(orders, "transaction", lose_the_first_answer)
    problem(caller.submit(), 503, "database_unavailable")
    with transaction(sessions) as session:
        assert sorted(session.scalars(select(JobImage.key))) == sorted(store.keys()) != []


class TestRead:
    def test_a_running_job_tells_how_far_it_is(self, caller, sessions):
        path = caller.submit().headers["location"]
        claimed = claim(sessions)
        with transaction(sessions) as session:
            repository.record_progress(
                session, **held(claimed), progress={"step": 30, "total": 150, "loss": 0.5, "note": "training"}
            )
        job = caller.get(path).json()
        assert (job["state"], job["stage"]) == ("running", "content_lora")
        progress = job["progress"]
        assert (progress["step"], progress["total"], progress["loss"], progress["note"]) == (30, 150, 0.5, "training")
        assert 0 < progress["fraction"] < 0.2
        assert progress["eta_seconds"] is None  # one report makes no rate
        assert job["stages"][0]["progress"]["fraction"] == 0.2
        assert job["started_at"] is not None

    def test_the_eta_appears_with_the_rate(self, caller, sessions):
        path = caller.submit().headers["location"]
        claimed = claim(sessions)
        at = datetime.now(UTC).timestamp()
        with transaction(sessions) as session:
            session.get(Stage, claimed.stage_id).progress = {
                "step": 75,
                "total": 150,
                "at": at,
                "since": {"step": 1, "at": at - 74},
            }
        job = caller.get(path).json()
        assert 60 < job["stages"][0]["progress"]["eta_seconds"] <= 75
        assert job["progress"]["eta_seconds"] > job["stages"][0]["progress"]["eta_seconds"]

    def test_a_succeeded_job_has_files_whose_links_work_without_a_key(self, caller, sessions, store):
        path = caller.submit().headers["location"]
        run_through(sessions, store)
        job = caller.get(path).json()
        assert (job["state"], job["progress"]["fraction"], job["progress"]["eta_seconds"]) == ("succeeded", 1, None)
        assert job["timings"]["stages"]["merge"]["train_seconds"] == 1.5
        assert job["timings"]["running_seconds"] >= 0
        assert job["timings"]["worker_seconds"] > 0
        artifacts = {artifact["name"]: artifact for artifact in job["result"]["artifacts"]}
        assert set(artifacts) == {"content_lora", "style_lora", "merge", "package"}
        merged = artifacts["merge"]
        with urlopen(merged["url"]) as answer:  # noqa: S310
            body = answer.read()
            assert answer.headers["content-type"] == "application/octet-stream"
            assert "merge%20%C3%A9.bin" in answer.headers["content-disposition"]
        assert body == f"merge of {job['id']}".encode()
        assert merged["bytes"] == len(body)
        expires_at = datetime.fromisoformat(merged["expires_at"])
        assert timedelta(minutes=59) < expires_at - datetime.now(UTC) <= timedelta(hours=1)

    @pytest.mark.parametrize(
        "tamper",
        [
            lambda url: url[:-1] + ("0" if url[-1] != "0" else "1"),
            lambda url: url.replace("/merge/", "/content_lora/"),
            lambda url: url.replace("X-Amz-Expires=3600", "X-Amz-Expires=360000"),
            lambda url: url.split("?")[0],
        ],
    )
    def test_a_tampered_link_is_refused(self, caller, sessions, store, tamper):
        path = caller.submit().headers["location"]
        run_through(sessions, store)
        artifacts = {artifact["name"]: artifact["url"] for artifact in caller.get(path).json()["result"]["artifacts"]}
        changed = tamper(artifacts["merge"])
        assert changed != artifacts["merge"]
        with pytest.raises(HTTPError) as caught:
            urlopen(changed)  # noqa: S310
        with caught.value:
            assert caught.value.code in {400, 403}

    def test_a_failed_job_carries_the_same_shape_of_problem(self, caller, sessions):
        path = caller.submit().headers["location"]
        fail(sessions, claim(sessions), error={**PROBLEM, "code": "training_diverged", "detail": "loss is NaN"})
        job = caller.get(path).json()
        assert job["state"] == "failed"
        assert {"type", "title", "status", "code", "retryable", "detail"} <= set(job["error"])
        assert (job["error"]["code"], job["error"]["stage"], job["error"]["attempt"]) == (
            "training_diverged",
            "content_lora",
            1,
        )
        assert job["result"] is None

    def test_attempts_are_shown(self, caller, sessions):
        path = caller.submit().headers["location"]
        fail(sessions, claim(sessions), retry_after=timedelta(0))
        make_all_due(sessions)
        claim(sessions)
        stage = caller.get(path).json()["stages"][0]
        assert (stage["state"], stage["attempt"], stage["error"]["code"]) == ("running", 2, "x")


class TestTenancy:
    @pytest.mark.parametrize("act", ["read", "cancel"])
    def test_another_accounts_job_is_not_there(self, caller, stranger, sessions, act):
        job_id = caller.submit().json()["id"]
        before = snapshot(sessions)
        ask = {
            "read": lambda: stranger.get(f"/jobs/{job_id}"),
            "cancel": lambda: stranger.post(f"/jobs/{job_id}/cancel"),
        }
        theirs = problem(ask[act](), 404, "not_found")
        missing = problem(stranger.get(f"/jobs/{uuid.uuid4()}"), 404, "not_found")
        assert theirs.keys() == missing.keys()
        assert snapshot(sessions) == before

    def test_lists_show_ones_own_jobs_only(self, caller, stranger):
        mine, theirs = caller.submit().json()["id"], stranger.submit().json()["id"]
        assert [job["id"] for job in caller.get("/jobs").json()["items"]] == [mine]
        assert [job["id"] for job in stranger.get("/jobs").json()["items"]] == [theirs]

    def test_another_accounts_cursor_opens_nothing(self, caller, stranger):
        for _ in range(2):
            caller.submit()
        cursor = caller.get("/jobs?limit=1").json()["next_cursor"]
        assert stranger.get("/jobs", params={"cursor": cursor}).json()["items"] == []

    @pytest.mark.parametrize("job_id", ["x", "%00", "..", "1", "a" * 300])
    def test_what_is_no_id_names_no_job(self, caller, job_id):
        problem(caller.get(f"/jobs/{job_id}x"), 404, "not_found")


class TestList:
    def test_pages_lead_to_the_end(self, caller):
        made = [caller.submit().json()["id"] for _ in range(3)]
        page = caller.get("/jobs?limit=2").json()
        assert (page["limit"], page["state"], page["kind"]) == (2, [], [])
        rest = caller.get("/jobs", params={"limit": 2, "cursor": page["next_cursor"]}).json()
        assert [job["id"] for job in page["items"] + rest["items"]] == made[::-1]
        assert rest["next_cursor"] is None

    def test_the_state_filters(self, caller):
        first, _ = caller.submit(), caller.submit()
        caller.post(first.json()["urls"]["cancel"])
        page = caller.get("/jobs?state=canceled").json()
        assert [job["id"] for job in page["items"]] == [first.json()["id"]]
        assert page["state"] == ["canceled"]

    @pytest.mark.parametrize(
        ("query", "pointer"),
        [
            ("limit=0", "/limit"),
            ("limit=101", "/limit"),
            ("state=done", "/state/0"),
            ("state=queued&kind=x", "/kind/0"),
            ("cursor=xyz", "/cursor"),
        ],
    )
    def test_a_bad_query_is_named(self, caller, query, pointer):
        assert pointers(problem(caller.get(f"/jobs?{query}"), 422)) == [pointer]


class TestCancel:
    def test_a_queued_job_ends_at_once_and_again(self, caller, sessions):
        urls = caller.submit().json()["urls"]
        answer = caller.post(urls["cancel"])
        assert (answer.status_code, answer.json()["state"]) == (200, "canceled")
        assert answer.json()["cancel_requested_at"] is not None
        before = snapshot(sessions)
        again = caller.post(urls["cancel"])
        assert (again.status_code, again.json()["state"]) == (200, "canceled")
        assert snapshot(sessions) == before

    def test_a_running_job_is_stopping_until_it_has_stopped(self, caller, sessions):
        job = caller.submit().json()
        claimed = claim(sessions)
        for _ in range(2):
            answer = caller.post(job["urls"]["cancel"])
            assert (answer.status_code, answer.json()["state"]) == (202, "running")
        with transaction(sessions) as session:
            repository.settle_cancel(session, **held(claimed))
        answer = caller.post(job["urls"]["cancel"])
        assert (answer.status_code, answer.json()["state"]) == (200, "canceled")
        assert events(sessions, uuid.UUID(job["id"])).count("job.canceled") == 1

    def test_a_succeeded_job_stays_so(self, caller, sessions):
        job = caller.submit().json()
        run_through(sessions)
        answer = caller.post(job["urls"]["cancel"])
        assert (answer.status_code, answer.json()["state"]) == (200, "succeeded")
        assert answer.json()["cancel_requested_at"] is None


def test_recipes_are_listed_with_all_their_defaults(caller):
    page = caller.get("/recipes").json()
    assert (page["base_models"], page["default_base_model"]) == (["tiny"], "tiny")
    recipes = {recipe["name"]: recipe for recipe in page["recipes"]}
    assert set(recipes) == {"tiny", "tiny-long", "sdxl", "sdxl-paper", "sd15"}
    assert set(page["merge_recipes"]) == {"duolora", "paper", "release", "instant"}
    assert page["merge_recipes"]["paper"]["steps"] == 100
    assert recipes["sdxl-paper"]["defaults"]["content"]["rank"] == 64
