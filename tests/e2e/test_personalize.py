"""A personalize job through the whole service: HTTP in, files out, with the real engine and very few steps."""

import hashlib
import json
import re
import time
from io import BytesIO
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from PIL import Image
from standardwebhooks.webhooks import Webhook

from api.client import Client, JobNotSucceeded, ServiceRefused

pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.timeout(480)]

ARTIFACTS = {
    "content_lora": "content_lora.safetensors",
    "content_lora_kohya": "content_lora.kohya.safetensors",
    "style_lora": "style_lora.safetensors",
    "style_lora_kohya": "style_lora.kohya.safetensors",
    "merge_report": "merge_report.json",
    "merge_plot": "merge_plot.png",
    "merged_diffusers": "merged.diffusers.safetensors",
    "merged_kohya": "merged.kohya.safetensors",
    "preview": "preview.png",
    "report": "report.json",
}
FEW_STEPS = {"content": 4, "style": 4, "merge": 2}


def submit(client, samples, **wishes):
    return client.personalize(
        content=samples.content[:2],
        style=samples.style[:2],
        subject_class=samples.subject_class,
        style_captions=samples.style_captions[:2],
        **wishes,
    )


@pytest.fixture(scope="module")
def seen():
    """Every state of the finished job that was read while waiting for it."""
    return []


@pytest.fixture(scope="module")
def finished(client, samples, receiver, seen):
    called = {} if receiver is None else {"webhook_url": receiver.url}
    job = submit(client, samples, steps=FEW_STEPS, rank=4, seed=3, **called)
    assert job.state == "queued"
    return client.wait(job.id, on_progress=seen.append, timeout_s=400)


def test_the_files_are_the_ones_announced(client, finished, tmp_path):
    files = client.download(finished, tmp_path)
    assert {name: path.name for name, path in files.items()} == ARTIFACTS
    for artifact in finished.result.artifacts:
        content = files[artifact.name].read_bytes()
        assert len(content) == artifact.bytes
        assert hashlib.sha256(content).hexdigest() == artifact.sha256
    assert Image.open(BytesIO(files["preview"].read_bytes())).width > 200
    likeness = json.loads(files["report"].read_text())["likeness"]
    assert set(likeness["loras"]) == {"content", "style", "merged"}


def test_progress_only_ever_grows_and_ends_at_one(finished, seen):
    fractions = [job.progress.fraction for job in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert finished.finished_at > finished.started_at >= finished.created_at


def test_links_work_without_a_key_and_break_when_changed(finished):
    artifact = next(one for one in finished.result.artifacts if one.name == "report")
    answer = httpx.get(artifact.url)
    assert answer.status_code == 200
    assert hashlib.sha256(answer.content).hexdigest() == artifact.sha256
    assert "report.json" in answer.headers["content-disposition"]
    signature = parse_qs(urlsplit(artifact.url).query)["X-Amz-Signature"][0]
    forged = artifact.url.replace(signature, signature[::-1])
    longer = re.sub(r"X-Amz-Expires=\d+", "X-Amz-Expires=604800", artifact.url)
    other = artifact.url.replace("report.json", "preview.png")
    assert [httpx.get(url).status_code for url in (forged, longer, other)] == [403, 403, 403]
    assert httpx.get(artifact.url.split("?")[0]).status_code in {400, 401, 403}


def test_the_webhook_came_signed(finished, receiver, installation):
    if receiver is None or installation.webhook_secret is None:
        pytest.skip("not told WEBHOOK_HOST and WEBHOOK_SECRET of the installation")
    delivery = receiver.deliveries.get(timeout=60)
    event = Webhook(installation.webhook_secret).verify(delivery.body, delivery.headers)
    assert event["type"] == "job.succeeded"
    assert event["data"]["job_id"] == finished.id


def test_another_account_does_not_see_the_job(installation, finished):
    if installation.other_api_key is None:
        pytest.skip("not told OTHER_API_KEY, of an account without jobs")
    with Client(installation.url, installation.other_api_key) as stranger:
        with pytest.raises(ServiceRefused) as refusal:
            stranger.job(finished.id)
        assert refusal.value.status == 404
        assert list(stranger.jobs()) == []


def test_a_running_job_stops_when_canceled_and_the_next_one_runs(client, samples):
    job = submit(client, samples, steps={"content": 20_000, "style": 20_000}, rank=4)
    wait_for_a_step(client, job)
    client.cancel(job.id)
    with pytest.raises(JobNotSucceeded, match="canceled"):
        client.wait(job.id, timeout_s=90)
    after = submit(client, samples, steps={"content": 20_000, "style": 20_000}, rank=4)
    wait_for_a_step(client, after)
    assert [one.id for one in client.jobs()][:2] == [after.id, job.id]
    client.cancel(after.id)
    with pytest.raises(JobNotSucceeded, match="canceled"):
        client.wait(after.id, timeout_s=90)


def wait_for_a_step(client, job):
    deadline = time.monotonic() + 120
    while not (now := client.job(job.id)).progress.step:
        assert time.monotonic() < deadline, f"no step after 120 s: {now}"
        time.sleep(0.2)
