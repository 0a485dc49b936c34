"""Paths of jobs and recipes: HTTP in, HTTP out."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.datastructures import FormData

from api.deps import CallerDep, ServicesDep
from api.errors import NotFound
from api.jobs import catalogue, view
from api.jobs.form import openapi_body, received_form, to_submission
from api.jobs.schemas import JobPage, JobRead, RecipePage
from api.jobs.states import JobState
from api.problems import problem_responses
from api.telemetry import current_traceparent

router = APIRouter(tags=["jobs"])

RETRY_AFTER_S = "1"
"""When to look at a new job for the first time."""


async def _form(request: Request, _: CallerDep) -> AsyncIterator[FormData]:
    """Receive the form, but only from a caller who has shown a key."""
    async with received_form(request) as form:
        yield form


@router.post(
    "/jobs",
    operation_id="submit_job",
    summary="Submit a job",
    status_code=HTTPStatus.ACCEPTED,
    responses=problem_responses(400, 401, 413, 415, 422, 500, 503),
    openapi_extra=openapi_body(),
)
def submit_job(
    request: Request,
    response: Response,
    services: ServicesDep,
    caller: CallerDep,
    form: Annotated[FormData, Depends(_form)],
) -> JobRead:
    """Send pictures of a subject and of a style; the answer is the job, which is worked on from now on."""
    origin = services.settings.public_url or str(request.base_url)
    submission = to_submission(form, origin=origin, traceparent=current_traceparent())
    job = services.jobs.submit(caller, submission)
    response.headers["Location"] = view.self_path(job.id)
    response.headers["Retry-After"] = RETRY_AFTER_S
    return job


@router.get("/jobs", operation_id="list_jobs", summary="List jobs", responses=problem_responses(401, 422, 500, 503))
def list_jobs(
    services: ServicesDep,
    caller: CallerDep,
    cursor: Annotated[str | None, Query(max_length=100, description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    state: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
) -> JobPage:
    """List the caller's jobs, newest first."""
    return services.jobs.page(caller, cursor=cursor, limit=limit, state=state)


@router.get(
    "/jobs/{job_id}",
    operation_id="read_job",
    summary="Read a job",
    responses=problem_responses(401, 404, 500, 503),
)
def read_job(services: ServicesDep, caller: CallerDep, job_id: str) -> JobRead:
    """Read where a job stands and, once it has succeeded, where its files are."""
    return services.jobs.read(caller, _job_id(job_id))


@router.post(
    "/jobs/{job_id}/cancel",
    operation_id="cancel_job",
    summary="Cancel a job",
    status_code=HTTPStatus.ACCEPTED,
    responses={200: {"model": JobRead, "description": "The job has ended."}, **problem_responses(401, 404, 500, 503)},
)
def cancel_job(response: Response, services: ServicesDep, caller: CallerDep, job_id: str) -> JobRead:
    """Ask for a job to stop: 202 while it is stopping, 200 once it has ended. Asking again changes nothing."""
    job, has_ended = services.jobs.cancel(caller, _job_id(job_id))
    response.status_code = HTTPStatus.OK if has_ended else HTTPStatus.ACCEPTED
    return job


@router.get("/recipes", operation_id="list_recipes", summary="List recipes", responses=problem_responses(401, 500, 503))
def list_recipes(services: ServicesDep, _: CallerDep) -> RecipePage:
    """List the recipes with everything they would do, and the base models of this installation."""
    return catalogue.recipe_page(services.settings)


def _job_id(text: str) -> uuid.UUID:
    """Read an id from a path; what is no id names no job."""
    try:
        return uuid.UUID(text)
    except ValueError as error:
        raise NotFound(f"There is no job {text}.") from error
