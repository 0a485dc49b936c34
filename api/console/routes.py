"""Paths of the web console: its page, its built files, and the limits by which it checks pictures before they are sent.

None of them needs a key. The page asks for one and sends it with its requests to the other paths.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.responses import FileResponse, JSONResponse
from starlette.staticfiles import StaticFiles

from duolora.config import MAX_IMAGES_PER_SIDE

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from fastapi import FastAPI
    from starlette.responses import Response
    from starlette.types import Scope

    from api.settings import ApiSettings

DIST = Path(__file__).parent / "dist"
FOR_EVER = "public, max-age=31536000, immutable"
"""A built file carries a hash of its content in its name."""
ASK_AGAIN = "no-cache"


def install(app: FastAPI, settings: ApiSettings) -> None:
    """Make an application serve the console at `/`."""
    store = settings.store.public_endpoint or settings.store.endpoint
    headers = {**security_headers(store), "Cache-Control": ASK_AGAIN}
    limits = console_limits(settings)

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(DIST / "index.html", headers=headers)

    @app.get("/console.json", include_in_schema=False)
    def configuration() -> JSONResponse:
        return JSONResponse(limits, headers=headers)

    app.mount("/assets", _Assets(DIST / "assets", security_headers(store)))


def console_limits(settings: ApiSettings) -> dict[str, int]:
    """Return what the console checks by itself; the service checks it all again."""
    images = settings.images
    return {
        "max_images_per_side": MAX_IMAGES_PER_SIDE,
        "max_image_bytes": images.max_bytes,
        "max_image_pixels": images.max_pixels,
        "min_image_side_px": images.min_side_px,
        "max_request_bytes": settings.max_request_bytes,
    }


def security_headers(store: str) -> dict[str, str]:
    """Return the headers of the console's answers: only its own scripts run, and only the store is asked besides us.

    Args:
        store: URL of the object store as callers reach it; pictures and files of results come from there.
    """
    parts = urlsplit(store)
    origin = f"{parts.scheme}://{parts.netloc}"
    policy = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": f"'self' blob: {origin}",
        "connect-src": f"'self' {origin}",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }


class _Assets(StaticFiles):
    """The built files, each kept by browsers for ever."""

    def __init__(self, folder: Path, headers: Mapping[str, str]) -> None:
        super().__init__(directory=folder)
        self._headers = {**headers, "Cache-Control": FOR_EVER}

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """Answer with one file."""
        answer = super().file_response(full_path, stat_result, scope, status_code)
        answer.headers.update(self._headers)
        return answer
