"""Examples of requests for jobs of each kind, for the OpenAPI document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from api.loras.examples import LORA_ID
from api.uploads.examples import OTHER_ID, UPLOAD_ID

if TYPE_CHECKING:
    from collections.abc import Mapping

    Document = dict[str, Any]

_OTHER_LORA_ID = "019ab2e4-77aa-7c61-b5a0-913c2d4e8f70"

WISHES: Document = {"name": "Rex in ink", "subject_class": "cat", "steps": {"content": 60}, "slider": 5, "seed": 5}
"""Parameters of a personalize job."""

BY_KIND: Mapping[str, Document] = {
    "personalize": WISHES | {"content_upload_ids": [UPLOAD_ID], "style_upload_ids": [OTHER_ID]},
    "train": {"kind": "train", "style_upload_ids": [OTHER_ID], "style_trigger": "inky", "preview_every": 50},
    "merge": {"kind": "merge", "content_lora_id": LORA_ID, "style_lora_id": _OTHER_LORA_ID, "slider": 7},
    "generate": {
        "kind": "generate",
        "prompts": ["a sbu cat in szn style", "a sbu cat on a boat in szn style"],
        "loras": [{"lora_id": LORA_ID, "strength": 0.9}],
        "images_per_prompt": 4,
        "steps": {"sampling": 30},
        "seed": 5,
    },
}
"""Whole bodies in JSON."""
