"""Examples of the library for the OpenAPI document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

LORA_ID = "019ab2f2-3e90-7b04-8d52-0e1f7a6c94b3"
_UPLOADED_ID = "019ab2e4-77aa-7c61-b5a0-913c2d4e8f70"
_JOB_ID = "019ab2f0-7c31-7d2e-9b11-2f64c8d0a1e5"
_SHA = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


def _file(form: str, filename: str) -> dict[str, Any]:
    return {"format": form, "filename": filename, "sha256": _SHA, "bytes": 23_401_288}


def _with_links(lora: dict[str, Any]) -> dict[str, Any]:
    link = {"url": "https://s3.example.org/duolora/...&X-Amz-Signature=...", "expires_at": "2026-11-23T11:30:00Z"}
    return lora | {"files": [file | link for file in lora["files"]]}


def _urls(lora_id: str, job: str | None) -> dict[str, Any]:
    return {"self": f"/loras/{lora_id}", "file": f"/loras/{lora_id}/file", "job": job}


_MADE: dict[str, Any] = {
    "id": LORA_ID,
    "name": "cat",
    "tags": [],
    "role": "content",
    "base_model": "tiny",
    "rank": 8,
    "trigger": "sbu cat",
    "source": "job",
    "job_id": _JOB_ID,
    "kept": False,
    "created_at": "2026-11-23T10:00:40Z",
    "urls": _urls(LORA_ID, f"/jobs/{_JOB_ID}"),
    "files": [
        _file("diffusers", "content_lora.safetensors"),
        _file("kohya", "content_lora.kohya.safetensors"),
    ],
}
_SENT: dict[str, Any] = {
    "id": _UPLOADED_ID,
    "name": "Ink",
    "tags": ["ink", "black and white"],
    "role": "style",
    "base_model": "tiny",
    "rank": 16,
    "trigger": "ink drawing",
    "source": "upload",
    "job_id": None,
    "kept": True,
    "created_at": "2026-11-23T09:40:12Z",
    "urls": _urls(_UPLOADED_ID, None),
    "files": [_file("kohya", "ink_v3.safetensors")],
}

REQUESTS: Mapping[str, dict[str, Any]] = {
    "upload_lora": {
        "file": "ink_v3.safetensors",
        "name": "Ink",
        "tags": ["ink", "black and white"],
        "role": "style",
        "base_model": "tiny",
        "trigger": "ink drawing",
    },
    "change_lora": {"name": "Our cat", "tags": ["cat"], "kept": True},
}
ANSWERS: Mapping[tuple[str, int], dict[str, Any]] = {
    ("upload_lora", 201): _with_links(_SENT),
    ("list_loras", 200): {
        "items": [_MADE, _SENT],
        "next_cursor": None,
        "limit": 20,
        "role": ["content", "style"],
        "tag": [],
        "job_id": None,
        "base_model": "tiny",
    },
    ("read_lora", 200): _with_links(_MADE),
    ("change_lora", 200): _with_links(_MADE | {"name": "Our cat", "tags": ["cat"], "kept": True}),
}
CODES: Mapping[tuple[str, int], str] = {
    ("upload_lora", 429): "quota_exceeded",
    ("upload_lora", 503): "store_unavailable",
    ("change_lora", 409): "lora_kept",
    ("change_lora", 429): "quota_exceeded",
    ("change_lora", 503): "store_unavailable",
}
