"""A stack of the console's own, a headless Chromium, and pages that watch what the console does."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np
import pytest
from playwright.sync_api import expect, sync_playwright
from safetensors.numpy import load_file, save_file

from api.client import Client
from deploy.local.demo import shipped_samples
from deploy.local.stack import Stack
from duolora.tiny.base import base_path
from tests.console import browser

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page

    from api.client import Job
    from deploy.local.demo import Samples

PATIENCE_MS = 30_000
LOOPBACK_WEBHOOKS = {"WEBHOOK_ALLOW_CIDRS": "127.0.0.0/8"}
ARGUMENTS = (  # Chromium would ask its maker's servers for this and that
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def broken_base(folder: Path) -> Path:
    """Copy the tiny base, with NaN for every weight of its U-Net's first layer."""
    shutil.copytree(base_path(), folder)
    path = next((folder / "unet").glob("*.safetensors"))
    weights = load_file(path)
    weights["conv_in.weight"] = np.full_like(weights["conv_in.weight"], np.nan)
    save_file(weights, path, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """Without a browser everything is left out, or fails if one is required."""
    if os.environ.get(browser.WISH) == browser.NONE:
        pytest.skip(f"{browser.WISH}={browser.NONE}: the console is not tested")
    path = browser.find()
    if path is None and browser.is_required():
        pytest.fail(browser.MISSING, pytrace=False)
    if path is None:
        pytest.skip(browser.MISSING)
    return path


@pytest.fixture(scope="session")
def stack(chromium_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """With a base model whose losses are no numbers, for jobs that fail."""
    folder = tmp_path_factory.mktemp("console")
    bases = json.dumps({"tiny": "tiny", "broken": str(broken_base(folder / "broken"))})
    with Stack(
        folder / "stack", environment=os.environ | {"BASE_MODELS": bases} | LOOPBACK_WEBHOOKS, durable=False
    ) as running:
        yield running
        running.check()


@pytest.fixture(scope="session")
def client(stack: Stack) -> Iterator[Client]:
    with Client(stack.api_url, stack.owner.api_key) as connection:
        yield connection


@pytest.fixture(scope="session")
def ended(client: Client, samples: Samples) -> Job:
    """A job with everything there is to see: one that another test has left, or else a new one."""
    jobs = client.jobs(state="succeeded", kind="personalize")
    left = [job for job in jobs if job.engine == "duolora"]
    if left:
        return left[0]
    job = client.personalize(
        content=samples.content[:2],
        style=samples.style[:2],
        subject_class=samples.subject_class,
        steps={"content": 6, "style": 6, "merge": 0},
        rank=4,
        slider=5,
    )
    return client.wait(job.id, timeout_s=180)


@pytest.fixture(scope="session")
def samples() -> Samples:
    return shipped_samples()


@pytest.fixture(scope="module")  # for as long as it lives Playwright's event loop keeps the thread from any other
def chromium(chromium_path: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium_path, args=list(ARGUMENTS))
        yield running
        running.close()


@dataclass
class Watched:
    """A browser window that notes every complaint of the page and everything it asks for."""

    context: BrowserContext
    home: str
    key: str
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    expected: tuple[str, ...] = ()
    """Parts of complaints that the test provokes."""

    def open(self, path: str = "/", *, with_key: bool = False) -> Page:
        """A tab at a path; with the key as `duolora up` prints it, or without."""
        page = self.context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        if with_key:
            page.goto(f"{self.home}/#key={self.key}")
            expect(page.get_by_role("heading", name="Create a LoRA")).to_be_visible()
        if path != "/" or not with_key:
            page.goto(f"{self.home}{path}")
        return page

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(f"{message.text} {message.location.get('url', '')}")

    def unexpected(self) -> list[str]:
        return [text for text in self.complaints if not any(part in text for part in self.expected)]

    def strangers(self, known: set[str]) -> set[str]:
        """Origins that were asked for something, but for the known ones."""
        parts = [urlsplit(url) for url in self.asked]
        return {f"{part.scheme}://{part.netloc}" for part in parts if part.scheme in {"http", "https", "ws"}} - known


@pytest.fixture
def window(chromium: Browser, stack: Stack) -> Iterator[Watched]:
    """A window that must end without a complaint and without a word to any other server."""
    expect.set_options(timeout=PATIENCE_MS)
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    watched = Watched(context, stack.api_url, stack.owner.api_key)
    yield watched
    context.close()
    assert watched.unexpected() == []
    assert watched.strangers({stack.api_url, stack.env["S3_PUBLIC_ENDPOINT"]}) == set()
