"""The events of a job as a stream of server-sent events (WHATWG HTML)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from starlette.responses import StreamingResponse

from api.errors import FieldError, InvalidParameters, InvalidRequest
from api.jobs.hub import EventHub, Missed, Subscription, Told

if TYPE_CHECKING:
    import uuid
    from collections.abc import AsyncIterator

    from starlette.types import Send

MEDIA_TYPE = "text/event-stream"
RECONNECT_MS = 2000
MAX_ID = 2**63 - 1


def read_start(last_event_id: str | None, after: str | None) -> int:
    """Return the id after which a stream begins: the header of a reconnection, else the query, else 0.

    Raises:
        InvalidRequest: the header is no id of ours.
        InvalidParameters: the query is none.
    """
    text = last_event_id or after
    if not text:
        return 0
    if text.isascii() and text.isdecimal() and int(text) <= MAX_ID:
        return int(text)
    if last_event_id:
        raise InvalidRequest("Last-Event-ID is no id of an event; leave it out to begin anew.")
    raise InvalidParameters(errors=[FieldError(pointer="/after", detail="must be the id of an event", code="invalid")])


class EventStream(StreamingResponse):
    """Events of a job from an id on, until its last; a comment breaks the silence for what lies between.

    Args:
        hub: of the process.
        job_id: the job.
        after: id of the last event that is known.
        end_at: id of the job's last event if it has ended.
        heartbeat_s: longest silence.
    """

    def __init__(self, hub: EventHub, job_id: uuid.UUID, *, after: int, end_at: int | None, heartbeat_s: float) -> None:
        super().__init__(
            _nothing(),
            media_type=MEDIA_TYPE,
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
        self._hub = hub
        self._job_id = job_id
        self._after = after
        self._end_at = end_at
        self._heartbeat_s = heartbeat_s

    async def stream_response(self, send: Send) -> None:
        """Send until the job ends, the process stops or the listener goes."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await _send(send, f"retry: {RECONNECT_MS}\n\n".encode())
        with Subscription(self._hub, self._job_id, self._after) as heard:
            while not self._hub.is_closed:
                mail = await heard.take(self._heartbeat_s)
                await _send(send, b"".join(map(_text, mail)) or b":\n\n")
                if any(isinstance(item, Told) and (item.is_last or item.id == self._end_at) for item in mail):
                    break
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _text(item: Told | Missed) -> bytes:
    if isinstance(item, Told):
        return item.frame
    gap = json.dumps({"missed_from": item.missed_from, "missed_to": item.missed_to})
    return f"event: gap\ndata: {gap}\n\n".encode()


async def _send(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _nothing() -> AsyncIterator[bytes]:
    """Stand for the content, which is sent otherwise."""
    none: tuple[bytes, ...] = ()
    for part in none:
        yield part
