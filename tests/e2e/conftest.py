"""One embedded stack with the real engine on the tiny base, shared by all end-to-end tests."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from api.accounts.service import issue_key
from api.client import Client
from api.db import make_engine, session_factory
from deploy.local.demo import Samples, shipped_samples
from deploy.local.stack import Stack
from tests.support.webhook_receiver import WebhookReceiver, webhook_receiver

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    environment = os.environ | {"WEBHOOK_ALLOW_CIDRS": "127.0.0.0/8"}
    with Stack(tmp_path_factory.mktemp("stack"), environment=environment, durable=False) as running:
        yield running
        running.check()


@pytest.fixture(scope="session")
def client(stack: Stack) -> Iterator[Client]:
    with Client(stack.api_url, stack.owner.api_key) as connection:
        yield connection


@pytest.fixture(scope="session")
def samples() -> Samples:
    return shipped_samples()


@pytest.fixture(scope="session")
def receiver() -> Iterator[WebhookReceiver]:
    with webhook_receiver() as running:
        yield running


@pytest.fixture(scope="session")
def stranger_key(stack: Stack) -> str:
    """Of another account."""
    engine = make_engine(stack.env["DATABASE_URL"])
    try:
        return issue_key(session_factory(engine), account="stranger").text
    finally:
        engine.dispose()
