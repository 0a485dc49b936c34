"""The layout of keys in the object store: whose an object is, and what of. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import uuid


def job_prefix(account_id: uuid.UUID, job_id: uuid.UUID) -> str:
    """Return what the keys of all objects of a job begin with."""
    return f"accounts/{account_id}/jobs/{job_id}/"


def input_key(account_id: uuid.UUID, job_id: uuid.UUID, side: str, ordinal: int, sha256: str) -> str:
    """Return the key of a job's input picture."""
    return f"{job_prefix(account_id, job_id)}inputs/{side}/{ordinal}-{sha256[:12]}.png"


def upload_prefix(account_id: uuid.UUID, upload_id: uuid.UUID) -> str:
    """Return what the keys of all objects of an upload begin with."""
    return f"accounts/{account_id}/uploads/{upload_id}/"


def received_key(account_id: uuid.UUID, upload_id: uuid.UUID) -> str:
    """Return the key to which a caller writes by a signed link. Nothing but a confirmation reads it."""
    return f"{upload_prefix(account_id, upload_id)}received"


def upload_key(account_id: uuid.UUID, upload_id: uuid.UUID, writing: uuid.UUID) -> str:
    """Return a key for what is kept of an upload; `writing` is of one act only, as in `lora_key`."""
    return f"{upload_prefix(account_id, upload_id)}{writing}/ready"


def job_lora_key(account_id: uuid.UUID, job_id: uuid.UUID, role: str, ordinal: int, sha256: str) -> str:
    """Return the key of a job's own copy of a LoRA that it works with."""
    return f"{job_prefix(account_id, job_id)}inputs/loras/{role}-{ordinal}-{sha256[:12]}.safetensors"


def artifact_key(account_id: uuid.UUID, job_id: uuid.UUID, stage: str, attempt: int, filename: str) -> str:
    """Return the key of an artifact; it holds the attempt, so that a zombie can overwrite nothing."""
    return f"{job_prefix(account_id, job_id)}{stage}/{attempt}/{filename}"


def checkpoint_key(
    account_id: uuid.UUID, job_id: uuid.UUID, stage: str, attempt: int, *, step: int, filename: str
) -> str:
    """Return the key of a checkpoint's file, beside the artifacts of the attempt that wrote it."""
    return artifact_key(account_id, job_id, stage, attempt, f"checkpoints/{step}/{filename}")


def loras_prefix(account_id: uuid.UUID, lora_id: uuid.UUID) -> str:
    """Return what the keys of all objects begin with that a LoRA of the library has of its own."""
    return f"accounts/{account_id}/loras/{lora_id}/"


def lora_key(account_id: uuid.UUID, lora_id: uuid.UUID, writing: uuid.UUID, filename: str) -> str:
    """Return the key of a LoRA's file; `writing` is of one act only, so that no act overwrites another's."""
    return f"{loras_prefix(account_id, lora_id)}{writing}/{filename}"
