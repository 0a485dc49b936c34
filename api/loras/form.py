"""The multipart form of POST /loras."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from api.errors import FieldError, InvalidParameters
from api.forms import MEDIA_TYPE
from api.loras.schemas import MAX_TAGS, LoraUpload
from api.problems import validation_fields

if TYPE_CHECKING:
    from collections.abc import Iterable

REMEDY = f"Send {MEDIA_TYPE} with file, and name, tags, role, base_model and trigger if you like."
MAX_FILES = 2
"""More than one, so that the answer names the field."""
UPLOAD = "upload_id"
_WORDS = tuple(name for name in LoraUpload.model_fields if name != "tags")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedLora:
    """A file that came, and what its owner says of it."""

    file: BinaryIO | None
    """None for one that was uploaded before."""
    size: int
    """In bytes; 0 without a file."""
    upload_id: uuid.UUID | None = None
    filename: str
    """As it came."""
    words: LoraUpload


def read_form(form: FormData) -> ReceivedLora:
    """Sort the parts by name.

    Raises:
        InvalidParameters: a part is missing, unknown, of the wrong sort, too often there, or its value is refused.
    """
    files: list[UploadFile] = []
    words: dict[str, Any] = {}
    errors: list[FieldError] = []
    for raw, value in form.multi_items():
        name = "tags" if raw == "tags[]" else raw
        if name not in {"file", UPLOAD, "tags", *_WORDS}:
            known = ", ".join(("file", UPLOAD, "tags", *_WORDS))
            errors.append(_error(raw, f"unknown part; known: {known}", "extra_forbidden"))
        elif isinstance(value, UploadFile) is not (name == "file"):
            sort = "a file, not text" if name == "file" else "text, not a file"
            errors.append(_error(name, f"must be {sort}", "not_a_file" if name == "file" else "not_text"))
        elif isinstance(value, UploadFile):
            files.append(value)
        elif name == "tags":
            words.setdefault("tags", []).append(value)
        elif name in words:
            errors.append(_error(name, "came more than once; send it once", "too_many"))
        else:
            words[name] = value
    upload_id = _upload_id(words.pop(UPLOAD, None), errors)
    if len(files) + (upload_id is not None) != 1 and not any(
        error.pointer in {"/file", f"/{UPLOAD}"} for error in errors
    ):
        detail = f"{len(files)} files came; send one, or the {UPLOAD} of one that was uploaded before"
        errors.append(_error("file", detail, "too_many" if files else "missing"))
    said, refused = _validated(words)
    if said is None or errors:
        raise InvalidParameters(errors=[*errors, *refused])
    if not files:
        return ReceivedLora(file=None, size=0, filename="", words=said, upload_id=upload_id)
    return ReceivedLora(file=files[0].file, size=files[0].size or 0, filename=files[0].filename or "", words=said)


def _upload_id(text: str | None, errors: list[FieldError]) -> uuid.UUID | None:
    if text is None:
        return None
    try:
        return uuid.UUID(text)
    except ValueError:
        errors.append(_error(UPLOAD, "is no id; pass that of an upload whose purpose is lora", "uuid_parsing"))
        return None


def _validated(words: dict[str, Any]) -> tuple[LoraUpload | None, Iterable[FieldError]]:
    try:
        return LoraUpload.model_validate(words), ()
    except ValidationError as error:
        return None, validation_fields(error.errors())


def _error(name: str, detail: str, code: str) -> FieldError:
    return FieldError(pointer=f"/{name}", detail=detail, code=code)


def openapi_body() -> dict[str, Any]:
    """Return the OpenAPI description of the form."""
    said = LoraUpload.model_json_schema(ref_template="#/components/schemas/{model}")
    file = {
        "type": "string",
        "format": "binary",
        "description": "Safetensors, in the keys of diffusers, kohya, PEFT or OneTrainer. It is served as it came.",
    }
    schema = {
        "type": "object",
        "properties": {
            "file": file,
            UPLOAD: {
                "type": "string",
                "format": "uuid",
                "description": "In place of it: an upload whose purpose is lora; see POST /uploads.",
            },
            **said["properties"],
            "tags": {**said["properties"]["tags"], "maxItems": MAX_TAGS},
        },
    }
    return {"requestBody": {"required": True, "content": {MEDIA_TYPE: {"schema": schema}}}}
