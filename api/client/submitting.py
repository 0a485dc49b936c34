"""How a client submits jobs of every kind, written once for both clients."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import httpx

from api.client.core import Core, Operation, once
from api.client.files import counted
from api.client.records import GenerateWishes, JobCheck, JobRecord, MergeWishes, TrainWishes, Wishes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from os import PathLike

    Name = str | PathLike[str]

ONLY_LOOK = {"validate_only": "true"}
"""The query of a submission of which nothing is to be begun."""


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
        content: Sequence[Name],
        style: Sequence[Name],
        subject_class: str,
        idempotency_key: str | None = None,
        wait_s: int = 0,
        on_upload: Callable[[int, int], object] | None = None,
        **wishes: Unpack[Wishes],
    ) -> JobRecord:
        """Submit a job: learn a subject and a style, and merge them.

        Args:
            content: Pictures of one subject, 1 to 20 files.
            style: Pictures in one style, 1 to 20 files.
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
        content: Sequence[Name] = (),
        style: Sequence[Name] = (),
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
        content: Sequence[Name] = (),
        style: Sequence[Name] = (),
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

    @Operation
    async def submit_files(
        self,
        *,
        content: Sequence[Name] = (),
        style: Sequence[Name] = (),
        idempotency_key: str | None = None,
        wait_s: int = 0,
        on_upload: Callable[[int, int], object] | None = None,
        params: Mapping[str, Any],
    ) -> JobRecord:
        """Submit a job of the kind that `params` names. These are what `JobParams` has; otherwise as `personalize`."""
        return await self._submit(
            params, content=content, style=style, idempotency_key=idempotency_key, wait_s=wait_s, on_upload=on_upload
        )

    @Operation
    async def check_files(
        self,
        *,
        content: Sequence[Name] = (),
        style: Sequence[Name] = (),
        on_upload: Callable[[int, int], object] | None = None,
        params: Mapping[str, Any],
    ) -> JobCheck:
        """Ask what `submit_files` would make of the same, and what of the pictures to think over. Nothing is begun.

        Raises:
            ServiceRefused: the parameters are at fault; `problem["errors"]` names the fields.
            OSError: a file cannot be read.
        """
        answer = await self._send(params, content=content, style=style, on_upload=on_upload, params=ONLY_LOOK)
        return JobCheck.model_validate(answer.json())

    async def _submit(
        self,
        params: Mapping[str, Any],
        *,
        content: Sequence[Name] = (),
        style: Sequence[Name] = (),
        idempotency_key: str | None,
        wait_s: int,
        on_upload: Callable[[int, int], object] | None = None,
    ) -> JobRecord:
        answer = await self._send(
            params,
            content=content,
            style=style,
            on_upload=on_upload,
            headers={**once(idempotency_key), **prefer(wait_s)},
            timeout=self._patient(wait_s),
        )
        return JobRecord.model_validate(answer.json())

    async def _send(
        self,
        wish: Mapping[str, Any],
        *,
        content: Sequence[Name],
        style: Sequence[Name],
        on_upload: Callable[[int, int], object] | None,
        **options: Any,  # noqa: ANN401 - httpx's own words
    ) -> httpx.Response:
        """Send a form with pictures and parameters."""
        with ExitStack() as stack:
            files = [
                (field, path.name, stack.enter_context(path.open("rb")))
                for field, names in (("content_images", content), ("style_images", style))
                for path in map(Path, names)
            ]
            form = [("params", (None, json.dumps(wish), "application/json")), *counted(files, on_upload)]
            return await self._request("POST", "/jobs", files=form, repeatable=True, **options)

    def _patient(self, wait_s: int) -> httpx.Timeout:
        """Give an answer its usual time beside that for which it was asked to wait."""
        usual = self._usual
        read = None if usual.read is None else usual.read + wait_s
        return httpx.Timeout(connect=usual.connect, read=read, write=usual.write, pool=usual.pool)


def prefer(wait_s: int) -> dict[str, str]:
    """Return the field that asks the service to wait so long."""
    return {"Prefer": f"wait={wait_s}"} if wait_s > 0 else {}
