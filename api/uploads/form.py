"""The multipart form of POST /uploads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.datastructures import UploadFile

from api.errors import FieldError, InvalidParameters
from api.forms import MEDIA_TYPE
from api.jobs.sources import ReceivedFile
from api.uploads.models import UploadKind

if TYPE_CHECKING:
    from starlette.datastructures import FormData

MAX_FILES = 2
"""One more than there may be, so that the answer names the field."""
REMEDY = f"Send {MEDIA_TYPE} with the file as `file`."


def to_file(form: FormData) -> tuple[ReceivedFile, UploadKind]:
    """Return the file of a form, and what it is for.

    Raises:
        InvalidParameters: a part is unknown, missing, of the wrong sort, or came twice.
    """
    errors = []
    for name in form:
        if name not in {"file", "purpose"}:
            errors.append(_error(name, "unknown part; known: file, purpose", "extra_forbidden"))
        elif len(form.getlist(name)) > 1:
            errors.append(_error(name, "came more than once; send it once", "too_many"))
    file, purpose = form.get("file"), form.get("purpose", UploadKind.IMAGE)
    if file is None:
        errors.append(_error("file", "is missing; send the file itself", "missing"))
    elif not isinstance(file, UploadFile):
        errors.append(_error("file", "must be a file, not text", "not_a_file"))
    if not isinstance(purpose, str) or purpose not in set(UploadKind):
        errors.append(_error("purpose", f"must be one of: {', '.join(UploadKind)}", "unknown"))
    if errors or not isinstance(file, UploadFile) or not isinstance(purpose, str):
        raise InvalidParameters(errors=errors)
    return ReceivedFile(file.file, file.size or 0, "/file"), UploadKind(purpose)


def openapi_body() -> dict[str, Any]:
    """Return the OpenAPI description of the form."""
    schema = {
        "type": "object",
        "required": ["file"],
        "additionalProperties": False,
        "properties": {
            "file": {
                "type": "string",
                "format": "binary",
                "description": "A picture (JPEG, PNG or WebP), or a LoRA (safetensors).",
            },
            "purpose": {"type": "string", "enum": [*UploadKind], "default": UploadKind.IMAGE},
        },
    }
    return {"requestBody": {"required": True, "content": {MEDIA_TYPE: {"schema": schema}}}}


def _error(name: str, detail: str, code: str) -> FieldError:
    return FieldError(pointer=f"/{name}", detail=detail, code=code)
