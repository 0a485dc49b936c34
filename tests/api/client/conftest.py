"""Fixtures of the client's tests: a real API process, and a key of a fresh account for each test."""

import os
import sys

import httpx
import pytest
from PIL import Image
from sqlalchemy import delete

from api.accounts.models import Account
from api.accounts.service import issue_key
from api.client import Client
from api.db import make_engine, session_factory, transaction
from api.settings import StoreSettings
from api.storage import ObjectStore
from deploy.local.processes import LOOPBACK, free_port, spawn
from tests.support.vault import SECRET_KEYS, VAULT


@pytest.fixture(scope="session")
def environment(test_databases, valkey_server, object_store_server):
    with test_databases.fresh() as url:
        yield {
            "DATABASE_URL": url,
            "REDIS_URL": valkey_server.url,
            "SECRET_KEYS": SECRET_KEYS,
            **object_store_server.environment("client-tests"),
        }


@pytest.fixture(scope="session")
def objects(environment):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        store = ObjectStore(StoreSettings())
    store.ensure_bucket()
    return store


@pytest.fixture(scope="session")
def sessions(environment):
    engine = make_engine(environment["DATABASE_URL"])
    yield session_factory(engine, VAULT)
    engine.dispose()


@pytest.fixture(scope="session")
def url(environment, objects, tmp_path_factory):
    port = free_port()
    address = f"http://{LOOPBACK}:{port}"
    child = spawn(
        "api",
        [sys.executable, "-m", "api"],
        log=tmp_path_factory.mktemp("api") / "api.log",
        env=os.environ | environment | {"HOST": LOOPBACK, "PORT": str(port)},
    )

    def ready() -> bool:
        try:
            return httpx.get(f"{address}/readyz").is_success
        except httpx.TransportError:
            return False

    child.wait_ready(ready, timeout_s=30)
    yield address
    child.stop()


@pytest.fixture
def api_key(sessions):
    """Of a fresh account, with all scopes; nobody's jobs wait when the next test begins."""
    yield issue_key(sessions, account=os.urandom(8).hex()).text
    with transaction(sessions) as session:
        session.execute(delete(Account))


@pytest.fixture
def client(url, api_key):
    with Client(url, api_key) as connection:
        yield connection


@pytest.fixture
def pictures(tmp_path):
    paths = []
    for number in range(3):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (64, 64), (40 * number, 200, 100)).save(path)
        paths.append(path)
    return paths
