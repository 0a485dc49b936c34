"""What a backup looks like on disk: `manifest.json`, `tables/*.copy`, `objects.jsonl` and `objects/...`.

The manifest is written last, so a folder without one is no backup. Tables are in Postgres' own text format of COPY.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

FORMAT = 1
MANIFEST = "manifest.json"


class BackupError(Exception):
    """What was asked cannot be done; the message is meant for the person at the terminal."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Table(_Record):
    """One table's rows, in a file of its name."""

    name: str
    columns: tuple[str, ...]
    rows: int
    sha256: str


class StoredObject(_Record):
    """One object of the store."""

    key: str
    bytes: int
    sha256: str
    content_type: str


class Manifest(_Record):
    """What a backup holds."""

    format: int
    version: str
    """Of DuoLoRA, which wrote it."""
    revision: str
    """Of the database."""
    taken_at: str
    """The instant of the rows, ISO 8601."""
    tables: tuple[Table, ...]
    """In an order in which they can be filled: whatever is referred to comes first."""
    sequences: dict[str, int]
    """Last values."""
    objects: int
    objects_sha256: str
    """Of `objects.jsonl`."""
    deleted_meanwhile: tuple[str, ...]
    """Jobs whose objects went while they were copied: their owners deleted them."""
    sealed_with: tuple[str, ...] = ()
    """Names of the keys, of SECRET_KEYS, without which its secrets cannot be opened."""


class BackupFolder:
    """Paths of one backup, and reading and writing what describes it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(self) -> None:
        """Make the folder, for its owner only.

        Raises:
            BackupError: there is something in it.
        """
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        if any(self.root.iterdir()):
            raise BackupError(f"{self.root} is not empty; every backup has a folder of its own")
        for part in ("tables", "objects"):
            (self.root / part).mkdir(mode=0o700)

    def table(self, name: str) -> Path:
        """Return the file with a table's rows."""
        return self.root / "tables" / f"{name}.copy"

    def object(self, key: str) -> Path:
        """Return the file with an object's bytes.

        Raises:
            BackupError: the key would lead out of the folder.
        """
        if key.startswith("/") or not set(key.split("/")).isdisjoint({"", ".", ".."}):
            raise BackupError(f"{key!r} cannot be the name of a file")
        return self.root / "objects" / PurePosixPath(key)

    @property
    def _index(self) -> Path:
        return self.root / "objects.jsonl"

    def write_objects(self, objects: Iterable[StoredObject]) -> str:
        """Write the list of the objects; returns its SHA-256."""
        with self._index.open("w") as file:
            file.writelines(f"{each.model_dump_json()}\n" for each in objects)
        return sha256_of(self._index)

    def objects(self) -> Iterator[StoredObject]:
        """Read the list of the objects."""
        with self._index.open() as file:
            for line in file:
                yield StoredObject.model_validate_json(line)

    def write_manifest(self, manifest: Manifest) -> None:
        """Declare the backup whole."""
        partial = self.root / f"{MANIFEST}.partial"
        partial.write_text(json.dumps(manifest.model_dump(mode="json"), indent=1))
        partial.rename(self.root / MANIFEST)

    def read_manifest(self) -> Manifest:
        """Read what the backup holds.

        Raises:
            BackupError: there is none, it was made in another format, or a list or a table is not what was written.
        """
        path = self.root / MANIFEST
        if not path.is_file():
            raise BackupError(f"{self.root} holds no whole backup: there is no {MANIFEST} in it")
        try:
            manifest = Manifest.model_validate_json(path.read_text())
        except ValidationError as error:
            raise BackupError(f"{path} cannot be read: {error.errors()[0]['msg']}") from error
        if manifest.format != FORMAT:
            raise BackupError(f"{path} is of format {manifest.format}; this version reads {FORMAT}")
        written = {self.table(table.name): table.sha256 for table in manifest.tables}
        for file, sha256 in (written | {self._index: manifest.objects_sha256}).items():
            if not file.is_file() or sha256_of(file) != sha256:
                raise BackupError(f"{file} is not what was written")
        return manifest


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
