"""How a client brings pictures before the job they are for, written once for both clients."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from api.client.core import Core, Operation
from api.client.errors import ServiceRefused
from api.client.files import counted
from api.client.records import Upload
from api.client.wires import Ask

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    Name = str | PathLike[str]

CONTENT_TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}
"""By the ending of a file's name; the service looks at the file itself."""


class Uploads(Core):
    """Bring pictures."""

    @Operation
    async def upload(self, path: Name, *, on_upload: Callable[[int, int], object] | None = None) -> Upload:
        """Send one picture; jobs take it in place of a file.

        Args:
            path: The file.
            on_upload: Called with the bytes sent so far, and with those of the file.

        Raises:
            ServiceRefused: it cannot be used; `problem["errors"]` says why.
            OSError: the file cannot be read.
        """
        with Path(path).open("rb") as file:
            form = counted([("file", Path(path).name, file)], on_upload)
            return Upload.model_validate(await self._document("POST", "/uploads", files=form))

    @Operation
    async def upload_by_link(self, path: Name) -> Upload:
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
        link = await self._document("POST", "/uploads/presigned", json=wish)
        sending = {"content": data, "headers": link["put_headers"]}
        answer = await self._wire.send(Ask("PUT", link["put_url"], sending, of_store=True))
        if answer.is_error:
            raise ServiceRefused(answer.status_code, {"title": f"the store refused {Path(path).name}"})
        return Upload.model_validate(await self._document("POST", f"/uploads/{link['id']}/confirm", repeatable=True))

    @Operation
    async def read_upload(self, upload_id: str) -> Upload:
        """Read one."""
        return Upload.model_validate(await self._document("GET", f"/uploads/{upload_id}"))

    @Operation
    async def delete_upload(self, upload_id: str) -> None:
        """Delete one before its time; jobs that were submitted with it keep their copies."""
        await self._request("DELETE", f"/uploads/{upload_id}")
