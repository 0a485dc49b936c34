"""What the Python client does with pictures that come before their job. Needs only httpx and pydantic."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Unpack

from api.client_errors import ServiceRefused
from api.client_records import Job, JobCheck, Upload

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    import httpx

    from api.client_records import Wishes

    Name = str | PathLike[str]

CONTENT_TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}
"""By the ending of a file's name; the service looks at the file itself."""


class _Connected(Protocol):
    """A client, as far as it is needed here."""

    _store: httpx.Client

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:  # noqa: ANN401 - httpx's own words
        """Ask the service; an error is raised."""


class Uploads:
    """The part of a client that brings pictures first and submits jobs with them."""

    def upload(self: _Connected, path: Name) -> Upload:
        """Send one picture; name its `id` in `submit`.

        Raises:
            ServiceRefused: it cannot be used; `problem["errors"]` says why.
            OSError: the file cannot be read.
        """
        with Path(path).open("rb") as file:
            answer = self._send("POST", "/uploads", files={"file": (Path(path).name, file)})
        return Upload.model_validate(answer.json())

    def upload_by_link(self: _Connected, path: Name) -> Upload:
        """Send one picture to the object store itself, past the service, which looks at it afterwards.

        Raises:
            ServiceRefused: it cannot be used, or the store does not take it.
            OSError: the file cannot be read.
        """
        data = Path(path).read_bytes()
        wish = {
            "bytes": len(data),
            "content_type": CONTENT_TYPES.get(Path(path).suffix.lower(), "image/png"),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        link = self._send("POST", "/uploads/presigned", json=wish).json()
        answer = self._store.put(link["put_url"], content=data, headers=link["put_headers"])
        if answer.is_error:
            raise ServiceRefused(answer.status_code, {"title": f"the store refused {Path(path).name}"})
        return Upload.model_validate(self._send("POST", f"/uploads/{link['id']}/confirm").json())

    def read_upload(self: _Connected, upload_id: str) -> Upload:
        """Read one upload."""
        return Upload.model_validate(self._send("GET", f"/uploads/{upload_id}").json())

    def delete_upload(self: _Connected, upload_id: str) -> None:
        """Delete one upload before its time; jobs that were submitted with it keep their copies."""
        self._send("DELETE", f"/uploads/{upload_id}")

    def submit(
        self: _Connected,
        *,
        content: Sequence[str],
        style: Sequence[str],
        subject_class: str | None = None,
        idempotency_key: str | None = None,
        **wishes: Unpack[Wishes],
    ) -> Job:
        """Submit a job with uploads.

        Args:
            content: Ids of uploads: pictures of one subject.
            style: Ids of uploads: pictures in one style.
            subject_class: What the subject is, in a word or two.
            idempotency_key: See `personalize`.
            wishes: See `Wishes`.

        Raises:
            ServiceRefused: the request is at fault; `problem["errors"]` names the fields.
        """
        document = _document(content, style, subject_class, wishes)
        answer = self._send("POST", "/jobs", json=document, headers=_once(idempotency_key))
        return Job.model_validate(answer.json())

    def check(
        self: _Connected,
        *,
        content: Sequence[str],
        style: Sequence[str],
        subject_class: str | None = None,
        **wishes: Unpack[Wishes],
    ) -> JobCheck:
        """Ask what `submit` would make of the same, and what of the pictures to think over. Nothing is begun."""
        document = _document(content, style, subject_class, wishes)
        answer = self._send("POST", "/jobs", json=document, params={"validate_only": "true"})
        return JobCheck.model_validate(answer.json())

    def submit_archive(
        self: _Connected, path: Name, *, idempotency_key: str | None = None, **wishes: Unpack[Wishes]
    ) -> Job:
        """Submit a job with one zip: pictures in `content/` and `style/`, and `params.json` if no wishes are given.

        Raises:
            ServiceRefused: the request is at fault; `problem["errors"]` names the fields and entries.
            OSError: the file cannot be read.
        """
        with Path(path).open("rb") as file:
            files: list[tuple[str, Any]] = [("archive", (Path(path).name, file, "application/zip"))]
            if wishes:
                files.append(("params", (None, json.dumps(wishes), "application/json")))
            answer = self._send("POST", "/jobs", files=files, headers=_once(idempotency_key))
        return Job.model_validate(answer.json())


def _document(
    content: Sequence[str], style: Sequence[str], subject_class: str | None, wishes: Wishes
) -> dict[str, Any]:
    subject = {} if subject_class is None else {"subject_class": subject_class}
    return {"content_upload_ids": list(content), "style_upload_ids": list(style), **subject, **wishes}


def _once(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Idempotency-Key": key}
