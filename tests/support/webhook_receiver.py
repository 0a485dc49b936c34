"""An HTTP server that keeps what it is sent: the other end of a webhook."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from typing import TYPE_CHECKING

from deploy.local.processes import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Received:
    """One request."""

    headers: dict[str, str]
    body: bytes


@dataclass
class WebhookReceiver:
    """Answers 204 to every POST and queues it."""

    url: str
    deliveries: Queue[Received] = field(default_factory=Queue)


@contextmanager
def webhook_receiver(host: str = LOOPBACK) -> Iterator[WebhookReceiver]:
    """A receiver on a free port: of the loopback interface, or of all where it is called by another host's name."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.deliveries.put(Received({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer((LOOPBACK if host == LOOPBACK else "", 0), Handler) as server:
        receiver = WebhookReceiver(f"http://{host}:{server.server_address[1]}/hook")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()
