"""The real servers the tests run against: one Postgres, one Valkey and one S3 server per test process."""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING

from deploy.local.object_store import ObjectStoreServer, StoreKeys
from deploy.local.postgres import Postgres
from deploy.local.valkey import Valkey

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEMPLATE = "migrated"
"""The database that every test's own is copied from."""


class TestDatabases:
    """Fresh, fully migrated databases on one server; each takes about 20 ms."""

    __test__ = False  # not a test, whatever its name says

    def __init__(self, server: Postgres) -> None:
        self._server = server
        self._has_template = False

    @contextmanager
    def fresh(self) -> Iterator[str]:
        """URL of a new migrated database, dropped afterwards."""
        with self.empty(template=self._template()) as url:
            yield url

    @contextmanager
    def empty(self, template: str = "template0") -> Iterator[str]:
        """URL of a new database without any table, dropped afterwards."""
        name = f"test_{secrets.token_hex(6)}"
        self._server.copy_database(name, template)
        try:
            yield self._server.url(name)
        finally:
            self._server.drop_database(name)

    def _template(self) -> str:
        if not self._has_template:
            import migrations  # noqa: PLC0415 - so that tests without a database need no SQLAlchemy

            self._server.copy_database(TEMPLATE, "template0")
            migrations.upgrade(self._server.url(TEMPLATE))
            self._has_template = True
        return TEMPLATE


@contextmanager
def running_postgres(folder: Path) -> Iterator[Postgres]:
    """A server tuned for tests: nothing is synced to disk."""
    server = Postgres(
        folder / "postgres", password=secrets.token_hex(8), log=folder / "logs" / "postgres.log", durable=False
    )
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def running_valkey(folder: Path) -> Iterator[Valkey]:
    """A server of the Redis protocol."""
    server = Valkey(folder / "valkey", password=secrets.token_hex(8), log=folder / "logs" / "valkey.log")
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def running_object_store(folder: Path) -> Iterator[ObjectStoreServer]:
    """An S3 server that checks signatures and expiry."""
    keys = StoreKeys(access_key_id=secrets.token_hex(8), secret_access_key=secrets.token_hex(16))
    server = ObjectStoreServer(folder / "objects", keys=keys, log=folder / "logs" / "object-store.log")
    server.start()
    try:
        yield server
    finally:
        server.stop()
