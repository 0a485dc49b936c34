"""Stand-ins for images that cannot be pulled, under the tags that the compose file names.

They are made of this machine (`machine_image`) and of the servers in this environment's wheels. They prove our wiring
and nothing of the official images' entry points.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from deploy.local.object_store import rclone_program
from deploy.local.postgres import installed_postgres
from deploy.local.valkey import server_program
from tests.compose import machine_image

if TYPE_CHECKING:
    from tests.compose.docker import Docker

ROOT = Path(__file__).parents[2]
RECIPES = Path(__file__).parent / "stand_ins"
PULL_TIMEOUT_S = 600
BASE = "duolora-e2e-machine"
"""Tag of the stand-in for Python's image, of which those of the servers are made."""


def provide_images(docker: Docker, folder: Path) -> list[str]:
    """See to every image that the project's own are made of or stand beside; return the tags that got a stand-in."""
    python, servers = python_image(), server_images()
    missing = [tag for tag in (python, *servers.values()) if not _is_there(docker, tag)]
    if missing:
        _import_machine(docker, folder / "machine")
    for tag in missing:
        if tag == python:
            docker.run("tag", BASE, tag)
        else:
            _build(docker, tag, folder / re.sub(r"\W", "-", tag))
    return missing


def python_image() -> str:
    """The tag that the Dockerfile begins with."""
    found = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def server_images() -> dict[str, str]:
    """The tags of the servers by service."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return {name: services[name]["image"] for name in ("postgres", "redis", "object-store")}


def _is_there(docker: Docker, tag: str) -> bool:
    """Whether the engine has an image, or can pull it."""
    if docker.attempt("image", "inspect", tag).returncode == 0:
        return True
    return docker.attempt("pull", "--quiet", tag, timeout_s=PULL_TIMEOUT_S).returncode == 0


def _import_machine(docker: Docker, tree: Path) -> None:
    machine_image.write_tree(tree)
    changes = [part for change in machine_image.changes() for part in ("--change", change)]
    with subprocess.Popen(["tar", "-C", str(tree), "-c", "."], stdout=subprocess.PIPE) as tar:
        docker.run("import", *changes, "-", BASE, stdin=tar.stdout)
    shutil.rmtree(tree)


def _build(docker: Docker, tag: str, context: Path) -> None:
    """Build the stand-in for a server: its recipe, and the files of the program that it runs."""
    recipe = re.sub(r".*/|:.*", "", tag)
    shutil.copytree(RECIPES / recipe, context)
    for path, source in _program(recipe).items():
        target = context / "program" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    docker.run("build", "--quiet", "--build-arg", f"BASE={BASE}", "--tag", tag, str(context), timeout_s=300)
    shutil.rmtree(context)


def _program(recipe: str) -> dict[str, Path]:
    """Files and folders of a server by the place where its recipe wants them."""
    if recipe == "redis":
        return {"redis-server": server_program()}
    if recipe == "seaweedfs":
        return {"rclone": rclone_program()}
    postgres = installed_postgres()
    libraries = f"{postgres.parent.name}.libs"  # found from the programs by this way and name
    return {
        f"{postgres.parent.name}/postgres": postgres,
        libraries: postgres.parent.with_name(libraries),
    }
