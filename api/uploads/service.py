"""What happens to uploads on request. No transaction is open while the store is talked to.

A row comes before its objects and goes after them, so that whatever is broken off in between is found again: by its
owner, or by the janitor once the upload's time is over.
"""

from __future__ import annotations

import hashlib
import logging
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from api.accounts import quotas
from api.db import transaction
from api.errors import Conflict, FieldError, InvalidParameters, NotFound, QuotaExceeded
from api.identifiers import uuid7
from api.jobs.locking import instant
from api.jobs.sources import ReceivedFile
from api.object_keys import received_key, upload_key, upload_prefix
from api.storage import ObjectMissing, StoreError
from api.uploads import repository
from api.uploads.link_proof import LinkProof
from api.uploads.models import Upload, UploadState
from api.uploads.schemas import PresignedUpload, UploadRead

if TYPE_CHECKING:
    import uuid
    from pathlib import Path

    from sqlalchemy.orm import Session, sessionmaker

    from api.accounts.service import Caller
    from api.settings import UploadSettings
    from api.storage import ObjectStore
    from api.uploads.examining import Examined, Examiner
    from api.uploads.models import UploadKind
    from api.uploads.schemas import UploadAnnouncement

logger = logging.getLogger(__name__)

FILE = "/file"
"""Where complaints about a file's contents point, also if it came by a link."""


def upload_path(upload_id: uuid.UUID) -> str:
    """Return an upload's path."""
    return f"/uploads/{upload_id}"


class UploadService:
    """Keeps files for their owners until jobs are submitted with them."""

    def __init__(
        self,
        settings: UploadSettings,
        sessions: sessionmaker[Session],
        store: ObjectStore,
        examiner: Examiner,
    ) -> None:
        self._lifetime = timedelta(hours=settings.lifetime_h)
        self._link_lifetime = min(timedelta(seconds=settings.link_lifetime_s), self._lifetime)
        self._sessions = sessions
        self._store = store
        self._examiner = examiner
        self._links = LinkProof(store)

    def take(self, caller: Caller, file: ReceivedFile, kind: UploadKind) -> UploadRead:
        """Keep a file that came with the request; a refusal or a failure leaves nothing behind.

        Raises:
            InvalidParameters: it cannot be used.
            QuotaExceeded: the account has as many bytes as it may.
            StoreError: it cannot be stored.
            Unavailable: too many pictures or LoRAs are being read.
        """
        quotas.precheck(self._sessions, caller.account_id, jobs=0)
        with self._examiner.room(kind) as folder:
            found = self._examiner.examine(kind, file, folder)
            upload_id = self._reserve(
                caller, kind, content_type=found.content_type, stored_bytes=found.bytes, sha256=None
            ).id
            try:
                return self._keep(caller, upload_id, found)
            except Exception:
                self._withdraw(caller, upload_id)
                raise

    def announce(self, caller: Caller, wish: UploadAnnouncement) -> PresignedUpload:
        """Return a link by which the caller may write a file to the store.

        Raises:
            InvalidParameters: it would be too large, or is of another type than its purpose has.
            QuotaExceeded: the account has as many bytes as it may.
            Conflict: the store of this installation cannot be trusted with such links.
            StoreError: the store does not answer.
        """
        self._examiner.check_announced(wish.purpose, wish.bytes, wish.content_type)
        if not self._links.holds():
            raise Conflict(
                "The object store of this installation does not keep to what a link allows; send the file itself to "
                "POST /uploads.",
                code="links_unavailable",
            )
        upload = self._reserve(
            caller,
            wish.purpose,
            content_type=wish.content_type,
            stored_bytes=wish.bytes,
            sha256=wish.sha256,
            link_lifetime=self._link_lifetime,
        )
        headers = {"Content-Type": wish.content_type}
        signed = {"content-length": str(wish.bytes), "content-type": wish.content_type}
        return PresignedUpload(
            **_read(upload).model_dump(),
            put_url=self._store.presigned_put(
                received_key(caller.account_id, upload.id), headers=signed, expires=self._link_lifetime
            ),
            put_headers=headers,
            put_expires_at=upload.link_expires_at,
        )

    def confirm(self, caller: Caller, upload_id: uuid.UUID) -> UploadRead:
        """Look at what came by a link, and make it ready; what cannot be used is removed. Again: no effect.

        Raises:
            NotFound: there is none of that id, or it is somebody else's, or over.
            InvalidParameters: it is not as announced, or cannot be used; nothing of it is left.
            Conflict: nothing came yet.
            QuotaExceeded: what is kept of it is larger than announced, and the account has as many bytes as it may.
            StoreError: the store does not answer.
            Unavailable: too many pictures or LoRAs are being read.
        """
        upload = self._find(caller, upload_id)
        if upload.state is UploadState.READY:
            return _read(upload)
        try:
            with self._examiner.room(upload.kind) as folder:
                ready = self._keep(caller, upload_id, self._examine_received(upload, folder))
        except ObjectMissing as error:
            upload = self._find(caller, upload_id)
            if upload.state is UploadState.READY:  # another confirmation was faster
                return _read(upload)
            raise Conflict("Nothing came yet: PUT the file to `put_url` first.", code="nothing_uploaded") from error
        except InvalidParameters:
            self._withdraw(caller, upload_id)
            raise
        self._store.delete([received_key(caller.account_id, upload_id)])
        return ready

    def read(self, caller: Caller, upload_id: uuid.UUID) -> UploadRead:
        """Return an upload.

        Raises:
            NotFound: there is none of that id, or it is somebody else's, or over.
        """
        return _read(self._find(caller, upload_id))

    def delete(self, caller: Caller, upload_id: uuid.UUID) -> None:
        """Delete an upload. Jobs that were submitted with it keep their copies.

        Raises:
            NotFound: there is none of that id, or it is somebody else's, or over.
            StoreError: the store does not answer; the upload is still there.
        """
        self._find(caller, upload_id)
        self._remove(caller, upload_id)

    def _find(self, caller: Caller, upload_id: uuid.UUID) -> Upload:
        with transaction(self._sessions) as session:
            upload = repository.find(session, account_id=caller.account_id, upload_id=upload_id)
        if upload is None:
            raise _missing(upload_id)
        return upload

    def _reserve(
        self,
        caller: Caller,
        kind: UploadKind,
        *,
        content_type: str,
        stored_bytes: int,
        sha256: str | None,
        link_lifetime: timedelta | None = None,
    ) -> Upload:
        """Write the row of an upload whose bytes are yet to come."""
        with transaction(self._sessions) as session:
            quotas.reserve(session, caller.account_id, stored_bytes=stored_bytes, jobs=0)
            now = instant(session)
            upload = Upload(
                id=uuid7(),
                account_id=caller.account_id,
                state=UploadState.PENDING,
                kind=kind,
                content_type=content_type,
                bytes=stored_bytes,
                sha256=sha256,
                created_at=now,
                expires_at=now + self._lifetime,
                link_expires_at=None if link_lifetime is None else now + link_lifetime,
            )
            session.add(upload)
        return upload

    def _examine_received(self, upload: Upload, folder: Path) -> Examined:
        """Fetch what came by a link, if it is what was announced, and look at it."""
        key, path = received_key(upload.account_id, upload.id), folder / "received"
        head = self._store.head(key)
        _compare("bytes", upload.bytes, head.bytes)
        _compare("content_type", upload.content_type, head.content_type)
        if not self._store.get_file_within(key, path, upload.bytes):  # it was written anew since
            raise _differs("bytes", f"more than {upload.bytes} came")
        _compare("bytes", upload.bytes, path.stat().st_size)
        with path.open("rb") as data:
            if upload.sha256 is not None:
                _compare("sha256", upload.sha256, hashlib.file_digest(data, "sha256").hexdigest())
                data.seek(0)
            return self._examiner.examine(upload.kind, ReceivedFile(data, upload.bytes, FILE, path), folder)

    def _keep(self, caller: Caller, upload_id: uuid.UUID, found: Examined) -> UploadRead:
        """Store a file and make its upload ready, unless it is already.

        The key is of this act only: another confirmation, which may have read something else, overwrites nothing.
        """
        key = upload_key(caller.account_id, upload_id, uuid7())
        self._store.put_file(key, found.path, found.content_type)
        try:
            with transaction(self._sessions) as session:
                upload = repository.find(session, account_id=caller.account_id, upload_id=upload_id, lock=True)
                if upload is not None and upload.state is UploadState.PENDING:
                    _make_ready(session, upload, found, key)
        except QuotaExceeded:
            self._store.delete([key])  # it may be tried again, and be refused again: its bytes are nobody's until then
            raise
        if upload is None or upload.key != key:  # it is gone, or ready, meanwhile
            self._store.delete([key])
        if upload is None:
            raise _missing(upload_id)
        return _read(upload)

    def _remove(self, caller: Caller, upload_id: uuid.UUID) -> None:
        """Delete an upload's objects, then take it away from its owner."""
        self._store.delete(self._store.keys(upload_prefix(caller.account_id, upload_id)))
        with transaction(self._sessions) as session:
            upload = repository.find(session, account_id=caller.account_id, upload_id=upload_id, lock=True)
            if upload is not None:
                repository.remove(session, upload)

    def _withdraw(self, caller: Caller, upload_id: uuid.UUID) -> None:
        """Remove an upload that is refused or failed; if that fails too, the janitor does it in time."""
        try:
            self._remove(caller, upload_id)
        except (StoreError, SQLAlchemyError) as error:
            logger.warning("upload %s, which was refused, is removed later: %s", upload_id, error)


def _make_ready(session: Session, upload: Upload, found: Examined, key: str) -> None:
    upload.link_bytes = repository.may_bring(session, upload)
    more = found.bytes + upload.link_bytes - upload.bytes
    if more > 0:
        quotas.reserve(session, upload.account_id, stored_bytes=more, jobs=0)
    else:
        quotas.add_stored(session, upload.account_id, more)
    upload.state, upload.content_type, upload.bytes = UploadState.READY, found.content_type, found.bytes
    upload.key = key
    upload.sha256, upload.width, upload.height, upload.dhash = found.sha256, found.width, found.height, found.dhash


def _read(upload: Upload) -> UploadRead:
    return UploadRead(
        id=upload.id,
        state="ready" if upload.state is UploadState.READY else "pending",
        kind=upload.kind,
        bytes=upload.bytes,
        sha256=upload.sha256,
        width=upload.width,
        height=upload.height,
        created_at=upload.created_at,
        expires_at=upload.expires_at,
    )


def _missing(upload_id: uuid.UUID) -> NotFound:
    return NotFound(f"There is no upload {upload_id}.")


def _compare(name: str, announced: object, came: object) -> None:
    if announced != came:
        raise _differs(name, f"{announced} was announced, and {came} came")


def _differs(name: str, detail: str) -> InvalidParameters:
    return InvalidParameters(
        "What came is not what was announced; nothing of it was kept.",
        errors=[FieldError(pointer=f"/{name}", detail=f"{detail}; announce and send it again", code="differs")],
    )
