"""The Python client against the real API process; a worker is played through the repository."""

import hashlib
import json
import os
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from PIL import Image

from api.accounts.service import issue_key
from api.client import Client, DamagedDownload, JobNotSucceeded, ServiceRefused, Wishes
from api.db import make_engine, session_factory, transaction
from api.jobs import repository
from api.jobs.models import LogLine
from api.jobs.schemas import JobParams
from api.settings import StoreSettings
from api.storage import ObjectStore
from deploy.local.processes import LOOPBACK, free_port, spawn
from duolora.recipes import MERGE_RECIPES

pytestmark = pytest.mark.xdist_group("client")


@pytest.fixture(scope="module")
def environment(test_databases, valkey_server, object_store_server):
    with test_databases.fresh() as url:
        yield {"DATABASE_URL": url, "REDIS_URL": valkey_server.url, **object_store_server.environment("client-tests")}


@pytest.fixture(scope="module")
def objects(environment):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        store = ObjectStore(StoreSettings())
    store.ensure_bucket()
    return store


@pytest.fixture(scope="module")
def sessions(environment):
    engine = make_engine(environment["DATABASE_URL"])
    yield session_factory(engine)
    engine.dispose()


@pytest.fixture(scope="module")
def url(environment, objects, tmp_path_factory):
    port = free_port()
    address = f"http://{LOOPBACK}:{port}"
    child = spawn(
        "api",
        [sys.executable, "-m", "api"],
        log=tmp_path_factory.mktemp("api") / "api.log",
        env=os.environ | environment | {"HOST": LOOPBACK, "PORT": str(port)},
    )

    def ready() -> bool:
        try:
            return httpx.get(f"{address}/readyz").is_success
        except httpx.TransportError:
            return False

    child.wait_ready(ready, timeout_s=30)
    yield address
    child.stop()


@pytest.fixture
def client(url, sessions):
    """Of a fresh account."""
    key = issue_key(sessions, account=os.urandom(8).hex()).text
    with Client(url, key) as connection:
        yield connection


@pytest.fixture
def pictures(tmp_path):
    paths = []
    for number in range(3):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (64, 64), (40 * number, 200, 100)).save(path)
        paths.append(path)
    return paths


def submit(client, pictures, **wishes):
    return client.personalize(content=pictures[:2], style=pictures[2:], subject_class="teapot", **wishes)


def finish(sessions, objects, job, content):
    """Play the worker of all stages; the last one leaves one file."""
    while True:
        with transaction(sessions) as session:
            stage = repository.claim_stage(session, repository.Claimant(worker_id="test", lease=timedelta(minutes=1)))
            if stage is None:
                return
            artifacts = []
            if stage.name == "package":
                key = f"test/{stage.stage_id}"
                objects.put_bytes(key, content, "image/png")
                artifacts = [
                    repository.StoredArtifact(
                        name="preview",
                        filename="preview.png",
                        key=key,
                        sha256=hashlib.sha256(b"picture").hexdigest(),
                        bytes=len(content),
                        content_type="image/png",
                    )
                ]
            repository.finish_stage(
                session, stage_id=stage.stage_id, fencing_token=stage.fencing_token, artifacts=artifacts, timings={}
            )


def test_everything_a_job_takes_can_be_wished_for(client, pictures):
    """Beside what `personalize` itself names."""
    assert Wishes.__annotations__.keys() == JobParams.model_fields.keys() - {"kind", "subject_class"}
    captions = ["a sbu teapot at sea", ""]
    job = submit(client, pictures, merge_recipe="paper", content_captions=captions)
    params = client._call("GET", f"/jobs/{job.id}")["params"]
    assert params["merge"] == MERGE_RECIPES["paper"].model_dump(mode="json")
    assert params["prompts"]["content_captions"] == captions
    with pytest.raises(ServiceRefused, match="merge_recipe"):
        submit(client, pictures, merge_recipe="magic")


def test_a_job_from_submission_to_files(client, pictures, sessions, objects, tmp_path):
    job = submit(client, pictures, steps={"content": 7}, seed=5, style_captions=["a bridge"])
    assert job.state == "queued"
    assert not job.is_terminal
    states = []
    finish(sessions, objects, job, b"picture")
    done = client.wait(job.id, on_progress=lambda now: states.append(now.state))
    assert states == ["succeeded"]
    assert done.progress.fraction == 1
    files = client.download(job, tmp_path / "out")
    assert files == {"preview": tmp_path / "out" / "preview.png"}
    assert files["preview"].read_bytes() == b"picture"


def test_a_damaged_file_is_not_kept(client, pictures, sessions, objects, tmp_path):
    job = submit(client, pictures)
    finish(sessions, objects, job, b"another")
    with pytest.raises(DamagedDownload, match=r"preview\.png"):
        client.download(job, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_unfinished_job_has_nothing_to_download(client, pictures, tmp_path):
    job = submit(client, pictures)
    with pytest.raises(JobNotSucceeded, match="queued"):
        client.download(job, tmp_path)
    client.cancel(job.id)


def test_a_refusal_names_the_fields(client, pictures):
    with pytest.raises(ServiceRefused, match="/rank") as refusal:
        submit(client, pictures, rank=0)
    assert refusal.value.status == 422
    assert refusal.value.problem["errors"][0]["code"]


def test_a_wrong_key_is_a_problem(url, pictures):
    with Client(url, "duo_wrong") as stranger, pytest.raises(ServiceRefused) as refusal:
        submit(stranger, pictures)
    assert refusal.value.status == 401
    assert refusal.value.problem["code"] == "invalid_api_key"


def test_canceling_ends_the_wait(client, pictures):
    job = submit(client, pictures)
    assert client.cancel(job.id).state == "canceled"
    with pytest.raises(JobNotSucceeded, match=f"job {job.id} canceled") as ended:
        client.wait(job.id)
    assert ended.value.job.state == "canceled"


def test_the_same_call_with_the_same_key_makes_one_job(client, pictures):
    first, second = (submit(client, pictures, idempotency_key="k") for _ in range(2))
    assert first == second
    with pytest.raises(ServiceRefused) as refusal:
        submit(client, pictures, idempotency_key="k", seed=7)
    assert refusal.value.problem["code"] == "idempotency_mismatch"
    client.cancel(first.id)


def test_an_ended_job_is_tried_again_as_a_new_one(client, pictures):
    job = submit(client, pictures)
    with pytest.raises(ServiceRefused) as refusal:
        client.retry(job.id)
    assert refusal.value.problem["code"] == "not_retryable"
    client.cancel(job.id)
    again = client.retry(job.id, idempotency_key="k")
    assert (again.retry_of, again.state) == (job.id, "queued")
    assert client.retry(job.id, idempotency_key="k") == again
    client.cancel(again.id)


def test_a_job_may_be_stopped_and_its_log_read(client, pictures, sessions):
    job = submit(client, pictures)
    with pytest.raises(ServiceRefused) as refusal:
        client.stop(job.id)
    assert refusal.value.problem["code"] == "nothing_to_keep"
    with transaction(sessions) as session:
        line = {"job_id": job.id, "stage": "merge", "attempt": 1, "at": datetime.now(UTC), "level": "INFO"}
        session.add_all(LogLine(**line, message=str(number)) for number in range(1001))
    lines = list(client.logs(job.id, stage="merge"))
    assert [line.message for line in lines] == [str(number) for number in range(1001)]
    assert list(client.logs(job.id, stage="package")) == []
    assert [line.message for line in client.logs(job.id, after=lines[-2].id)] == ["1000"]
    client.cancel(job.id)


def streaming(client, *answers):
    """Let a client get these answers one after another; a text is a stream that breaks off after it."""
    left, asked = list(answers), []

    class Broken(httpx.SyncByteStream):
        def __init__(self, text):
            self._text = text

        def __iter__(self):
            yield self._text.encode()
            raise httpx.ReadError("gone")

    def answer(request):
        asked.append(request.url.params.get("after"))
        given = left.pop(0)
        return httpx.Response(200, stream=Broken(given)) if isinstance(given, str) else httpx.Response(given, json={})

    client._api._transport = httpx.MockTransport(answer)
    return asked


def told(number, kind):
    document = {"id": number, "type": kind, "at": "2026-01-01T00:00:00Z", "data": {}}
    return f"id: {number}\nevent: {kind}\ndata: {json.dumps(document)}\n\n"


def test_a_stream_that_breaks_off_is_taken_up_where_it_was(monkeypatch):
    monkeypatch.setattr("api.client.POLL_S", 0.0)
    gap = 'event: gap\ndata: {"missed_from": 3, "missed_to": 8}\n\n'
    with Client("http://service", "duo_x") as client:
        asked = streaming(
            client,
            "retry: 2000\n\n" + told(1, "job.queued") + ":\n\n" + told(2, "job.started")[:30],
            503,
            told(2, "job.started"),
            gap + told(9, "job.succeeded"),
        )
        heard = [(event.id, event.type) for event in client.events("x")]
    assert heard == [(1, "job.queued"), (2, "job.started"), (8, "gap"), (9, "job.succeeded")]
    assert asked == ["0", "1", "1", "2"]


@pytest.mark.parametrize(("status", "patience_s"), [(503, 0.0), (404, 30.0)])
def test_following_ends_when_patience_does_and_at_once_for_any_other_refusal(status, patience_s, monkeypatch):
    monkeypatch.setattr("api.client.POLL_S", 0.001)
    monkeypatch.setattr("api.client.PATIENCE_S", patience_s)
    with Client("http://service", "duo_x") as client:
        streaming(client, *[status] * 50)
        with pytest.raises(ServiceRefused) as refusal:
            list(client.events("x"))
    assert refusal.value.status == status


def test_waiting_may_be_bounded(client, pictures):
    job = submit(client, pictures)
    with pytest.raises(TimeoutError, match="still queued"):
        client.wait(job.id, timeout_s=0)
    client.cancel(job.id)


def test_while_it_waits_it_asks_only_when_something_has_changed(client, pictures, sessions, objects, monkeypatch):
    monkeypatch.setattr("api.client.POLL_S", 3600.0)  # it would never come back from a look too many
    job = submit(client, pictures)
    asked, seen = [], []
    client._api.event_hooks["request"].append(lambda request: asked.append(request.headers))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.wait, job.id, on_progress=lambda now: seen.append(now.state), timeout_s=60)
        while len(asked) < 2:
            time.sleep(0.01)
        finish(sessions, objects, job, b"picture")
        assert waiting.result(60).state == "succeeded"
    assert seen[0] == "queued"
    assert seen[-1] == "succeeded"
    assert "if-none-match" not in asked[0]
    assert {headers["prefer"] for headers in asked[1:]} == {"wait=20"}
    assert all(headers["if-none-match"].startswith("W/") for headers in asked[1:])


def test_a_job_may_be_given_time_to_end(client, pictures):
    job = submit(client, pictures, wait_s=1)
    assert job.state == client.job(job.id, wait_s=1).state == "queued"
    client.cancel(job.id)
    assert client.job(job.id, wait_s=60).state == "canceled"


def test_an_ended_job_is_deleted_and_the_receipt_stays(client, pictures):
    job = submit(client, pictures, retention_days=3)
    with pytest.raises(ServiceRefused) as refusal:
        client.delete(job.id)
    assert refusal.value.problem["code"] == "job_not_ended"
    ended = client.cancel(job.id)
    assert (ended.expires_at - ended.finished_at).days == 3
    receipt = client.delete(job.id)
    assert (receipt.state, receipt.erased["inputs"].count) == ("deleted", 3)
    assert client.delete(job.id) == receipt
    with pytest.raises(ServiceRefused) as refusal:
        client.job(job.id)
    assert refusal.value.problem["code"] == "job_deleted"


def test_jobs_are_chosen_by_state_and_kind(client, pictures):
    canceled, waiting = submit(client, pictures), submit(client, pictures)
    client.cancel(canceled.id)
    assert [job.id for job in client.jobs(state=["canceled", "failed"])] == [canceled.id]
    assert [job.id for job in client.jobs(state=["canceled", "queued"], page_size=1)] == [waiting.id, canceled.id]
    assert [job.id for job in client.jobs(kind="personalize", state="queued")] == [waiting.id]
    client.cancel(waiting.id)


def test_all_jobs_come_newest_first_over_all_pages(client, pictures, monkeypatch):
    submitted = [submit(client, pictures).id for _ in range(3)]
    assert [job.id for job in client.jobs(page_size=2)] == submitted[::-1]
    for job_id in submitted:
        client.cancel(job_id)


def test_a_service_that_is_gone_is_waited_for_and_then_given_up(monkeypatch):
    monkeypatch.setattr("api.client.PATIENCE_S", 0.0)
    with Client(f"http://{LOOPBACK}:{free_port()}", "duo_x") as client, pytest.raises(httpx.TransportError):
        client.wait("job")


def answering(client, *statuses):
    """Let a client see these statuses, the last for ever; 200 is a job that has succeeded."""
    job = {"id": "x", "kind": "personalize", "state": "succeeded", "progress": {}, "created_at": "2026-01-01T00:00:00Z"}
    left = list(statuses)

    def answer(_):
        status = left.pop(0) if len(left) > 1 else left[0]
        return httpx.Response(status, json=job if status == 200 else {"title": "not now"})

    client._api._transport = httpx.MockTransport(answer)


def test_waiting_outlives_a_service_that_is_away_for_a_while(monkeypatch):
    monkeypatch.setattr("api.client.POLL_S", 0.0)
    with Client("http://service", "duo_x") as client:
        answering(client, 503, 502, 504, 200)
        assert client.wait("x").state == "succeeded"


def test_too_many_requests_are_waited_out_however_long_that_takes(monkeypatch):
    monkeypatch.setattr("api.client.POLL_S", 0.0)
    monkeypatch.setattr("api.client.PATIENCE_S", 0.0)
    with Client("http://service", "duo_x") as client:
        answering(client, 429, 429, 429, 429, 200)
        assert client.wait("x").state == "succeeded"


def test_a_refusal_says_when_to_come_again():
    late = httpx.Response(429, json={"title": "too many"}, headers={"Retry-After": "7"})
    with Client("http://service", "duo_x") as client:
        client._api._transport = httpx.MockTransport(lambda _: late)
        with pytest.raises(ServiceRefused) as refusal:
            client.job("x")
    assert refusal.value.retry_after_s == 7


@pytest.mark.parametrize(("status", "patience_s"), [(503, 0.0), (401, 30.0), (500, 30.0)])
def test_waiting_ends_when_patience_does_and_at_once_for_any_other_refusal(status, patience_s, monkeypatch):
    monkeypatch.setattr("api.client.POLL_S", 0.001)
    monkeypatch.setattr("api.client.PATIENCE_S", patience_s)
    with Client("http://service", "duo_x") as client:
        answering(client, status)
        with pytest.raises(ServiceRefused) as refusal:
            client.wait("x")
    assert refusal.value.status == status


def test_a_bounded_wait_for_a_service_that_never_answered_says_so():
    with Client("http://service", "duo_x") as client:
        answering(client, 503)
        with pytest.raises(TimeoutError, match="still unknown"):
            client.wait("x", timeout_s=0)


def test_an_answer_that_is_no_problem_document_still_becomes_one():
    page = httpx.Response(502, text="<html>Bad Gateway</html>")
    with Client("http://service", "duo_x") as client:
        client._api._transport = httpx.MockTransport(lambda _: page)
        with pytest.raises(ServiceRefused, match="HTTP status 502") as refusal:
            client.job("x")
    assert refusal.value.status == 502


def test_only_httpx_and_pydantic_are_needed():
    heavy = "{'fastapi', 'sqlalchemy', 'boto3', 'torch', 'celery', 'redis', 'psycopg'}"
    code = f"import sys, api.client; print(sorted({heavy} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert output.stdout.strip() == "[]"


def test_pictures_may_come_first(client, pictures):
    sent = [client.upload(path) for path in pictures[:2]]
    by_link = client.upload_by_link(pictures[2])
    assert {upload.state for upload in (*sent, by_link)} == {"ready"}
    assert client.read_upload(by_link.id) == by_link
    ids = {"content": [upload.id for upload in sent], "style": [by_link.id]}
    found = client.check(**ids, rank=3)
    assert (found.ok, found.config["content"]["rank"]) == (True, 3)
    job = client.submit(**ids, rank=3, idempotency_key="first")
    assert client.submit(**ids, rank=3, idempotency_key="first").id == job.id
    client.delete_upload(by_link.id)
    with pytest.raises(ServiceRefused, match="style_upload_ids/0"):
        client.submit(**ids)


def test_pictures_may_come_in_one_zip(client, pictures, tmp_path):
    path = tmp_path / "job.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for picture, name in zip(pictures, ("content/1.png", "content/2.png", "style/1.png"), strict=True):
            archive.write(picture, name)
    job = client.submit_archive(path, rank=3)
    assert client._call("GET", f"/jobs/{job.id}")["params"]["content"]["rank"] == 3
