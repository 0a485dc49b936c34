"""Fetching files by signed links, written once for both clients."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from api.client.core import Core
from api.client.errors import DamagedDownload, ServiceRefused
from api.client.wires import Ask

if TYPE_CHECKING:
    from api.client.files import Tally
    from api.client.records import Download


class Fetching(Core):
    """Writes what the store has into folders."""

    async def _fetch(self, file: Download, folder: Path, tally: Tally) -> Path:
        path = folder / Path(file.filename).name  # a name from outside must not lead out of the folder
        partial = path.with_name(path.name + ".part")
        digest = hashlib.sha256()
        answer = await self._wire.open(Ask("GET", file.url, of_store=True), "bytes")
        try:
            if answer.response.is_error:
                raise ServiceRefused(answer.response.status_code, {"title": f"the store refused {file.filename}"})
            with partial.open("wb") as written:
                while (chunk := await self._wire.read_on(answer)) is not None:
                    digest.update(chunk)
                    written.write(chunk)
                    tally.add(len(chunk))
            if digest.hexdigest() != file.sha256:
                raise DamagedDownload(f"{file.filename} has SHA-256 {digest.hexdigest()}, not {file.sha256}")
            return partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)  # of a whole file nothing is there any more
            await self._wire.drop(answer)
