"""The scratch folder of one attempt: inputs come in checked, outputs go out hashed, nothing stays behind.

Each worker owns one folder under the scratch folder, and says so with a lock on a file in it. A worker that was killed
leaves its folder without a lock, and the next one that starts removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from api.jobs.repository import StoredArtifact
from api.object_keys import artifact_key
from api.storage import ObjectMissing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from api.jobs.repository import ClaimedStage
    from api.storage import ObjectStore
    from worker.wire import OutputFile

_FILENAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
_LOCK = "lock"


class ArtifactCorrupt(Exception):
    """A file from the object store is not the one that was stored."""

    code = "artifact_corrupt"


class OutputMissing(Exception):
    """The engine named an output that is not in its folder."""

    code = "output_missing"


class BaseUnavailable(Exception):
    """This worker knows no base model of that name, though the API does."""

    code = "base_unavailable"


class CheckpointUnusable(Exception):
    """The files of a checkpoint are gone, or are not what was stored: the stage starts from the beginning."""


class Workspace:
    """Folders of one attempt: one for every job, in it one for every stage.

    `check` is called between files, and raises when the attempt must stop.
    """

    def __init__(self, folder: Path, store: ObjectStore) -> None:
        self._folder = folder
        self._store = store

    def inputs_dir(self, stage: ClaimedStage) -> Path:
        """Return the folder for the inputs of a stage; all stages of a job that train have the same."""
        return _made(self._folder / str(stage.job_id) / "inputs")

    def outputs_dir(self, stage: ClaimedStage) -> Path:
        """Return the folder for a stage's outputs."""
        return _made(self._of(stage) / "outputs")

    def checkpoints_dir(self, stage: ClaimedStage) -> Path:
        """Return the folder for a stage's checkpoints."""
        return _made(self._of(stage) / "checkpoints")

    def fetch(self, stage: ClaimedStage, check: Callable[[], None]) -> None:
        """Bring the pictures, the LoRAs that came with the job, and the files of upstream stages into `inputs_dir`.

        Raises:
            ArtifactCorrupt: when a file's SHA-256 is not the recorded one.
        """
        inputs_dir = self.inputs_dir(stage)
        for image in stage.images:
            check()
            self._fetch(image.key, _made(inputs_dir / image.side) / f"{image.ordinal:03d}.png", image.sha256)
        for lora in stage.loras:
            check()
            path = _made(inputs_dir / "loras") / f"{lora.role}_{lora.ordinal}.safetensors"
            self._fetch(lora.key, path, lora.sha256)
        for artifact in stage.upstream:
            check()
            self._fetch(artifact.key, inputs_dir / _plain(artifact.filename), artifact.sha256)

    def fetch_checkpoint(self, stage: ClaimedStage, check: Callable[[], None]) -> Path | None:
        """Bring the files of the checkpoint that a stage goes on from; None if it has none.

        Raises:
            CheckpointUnusable: when a file is missing, or is not the one that was stored.
        """
        if stage.checkpoint is None:
            return None
        folder = self._of(stage) / "resume"
        shutil.rmtree(folder, ignore_errors=True)  # of a try that the store did not see through
        folder.mkdir(parents=True)
        try:
            for file in stage.checkpoint["files"]:
                check()
                self._fetch(file["key"], folder / _plain(file["name"]), file["sha256"])
        except (ObjectMissing, ArtifactCorrupt, OutputMissing, KeyError) as error:
            raise CheckpointUnusable(f"{stage.name}, step {stage.checkpoint.get('step')}: {error}") from error
        return folder

    def publish(
        self, stage: ClaimedStage, outputs: Iterable[OutputFile], check: Callable[[], None]
    ) -> list[StoredArtifact]:
        """Store a stage's outputs under keys of this attempt, and return what to record of them.

        Raises:
            OutputMissing: when an output does not exist, or its name points out of the folder.
        """
        artifacts = []
        for output in outputs:
            check()
            path = self.outputs_dir(stage) / _plain(output.filename)
            if not path.is_file() or path.is_symlink():
                raise OutputMissing(f"the engine named {output.filename} but did not write it")
            artifact = StoredArtifact(
                name=output.name,
                filename=output.filename,
                key=artifact_key(stage.account_id, stage.job_id, stage.name, stage.attempt, output.filename),
                sha256=_sha256(path),
                bytes=path.stat().st_size,
                content_type=output.content_type,
            )
            self._store.put_file(artifact.key, path, output.content_type)
            artifacts.append(artifact)
        return artifacts

    def _of(self, stage: ClaimedStage) -> Path:
        return self._folder / str(stage.job_id) / stage.name

    def _fetch(self, key: str, path: Path, sha256: str) -> None:
        self._store.get_file(key, path)
        if _sha256(path) != sha256:
            raise ArtifactCorrupt(f"{path.name} came back from the object store with another checksum")


class Scratch:
    """This worker's own folder; `close` removes it."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(root):  # nobody sweeps while a folder has no lock yet
            self._sweep(root)
            self._folder = Path(tempfile.mkdtemp(prefix="worker-", dir=root))
            self._lock = (self._folder / _LOCK).open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    @contextmanager
    def workspace(self, stage: ClaimedStage, store: ObjectStore) -> Iterator[Workspace]:
        """Make the folders of one attempt, and remove them whatever happens."""
        with tempfile.TemporaryDirectory(prefix=f"{stage.name}-", dir=self._folder, ignore_cleanup_errors=True) as name:
            yield Workspace(Path(name), store)

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.close()

    @staticmethod
    def _sweep(root: Path) -> None:
        """Remove what dead workers left."""
        for lock in root.glob(f"worker-*/{_LOCK}"):
            with contextlib.suppress(OSError), lock.open("r+") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _plain(filename: str) -> str:
    if not _FILENAME.fullmatch(filename):
        raise OutputMissing(f"{filename!r} is no plain file name")
    return filename


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
