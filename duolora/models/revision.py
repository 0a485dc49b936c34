"""Which files a base model is: a name that changes whenever they do. Torch-free; of large files, samples are read."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from duolora.recipes import EMBEDDED
from duolora.tiny.base import base_path

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_HEADER_BYTES = 100 * 2**20
"""The safetensors library itself reads no longer headers."""

_WHOLE_FILE_BYTES = 16 * 2**20
"""Files up to this size, configurations and small weights, are read as they are."""

_SAMPLES, _SAMPLE_BYTES = 64, 64 * 2**10
"""Larger files are read in this many places. Many small ones: a fine-tune that spares most tensors is met sooner."""


def base_revision(location: str) -> str | None:
    """Return the revision of a base: the commit of a hub's snapshot, else a digest of its files.

    The digest is over names and sizes, whole small files, and of large ones samples spread evenly from the first byte
    to the last, besides the headers of safetensors files, which name every tensor and its place. So a fine-tune written
    over its origin is told apart although all shapes stay. A change that lies wholly between the samples of a large
    file looks the same: such bases deserve another name.

    Returns:
        "commit:..." or "files:...", None for a location where nothing is known or readable.
    """
    try:
        return _revision(location)
    except OSError:
        return None


def _revision(location: str) -> str | None:
    path = base_path() if location == EMBEDDED else Path(location)
    if path.is_file():
        return _digest(path.parent, [path])
    if path.is_dir():
        parent = path.resolve().parent
        if parent.name == "snapshots":  # a snapshot folder of the hub's cache is named for its commit
            return f"commit:{path.resolve().name}"
        return _digest(path, (each for each in path.rglob("*") if each.is_file()))
    commit = _cached_commit(location)
    return None if commit is None else f"commit:{commit}"


def _cached_commit(location: str) -> str | None:
    """Return the commit that the hub's cache has of a repository's main branch."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    reference = cache / f"models--{location.replace('/', '--')}" / "refs" / "main"
    return reference.read_text().strip() if reference.is_file() else None


def _digest(folder: Path, files: Iterable[Path]) -> str:
    """Digest files by their names under a folder, their sizes and what of them is read."""
    digest = hashlib.sha256()
    for path in sorted(files):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= _WHOLE_FILE_BYTES:
                digest.update(file.read())
                continue
            if path.suffix == ".safetensors":
                length = int.from_bytes(file.read(8), "little")
                digest.update(file.read(min(length, MAX_HEADER_BYTES)))
            last = max(size - _SAMPLE_BYTES, 0)
            for place in range(_SAMPLES):
                file.seek(last * place // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return f"files:{digest.hexdigest()}"
