"""One embedded stack with the real engine on the tiny base, shared by all end-to-end tests."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from api.client import Client
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
    with Client(stack.api_url, stack.api_key) as connection:
        yield connection


@pytest.fixture(scope="session")
def samples() -> Samples:
    return shipped_samples()


@pytest.fixture(scope="session")
def receiver() -> Iterator[WebhookReceiver]:
    with webhook_receiver() as running:
        yield running
