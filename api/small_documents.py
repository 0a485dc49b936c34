"""Paths that take a small JSON document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from api.errors import TooLarge, UnsupportedMedia

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

MAX_DOCUMENT_BYTES = 64 * 1024
"""FastAPI reads a JSON body before it knows who sends it, so here it is a small one."""


class SmallDocuments(APIRoute):
    """A path that takes a small body."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the usual handler, given a body that was read within bounds."""
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            body = b""
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_DOCUMENT_BYTES:
                    raise TooLarge(f"At most {MAX_DOCUMENT_BYTES} bytes are read here.")
            if body and self.body_field is not None and not _is_json(request):
                raise UnsupportedMedia("Send a JSON document as application/json.")

            async def receive() -> dict[str, Any]:
                return {"type": "http.request", "body": body, "more_body": False}

            return await handle(Request(request.scope, receive))

        return bounded


def _is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").split(";", 1)[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
