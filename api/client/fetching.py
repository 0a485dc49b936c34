"""How a client fetches files from the store, each checked against what the service announced."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from api.client.core import Core
from api.client.errors import DamagedDownload, ServiceRefused
from api.client.wires import Ask

if TYPE_CHECKING:
    from api.client.files import Meter


class Announced(Protocol):
    """A file that the service has told of."""

    @property
    def filename(self) -> str:
        """Its name, which may be anything."""

    @property
    def sha256(self) -> str:
        """Of its content, hexadecimal."""


class Fetching(Core):
    """Fetches files."""

    async def _fetch(self, announced: Announced, url: str, folder: Path, meter: Meter) -> Path:
        """Fetch a file into a folder, whole or not at all.

        Raises:
            DamagedDownload: it is not what the service announced.
            ServiceRefused: the store does not give it.
        """
        path = folder / Path(announced.filename).name  # a name from outside must not lead out of the folder
        partial = path.with_name(path.name + ".part")
        digest = hashlib.sha256()
        answer = await self._wire.open(Ask("GET", url, of_store=True), "bytes")
        try:
            if answer.response.is_error:
                raise ServiceRefused(answer.response.status_code, {"title": f"the store refused {announced.filename}"})
            with partial.open("wb") as file:
                while (chunk := await self._wire.read_on(answer)) is not None:
                    digest.update(chunk)
                    file.write(chunk)
                    meter.add(len(chunk))
        finally:
            await self._wire.drop(answer)
        if digest.hexdigest() != announced.sha256:
            partial.unlink()
            raise DamagedDownload(f"{announced.filename} has SHA-256 {digest.hexdigest()}, not {announced.sha256}")
        return partial.replace(path)
