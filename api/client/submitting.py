"""How a client submits jobs of every kind, written once for both clients."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import httpx

from api.client.core import Core, Operation, once
from api.client.files import counted
from api.client.records import GenerateWishes, JobRecord, MergeWishes, TrainWishes, Upload, Wishes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from os import PathLike

    Name = str | PathLike[str]
    Picture = Name | Upload


class Submitting(Core):
    """Submit jobs.

    All take `idempotency_key`, of the caller's choice and new for each job: the same call with the same key again, in
    another process say, returns the first job in place of a second one. Left out, each call has one of its own, so that
    it may be repeated where the network failed. `wait_s` gives the job so long to end before it is returned; the
    service waits for a minute at most. `on_upload` is called with the bytes of the files sent so far, and with those of
    all.
    """

    @Operation
    async def personalize(
        self,
        *,
        content: Sequence[Picture],
        style: Sequence[Picture],
        subject_class: str,
        idempotency_key: str | None = None,
        wait_s: int = 0,
        on_upload: Callable[[int, int], object] | None = None,
        **wishes: Unpack[Wishes],
    ) -> JobRecord:
        """Submit a job: learn a subject and a style, and merge them.

        Args:
            content: Pictures of one subject, 1 to 20: files, or all of both sides what `upload` returned.
            style: Pictures in one style, likewise.
            subject_class: What the subject is, in a word or two: dog, backpack, teapot.
            idempotency_key: See `Submitting`, as for the next two.
            wait_s: How long the job may take to end.
            on_upload: Hears how many bytes were sent.
            wishes: See `Wishes`.

        Raises:
            ServiceRefused: the request is at fault; `problem["errors"]` names the fields.
            OSError: a file cannot be read.
        """
        params = {"subject_class": subject_class, **wishes}
        return await self._submit(
            params, content=content, style=style, idempotency_key=idempotency_key, wait_s=wait_s, on_upload=on_upload
        )

    @Operation
    async def train(
        self,
        *,
        content: Sequence[Picture] = (),
        style: Sequence[Picture] = (),
        idempotency_key: str | None = None,
        wait_s: int = 0,
        on_upload: Callable[[int, int], object] | None = None,
        **wishes: Unpack[TrainWishes],
    ) -> JobRecord:
        """Submit a job: learn a subject, or a style, or both, and merge nothing. Takes and raises as `personalize`."""
        params = {"kind": "train", **wishes}
        return await self._submit(
            params, content=content, style=style, idempotency_key=idempotency_key, wait_s=wait_s, on_upload=on_upload
        )

    @Operation
    async def merge(
        self,
        *,
        content_lora_id: str,
        style_lora_id: str,
        content: Sequence[Picture] = (),
        style: Sequence[Picture] = (),
        idempotency_key: str | None = None,
        wait_s: int = 0,
        on_upload: Callable[[int, int], object] | None = None,
        **wishes: Unpack[MergeWishes],
    ) -> JobRecord:
        """Submit a job: make one LoRA of two that the account has.

        Pictures are sent for a `merge_recipe` that learns from them, and only for such. Takes and raises otherwise as
        `personalize`.
        """
        params = {"kind": "merge", "content_lora_id": content_lora_id, "style_lora_id": style_lora_id, **wishes}
        return await self._submit(
            params, content=content, style=style, idempotency_key=idempotency_key, wait_s=wait_s, on_upload=on_upload
        )

    @Operation
    async def generate(
        self,
        *,
        prompts: Sequence[str],
        loras: Mapping[str, float] | None = None,
        idempotency_key: str | None = None,
        wait_s: int = 0,
        **wishes: Unpack[GenerateWishes],
    ) -> JobRecord:
        """Submit a job: draw pictures of prompts.

        Args:
            prompts: What to draw, 1 to 16.
            loras: Ids of LoRAs that the account has, and their strengths: 4 at most. None: the base alone draws.
            idempotency_key: See `Submitting`, as for the next.
            wait_s: How long the job may take to end.
            wishes: See `GenerateWishes`.

        Raises:
            ServiceRefused: the request is at fault; `problem["errors"]` names the fields.
        """
        used = [{"lora_id": lora_id, "strength": strength} for lora_id, strength in (loras or {}).items()]
        params = {"kind": "generate", "prompts": list(prompts), "loras": used, **wishes}
        return await self._submit(params, idempotency_key=idempotency_key, wait_s=wait_s)

    async def _submit(
        self,
        params: Mapping[str, Any],
        *,
        content: Sequence[Picture] = (),
        style: Sequence[Picture] = (),
        idempotency_key: str | None,
        wait_s: int,
        on_upload: Callable[[int, int], object] | None = None,
    ) -> JobRecord:
        sides = {"content": content, "style": style}
        pictures = [picture for side in sides.values() for picture in side]
        uploads = [picture for picture in pictures if isinstance(picture, Upload)]
        if uploads and len(uploads) < len(pictures):
            raise ValueError("some pictures are files and some are uploads: upload all of them, or none")
        if uploads:
            ids = {
                f"{side}_upload_ids": [each.id for each in of_side if isinstance(each, Upload)]
                for side, of_side in sides.items()
            }
            return await self._post({"json": {**params, **ids}}, idempotency_key, wait_s)
        with ExitStack() as stack:
            files = [
                (f"{side}_images", path.name, stack.enter_context(path.open("rb")))
                for side, of_side in sides.items()
                for path in (Path(each) for each in of_side if not isinstance(each, Upload))
            ]
            parts = [("params", (None, json.dumps(params), "application/json")), *counted(files, on_upload)]
            return await self._post({"files": parts}, idempotency_key, wait_s)

    @Operation
    async def submit_archive(
        self,
        path: Name,
        *,
        idempotency_key: str | None = None,
        wait_s: int = 0,
        on_upload: Callable[[int, int], object] | None = None,
        **wishes: Unpack[Wishes],
    ) -> JobRecord:
        """Submit a job with one zip: pictures in `content/` and `style/`, and `params.json` if no wishes are given.

        Takes and raises otherwise as `personalize`.
        """
        with Path(path).open("rb") as file:
            parts: list[Any] = [*counted([("archive", Path(path).name, file)], on_upload)]
            if wishes:
                parts.append(("params", (None, json.dumps(wishes), "application/json")))
            return await self._post({"files": parts}, idempotency_key, wait_s)

    async def _post(self, body: dict[str, Any], key: str | None, wait_s: int) -> JobRecord:
        """Send a submission; it may be sent again."""
        headers = {**once(key), **prefer(wait_s)}
        answer = await self._request(
            "POST", "/jobs", headers=headers, timeout=self._patient(wait_s), repeatable=True, **body
        )
        return JobRecord.model_validate(answer.json())

    def _patient(self, wait_s: int) -> httpx.Timeout:
        """Give an answer its usual time beside that for which it was asked to wait."""
        usual = self._usual
        read = None if usual.read is None else usual.read + wait_s
        return httpx.Timeout(connect=usual.connect, read=read, write=usual.write, pool=usual.pool)


def prefer(wait_s: int) -> dict[str, str]:
    """Return the field that asks the service to wait so long."""
    return {"Prefer": f"wait={wait_s}"} if wait_s > 0 else {}
