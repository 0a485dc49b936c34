"""The code of the version before, from the repository's history."""

from __future__ import annotations

import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

from tests.migrations.revisions import in_order
from tests.support.services import REPOSITORY

PARTS = ("api", "worker", "duolora", "migrations", "pyproject.toml")


class NoHistory(Exception):
    """This copy of the repository does not have the version before."""


def version_before(folder: Path) -> Path:
    """Put the code of the newest release into a folder; without one, that of just before the newest revision.

    Raises:
        NoHistory: this is no clone, or a shallow one.
    """
    commit = _git("describe", "--tags", "--abbrev=0").decode().strip() or _before_the_newest_revision()
    packed = _git("archive", commit, *PARTS)
    if not packed:
        raise NoHistory("the version before is not in this copy of the repository")
    with tarfile.open(fileobj=BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def _before_the_newest_revision() -> str:
    newest = Path(in_order()[-1].path).relative_to(REPOSITORY)
    added = _git("log", "--diff-filter=A", "--format=%H", "-1", "--", str(newest)).decode().strip()
    return f"{added}^" if added else ""


def _git(*arguments: str) -> bytes:
    """Its output, nothing if it fails."""
    try:
        return subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, check=False).stdout  # noqa: S607
    except FileNotFoundError:
        return b""
