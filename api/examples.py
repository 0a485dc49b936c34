"""Examples for the OpenAPI document: of every request, answer and webhook. Tests hold them against the shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from api.errors import ServiceError, problem
from api.jobs import check_example
from api.jobs import examples as jobs
from api.jobs.event_types import EventType
from api.loras import examples as loras
from api.uploads import examples as uploads

if TYPE_CHECKING:
    from collections.abc import Mapping

Document = dict[str, Any]

JOB_ID = "019ab2f0-7c31-7d2e-9b11-2f64c8d0a1e5"
_RETRY_ID = "019ab31c-08aa-7f10-8c55-6b0d4f3e2a90"
_ENDPOINT_ID = "019ab2ee-10f4-7a61-a3d8-91c7f02b5d44"
_DELIVERY_ID = "019ab2f9-5d20-7c3b-8e0f-47a1b6c9d832"
_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 - made up for the eye
_KEY_ID = "4fR0kQ2mZx9B"
_SHA = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_ORIGIN = "https://lora.example.org"


def _urls(job_id: str) -> Document:
    path = f"/jobs/{job_id}"
    acts = ("cancel", "stop", "retry", "events", "logs", "attempts")
    return {"self": path, **{act: f"{path}/{act}" for act in acts}}


def _progress(**known: object) -> Document:
    unknown = ("stage", "step", "total", "eta_seconds", "loss", "note", "steps_per_second")
    return {"fraction": 0.0, **dict.fromkeys((*unknown, "queue_position", "queue_eta_seconds")), **known}


def _stage(name: str, state: str = "waiting", **known: object) -> Document:
    unknown = ("progress", "reused_from", "started_at", "finished_at", "error")
    return {"name": name, "state": state, "attempt": 0, "stopped_early": False, **dict.fromkeys(unknown), **known}


_SUMMARY: Document = {
    "id": JOB_ID,
    "kind": "personalize",
    "name": "Rex in ink",
    "engine": "duolora",
    "state": "queued",
    "stage": None,
    "progress": _progress(eta_seconds=95.0, queue_position=1, queue_eta_seconds=5.0),
    "priority": 0,
    "error": None,
    "created_at": "2026-11-23T10:00:00Z",
    "started_at": None,
    "finished_at": None,
    "deadline_at": None,
    "expires_at": None,
    "cancel_requested_at": None,
    "stop_requested_at": None,
    "retry_of": None,
    "urls": _urls(JOB_ID),
}
_QUEUED: Document = _SUMMARY | {
    "stages": [
        _stage("content_lora", "runnable"),
        _stage("style_lora", "runnable"),
        _stage("merge"),
        _stage("package"),
    ],
    "timings": {"queued_seconds": 0.0, "running_seconds": None, "worker_seconds": 0.0, "stages": {}},
    "request_id": "7f3c0d52a9e14b6f",
    "params": {"base_model": "tiny", "content": {"steps": 60, "rank": 8}, "style": {"steps": 60, "rank": 8}},
    "images": [
        {"side": "content", "ordinal": 0, "sha256": _SHA, "bytes": 48213, "width": 512, "height": 512},
        {"side": "style", "ordinal": 0, "sha256": _SHA, "bytes": 50977, "width": 512, "height": 512},
    ],
    "loras": [],
    "webhook_url": None,
    "webhook": None,
    "previews": [],
    "result": None,
}
_RUNNING: Document = _QUEUED | {
    "state": "running",
    "stage": "content_lora",
    "started_at": "2026-11-23T10:00:01Z",
    "progress": _progress(
        fraction=0.25, stage="content_lora", step=30, total=60, eta_seconds=60.5, loss=0.118, steps_per_second=2.4
    ),
}
_ENDED: Document = {
    "started_at": "2026-11-23T10:00:01Z",
    "finished_at": "2026-11-23T10:01:33Z",
    "expires_at": "2026-12-23T10:01:33Z",
}
_SUCCEEDED: Document = (
    _QUEUED
    | _ENDED
    | {
        "state": "succeeded",
        "progress": _progress(fraction=1.0),
        "timings": {
            "queued_seconds": 1.0,
            "running_seconds": 92.0,
            "worker_seconds": 90.6,
            "stages": {"merge": {"seconds": 4.2}},
        },
        "result": {
            "artifacts": [
                {
                    "name": "merged_diffusers",
                    "filename": "merged_diffusers.safetensors",
                    "content_type": "application/octet-stream",
                    "bytes": 1841236,
                    "sha256": _SHA,
                    "url": "https://s3.example.org/duolora/...&X-Amz-Signature=...",
                    "expires_at": "2026-11-23T11:05:00Z",
                }
            ],
            "slider": [{"artifact": "slider_0", "content": 1.0, "style": 0.0}],
        },
    }
)
_CANCELED: Document = _QUEUED | _ENDED | {"state": "canceled", "cancel_requested_at": "2026-11-23T10:01:33Z"}

_RECEIPT: Document = {
    "id": JOB_ID,
    "state": "deleted",
    "cause": "request",
    "requested_at": "2026-11-23T12:00:00Z",
    "deleted_at": "2026-11-23T12:00:00Z",
    "erased": {
        "inputs": {"count": 2, "bytes": 99190},
        "checkpoints": {"count": 0, "bytes": 0},
        "previews": {"count": 1, "bytes": 61234},
        "artifacts": {"count": 7, "bytes": 9184401},
        "logs": {"count": 31, "bytes": 1870},
    },
}
_ENDPOINT: Document = {
    "id": _ENDPOINT_ID,
    "job_id": None,
    "url": "https://example.org/hook",
    "events": ["job.succeeded", "job.failed"],
    "description": "the gallery",
    "state": "enabled",
    "disabled_at": None,
    "disabled_reason": None,
    "previous_secret_expires_at": None,
    "created_at": "2026-11-23T09:55:00Z",
    "urls": {"self": f"/webhooks/{_ENDPOINT_ID}", "deliveries": f"/webhooks/{_ENDPOINT_ID}/deliveries"},
}
_DELIVERY: Document = {
    "id": _DELIVERY_ID,
    "endpoint_id": _ENDPOINT_ID,
    "job_id": JOB_ID,
    "type": "job.succeeded",
    "webhook_id": "msg_019ab2f95d207c3b8e0f47a1b6c9d832",
    "state": "pending",
    "attempts": 1,
    "next_attempt_at": "2026-11-23T10:01:39Z",
    "last_status": 502,
    "last_error": "the server answered 502",
    "replay_of": None,
    "created_at": "2026-11-23T10:01:33Z",
    "delivered_at": None,
}
_RECIPE: Document = {
    "name": "tiny",
    "description": "Seconds on a CPU, for the base that comes with the project.",
    "defaults": {"base_model": "tiny", "content": {"steps": 60, "rank": 8}},
}
_KEY: Document = {
    "id": _KEY_ID,
    "prefix": f"duo_live_{_KEY_ID}",
    "label": "the gallery's CI",
    "scopes": ["jobs:write", "loras:read"],
    "state": "active",
    "is_current": False,
    "created_at": "2026-11-23T09:50:00Z",
    "last_used_at": "2026-11-23T10:01:00Z",
    "expires_at": "2027-02-21T09:50:00Z",
    "revoked_at": None,
    "rotated_to": None,
}
_NEW_KEY: Document = _KEY | {"last_used_at": None, "key": f"duo_live_{_KEY_ID}_9sT4Qm...x7_5d41402a"}
_STREAM = (
    "retry: 2000\n\nid: 41\nevent: job.started\n"
    f'data: {{"id":41,"type":"job.started","job_id":"{JOB_ID}","at":"2026-11-23T10:00:01+00:00","data":{{}}}}\n\n'
)

FORMS: Mapping[str, Document] = {
    "submit_job": {"content_images": ["cat1.jpg", "cat2.jpg"], "style_images": ["ink.png"], "params": jobs.WISHES},
    **uploads.FORMS,
}
"""Bodies of forms by operation. A file is its name."""

SEVERAL_REQUESTS: Mapping[str, Mapping[str, Document]] = {"submit_job": jobs.BY_KIND}
"""Request bodies in JSON by operation and case, of those that differ much."""

REQUESTS: Mapping[str, Document] = {
    "create_webhook": {"url": "https://example.org/hook", "events": ["job.succeeded", "job.failed"]},
    "change_webhook": {"state": "disabled"},
    "rotate_webhook_secret": {"secret": _SECRET},
    "create_key": {"label": "the gallery's CI", "scopes": ["jobs:write", "loras:read"], "expires_in_days": 90},
    "rotate_key": {"overlap_seconds": 3600},
    **loras.REQUESTS,
    **uploads.REQUESTS,
}
"""Other request bodies by operation."""

ANSWERS: Mapping[tuple[str, int], Document | str] = {
    ("submit_job", 202): _QUEUED,
    ("list_jobs", 200): {
        "items": [_SUMMARY],
        "next_cursor": "AAZCu4nVhgABmrLwfDF9LpsRL2TI0KHl",
        "limit": 20,
        "state": ["queued", "running"],
        "kind": [],
    },
    ("read_job", 200): _SUCCEEDED,
    ("delete_job", 200): _RECEIPT,
    ("delete_job", 202): _RECEIPT | {"state": "deleting", "deleted_at": None},
    ("cancel_job", 202): _RUNNING | {"cancel_requested_at": "2026-11-23T10:01:33Z"},
    ("cancel_job", 200): _CANCELED,
    ("stop_job", 202): _RUNNING | {"stop_requested_at": "2026-11-23T10:01:33Z"},
    ("stop_job", 200): _SUCCEEDED,
    ("retry_job", 202): _QUEUED | {"id": _RETRY_ID, "retry_of": JOB_ID, "urls": _urls(_RETRY_ID)},
    ("stream_events", 200): _STREAM,
    ("read_logs", 200): {
        "items": [
            {
                "id": 7,
                "at": "2026-11-23T10:00:02Z",
                "stage": "content_lora",
                "attempt": 1,
                "level": "info",
                "message": "60 steps at rank 8",
            }
        ],
        "next_after": None,
        "limit": 200,
    },
    ("list_attempts", 200): {
        "items": [
            {
                "stage": "content_lora",
                "attempt": 1,
                "worker": "w1",
                "started_at": "2026-11-23T10:00:01Z",
                "finished_at": "2026-11-23T10:00:40Z",
                "outcome": "succeeded",
                "failure_class": None,
                "resumed_step": None,
                "error": None,
            }
        ]
    },
    ("list_recipes", 200): {
        "recipes": [_RECIPE],
        "merge_recipes": {"duolora": {"steps": 0}},
        "base_models": ["tiny"],
        "default_base_model": "tiny",
    },
    ("create_webhook", 201): _ENDPOINT | {"secret": _SECRET},
    ("list_webhooks", 200): {"items": [_ENDPOINT]},
    ("read_webhook", 200): _ENDPOINT,
    ("change_webhook", 200): _ENDPOINT
    | {"state": "disabled", "disabled_at": "2026-11-23T10:30:00Z", "disabled_reason": "by_owner"},
    ("enable_webhook", 200): _ENDPOINT,
    ("rotate_webhook_secret", 200): _ENDPOINT
    | {"secret": _SECRET, "previous_secret_expires_at": "2026-11-24T10:30:00Z"},
    ("ping_webhook", 202): _DELIVERY | {"type": "webhook.ping", "job_id": None, "attempts": 0, "last_status": None},
    ("list_deliveries", 200): {"items": [_DELIVERY], "next_cursor": None, "limit": 20, "state": None},
    ("read_delivery", 200): _DELIVERY
    | {
        "url": "https://example.org/hook",
        "body": '{"type":"job.succeeded","timestamp":"2026-11-23T10:01:33+00:00","data":{"job_id":"..."}}',
        "log": [
            {
                "attempt": 1,
                "started_at": "2026-11-23T10:01:34Z",
                "duration_ms": 87,
                "status": 502,
                "error": "the server answered 502",
            }
        ],
    },
    ("replay_delivery", 202): _DELIVERY | {"replay_of": _ENDPOINT_ID, "attempts": 0, "last_status": None},
    **loras.ANSWERS,
    **uploads.ANSWERS,
    ("list_keys", 200): {"items": [_KEY]},
    ("create_key", 201): _NEW_KEY,
    ("read_key", 200): _KEY,
    ("rotate_key", 201): _NEW_KEY,
    ("livez", 200): {"status": "ok"},
    ("readyz", 200): {"status": "ok", "database": "ok", "migrations": "ok", "store": "ok", "broker": "ok"},
    ("readyz", 503): {"status": "down", "database": "ok", "migrations": "ok", "store": "down", "broker": "ok"},
}
"""Bodies of answers by operation and status."""

SEVERAL_ANSWERS: Mapping[tuple[str, int], Mapping[str, Document]] = {
    ("submit_job", 200): {"waited_for": _SUCCEEDED, "validate_only": check_example.CHECK}
}
"""Bodies of answers that have several forms, by operation and status."""

_SPECIAL: Mapping[tuple[str, int], str] = {
    ("submit_job", 400): "invalid_idempotency_key",
    ("retry_job", 400): "invalid_idempotency_key",
    ("submit_job", 409): "idempotency_in_flight",
    ("delete_job", 409): "job_not_ended",
    ("stop_job", 409): "nothing_to_keep",
    ("retry_job", 409): "not_retryable",
    ("create_webhook", 409): "too_many_endpoints",
    ("delete_webhook", 409): "job_webhook",
    ("create_key", 409): "too_many_keys",
    ("rotate_key", 409): "key_not_active",
    ("ping_webhook", 409): "endpoint_disabled",
    ("replay_delivery", 409): "endpoint_disabled",
    ("submit_job", 429): "quota_exceeded",
    ("retry_job", 429): "quota_exceeded",
    ("submit_job", 503): "store_unavailable",
    **loras.CODES,
    **uploads.CODES,
}
"""Codes that say more of an operation than the usual one of the status."""
_FIELD: Document = {"pointer": "/params/rank", "detail": "Input should be less than or equal to 128", "code": "less"}
_RETRYABLE = frozenset({"idempotency_in_flight"})


def webhook(kind: str) -> Document:
    """Return an example of what a receiver is sent of a type."""
    if kind not in set(EventType):
        data: Document = {"endpoint_id": _ENDPOINT_ID, "urls": {"self": f"{_ORIGIN}/webhooks/{_ENDPOINT_ID}"}}
        return {"type": kind, "timestamp": "2026-11-23T10:01:33+00:00", "data": data}
    state, told = _EVENTS[EventType(kind)]
    data = {"job_id": JOB_ID, "state": state, **told, "urls": {"self": f"{_ORIGIN}/jobs/{JOB_ID}"}}
    return {"type": kind, "timestamp": "2026-11-23T10:01:33+00:00", "data": data}


_EVENTS: Mapping[EventType, tuple[str, Document]] = {
    EventType.QUEUED: ("queued", {}),
    EventType.STARTED: ("running", {}),
    EventType.STAGE_CHANGED: ("running", {"stage": "merge", "stage_state": "running", "attempt": 1}),
    EventType.PROGRESS: (
        "running",
        {
            "stage": "content_lora",
            "attempt": 1,
            "step": 30,
            "total": 60,
            "fraction": 0.5,
            "loss": 0.118,
            "note": "",
            "steps_per_second": 2.4,
            "eta_seconds": 12.5,
        },
    ),
    EventType.STOP_REQUESTED: ("running", {}),
    EventType.CANCEL_REQUESTED: ("running", {}),
    EventType.SUCCEEDED: ("succeeded", {}),
    EventType.FAILED: ("failed", {"code": "training_diverged", "stage": "content_lora", "attempt": 1}),
    EventType.CANCELED: ("canceled", {}),
    EventType.EXPIRED: ("expired", {}),
}
"""Of each event: the job's state then, and what it tells besides."""


def refusal(operation: str, status: int, path: str) -> tuple[str, Document]:
    """Return the code and an example of the problem that an operation answers with a status."""
    kinds: list[type[ServiceError]] = [ServiceError, *ServiceError.__subclasses__()]
    kind = next(each for each in kinds if each.status == status)
    code = _SPECIAL.get((operation, status), kind.code)
    document = problem(
        code=code,
        title=kind.title,
        status=status,
        retryable=kind.retryable or code in _RETRYABLE,
        instance=path.replace("{job_id}", JOB_ID)
        .replace("{lora_id}", loras.LORA_ID)
        .replace("{upload_id}", uploads.UPLOAD_ID)
        .replace("{webhook_id}", _ENDPOINT_ID)
        .replace("{delivery_id}", _DELIVERY_ID)
        .replace("{key_id}", _KEY_ID),
        request_id="7f3c0d52a9e14b6f",
        errors=[_FIELD] if status == 422 else None,
    )
    return code, document
