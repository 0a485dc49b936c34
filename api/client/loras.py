"""What a client does with the library, written once for both clients."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from api.client.core import Operation, Stream, once, several
from api.client.errors import MissingFormat
from api.client.fetching import Fetching
from api.client.files import Tally, counted
from api.client.records import Lora, LoraFile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from os import PathLike

    Name = str | PathLike[str]


class Loras(Fetching):
    """List, send in, rename, keep, delete and fetch LoRAs."""

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
        """All LoRAs of the key's account, newest first, fetched page after page. They come without links.

        Args:
            role: Only those that hold one of these: content, style, merged, other.
            tag: Only those that have all of these tags.
            job_id: Only those that this job made.
            base_model: Only those for this base.
            page_size: LoRAs of one request, 100 at most.
        """
        given = {"job_id": job_id, "base_model": base_model}
        query = {"limit": page_size, "role": several(role), "tag": several(tag)}
        async for item in self._pages("/loras", query | {name: value for name, value in given.items() if value}):
            yield Lora.model_validate(item)

    @Operation
    async def lora(self, lora_id: str) -> Lora:
        """Read one, with links to its files."""
        return await self._read_lora(lora_id)

    @Operation
    async def upload_lora(
        self,
        file: Name,
        *,
        name: str | None = None,
        tags: Sequence[str] = (),
        role: str | None = None,
        base_model: str | None = None,
        trigger: str | None = None,
        idempotency_key: str | None = None,
        on_upload: Callable[[int, int], object] | None = None,
    ) -> Lora:
        """Send a LoRA that was trained elsewhere, a safetensors file. Called twice without a key, there are two.

        Args:
            file: Where it is.
            name: What to call it; left out, as the file is called.
            tags: To find it by.
            role: What it holds: content, style, merged or other.
            base_model: What it was trained on, as jobs name it.
            trigger: Words that call it.
            idempotency_key: Of the caller's choice: the same call with it again returns the first LoRA.
            on_upload: Called with the bytes sent so far, and with those of the file.

        Raises:
            ServiceRefused: it is no LoRA (`invalid_lora` of `/file`), or a quota is used up (`quota_exceeded`).
            OSError: the file cannot be read.
        """
        given = {"name": name, "role": role, "base_model": base_model, "trigger": trigger}
        said: dict[str, Any] = {word: value for word, value in given.items() if value is not None}
        path = Path(file)
        with path.open("rb") as source:
            files = counted([("file", path.name, source)], on_upload)
            form = {**said, "tags": list(tags)}
            headers = once(idempotency_key)
            made = await self._document("POST", "/loras", files=files, data=form, headers=headers, repeatable=True)
        return Lora.model_validate(made)

    @Operation
    async def update_lora(
        self, lora_id: str, *, name: str | None = None, tags: Sequence[str] | None = None, keep: bool = False
    ) -> Lora:
        """Change what is given; with `keep` it stays when the job that made it is deleted.

        Raises:
            ServiceRefused: with code `quota_exceeded` if there is no room to keep it.
        """
        given = {"name": name, "tags": None if tags is None else list(tags), "kept": keep or None}
        wish = {word: value for word, value in given.items() if value is not None}
        return Lora.model_validate(await self._document("PATCH", f"/loras/{lora_id}", json=wish, repeatable=True))

    @Operation
    async def delete_lora(self, lora_id: str) -> None:
        """Delete one with the files of its own; a job's files stay the job's."""
        await self._request("DELETE", f"/loras/{lora_id}")

    @Operation
    async def download_lora(
        self,
        lora_id: str,
        folder: Name,
        *,
        formats: str | Sequence[str] = (),
        on_download: Callable[[int, int], object] | None = None,
    ) -> dict[str, Path]:
        """Fetch the files of a LoRA into a folder, each checked against its SHA-256.

        Args:
            lora_id: Which LoRA.
            folder: Made if need be.
            formats: Only those in one of these; none: all there are.
            on_download: Called with the bytes fetched so far, and with those of all files.

        Returns:
            Where each is, by its format (`diffusers`, `kohya`, `peft`, `other`).

        Raises:
            MissingFormat: there is no file in one of the formats.
            DamagedDownload: a file is not what the service announced.
        """
        files = _chosen(await self._read_lora(lora_id), several(formats))
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        tally = Tally(sum(file.bytes for file in files), on_download)
        return {file.format: await self._fetch(file, target, tally) for file in files}

    async def _read_lora(self, lora_id: str) -> Lora:
        return Lora.model_validate(await self._document("GET", f"/loras/{lora_id}"))


def _chosen(lora: Lora, formats: Sequence[str]) -> list[LoraFile]:
    there = [file.format for file in lora.files]
    missing = [each for each in formats if each not in there]
    if missing:
        has = ", ".join(there)
        raise MissingFormat(f"LoRA {lora.id} has no file in the format {', '.join(missing)}; it has {has}")
    return [file for file in lora.files if not formats or file.format in formats]
