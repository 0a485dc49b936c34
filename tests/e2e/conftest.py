"""The installation that all end-to-end tests share: one that is running, or an embedded stack with the real engine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from api.accounts.service import issue_key
from api.client import Client
from api.db import make_engine, session_factory
from api.settings import SealSettings
from deploy.local.demo import Samples, shipped_samples
from deploy.local.stack import Stack
from tests.support.installation import Installation, told_installation
from tests.support.webhook_receiver import WebhookReceiver, webhook_receiver

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    told = told_installation(os.environ)
    if told is not None:
        yield told
    else:
        yield from embedded_installation(tmp_path_factory.mktemp("stack"))


def embedded_installation(folder: Path) -> Iterator[Installation]:
    environment = os.environ | {"WEBHOOK_ALLOW_CIDRS": "127.0.0.0/8"}
    with Stack(folder, environment=environment, durable=False) as running:
        yield Installation(
            url=running.api_url,
            api_key=running.owner.api_key,
            webhook_host="127.0.0.1",
            webhook_secret=running.owner.webhook_secret,
            other_api_key=stranger_key(running.env),
        )
        running.check()


def stranger_key(environment: Mapping[str, str]) -> str:
    """Of another account."""
    engine = make_engine(environment["DATABASE_URL"])
    vault = SealSettings(keys=SecretStr(environment["SECRET_KEYS"])).vault()
    try:
        return issue_key(session_factory(engine, vault), account="stranger").text
    finally:
        engine.dispose()


@pytest.fixture(scope="session")
def client(installation: Installation) -> Iterator[Client]:
    with Client(installation.url, installation.api_key) as connection:
        yield connection


@pytest.fixture(scope="session")
def samples() -> Samples:
    return shipped_samples()


@pytest.fixture(scope="session")
def receiver(installation: Installation) -> Iterator[WebhookReceiver | None]:
    """None where the installation was not told how to reach this machine."""
    if installation.webhook_host is None:
        yield None
        return
    with webhook_receiver(installation.webhook_host) as running:
        yield running
