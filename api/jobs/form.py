"""The multipart form of POST /jobs: read as it comes, named fields only."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from starlette.datastructures import FormData, UploadFile

from api.errors import FieldError, InvalidParameters
from api.forms import MAX_TEXT_BYTES, MEDIA_TYPE
from api.jobs import wishes
from api.jobs.archive import unpacked
from api.jobs.sources import ReceivedFile
from api.jobs.submission import Contents
from duolora.config import MAX_IMAGES_PER_SIDE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from api.jobs.archive import ArchiveLimits

MAX_FILES = 10 * MAX_IMAGES_PER_SIDE
"""More parts are not even counted; up to here the answer names the field that has too many."""
MAX_PARAMS_BYTES = MAX_TEXT_BYTES

_NAMES = {
    "content_images": "content_images",
    "content_images[]": "content_images",
    "style_images": "style_images",
    "style_images[]": "style_images",
    "archive": "archive",
    "params": "params",
}
"""Accepted names of parts; some clients write lists with brackets."""
_KNOWN = sorted({*_NAMES.values()})


@contextmanager
def form_contents(form: FormData, limits: ArchiveLimits) -> Iterator[Contents]:
    """Sort the parts by name; what an archive holds is there until the block ends.

    Raises:
        InvalidParameters: a part is unknown, of the wrong sort, one too many, or cannot be read.
    """
    files: dict[str, list[ReceivedFile]] = {"content_images": [], "style_images": [], "archive": []}
    texts: list[str] = []
    errors: list[FieldError] = []
    for raw, value in form.multi_items():
        name = _NAMES.get(raw)
        if name is None:
            errors.append(_error(raw, f"unknown part; known: {', '.join(_KNOWN)}", "extra_forbidden"))
        elif name == "params":
            texts.append(_text(value))
        elif isinstance(value, UploadFile):
            pointer = f"/{name}/{len(files[name])}"
            files[name].append(ReceivedFile(value.file, value.size or 0, pointer))
        else:
            errors.append(_error(f"{name}/{len(files[name])}", "must be a file, not text", "not_a_file"))
    archives = files["archive"]
    if len(texts) > 1:
        errors.append(_error("params", "came more than once; send it once", "too_many"))
    if len(archives) > 1:
        errors.append(_error("archive", "came more than once; send one zip with all pictures", "too_many"))
    if archives and (files["content_images"] or files["style_images"]):
        errors.append(_error("archive", "came beside pictures; send either", "too_many"))
    if errors:
        raise InvalidParameters(errors=errors)
    if archives:
        with unpacked(archives[0].file, limits, params=texts[0] if texts else None) as contents:
            yield contents
        return
    yield Contents(
        params=wishes.parse(texts[0] if texts else "{}"),
        content=files["content_images"],
        style=files["style_images"],
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


def _error(name: str, detail: str, code: str) -> FieldError:
    return FieldError(pointer=f"/{name}", detail=detail, code=code)


def openapi_content() -> dict[str, Any]:
    """Return the OpenAPI description of the form."""
    pictures = {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "minItems": 1,
        "maxItems": MAX_IMAGES_PER_SIDE,
    }
    schema = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "content_images": {
                **pictures,
                "description": "Pictures of one subject: JPEG, PNG or WebP. Kinds differ in what they need.",
            },
            "style_images": {**pictures, "description": "Pictures in one style: JPEG, PNG or WebP."},
            "archive": {
                "type": "string",
                "format": "binary",
                "description": "In place of them: one zip with folders content/ and style/, and perhaps params.json.",
            },
            "params": {"$ref": "#/components/schemas/JobParams"},
        },
    }
    return {MEDIA_TYPE: {"schema": schema, "encoding": {"params": {"contentType": "application/json"}}}}
