"""The folder of one stack: who holds it, and the secrets made for it once."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Self

from deploy.local.object_store import StoreKeys
from deploy.local.processes import LocalStackError

SECRETS_FILE = "secrets.json"
LOCK_FILE = "lock"


def default_data_folder() -> Path:
    """DUOLORA_DATA, or `duolora` in the user's data home (XDG_DATA_HOME, ~/.local/share).

    Raises:
        LocalStackError: none of these says where, because the user has no home.
    """
    named = os.environ.get("DUOLORA_DATA")
    if named:
        return Path(named).expanduser()
    home = os.environ.get("XDG_DATA_HOME")
    try:
        return (Path(home) if home else Path.home() / ".local" / "share") / "duolora"
    except RuntimeError as error:
        raise LocalStackError("this user has no home folder; say where to keep the data with --data") from error


@dataclass(frozen=True)
class OwnerKey:
    """How the owner of the stack calls it, and checks that its webhooks come from it."""

    api_key: str
    webhook_secret: str


class FolderLock:
    """Exclusive hold on a folder by one process; the kernel lets go when the process dies, however it dies."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_FILE
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            LocalStackError: another process has it.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while self._file is None:
            file = self._path.open("a+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                holder = file.read().strip() or "?"
                file.close()
                raise LocalStackError(
                    f"another instance (process {holder}) is using {self._path.parent}; stop it, or name another folder"
                ) from error
            if self._still_there(file):
                self._file = file
            else:  # its former holder removed the file between our open and our lock
                file.close()
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the file, then let go."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def _still_there(self, file: IO[str]) -> bool:
        try:
            return self._path.stat().st_ino == os.fstat(file.fileno()).st_ino
        except FileNotFoundError:
            return False


class Secrets:
    """Passwords and keys of one data folder, made at the first start and kept in a file only its owner can read."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / SECRETS_FILE
        self._values: dict[str, str] = json.loads(self._path.read_text()) if self._path.exists() else {}
        for name, size in (
            ("postgres_password", 24),
            ("valkey_password", 24),
            ("store_key_id", 10),
            ("store_secret", 32),
            ("secret_keys", 24),
        ):
            self._values.setdefault(name, secrets.token_hex(size))
        self._write()

    @property
    def postgres_password(self) -> str:
        """Of the one role of the embedded Postgres."""
        return self._values["postgres_password"]

    @property
    def valkey_password(self) -> str:
        """Of the embedded Valkey."""
        return self._values["valkey_password"]

    @property
    def store_keys(self) -> StoreKeys:
        """Of the embedded S3 server."""
        return StoreKeys(self._values["store_key_id"], self._values["store_secret"])

    @property
    def secret_keys(self) -> str:
        """By which the services seal secrets in the database: SECRET_KEYS."""
        return self._values["secret_keys"]

    @property
    def owner(self) -> OwnerKey | None:
        """What `duolora up` prints; None before the first start."""
        try:
            return OwnerKey(self._values["api_key"], self._values["webhook_secret"])
        except KeyError:
            return None

    @owner.setter
    def owner(self, value: OwnerKey) -> None:
        self._values |= asdict(value)
        self._write()

    def _write(self) -> None:
        write_private(self._path, json.dumps(self._values, indent=1))


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600)
    partial.write_text(text)
    partial.replace(path)
