"""Objects out of the store and into one, several at a time.

Objects are never changed under their keys, but they go: a checkpoint when the next one is stored, a job's with the job.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from api.storage import ObjectMissing
from deploy.backup.folder import BackupError, StoredObject, sha256_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from api.storage import ObjectStore
    from deploy.backup.folder import BackupFolder

PREFIX = "accounts/"
"""Of all that the service keeps."""
AT_ONCE = 8


def copy_out(store: ObjectStore, folder: BackupFolder) -> list[StoredObject]:
    """Copy all objects, those first that go soonest; returns those that were still there.

    Raises:
        StoreError: the store failed.
    """
    keys = sorted(store.keys(PREFIX), key=lambda key: ("/checkpoints/" not in key, key))

    def fetch(key: str) -> StoredObject | None:
        path = folder.object(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            head = store.head(key)
            store.get_file(key, path)
        except ObjectMissing:
            path.unlink(missing_ok=True)
            return None
        return StoredObject(key=key, bytes=path.stat().st_size, sha256=sha256_of(path), content_type=head.content_type)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [found for found in pool.map(fetch, keys) if found is not None]


def copy_in(store: ObjectStore, folder: BackupFolder, objects: Iterable[StoredObject]) -> int:
    """Store all objects that are not there in the same size; returns how many were stored.

    Raises:
        BackupError: a file is not the one that was written.
        StoreError: the store failed.
    """
    store.ensure_bucket()

    def send(each: StoredObject) -> bool:
        path = folder.object(each.key)
        if not path.is_file() or sha256_of(path) != each.sha256:
            raise BackupError(f"{path} is not what was written")
        try:
            if store.head(each.key).bytes == each.bytes:
                return False
        except ObjectMissing:
            pass
        store.put_file(each.key, path, each.content_type)
        return True

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return sum(pool.map(send, objects))
