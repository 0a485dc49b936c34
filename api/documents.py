"""Paths that take a small JSON document, answers that are one, and how their header fields are described."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from api.errors import TooLarge, UnsupportedMedia

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

MAX_DOCUMENT_BYTES = 64 * 1024
"""FastAPI reads a JSON body before it knows who sends it, so here it is a small one."""


class SmallDocuments(APIRoute):
    """A path that takes a small body."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the usual handler, given a body that was read within bounds."""
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            body = await read_within(request, MAX_DOCUMENT_BYTES)
            if body and self.body_field is not None and not is_json(request):
                raise UnsupportedMedia("Send a JSON document as application/json.")

            async def receive() -> dict[str, Any]:
                return {"type": "http.request", "body": body, "more_body": False}

            return await handle(Request(request.scope, receive))

        return bounded


async def read_within(request: Request, most: int) -> bytes:
    """Return a request's body.

    Raises:
        TooLarge: it has more than so many bytes; not all of it was read.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise TooLarge(f"At most {most} bytes are read here.")
    return body


def answered(body: str, *, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with a document that was validated when it was made: it is not validated again."""
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def described(fields: Mapping[str, str]) -> dict[str, Any]:
    """Return the OpenAPI description of an answer's header fields."""
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in fields.items()}


def media_type(request: Request) -> str:
    """Return the type of a request's body, without its parameters; empty if it has none."""
    return request.headers.get("content-type", "").split(";", 1)[0].strip().lower()


def is_json(request: Request) -> bool:
    """Whether a request says that its body is JSON."""
    kind = media_type(request)
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
