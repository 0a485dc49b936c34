"""The longer snippets of `api/snippets` do what they say, each in a process of its own, as their readers run them."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from base64 import b64encode
from pathlib import Path

import httpx
import pytest
from safetensors import safe_open

import api
from deploy.local.processes import LOOPBACK, free_port, spawn

pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.timeout(240)]

SNIPPETS = Path(api.__file__).parent / "snippets"
ROOT = SNIPPETS.parents[1]
THEIR_PARAMS = '{ subject_class: "cat" }'
OLDEST_NODE = 20
PATIENCE_S = 60


def node():
    """Node.js that has `fetch` and files as blobs; None where there is none."""
    path = shutil.which("node")
    if path is None:
        return None
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    return path if int(version.lstrip("v").split(".")[0]) >= OLDEST_NODE else None


@pytest.fixture
def service(installation):
    """What the snippets read from the environment."""
    return {"DUOLORA_URL": installation.url, "DUOLORA_API_KEY": installation.api_key}


@pytest.fixture
def new_secret():
    return "whsec_" + b64encode(secrets.token_bytes(24)).decode()


@pytest.fixture
def javascript(service, samples, tmp_path):
    """Runs the snippet in the test's folder, on the sample pictures, with the reader's own `params`."""
    found = node()
    if found is None:
        pytest.skip(f"needs Node.js {OLDEST_NODE} or newer in PATH")
    text = (SNIPPETS / "personalize.mjs").read_text()
    assert THEIR_PARAMS in text
    folders = [str(pictures[0].parent) for pictures in (samples.content, samples.style)]

    def ended(params, **environment):
        (tmp_path / "mine.mjs").write_text(text.replace(THEIR_PARAMS, json.dumps(params)))
        return subprocess.run(
            [found, "mine.mjs", *folders],
            cwd=tmp_path,
            env=os.environ | service | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )

    return ended


def test_the_javascript_snippet_leads_from_pictures_to_the_merged_lora(javascript, tmp_path):
    ended = javascript({"subject_class": "cat", "engine": "mock"})
    assert ended.returncode == 0, ended.stderr
    with safe_open(tmp_path / "merged.diffusers.safetensors", "numpy") as file:
        assert file.metadata()["duolora.engine"] == "mock"


def test_the_javascript_snippet_says_why_a_job_failed(javascript):
    ended = javascript({"subject_class": "cat", "engine": "mock", "mock_outcome": "fail"})
    assert ended.returncode == 1
    assert "failed: " in ended.stderr


def test_the_javascript_snippet_says_what_is_refused(javascript):
    ended = javascript({"subject_class": "cat", "rank": 0})
    assert ended.returncode == 1
    assert "/params/rank" in ended.stderr
    stranger = javascript({"subject_class": "cat"}, DUOLORA_API_KEY="duo_nobody")
    assert stranger.returncode == 1
    assert "invalid_api_key" in stranger.stderr


@pytest.fixture
def hook(installation, service, new_secret, tmp_path):
    """The receiver under uvicorn: where the service finds it."""
    if installation.webhook_host is None:
        pytest.skip("not told WEBHOOK_HOST of the installation")
    port = free_port()
    host = LOOPBACK if installation.webhook_host == LOOPBACK else "0.0.0.0"  # noqa: S104 - called from other hosts
    where = ["--app-dir", str(SNIPPETS), "--host", host, "--port", str(port)]
    child = spawn(
        "receiver",
        [sys.executable, "-m", "uvicorn", "webhook_receiver:app", *where],
        log=tmp_path / "receiver.log",
        cwd=tmp_path,
        env=os.environ | service | {"WEBHOOK_SECRET": new_secret, "PYTHONPATH": str(ROOT)},
    )

    def ready():
        try:
            return httpx.get(f"http://{LOOPBACK}:{port}/openapi.json").is_success
        except httpx.TransportError:
            return False

    child.wait_ready(ready, timeout_s=30)
    yield f"http://{installation.webhook_host}:{port}/hook"
    child.stop()


def test_the_receiver_fetches_what_a_delivered_job_has_made(client, samples, hook, new_secret, tmp_path):
    job = client.personalize(
        content=samples.content[:1],
        style=samples.style[:1],
        subject_class="cat",
        engine="mock",
        webhook_url=hook,
        webhook_secret=new_secret,
    )
    job = client.wait(job.id, timeout_s=PATIENCE_S)
    names = {artifact.filename for artifact in job.result.artifacts}
    deadline = time.monotonic() + PATIENCE_S
    while not names <= {path.name for path in (tmp_path / job.id).glob("*")}:
        assert time.monotonic() < deadline, (tmp_path / "receiver.log").read_text()
        time.sleep(0.1)
    assert json.loads((tmp_path / job.id / "report.json").read_text())["engine"] == "mock"


def test_the_receiver_believes_no_stranger(hook, tmp_path):
    event = {"type": "job.succeeded", "data": {"job_id": "019ab2f0-7c31-7d2e-9b11-2f64c8d0a1e5"}}
    signed = {"webhook-id": "msg_1", "webhook-timestamp": str(int(time.time())), "webhook-signature": "v1,AAAA"}
    url = hook.replace(httpx.URL(hook).host, LOOPBACK)
    assert [httpx.post(url, json=event, headers=headers).status_code for headers in (signed, {})] == [400, 400]
    assert not (tmp_path / event["data"]["job_id"]).exists()
