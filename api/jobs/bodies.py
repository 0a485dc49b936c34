"""The body of POST /jobs in each of its forms: pictures in a multipart form, one zip in such a form, or JSON."""

from __future__ import annotations

from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.datastructures import FormData

from api.documents import is_json, read_within
from api.forms import MEDIA_TYPE, received_form
from api.jobs import wishes
from api.jobs.archive import ArchiveLimits
from api.jobs.form import MAX_FILES, MAX_PARAMS_BYTES, form_contents, openapi_content
from api.jobs.schemas import JobParams, JobSubmission
from api.jobs.sources import EarlierUpload
from api.jobs.submission import Contents, Submission

if TYPE_CHECKING:
    import uuid
    from collections.abc import AsyncIterator, Iterator, Sequence

    from fastapi import Request

    from api.settings import ApiSettings

Body = FormData | bytes
"""A form as it was received, or a JSON document."""
REMEDY = f"Send {MEDIA_TYPE} with content_images, style_images and params, or with a zip as archive, or send JSON."


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What a request said beside its body; see `Submission`."""

    origin: str
    traceparent: str | None
    tracestate: str | None = None
    request_id: str | None
    idempotency_key: str | None


@asynccontextmanager
async def received_body(request: Request) -> AsyncIterator[Body]:
    """Receive a body; large files go to temporary files, gone when the block ends.

    Raises:
        UnsupportedMedia: it is of another type.
        TooLarge: the JSON is too long.
        starlette.exceptions.HTTPException: the form is malformed (400).
    """
    if is_json(request):
        yield await read_within(request, MAX_PARAMS_BYTES)
        return
    async with received_form(request, max_files=MAX_FILES, remedy=REMEDY) as form:
        yield form


@contextmanager
def to_submission(body: Body, envelope: Envelope, settings: ApiSettings) -> Iterator[Submission]:
    """Return what was sent; its files are there until the block ends.

    Raises:
        InvalidParameters: the body cannot be understood; `errors` names what.
    """
    with ExitStack() as files:
        if isinstance(body, bytes):
            contents = _document_contents(body)
        else:
            limits = ArchiveLimits(entry_bytes=settings.images.max_bytes, all_bytes=settings.max_request_bytes)
            contents = files.enter_context(form_contents(body, limits))
        yield Submission(
            params=contents.params,
            content=contents.content,
            style=contents.style,
            root=contents.root,
            fields=contents.fields,
            origin=envelope.origin,
            traceparent=envelope.traceparent,
            tracestate=envelope.tracestate,
            request_id=envelope.request_id,
            idempotency_key=envelope.idempotency_key,
        )


def _document_contents(data: bytes) -> Contents:
    """Read a JSON document: parameters at its top, and the ids of pictures that were uploaded before."""
    root = ""
    with wishes.pointing(root):
        wish = wishes.parse_as(data, JobSubmission)
    named = wish.model_fields_set & JobParams.model_fields.keys()
    values = {name: getattr(wish, name) for name in JobParams.model_fields}
    return Contents(
        params=JobParams.model_construct(_fields_set=named, **values),
        content=_uploads("content", wish.content_upload_ids),
        style=_uploads("style", wish.style_upload_ids),
        root=root,
        fields="{side}_upload_ids",
    )


def _uploads(side: str, ids: Sequence[uuid.UUID]) -> list[EarlierUpload]:
    return [EarlierUpload(upload_id, f"/{side}_upload_ids/{place}") for place, upload_id in enumerate(ids)]


def openapi_body() -> dict[str, Any]:
    """Return the OpenAPI description of all forms."""
    document = {"application/json": {"schema": {"$ref": "#/components/schemas/JobSubmission"}}}
    return {"requestBody": {"required": True, "content": openapi_content() | document}}
