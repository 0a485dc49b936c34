"""The multipart form of POST /loras."""

from __future__ import annotations

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
_WORDS = tuple(name for name in LoraUpload.model_fields if name != "tags")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedLora:
    """A file that came, and what its owner says of it."""

    file: BinaryIO
    size: int
    """In bytes."""
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
        if name not in {"file", "tags", *_WORDS}:
            errors.append(_error(raw, f"unknown part; known: file, tags, {', '.join(_WORDS)}", "extra_forbidden"))
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
    if len(files) != 1 and not any(error.pointer == "/file" for error in errors):
        errors.append(_error("file", f"{len(files)} files came; send one", "too_many" if files else "missing"))
    said, refused = _validated(words)
    if said is None or errors:
        raise InvalidParameters(errors=[*errors, *refused])
    return ReceivedLora(file=files[0].file, size=files[0].size or 0, filename=files[0].filename or "", words=said)


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
        "required": ["file"],
        "properties": {
            "file": file,
            **said["properties"],
            "tags": {**said["properties"]["tags"], "maxItems": MAX_TAGS},
        },
    }
    return {"requestBody": {"required": True, "content": {MEDIA_TYPE: {"schema": schema}}}}
