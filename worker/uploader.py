"""Brings what a run makes meanwhile into the object store, from a thread that holds up neither engine nor mailbox.

Latest wins: a checkpoint that is superseded before its upload began is dropped. The pointer in the database is switched
only after every file is up, for both stages of a pair in one transaction, and for each of several jobs in its own; what
it pointed to is deleted after that. Outputs that are shown early wait until no checkpoint does.
"""

from __future__ import annotations

import contextvars
import logging
import shutil
import threading
import time
from collections import deque
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

from api.db import transaction
from api.errors import LeaseLost
from api.jobs.repository import record_checkpoint
from api.object_keys import artifact_key, checkpoint_key
from api.storage import StoreError
from worker.backoff import Backoff

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from sqlalchemy.orm import Session, sessionmaker

    from api.jobs.repository import ClaimedStage
    from api.storage import ObjectStore
    from worker.wire import Checkpointed

    Step = dict[int, Checkpointed]
    """One checkpoint of each member of a run, all of the same step."""

log = logging.getLogger(__name__)

CONTENT_TYPE = "application/octet-stream"


class CheckpointUploader:
    """Takes checkpoints of one run, and outputs to show, until it is closed.

    Errors of the store are logged, and checkpoints tried again.
    """

    def __init__(self, stage: ClaimedStage, *, sessions: sessionmaker[Session], store: ObjectStore) -> None:
        self._members = stage.all
        self._jobs = stage.by_job
        self._sessions = sessions
        self._store = store
        self._gathering: Step = {}
        self._pending: Step | None = None
        self._shows: deque[Callable[[], None]] = deque()
        self._busy = False
        self._closed = False
        self._spent = {each.stage_id: _keys([each.checkpoint]) for each in stage.all}
        self._forgotten: Collection[ClaimedStage] = ()
        self._changed = threading.Condition()
        context = contextvars.copy_context()  # so that its log lines name the stage
        self._thread = threading.Thread(target=context.run, args=(self._serve,), name="uploader", daemon=True)
        self._thread.start()

    def take(self, checkpoint: Checkpointed) -> None:
        """Take a complete checkpoint on disk; from now on its folder is the uploader's."""
        with self._changed:
            if any(other.step != checkpoint.step for other in self._gathering.values()):
                self._drop(self._gathering)
                self._gathering = {}
            self._gathering[checkpoint.member] = checkpoint
            if len(self._gathering) < len(self._members):
                return
            if self._pending is not None:
                self._drop(self._pending)
            self._pending, self._gathering = self._gathering, {}
            self._changed.notify_all()

    def take_show(self, show: Callable[[], None]) -> None:
        """Take what publishes an output early; it is called once, and sees to its own errors."""
        with self._changed:
            self._shows.append(show)
            self._changed.notify_all()

    def drop_shows(self) -> None:
        """Begin no further of them: the outputs are about to go, or to be published with all others."""
        with self._changed:
            self._shows.clear()
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything taken is stored; False when it was not by then."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._closed or not (self._pending or self._shows or self._busy), max(timeout_s, 0.0)
            )

    def close(self, *, forget: Collection[ClaimedStage]) -> None:
        """Take no more. The stages to `forget` have succeeded, and need nothing of their checkpoints any more."""
        with self._changed:
            self._closed, self._forgotten = True, forget
            self._changed.notify_all()

    def _serve(self) -> None:
        backoff = Backoff(first_s=0.1, most_s=2.0)
        while (work := self._next()) is not None:
            if callable(work):
                work()
                self._rest()
                continue
            stored = self._store_step(work)
            if not self._rest(None if stored else work):
                self._drop(work)
            if stored:
                backoff.reset()
            else:
                time.sleep(backoff.next_s())
        for stage in self._forgotten:
            self._delete(stage, set(self._spent[stage.stage_id]))

    def _next(self) -> Step | Callable[[], None] | None:
        """Wait for something to upload, None for the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._pending or self._shows)
            if self._closed:
                return None
            self._busy = True
            if self._pending is None:
                return self._shows.popleft()
            step, self._pending = self._pending, None
            return step

    def _rest(self, failed: Step | None = None) -> bool:
        """Say that the work at hand has ended; whether a step that failed is to be tried again."""
        with self._changed:
            again = failed is not None and not self._closed and self._pending is None
            if again:
                self._pending = failed
            self._busy = False
            self._changed.notify_all()
            return again

    def _store_step(self, step: Step) -> bool:
        """Upload one step and switch the pointers, job by job; False if another try can help."""
        of_stage = {stage.stage_id: step[number] for number, stage in enumerate(self._members)}
        stored = [self._store_job(stages, of_stage) for stages in self._jobs]
        return all(stored)

    def _store_job(self, stages: Sequence[ClaimedStage], step: Mapping[uuid.UUID, Checkpointed]) -> bool:
        """Do so for the stages of one job."""
        began_at = monotonic()
        try:
            pointers = [self._upload(stage, step[stage.stage_id]) for stage in stages]
            with transaction(self._sessions) as session:
                spent = [
                    record_checkpoint(session, **stage.proof, checkpoint=pointer)
                    for stage, pointer in zip(stages, pointers, strict=True)
                ]
        except (StoreError, DBAPIError) as error:
            log.warning("a checkpoint could not be stored", extra={"error": f"{type(error).__name__}: {error}"[:300]})
            return False
        except (LeaseLost, OSError) as error:  # decided elsewhere; or the folder went with the end of the run
            log.info("a checkpoint was not stored", extra={"error": type(error).__name__})
            return True
        log.info(
            "checkpoint stored",
            extra={"step": pointers[0]["step"], "seconds": round(monotonic() - began_at, 3)},
        )
        for stage, old, new in zip(stages, spent, pointers, strict=True):
            self._delete(stage, _keys([old]) - _keys([new]))
        return True

    def _upload(self, stage: ClaimedStage, checkpoint: Checkpointed) -> dict[str, Any]:
        """Store the files of one stage's checkpoint, and return the pointer to them."""
        files = []
        for file in checkpoint.files:
            key = checkpoint_key(
                stage.account_id, stage.job_id, stage.name, stage.attempt, step=checkpoint.step, filename=file.name
            )
            self._spent[stage.stage_id].add(key)
            self._store.put_file(key, Path(checkpoint.folder) / file.name, CONTENT_TYPE)
            files.append({"name": file.name, "key": key, "sha256": file.sha256, "bytes": file.bytes})
        return {
            "step": checkpoint.step,
            "total": checkpoint.total,
            "attempt": stage.attempt,
            "paired": checkpoint.paired,
            "at": time.time(),
            "files": files,
        }

    def _delete(self, stage: ClaimedStage, keys: set[str]) -> None:
        """Delete objects of a stage; those of the job that its job tries again are that job's."""
        own = artifact_key(stage.account_id, stage.job_id, stage.name, 0, "").removesuffix("0/")
        doomed = sorted(key for key in keys if key.startswith(own))
        self._spent[stage.stage_id].difference_update(doomed)
        try:
            self._store.delete(doomed)
        except StoreError as error:  # they go with the job
            log.warning("an old checkpoint was not deleted", extra={"error": str(error)})

    @staticmethod
    def _drop(step: Step) -> None:
        for checkpoint in step.values():
            shutil.rmtree(checkpoint.folder, ignore_errors=True)


def _keys(pointers: Iterable[dict[str, Any] | None]) -> set[str]:
    """Return the objects that pointers to checkpoints name."""
    return {file["key"] for pointer in pointers if pointer is not None for file in pointer.get("files", ())}
