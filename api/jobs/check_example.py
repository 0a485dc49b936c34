"""Example of what `validate_only` answers, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

_SHA = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_SECOND = "/content_images/1"


def _stage(name: str, depends_on: list[str], steps: int | None, seconds: float) -> dict[str, Any]:
    return {"name": name, "depends_on": depends_on, "steps": steps, "predicted_seconds": seconds}


def _image(side: str, ordinal: int, **known: object) -> dict[str, Any]:
    good = {"ok": True, "width": 1024, "height": 768, "sha256": _SHA, "problem": None, "hints": []}
    return {"side": side, "ordinal": ordinal, **good, **known}


CHECK: dict[str, Any] = {
    "ok": True,
    "config": {"base_model": "tiny", "content": {"steps": 60, "rank": 8}, "style": {"steps": 60, "rank": 8}},
    "stages": [
        _stage("loras", [], 60, 81.0),
        _stage("merge", ["loras"], 100, 6.2),
        _stage("package", ["merge"], None, 4.8),
    ],
    "predicted_seconds": 92.0,
    "predicted_peak_bytes": 1_204_715_520,
    "quota": [
        {"policy": "queued-jobs", "used": 1, "limit": 10, "after": 2},
        {"policy": "stored-bytes", "used": 9283591, "limit": None, "after": 10729984},
    ],
    "images": [
        _image("content", 0),
        _image(
            "content",
            1,
            hints=[
                {
                    "code": "near_duplicate",
                    "detail": "looks like /content_images/0, and teaches nothing new",
                    "pointer": _SECOND,
                }
            ],
        ),
        _image("style", 0),
    ],
    "hints": [
        {
            "code": "too_few",
            "detail": "2 of the subject: with 3 to 5 that differ in place and pose it is learnt better",
            "pointer": "/content_images",
        }
    ],
}
