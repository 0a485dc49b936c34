"""What owners may do with their endpoints and deliveries. Each call is one transaction."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from api.cursors import Cursor, read_cursor
from api.db import transaction
from api.errors import Conflict, FieldError, InvalidParameters, NotFound
from api.vault import vault_of
from api.webhooks import endpoints, log
from api.webhooks.guard import TargetRefused, check_at_submit
from api.webhooks.models import DeliveryState, EndpointState, WebhookDelivery, WebhookEndpoint
from api.webhooks.queueing import make_body
from api.webhooks.schemas import (
    PING,
    AttemptRead,
    DeliveryDetail,
    DeliveryPage,
    DeliveryRead,
    EndpointPage,
    EndpointRead,
    EndpointUrls,
    EndpointWithSecret,
)
from api.webhooks.signing import InvalidSecret, check_secret, make_secret, message_id

if TYPE_CHECKING:
    import uuid
    from collections.abc import Sequence
    from typing import Any

    from sqlalchemy.orm import Session, sessionmaker

    from api.accounts.service import Caller
    from api.jobs.event_types import EventType
    from api.settings import WebhookSettings
    from api.webhooks.schemas import EndpointCreate, EndpointPatch

MAX_ENDPOINTS = 20
"""So many receivers an account may have, those of single jobs left out: each event is sent to all of them."""


def endpoint_path(endpoint_id: object) -> str:
    """Return the path of an endpoint."""
    return f"/webhooks/{endpoint_id}"


class WebhookService:
    """Decides about endpoints and deliveries for their owners; another account's do not exist."""

    def __init__(self, settings: WebhookSettings, sessions: sessionmaker[Session]) -> None:
        self._settings = settings
        self._sessions = sessions

    def create(self, caller: Caller, wish: EndpointCreate) -> EndpointWithSecret:
        """Make an endpoint of the account.

        Raises:
            InvalidParameters: its URL or secret is refused.
            Conflict: the account has as many as it may have.
        """
        self._check_url(wish.url)
        secret = _secret(wish.secret)
        with transaction(self._sessions) as session:
            if endpoints.count_endpoints(session, caller.account_id) >= MAX_ENDPOINTS:
                raise Conflict(f"An account may have {MAX_ENDPOINTS} webhooks.", code="too_many_endpoints")
            endpoint = WebhookEndpoint(
                account_id=caller.account_id,
                url=wish.url,
                events=_distinct(wish.events),
                description=wish.description,
                secret=vault_of(session).seal(secret),
            )
            session.add(endpoint)
            session.flush()
            session.refresh(endpoint)
            return EndpointWithSecret(**_endpoint(endpoint), secret=secret)

    def list(self, caller: Caller, job_id: uuid.UUID | None) -> EndpointPage:
        """Return the endpoints of the account, or of one of its jobs; a job that is not the caller's has none."""
        with transaction(self._sessions) as session:
            rows = endpoints.list_endpoints(session, account_id=caller.account_id, job_id=job_id)
            return EndpointPage(items=[_read(row) for row in rows])

    def read(self, caller: Caller, endpoint_id: uuid.UUID) -> EndpointRead:
        """Return an endpoint.

        Raises:
            NotFound: the caller has none of that id.
        """
        with transaction(self._sessions) as session:
            return _read(self._find(session, caller, endpoint_id))

    def change(self, caller: Caller, endpoint_id: uuid.UUID, wish: EndpointPatch) -> EndpointRead:
        """Change what was asked for; a new URL also for what is on its way.

        Raises:
            NotFound: the caller has none of that id.
            InvalidParameters: the URL is refused.
        """
        asked = wish.model_fields_set
        if "url" in asked:
            self._check_url(wish.url)
        with transaction(self._sessions) as session:
            endpoint = self._lock(session, caller, endpoint_id)
            if "url" in asked:
                endpoints.redirect(session, endpoint, wish.url)
            if "events" in asked:
                endpoint.events = _distinct(wish.events)
            if "description" in asked:
                endpoint.description = wish.description
            if "state" in asked:
                if wish.state is EndpointState.DISABLED:
                    endpoints.disable(session, endpoint, endpoints.BY_OWNER)
                else:
                    endpoints.enable(endpoint)
            return self._written(session, endpoint)

    def enable(self, caller: Caller, endpoint_id: uuid.UUID) -> EndpointRead:
        """Tell an endpoint of what happens from now on. Asking again changes nothing.

        Raises:
            NotFound: the caller has none of that id.
        """
        with transaction(self._sessions) as session:
            endpoint = self._lock(session, caller, endpoint_id)
            endpoints.enable(endpoint)
            return self._written(session, endpoint)

    def delete(self, caller: Caller, endpoint_id: uuid.UUID) -> None:
        """Delete an endpoint with its log.

        Raises:
            NotFound: the caller has none of that id.
            Conflict: it is a job's, which it stays as long as the job.
        """
        with transaction(self._sessions) as session:
            endpoint = self._lock(session, caller, endpoint_id)
            if endpoint.job_id is not None:
                raise Conflict("This webhook is deleted with its job; disable it to have silence.", code="job_webhook")
            session.delete(endpoint)

    def rotate(self, caller: Caller, endpoint_id: uuid.UUID, secret: str | None) -> EndpointWithSecret:
        """Give an endpoint another secret; for a while the one before signs as well.

        Raises:
            NotFound: the caller has none of that id.
            InvalidParameters: the secret is refused.
        """
        new = _secret(secret)
        keep = timedelta(hours=self._settings.previous_secret_h)
        with transaction(self._sessions) as session:
            endpoint = self._lock(session, caller, endpoint_id)
            endpoints.rotate(session, endpoint, secret=new, keep=keep)
            self._written(session, endpoint)
            return EndpointWithSecret(**_endpoint(endpoint), secret=new)

    def ping(
        self,
        caller: Caller,
        endpoint_id: uuid.UUID,
        *,
        origin: str,
        traceparent: str | None,
        tracestate: str | None = None,
        request_id: str | None = None,
    ) -> DeliveryRead:
        """Send an endpoint a webhook that says nothing, once; returns the delivery, whose log tells how it went.

        Raises:
            NotFound: the caller has none of that id.
            Conflict: it is disabled.
        """
        with transaction(self._sessions) as session:
            endpoint = self._lock(session, caller, endpoint_id)
            _check_enabled(endpoint)
            data = {
                "endpoint_id": str(endpoint.id),
                "urls": {"self": origin.rstrip("/") + endpoint_path(endpoint.id)},
            }
            delivery = WebhookDelivery(
                account_id=caller.account_id,
                endpoint_id=endpoint.id,
                type=PING,
                url=endpoint.url,
                body=make_body(PING, datetime.now(UTC), data),
                retries=False,
                traceparent=traceparent,
                tracestate=tracestate,
                request_id=request_id,
            )
            session.add(delivery)
            session.flush()
            session.refresh(delivery)
            return DeliveryRead(**_delivery(delivery))

    def deliveries(
        self, caller: Caller, endpoint_id: uuid.UUID, *, cursor: str | None, limit: int, state: DeliveryState | None
    ) -> DeliveryPage:
        """Return a page of an endpoint's deliveries, newest first.

        Raises:
            NotFound: the caller has no endpoint of that id.
            InvalidParameters: the cursor is none of ours.
        """
        after = read_cursor(cursor)
        with transaction(self._sessions) as session:
            self._find(session, caller, endpoint_id)
            rows = log.list_deliveries(
                session,
                endpoint_id=endpoint_id,
                before=None if after is None else (after.created_at, after.id),
                limit=limit + 1,
                state=state,
            )
            page = rows[:limit]
            return DeliveryPage(
                items=[DeliveryRead(**_delivery(row)) for row in page],
                next_cursor=Cursor(page[-1].created_at, page[-1].id).encode() if len(rows) > limit else None,
                limit=limit,
                state=state,
            )

    def delivery(self, caller: Caller, delivery_id: uuid.UUID) -> DeliveryDetail:
        """Return a delivery with all its attempts.

        Raises:
            NotFound: the caller has none of that id.
        """
        with transaction(self._sessions) as session:
            row = self._find_delivery(session, caller, delivery_id)
            attempts = log.list_attempts(session, delivery_id)
            return DeliveryDetail(
                **_delivery(row),
                url=row.url,
                body=row.body,
                log=[
                    AttemptRead(
                        attempt=one.attempt,
                        started_at=one.started_at,
                        duration_ms=one.duration_ms,
                        status=one.status,
                        error=one.error,
                    )
                    for one in attempts
                ],
            )

    def replay(self, caller: Caller, delivery_id: uuid.UUID) -> DeliveryRead:
        """Send a delivery again, to where its endpoint is now; returns the new one.

        Raises:
            NotFound: the caller has none of that id.
            Conflict: its endpoint is disabled.
        """
        with transaction(self._sessions) as session:
            row = self._find_delivery(session, caller, delivery_id)
            if not log.hold_subject(session, row):
                raise NotFound(f"There is no delivery {delivery_id}.")
            endpoint = None if row.endpoint_id is None else self._lock(session, caller, row.endpoint_id)
            if endpoint is not None:
                _check_enabled(endpoint)
            again = log.replay(session, row, endpoint)
            session.refresh(again)
            return DeliveryRead(**_delivery(again))

    def _check_url(self, url: str) -> None:
        try:
            check_at_submit(url, self._settings.allow_cidrs)
        except TargetRefused as refusal:
            error = FieldError(pointer="/url", detail=str(refusal), code="url_refused")
            raise InvalidParameters(errors=[error]) from refusal

    def _find(self, session: Session, caller: Caller, endpoint_id: uuid.UUID) -> WebhookEndpoint:
        endpoint = endpoints.read_endpoint(session, endpoint_id, account_id=caller.account_id)
        if endpoint is None:
            raise NotFound(f"There is no webhook {endpoint_id}.")
        return endpoint

    def _lock(self, session: Session, caller: Caller, endpoint_id: uuid.UUID) -> WebhookEndpoint:
        endpoint = endpoints.lock_endpoint(session, endpoint_id, account_id=caller.account_id)
        if endpoint is None:
            raise NotFound(f"There is no webhook {endpoint_id}.")
        return endpoint

    def _find_delivery(self, session: Session, caller: Caller, delivery_id: uuid.UUID) -> WebhookDelivery:
        delivery = log.read_delivery(session, delivery_id, account_id=caller.account_id)
        if delivery is None:
            raise NotFound(f"There is no delivery {delivery_id}.")
        return delivery

    def _written(self, session: Session, endpoint: WebhookEndpoint) -> EndpointRead:
        session.flush()
        session.refresh(endpoint)
        return _read(endpoint)


def _secret(own: str | None) -> str:
    """Return the caller's own secret, or a new one."""
    if own is None:
        return make_secret()
    try:
        check_secret(own)
    except InvalidSecret as error:
        raise InvalidParameters(
            errors=[FieldError(pointer="/secret", detail=str(error), code="invalid_secret")]
        ) from error
    return own


def _check_enabled(endpoint: WebhookEndpoint) -> None:
    if endpoint.state is EndpointState.DISABLED:
        raise Conflict("The webhook is disabled; enable it first.", code="endpoint_disabled")


def _distinct(events: Sequence[EventType]) -> list[str]:
    return list(dict.fromkeys(event.value for event in events))


def _read(endpoint: WebhookEndpoint) -> EndpointRead:
    return EndpointRead(**_endpoint(endpoint))


def _endpoint(endpoint: WebhookEndpoint) -> dict[str, Any]:
    expires_at = endpoint.previous_secret_expires_at
    path = endpoint_path(endpoint.id)
    return {
        "id": endpoint.id,
        "job_id": endpoint.job_id,
        "url": endpoint.url,
        "events": endpoint.events,
        "description": endpoint.description,
        "state": endpoint.state,
        "disabled_at": endpoint.disabled_at,
        "disabled_reason": endpoint.disabled_reason,
        "previous_secret_expires_at": expires_at if expires_at and expires_at > datetime.now(UTC) else None,
        "created_at": endpoint.created_at,
        "urls": EndpointUrls(self=path, deliveries=f"{path}/deliveries"),
    }


def _delivery(row: WebhookDelivery) -> dict[str, Any]:
    return {
        "id": row.id,
        "endpoint_id": row.endpoint_id,
        "job_id": row.job_id,
        "type": row.type,
        "webhook_id": message_id(row.replay_of or row.id),
        "state": row.state,
        "attempts": row.attempts,
        "next_attempt_at": row.next_attempt_at if row.state is DeliveryState.PENDING else None,
        "last_status": row.last_status,
        "last_error": row.last_error,
        "replay_of": row.replay_of,
        "created_at": row.created_at,
        "delivered_at": row.delivered_at,
    }
