"""What owners may do with their LoRAs; another account's do not exist."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from api import idempotency
from api.accounts.scopes import Scope
from api.cursors import Cursor, read_cursor
from api.db import transaction
from api.errors import Conflict, FieldError, InvalidParameters, NotFound
from api.idempotency import Answer, Fresh, Ledger, Replay, expiry, fingerprint, sha256_of
from api.identifiers import uuid7
from api.jobs.listing import path as job_path
from api.loras import disposal, repository
from api.loras.inspection import inspect
from api.loras.keeping import CONTENT_TYPE, Keeper, missing
from api.loras.models import Lora, LoraFile, LoraSource, LoraState
from api.loras.schemas import (
    MAX_NAME_LENGTH,
    LoraFileLink,
    LoraFileRead,
    LoraPage,
    LoraRead,
    LoraSummary,
    LoraUrls,
)
from api.places import lora_places
from api.storage import ObjectMissing, StoreError, lora_key
from api.uploads import repository as uploads
from api.uploads.models import UploadKind, UploadState

if TYPE_CHECKING:
    import uuid
    from collections.abc import Collection
    from typing import Any, BinaryIO

    from sqlalchemy.orm import Session, sessionmaker

    from api.accounts.service import Caller
    from api.loras.form import ReceivedLora
    from api.loras.models import LoraFormat, LoraRole
    from api.loras.schemas import LoraPatch
    from api.places import Places
    from api.settings import ApiSettings
    from api.storage import ObjectStore

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1024 * 1024
_SUFFIX = ".safetensors"
_MAX_STEM = 120


def lora_path(lora_id: object) -> str:
    """Return the path of a LoRA."""
    return f"/loras/{lora_id}"


class LoraService:
    """Decides about LoRAs for their owners."""

    def __init__(
        self,
        settings: ApiSettings,
        sessions: sessionmaker[Session],
        store: ObjectStore,
        *,
        places: Places | None = None,
    ) -> None:
        self._places = places or lora_places(settings.lora_parallel)
        self._sessions = sessions
        self._store = store
        self._keeper = Keeper(sessions, store)
        self._ledger = Ledger.of(settings, sessions)
        self._base_models = frozenset(settings.base_models)
        self._max_bytes = settings.lora_max_bytes
        self._link_lifetime = timedelta(seconds=settings.artifact_url_lifetime_s)

    def page(
        self,
        caller: Caller,
        *,
        cursor: str | None,
        limit: int,
        roles: Collection[LoraRole] = (),
        tags: Collection[str] = (),
        job_id: uuid.UUID | None = None,
        base_model: str | None = None,
    ) -> LoraPage:
        """Return a page of the caller's LoRAs, newest first; see `repository.list_loras` for the filters.

        Raises:
            InvalidParameters: the cursor is none of ours.
        """
        after = read_cursor(cursor)
        with transaction(self._sessions) as session:
            rows = repository.list_loras(
                session,
                account_id=caller.account_id,
                before=None if after is None else (after.created_at, after.id),
                limit=limit + 1,
                roles=roles,
                tags=tags,
                job_id=job_id,
                base_model=base_model,
            )
        page = rows[:limit]
        return LoraPage(
            items=[
                LoraSummary(**_told(row), files=[LoraFileRead(**_file(file)) for file in row.all_files]) for row in page
            ],
            next_cursor=Cursor(page[-1].created_at, page[-1].id).encode() if len(rows) > limit else None,
            limit=limit,
            role=sorted(set(roles)),
            tag=sorted(set(tags)),
            job_id=job_id,
            base_model=base_model,
        )

    def read(self, caller: Caller, lora_id: uuid.UUID) -> LoraRead:
        """Return a LoRA with links to its files.

        Raises:
            NotFound: the caller has none of that id.
        """
        return self._read(self._find(caller, lora_id))

    def link(self, caller: Caller, lora_id: uuid.UUID, form: LoraFormat | None) -> str:
        """Return a link to the file in a format, or to the one that most programs read.

        Raises:
            NotFound: the caller has none of that id, or it has no file in that format.
        """
        lora = self._find(caller, lora_id)
        if form is None:
            return self._link(lora.file())
        file = lora.file(form)
        if file.format is not form:
            there = ", ".join(each.format for each in lora.all_files)
            raise NotFound(f"LoRA {lora_id} has no file in the format {form}; it has {there}.")
        return self._link(file)

    def upload(self, caller: Caller, came: ReceivedLora, key: str | None = None) -> Answer:
        """Take a LoRA that was sent in into the library, its file as it came.

        Raises:
            Forbidden: the key may not read the upload that is named.
            InvalidParameters: the file is none of a LoRA, or something that was said of it is refused; or the
                idempotency key is another request's.
            Conflict: the same request is in flight.
            QuotaExceeded: the account may not store so much more.
            StoreError: it cannot be stored; nothing is left.
            Unavailable: too many LoRAs are being read.
        """
        if came.upload_id is not None:
            caller.require([Scope.UPLOADS_READ])
        with self._ledger.once(caller.account_id, key, lambda: _mark(came)) as entry:
            if isinstance(entry, Replay):
                return idempotency.again(entry)
            return self._upload(caller, came, entry)

    def _upload(self, caller: Caller, came: ReceivedLora, entry: Fresh | None) -> Answer:
        self._check(came)
        lora_id, stem = uuid7(), _stem(came.filename)
        with self._places.taken(), tempfile.TemporaryDirectory(prefix="duolora-lora-") as folder:
            path = Path(folder, f"lora{_SUFFIX}")
            sha256 = self._fetch(caller, came.upload_id, path) if came.file is None else _write(came.file, path)
            found = inspect(path)
            file = LoraFile(
                format=found.format,
                key=lora_key(caller.account_id, lora_id, uuid7(), f"{found.format}{_SUFFIX}"),
                filename=f"{stem}{_SUFFIX}",
                sha256=sha256,
                bytes=path.stat().st_size,
            )
            lora = Lora(
                id=lora_id,
                account_id=caller.account_id,
                name=came.words.name or stem[:MAX_NAME_LENGTH].strip() or "LoRA",
                tags=came.words.tags,
                role=came.words.role,
                base_model=came.words.base_model,
                rank=found.rank,
                trigger=came.words.trigger,
                source=LoraSource.UPLOAD,
                mock=found.mock,
                kept=True,
            )
            return self._keeper.store(lora, file, path, lambda session, stored: self._tell(session, stored, entry))

    def _tell(self, session: Session, lora: Lora, entry: Fresh | None) -> Answer:
        """Return the answer to the request that a LoRA came of, and write it down if that has a key."""
        body, location, status = self._read(lora).model_dump_json(), lora_path(lora.id), HTTPStatus.CREATED
        if entry is not None:
            idempotency.complete(session, entry, lora_id=lora.id, status=status, body=body, location=location)
        return Answer(id=lora.id, status=status, body=body, headers={"Location": location, **expiry(entry)})

    def _fetch(self, caller: Caller, upload_id: uuid.UUID | None, path: Path) -> str:
        """Write down a file that was uploaded before and return its SHA-256."""
        with transaction(self._sessions) as session:
            upload = (
                None if upload_id is None else uploads.find(session, account_id=caller.account_id, upload_id=upload_id)
            )
        if upload is None or upload.state is not UploadState.READY or upload.kind is not UploadKind.LORA:
            detail = f"there is no upload {upload_id} that is ready and has the purpose lora; upload the file again"
            raise InvalidParameters(errors=[FieldError(pointer="/upload_id", detail=detail, code="unknown")])
        try:
            self._store.get_file(uploads.key_of(upload), path)
        except ObjectMissing as error:
            detail = "it was deleted a moment ago; upload it again"
            raise InvalidParameters(errors=[FieldError(pointer="/upload_id", detail=detail, code="gone")]) from error
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def change(self, caller: Caller, lora_id: uuid.UUID, wish: LoraPatch) -> LoraRead:
        """Change what was asked for; `kept` gives a job's LoRA files of its own. Asking again changes nothing.

        Raises:
            NotFound: the caller has none of that id, or it went with its job meanwhile.
            Conflict: it is kept, which cannot be taken back.
            QuotaExceeded: the account may not store so much more.
            StoreError: its files cannot be copied; nothing has changed.
        """
        asked = wish.model_fields_set

        def apply(lora: Lora) -> None:
            if "kept" in asked and lora.kept and not wish.kept:
                raise Conflict("It is kept, and cannot be unkept; delete it instead.", code="lora_kept")
            if "name" in asked:
                lora.name = wish.name
            if "tags" in asked:
                lora.tags = wish.tags

        if wish.kept:
            self._keeper.keep(caller.account_id, lora_id, apply)
            return self.read(caller, lora_id)
        with transaction(self._sessions) as session:
            lora = repository.lock(session, account_id=caller.account_id, lora_id=lora_id)
            if lora is None:
                raise missing(lora_id)
            apply(lora)
            return self._read(lora)

    def delete(self, caller: Caller, lora_id: uuid.UUID) -> None:
        """Delete a LoRA with the files of its own; a job's artifacts stay the job's.

        If the store does not answer, the janitor does the rest later.

        Raises:
            NotFound: the caller has none of that id.
        """
        with transaction(self._sessions) as session:
            lora = repository.lock(session, account_id=caller.account_id, lora_id=lora_id)
            if lora is None:
                raise missing(lora_id)
            idempotency.forget_lora(session, lora.id)
            if not lora.kept and lora.settle_at is None:
                session.delete(lora)  # nothing in the store is its own
                return
            now = repository.moment(session)
            lora.state, lora.settle_at = LoraState.DELETING, max(lora.settle_at or now, now)
        try:
            disposal.dispose(self._sessions, self._store, account_id=caller.account_id, lora_id=lora_id)
        except (StoreError, SQLAlchemyError) as error:
            logger.warning("LoRA %s is deleted later: %s", lora_id, error)

    def _check(self, came: ReceivedLora) -> None:
        """Refuse what can be refused before the file is looked at."""
        errors = []
        if came.size > self._max_bytes:
            detail = f"the file has {came.size} bytes; at most {self._max_bytes} are taken, so send a smaller rank"
            errors.append(FieldError(pointer="/file", detail=detail, code="too_large"))
        base = came.words.base_model
        if base is not None and base not in self._base_models:
            detail = f"there is no {base!r}; known: {', '.join(sorted(self._base_models))}"
            errors.append(FieldError(pointer="/base_model", detail=detail, code="unknown"))
        if errors:
            raise InvalidParameters(errors=errors)

    def _find(self, caller: Caller, lora_id: uuid.UUID) -> Lora:
        with transaction(self._sessions) as session:
            lora = repository.find(session, account_id=caller.account_id, lora_id=lora_id)
        if lora is None:
            raise missing(lora_id)
        return lora

    def _read(self, lora: Lora) -> LoraRead:
        """Describe a LoRA in full. Links are minted here, at reading time."""
        expires_at = datetime.now(UTC) + self._link_lifetime
        files = [LoraFileLink(**_file(file), url=self._link(file), expires_at=expires_at) for file in lora.all_files]
        return LoraRead(**_told(lora), files=files)

    def _link(self, file: LoraFile) -> str:
        return self._store.presigned_get(
            file.key, filename=file.filename, content_type=CONTENT_TYPE, expires=self._link_lifetime
        )


def _told(lora: Lora) -> dict[str, Any]:
    path = lora_path(lora.id)
    job = None if lora.job_id is None else job_path(lora.job_id)
    return {
        "id": lora.id,
        "name": lora.name,
        "tags": lora.tags,
        "role": lora.role,
        "base_model": lora.base_model,
        "rank": lora.rank,
        "trigger": lora.trigger,
        "source": lora.source,
        "job_id": lora.job_id,
        "kept": lora.kept,
        "created_at": lora.created_at,
        "urls": LoraUrls(self=path, file=f"{path}/file", job=job),
    }


def _file(file: LoraFile) -> dict[str, Any]:
    return {"format": file.format, "filename": file.filename, "sha256": file.sha256, "bytes": file.bytes}


def _mark(came: ReceivedLora) -> str:
    """Return what a request is known by when it is sent again: what it says, and its file by SHA-256 or by id."""
    said = {"filename": came.filename, **came.words.model_dump(mode="json", exclude_unset=True)}
    file = f"upload:{came.upload_id}" if came.file is None else sha256_of(came.file)
    return fingerprint("POST /loras", said, [("file", 0, file)])


def _stem(filename: str) -> str:
    """Return the name of a file as its sender has it, without suffix, folders and what no name should hold."""
    name = PurePosixPath(filename.replace("\\", "/")).name.removesuffix(_SUFFIX)
    plain = "".join(each for each in name if each.isprintable() and each not in '/\\:*?"<>|').strip(" .")
    return plain[:_MAX_STEM] or "lora"


def _write(source: BinaryIO, path: Path) -> str:
    """Write a file down and return its SHA-256."""
    digest = hashlib.sha256()
    source.seek(0)
    with path.open("wb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()
