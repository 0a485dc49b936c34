"""The other end of the webhooks: verifies every message, and can be down, slow or elsewhere."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from standardwebhooks import Webhook, WebhookVerificationError

from deploy.local.processes import LOOPBACK


class Manner(StrEnum):
    """How it answers."""

    WELL = "well"
    DOWN = "down"
    """Hangs up without an answer."""
    SLOW = "slow"
    """Answers one byte a moment, longer than a delivery may take."""
    ELSEWHERE = "elsewhere"
    """Redirects."""


@dataclass(frozen=True)
class Message:
    """A message that was taken with a 2xx."""

    id: str
    path: str
    type: str
    job_id: str


class Receiver:
    """Messages go to `/<account>/...`: the account tells which secret signs."""

    def __init__(self) -> None:
        self.manner = Manner.WELL
        self.secrets: dict[str, str] = {}
        self.messages: list[Message] = []
        self.forged = 0
        self.refused = 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver._answer(self, body)

            def do_GET(self) -> None:
                receiver._answer(self, b"")

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def url(self, account: str, purpose: str) -> str:
        """Where messages of an account are taken."""
        return f"http://{LOOPBACK}:{self._server.server_port}/{account}/{purpose}"

    def _answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        if handler.path.startswith("/elsewhere"):  # whoever follows the redirect arrives here
            self.forged += 1
            handler.send_response(400)
            handler.end_headers()
            return
        manner = self.manner
        if manner is not Manner.WELL:
            self.refused += 1
        if manner is Manner.DOWN:
            handler.close_connection = True
            return
        if manner is Manner.SLOW:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
            try:
                for _ in range(30):
                    handler.wfile.write(b"x")
                    time.sleep(0.1)
            except OSError:
                return
            return
        if manner is Manner.ELSEWHERE:
            handler.send_response(307)
            handler.send_header("Location", self.url("elsewhere", "x"))
            handler.end_headers()
            return
        self._take(handler, body)

    def _take(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        headers = {name.lower(): value for name, value in handler.headers.items()}
        account = handler.path.split("/")[1]
        try:
            Webhook(self.secrets[handler.path if handler.path in self.secrets else account]).verify(body, headers)
        except (WebhookVerificationError, KeyError):
            self.forged += 1
            handler.send_response(400)
            handler.end_headers()
            return
        event = json.loads(body)
        self.messages.append(
            Message(headers["webhook-id"], handler.path, event["type"], str(event["data"].get("job_id", "")))
        )
        handler.send_response(204)
        handler.end_headers()
