"""Fixtures of the API's tests: sessions, an application on real servers, an account with a key."""

import pytest
from starlette.testclient import TestClient

from api.accounts.service import issue_key
from api.db import make_engine, session_factory
from api.main import create_app
from api.settings import ApiSettings, DatabaseSettings, RedisSettings, SealSettings
from tests.api.factories import Caller
from tests.support.vault import SECRET_KEYS, VAULT


@pytest.fixture
def engine(database_url):
    engine = make_engine(database_url, pool_size=4)
    yield engine
    engine.dispose()


@pytest.fixture
def sessions(engine):
    return session_factory(engine, VAULT)


@pytest.fixture
def api_settings(database_url, store_settings, redis_url):
    return ApiSettings(
        database=DatabaseSettings(url=database_url),
        redis=RedisSettings(url=redis_url),
        store=store_settings,
        seals=SealSettings(keys=SECRET_KEYS),
    )


@pytest.fixture
def serve(api_settings, store):
    """Make a client of an application; keyword arguments replace settings."""
    clients = []

    def make(**changes):
        client = TestClient(create_app(api_settings.model_copy(update=changes)))
        client.__enter__()
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def http(serve):
    """A client without a key."""
    return serve()


@pytest.fixture
def caller(http, sessions):
    """A client with a key of account `mine`."""
    return Caller(http, issue_key(sessions, account="mine"))


@pytest.fixture
def stranger(http, sessions):
    """A client with a key of another account."""
    return Caller(http, issue_key(sessions, account="theirs"))
