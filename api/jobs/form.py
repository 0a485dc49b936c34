"""The multipart form of POST /jobs: read as it comes, named fields only."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.datastructures import FormData, UploadFile

from api.errors import FieldError, InvalidParameters, UnsupportedMedia
from api.jobs.submission import Submission, Upload
from duolora.config import MAX_IMAGES_PER_SIDE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi import Request

MEDIA_TYPE = "multipart/form-data"
MAX_FILES = 10 * MAX_IMAGES_PER_SIDE
"""More parts are not even counted; up to here the answer names the field that has too many."""
MAX_FIELDS = 16
MAX_PARAMS_BYTES = 64 * 1024

_NAMES = {
    "content_images": "content_images",
    "content_images[]": "content_images",
    "style_images": "style_images",
    "style_images[]": "style_images",
    "params": "params",
}
"""Accepted names of parts; some clients write lists with brackets."""


@asynccontextmanager
async def received_form(request: Request) -> AsyncIterator[FormData]:
    """Receive the form; large files go to temporary files, gone when the request ends.

    Raises:
        UnsupportedMedia: the body is no multipart form.
        starlette.exceptions.HTTPException: it is malformed (400).
    """
    if request.headers.get("content-type", "").split(";", 1)[0].strip().lower() != MEDIA_TYPE:
        raise UnsupportedMedia(f"Send {MEDIA_TYPE} with content_images, style_images and params.")
    async with request.form(max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=MAX_PARAMS_BYTES) as form:
        yield form


def to_submission(form: FormData, *, origin: str, traceparent: str | None, idempotency_key: str | None) -> Submission:
    """Sort the parts by name.

    Raises:
        InvalidParameters: a part is unknown, of the wrong sort, or there are several `params`.
    """
    files: dict[str, list[Upload]] = {"content_images": [], "style_images": []}
    texts: list[str] = []
    errors: list[FieldError] = []
    for raw, value in form.multi_items():
        name = _NAMES.get(raw)
        if name is None:
            detail = "unknown part; known: content_images, style_images, params"
            errors.append(FieldError(pointer=f"/{raw}", detail=detail, code="extra_forbidden"))
        elif name == "params":
            texts.append(_text(value))
        elif isinstance(value, UploadFile):
            files[name].append(Upload(value.file, value.size or 0))
        else:
            pointer = f"/{name}/{len(files[name])}"
            errors.append(FieldError(pointer=pointer, detail="must be a file, not text", code="not_a_file"))
    if len(texts) > 1:
        errors.append(FieldError(pointer="/params", detail="came more than once; send it once", code="too_many"))
    if errors:
        raise InvalidParameters(errors=errors)
    return Submission(
        params=texts[0] if texts else "{}",
        content=files["content_images"],
        style=files["style_images"],
        origin=origin,
        traceparent=traceparent,
        idempotency_key=idempotency_key,
    )


def _text(value: UploadFile | str) -> str:
    """Return the JSON part, whether it came as a field or, as `curl -F params=@file` sends it, as a file."""
    if isinstance(value, str):
        return value
    data = value.file.read(MAX_PARAMS_BYTES + 1)
    if len(data) > MAX_PARAMS_BYTES:
        detail = f"more than {MAX_PARAMS_BYTES} bytes of JSON"
        raise InvalidParameters(errors=[FieldError(pointer="/params", detail=detail, code="too_large")])
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        entry = FieldError(pointer="/params", detail="is not UTF-8 text; send JSON", code="json_invalid")
        raise InvalidParameters(errors=[entry]) from error


def openapi_body() -> dict[str, Any]:
    """Return the OpenAPI description of the form."""
    pictures = {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "minItems": 1,
        "maxItems": MAX_IMAGES_PER_SIDE,
    }
    schema = {
        "type": "object",
        "required": ["content_images", "style_images"],
        "additionalProperties": False,
        "properties": {
            "content_images": {**pictures, "description": "Pictures of one subject: JPEG, PNG or WebP."},
            "style_images": {**pictures, "description": "Pictures in one style: JPEG, PNG or WebP."},
            "params": {"$ref": "#/components/schemas/JobParams"},
        },
    }
    content = {MEDIA_TYPE: {"schema": schema, "encoding": {"params": {"contentType": "application/json"}}}}
    return {"requestBody": {"required": True, "content": content}}
