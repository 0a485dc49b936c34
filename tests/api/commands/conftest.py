"""One embedded stack whose worker does mock jobs only, and the `duolora` command in front of it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from api.client import Client
from deploy.local.stack import Stack
from duolora.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    status: int
    out: str
    err: str

    def document(self) -> Any:
        return json.loads(self.out)

    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    environment = os.environ | {"WEBHOOK_ALLOW_CIDRS": "127.0.0.0/8", "WORKER_ENGINE": "mock"}
    with Stack(tmp_path_factory.mktemp("stack"), environment=environment, durable=False) as running:
        yield running
        running.check()


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    with Client(stack.api_url, stack.owner.api_key) as connection:
        yield connection


@pytest.fixture
def duolora(stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run `duolora WORDS` in this process, from its entry point on."""
    monkeypatch.setenv("DUOLORA_URL", stack.api_url)
    monkeypatch.setenv("DUOLORA_API_KEY", stack.owner.api_key)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: object) -> Ended:
        capsys.readouterr()
        try:
            status = main([str(word) for word in words])
        except SystemExit as ended:
            status = ended.code
        said = capsys.readouterr()
        return Ended(status, said.out, said.err)

    return run


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Path]:
    """A folder for each side, with a file in it that is no picture."""
    folders = {side: tmp_path / side for side in ("content", "style")}
    for shade, folder in enumerate(folders.values()):
        folder.mkdir()
        (folder / "notes.txt").write_text("no picture")
        for number in range(2):
            Image.new("RGB", (64, 64), (100 * shade, 80 * number, 9)).save(folder / f"{number}.png")
    return folders


@pytest.fixture
def submit(duolora, pictures):
    """Run `duolora jobs submit` for a mock job."""

    def run(*words: object) -> Ended:
        sides = ("--content", pictures["content"], "--style", pictures["style"])
        return duolora("jobs", "submit", *sides, "--class", "cat", "--engine", "mock", *words)

    return run
