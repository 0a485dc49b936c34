"""Examples of uploads for the OpenAPI document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

UPLOAD_ID = "019ab2ed-51b7-7e14-9a3c-5c0f6e2d7b18"
OTHER_ID = "019ab2ed-6a02-7b51-8d27-0e9b1c4f3a65"
_SHA = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

_READY: dict[str, Any] = {
    "id": UPLOAD_ID,
    "state": "ready",
    "kind": "image",
    "bytes": 482131,
    "sha256": _SHA,
    "width": 1024,
    "height": 768,
    "created_at": "2026-11-23T09:50:00Z",
    "expires_at": "2026-11-24T09:50:00Z",
}
_PENDING = _READY | {"state": "pending", "bytes": 2481932, "width": None, "height": None}

FORMS: Mapping[str, dict[str, Any]] = {"create_upload": {"file": "cat1.jpg", "purpose": "image"}}
REQUESTS: Mapping[str, dict[str, Any]] = {
    "presign_upload": {"bytes": 2481932, "content_type": "image/jpeg", "sha256": _SHA},
}
ANSWERS: Mapping[tuple[str, int], dict[str, Any]] = {
    ("create_upload", 201): _READY,
    ("presign_upload", 201): _PENDING
    | {
        "put_url": "https://s3.example.org/duolora/...&X-Amz-Signature=...",
        "put_headers": {"Content-Type": "image/jpeg"},
        "put_expires_at": "2026-11-23T10:50:00Z",
    },
    ("confirm_upload", 200): _READY,
    ("read_upload", 200): _READY,
}
CODES: Mapping[tuple[str, int], str] = {
    ("create_upload", 429): "quota_exceeded",
    ("presign_upload", 409): "links_unavailable",
    ("presign_upload", 429): "quota_exceeded",
    ("confirm_upload", 409): "nothing_uploaded",
    ("confirm_upload", 429): "quota_exceeded",
}
"""Codes that say more of an operation than the usual one of the status."""
