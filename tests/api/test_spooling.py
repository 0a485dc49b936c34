"""What is answered where files are received and there is no room for them."""

import io
import os
import random
import resource
import subprocess
import tempfile
import zipfile

import pytest
from PIL import Image
from sqlalchemy import func, select

from api.accounts.models import IdempotencyKey
from api.db import transaction
from api.jobs.models import Job
from tests.api.factories import encode, png
from tests.api.jobs.test_routes import problem
from tests.api.loras.conftest import lora_file

MIB = 1024 * 1024
LARGE = encode(Image.frombytes("RGB", (1024, 1024), random.Random(1).randbytes(3 * MIB)), "PNG")
"""Of more bytes than are received into memory."""
FLAT = png((2000, 2000))
"""Of few bytes and many pixels."""
LORA = lora_file(note="x" * 1_200_000)


@pytest.fixture
def full(caller, tmp_path, monkeypatch):
    """Temporary files go where 1 MiB is free; no root, so no such place: then no file may be larger."""
    caller.submit()  # what is loaded late has been loaded
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["/bin/mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True, check=False
        ).returncode
    )
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if not mounted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, before[1]))
    yield tmp_path
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    if mounted:
        subprocess.run(["/bin/umount", "--lazy", tmp_path], check=True)


def zipped(*pictures):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, data in enumerate(pictures):
            archive.writestr(f"{'style' if number else 'content'}/{number}.png", data)
    return buffer.getvalue()


ASKED = {
    "jobs": lambda caller, **more: caller.submit([LARGE], **more),
    "jobs, decoded": lambda caller, **more: caller.submit([FLAT], **more),
    "jobs, as a zip": lambda caller, **more: caller.post("/jobs", files={"archive": zipped(LARGE, png())}, **more),
    "uploads": lambda caller, **more: caller.post("/uploads", files={"file": ("a.png", LARGE)}, **more),
    "uploads, decoded": lambda caller, **more: caller.post("/uploads", files={"file": ("a.png", FLAT)}, **more),
    "loras": lambda caller, **more: caller.post("/loras", files={"file": ("a.safetensors", LORA)}, **more),
}


@pytest.mark.parametrize("asked", ASKED)
def test_without_room_the_caller_is_asked_to_come_again(caller, full, asked):
    if "decoded" in asked and not os.path.ismount(full):
        pytest.skip("only a full folder stops the decoder, which has a limit of its own")
    answer = ASKED[asked](caller)
    assert problem(answer, 503, "temporary_storage_full")["retryable"]
    assert int(answer.headers["retry-after"]) > 0
    assert list(full.iterdir()) == []


def test_a_zip_that_grows_too_large_for_the_room_is_not_called_damaged(caller, full):
    noise = bytes(byte & 1 for byte in random.Random(2).randbytes(3 * 800 * 800))
    picture = encode(Image.frombytes("RGB", (800, 800), noise), "PNG", compress_level=0)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for side in ("content", "style"):
            archive.writestr(f"{side}/a.png", picture)
    assert buffer.tell() < MIB < len(picture)
    problem(caller.post("/jobs", files={"archive": buffer.getvalue()}), 503, "temporary_storage_full")


def test_nothing_is_left_and_the_key_is_free_again(caller, sessions, full):
    with transaction(sessions) as session:
        before = session.scalar(select(func.count()).select_from(Job))
    problem(ASKED["loras"](caller, headers={"Idempotency-Key": "k"}), 503)
    problem(ASKED["jobs"](caller, headers={"Idempotency-Key": "k"}), 503)
    with transaction(sessions) as session:
        assert session.scalar(select(func.count()).select_from(Job)) == before
        assert session.scalars(select(IdempotencyKey)).all() == []
