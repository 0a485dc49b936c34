"""What a client does with the library of LoRAs, written once for both clients."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from api.client.core import Operation, Stream
from api.client.fetching import Fetching
from api.client.files import Meter, counted
from api.client.records import Lora, LoraFile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from os import PathLike

    Name = str | PathLike[str]


class Loras(Fetching):
    """Find, bring, keep and fetch LoRAs."""

    @Stream
    async def loras(
        self,
        *,
        role: str | Sequence[str] = (),
        tag: str | Sequence[str] = (),
        job_id: str | None = None,
        base_model: str | None = None,
        page_size: int = 100,
    ) -> AsyncIterator[Lora]:
        """The account's LoRAs, newest first, fetched page after page. They come without links to their files.

        Args:
            role: Only those that hold one of these: `content`, `style`, `merged`, `other`.
            tag: Only those that have all of these.
            job_id: Only those that this job made.
            base_model: Only those for this base.
            page_size: LoRAs of one request, 100 at most.
        """
        query: dict[str, Any] = {"limit": page_size, "role": _several(role), "tag": _several(tag)}
        query |= {name: value for name, value in (("job_id", job_id), ("base_model", base_model)) if value is not None}
        async for item in self._pages("/loras", query):
            yield Lora.model_validate(item)

    @Operation
    async def lora(self, lora_id: str) -> Lora:
        """Read one, with links to its files."""
        return await self._lora(lora_id)

    async def _lora(self, lora_id: str) -> Lora:
        return Lora.model_validate(await self._document("GET", f"/loras/{lora_id}"))

    @Operation
    async def upload_lora(
        self,
        path: Name,
        *,
        name: str | None = None,
        tags: Sequence[str] = (),
        role: str | None = None,
        base_model: str | None = None,
        trigger: str | None = None,
        on_upload: Callable[[int, int], object] | None = None,
    ) -> Lora:
        """Send a LoRA that was trained elsewhere.

        Args:
            path: A safetensors file.
            name: Left out, that of the file.
            tags: Of your choice.
            role: What it holds: `content`, `style`, `merged`, `other`.
            base_model: What it was trained on, as jobs name it.
            trigger: Words that call it.
            on_upload: Called with the bytes sent so far, and with those of the file.

        Raises:
            ServiceRefused: the file is none of a LoRA, or something said of it is refused.
            OSError: it cannot be read.
        """
        given = {"name": name, "role": role, "base_model": base_model, "trigger": trigger, "tags": list(tags) or None}
        words = {key: value for key, value in given.items() if value is not None}
        with Path(path).open("rb") as file:
            form = counted([("file", Path(path).name, file)], on_upload)
            return Lora.model_validate(await self._document("POST", "/loras", files=form, data=words))

    @Operation
    async def update_lora(
        self, lora_id: str, *, name: str | None = None, tags: Sequence[str] | None = None, kept: bool | None = None
    ) -> Lora:
        """Change its name or all of its tags; `kept=True` lets a job's LoRA stay when the job goes."""
        given = {"name": name, "tags": None if tags is None else list(tags), "kept": kept}
        wish = {key: value for key, value in given.items() if value is not None}
        return Lora.model_validate(await self._document("PATCH", f"/loras/{lora_id}", json=wish, repeatable=True))

    @Operation
    async def delete_lora(self, lora_id: str) -> None:
        """Delete one with its own files; a job's artifacts stay the job's."""
        await self._request("DELETE", f"/loras/{lora_id}")

    @Operation
    async def download_lora(
        self,
        lora_id: str,
        folder: Name,
        *,
        format: str | None = None,  # noqa: A002 - the service's own word
        on_download: Callable[[int, int], object] | None = None,
    ) -> dict[str, Path]:
        """Fetch the files of one into a folder, each checked against its SHA-256.

        Args:
            lora_id: Which.
            folder: Made if need be.
            format: Only the file in this: `diffusers`, `kohya`, `peft`, `other`.
            on_download: Called with the bytes fetched so far, and with those of all files.

        Returns:
            Where each file is, by its format.

        Raises:
            ValueError: it has no file in that format; the message names those it has.
            DamagedDownload: a file is not what the service announced.
        """
        found = await self._lora(lora_id)
        files: list[LoraFile] = [file for file in found.files if format in {None, file.format}]
        if not files:
            there = ", ".join(file.format for file in found.files)
            raise ValueError(f"LoRA {lora_id} has no file in the format {format}; it has {there}")
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        meter = Meter(sum(file.bytes for file in files), on_download)
        return {file.format: await self._fetch(file, str(file.url), target, meter) for file in files}


def _several(values: str | Sequence[str]) -> list[str]:
    return [values] if isinstance(values, str) else list(values)
