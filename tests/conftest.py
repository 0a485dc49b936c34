"""Fixtures of all tests. Servers live as long as the test process; databases and buckets as long as one test."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import pytest
import redis

from tests.support.servers import TestDatabases, running_object_store, running_postgres, running_valkey
from tests.support.vault import SECRET_KEYS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _pytest.terminal import TerminalReporter

    from api.settings import StoreSettings
    from api.storage import ObjectStore
    from deploy.local.object_store import ObjectStoreServer
    from deploy.local.postgres import Postgres
    from deploy.local.valkey import Valkey


LOUD = {
    "tests/console/": "THE WEB CONSOLE WAS NOT TESTED",
    "tests/compose/": "DOCKER COMPOSE WAS NOT TESTED",
    "::test_kubectl_renders_the_same": "KUBECTL DID NOT RENDER THE KUBERNETES MANIFESTS",
    "tests/hosts/": "SEVERAL HOSTS WERE NOT TESTED",
    "::test_the_version_before": "THE VERSION BEFORE WAS NOT TESTED ON THIS SCHEMA",
    "::test_the_javascript_snippet": "THE JAVASCRIPT SNIPPET WAS NOT TESTED",
}
"""What is said when tests were left out, by a part of their names."""


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Say loudly what was left out."""
    skipped = terminalreporter.stats.get("skipped", [])
    for part, what in LOUD.items():
        left_out = [report for report in skipped if part in report.nodeid]
        if left_out:
            terminalreporter.section(f"{what} ({len(left_out)} TESTS)", red=True, bold=True)
            terminalreporter.line(str(left_out[0].longrepr[-1] if left_out[0].longrepr else ""))


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with running_postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with running_valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="session")
def object_store_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStoreServer]:
    with running_object_store(tmp_path_factory.mktemp("objects")) as server:
        yield server


@pytest.fixture(scope="session")
def test_databases(postgres_server: Postgres) -> TestDatabases:
    return TestDatabases(postgres_server)


@pytest.fixture
def database_url(test_databases: TestDatabases) -> Iterator[str]:
    """A fresh database with all migrations applied."""
    with test_databases.fresh() as url:
        yield url


@pytest.fixture
def empty_database_url(test_databases: TestDatabases) -> Iterator[str]:
    """A fresh database with nothing in it, for tests of the migrations."""
    with test_databases.empty() as url:
        yield url


@pytest.fixture
def redis_url(valkey_server: Valkey) -> str:
    """The broker, emptied."""
    with redis.Redis.from_url(valkey_server.url) as client:
        client.flushall()
    return valkey_server.url


@pytest.fixture
def store_environment(object_store_server: ObjectStoreServer) -> dict[str, str]:
    """The S3_* variables for a bucket of the test's own, which is not made yet."""
    return object_store_server.environment(bucket=f"test-{secrets.token_hex(6)}")


@pytest.fixture
def store_settings(store_environment: dict[str, str]) -> StoreSettings:
    """The same as settings."""
    from api.settings import StoreSettings  # noqa: PLC0415 - only tests that want it pay for it

    with pytest.MonkeyPatch.context() as patch:
        for name, value in store_environment.items():
            patch.setenv(name, value)
        return StoreSettings()


@pytest.fixture
def store(store_settings: StoreSettings) -> ObjectStore:
    """An object store with a fresh, empty bucket."""
    from api.storage import ObjectStore  # noqa: PLC0415 - boto3 takes half a second

    object_store = ObjectStore(store_settings)
    object_store.ensure_bucket()
    return object_store


@pytest.fixture
def service_environment(database_url: str, redis_url: str, store_environment: dict[str, str]) -> dict[str, str]:
    """Everything a process of the service needs in its environment."""
    return {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "SECRET_KEYS": SECRET_KEYS, **store_environment}
