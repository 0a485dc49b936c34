"""Paths of uploads: HTTP in, HTTP out."""

from __future__ import annotations

import uuid
from http import HTTPStatus

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from api.deps import ReadsUploads, ServicesDep, WritesUploads
from api.documents import SmallDocuments
from api.forms import received_form
from api.problems import problem_responses
from api.uploads.form import MAX_FILES, REMEDY, openapi_body, to_file
from api.uploads.schemas import PresignedUpload, UploadAnnouncement, UploadRead
from api.uploads.service import upload_path

router = APIRouter(tags=["uploads"])
documents = APIRouter(route_class=SmallDocuments)


@router.post(
    "/uploads",
    operation_id="create_upload",
    summary="Upload a picture",
    status_code=HTTPStatus.CREATED,
    responses=problem_responses(400, 401, 413, 415, 422, 429, 500, 503),
    openapi_extra=openapi_body(),
)
async def create_upload(
    request: Request, response: Response, services: ServicesDep, caller: WritesUploads
) -> UploadRead:
    """Send a picture before the job it is for; name its id in the submission. It is kept for a while, then deleted."""
    async with received_form(request, max_files=MAX_FILES, remedy=REMEDY) as form:
        made = await run_in_threadpool(lambda: services.uploads.take(caller, *to_file(form)))
    response.headers["Location"] = upload_path(made.id)
    return made


@documents.post(
    "/uploads/presigned",
    operation_id="presign_upload",
    summary="Get a link to upload by",
    status_code=HTTPStatus.CREATED,
    responses=problem_responses(401, 409, 413, 415, 422, 429, 500, 503),
)
def presign_upload(
    response: Response, services: ServicesDep, caller: WritesUploads, wish: UploadAnnouncement
) -> PresignedUpload:
    """Announce a picture and get a link to the object store: PUT the file there, then confirm."""
    made = services.uploads.announce(caller, wish)
    response.headers["Location"] = upload_path(made.id)
    return made


@documents.post(
    "/uploads/{upload_id:uuid}/confirm",
    operation_id="confirm_upload",
    summary="Confirm an upload by link",
    responses=problem_responses(401, 404, 409, 422, 429, 500, 503),
)
def confirm_upload(services: ServicesDep, caller: WritesUploads, upload_id: uuid.UUID) -> UploadRead:
    """Have what was written to the store looked at: it is ready then, or refused and deleted. Again: no effect."""
    return services.uploads.confirm(caller, upload_id)


@documents.get(
    "/uploads/{upload_id:uuid}",
    operation_id="read_upload",
    summary="Read an upload",
    responses=problem_responses(401, 404, 500, 503),
)
def read_upload(services: ServicesDep, caller: ReadsUploads, upload_id: uuid.UUID) -> UploadRead:
    """Read what is kept of an upload, and until when."""
    return services.uploads.read(caller, upload_id)


@documents.delete(
    "/uploads/{upload_id:uuid}",
    operation_id="delete_upload",
    summary="Delete an upload",
    status_code=HTTPStatus.NO_CONTENT,
    responses=problem_responses(401, 404, 500, 503),
)
def delete_upload(services: ServicesDep, caller: WritesUploads, upload_id: uuid.UUID) -> None:
    """Delete an upload before its time. Jobs that were submitted with it keep their copies."""
    services.uploads.delete(caller, upload_id)


router.include_router(documents)
