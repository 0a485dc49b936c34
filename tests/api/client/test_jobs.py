"""The Python client against the real API process; a worker is played through the repository."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import httpx
import pytest

from api.accounts.service import authenticate
from api.client import (
    Client,
    DamagedDownload,
    GenerateWishes,
    JobNotSucceeded,
    MergeWishes,
    ServiceRefused,
    TrainWishes,
    Wishes,
)
from api.db import transaction
from api.jobs.models import LogLine
from api.jobs.schemas import JobParams
from deploy.local.processes import LOOPBACK, free_port
from duolora.recipes import MERGE_RECIPES
from tests.api.client.play import finish, submit
from tests.api.factories import make_lora

pytestmark = pytest.mark.xdist_group("client")


def test_everything_a_job_takes_can_be_wished_for(client, pictures):
    """Beside what `personalize` itself names."""
    own = {"kind", "content_lora_id", "style_lora_id", "loras", "prompts"}
    of_kinds = (Wishes, TrainWishes, MergeWishes, GenerateWishes)
    assert {name for wishes in of_kinds for name in wishes.__annotations__} == JobParams.model_fields.keys() - own
    captions = ["a sbu teapot at sea", ""]
    job = submit(client, pictures, merge_recipe="paper", content_captions=captions)
    params = client.wire.api.get(f"/jobs/{job.id}").json()["params"]
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


def test_nothing_is_left_of_a_download_that_is_broken_off(client, pictures, sessions, objects, tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    job = submit(client, pictures)
    finish(sessions, objects, job, b"picture")
    with pytest.raises(KeyboardInterrupt):
        client.download(job, tmp_path / "out", on_download=interrupt)
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

    client.wire.api._transport = httpx.MockTransport(answer)
    return asked


def told(number, kind):
    document = {"id": number, "type": kind, "at": "2026-01-01T00:00:00Z", "data": {}}
    return f"id: {number}\nevent: {kind}\ndata: {json.dumps(document)}\n\n"


def test_a_stream_that_breaks_off_is_taken_up_where_it_was(monkeypatch):
    monkeypatch.setattr("api.client.jobs.POLL_S", 0.0)
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
    monkeypatch.setattr("api.client.jobs.POLL_S", 0.001)
    monkeypatch.setattr("api.client.jobs.PATIENCE_S", patience_s)
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
    monkeypatch.setattr("api.client.jobs.POLL_S", 3600.0)  # it would never come back from a look too many
    job = submit(client, pictures)
    asked, seen = [], []
    client.wire.api.event_hooks["request"].append(lambda request: asked.append(request.headers))
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
    monkeypatch.setattr("api.client.jobs.PATIENCE_S", 0.0)
    with Client(f"http://{LOOPBACK}:{free_port()}", "duo_x") as client, pytest.raises(httpx.TransportError):
        client.wait("job")


def answering(client, *statuses):
    """Let a client see these statuses, the last for ever; 200 is a job that has succeeded."""
    job = {"id": "x", "kind": "personalize", "state": "succeeded", "progress": {}, "created_at": "2026-01-01T00:00:00Z"}
    left = list(statuses)

    def answer(_):
        status = left.pop(0) if len(left) > 1 else left[0]
        return httpx.Response(status, json=job if status == 200 else {"title": "not now"})

    client.wire.api._transport = httpx.MockTransport(answer)


def test_waiting_outlives_a_service_that_is_away_for_a_while(monkeypatch):
    monkeypatch.setattr("api.client.jobs.POLL_S", 0.0)
    with Client("http://service", "duo_x") as client:
        answering(client, 503, 502, 504, 200)
        assert client.wait("x").state == "succeeded"


def test_too_many_requests_are_waited_out_however_long_that_takes(monkeypatch):
    monkeypatch.setattr("api.client.jobs.POLL_S", 0.0)
    monkeypatch.setattr("api.client.jobs.PATIENCE_S", 0.0)
    with Client("http://service", "duo_x") as client:
        answering(client, 429, 429, 429, 429, 200)
        assert client.wait("x").state == "succeeded"


def test_a_refusal_says_when_to_come_again():
    late = httpx.Response(429, json={"title": "too many"}, headers={"Retry-After": "7"})
    with Client("http://service", "duo_x", retries=0) as client:
        client.wire.api._transport = httpx.MockTransport(lambda _: late)
        with pytest.raises(ServiceRefused) as refusal:
            client.job("x")
    assert refusal.value.retry_after_s == 7


@pytest.mark.parametrize(("status", "patience_s"), [(503, 0.0), (401, 30.0), (500, 30.0)])
def test_waiting_ends_when_patience_does_and_at_once_for_any_other_refusal(status, patience_s, monkeypatch):
    monkeypatch.setattr("api.client.jobs.POLL_S", 0.001)
    monkeypatch.setattr("api.client.jobs.PATIENCE_S", patience_s)
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
    with Client("http://service", "duo_x", retries=0) as client:
        client.wire.api._transport = httpx.MockTransport(lambda _: page)
        with pytest.raises(ServiceRefused, match="HTTP status 502") as refusal:
            client.job("x")
    assert refusal.value.status == 502


def test_only_httpx_and_pydantic_are_needed():
    heavy = "{'fastapi', 'sqlalchemy', 'boto3', 'torch', 'celery', 'redis', 'psycopg'}"
    code = f"import sys, api.client; print(sorted({heavy} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert output.stdout.strip() == "[]"


def test_jobs_of_every_kind_are_submitted(client, api_key, sessions, pictures):
    trained = client.train(style=pictures, style_trigger="inky", name="ink", steps={"style": 3})
    assert (trained.kind, trained.name, trained.state) == ("train", "ink", "queued")
    account_id = authenticate(sessions, api_key).account_id
    missing = str(make_lora(sessions, account_id))
    for submit_it, pointers in (
        (lambda: client.merge(content_lora_id=missing, style_lora_id=missing, slider=3), ["/params/content_lora_id"]),
        (lambda: client.generate(prompts=["a"], loras={missing: 0.5}), ["/params/loras/0/lora_id"]),
    ):
        with pytest.raises(ServiceRefused) as refused:  # the row is there, its file is not
            submit_it()
        assert [error["pointer"] for error in refused.value.problem["errors"]] == pointers
    drawing = client.generate(prompts=["a dog", "a cat"], images_per_prompt=1, steps={"sampling": 2})
    assert drawing.kind == "generate"
    assert {job.kind for job in client.jobs(kind=["train", "generate"])} == {"train", "generate"}
