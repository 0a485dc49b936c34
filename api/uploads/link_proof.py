"""Whether a store keeps to what a link for writing allows."""

from __future__ import annotations

import secrets
import threading
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from api.storage import ObjectStore

_CONTENT_TYPE = "application/octet-stream"


class LinkProof:
    """Proves of the real store that a signed link lets its owner write one object and nothing more.

    What it found out is remembered. A store that refuses the link itself is asked again the next time: that may pass.
    Some stores heed headers that were not signed. There the owner of a link copies any object of the bucket, also
    another account's, to where he may write: see RustFS advisory GHSA-xm99-m3gq-83g8.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._known: bool | None = None

    def holds(self) -> bool:
        """Whether it does.

        Raises:
            StoreError: the store does not answer, or fails.
        """
        with self._lock:
            if self._known is None:
                self._known = self._try()
            return self._known is True

    def _try(self) -> bool | None:
        """Return False if another object was copied, None if nothing could be shown."""
        folder = f"self-test/{secrets.token_hex(8)}"
        source, target, secret, own = f"{folder}/source", f"{folder}/target", b"secret", b"public"
        headers = {"content-length": str(len(own)), "content-type": _CONTENT_TYPE}
        link = self._store.presigned_put(target, headers=headers, expires=timedelta(minutes=1))
        self._store.put_bytes(source, secret, _CONTENT_TYPE)
        try:
            bucket = link.split("?", 1)[0].removesuffix(f"/{target}").rsplit("/", 1)[1]
            self._store.put_by_link(link, own, headers | {"x-amz-copy-source": f"/{bucket}/{source}"})
            if self._store.keys(target) and self._store.get_bytes(target) == secret:
                return False
            written = self._store.put_by_link(link, own, headers) and self._store.get_bytes(target) == own
            return written or None
        finally:
            self._store.delete([source, target])
