"""S3 as AWS answers: moto's server, and one that says what a test writes down, for what no server says when asked."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import boto3

from deploy.local.processes import LOOPBACK, accepts, free_port, spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

START_TIMEOUT_S = 60.0
PAGE = 3
"""Keys that moto lists at a time, AWS a thousand."""

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers and body."""


@contextmanager
def running_moto(folder: Path, *, free_requests: int | None = None) -> Iterator[str]:
    """URL of a server that asks for a signature after so many requests; for none at all if not told how many."""
    port = free_port()
    environment = {**os.environ, "MOTO_S3_DEFAULT_MAX_KEYS": str(PAGE)}
    if free_requests is not None:
        environment["INITIAL_NO_AUTH_ACTION_COUNT"] = str(free_requests)
    command = [sys.executable, "-m", "moto.server", "-H", LOOPBACK, "-p", str(port)]
    child = spawn("moto", command, log=folder / "moto.log", env=environment)
    try:
        child.wait_ready(lambda: accepts(port), START_TIMEOUT_S)
        yield f"http://{LOOPBACK}:{port}"
    finally:
        child.stop()


USER_REQUESTS = 3
"""That `make_user` takes."""


def make_user(url: str, policy: str) -> Mapping[str, str]:
    """The access key of a new user of moto's who may do what a policy says."""
    iam: Any = boto3.client(
        "iam", endpoint_url=url, region_name="us-east-1", aws_access_key_id="any", aws_secret_access_key="any"
    )
    iam.create_user(UserName="service")
    iam.put_user_policy(UserName="service", PolicyName="s3", PolicyDocument=policy)
    key: Mapping[str, str] = iam.create_access_key(UserName="service")["AccessKey"]
    return key


def refusal(status: int, code: str, more: str = "", **headers: str) -> Answer:
    """An error as S3 words it; `more` is XML inside."""
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{code}</Message>{more}</Error>'
    return status, {"Content-Type": "application/xml", **headers}, body.encode()


@contextmanager
def answering(answer: Callable[[BaseHTTPRequestHandler], Answer]) -> Iterator[str]:
    """URL of a server that answers every request with what a function makes of it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, body = answer(self)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _answer

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{LOOPBACK}:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
