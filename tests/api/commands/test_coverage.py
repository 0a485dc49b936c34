"""The command line does everything that the document of the service describes: seen by what commands ask it for."""

import re

import httpx
import pytest

from api import openapi
from tests.support.webhook_receiver import webhook_receiver

pytestmark = [pytest.mark.xdist_group("commands"), pytest.mark.timeout(120)]

WITHOUT_COMMAND = {
    "livez": "for whatever keeps the service running",
    "readyz": "likewise",
    "download_lora": "a link for browsers; `loras download` reads the LoRA, whose links come with sums to check",
}
"""Operations that no command asks for, and why."""


@pytest.fixture
def asked(monkeypatch):
    """Method and path of every request that a client makes from now on."""
    made = set()
    send = httpx.Client.send

    def note(client, request, **options):
        made.add((request.method, request.url.path))
        return send(client, request, **options)

    monkeypatch.setattr(httpx.Client, "send", note)
    return made


def jobs_are_made_followed_and_deleted(do, pictures, tmp_path):
    sides = ("--content", pictures["content"], "--style", pictures["style"], "--class", "cat", "--engine", "mock")
    do("jobs", "submit", *sides, "--check")
    job = do("jobs", "submit", *sides, "--mock-outcome", "slow", "--json")["id"]
    do("jobs", "stop", job, status={0, 5})  # 5: it has not begun
    do("jobs", "cancel", job)
    do("jobs", "watch", job, status={6})
    again = do("jobs", "retry", job, "--json")["id"]
    do("jobs", "cancel", again)
    for verb in ("show", "logs", "attempts", "events"):
        do("jobs", verb, job)
    do("jobs", "list")
    do("jobs", "recipes")
    do("jobs", "submit", *sides, "--out", tmp_path / "out")
    do("jobs", "delete", job)


def loras_are_brought_changed_and_deleted(do, tmp_path):
    file = next((tmp_path / "out").glob("style_lora.safetensors"))
    lora = do("loras", "upload", file, "--json")["id"]
    do("loras", "list")
    do("loras", "rename", lora, "Ink")
    do("loras", "show", lora)
    do("loras", "delete", lora)


def pictures_are_brought_before_a_job(do, pictures):
    do("uploads", "create", pictures["content"] / "0.png")
    upload = do("uploads", "create", pictures["content"] / "1.png", "--by-link", "--json")["id"]
    do("uploads", "show", upload)
    do("uploads", "delete", upload)


def a_server_is_told(do):
    with webhook_receiver() as receiver:
        hook = do("webhooks", "create", receiver.url, "--json")["id"]
        delivery = do("webhooks", "ping", hook, "--json")["id"]
        for verb in ("show", "deliveries", "rotate", "enable"):
            do("webhooks", verb, hook)
        do("webhooks", "change", hook, "--description", "gallery")
        do("webhooks", "list")
        do("webhooks", "delivery", delivery)
        do("webhooks", "replay", delivery)
        do("webhooks", "delete", hook)


def keys_are_made_and_revoked(do):
    key = do("keys", "create", "--label", "spare", "--json")["id"]
    do("keys", "show", key)
    do("keys", "list")
    do("keys", "rotate", key)
    do("keys", "revoke", key)


def test_every_operation_of_the_service_has_a_command(duolora, asked, pictures, tmp_path):
    def do(*words, status=frozenset({0})):
        ended = duolora(*words)
        assert ended.status in status, f"{words}: {ended.err}"
        return ended.document() if "--json" in words else None

    jobs_are_made_followed_and_deleted(do, pictures, tmp_path)
    loras_are_brought_changed_and_deleted(do, tmp_path)
    pictures_are_brought_before_a_job(do, pictures)
    a_server_is_told(do)
    keys_are_made_and_revoked(do)
    paths = openapi.document()["paths"]
    missing = {
        operation["operationId"]
        for path, entry in paths.items()
        for method, operation in entry.items()
        if not any(verb == method.upper() and _is_of(path, asked_for, paths) for verb, asked_for in asked)
    }
    assert missing == set(WITHOUT_COMMAND), "give each operation a command, or say in WITHOUT_COMMAND why it has none"


def _is_of(path, asked_for, paths):
    """Whether a request's path is of this template; one without ids goes before one with (`/webhooks/deliveries`)."""
    if "{" in path and asked_for in paths:
        return False
    return re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), asked_for) is not None
