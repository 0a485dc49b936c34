"""Paths of jobs and recipes: HTTP in, HTTP out."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from api.deps import REPLAYED, IdempotencyKey, ReadsJobs, Services, ServicesDep, WritesJobs
from api.documents import answered, described
from api.errors import NotFound
from api.idempotency import Answer
from api.jobs import catalogue
from api.jobs.bodies import Body, Envelope, openapi_body, received_body, to_submission
from api.jobs.check_schemas import JobCheck
from api.jobs.plan import JobKind
from api.jobs.schemas import AttemptPage, DeletionRead, JobPage, JobRead, LogPage, RecipePage
from api.jobs.states import TERMINAL_JOBS, JobState
from api.jobs.stream import MAX_ID, MEDIA_TYPE, EventStream, read_start
from api.jobs.waiting import MAX_WAIT_S, is_known, read_wait, watch
from api.problems import problem_responses
from api.telemetry import current_request_id, current_traceparent, current_tracestate

router = APIRouter(tags=["jobs"])


def _header(name: str, description: str, example: str) -> dict[str, Any]:
    """Describe a field of a request that is read here by hand, which takes less time."""
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": {"type": "string"},
        "example": example,
    }


PREFER = _header(
    "Prefer",
    f"`wait=n`: answer after n seconds, at most {MAX_WAIT_S}, or sooner, once there is something to tell (RFC 7240). "
    "The answer then has `Preference-Applied`.",
    "wait=30",
)
IF_NONE_MATCH = _header(
    "If-None-Match", "`ETag` of the document that is known.", 'W/"5d41402abc4b2a76b9719d911017c592"'
)


APPLIED = {"Preference-Applied": "`wait=n`, if the request asked for it by `Prefer`."}
NEW_JOB: dict[str, Any] = {
    "description": "The job.",
    "headers": REPLAYED
    | described(
        {
            "Location": "The job's path.",
            "Retry-After": "Seconds after which to look at it.",
            "RateLimit-Policy": "How many requests a key may make, and the account's quotas of waiting jobs and stored "
            "bytes, if it has any.",
            "RateLimit": "What is left of them.",
        }
    ),
}
ETAG = {
    "ETag": "Weak. Another one as soon as anything of the document is another, but for what the clock alone changes: "
    "estimates, places in the queue, times so far, links. While it holds, the links of a document that has it work for "
    "at least half their lifetime."
}


@router.post(
    "/jobs",
    operation_id="submit_job",
    summary="Submit a job",
    status_code=HTTPStatus.ACCEPTED,
    response_model=JobRead,
    responses={
        202: NEW_JOB | {"headers": NEW_JOB["headers"] | described(APPLIED)},
        200: {
            "model": JobRead | JobCheck,
            "description": "The job has ended while its submitter waited; or, with `validate_only`, what it would be.",
            "headers": NEW_JOB["headers"] | described(APPLIED),
        },
        **problem_responses(400, 401, 409, 413, 415, 422, 429, 500, 503),
    },
    openapi_extra=openapi_body() | {"parameters": [PREFER]},
)
async def submit_job(
    request: Request,
    services: ServicesDep,
    caller: WritesJobs,
    key: IdempotencyKey,
    validate_only: Annotated[  # noqa: FBT002 - FastAPI calls it by name
        bool, Query(description="Only look: nothing is stored, and the answer says what the job would be.")
    ] = False,
) -> Response:
    """Send pictures of a subject and of a style; the answer is the job, which is worked on from now on.

    As a form with the pictures, as a form with one zip of them, or as JSON with the ids of uploads.

    With `Prefer: wait=n` the answer comes when the job has ended, or after n seconds with the job as it is then.
    """

    def submit(body: Body) -> Answer | JobCheck:
        envelope = Envelope(
            origin=_origin(request, services),
            traceparent=current_traceparent(),
            tracestate=current_tracestate(),
            request_id=current_request_id(),
            idempotency_key=key,
        )
        with to_submission(body, envelope, services.settings) as submission:
            if validate_only:
                return services.jobs.check(caller, submission)
            return services.jobs.submit(caller, submission)

    async with received_body(request) as body:  # of a caller who has shown a key
        accepted = await run_in_threadpool(submit, body)
    if isinstance(accepted, JobCheck):
        return answered(accepted.model_dump_json())
    wait = read_wait(request.headers.getlist("prefer"))
    if not wait.seconds:
        return answered(accepted.body, status=accepted.status, headers={**accepted.headers, **wait.headers()})
    await watch(
        lambda: services.reader.glance(caller, accepted.id),
        hub=services.hub,
        job_id=accepted.id,
        seconds=wait.seconds,
        is_enough=lambda seen: seen.has_ended,
    )
    reading = await run_in_threadpool(services.reader.read, caller, accepted.id)
    answer = _ending(reading.job, headers={**accepted.headers, **wait.headers()})
    if answer.status_code == HTTPStatus.OK:
        del answer.headers["Retry-After"]  # there is nothing to come again for
    return answer


@router.get("/jobs", operation_id="list_jobs", summary="List jobs", responses=problem_responses(401, 422, 500, 503))
def list_jobs(
    services: ServicesDep,
    caller: ReadsJobs,
    *,
    cursor: Annotated[str | None, Query(max_length=100, description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    state: Annotated[list[JobState], Query(description="Only jobs in this state; several may be given.")] = [],  # noqa: B006 - FastAPI copies it
    kind: Annotated[list[JobKind], Query(description="Only jobs of this kind; several may be given.")] = [],  # noqa: B006
) -> JobPage:
    """List the caller's jobs, newest first."""
    return services.reader.page(caller, cursor=cursor, limit=limit, states=state, kinds=kind)


@router.get(
    "/jobs/{job_id}",
    operation_id="read_job",
    summary="Read a job",
    response_model=JobRead,
    responses={
        200: {"description": "The job.", "headers": described(ETAG | APPLIED)},
        304: {"description": "It is as `If-None-Match` knows it.", "headers": described(ETAG | APPLIED)},
        **problem_responses(401, 404, 410, 422, 500, 503),
    },
    openapi_extra={"parameters": [PREFER, IF_NONE_MATCH]},
)
async def read_job(
    request: Request,
    services: ServicesDep,
    caller: ReadsJobs,
    job_id: str,
    *,
    wait: Annotated[int | None, Query(ge=0, le=MAX_WAIT_S, description="As `Prefer: wait`, and before it.")] = None,
) -> Response:
    """Read where a job stands and, once it has succeeded, where its files are.

    With a wait, the answer comes as soon as the job's state changes; with `If-None-Match`, as soon as anything of it is
    not as known any more, and 304 if nothing is until then. A job that has ended is never waited for.
    """
    job = _job_id(job_id)
    patience = read_wait(request.headers.getlist("prefer"), wait)
    known = request.headers.getlist("if-none-match")
    headers = {"Cache-Control": "private, no-cache", **patience.headers()}
    if known or patience.seconds:
        seen = await watch(
            lambda: services.reader.glance(caller, job),
            hub=services.hub,
            job_id=job,
            seconds=patience.seconds,
            is_enough=(lambda seen: not is_known(seen.etag, known)) if known else None,
        )
        if is_known(seen.etag, known):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers={**headers, "ETag": seen.etag})
    reading = await run_in_threadpool(services.reader.read, caller, job)
    return answered(reading.job.model_dump_json(), headers={**headers, "ETag": reading.etag})


@router.delete(
    "/jobs/{job_id}",
    operation_id="delete_job",
    summary="Delete a job",
    response_model=DeletionRead,
    responses={
        200: {"description": "It is deleted: the receipt, the same whenever it is asked for."},
        202: {"model": DeletionRead, "description": "It is gone for you, and the rest is deleted later."},
        **problem_responses(401, 404, 409, 500, 503),
    },
)
def delete_job(services: ServicesDep, caller: WritesJobs, job_id: str) -> Response:
    """Delete a job that has ended, with its pictures, checkpoints, previews, results, logs, events and deliveries.

    409 while it has not ended, and while a job that tries it again goes on from its checkpoints. What other jobs took
    from it is theirs and stays. From then on every other request for it is answered with 410.
    """
    receipt = services.eraser.delete(caller, _job_id(job_id))
    status = HTTPStatus.ACCEPTED if receipt.deleted_at is None else HTTPStatus.OK
    return answered(receipt.model_dump_json(), status=status)


@router.post(
    "/jobs/{job_id}/cancel",
    operation_id="cancel_job",
    summary="Cancel a job",
    status_code=HTTPStatus.ACCEPTED,
    response_model=JobRead,
    responses={
        200: {"model": JobRead, "description": "The job has ended."},
        **problem_responses(401, 404, 410, 500, 503),
    },
)
def cancel_job(services: ServicesDep, caller: WritesJobs, job_id: str) -> Response:
    """Ask for a job to be given up: 202 while it is stopping, 200 once it has ended. Asking again changes nothing."""
    return _ending(services.jobs.cancel(caller, _job_id(job_id)))


@router.post(
    "/jobs/{job_id}/stop",
    operation_id="stop_job",
    summary="Stop a job early, and keep what it has",
    status_code=HTTPStatus.ACCEPTED,
    response_model=JobRead,
    responses={
        200: {"model": JobRead, "description": "The job has ended."},
        **problem_responses(401, 404, 409, 410, 500, 503),
    },
)
def stop_job(services: ServicesDep, caller: WritesJobs, job_id: str) -> Response:
    """Ask for training and merge to end at their next step: the job then succeeds with what was learnt by then.

    409 `nothing_to_keep` while a training has not begun. Asking again changes nothing.
    """
    return _ending(services.jobs.stop(caller, _job_id(job_id)))


@router.post(
    "/jobs/{job_id}/retry",
    operation_id="retry_job",
    summary="Try a job again",
    status_code=HTTPStatus.ACCEPTED,
    response_model=JobRead,
    responses={202: NEW_JOB, **problem_responses(400, 401, 404, 409, 410, 422, 429, 500, 503)},
)
def retry_job(
    request: Request, services: ServicesDep, caller: WritesJobs, job_id: str, key: IdempotencyKey
) -> Response:
    """Make a new job of a failed, canceled or expired one; it goes on from the checkpoints of the old one.

    While such a job has not ended, it is the answer to further requests.
    """
    return _accepted(
        services.jobs.retry(
            caller,
            _job_id(job_id),
            origin=_origin(request, services),
            traceparent=current_traceparent(),
            tracestate=current_tracestate(),
            request_id=current_request_id(),
            key=key,
        )
    )


@router.get(
    "/jobs/{job_id}/events",
    operation_id="stream_events",
    summary="Follow a job",
    response_class=Response,
    responses={
        200: {"description": "Events as they happen.", "content": {MEDIA_TYPE: {"schema": {"type": "string"}}}},
        204: {"description": "The job has ended, and nothing happened after that event: do not ask again."},
        **problem_responses(400, 401, 404, 410, 422, 500, 503),
    },
)
async def stream_events(
    services: ServicesDep,
    caller: ReadsJobs,
    job_id: str,
    after: Annotated[str | None, Query(max_length=20, description="Id of the last event that is known.")] = None,
    last_event_id: Annotated[str | None, Header(description="Likewise; browsers send it to go on.")] = None,
) -> Response:
    """Server-sent events, with ids that grow: what has happened to the job, then what happens, until its end.

    `event` is the type, as of webhooks; `data` is JSON: `id`, `type`, `job_id`, `at` and `data`. If too much
    was missed, the stream begins with an event `gap` whose `data` says from which id to which.
    """
    start = read_start(last_event_id, after)
    job = _job_id(job_id)
    end_at = await run_in_threadpool(services.history.last_event, caller, job)
    if end_at is not None and end_at <= start:
        return Response(status_code=HTTPStatus.NO_CONTENT)
    heartbeat_s = services.settings.sse_heartbeat_s
    return EventStream(services.hub, job, after=start, end_at=end_at, heartbeat_s=heartbeat_s)


@router.get(
    "/jobs/{job_id}/logs",
    operation_id="read_logs",
    summary="Read a job's log",
    responses=problem_responses(401, 404, 410, 422, 500, 503),
)
def read_logs(
    services: ServicesDep,
    caller: ReadsJobs,
    job_id: str,
    *,
    stage: Annotated[str | None, Query(max_length=40, description="Only of this stage.")] = None,
    attempt: Annotated[int | None, Query(ge=1, le=2**31 - 1, description="Only of attempts of this number.")] = None,
    after: Annotated[int, Query(ge=0, le=MAX_ID, description="Id of the last line that is known.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> LogPage:
    """Read what the stages wrote, oldest first."""
    return services.history.read_logs(caller, _job_id(job_id), stage=stage, attempt=attempt, after=after, limit=limit)


@router.get(
    "/jobs/{job_id}/attempts",
    operation_id="list_attempts",
    summary="List the attempts at a job's stages",
    responses=problem_responses(401, 404, 410, 500, 503),
)
def list_attempts(services: ServicesDep, caller: ReadsJobs, job_id: str) -> AttemptPage:
    """List which worker tried which stage when, from where, and how it ended."""
    return services.history.read_attempts(caller, _job_id(job_id))


@router.get("/recipes", operation_id="list_recipes", summary="List recipes", responses=problem_responses(401, 500, 503))
def list_recipes(services: ServicesDep, _: ReadsJobs) -> RecipePage:
    """List the recipes with everything they would do, and the base models of this installation."""
    return catalogue.recipe_page(services.settings)


def _origin(request: Request, services: Services) -> str:
    return services.settings.public_url or str(request.base_url)


def _accepted(answer: Answer) -> Response:
    return answered(answer.body, status=answer.status, headers=answer.headers)


def _ending(job: JobRead, headers: Mapping[str, str] | None = None) -> Response:
    status = HTTPStatus.OK if job.state in TERMINAL_JOBS else HTTPStatus.ACCEPTED
    return answered(job.model_dump_json(), status=status, headers=headers)


def _job_id(text: str) -> uuid.UUID:
    """Read an id from a path; what is no id names no job."""
    try:
        return uuid.UUID(text)
    except ValueError as error:
        raise NotFound(f"There is no job {text}.") from error
