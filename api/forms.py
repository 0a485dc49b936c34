"""Multipart forms, received within bounds."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from api.documents import media_type
from api.errors import UnsupportedMedia

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi import Request
    from starlette.datastructures import FormData

MEDIA_TYPE = "multipart/form-data"
MAX_FIELDS = 16
MAX_TEXT_BYTES = 64 * 1024
"""Of one field that is no file."""


@asynccontextmanager
async def received_form(request: Request, *, max_files: int, remedy: str) -> AsyncIterator[FormData]:
    """Receive a form; large files go to temporary files, gone when the block ends.

    Args:
        request: whose body was not read yet.
        max_files: more are not even counted.
        remedy: what to send, for who sends no form.

    Raises:
        UnsupportedMedia: the body is no multipart form.
        starlette.exceptions.HTTPException: it is malformed (400).
    """
    if media_type(request) != MEDIA_TYPE:
        raise UnsupportedMedia(remedy)
    async with request.form(max_files=max_files, max_fields=MAX_FIELDS, max_part_size=MAX_TEXT_BYTES) as form:
        yield form
