"""From an event to the deliveries that tell of it, in the event's own transaction; and the endpoints of single jobs.

Order of locks: a job (by whoever records its event), then endpoints, then deliveries. Endpoints are locked here only
against their removal, so that events of several jobs pass each other.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, delete, exists, func, insert, literal, or_, select, true

from api.identifiers import uuid7
from api.jobs.event_types import LIFECYCLE_EVENTS, TERMINAL_EVENTS, EventType
from api.jobs.models import Event, Job
from api.vault import vault_of
from api.webhooks.models import DeliveryState, EndpointState, WebhookDelivery, WebhookEndpoint

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

MAX_BODY_BYTES = 20_000
"""Receivers refuse more; the standard asks for thin bodies."""
ESSENTIALS = ("job_id", "state")
"""What is left of data that would make a body too large: the receiver reads the job for the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Occurrence:
    """An event to be told of."""

    event_id: int
    type: str
    data: Mapping[str, Any]


def queue_deliveries(
    session: Session,
    *,
    account_id: uuid.UUID,
    job_id: uuid.UUID,
    occurrences: Sequence[Occurrence],
    occurred_at: datetime,
    traceparent: str | None,
    tracestate: str | None = None,
    request_id: str | None,
) -> None:
    """Write one delivery of each event for each enabled endpoint, of the account or of this job, that wants to hear it.

    The bodies are made here, once, so that every attempt sends the same bytes. Progress that no sender has taken yet
    makes room for newer progress.
    """
    wants = {kind: _wants(kind) for kind in dict.fromkeys(each.type for each in occurrences)}
    endpoints = session.execute(
        select(WebhookEndpoint.id, WebhookEndpoint.url, *wants.values())
        .where(
            WebhookEndpoint.account_id == account_id,
            or_(WebhookEndpoint.job_id.is_(None), WebhookEndpoint.job_id == job_id),
            WebhookEndpoint.state == EndpointState.ENABLED,
            or_(*wants.values()),
        )
        .order_by(WebhookEndpoint.id)
        .with_for_update(read=True, key_share=True)
    ).all()
    if not endpoints:
        return
    places = {kind: place for place, kind in enumerate(wants, start=2)}
    for each in occurrences:
        hearers = [row for row in endpoints if row[places[each.type]]]
        if each.type == EventType.PROGRESS:
            _drop_unsent_progress(session, job_id, [row.id for row in hearers])
        body = make_body(each.type, occurred_at, each.data)
        session.add_all(
            WebhookDelivery(
                account_id=account_id,
                endpoint_id=row.id,
                job_id=job_id,
                event_id=each.event_id,
                type=each.type,
                url=row.url,
                body=body,
                retries=each.type in LIFECYCLE_EVENTS,
                traceparent=traceparent,
                tracestate=tracestate,
                request_id=request_id,
            )
            for row in hearers
        )


def event_data(job: Job, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what webhooks say of an event of a job. `state` is the job's there; a stage's is `stage_state`."""
    told = {"stage_state" if name == "state" else name: value for name, value in data.items()}
    return {"job_id": str(job.id), "state": job.state.value, **told, "urls": {"self": job.self_url}}


def make_body(event_type: str, occurred_at: datetime, data: Mapping[str, Any]) -> str:
    """Return the text that is signed and sent, of less than `MAX_BODY_BYTES`.

    Data that is too large loses all but its essentials: an event is never lost for what it says.
    """
    for part in (data, {name: data[name] for name in ESSENTIALS if name in data}):
        document = {"type": event_type, "timestamp": occurred_at.isoformat(), "data": part}
        body = json.dumps(document, separators=(",", ":"))
        if len(body) < MAX_BODY_BYTES:  # ASCII, so characters are bytes
            break
    return body


def add_job_endpoint(
    session: Session,
    *,
    account_id: uuid.UUID,
    job_id: uuid.UUID,
    url: str,
    events: Sequence[str] = (),
    secret: str | None = None,
) -> None:
    """Have a receiver told of one job, in the transaction that inserts the job and after it.

    Args:
        session: an open transaction, in which the job's row is written already.
        account_id: the job's.
        job_id: the job.
        url: checked by `guard.check_at_submit`.
        events: types to tell of; none for the job's end. What was recorded before, `job.queued`, is told as well.
        secret: checked by `signing.check_secret`; None for the account's.
    """
    sealed = None if secret is None else vault_of(session).seal(secret)
    _add_job_endpoint(
        session,
        WebhookEndpoint(account_id=account_id, job_id=job_id, url=url, events=list(events), secret=sealed),
    )


def _add_job_endpoint(session: Session, endpoint: WebhookEndpoint) -> None:
    session.flush()
    session.add(endpoint)
    session.flush()
    if not endpoint.events:
        return
    past = session.execute(
        select(Event, Job)
        .join(Job, Job.id == Event.job_id)
        .where(Event.job_id == endpoint.job_id, Event.type.in_(endpoint.events))
        .order_by(Event.id)
    )
    session.add_all(
        WebhookDelivery(
            account_id=endpoint.account_id,
            endpoint_id=endpoint.id,
            job_id=endpoint.job_id,
            event_id=event.id,
            type=event.type,
            url=endpoint.url,
            body=make_body(event.type, event.created_at, event_data(job, event.data)),
            retries=event.type in LIFECYCLE_EVENTS,
            traceparent=job.traceparent,
            tracestate=job.tracestate,
            request_id=job.request_id,
        )
        for event, job in past
    )


def copy_job_endpoint(session: Session, *, job_id: uuid.UUID, to_job_id: uuid.UUID) -> None:
    """Have the receiver of one job told of another one of the account's too, which tries it again; none, no effect.

    It begins enabled, whatever became of it in the other job.
    """
    session.flush()
    endpoint = session.scalars(select(WebhookEndpoint).where(WebhookEndpoint.job_id == job_id)).first()
    if endpoint is not None:
        _add_job_endpoint(
            session,
            WebhookEndpoint(
                account_id=endpoint.account_id,
                job_id=to_job_id,
                url=endpoint.url,
                events=list(endpoint.events),
                secret=endpoint.secret,
            ),
        )


def adopt_job_endpoint(session: Session, *, account_id: uuid.UUID, job_id: uuid.UUID, url: str) -> None:
    """Make the endpoint of a job that code older than endpoints has written; the caller holds the job's lock."""
    known = exists().where(WebhookEndpoint.job_id == job_id)
    session.execute(
        insert(WebhookEndpoint).from_select(
            ["id", "account_id", "job_id", "url"],
            select(literal(uuid7()), literal(account_id), literal(job_id), literal(url)).where(~known),
            include_defaults=False,
        )
    )


def _wants(event_type: str) -> ColumnElement[bool]:
    """Match endpoints whose filter takes this type; an empty one is the lifecycle, or for one job its end."""
    named = literal(event_type) == func.any(WebhookEndpoint.events)
    if event_type not in LIFECYCLE_EVENTS:
        return named
    scope = true() if event_type in TERMINAL_EVENTS else WebhookEndpoint.job_id.is_(None)
    return or_(named, and_(func.cardinality(WebhookEndpoint.events) == 0, scope))


def _drop_unsent_progress(session: Session, job_id: uuid.UUID, endpoint_ids: list[uuid.UUID]) -> None:
    session.execute(
        delete(WebhookDelivery)
        .where(
            WebhookDelivery.job_id == job_id,
            WebhookDelivery.endpoint_id.in_(endpoint_ids),
            WebhookDelivery.type == EventType.PROGRESS,
            WebhookDelivery.state == DeliveryState.PENDING,
            WebhookDelivery.attempts == 0,
            WebhookDelivery.replay_of.is_(None),
        )
        .execution_options(synchronize_session=False)
    )
