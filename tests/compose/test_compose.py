"""`docker compose up` with the project's own file and images: a service that works, heals and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time

import httpx
import pytest

from api.client import Client
from deploy.local.demo import shipped_samples
from tests.compose.composed import ROOT
from tests.compose.stand_ins import python_image
from tests.support.installation import telling

pytestmark = [pytest.mark.xdist_group("compose"), pytest.mark.timeout(2400)]

MB = 1_000_000
OFFICIAL_BASE_BYTES = 135 * MB
"""About what Python's slim image takes; a stand-in for it is smaller."""


def test_without_secrets_nothing_starts(composed, tmp_path):
    (tmp_path / ".env").write_text("COMPOSE_PROFILES=cpu\n")
    done = composed.docker.attempt(
        "compose", "--file", f"{ROOT}/docker-compose.yml", "--env-file", f"{tmp_path}/.env", "config", "--quiet"
    )
    assert done.returncode != 0
    assert "make env" in done.stderr


def test_the_image_of_the_api_is_small_and_has_no_torch(composed):
    image = composed.containers()["api"]["Config"]["Image"]
    size = {
        tag: int(composed.docker.run("image", "inspect", "--format", "{{.Size}}", tag))
        for tag in (image, python_image())
    }
    base = size[python_image()]
    assert size[image] - base + max(base, OFFICIAL_BASE_BYTES) < 300 * MB
    code = "import importlib.util as u; print([n for n in ('torch', 'diffusers', 'numpy', 'pip') if u.find_spec(n)])"
    assert composed.compose("exec", "-T", "api", "python", "-c", code).strip() == "[]"


def test_every_process_is_confined(composed):
    containers = composed.containers()
    assert set(containers) == {"postgres", "redis", "object-store", "migrate", "api", "dispatcher", "worker"}
    for name, each in containers.items():
        host = each["HostConfig"]
        assert (host["ReadonlyRootfs"], host["CapDrop"]) == (True, ["ALL"]), name
        assert "no-new-privileges:true" in host["SecurityOpt"], name
        user = each["Config"]["User"]
        assert user not in {"", "root", "0"} or name == "object-store"
    published = {name for name, each in containers.items() if each["HostConfig"]["PortBindings"]}
    assert published == {"api", "object-store"}
    for name in ("postgres", "redis"):
        assert len(containers[name]["NetworkSettings"]["Networks"]) == 1


def test_the_end_to_end_suite_passes_through_the_published_ports(composed, installation):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", "--durations=5", "tests/e2e"],
        cwd=ROOT,
        env=os.environ | telling(installation),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert "skipped" not in done.stdout


def test_a_killed_workers_job_goes_on_from_its_checkpoint(composed, installation):
    samples = shipped_samples()
    with Client(installation.url, installation.api_key) as client:
        job = client.personalize(
            content=samples.content[:2],
            style=samples.style[:2],
            subject_class=samples.subject_class,
            style_captions=samples.style_captions[:2],
            steps={"content": 40, "style": 40, "merge": 2},
            rank=4,
        )
        wait_for_step(client, job, 20)
        worker = composed.containers()["worker"]["Id"]
        composed.docker.run("kill", worker)
        assert composed.containers()["worker"]["State"]["Status"] == "exited"
        composed.up("worker")
        job = client.wait(job.id, timeout_s=600)
    answer = httpx.get(
        f"{installation.url}/jobs/{job.id}/attempts", headers={"Authorization": f"Bearer {installation.api_key}"}
    )
    attempts = answer.json()["items"]
    died = [each for each in attempts if each["outcome"] == "lease_expired"]
    assert died
    for each in died:
        later = [one for one in attempts if one["stage"] == each["stage"] and one["attempt"] > each["attempt"]]
        assert max(one["resumed_step"] or 0 for one in later) > 0


def test_rows_and_files_survive_down_and_up(composed, installation, tmp_path):
    with Client(installation.url, installation.api_key) as client:
        before = [job.id for job in client.jobs()]
        composed.compose("down")
        assert composed.left()["containers"] == ""
        composed.up()
        assert [job.id for job in client.jobs()] == before
        job = next(iter(client.jobs(state="succeeded")))
        assert client.download(client.job(job.id), tmp_path)


def test_the_bill_of_materials_names_what_is_in_an_image(composed):
    composed.build("sbom")
    for image, has_torch in (("api", False), ("worker", True)):
        listed = json.loads(composed.compose("run", "--rm", "-T", "sbom", f"{image}/bin/python"))
        assert listed["bomFormat"] == "CycloneDX"
        packages = {each["name"].lower(): each["version"] for each in listed["components"]}
        assert packages["boto3"] == pinned("boto3")
        assert ("torch" in packages) == has_torch


def test_down_with_its_volumes_leaves_nothing(composed):
    composed.compose("down", "--volumes")
    assert composed.left() == {"containers": "", "volumes": "", "networks": ""}


def pinned(package):
    [version] = re.findall(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return version


def wait_for_step(client, job, step):
    deadline = time.monotonic() + 300
    while ((now := client.job(job.id)).progress.step or 0) < step:
        assert time.monotonic() < deadline, f"not at step {step} after 300 s: {now}"
        time.sleep(0.2)
