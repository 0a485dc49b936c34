"""What a client does with pictures that come before their job, written once for both clients."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api.client.core import Core, Operation, once
from api.client.errors import ServiceRefused
from api.client.files import counted
from api.client.records import JobCheck, JobRecord, Upload
from api.client.submitting import ONLY_LOOK
from api.client.wires import Ask

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from os import PathLike

    import httpx

    Name = str | PathLike[str]

CONTENT_TYPES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".safetensors": "application/octet-stream",
}
"""By the ending of a file's name; the service looks at the file itself."""


class Uploads(Core):
    """Bring pictures first, and submit jobs with them. Parameters are what `JobParams` has, for any kind of job."""

    @Operation
    async def upload(self, path: Name, *, on_upload: Callable[[int, int], object] | None = None) -> Upload:
        """Send one picture, whose `id` is named in `submit`, or one LoRA (`.safetensors`).

        Args:
            path: The file.
            on_upload: Called with the bytes sent so far, and with all.

        Raises:
            ServiceRefused: it cannot be used; `problem["errors"]` says why.
            OSError: the file cannot be read.
        """
        with Path(path).open("rb") as file:
            files = counted([("file", Path(path).name, file)], on_upload)
            answer = await self._request("POST", "/uploads", files=files, data={"purpose": _purpose(path)})
        return Upload.model_validate(answer.json())

    @Operation
    async def upload_by_link(self, path: Name) -> Upload:
        """Send one picture or LoRA to the object store itself, past the service, which looks at it afterwards.

        Raises:
            ServiceRefused: it cannot be used, or the store does not take it.
            OSError: the file cannot be read.
        """
        data = Path(path).read_bytes()
        wish = {
            "purpose": _purpose(path),
            "bytes": len(data),
            "content_type": CONTENT_TYPES.get(Path(path).suffix.lower(), "image/png"),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        link = await self._document("POST", "/uploads/presigned", json=wish)
        options = {"content": data, "headers": link["put_headers"]}
        answer = await self._wire.send(Ask("PUT", link["put_url"], options, of_store=True))
        if answer.is_error:
            raise ServiceRefused(answer.status_code, {"title": f"the store refused {Path(path).name}"})
        return Upload.model_validate(await self._document("POST", f"/uploads/{link['id']}/confirm", repeatable=True))

    @Operation
    async def read_upload(self, upload_id: str) -> Upload:
        """Read one upload."""
        return Upload.model_validate(await self._document("GET", f"/uploads/{upload_id}"))

    @Operation
    async def delete_upload(self, upload_id: str) -> None:
        """Delete one upload before its time; jobs that were submitted with it keep their copies."""
        await self._request("DELETE", f"/uploads/{upload_id}")

    @Operation
    async def submit(
        self,
        *,
        content: Sequence[str] = (),
        style: Sequence[str] = (),
        idempotency_key: str | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> JobRecord:
        """Submit a job with uploads.

        Args:
            content: Ids of uploads: pictures of one subject.
            style: Ids of uploads: pictures in one style.
            idempotency_key: See `Submitting`.
            params: See `Uploads`.

        Raises:
            ServiceRefused: the request is at fault; `problem["errors"]` names the fields.
        """
        wish, headers = _wish(content, style, params), once(idempotency_key)
        return JobRecord.model_validate(
            await self._document("POST", "/jobs", json=wish, headers=headers, repeatable=True)
        )

    @Operation
    async def check(
        self,
        *,
        content: Sequence[str] = (),
        style: Sequence[str] = (),
        params: Mapping[str, Any] | None = None,
    ) -> JobCheck:
        """Ask what `submit` would make of the same, and what of the pictures to think over. Nothing is begun."""
        wish = _wish(content, style, params)
        return JobCheck.model_validate(
            await self._document("POST", "/jobs", json=wish, params=ONLY_LOOK, repeatable=True)
        )

    @Operation
    async def submit_archive(
        self,
        path: Name,
        *,
        idempotency_key: str | None = None,
        on_upload: Callable[[int, int], object] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> JobRecord:
        """Submit a job with one zip: pictures in `content/` and `style/`, and `params.json` if no `params` are given.

        Args:
            path: The zip.
            idempotency_key: See `Submitting`.
            on_upload: Called with the bytes sent so far, and with all.
            params: See `Uploads`.

        Raises:
            ServiceRefused: the request is at fault; `problem["errors"]` names the fields and entries.
            OSError: the file cannot be read.
        """
        answer = await self._send_archive(path, params, on_upload, headers=once(idempotency_key))
        return JobRecord.model_validate(answer.json())

    @Operation
    async def check_archive(
        self,
        path: Name,
        *,
        on_upload: Callable[[int, int], object] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> JobCheck:
        """Ask what `submit_archive` would make of the same, as `check` does. Takes and raises as that does."""
        answer = await self._send_archive(path, params, on_upload, params=ONLY_LOOK)
        return JobCheck.model_validate(answer.json())

    async def _send_archive(
        self,
        path: Name,
        wish: Mapping[str, Any] | None,
        on_upload: Callable[[int, int], object] | None,
        **options: Any,  # noqa: ANN401 - httpx's own words
    ) -> httpx.Response:
        part: list[Any] = [] if wish is None else [("params", (None, json.dumps(wish), "application/json"))]
        with Path(path).open("rb") as file:
            files = [*part, *counted([("archive", Path(path).name, file)], on_upload)]
            return await self._request("POST", "/jobs", files=files, repeatable=True, **options)


def _purpose(path: Name) -> str:
    return "lora" if Path(path).suffix.lower() == ".safetensors" else "image"


def _wish(content: Sequence[str], style: Sequence[str], params: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"content_upload_ids": list(content), "style_upload_ids": list(style), **(params or {})}
