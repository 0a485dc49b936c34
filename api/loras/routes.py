"""Paths of the library: HTTP in, HTTP out."""

from __future__ import annotations

import uuid
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse
from starlette.concurrency import run_in_threadpool

from api.deps import REPLAYED, IdempotencyKey, ReadsLoras, ServicesDep, WritesLoras
from api.documents import SmallDocuments, answered, described
from api.forms import received_form
from api.loras.form import MAX_FILES, REMEDY, openapi_body, read_form
from api.loras.models import LoraFormat, LoraRole
from api.loras.schemas import MAX_TAG_LENGTH, MAX_TAGS, LoraPage, LoraPatch, LoraRead
from api.problems import problem_responses

router = APIRouter(tags=["loras"])
documents = APIRouter(route_class=SmallDocuments)

TagFilter = Annotated[str, Query(max_length=MAX_TAG_LENGTH)]


@router.post(
    "/loras",
    operation_id="upload_lora",
    summary="Upload a LoRA",
    status_code=HTTPStatus.CREATED,
    response_model=LoraRead,
    responses={
        201: {"description": "The LoRA.", "headers": described({"Location": "The LoRA's path."}) | REPLAYED},
        **problem_responses(400, 401, 409, 413, 415, 422, 429, 500, 503),
    },
    openapi_extra=openapi_body(),
)
async def upload_lora(request: Request, services: ServicesDep, caller: WritesLoras, key: IdempotencyKey) -> Response:
    """Send a LoRA that was trained elsewhere. Its header is checked now, its numbers and its base when it is used."""
    async with received_form(request, max_files=MAX_FILES, remedy=REMEDY) as form:
        made = await run_in_threadpool(lambda: services.loras.upload(caller, read_form(form), key))
    return answered(made.body, status=made.status, headers=made.headers)


@documents.get(
    "/loras", operation_id="list_loras", summary="List LoRAs", responses=problem_responses(401, 422, 500, 503)
)
def list_loras(
    services: ServicesDep,
    caller: ReadsLoras,
    *,
    cursor: Annotated[str | None, Query(max_length=100, description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    role: Annotated[list[LoraRole], Query(description="Only those that hold this; several may be given.")] = [],  # noqa: B006 - FastAPI copies it
    tag: Annotated[
        list[TagFilter], Query(max_length=MAX_TAGS, description="Only those that have this tag, and each other given.")
    ] = [],  # noqa: B006
    job_id: Annotated[uuid.UUID | None, Query(description="Only those that this job made.")] = None,
    base_model: Annotated[str | None, Query(max_length=100, description="Only those for this base.")] = None,
) -> LoraPage:
    """List the LoRAs that the caller's jobs have made and those that were sent in, newest first."""
    return services.loras.page(
        caller, cursor=cursor, limit=limit, roles=role, tags=tag, job_id=job_id, base_model=base_model
    )


@documents.get(
    "/loras/{lora_id:uuid}",
    operation_id="read_lora",
    summary="Read a LoRA",
    responses=problem_responses(401, 404, 500, 503),
)
def read_lora(services: ServicesDep, caller: ReadsLoras, lora_id: uuid.UUID) -> LoraRead:
    """Read what is known of a LoRA, with links to its files."""
    return services.loras.read(caller, lora_id)


@documents.get(
    "/loras/{lora_id:uuid}/file",
    operation_id="download_lora",
    summary="Download a LoRA",
    status_code=HTTPStatus.FOUND,
    response_class=RedirectResponse,
    responses={
        302: {
            "description": "Where the file is; the link works without a key, for a while.",
            "headers": {"Location": {"description": "The link.", "schema": {"type": "string"}}},
        },
        **problem_responses(401, 404, 422, 500, 503),
    },
)
def download_lora(
    services: ServicesDep,
    caller: ReadsLoras,
    lora_id: uuid.UUID,
    *,
    format: Annotated[  # noqa: A002 - the name on the wire
        LoraFormat | None, Query(description="404 if there is none in it. Left out: the one that most programs read.")
    ] = None,
) -> RedirectResponse:
    """Go to a file of a LoRA. One that was sent in has the format in which it came, and no other."""
    link = services.loras.link(caller, lora_id, format)
    return RedirectResponse(link, status_code=HTTPStatus.FOUND, headers={"Cache-Control": "private, no-store"})


@documents.patch(
    "/loras/{lora_id:uuid}",
    operation_id="change_lora",
    summary="Change or keep a LoRA",
    responses=problem_responses(401, 404, 409, 413, 415, 422, 429, 500, 503),
)
def change_lora(services: ServicesDep, caller: WritesLoras, lora_id: uuid.UUID, wish: LoraPatch) -> LoraRead:
    """Change its name or its tags, or keep what a job made: its files are copied and stay when the job is deleted."""
    return services.loras.change(caller, lora_id, wish)


@documents.delete(
    "/loras/{lora_id:uuid}",
    operation_id="delete_lora",
    summary="Delete a LoRA",
    status_code=HTTPStatus.NO_CONTENT,
    responses=problem_responses(401, 404, 500, 503),
)
def delete_lora(services: ServicesDep, caller: WritesLoras, lora_id: uuid.UUID) -> None:
    """Delete a LoRA with its own files. Of one that a job made and nobody kept, the job's artifacts stay the job's."""
    services.loras.delete(caller, lora_id)


router.include_router(documents)
