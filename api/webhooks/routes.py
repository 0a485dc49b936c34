"""Paths of webhook endpoints and of the log of deliveries: HTTP in, HTTP out."""

from __future__ import annotations

import uuid
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from api.deps import ReadsWebhooks, ServicesDep, WritesWebhooks
from api.documents import SmallDocuments
from api.errors import NotFound
from api.problems import problem_responses
from api.telemetry import current_request_id, current_traceparent, current_tracestate
from api.webhooks.models import DeliveryState
from api.webhooks.schemas import (
    DeliveryDetail,
    DeliveryPage,
    DeliveryRead,
    EndpointCreate,
    EndpointPage,
    EndpointPatch,
    EndpointRead,
    EndpointWithSecret,
    SecretRotation,
)
from api.webhooks.service import endpoint_path

router = APIRouter(tags=["webhooks"], route_class=SmallDocuments)


@router.post(
    "/webhooks",
    operation_id="create_webhook",
    summary="Have a server told of jobs",
    status_code=HTTPStatus.CREATED,
    responses=problem_responses(401, 409, 413, 415, 422, 500, 503),
)
def create_webhook(
    response: Response, services: ServicesDep, caller: WritesWebhooks, wish: EndpointCreate
) -> EndpointWithSecret:
    """Have a server told of what happens to all jobs of the account. The answer holds its secret, this once."""
    made = services.webhooks.create(caller, wish)
    response.headers["Location"] = endpoint_path(made.id)
    return made


@router.get(
    "/webhooks",
    operation_id="list_webhooks",
    summary="List webhooks",
    responses=problem_responses(401, 422, 500, 503),
)
def list_webhooks(
    services: ServicesDep,
    caller: ReadsWebhooks,
    job_id: Annotated[uuid.UUID | None, Query(description="That of one job, instead of the account's.")] = None,
) -> EndpointPage:
    """List the account's webhooks, oldest first; that of a job, given as its `webhook_url`, by the job's id."""
    return services.webhooks.list(caller, job_id)


@router.get(
    "/webhooks/deliveries/{delivery_id}",
    operation_id="read_delivery",
    summary="Read a delivery",
    responses=problem_responses(401, 404, 500, 503),
)
def read_delivery(services: ServicesDep, caller: ReadsWebhooks, delivery_id: str) -> DeliveryDetail:
    """Read what was sent and how each attempt went."""
    return services.webhooks.delivery(caller, _id(delivery_id, "delivery"))


@router.post(
    "/webhooks/deliveries/{delivery_id}/replay",
    operation_id="replay_delivery",
    summary="Send a delivery again",
    status_code=HTTPStatus.ACCEPTED,
    responses=problem_responses(401, 404, 409, 500, 503),
)
def replay_delivery(services: ServicesDep, caller: WritesWebhooks, delivery_id: str) -> DeliveryRead:
    """Send the same body with the same `webhook-id` once more, to where the webhook is now."""
    return services.webhooks.replay(caller, _id(delivery_id, "delivery"))


@router.get(
    "/webhooks/{webhook_id}",
    operation_id="read_webhook",
    summary="Read a webhook",
    responses=problem_responses(401, 404, 500, 503),
)
def read_webhook(services: ServicesDep, caller: ReadsWebhooks, webhook_id: str) -> EndpointRead:
    """Read whether a webhook is enabled and what it is told of."""
    return services.webhooks.read(caller, _id(webhook_id))


@router.patch(
    "/webhooks/{webhook_id}",
    operation_id="change_webhook",
    summary="Change a webhook",
    responses=problem_responses(401, 404, 413, 415, 422, 500, 503),
)
def change_webhook(services: ServicesDep, caller: WritesWebhooks, webhook_id: str, wish: EndpointPatch) -> EndpointRead:
    """Change its URL, what it is told of, its description, or whether it is told at all."""
    return services.webhooks.change(caller, _id(webhook_id), wish)


@router.delete(
    "/webhooks/{webhook_id}",
    operation_id="delete_webhook",
    summary="Delete a webhook",
    status_code=HTTPStatus.NO_CONTENT,
    responses=problem_responses(401, 404, 409, 500, 503),
)
def delete_webhook(services: ServicesDep, caller: WritesWebhooks, webhook_id: str) -> None:
    """Delete a webhook of the account with its log. That of a job lives as long as the job."""
    services.webhooks.delete(caller, _id(webhook_id))


@router.post(
    "/webhooks/{webhook_id}/enable",
    operation_id="enable_webhook",
    summary="Enable a webhook",
    responses=problem_responses(401, 404, 500, 503),
)
def enable_webhook(services: ServicesDep, caller: WritesWebhooks, webhook_id: str) -> EndpointRead:
    """Tell it of what happens from now on; what it missed can be replayed."""
    return services.webhooks.enable(caller, _id(webhook_id))


@router.post(
    "/webhooks/{webhook_id}/rotate",
    operation_id="rotate_webhook_secret",
    summary="Change a webhook's secret",
    responses=problem_responses(401, 404, 413, 415, 422, 500, 503),
)
def rotate_webhook_secret(
    services: ServicesDep, caller: WritesWebhooks, webhook_id: str, wish: SecretRotation | None = None
) -> EndpointWithSecret:
    """Get a new secret, shown this once. Until `previous_secret_expires_at` the one before signs as well."""
    return services.webhooks.rotate(caller, _id(webhook_id), None if wish is None else wish.secret)


@router.post(
    "/webhooks/{webhook_id}/ping",
    operation_id="ping_webhook",
    summary="Ask a webhook to answer",
    status_code=HTTPStatus.ACCEPTED,
    responses=problem_responses(401, 404, 409, 500, 503),
)
def ping_webhook(request: Request, services: ServicesDep, caller: WritesWebhooks, webhook_id: str) -> DeliveryRead:
    """Send `webhook.ping`, once; read the delivery to see how it went."""
    origin = services.settings.public_url or str(request.base_url)
    return services.webhooks.ping(
        caller,
        _id(webhook_id),
        origin=origin,
        traceparent=current_traceparent(),
        tracestate=current_tracestate(),
        request_id=current_request_id(),
    )


@router.get(
    "/webhooks/{webhook_id}/deliveries",
    operation_id="list_deliveries",
    summary="List deliveries",
    responses=problem_responses(401, 404, 422, 500, 503),
)
def list_deliveries(
    services: ServicesDep,
    caller: ReadsWebhooks,
    webhook_id: str,
    *,
    cursor: Annotated[str | None, Query(max_length=100, description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    state: Annotated[DeliveryState | None, Query(description="Only deliveries in this state.")] = None,
) -> DeliveryPage:
    """List what was, is and will be sent to a webhook, newest first."""
    return services.webhooks.deliveries(caller, _id(webhook_id), cursor=cursor, limit=limit, state=state)


def _id(text: str, kind: str = "webhook") -> uuid.UUID:
    """Read an id from a path; what is no id names nothing."""
    try:
        return uuid.UUID(text)
    except ValueError as error:
        raise NotFound(f"There is no {kind} {text}.") from error
