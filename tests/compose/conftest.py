"""One engine and one project of Compose for all tests of this folder. `make compose-e2e` asks for them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.compose.composed import Composed
from tests.compose.docker import Docker, NoEngine, docker_engine
from tests.compose.stand_ins import BASE, provide_images

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.installation import Installation

ASKED = "DUOLORA_COMPOSE"
collect_ignore = [] if os.environ.get(ASKED) else ["test_compose.py"]
"""`make test` leaves out what builds gigabytes of images; `make compose-e2e` asks for it."""


@pytest.fixture(scope="session")
def docker() -> Iterator[Docker]:
    folder = Path(tempfile.mkdtemp(prefix="duolora-compose-"))
    engine = docker_engine(folder)
    try:
        docker = engine.__enter__()
    except NoEngine as reason:
        shutil.rmtree(folder)
        pytest.skip(str(reason))
    try:
        yield docker
    finally:
        engine.__exit__(None, None, None)
        subprocess.run(["rm", "-rf", str(folder)], check=True)  # some hundred thousand files


@pytest.fixture(scope="session")
def stand_ins(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Tags of the images that could not be had."""
    tags = provide_images(docker, tmp_path_factory.mktemp("stand-ins"))
    yield tags
    if tags:
        docker.run("image", "rm", *tags, BASE)


@pytest.fixture(scope="session")
def composed(docker: Docker, stand_ins: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    """Built and running."""
    project = Composed(docker, tmp_path_factory.mktemp("composed"))
    try:
        project.build()
        project.up()
        yield project
    finally:
        project.remove()


@pytest.fixture(scope="session")
def installation(composed: Composed) -> Installation:
    return composed.installation()
